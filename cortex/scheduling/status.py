"""What the scheduler's state looks like from outside: nodes and jobs, as `cortex status` shows them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cortex.scheduling.job_run import JobRun
from cortex.scheduling.scheduler import Scheduler
from cortex.wire.messages import JobStatus, NodeStatus


def node_statuses(scheduler: Scheduler, now: float) -> tuple[NodeStatus, ...]:
    return tuple(
        NodeStatus(
            node.name,
            node.hello.data_address,
            node.hello.slots,
            len(node.held),
            node.memory_bytes,
            node.hello.memory_bytes,
            node.disk_free_bytes,
            max(0.0, now - node.renewed_at),
            node.silent,
        )
        for node in sorted(scheduler.leases.nodes.values(), key=lambda node: node.name)
    )


def _wanted(scheduler: Scheduler, run: JobRun) -> int:
    """Slots that a job has, or could fill with tasks that are leased or ready; no more than there are."""
    leased = max(len(run.running), scheduler.shares.slots_of(run.job))
    return min(scheduler.leases.slots, leased + scheduler.shares.ready_of(run.job))


def job_statuses(scheduler: Scheduler, owners: Mapping[str, str], now: float) -> tuple[JobStatus, ...]:
    """Jobs under way, the oldest first; `owners`: job -> id of its client."""
    return tuple(
        JobStatus(
            run.job,
            run.request.spec.name,
            run.state.value,
            owners.get(run.job, ""),
            now - run.began_at,
            run.progress.stage_messages(now),
            priority=run.request.spec.priority,
            slots=scheduler.shares.slots_of(run.job),
            slots_wanted=_wanted(scheduler, run),
        )
        for run in sorted(scheduler.jobs.values(), key=lambda run: run.began_at)
    )

"""What the scheduler's state looks like from outside: nodes and jobs, as `cortex status` shows them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cortex.limits import NODE_RETURN_S
from cortex.scheduling.run import Run
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
            node.condition,
            node.hello.host,
            node.hello.versions,
            spill_bytes=node.spill_bytes,
            spill_limit_bytes=node.spill_limit_bytes,
            waits_for=scheduler.waits_for(node) if node.draining else (),
            leaves_in_s=max(0.0, node.drain_until - now) if node.draining else -1.0,
            data_roots=node.hello.data_roots,
        )
        for node in sorted(scheduler.leases.nodes.values(), key=lambda node: node.name)
    )


def _wanted(scheduler: Scheduler, run: Run) -> int:
    """Slots that a job has, or could fill with tasks that are leased or ready; no more than there are."""
    leased = max(len(run.running), scheduler.shares.slots_of(run.job))
    return min(scheduler.leases.slots, leased + scheduler.shares.ready_of(run.job))


def expected_statuses(scheduler: Scheduler, now: float) -> tuple[NodeStatus, ...]:
    """Nodes of the server's earlier life that may still come back."""
    left_s = max(0.0, scheduler.earlier_life.expected_until - now)
    return tuple(
        NodeStatus(name, "", 0, 0, 0, 0, -1, NODE_RETURN_S - left_s, False, "expected", leaves_in_s=left_s)
        for name in sorted(scheduler.earlier_life.expected)
    )


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
            locality=run.locality,
        )
        for run in sorted(scheduler.jobs.values(), key=lambda run: run.began_at)
    )

"""Whether a job is taken now, or refused with the reason and the cure. Pure."""

from __future__ import annotations

from cortex.errors import ClusterFull, CortexError, MemoryTooSmall
from cortex.memory_plan import smallest_job_bytes, too_large
from cortex.scheduling.scheduler import Scheduler
from cortex.sharing_policy import SharingPolicy
from cortex.units import format_bytes, format_count
from cortex.wire.messages import SubmitJob


def refusal(
    request: SubmitJob, user: str, accepting: int, scheduler: Scheduler, policy: SharingPolicy
) -> CortexError | None:
    """None if the job is taken. `accepting`: jobs of this user that are taken and not yet known to the
    scheduler."""
    jobs = scheduler.shares.jobs_of(user) + accepting
    if jobs >= policy.jobs_per_user:
        return ClusterFull(
            f"{format_count(jobs)} jobs of user {user} are under way, as many as one user may have",
            cure="wait for one of them, or cancel it (cortex jobs, cortex cancel ID); the operator sets the"
            " cap: cortex server --jobs-per-user N",
        )
    queued = sum(job.tasks_waiting for job in scheduler.jobs.values())
    if queued >= policy.queued_tasks:
        return ClusterFull(
            f"{format_count(queued)} tasks wait in the cluster, and with {format_count(policy.queued_tasks)}"
            " it takes no further job",
            cure="submit it again when some are done, or cancel a job (cortex jobs); the operator sets the"
            " cap: cortex server --queued-tasks N",
        )
    return _memory_refusal(request.spec.resources.memory_bytes, scheduler)


def _memory_refusal(wanted_bytes: int, scheduler: Scheduler) -> CortexError | None:
    if not wanted_bytes:
        return None
    if wanted_bytes < smallest_job_bytes():
        smallest = format_bytes(smallest_job_bytes())
        return MemoryTooSmall(
            f"a task cannot run in {format_bytes(wanted_bytes)} of memory",
            cure=f"the least that works on a cluster is {smallest}; leave it out to use what slots have",
        )
    nodes = scheduler.leases.nodes.values()
    largest = max(nodes, key=lambda node: node.hello.memory_bytes, default=None)
    if largest is not None and largest.hello.memory_bytes < wanted_bytes:
        return too_large(wanted_bytes, largest.hello.memory_bytes, f"the largest, {largest.name},")
    return None

"""What `cortex status` and `cortex jobs` are told: nodes, jobs under way, and those that have ended."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cortex.scheduling.scheduler import Scheduler
from cortex.scheduling.status import expected_statuses, job_statuses, node_statuses
from cortex.server.job_ledger import JobLedger
from cortex.server.kept_results import KeptResults
from cortex.wire.messages import ClusterStatus


def cluster_status(
    cluster: str,
    scheduler: Scheduler,
    ledger: JobLedger,
    results: KeptResults,
    certificate_expiry: Callable[[str], float],
    now: float,
) -> ClusterStatus:
    """`now` by the scheduler's clock; `certificate_expiry(node)`: seconds since 1970, 0 unknown."""

    def keeps_result(job: str) -> bool:
        run = scheduler.kept.get(job)
        return job in results and run is not None and not run.is_elsewhere

    running = job_statuses(scheduler, ledger.owners, now)
    ended = [
        msgspec.structs.replace(job, kept_until=results.expires_at(job.job))
        if job.state == "done" and keeps_result(job.job)
        else job
        for job in ledger.ended
        if job.job not in scheduler.jobs
    ]
    nodes = [
        msgspec.structs.replace(node, certificate_expires_at=certificate_expiry(node.node))
        for node in node_statuses(scheduler, now)
    ]
    expected = expected_statuses(scheduler, now)
    return ClusterStatus(cluster, tuple(nodes), (*ended, *running), expected)

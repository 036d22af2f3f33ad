"""What the client of a job is told of how far it is: progress while it is under way, and a report with its
end. Pure.

All figures are the job's own, but for memory and slots, which are those of all nodes. `Reports` keeps whose
turn it is to be told, where there are too many jobs to tell of all at each tick.
"""

from __future__ import annotations

from collections.abc import Iterable

from cortex.limits import JOBS_TOLD_MAX
from cortex.scheduling.events import SendToClient
from cortex.scheduling.leases import LeaseBook
from cortex.scheduling.progress import BYTES_IN, BYTES_OUT, GROUPS, ROWS_IN, ROWS_OUT, SHUFFLED, SPILLED
from cortex.scheduling.run import Run
from cortex.wire.messages import JobProgress, JobReport


class Reports:
    def __init__(self, leases: LeaseBook) -> None:
        self._leases = leases
        self._told_from = 0

    def progress(self, under_way: Iterable[Run], now: float) -> list[SendToClient]:
        """For the clients of all jobs, or where there are many of some of them, in turns."""
        jobs = list(under_way)
        if len(jobs) > JOBS_TOLD_MAX:
            first = self._told_from % len(jobs)
            self._told_from = first + JOBS_TOLD_MAX
            jobs = (jobs[first:] + jobs[:first])[:JOBS_TOLD_MAX]
        return [SendToClient(job.job, self._progress(job, now)) for job in jobs]

    def _progress(self, job: Run, now: float) -> JobProgress:
        self._note_peak(job)
        return JobProgress(
            job.job,
            job.progress.stage_messages(now),
            job.progress.total(SPILLED, live=True),
            self._leases.memory_bytes,
            job.memory_peak_bytes,
            self._leases.cap_bytes,
            self._leases.slots,
        )

    def _note_peak(self, job: Run) -> None:
        job.memory_peak_bytes = max(job.memory_peak_bytes, self._leases.memory_peak_bytes)

    def of_end(self, job: Run, now: float) -> JobReport:
        self._note_peak(job)
        source, final = job.totals()
        return JobReport(
            job=job.job,
            name=job.request.spec.name,
            seconds=now - job.began_at,
            stages=job.progress.stage_messages(now),
            rows_in=source[ROWS_IN],
            bytes_in=source[BYTES_IN],
            rows_out=final[ROWS_OUT],
            bytes_out=final[BYTES_OUT],
            groups=job.progress.total(GROUPS) if job.map_only else final[GROUPS],
            spilled_bytes=job.progress.total(SPILLED),
            shuffled_bytes=job.progress.total(SHUFFLED),
            memory_peak_bytes=job.memory_peak_bytes,
            memory_cap_bytes=self._leases.cap_bytes,
            slots=self._leases.slots,
            failed_attempts=job.progress.failed_attempts,
            slowest=job.progress.slowest,
            counters=job.progress.counters,
            locality=job.locality,
            notes=(*(job.plan.notes if job.plan is not None else ()), *job.unfit_notes()),
        )

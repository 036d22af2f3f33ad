"""Whose job is whose, and what became of those that ended, for as long as a list may show them.

Not durable: a restarted server has forgotten the jobs that had ended.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from cortex.errors import Cancelled
from cortex.limits import JOBS_REMEMBERED
from cortex.wire.messages import JobDone, JobFailed, JobStatus


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    owner: str
    began_at: float


class JobLedger:
    def __init__(self) -> None:
        self._under_way: dict[str, _Entry] = {}
        self._ended: OrderedDict[str, JobStatus] = OrderedDict()

    def accepted(self, job: str, name: str, owner: str, now: float) -> None:
        self._under_way[job] = _Entry(name, owner, now)

    def ended_with(self, job: str, message: JobDone | JobFailed, now: float) -> None:
        """Again for a job that was done, went on because its result was lost, and has ended again."""
        entry = self._under_way.pop(job, None)
        before = self._ended.pop(job, None)
        if entry is None and before is not None:
            entry = _Entry(before.name, before.owner, now - before.seconds)
        if entry is None:
            return
        state, error = "done", ""
        if isinstance(message, JobFailed):
            state = "cancelled" if message.error.code == Cancelled.code else "failed"
            error = message.error.message
        self._ended[job] = JobStatus(
            job, entry.name, state, entry.owner, now - entry.began_at, message.report.stages, error
        )
        if len(self._ended) > JOBS_REMEMBERED:
            self._ended.popitem(last=False)

    def owner(self, job: str) -> str | None:
        """The id of the client that submitted a job; None if there is none that is still remembered."""
        entry = self._under_way.get(job) or self._ended.get(job)
        return None if entry is None else entry.owner

    @property
    def owners(self) -> dict[str, str]:
        return {job: entry.owner for job, entry in self._under_way.items()}

    @property
    def ended(self) -> tuple[JobStatus, ...]:
        """The oldest first."""
        return tuple(self._ended.values())

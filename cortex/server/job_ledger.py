"""Whose job is whose, and what became of those that ended, for as long as a list may show them.

Not durable by itself: on a cluster the journal keeps the same, and a later life of the server begins with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cortex.errors import Cancelled
from cortex.limits import JOBS_REMEMBERED
from cortex.wire.messages import JobDone, JobFailed, JobStatus


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    owner: str


class JobLedger:
    """`is_kept(job)`: it has ended, and something of it is kept, so that it must be known whose it is."""

    def __init__(self, is_kept: Callable[[str], bool] = lambda job: False) -> None:
        self._is_kept = is_kept
        self._under_way: dict[str, _Entry] = {}
        self._ended: OrderedDict[str, JobStatus] = OrderedDict()

    def restore(self, ended: Iterable[JobStatus]) -> None:
        """Jobs that had ended in an earlier life of the server, the oldest first."""
        self._ended.update((status.job, status) for status in ended)

    def accepted(self, job: str, name: str, owner: str) -> None:
        self._under_way[job] = _Entry(name, owner)

    def ended_with(self, job: str, message: JobDone | JobFailed) -> JobStatus | None:
        """Again for a job that was done, went on because its result was lost, and has ended again. Gives what
        is shown of it from now on; None if it is not known."""
        entry = self._under_way.pop(job, None)
        before = self._ended.pop(job, None)
        if entry is None and before is not None:
            entry = _Entry(before.name, before.owner)
        if entry is None:
            return None
        state, error = "done", ""
        if isinstance(message, JobFailed):
            state = "cancelled" if message.error.code == Cancelled.code else "failed"
            error = message.error.message
        status = self._ended[job] = JobStatus(
            job, entry.name, state, entry.owner, message.report.seconds, message.report.stages, error,
            message.report.locality,
        )  # fmt: skip
        if len(self._ended) > JOBS_REMEMBERED:
            oldest = next((each for each in self._ended if each != job and not self._is_kept(each)), None)
            if oldest is not None:
                del self._ended[oldest]
        return status

    def owner(self, job: str) -> str | None:
        """The id of the client that submitted a job; None if there is none that is still remembered."""
        entry = self._under_way.get(job) or self._ended.get(job)
        return None if entry is None else entry.owner

    def submitter(self, job: str) -> str | None:
        """The id of the client that submitted it, also when it has ended; None if it is not known."""
        ended = self._ended.get(job)
        return self.owner(job) if ended is None else ended.owner

    def status(self, job: str) -> JobStatus | None:
        """What is shown of a job that has ended."""
        return self._ended.get(job)

    @property
    def owners(self) -> dict[str, str]:
        return {job: entry.owner for job, entry in self._under_way.items()}

    @property
    def ended(self) -> tuple[JobStatus, ...]:
        """The oldest first."""
        return tuple(self._ended.values())

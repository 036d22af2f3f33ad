"""A node's combining of map outputs before others fetch them: carries out what `Combining` decides.

Of each job that combines, whether there is a group to make now is asked when another node asks for outputs,
when a map has ended here, and when a group has. A group is an attempt of the node's own, which the server
does not know of: it waits and runs beside what is leased (`cortex.node.leased_attempts`), gives way to
reduces, and its end is told here, to nobody else. The shuffle serves its file in the place of its members,
and holds back who asks for them for as long as combining goes on.

On the reactor's thread. No job is combined where there is no shuffle, or where `allowed` is False.
"""

from __future__ import annotations

from collections.abc import Iterable

from twisted.logger import Logger

from cortex.node.combining import Combining
from cortex.node.leased_attempts import LeasedAttempts
from cortex.transfer.shuffle_agent import ShuffleAgent
from cortex.wire.messages import CombineResult, MapResult, RunTask, TaskFailed, TaskFinished

_log = Logger()


class CombineDesk:
    def __init__(self, attempts: LeasedAttempts, shuffle: ShuffleAgent | None, allowed: bool) -> None:
        self._attempts = attempts
        self._shuffle = shuffle if allowed else None
        self._jobs: dict[str, Combining] = {}
        self._groups: dict[str, str] = {}
        """Attempts, waiting or running -> their jobs."""
        self.combined_bytes = self.combined_into_bytes = 0

    def __contains__(self, attempt: object) -> bool:
        """Is it one of these, not given up?"""
        return attempt in self._groups

    def open_job(self, job: str) -> None:
        """Its map outputs may be combined."""
        if self._shuffle is not None:
            self._jobs[job] = Combining(job)
            self._shuffle.combining(job, True)

    def asked(self, job: str) -> None:
        """Another node asks for map outputs of the job."""
        combining = self._jobs.get(job)
        if combining is not None:
            combining.asked()
            self._next(job, combining)

    def finished(self, job: str, ended: TaskFinished | TaskFailed) -> None:
        """A leased attempt has ended here: of interest if it is a map."""
        combining = self._jobs.get(job)
        if combining is None:
            return
        if isinstance(ended, TaskFinished) and isinstance(ended.result, MapResult):
            combining.finished(ended.attempt)
            self._next(job, combining)

    def ended(self, ended: TaskFinished | TaskFailed) -> None:
        """A group has been made, or could not be."""
        job = self._groups.pop(ended.attempt)
        combining, shuffle = self._jobs[job], self._shuffle
        assert shuffle is not None
        if isinstance(ended, TaskFailed):
            _log.warn(
                "job {job}: map outputs could not be combined here, and are sent as they are: {error}",
                job=job,
                error=ended.error.message,
            )
            combining.failed()
        else:
            assert isinstance(ended.result, CombineResult)
            self._made(job, combining, ended.attempt, ended.result, shuffle)
        if not combining.going_on:
            shuffle.combining(job, False)
        self._next(job, combining)

    def returned(self, job: str, run: RunTask) -> None:
        """By an executor that ended before it began."""
        self._attempts.own_returned(job, run)

    def give_way(self, waiting: list[str], running: Iterable[str], full: bool) -> None:
        """For each reduce that waits (`waiting`: their jobs) give up a group that runs, of its job, or of any
        if the slots are `full`."""
        for attempt in running:
            job = self._groups.get(attempt, "")
            if job and waiting and (full or job in waiting):
                waiting.remove(job if job in waiting else waiting[0])
                self._drop(attempt)

    def stop(self, job: str) -> None:
        """Reduces have begun: nobody is to wait for what is not combined yet. A group that runs may end."""
        combining = self._jobs.get(job)
        if combining is None or not combining.going_on or self._shuffle is None:
            return
        combining.stop()
        self._shuffle.combining(job, False)
        for attempt in self._attempts.own_waiting(job):
            self._drop(attempt)

    def drop(self, job: str) -> None:
        """Give up its groups, waiting or running."""
        for attempt in [attempt for attempt, of in self._groups.items() if of == job]:
            self._drop(attempt)

    def end_job(self, job: str) -> None:
        self.drop(job)
        self._jobs.pop(job, None)

    # --- inside ---

    def _next(self, job: str, combining: Combining) -> None:
        """Queue the next group of the job's map outputs, if it is time."""
        run = combining.next_group()
        if run is not None:
            self._groups[run.attempt] = job
            self._attempts.add_own(job, run)

    def _made(
        self, job: str, combining: Combining, attempt: str, result: CombineResult, shuffle: ShuffleAgent
    ) -> None:
        members = combining.made(result)
        if not (members or combining.going_on):
            _log.info(
                "job {job}: combining map outputs here would save too little ({bytes_in} bytes to"
                " {bytes_out}): they are sent as they are",
                job=job,
                bytes_in=result.bytes_in,
                bytes_out=result.bytes_out,
            )
        if members:
            self.combined_bytes += result.bytes_in
            self.combined_into_bytes += result.bytes_out
            shuffle.combined(job, attempt, members)

    def _drop(self, attempt: str) -> None:
        """Whether it waits or runs."""
        self._jobs[self._groups.pop(attempt)].dropped()
        self._attempts.drop_own(attempt)

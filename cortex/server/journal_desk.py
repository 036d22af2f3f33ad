"""The journal beside the reactor: what the server writes down waits here, and one thread writes it in groups.

Changes reach the disk in the order they were given. Those that somebody waits for go at once, others within
JOURNAL_S. While the disk fails, everything is kept and tried again every JOURNAL_RETRY_S; only a new job is
refused at once, and the end of one is told without having been written. When too much waits, the jobs under
way go on without a journal: a later life of the server will not know them.

All methods and callbacks are on the reactor's thread; `run` takes a function to the journal's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from cortex.errors import CortexError, InternalError
from cortex.limits import JOURNAL_RETRY_S, JOURNAL_S, JOURNAL_WAITING_MAX
from cortex.metric_text import Histogram
from cortex.scheduling.events import JobKept, Restored
from cortex.scheduling.records import AttemptEnded, JobRecord
from cortex.storage import journal as storage
from cortex.storage.journal import Journal
from cortex.wire.messages import JobDone, JobFailed, JobStatus, SubmitJob

_log = Logger()
WRITE_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0)
"""Seconds: a disk's commit, and what one thread's turn takes."""
_encode = msgspec.msgpack.Encoder().encode
_request = msgspec.msgpack.Decoder(SubmitJob)
_record: msgspec.msgpack.Decoder[JobRecord] = msgspec.msgpack.Decoder(JobRecord)
_status = msgspec.msgpack.Decoder(JobStatus)
_done = msgspec.msgpack.Decoder(JobDone)
_failed = msgspec.msgpack.Decoder(JobFailed)


@dataclass(frozen=True)
class _Change:
    make: Callable[[], storage.Change]
    """Called in the journal's thread: encoding takes longer than the rest."""
    then: Callable[[], None] | None = None
    refused: Callable[[CortexError], None] | None = None
    """The change is given up when the disk fails, and this is called."""
    job: str = ""
    """A record's."""
    kept: tuple[str, str] | None = None
    """(node, attempt) whose report need not be told again when this is on the disk."""


@dataclass(frozen=True)
class Kept:
    """What an earlier life left: for the scheduler, and what it does not look after."""

    restored: Restored
    owners: dict[str, str]
    """Of jobs under way."""
    ended: tuple[JobStatus, ...]
    answers: dict[str, JobFailed]
    """Of ended jobs, what their clients have not taken yet."""
    done: dict[str, JobDone]
    """Of jobs under way, what their clients were told when they were done."""


class JournalDesk:
    """See the module. `wall_clock` is seconds since 1970."""

    def __init__(
        self,
        reactor: Any,
        journal: Journal,
        run: Callable[..., Deferred[Any]],
        wall_clock: Callable[[], float],
    ) -> None:
        self._reactor = reactor
        self._journal = journal
        self._run = run
        self._wall_clock = wall_clock
        self._waiting: list[_Change] = []
        self._writing = False
        self._urgent = False
        self._tidying = False
        self._write_began = 0.0
        self._timer: Any = None
        self._failing = False
        self._dropped: set[str] = set()
        self._stopped = False
        self._oldest_at: float | None = None
        """When the first of those that wait was added."""
        self._written_from: float | None = None
        """The same of those that are being written."""
        self.written = 0
        self.write_seconds = Histogram(WRITE_BOUNDS)
        self.reports_kept: Callable[[str, tuple[str, ...]], None] = lambda node, attempts: None
        """Called with a node and the attempts whose ends are on the disk."""

    def read(self) -> Kept:
        """What an earlier life left; a new one begins. Blocks: call it before the reactor runs.

        Raises StateFailed for what makes no sense. Records are read as they are iterated over.
        """
        journal, now = self._journal, self._wall_clock()
        journal.begin_life()
        jobs = journal.jobs()
        ended = journal.ended()
        try:
            requests = {job.job: _request.decode(job.request) for job in jobs}
            summaries = tuple(_status.decode(job.summary) for job in ended)
            answers = {job.job: _failed.decode(job.answer) for job in ended if job.answer}
            done = {job.job: _done.decode(job.answer) for job in jobs if job.answer}
        except msgspec.MsgspecError as error:
            raise journal.damaged(str(error)) from error
        kept = tuple(
            JobKept(
                job.job,
                msgspec.structs.replace(requests[job.job], code=job.code),
                max(0.0, now - job.accepted_at),
                job.lives,
                self._records(job.job),
                job.owner,
            )
            for job in jobs
        )
        restored = Restored(kept, journal.nodes())
        return Kept(restored, {job.job: job.owner for job in jobs}, summaries, answers, done)

    def _records(self, job: str) -> Iterator[JobRecord]:
        for record in self._journal.records(job):
            try:
                yield _record.decode(record)
            except msgspec.MsgspecError as error:
                raise self._journal.damaged(f"a record of job {job}: {error}") from error

    def stop(self) -> None:
        """Write what waits: `run`'s thread is to end after it."""
        self._stopped = True
        self._stop_timer()
        if self._waiting:
            self._run(self._write, self._waiting).addErrback(
                lambda failure: _log.failure("the last records could not be written", failure)
            )
        self._run(self._journal.close)

    @property
    def failing(self) -> bool:
        """The disk fails: what waits is tried again."""
        return self._failing

    @property
    def waiting(self) -> int:
        """Changes that are not on the disk and not being written."""
        return len(self._waiting)

    def lag_s(self) -> float:
        """For how long the oldest change waits that is not on the disk."""
        since = self._written_from if self._writing else self._oldest_at if self._waiting else None
        return 0.0 if since is None else max(0.0, self._reactor.seconds() - since)

    # --- what is written ---

    def accepted(
        self,
        job: str,
        owner: str,
        request: SubmitJob,
        then: Callable[[], None],
        refused: Callable[[CortexError], None],
    ) -> None:
        """`then()` when the job is on the disk, `refused(error)` when it cannot be."""
        at = self._wall_clock()

        def make() -> storage.Change:
            bare = _encode(msgspec.structs.replace(request, code=b""))
            return storage.JobAdded(job, owner, at, bare, request.code)

        self._add(_Change(make, then, refused), urgent=True)

    def record(self, job: str, record: JobRecord) -> None:
        kept = (record.node.node, record.end.attempt) if isinstance(record, AttemptEnded) else None
        if job in self._dropped:
            if kept is not None:
                self.reports_kept(kept[0], (kept[1],))
            return
        self._add(_Change(lambda: storage.RecordAdded(job, _encode(record)), job=job, kept=kept))
        if self._failing and len(self._waiting) > JOURNAL_WAITING_MAX:
            self._drop_jobs()

    def done(self, answer: JobDone, then: Callable[[], None]) -> None:
        """The job is done, unless its result is lost before the client has it. `then()` when this is on the
        disk, or cannot be for now."""
        self._add(_Change(lambda: storage.JobAnswered(answer.job, _encode(answer)), then), urgent=True)

    def ended(self, status: JobStatus, answer: JobFailed | None, then: Callable[[], None]) -> None:
        """The job has failed, or (no answer) its client has the result. `then()` as for `done`."""
        at = self._wall_clock()

        def make() -> storage.Change:
            told = b"" if answer is None else _encode(answer)
            return storage.JobEnded(status.job, at, _encode(status), told)

        self._dropped.discard(status.job)
        self._add(_Change(make, then), urgent=True)

    def answer_taken(self, job: str) -> None:
        self._add(_Change(lambda: storage.AnswerTaken(job)))

    def node_known(self, node: str, incarnation: str) -> None:
        self._add(_Change(lambda: storage.NodeKnown(node, incarnation)), urgent=True)

    def node_dropped(self, node: str) -> None:
        self._add(_Change(lambda: storage.NodeDropped(node)))

    # --- inside ---

    def _add(self, change: _Change, urgent: bool = False) -> None:
        if self._stopped:
            return
        if not self._waiting:
            self._oldest_at = self._reactor.seconds()
        self._waiting.append(change)
        self._urgent = self._urgent or urgent
        if self._writing:
            return
        if urgent and (not self._failing or change.refused is not None):
            self._flush()
        elif self._failing and change.then is not None:
            self._give_in(self._waiting)
        elif self._timer is None:
            self._timer = self._reactor.callLater(JOURNAL_S, self._flush)

    def _flush(self) -> None:
        self._stop_timer()
        self._urgent = False
        if self._waiting:
            batch, self._waiting = self._waiting, []
            self._writing = True
            self._written_from, self._write_began = self._oldest_at, self._reactor.seconds()
            self._run(self._write, batch).addCallbacks(
                self._written, self._not_written, callbackArgs=(batch,), errbackArgs=(batch,)
            )

    def _write(self, batch: Sequence[_Change]) -> None:
        """In the journal's thread."""
        self._journal.write([change.make() for change in batch])

    def _written(self, _: None, batch: Sequence[_Change]) -> None:
        self._writing = False
        self.written += len(batch)
        self.write_seconds.add(self._reactor.seconds() - self._write_began)
        if self._failing:
            self._failing = False
            _log.warn("the journal is written again")
        kept: dict[str, list[str]] = {}
        for change in batch:
            if change.kept is not None:
                kept.setdefault(change.kept[0], []).append(change.kept[1])
        for node, attempts in kept.items():
            self.reports_kept(node, tuple(attempts))
        for change in batch:
            if change.then is not None:
                change.then()
        self._go_on(JOURNAL_S)
        self._tidy()

    def _not_written(self, failure: Failure, batch: Sequence[_Change]) -> None:
        self._writing = False
        error = failure.value
        if not isinstance(error, CortexError):
            _log.failure("the journal could not be written", failure)
            error = InternalError(f"the server's journal could not be written: {error}")
        if not self._failing:
            self._failing = True
            _log.error("no new job is taken: {error}", error=str(error))
        self._urgent = False
        self._oldest_at = self._written_from
        waiting = [*batch, *self._waiting]
        self._waiting = [change for change in waiting if change.refused is None]
        for change in waiting:
            if change.refused is not None:
                change.refused(error)
        self._give_in(self._waiting)
        self._go_on(JOURNAL_RETRY_S)

    def _give_in(self, waiting: list[_Change]) -> None:
        """Nobody is to wait for a disk that fails: what they wait for is written later."""
        told = [change.then for change in waiting if change.then is not None and change.refused is None]
        waiting[:] = [replace(change, then=None) if change.refused is None else change for change in waiting]
        for then in told:
            if then is not None:
                then()

    def _tidy(self) -> None:
        """What large jobs have left is removed bit by bit: what is to be written waits for one at most."""
        if self._journal.untidy and not self._tidying and not self._stopped:
            self._tidying = True
            self._run(self._journal.tidy).addCallbacks(self._tidied, self._not_tidied)

    def _tidied(self, more: bool) -> None:
        self._tidying = False
        if more:
            self._tidy()

    def _not_tidied(self, failure: Failure) -> None:
        self._tidying = False  # after the next write it is tried again
        _log.warn("the journal could not be tidied: {error}", error=str(failure.value))

    def _go_on(self, seconds: float) -> None:
        if self._stopped or self._writing or not self._waiting:
            return
        if self._urgent:
            self._flush()
        elif self._timer is None:
            self._timer = self._reactor.callLater(seconds, self._flush)

    def _drop_jobs(self) -> None:
        """Too much waits: the jobs it is of have no journal from now on."""
        jobs = {change.job for change in self._waiting if change.job}
        _log.error("the journal forgets {count} jobs under way", count=len(jobs))
        kept = [change.kept for change in self._waiting if change.kept is not None]
        self._waiting = [change for change in self._waiting if not change.job]
        self._waiting += [_Change(lambda job=job: storage.JobDropped(job)) for job in sorted(jobs)]  # type: ignore[misc]
        self._dropped |= jobs
        for node, attempt in kept:
            self.reports_kept(node, (attempt,))

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

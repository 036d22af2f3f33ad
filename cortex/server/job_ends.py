"""How jobs ended, from the scheduler's word until those who wait for it have it.

With a journal nobody hears of an end before it is written down: whatever happens to the server then, the same
is said again. It stays an answer, for clients that come back, until one has taken it. Without a journal it is
said at once, and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cortex.server.job_ledger import JobLedger
from cortex.server.journal_desk import JournalDesk
from cortex.wire.messages import JobDone, JobFailed


class JobEnds:
    """`tell(answer)`: whoever waits for it may know; `kept(job)`: it is an answer from now on."""

    def __init__(
        self,
        ledger: JobLedger,
        journal: JournalDesk | None,
        tell: Callable[[JobDone | JobFailed], None],
        kept: Callable[[str], None],
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._tell = tell
        self._kept = kept
        self._answers: dict[str, JobDone | JobFailed] = {}
        """Ends that are in the journal, until their clients have them."""
        self._writing: set[str] = set()
        """Jobs whose end is being written."""
        self._before: Mapping[str, JobDone] = {}

    def restore(self, answers: Mapping[str, JobFailed], done: Mapping[str, JobDone]) -> None:
        """What an earlier life of the server has left. The ends of those that were `done` come again, through
        `as_told`, until `restored`."""
        self._answers.update(answers)
        self._before = done

    def restored(self) -> None:
        self._before = {}

    def as_told(self, done: JobDone) -> JobDone:
        """The answer of an earlier life, which has seen all of the job, if it has the same result."""
        before = self._before.get(done.job)
        return done if before is None or before.parts != done.parts else before

    def answer(self, job: str) -> JobDone | JobFailed | None:
        """What a client that comes back is told; None: nothing yet, or no more."""
        return self._answers.get(job)

    def is_being_written(self, job: str) -> bool:
        return job in self._writing

    def ended(self, answer: JobDone | JobFailed) -> None:
        job = answer.job
        status = self._ledger.ended_with(job, answer)
        if self._journal is None or status is None:
            self._tell(answer)
            return
        self._writing.add(job)
        if isinstance(answer, JobDone):
            self._journal.done(answer, lambda: self._written(answer))
        else:
            self._journal.ended(status, answer, lambda: self._written(answer))

    def taken(self, job: str, then: Callable[[], None] = lambda: None) -> None:
        """The client has the job's end, with the result if there is one: it is history. `then()` when that is
        in the journal; not without one."""
        answer, status = self._answers.pop(job, None), self._ledger.status(job)
        if self._journal is None:
            return
        if isinstance(answer, JobDone) and status is not None:
            self._journal.ended(status, None, then)
        else:
            if answer is not None:
                self._journal.answer_taken(job)
            then()

    def _written(self, answer: JobDone | JobFailed) -> None:
        self._writing.discard(answer.job)
        self._answers[answer.job] = answer
        self._tell(answer)
        self._kept(answer.job)

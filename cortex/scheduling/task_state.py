"""A task's life: one table of transitions, one function that applies it, and the tasks of a stage.

    BLOCKED --NEEDS_MET--> READY --LEASE--> LEASED --FINISH--> DONE
                             ^                 |                 |
                             +----- RETRY -----+                 |
                             +----------------------- LOSE ------+

Tasks of a stage are numbers. What a million of them need is kept in flat arrays (a byte each, and the
ready ones as ranges in a heap); what only the troubled ones need is in dictionaries.
"""

from __future__ import annotations

import enum
import heapq
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from cortex.errors import ErrorReport, InternalError
from cortex.limits import SAME_ERROR_ATTEMPTS_MAX, TASK_ATTEMPTS_MAX


class TaskState(enum.IntEnum):
    BLOCKED = 0  # something it needs does not exist yet
    READY = 1  # waits for room at a node
    LEASED = 2  # an attempt of it is queued or runs at a node
    DONE = 3  # one attempt was accepted


_READY, _LEASED = int(TaskState.READY), int(TaskState.LEASED)
_STATES = tuple(TaskState)  # by number: the enum's own look-up is ten times slower


class TaskEvent(enum.Enum):
    NEEDS_MET = "needs met"
    LEASE = "lease"
    FINISH = "finish"
    RETRY = "retry"  # the attempt is over without a result
    LOSE = "lose"  # the accepted result no longer exists, or does not say enough


TASK_TRANSITIONS: dict[tuple[TaskState, TaskEvent], TaskState] = {
    (TaskState.BLOCKED, TaskEvent.NEEDS_MET): TaskState.READY,
    (TaskState.READY, TaskEvent.LEASE): TaskState.LEASED,
    (TaskState.LEASED, TaskEvent.FINISH): TaskState.DONE,
    (TaskState.LEASED, TaskEvent.RETRY): TaskState.READY,
    (TaskState.DONE, TaskEvent.LOSE): TaskState.READY,
}


def next_task_state(state: TaskState, event: TaskEvent) -> TaskState:
    """The table, and nothing else. Raises InternalError for a transition that it does not have."""
    try:
        return TASK_TRANSITIONS[state, event]
    except KeyError:
        raise InternalError(f"a task cannot {event.value} when it is {state.name}") from None


def _step(before: TaskState, after: TaskState) -> tuple[int, int, int, int]:
    """The number of the state, and what the step adds to the counts of leased, done and ready ones."""
    counted = (TaskState.LEASED, TaskState.DONE, TaskState.READY)
    leased, done, ready = ((after is state) - (before is state) for state in counted)
    return int(after), leased, done, ready


_STEPS = tuple(
    {event: _step(before, after) for (state, event), after in TASK_TRANSITIONS.items() if state is before}
    for before in _STATES
)
"""The table by numbers, for a million tasks: a pair of enums takes ten times as long to look up."""


class Failures:
    """What went wrong with one task: failures that used up an attempt, and their signatures."""

    __slots__ = ("attempts", "signatures")

    def __init__(self) -> None:
        self.attempts = 0
        self.signatures: Counter[str] = Counter()


class Watcher(Protocol):
    """Told which tasks can be leased: from `start` to before `end`, and which one was."""

    def ready(self, start: int, end: int) -> None: ...
    def leased(self, index: int) -> None: ...


class TaskTable:
    """The tasks 0 .. size-1 of one stage. READY ones are in the heap's ranges; others may be there, too.

    `first_number` is that of a task's first attempt: not 0 in a server's later life, whose attempts must not
    be taken for those that an earlier one leased and nobody wrote down.
    """

    def __init__(self, size: int, total: int | None = None, first_number: int = 0) -> None:
        self.states = bytearray(size)
        self.first_number = first_number
        self.total = size if total is None else total
        """Tasks that there are to do: fewer than `size` where numbers have gaps."""
        self.done = 0
        self.leased = 0
        self.ready = 0
        self.became_ready = 0
        """How often some of its tasks have become ready."""
        self.watcher: Watcher | None = None
        self._ready: list[tuple[int, int]] = []
        self._attempts: dict[int, int] = {}
        self._failures: dict[int, Failures] = {}

    @property
    def open_ended(self) -> bool:
        return False

    @property
    def finished(self) -> bool:
        return self.done == self.total

    @property
    def waiting(self) -> int:
        """Tasks neither leased nor done: ready, or still blocked."""
        return self.total - self.done - self.leased

    def state(self, index: int) -> TaskState:
        return _STATES[self.states[index]]

    def apply(self, index: int, event: TaskEvent) -> None:
        """Move one task by the table, and keep the counts and the heap true to it."""
        before = self.states[index]
        step = _STEPS[before].get(event)
        if step is None:
            step = _step(_STATES[before], next_task_state(_STATES[before], event))  # raises
        after, leased, done, ready = step
        self.states[index] = after
        self.leased += leased
        self.done += done
        self.ready += ready
        if event is TaskEvent.FINISH and self._attempts.get(index) == self.first_number + 1:
            del self._attempts[index]  # done at its first attempt: the common case is not worth an entry
        elif event is TaskEvent.LOSE:
            self._used(index)
        if after == _READY:
            self._are_ready(index, index + 1)
        elif after == _LEASED and self.watcher is not None:
            self.watcher.leased(index)

    def lose(self, indices: Sequence[int]) -> None:
        """The accepted results of these tasks, in ascending order, are gone: perhaps all of a node."""
        states = self.states
        if any(states[index] != TaskState.DONE for index in indices):
            raise InternalError("results that were not there cannot be lost")
        after = next_task_state(TaskState.DONE, TaskEvent.LOSE)
        start = end = -1
        for index in indices:
            states[index] = after
            self._used(index)
            if index != end:
                if start >= 0:
                    self._are_ready(start, end)
                start = index
            end = index + 1
        if start >= 0:
            self._are_ready(start, end)
        self.done -= len(indices)
        self.ready += len(indices)

    def needs_met(self, start: int, end: int) -> None:
        """The tasks from `start` to before `end`, all BLOCKED, become READY: a million cost as one does."""
        if self.states.count(TaskState.BLOCKED, start, end) != end - start:
            raise InternalError(f"tasks {start} to {end - 1} cannot all become ready: some have begun")
        if start < end:
            after = next_task_state(TaskState.BLOCKED, TaskEvent.NEEDS_MET)
            self.states[start:end] = bytes([after]) * (end - start)
            self._are_ready(start, end)
            self.ready += end - start

    def _are_ready(self, start: int, end: int) -> None:
        heapq.heappush(self._ready, (start, end))
        self.became_ready += 1
        if self.watcher is not None:
            self.watcher.ready(start, end)

    def first_ready(self) -> int | None:
        """The READY task with the lowest number: input order, and what was lost first."""
        heap = self._ready
        while heap:
            start, end = heap[0]
            if self.states[start] == TaskState.READY:
                return start
            at = self.states.find(TaskState.READY, start, end)  # those before it were leased out of turn
            if at < 0:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (at, end))
        return None

    def lease(self, index: int) -> tuple[int, int]:
        """Lease this task, which is READY; gives its index and the number of the new attempt."""
        self.apply(index, TaskEvent.LEASE)
        number = self._attempts.get(index, self.first_number)
        self._attempts[index] = number + 1
        return index, number

    def resume(self, index: int, number: int) -> None:
        """A READY task is leased already, as this attempt: by an earlier life of the server."""
        self.apply(index, TaskEvent.LEASE)
        if number >= self._attempts.get(index, self.first_number):
            self._attempts[index] = number + 1

    def _used(self, index: int) -> None:
        """Its first attempt was forgotten: never use that id again."""
        self._attempts.setdefault(index, self.first_number + 1)

    def record_failure(self, index: int, error: ErrorReport) -> ErrorReport | None:
        """Count a failure that uses up an attempt. Gives the error to end the job with, or None.

        The job ends when the attempts are used up, or when the same error (by signature) came
        SAME_ERROR_ATTEMPTS_MAX times: then it is the code or the data, and more tries change nothing.
        """
        failures = self._failures.setdefault(index, Failures())
        failures.attempts += 1
        same = 1
        if error.signature:
            failures.signatures[error.signature] += 1
            same = failures.signatures[error.signature]
        if same < SAME_ERROR_ATTEMPTS_MAX and failures.attempts < TASK_ATTEMPTS_MAX:
            return None
        details = dict(error.details)
        details["attempts"] = f"{failures.attempts} of at most {TASK_ATTEMPTS_MAX}"
        if same > 1:
            details["the same error"] = f"{same} times"
        return ErrorReport(error.code, error.message, error.cure, details, error.fault, error.signature)

"""Calls that a call submits, from inside its executor: by the executor's own link to its node.

`current()` is what a client that is made inside a call finds. Cells are numbered and held by whoever submits
them; results come with `done`, in whichever thread reads the link, which is the call's own while it waits.
Who waits in the call's own thread runs cells of other submitted calls meanwhile, so that nothing waits for a
worker that is not to be had. Other threads may submit, and wait until others have read what they wait for.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from cortex.limits import NESTED_WAIT_S
from cortex.tasks.cell_run import CellRun
from cortex.wire.messages import (
    Cell,
    CellDone,
    ChildCells,
    ChildrenDropped,
    FromWorker,
    FunctionCode,
    OpenJob,
)

Done = Callable[[CellDone], None]


class Waiter(Protocol):
    """The worker, as the link needs it."""

    def say(self, message: FromWorker) -> None: ...
    def run_in_hand(self) -> CellRun | None: ...
    def check_depth(self) -> None: ...
    def wake(self) -> None:
        """The thread that runs calls, if it is in `wait_in_call`."""

    def drop_own(self, cells: Iterable[int]) -> None:
        """Cells that calls here have submitted: they may have come to be run here. In that thread, too."""

    def wait_in_call(self, until: Callable[[], bool], deadline: float | None) -> bool:
        """In the thread that runs calls."""


class _Child:
    __slots__ = ("_seen", "done", "parent")

    def __init__(self, cell: Cell, done: Done, parent: CellRun | None) -> None:
        self.done = done
        self.parent = parent
        self._seen = bytearray(cell.count)
        self._seen[: cell.start] = b"\1" * cell.start
        self._seen[cell.end :] = b"\1" * (cell.count - cell.end)

    def whole(self, result: CellDone) -> bool:
        """Whether, with this result, all of its calls have one."""
        self._seen[result.start : result.stop] = b"\1" * (result.stop - result.start)
        return 0 not in self._seen


class NestedLink:
    """Of one worker. Made in the thread that runs its calls."""

    def __init__(self, open_job: OpenJob, attempt: str, worker: Waiter) -> None:
        self.job = open_job.job
        self.attempt = attempt
        self.staging_dir = open_job.staging_dir
        """Where cells' arguments and results are attached, if it `shares_files`."""
        self.shares_files = not open_job.input_socket
        """All executors are on this machine. Else cells go in frames (`cell_data.check_frame`)."""
        self._worker = worker
        self._thread = threading.get_ident()
        self._process = os.getpid()
        self._numbering = threading.Lock()
        self.next_number = 1
        """Of the next cell that a call here submits."""
        self._functions: set[str] = set()
        self._children: dict[int, _Child] = {}
        self._came = threading.Condition()

    # --- for a client inside a call ---

    @property
    def usable(self) -> bool:
        """In a call, and not in a process that a call has forked."""
        return os.getpid() == self._process and self._worker.run_in_hand() is not None

    def next_cell(self) -> int:
        """A number for `Cell.cell`."""
        with self._numbering:
            self.next_number += 1
            return self.next_number - 1

    def send_function(self, code: FunctionCode) -> None:
        """Before the first cell that names it. Sent once."""
        if code.function not in self._functions:
            self._worker.say(code)
            self._functions.add(code.function)

    def send_cells(self, cells: Sequence[Cell], done: Done) -> None:
        """Submit them. `done` is told each result of them (slices of a cell may come by themselves), and must
        neither run user code nor `wait`.

        Raises UserCodeError where calls wait for calls too deep in this executor.
        """
        self._worker.check_depth()
        parent = self._worker.run_in_hand()
        for cell in cells:
            self._children[cell.cell] = _Child(cell, done, parent)
        self._worker.say(ChildCells(self.attempt, tuple(cells)))

    def drop(self, cells: Iterable[int]) -> None:
        """Their results are not wanted any more, and are not told."""
        dropped = [number for number in cells if self._children.pop(number, None) is not None]
        if dropped:
            self._worker.say(ChildrenDropped(self.attempt, tuple(dropped)))
            if threading.get_ident() == self._thread:
                self._worker.drop_own(dropped)

    def wait(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        """Whether `until()` came true, which is asked after each result, and every NESTED_WAIT_S."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if threading.get_ident() == self._thread:
            return self._worker.wait_in_call(until, deadline)
        while not until():
            if deadline is not None and time.monotonic() >= deadline:
                return False
            with self._came:
                self._came.wait(NESTED_WAIT_S)
        return True

    def poke(self) -> None:
        """What somebody waits for may have come true by another thread's doing: all ask again."""
        with self._came:
            self._came.notify_all()
        if threading.get_ident() != self._thread:
            self._worker.wake()

    # --- for the worker ---

    def arrived(self, results: Iterable[CellDone]) -> None:
        """Tell those who submitted them. Without any lock."""
        for result in results:
            child = self._children.get(result.cell)
            if child is None:
                continue
            if child.whole(result):
                self._children.pop(result.cell, None)
            child.done(result)
        with self._came:
            self._came.notify_all()

    def end_of(self, parent: CellRun) -> None:
        """Its calls are over: what they have submitted and not waited for is dropped."""
        if self._children:
            self.drop([number for number, each in list(self._children.items()) if each.parent is parent])


_current: NestedLink | None = None


def enter(link: NestedLink | None) -> None:
    """The worker of this process has begun, or (None) ended."""
    global _current
    _current = link


def current() -> NestedLink | None:
    """The way out of the call that this is called in; None: it is not in a call of cortex's."""
    return _current if _current is not None and _current.usable else None

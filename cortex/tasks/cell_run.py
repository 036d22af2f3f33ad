"""A cell in hand: which of its calls have run, and what came of them.

One thread runs the calls (`run`); another may meanwhile take what is done by now, and the calls that have not
begun. Neither costs a call anything: calls are taken from the front of a deque and given back from its end,
each in one step of the interpreter, and a call is done when its value is in the list. All else is done under
the owner's lock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from cortex.wire.messages import CallFailed, CallForm, Cell, Piece


class Outcomes:
    """Of calls [start, stop): values of those that are not in `failed`, in order."""

    __slots__ = ("failed", "seconds", "start", "stop", "values")

    def __init__(
        self, start: int, stop: int, values: list[Any], failed: list[CallFailed], seconds: float
    ) -> None:
        self.start, self.stop = start, stop
        self.values = values
        self.failed = failed
        self.seconds = seconds

    def halves(self) -> tuple[Outcomes, Outcomes]:
        """Of two calls and more."""
        middle = (self.start + self.stop) // 2
        first = [each for each in self.failed if each.call < middle]
        values = middle - self.start - len(first)
        return (
            Outcomes(self.start, middle, self.values[:values], first, self.seconds / 2),
            Outcomes(middle, self.stop, self.values[values:], self.failed[len(first) :], self.seconds / 2),
        )


class CellRun:
    """From when the cell is begun, though its entries have yet to be unpickled."""

    def __init__(self, cell: Cell, name: str, first_child: int) -> None:
        self.cell = cell
        self.first_child = first_child
        """Cells that its calls submit have numbers from here on (`ChildrenAwaited.first`)."""
        self.name = name
        """Of its function."""
        self.begun_at = time.monotonic()
        self.stop = cell.end
        """Calls from here on are not this run's any more."""
        self.failed_bytes = 0
        """Of what failed calls say that was not taken yet, about."""
        self._waiting: deque[Any] = deque()
        self._values: list[Any] = []
        self._failed: list[CallFailed] = []
        self._told = cell.start
        """Outcomes of the calls before it were taken."""
        self._told_values = 0
        self._told_failed = 0
        self._told_at = self.begun_at
        self._seen = -1
        self._seen_at = self._looked_at = self._changed_at = self.begun_at

    # --- the thread that runs the calls ---

    def load(self, entries: list[Any]) -> None:
        """Of the calls [cell.start, cell.end): they may run."""
        self.begun_at = self._told_at = self._seen_at = self._looked_at = time.monotonic()
        self._waiting.extend(entries)

    def run(self, function: Callable[..., Any]) -> None:
        """Run the calls that wait. Raises what a call does; then `failed`, and `run` goes on behind it."""
        entries = self._entries()
        keep = self._values.append
        form = self.cell.form
        if self.cell.discard:
            self._run_only(function, entries)
        elif form is CallForm.ONE:
            for entry in entries:
                keep(function(entry))
        elif form is CallForm.STAR:
            for entry in entries:
                keep(function(*entry))
        else:
            for arguments, named in entries:
                keep(function(*arguments, **named))

    def _run_only(self, function: Callable[..., Any], entries: Iterator[Any]) -> None:
        keep = self._values.append
        form = self.cell.form
        if form is CallForm.ONE:
            for entry in entries:
                function(entry)
                keep(None)
        elif form is CallForm.STAR:
            for entry in entries:
                function(*entry)
                keep(None)
        else:
            for arguments, named in entries:
                function(*arguments, **named)
                keep(None)

    def _entries(self) -> Iterator[Any]:
        take = self._waiting.popleft
        while True:
            try:
                entry = take()
            except IndexError:
                return
            yield entry

    def failed(self, failed: CallFailed) -> None:
        """The call in hand has failed."""
        self._failed.append(failed)
        self.failed_bytes += len(failed.pickled) + len(failed.error.details.get("traceback", "")) + 500

    # --- either thread ---

    @property
    def call(self) -> int:
        """The call in hand, or the next one: all before it are done."""
        return self.cell.start + len(self._values) + len(self._failed)

    def watched(self, now: float) -> float:
        """For how long the call in hand has been seen to be the same one. (It has been for longer: what is
        taken for the time of those before it ends with the look before.)"""
        call = self.call
        if call != self._seen:
            self._seen, self._seen_at = call, now if call > self.cell.start else self.begun_at
            self._changed_at = self._looked_at
        self._looked_at = now
        if call >= self.stop:
            return 0.0  # none: its results are being told
        return now - self._seen_at

    def pause(self, seconds: float) -> None:
        """For so long the call in hand waited while calls of other cells ran here."""
        self._told_at += seconds

    def take_done(self, *, ended: bool = False) -> Outcomes | None:
        """What is done by now and was not taken before; None: nothing. `ended`: no call is in hand."""
        call, failed = self.call, len(self._failed)
        if call == self._told:
            return None
        values = call - self.cell.start - failed
        until = time.monotonic() if ended or self._seen != call else self._changed_at
        taken = Outcomes(
            self._told,
            call,
            self._values[self._told_values : values],
            self._failed[self._told_failed : failed],
            max(0.0, until - self._told_at),
        )
        self._told, self._told_values, self._told_failed = call, values, failed
        self.failed_bytes = 0
        self._told_at = max(until, self._told_at)
        return taken

    def give_back(self) -> Piece | None:
        """Take its calls that have not begun; None: all have."""
        count = 0
        try:
            while True:
                self._waiting.pop()
                count += 1
        except IndexError:
            self.stop -= count
        if not count:
            return None
        return Piece(self.cell.source, self.cell.cell, self.stop, self.stop + count)

    def fail_in_hand(self, failed: CallFailed) -> Outcomes:
        """The call in hand is not waited for: it has failed. After `take_done`."""
        self._told += 1
        return Outcomes(failed.call, self._told, [], [failed], max(0.0, time.monotonic() - self._told_at))

    def rest(self) -> Piece | None:
        """What it has not told the outcome of, begun or not; None: nothing. For an end in mid-call."""
        self.stop, stop = self._told, self.stop
        self._waiting.clear()
        return Piece(self.cell.source, self.cell.cell, self._told, stop) if self._told < stop else None

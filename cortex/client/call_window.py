"""What a client decides about calls: how many go into a cell, how many cells are under way, which results are
new, and in which order they are handed out.

Pure: no clock, no sockets, no pickles. `CellSizes` and `Order` belong to the one thread that feeds and reads
a map (`cortex.client.call_run`); `Ledger` is under its link's lock.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from cortex.limits import (
    ARGUMENTS_BYTES,
    ATTACH_BYTES,
    CELL_AHEAD_S,
    CELL_CALLS_MAX,
    CELL_GROWTH_MAX,
    CELL_PULL_S,
    CELL_RATE_MAX,
    CELL_RATES_KEPT,
    CELL_S,
    CELLS_IN_FLIGHT,
    CELLS_SPARE,
    RESULT_COST_BYTES,
    RESULTS_FILED_BYTES,
    RESULTS_HELD_BYTES,
)
from cortex.wire.messages import Cell, CellDone

_BYTES_WANTED = ATTACH_BYTES // 2  # of a cell, either way: below what is attached, as calls differ
_CELLS_MIN = 2  # under way, whatever their size: one is worked on, and one on its way
_TAIL_S = CELL_S / 50  # of work in the last cells of a source: smaller ones cost more than they even out

Owner = TypeVar("Owner")
Holder = TypeVar("Holder")
Range = tuple[int, int]


class CellSizes:
    """Calls for the next cell. It is 1 first, grows with what comes back, and shrinks at once when calls have
    become slow: what counts is the mean of the last few cells' seconds a call."""

    def __init__(self) -> None:
        self._confirmed = 0
        self._call_s: deque[float] = deque(maxlen=CELL_RATES_KEPT)
        self._sent_bytes = 0.0
        """Of a call's arguments; of its result below."""
        self._got_bytes = 0.0
        self._cell_bytes = 0
        """Of the last cell's arguments."""
        self._pull_s = 0.0

    @property
    def call_s(self) -> float:
        """Seconds of a call; 0.0 while unknown."""
        return sum(self._call_s) / len(self._call_s) if self._call_s else 0.0

    @property
    def result_bytes(self) -> float:
        return self._got_bytes

    def sent(self, calls: int, size_bytes: int, pull_s: float) -> None:
        """A cell was made: the source took `pull_s` to give its calls."""
        self._sent_bytes = max(size_bytes / calls, self._sent_bytes / 2)
        self._cell_bytes = size_bytes
        self._pull_s = pull_s / calls

    def came(self, calls: int, seconds: float, size_bytes: int) -> None:
        """Results of so many calls of one cell."""
        self._confirmed = max(self._confirmed // 2, calls)
        self._call_s.append(seconds / calls)
        self._got_bytes = max(size_bytes / calls, self._got_bytes / 2)

    def next(self, slots: int, left: int | None = None) -> int:
        """For a source that has `left` more calls (None: not known)."""
        work_s = max(CELL_S, slots / CELL_RATE_MAX)
        calls = min(CELL_CALLS_MAX, max(1, self._confirmed * CELL_GROWTH_MAX))
        call_s = self.call_s
        if call_s:
            calls = min(calls, int(work_s / call_s))
        for each, most in (
            (self._sent_bytes, _BYTES_WANTED),
            (self._got_bytes, _BYTES_WANTED),
            (self._pull_s, CELL_PULL_S),
        ):
            if each:
                calls = min(calls, int(most / each))
        if left is not None:
            least = int(_TAIL_S / call_s) if call_s else CELL_CALLS_MAX
            calls = min(calls, max(least, left // (2 * slots)), left)
        return max(1, calls)

    def in_flight(self, slots: int) -> int:
        """How many cells to have under way."""
        short = self.call_s * max(1, self._confirmed) < CELL_AHEAD_S
        return slots * CELLS_IN_FLIGHT if short else slots + max(CELLS_SPARE, slots // 8)

    def has_room(self, slots: int, flight: Flight, making: int = 0) -> bool:
        """Whether one more cell, beside those that are being made, keeps executors busy."""
        flying = flight.cells + making
        if flying >= self.in_flight(slots):
            return False
        return flying < _CELLS_MIN or flight.size_bytes + self._cell_bytes <= ARGUMENTS_BYTES

    def may_send(self, slots: int, flight: Flight, held: Held) -> bool:
        """Whether one more cell is to be made, with these under way and these results unread."""
        flying = flight.cells
        if not self.has_room(slots, flight):
            return False
        expected = (flying + 1) * (RESULT_COST_BYTES + self._got_bytes * max(1, self._confirmed))
        # With nothing under way, and nothing to read, one more always goes: however large its result is.
        nothing = not flying and not held.cells
        return nothing or (
            held.memory_bytes + expected <= RESULTS_HELD_BYTES
            and held.filed_bytes + expected <= RESULTS_FILED_BYTES
        )


class Flight:
    """Cells under way: how many of their calls have no result yet, and how large their arguments are."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._cells: dict[int, tuple[int, int]] = {}

    @property
    def cells(self) -> int:
        return len(self._cells)

    def begin(self, cell: int, calls: int, size_bytes: int) -> None:
        """More calls of it are under way."""
        before, before_bytes = self._cells.get(cell, (0, 0))
        self._cells[cell] = before + calls, before_bytes + size_bytes
        self.size_bytes += size_bytes

    def came(self, cell: int, calls: int) -> bool:
        """Results of so many. True if these were the last."""
        before, size_bytes = self._cells.get(cell, (0, 0))
        if before > calls:
            self._cells[cell] = before - calls, size_bytes
            return False
        self.end(cell)
        return True

    def end(self, cell: int) -> None:
        _, size_bytes = self._cells.pop(cell, (0, 0))
        self.size_bytes -= size_bytes


@dataclass
class Held:
    """Results that are here and not read yet."""

    cells: int = 0
    memory_bytes: int = 0
    filed_bytes: int = 0

    def count(self, done: CellDone, times: int = 1) -> None:
        self.cells += times
        self.memory_bytes += times * (RESULT_COST_BYTES + memory_bytes(done))
        self.filed_bytes += times * (sum(done.attached.sizes) if done.attached is not None else 0)


def memory_bytes(done: CellDone) -> int:
    return len(done.data) + sum(map(len, done.buffers)) + sum(len(each.pickled) for each in done.failed)


# --- exactly once ---------------------------------------------------------------------------------


@dataclass
class _Sent(Generic[Owner]):
    cell: Cell
    owner: Owner
    root: int
    """The cell that it is a slice of, as its owner knows it."""
    retries: int
    """How often a call of it that fails is to be sent again."""
    missing: list[Range] = field(default_factory=list)


@dataclass(frozen=True)
class Fresh(Generic[Owner]):
    """What of a result counts."""

    owner: Owner
    root: int
    ranges: tuple[Range, ...]
    cell: Cell
    retries: int
    complete: bool
    """All of the cell's calls have their results."""


@dataclass(frozen=True)
class Settled(Generic[Owner]):
    fresh: Fresh[Owner]
    ranges: tuple[Range, ...]
    """Calls that have their results now."""
    again: tuple[Cell, ...]
    """To be sent."""

    def failures(self, done: CellDone) -> int:
        """How many of these have failed."""
        return sum(any(start <= each.call < stop for start, stop in self.ranges) for each in done.failed)


class Ledger(Generic[Owner]):
    """Cells that were sent and have not all their results: what to send again over another link, and which
    of the results that come count."""

    def __init__(self, number: Callable[[], int] | None = None) -> None:
        self.number = number or itertools.count(1).__next__
        """Of a new cell."""
        self._sent: dict[int, _Sent[Owner]] = {}

    def __len__(self) -> int:
        return len(self._sent)

    def add(self, cell: Cell, owner: Owner, retries: int = 0, root: int | None = None) -> None:
        whole = cell.cell if root is None else root
        self._sent[cell.cell] = _Sent(cell, owner, whole, retries, [(cell.start, cell.end)])

    def again(self, fresh: Fresh[Owner], start: int, stop: int, retries: int) -> Cell:
        """Calls [start, stop) of a cell once more, under a number of its own."""
        cell = msgspec.structs.replace(fresh.cell, cell=self.number(), start=start, stop=stop)
        self.add(cell, fresh.owner, retries, fresh.root)
        return cell

    def came(self, done: CellDone) -> Fresh[Owner] | None:
        """None for a cell that is done, dropped or unknown."""
        sent = self._sent.get(done.cell)
        if sent is None:
            return None
        new, missing = [], []
        for start, stop in sent.missing:
            low, high = max(start, done.start), min(stop, done.stop)
            if low >= high:
                missing.append((start, stop))
                continue
            new.append((low, high))
            missing += [each for each in ((start, low), (high, stop)) if each[0] < each[1]]
        sent.missing = missing
        if not missing:
            del self._sent[done.cell]
        return Fresh(sent.owner, sent.root, tuple(new), sent.cell, sent.retries, not missing)

    def settle(self, done: CellDone) -> Settled[Owner] | None:
        """Take a result: None if nothing of it counts. Calls that failed, and may be tried again, are."""
        fresh = self.came(done)
        if fresh is None or not fresh.ranges:
            return None
        retried, ranges = _to_retry(fresh, done)
        again = [self.again(fresh, call, call + 1, fresh.retries - 1) for call in retried]
        return Settled(fresh, tuple(ranges), tuple(again))

    def drop(self, owner: Owner) -> list[Cell]:
        """Forget an owner's cells: they are not wanted any more."""
        dropped = [sent.cell for sent in self._sent.values() if sent.owner is owner]
        for cell in dropped:
            del self._sent[cell.cell]
        return dropped

    def unfinished(self) -> list[Cell]:
        """To be sent over a new link: of each cell what its results have not come of."""
        cells = []
        for sent in self._sent.values():
            low, high = min(r[0] for r in sent.missing), max(r[1] for r in sent.missing)
            cells.append(msgspec.structs.replace(sent.cell, start=low, stop=high))
        return cells


def _to_retry(fresh: Fresh[Owner], done: CellDone) -> tuple[list[int], list[Range]]:
    """(calls that failed and are to be sent again, what else of it counts)."""
    if not done.failed or not fresh.retries:
        return [], list(fresh.ranges)
    failed = {each.call for each in done.failed}
    retried: list[int] = []
    counted: list[Range] = []
    for start, stop in fresh.ranges:
        for call in range(start, stop):
            if call in failed:
                retried.append(call)
                if call > start:
                    counted.append((start, call))
                start = call + 1
        if start < stop:
            counted.append((start, stop))
    return retried, counted


# --- order ----------------------------------------------------------------------------------------


@dataclass
class Unit(Generic[Holder]):
    cell: int
    first: int
    count: int
    given: int = 0
    pieces: dict[int, tuple[int, Holder]] = field(default_factory=dict)
    """start -> (stop, what holds the results)."""


@dataclass(frozen=True)
class Ready(Generic[Holder]):
    """Calls [start, stop) of a cell may be handed out."""

    unit: Unit[Holder]
    start: int
    stop: int
    held: Holder


class Order(Generic[Holder]):
    """In which order results are handed out: that of the arguments, or as they come."""

    def __init__(self, ordered: bool) -> None:
        self._ordered = ordered
        self._units: dict[int, Unit[Holder]] = {}
        self._queue: deque[Unit[Holder]] = deque()
        """Of an ordered map: units not wholly handed out."""
        self._ready: deque[Ready[Holder]] = deque()
        """Of another one."""

    @property
    def empty(self) -> bool:
        """Nothing is left to come."""
        return not self._units and not self._ready

    def sent(self, cell: int, first: int, count: int) -> None:
        unit: Unit[Holder] = Unit(cell, first, count)
        self._units[cell] = unit
        if self._ordered:
            self._queue.append(unit)

    def came(self, cell: int, start: int, stop: int, held: Holder) -> None:
        """Each call once."""
        unit = self._units.get(cell)
        if unit is None:
            return
        if self._ordered:
            unit.pieces[start] = stop, held
            return
        self._ready.append(Ready(unit, start, stop, held))
        unit.given += stop - start
        if unit.given == unit.count:
            del self._units[cell]

    def ready(self) -> bool:
        if self._ordered:
            return bool(self._queue) and self._queue[0].given in self._queue[0].pieces
        return bool(self._ready)

    def take(self) -> Ready[Holder] | None:
        """What is next, if it is here."""
        if not self._ordered:
            return self._ready.popleft() if self._ready else None
        if not self.ready():
            return None
        unit = self._queue[0]
        start = unit.given
        stop, held = unit.pieces.pop(start)
        unit.given = stop
        if stop == unit.count:
            self._queue.popleft()
            del self._units[unit.cell]
        return Ready(unit, start, stop, held)

    def back(self, ready: Ready[Holder]) -> None:
        """What was taken last could not be read: its calls come again."""
        unit = ready.unit
        if self._ordered:
            if unit.cell not in self._units:
                self._queue.appendleft(unit)
            unit.given = ready.start
        else:
            unit.given -= ready.stop - ready.start
        self._units[unit.cell] = unit

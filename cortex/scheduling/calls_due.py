"""Calls of a compute job that are due, and where each is: waiting, or in a worker's hand. Pure bookkeeping.

A cell's calls are kept as parts, runs of neighbours that are at one place. Parts are cut as slices of a cell
are given out, come back, or are done; how many calls are where is counted. Who gets what is decided by
`cortex.scheduling.call_desk`.
"""

from __future__ import annotations

from collections import Counter, deque
from heapq import heapify, heappop, heappush
from itertools import count

import msgspec

from cortex.wire.messages import Cell, Piece

Key = tuple[str, int]
"""Source and number of a cell."""


class Part:
    """Calls of a cell that are due."""

    __slots__ = ("alone", "cell", "due", "hand", "start", "stop")

    def __init__(self, cell: DueCell, start: int, stop: int, alone: bool = False) -> None:
        self.cell = cell
        self.start = start
        self.stop = stop
        self.alone = alone
        """An executor has died of it, perhaps: nothing else is with it in a worker."""
        self.hand: list[Part] | None = None
        """The worker's that has it; None: it waits."""
        self.due = True

    @property
    def calls(self) -> int:
        return self.stop - self.start

    @property
    def waits(self) -> bool:
        return self.due and self.hand is None

    def meets(self, piece: Piece) -> bool:
        """Whether they have calls in common."""
        same = (piece.source, piece.cell) == self.cell.key
        return same and self.start < piece.stop and piece.start < self.stop


class DueCell:
    """A cell of which something is due."""

    __slots__ = ("deaths", "dropped", "message", "parts")

    def __init__(self, message: Cell) -> None:
        self.message = message
        self.parts: list[Part] = []
        """All that is due of it."""
        self.deaths: Counter[int] = Counter()
        """Call -> executors that died while they ran it, it alone."""
        self.dropped = False
        """Nobody wants its results: what is in workers' hands ends there."""

    @property
    def key(self) -> Key:
        return self.message.source, self.message.cell

    def has_due(self, start: int, stop: int) -> bool:
        """Whether all of these calls are."""
        both = sum(max(0, min(stop, part.stop) - max(start, part.start)) for part in self.parts)
        return both == stop - start


class CallCounts:
    """Of all calls of a job; a `progress.Counts`."""

    def __init__(self) -> None:
        self.known = 0
        self.coming = 0
        """That the client says will follow; -1: it does not know."""
        self.done = 0
        self.failed = 0
        self.leased = 0
        """In workers' hands."""
        self.delivered = self.delivered_failed = 0
        """As `done` and `failed`, but for results that were lost and made anew: those count twice."""

    @property
    def total(self) -> int:
        return self.known + max(0, self.coming)

    @property
    def open_ended(self) -> bool:
        return self.coming < 0

    @property
    def waiting(self) -> int:
        return self.total - self.done - self.leased

    @property
    def finished(self) -> bool:
        return False  # more may come, until the job ends


class CallsDue:
    """All cells of a job of which something is due."""

    def __init__(self) -> None:
        self.counts = CallCounts()
        self.cells: dict[Key, DueCell] = {}
        self.children: dict[str, dict[int, DueCell]] = {}
        """Worker -> those among them that its calls have submitted."""
        self.dropped: dict[Key, DueCell] = {}
        """Cells that are not wanted any more, and in workers' hands."""
        self.waiting = 0
        """Parts that wait."""
        self._queue: deque[Part] = deque()
        """Those, with some that have been taken out of their turn, or are not due any more."""
        self._unbegun: dict[str, list[tuple[int, int, Part]]] = {}
        """Worker -> heap of parts of its children that waited, the newest cell first. Some wait no more."""
        self._numbers = count()

    # --- cells ---

    def take_in(self, source: str, message: Cell) -> DueCell:
        """A cell, all of whose calls wait."""
        cell = self._new(msgspec.structs.replace(message, source=source))
        self.counts.known += message.end - message.start
        self.wait(Part(cell, message.start, message.end))
        return cell

    def again(self, message: Cell, start: int, stop: int) -> None:
        """Calls of a cell that were done are due again, before all others."""
        cell = self.cells.get((message.source, message.cell)) or self._new(message)
        self.wait(Part(cell, start, stop), first=True)

    def _new(self, message: Cell) -> DueCell:
        cell = self.cells[message.source, message.cell] = DueCell(message)
        if message.source:
            self.children.setdefault(message.source, {})[message.cell] = cell
        return cell

    def drop(self, key: Key) -> bool:
        """Nobody wants its results. What is in workers' hands stays there, for they are at it. False: nothing
        of it is due."""
        cell = self.cells.pop(key, None)
        if cell is None:
            return False
        cell.dropped = True
        for part in list(cell.parts):
            self.counts.known -= part.calls
            if part.waits:
                self.is_done(part)
        if cell.parts:
            self.dropped[key] = cell
        self.children.get(key[0], {}).pop(key[1], None)
        return True

    def forget_source(self, source: str) -> list[int]:
        """A worker is gone: gives the numbers of its children, which are to be dropped."""
        self._unbegun.pop(source, None)
        return list(self.children.pop(source, ()))

    def done(self, cell: DueCell, start: int, stop: int) -> None:
        """These calls are; where all are the cell is forgotten."""
        for part in list(cell.parts):
            self.shrink(part, start, stop)
        if not cell.parts and not cell.dropped:
            del self.cells[cell.key]
            self.children.get(cell.key[0], {}).pop(cell.key[1], None)

    # --- parts ---

    def wait(self, part: Part, first: bool = False) -> None:
        """A new part waits; `first`: before all others."""
        part.cell.parts.append(part)
        self._put(part, first)

    def back(self, part: Part) -> None:
        """From a hand to the head of the queue."""
        if part.cell.dropped:
            self.is_done(part)
            return
        self._leaves(part)
        self._put(part, first=True)

    def hand_over(self, part: Part, hand: list[Part]) -> None:
        """It waits no more, and is in this hand, behind what is there."""
        self.waiting -= 1
        part.hand = hand
        hand.append(part)
        self.counts.leased += part.calls

    def is_done(self, part: Part) -> None:
        """It is not due any more."""
        self._leaves(part)
        part.due = False
        part.cell.parts.remove(part)
        if part.cell.dropped and not part.cell.parts:
            self.dropped.pop(part.cell.key, None)

    def shrink(self, part: Part, start: int, stop: int) -> None:
        """Calls [start, stop) of it are not due any more, or are another part now: its first, its last, or
        some in its middle (a worker may give those back)."""
        low, high = max(part.start, start), min(part.stop, stop)
        if low >= high:
            return
        if low == part.start and high == part.stop:
            self.is_done(part)
            return
        if part.hand is not None:
            self.counts.leased -= high - low
        if low == part.start:
            part.start = high
        else:
            if high < part.stop:
                self.split(part, high)
            part.stop = low

    def split(self, part: Part, at: int) -> Part:
        """Of one part make two, which are where it was. Gives the second."""
        other = Part(part.cell, at, part.stop, part.alone)
        part.stop = at
        part.cell.parts.append(other)
        if part.hand is not None:
            other.hand = part.hand
            part.hand.insert(part.hand.index(part) + 1, other)
        else:
            self._put(other, first=True)
        return other

    def claim(self, cell: DueCell, piece: Piece, hand: list[Part]) -> None:
        """What waits of the piece is in this hand."""
        for part in [each for each in cell.parts if each.waits and each.meets(piece)]:
            if part.start < piece.start:
                part = self.split(part, piece.start)
            if part.stop > piece.stop:
                self.split(part, piece.stop)
            self.hand_over(part, hand)

    # --- what waits ---

    def next(self) -> Part | None:
        """The part whose turn it is, out of the queue; `put_back` it, or hand it over."""
        while self._queue:
            part = self._queue.popleft()
            if part.waits:
                return part
        return None

    def put_back(self, part: Part) -> None:
        self._queue.appendleft(part)

    def newest(self, source: str) -> Part | None:
        """Of what a worker has submitted and nobody has begun, the part of the newest cell."""
        unbegun = self._unbegun.get(source)
        while unbegun:
            part = unbegun[0][2]
            if part.waits:
                return part
            heappop(unbegun)
        return None

    def _put(self, part: Part, first: bool) -> None:
        part.hand = None
        self.waiting += 1
        source, number = part.cell.key
        if source:
            unbegun = self._unbegun.setdefault(source, [])
            if len(unbegun) > 2 * len(self.children.get(source, ())) + 64:  # most wait no more
                unbegun[:] = [each for each in unbegun if each[2].waits]
                heapify(unbegun)
            heappush(unbegun, (-number, next(self._numbers), part))
        if first:
            self._queue.appendleft(part)
        else:
            self._queue.append(part)

    def _leaves(self, part: Part) -> None:
        if part.hand is None:
            self.waiting -= 1
        else:
            self.counts.leased -= part.calls
            part.hand.remove(part)

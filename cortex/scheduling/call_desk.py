"""Which worker runs which calls of a compute job. Pure: what is to be said is gathered in `said`.

Cells come from the client, and from calls that submit calls (their `source` is the worker that runs them). A
cell, or a slice of one, waits here until a worker is idle, or has one short cell in hand and may be sent the
next ahead. A call is delivered once: a result counts if all its calls are still due, whoever sends it.

When a worker is gone, what it had in hand waits again. If it died, the cell it was at is to blame, perhaps:
that is run again in halves, each alone, until the one call is found that takes its executors with it, which
fails after CALL_DEATHS_MAX of them. A call that waits for calls it has submitted is given those that nobody
has begun, so that waiting never holds up what it waits for.

Each decision costs what it decides; none looks at all cells or workers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from itertools import count, islice

import msgspec

from cortex.errors import ErrorReport
from cortex.limits import CALL_DEATHS_MAX, CELL_AHEAD_S, CELL_S, HELP_LOOKS_MAX
from cortex.scheduling.events import Instruction, SendToClient, SendToNode
from cortex.wire.messages import (
    CallFailed,
    Cell,
    CellDone,
    CellsDone,
    CellsTaken,
    ChildrenDone,
    DropCells,
    EndServing,
    FunctionCode,
    Piece,
    RunCells,
)

_Key = tuple[str, int]
"""Source and number of a cell."""
_NEW_SHARE = 0.3  # of the last cell in the mean time of a function's calls


class _Part:
    """Calls of a cell that are due: waiting, or in a worker's hand."""

    __slots__ = ("alone", "cell", "start", "stop", "worker")

    def __init__(self, cell: _Cell, start: int, stop: int, alone: bool = False) -> None:
        self.cell = cell
        self.start = start
        self.stop = stop
        self.alone = alone
        """An executor has died of it, perhaps: nothing else is with it in a worker."""
        self.worker: str | None = ""
        """"": it waits; None: it is not due any more."""

    @property
    def calls(self) -> int:
        return self.stop - self.start


class _Cell:
    __slots__ = ("deaths", "dropped", "message", "parts")

    def __init__(self, message: Cell) -> None:
        self.message = message
        self.parts: list[_Part] = []
        """All that is due of it."""
        self.deaths: Counter[int] = Counter()
        """Call -> executors that died while they ran it, it alone."""
        self.dropped = False
        """Nobody wants its results: what is in workers' hands ends there."""

    @property
    def key(self) -> _Key:
        return self.message.source, self.message.cell

    def due(self, start: int, stop: int) -> bool:
        """Whether all of these calls are."""
        both = sum(max(0, min(stop, part.stop) - max(start, part.start)) for part in self.parts)
        return both == stop - start


class _Worker:
    def __init__(self, attempt: str, node: str) -> None:
        self.attempt = attempt
        self.node = node
        self.hand: list[_Part] = []
        """In the order in which it got them; it is at the first."""
        self.serves = False
        """It has said so: it is there."""
        self.ending = False
        self.awaits = False
        """The call it is at waits for its children, which have numbers from `awaits_from` on."""
        self.awaits_from = 0
        self.helped = False
        """It was given one of them since."""
        self.stuck = False
        """It has given back what it was sent ahead, for the call in hand is a long one."""
        self.away = False
        """The way to its node is cut; it may be back."""


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


class CallDesk:
    """`restored`: an earlier life of the server has had the job."""

    def __init__(self, job: str, restored: bool = False) -> None:
        self._job = job
        self._restored = restored
        self.said: list[Instruction] = []
        self.counts = CallCounts()
        self.paused = False
        """What nodes hold is not known yet: nothing is given out."""
        self.cells: dict[_Key, _Cell] = {}
        self._dropped: dict[_Key, _Cell] = {}
        """Cells that are not wanted any more, and in workers' hands."""
        self._highest: dict[str, int] = {}
        """Source -> the highest number of a cell that it has submitted: it sends them in their order."""
        self._functions: dict[str, FunctionCode] = {}
        self._told: dict[str, set[str]] = {}
        """Node -> functions that it has."""
        self._mean_s: dict[str, float] = {}
        """Function -> seconds of a call, of late."""
        self._waiting: deque[_Part] = deque()
        """With some that are not due any more, or have been given to who awaits them."""
        self.waiting = 0
        """Parts among them that wait."""
        self._workers: dict[str, _Worker] = {}
        self._coming = 0
        """Workers that are leased and not there yet."""
        self._idle: dict[str, _Worker] = {}
        self._ahead: dict[str, _Worker] = {}
        """Workers with one short cell in hand."""
        self._children: dict[str, dict[int, _Cell]] = {}
        self._unbegun: dict[str, list[tuple[int, int, _Part]]] = {}
        """Source -> heap of parts of its cells that waited, the newest cell first. Some wait no more."""
        self._queued = count()
        """Worker -> cells that its calls have submitted."""
        self._untaken: dict[tuple[str, int, int], tuple[str, Cell, CellDone]] = {}
        """Results that their nodes keep until they are taken: key and first call -> the node, the cell while
        the node has more of the result than its message, and the result."""
        self._attached: dict[str, tuple[str, int, int]] = {}
        """Those that lie there as files: name -> key and first call."""
        self._attached_at: Counter[str] = Counter()
        """Node -> how many of them."""
        self._early: dict[_Key, list[tuple[str, bool, CellDone]]] = {}
        """Results of cells that an earlier life of the server had, and the client has not sent again yet."""
        self._claimed: dict[_Key, list[tuple[str, Piece]]] = {}
        """In the hands of workers, of such cells."""

    # --- what submitters say ---

    def function(self, code: FunctionCode) -> None:
        self._functions.setdefault(code.function, code)

    def has_function(self, function: str) -> bool:
        return function in self._functions

    def submit(self, source: str, cells: Iterable[Cell]) -> None:
        """Take these, but for those that are here already. `source`: a worker, "" the client."""
        if source and source not in self._workers:
            return
        for message in cells:
            key = source, message.cell
            if key in self.cells or (key in self._dropped):
                continue
            self._highest[source] = max(message.cell, self._highest.get(source, -1))
            cell = self.cells[key] = _Cell(msgspec.structs.replace(message, source=source))
            if source:
                self._children.setdefault(source, {})[message.cell] = cell
            self.counts.known += message.end - message.start
            self._wait(_Part(cell, message.start, message.end))
            for attempt, piece in self._claimed.pop(key, ()):
                if attempt in self._workers:
                    self._claim(self._workers[attempt], cell, piece)
            for node, keeps, done in self._early.pop(key, ()):
                self._take(node, keeps, done)
        self._give_out()

    def drop(self, source: str, numbers: Iterable[int]) -> None:
        """Their results are not wanted any more."""
        dropped = []
        for number in numbers:
            cell = self.cells.pop((source, number), None)
            if cell is None:
                continue
            dropped.append(number)
            cell.dropped = True
            for part in list(cell.parts):
                self.counts.known -= part.calls
                if part.worker == "":
                    self._not_due(part)
            if cell.parts:
                self._dropped[cell.key] = cell
            self._children.get(source, {}).pop(number, None)
        if dropped:
            nodes = {worker.node for worker in self._workers.values()}
            self.said += [
                SendToNode(node, DropCells(self._job, tuple(dropped), source)) for node in sorted(nodes)
            ]

    def taken(self, pieces: Iterable[Piece]) -> None:
        """Who submitted the cells has these results."""
        by_node: dict[str, list[Piece]] = {}
        for piece in pieces:
            node = self._settle((piece.source, piece.cell, piece.start))
            if node:
                by_node.setdefault(node, []).append(piece)
        for node, own in by_node.items():
            self.said.append(SendToNode(node, CellsTaken(self._job, tuple(own))))

    # --- what workers say ---

    def worker_leased(self, attempt: str, node: str) -> None:
        self._workers[attempt] = _Worker(attempt, node)
        self._coming += 1

    def worker_ran(self, attempt: str, node: str, keeps: bool, results: Iterable[CellDone]) -> None:
        """`keeps`: its node keeps results until they are taken. A result may be told twice."""
        worker = self._workers.get(attempt)
        if worker is not None:
            self._serves(worker)
            worker.stuck = False
        for done in results:
            self._take(node, keeps, done)
        if worker is not None:
            worker.helped = False
            self._sort_in(worker)
        self._give_out()

    def worker_gave_back(self, attempt: str, pieces: Iterable[Piece]) -> None:
        worker = self._workers.get(attempt)
        if worker is None:
            return
        worker.stuck = True
        spread = 1 + len(self._idle)
        for piece in pieces:
            for part in [p for p in worker.hand if _meets(p, piece)]:
                low, high = max(part.start, piece.start), min(part.stop, piece.stop)
                self._shrink(part, low, high)
                if part.cell.dropped:
                    continue
                size = max(1, -(-(high - low) // spread))  # there are hands free for some of it
                for start in range(high - size, low - size, -size):
                    self._wait(_Part(part.cell, max(low, start), start + size), first=True)
        self._sort_in(worker)
        self._give_out()

    def worker_awaits(self, attempt: str, waiting: bool, first: int = 0) -> None:
        worker = self._workers.get(attempt)
        if worker is not None:
            worker.awaits, worker.helped, worker.awaits_from = waiting, False, first
            self._sort_in(worker)
            self._give_out()

    def worker_holds(
        self, attempt: str, node: str, pieces: Iterable[Piece], functions: Iterable[str]
    ) -> None:
        """After a lost link, or in a new life of the server: what the worker has in hand is this."""
        self._told[node] = set(functions)
        worker = self._workers.get(attempt)
        if worker is None:
            return
        self._serves(worker)
        worker.away = False
        held = list(pieces)
        for part in list(worker.hand):
            if not any(_meets(part, piece) for piece in held):
                self._again(part)  # it has not arrived
        for piece in held:
            key = piece.source, piece.cell
            cell = self.cells.get(key)
            if cell is None:
                self._claimed.setdefault(key, []).append((attempt, piece))
            else:
                self._claim(worker, cell, piece)
        self._sort_in(worker)
        self._give_out()

    def worker_gone(self, attempt: str, died: ErrorReport | None = None) -> None:
        """It has ended, or is lost; `died`: in the middle of what it had in hand, of this."""
        worker = self._workers.pop(attempt, None)
        if worker is None:
            return
        self._serves(worker)  # or is not waited for any more
        self._idle.pop(attempt, None)
        self._ahead.pop(attempt, None)
        self._highest.pop(attempt, None)
        children = self._children.pop(attempt, {})
        self._unbegun.pop(attempt, None)
        self.drop(attempt, list(children))
        hand = list(worker.hand)
        blamed = hand[:1] + (hand[1:][-1:] if worker.awaits else [])
        for part in reversed(hand):
            if died is not None and part in blamed:
                self._blame(part, died)
            else:
                self._again(part)
        self._give_out()

    def node_away(self, node: str) -> None:
        """The way to it is cut. If it is back, it says what its workers hold."""
        for worker in self._workers.values():
            if worker.node == node:
                worker.away = True
                self._sort_in(worker)

    def node_lost(self, node: str) -> None:
        """With it results that lay there and were not taken: those calls are made again."""
        self._told.pop(node, None)
        for key, (at, cell, done) in list(self._untaken.items()):
            if at == node:
                self._settle(key)
                if done.attached is not None:
                    self._redo(cell, done)
        self._give_out()

    def result_lost(self, name: str) -> None:
        """What is attached to a result cannot be read at its node."""
        key = self._attached.get(name)
        if key is not None:
            _, cell, done = self._untaken[key]
            self._settle(key)
            self._redo(cell, done)
            self._give_out()

    # --- what the job asks ---

    @property
    def workers(self) -> int:
        return len(self._workers)

    @property
    def wanted(self) -> int:
        """Workers that could begin at once, besides those there are."""
        return 0 if self.paused else max(0, self.waiting - self._coming)

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def ending(self) -> int:
        return sum(worker.ending for worker in self._workers.values())

    @property
    def has_dropped(self) -> bool:
        """Workers have calls in hand that nobody wants any more."""
        return bool(self._dropped)

    def attached_at(self, name: str) -> str | None:
        """The node where a result lies that is not taken."""
        key = self._attached.get(name)
        return None if key is None else self._untaken[key][0]

    def needs_of(self, node: str) -> int:
        """Results that lie there and are not taken."""
        return self._attached_at[node]

    def children_of(self, attempt: str) -> list[int]:
        """Numbers of the cells that its calls have submitted, and that are not done."""
        return list(self._children.get(attempt, ()))

    def end_workers(self, count: int, idle_only: bool = False, node: str = "") -> int:
        """Have up to so many workers end after the call in hand, the idle ones first; of one node, if it is
        named. Gives how many were told."""
        told = 0
        rest = [] if idle_only else list(self._workers.values())
        for worker in [*self._idle.values(), *rest]:
            if told >= count:
                break
            if worker.ending or not worker.serves or (node and worker.node != node):
                continue
            worker.ending = True
            told += 1
            self.said.append(SendToNode(worker.node, EndServing(worker.attempt)))
            self._sort_in(worker)
        return told

    def resume(self) -> None:
        """It is known what nodes hold."""
        self.paused = False
        self._give_out()

    # --- inside: what is due ---

    def _wait(self, part: _Part, first: bool = False) -> None:
        part.cell.parts.append(part)
        self._queue(part, first)

    def _queue(self, part: _Part, first: bool) -> None:
        part.worker = ""
        self.waiting += 1
        source, number = part.cell.key
        if source:
            unbegun = self._unbegun.setdefault(source, [])
            if len(unbegun) > 2 * len(self._children.get(source, ())) + 64:  # most wait no more
                unbegun[:] = [each for each in unbegun if each[2].worker == ""]
                heapify(unbegun)
            heappush(unbegun, (-number, next(self._queued), part))
        if first:
            self._waiting.appendleft(part)
        else:
            self._waiting.append(part)

    def _leaves(self, part: _Part) -> None:
        """It waits no more, or is in nobody's hand any more."""
        if part.worker == "":
            self.waiting -= 1
        elif part.worker is not None:
            self.counts.leased -= part.calls
            worker = self._workers.get(part.worker)
            if worker is not None:
                worker.hand.remove(part)

    def _not_due(self, part: _Part) -> None:
        self._leaves(part)
        part.worker = None
        part.cell.parts.remove(part)
        if part.cell.dropped and not part.cell.parts:
            self._dropped.pop(part.cell.key, None)

    def _again(self, part: _Part) -> None:
        """From a hand back to the head of the queue."""
        if part.cell.dropped:
            self._not_due(part)
            return
        self._leaves(part)
        self._queue(part, first=True)

    def _shrink(self, part: _Part, start: int, stop: int) -> None:
        """Calls [start, stop) of it are not due any more, or are another part now: its first, its last, or
        some in its middle (a worker may give those back)."""
        low, high = max(part.start, start), min(part.stop, stop)
        if low >= high:
            return
        if low == part.start and high == part.stop:
            self._not_due(part)
            return
        if part.worker:
            self.counts.leased -= high - low
        if low == part.start:
            part.start = high
        else:
            if high < part.stop:
                self._split(part, high)
            part.stop = low

    def _split(self, part: _Part, at: int) -> None:
        """Of one part make two, which are where it was."""
        other = _Part(part.cell, at, part.stop, part.alone)
        part.stop = at
        part.cell.parts.append(other)
        if part.worker:
            other.worker = part.worker
            hand = self._workers[part.worker].hand
            hand.insert(hand.index(part) + 1, other)
        else:
            self._queue(other, first=True)

    def _claim(self, worker: _Worker, cell: _Cell, piece: Piece) -> None:
        """What waits of the piece is in this worker's hand."""
        for part in [p for p in cell.parts if p.worker == "" and _meets(p, piece)]:
            if part.start < piece.start:
                self._split(part, piece.start)
                part = cell.parts[-1]
            if part.stop > piece.stop:
                self._split(part, piece.stop)
            self._hand_over(worker, part)

    def _hand_over(self, worker: _Worker, part: _Part) -> None:
        self.waiting -= 1
        part.worker = worker.attempt
        worker.hand.append(part)
        self.counts.leased += part.calls

    def _blame(self, part: _Part, died: ErrorReport) -> None:
        """An executor has died while it was at this."""
        self._not_due(part)
        if part.cell.dropped:
            return
        cell, half = part.cell, part.calls // 2
        if half:
            for start, stop in ((part.start + half, part.stop), (part.start, part.start + half)):
                self._wait(_Part(cell, start, stop, alone=True), first=True)
            return
        cell.deaths[part.start] += 1
        again = _Part(cell, part.start, part.stop, alone=True)
        self._wait(again, first=True)
        if cell.deaths[part.start] >= CALL_DEATHS_MAX:
            number = cell.message.first + part.start
            details = {**died.details, "call": str(number), "executors": str(CALL_DEATHS_MAX)}
            error = msgspec.structs.replace(died, details=details)
            failed = CallFailed(part.start, b"", error)
            source, numbered = cell.key
            self._take("", False, CellDone(source, numbered, part.start, part.stop, failed=(failed,)))

    # --- inside: results ---

    def _take(self, node: str, keeps: bool, done: CellDone) -> None:
        key = done.source, done.cell
        if done.stop <= done.start:
            return
        dropped = self._dropped.get(key)
        for part in [] if dropped is None else list(dropped.parts):
            self._shrink(part, done.start, done.stop)
        cell = self.cells.get(key)
        if cell is None and dropped is None and self._may_still_come(key):
            self._early.setdefault(key, []).append((node, keeps, done))
            return
        if cell is None or not cell.due(done.start, done.stop):
            if keeps or done.attached is not None:  # nobody will take it
                taken = (*key, done.start) in self._untaken
                if not taken:
                    piece = Piece(done.source, done.cell, done.start, done.stop)
                    self.said.append(SendToNode(node, CellsTaken(self._job, (piece,))))
                else:  # it comes again, for its way may have been cut
                    self._deliver(node, done)
            return
        for part in list(cell.parts):
            self._shrink(part, done.start, done.stop)
        calls = done.stop - done.start
        self.counts.done += calls
        self.counts.failed += len(done.failed)
        self.counts.delivered += calls
        self.counts.delivered_failed += len(done.failed)
        function = cell.message.function
        if node and done.seconds >= 0:
            seconds = done.seconds / calls
            before = self._mean_s.get(function, seconds)
            self._mean_s[function] = before + _NEW_SHARE * (seconds - before)
        if keeps or done.attached is not None:
            self._untaken[*key, done.start] = node, cell.message, done
            if done.attached is not None:
                self._attached[done.attached.name] = (*key, done.start)
                self._attached_at[node] += 1
        if not cell.parts:
            del self.cells[key]
            self._children.get(done.source, {}).pop(done.cell, None)
        self._deliver(node, done)

    def _may_still_come(self, key: _Key) -> bool:
        """Cells that an earlier life of the server has given out are sent again, by all who submit."""
        return self._restored and key[1] > self._highest.get(key[0], -1)

    def _deliver(self, node: str, done: CellDone) -> None:
        done = msgspec.structs.replace(done, node=node)
        if not done.source:
            self.said.append(SendToClient(self._job, CellsDone(self._job, (done,), self.workers)))
            return
        parent = self._workers.get(done.source)
        if parent is not None:
            self.said.append(SendToNode(parent.node, ChildrenDone(parent.attempt, (done,))))

    def _settle(self, key: tuple[str, int, int]) -> str:
        """The result is taken, or lost; gives the node that has kept it."""
        node, _, done = self._untaken.pop(key, ("", None, None))
        if done is not None and done.attached is not None:
            self._attached_at[node] -= 1
            del self._attached[done.attached.name]
        return node

    def _redo(self, message: Cell, done: CellDone) -> None:
        """A result was lost before it was taken."""
        key = done.source, done.cell
        cell = self.cells.get(key)
        if cell is None:
            cell = self.cells[key] = _Cell(message)
            if done.source:
                self._children.setdefault(done.source, {})[done.cell] = cell
        self.counts.done -= done.stop - done.start
        self.counts.failed -= len(done.failed)
        self._wait(_Part(cell, done.start, done.stop), first=True)

    # --- inside: who gets what ---

    def _serves(self, worker: _Worker) -> None:
        if not worker.serves:
            worker.serves = True
            self._coming -= 1

    def _sort_in(self, worker: _Worker) -> None:
        """Among the idle, or those that may be sent a cell ahead, or neither."""
        able = worker.serves and not worker.ending and not worker.away
        if able and not worker.hand:
            self._idle[worker.attempt] = worker
        else:
            self._idle.pop(worker.attempt, None)
        waits = worker.awaits or worker.stuck
        if able and not waits and len(worker.hand) == 1 and self._is_short(worker.hand[0]):
            self._ahead[worker.attempt] = worker
        else:
            self._ahead.pop(worker.attempt, None)

    def _is_short(self, part: _Part) -> bool:
        mean_s = self._mean_s.get(part.cell.message.function)
        return mean_s is not None and not part.alone and part.calls * mean_s < CELL_AHEAD_S

    def _give_out(self) -> None:
        if self.paused:
            return
        self._help(self._child)
        while self.waiting and (self._idle or self._ahead):
            part = self._next()
            if part is None:
                break
            if self._idle:
                worker = next(iter(self._idle.values()))
                self._share(part)
            elif part.alone:
                self._waiting.appendleft(part)
                break
            else:
                worker = next(iter(self._ahead.values()))
            self._send(worker, part)
        self._help(self._descendant)

    def _share(self, part: _Part) -> None:
        """A cell that takes long (as it has become, or was guessed too short) is cut where others stand idle
        and nothing else waits."""
        mean_s = self._mean_s.get(part.cell.message.function, 0.0)
        hands = min(len(self._idle), part.calls)
        if hands > 1 and self.waiting == 1 and part.calls * mean_s > 2 * CELL_S:
            self._split(part, part.start + -(-part.calls // hands))

    def _next(self) -> _Part | None:
        while self._waiting:
            part = self._waiting.popleft()
            if part.worker == "":
                return part
        return None

    def _help(self, with_children_of: Callable[[_Worker], _Part | None]) -> None:
        """Give calls that wait for their children what can be done towards them."""
        for attempt in [each for each in self._children if self._workers[each].awaits]:
            worker = self._workers[attempt]
            if worker.helped or worker.ending:
                continue
            part = with_children_of(worker)
            if part is not None:
                worker.helped = True
                self._send(worker, part, worker.awaits_from)

    def _newest(self, source: str) -> _Part | None:
        """Of what it has submitted and nobody has begun."""
        unbegun = self._unbegun.get(source)
        while unbegun:
            part = unbegun[0][2]
            if part.worker == "":
                return part
            heappop(unbegun)
        return None

    def _child(self, worker: _Worker) -> _Part | None:
        """What the call that waits has submitted itself. (Numbers grow: what calls around it have submitted,
        which it must not wait for, is older.)"""
        part = self._newest(worker.attempt)
        return part if part is not None and part.cell.message.cell >= worker.awaits_from else None

    def _descendant(self, worker: _Worker) -> _Part | None:
        """What its children have submitted, elsewhere. All that a worker submits is below the cell that it
        was given first: others come into its hand only in the middle of that."""
        if not self.waiting:
            return None
        for source in islice(self._children, HELP_LOOKS_MAX):
            part = self._newest(source) if source != worker.attempt else None
            if part is not None and self._is_below(source, worker):
                return part
        return None

    def _is_below(self, source: str, worker: _Worker) -> bool:
        for _ in range(HELP_LOOKS_MAX):
            found = self._workers.get(source)
            if found is None or not found.hand:
                return False
            source, number = found.hand[0].cell.key
            if source == worker.attempt:
                return number >= worker.awaits_from
        return False

    def _send(self, worker: _Worker, part: _Part, awaited: int = 0) -> None:
        self._hand_over(worker, part)
        cell = part.cell.message
        told = self._told.setdefault(worker.node, set())
        if cell.function not in told:
            told.add(cell.function)
            self.said.append(SendToNode(worker.node, self._functions[cell.function]))
        if (part.start, part.stop) != (cell.start, cell.end):
            cell = msgspec.structs.replace(cell, start=part.start, stop=part.stop)
        self.said.append(SendToNode(worker.node, RunCells(worker.attempt, (cell,), awaited)))
        self._sort_in(worker)


def _meets(part: _Part, piece: Piece) -> bool:
    return (piece.source, piece.cell) == part.cell.key and part.start < piece.stop and piece.start < part.stop

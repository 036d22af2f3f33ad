"""Which worker runs which calls of a compute job. Pure: what is to be said is gathered in `said`.

Cells come from the client, and from calls that submit calls (their `source` is the worker that runs them). A
cell, or a slice of one, waits here until a worker is idle, or has one short cell in hand and may be sent the
next ahead. A call is delivered once: a result counts if all its calls are still due, whoever sends it.

When a worker is gone, what it had in hand waits again. If it died, the cell it was at is to blame, perhaps:
that is run again in halves, each alone, until the one call is found that takes its executors with it, which
fails after CALL_DEATHS_MAX of them. A call that waits for calls it has submitted is given those that nobody
has begun, so that waiting never holds up what it waits for; but what may take its executor along (a limit of
time, a death before) it is given only where no other worker is there to run it.

Each decision costs what it decides; none looks at all cells or workers. Where the calls are is kept by
`cortex.scheduling.calls_due`, which results nodes keep by `results_left`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import msgspec

from cortex.errors import ErrorReport
from cortex.limits import CALL_DEATHS_MAX, CELL_AHEAD_S, CELL_S, HELP_LOOKS_MAX
from cortex.scheduling.calls_due import CallCounts, CallsDue, DueCell, Key, Part
from cortex.scheduling.events import Instruction, SendToClient, SendToNode
from cortex.scheduling.results_left import ResultsLeft
from cortex.wire.messages import (
    CallFailed,
    Cell,
    CellDone,
    CellsDone,
    CellsTaken,
    ChildrenDone,
    DropCells,
    EndServing,
    ForgetFunctions,
    FunctionCode,
    Piece,
    RunCells,
)

_NEW_SHARE = 0.3  # of the last cell in the mean time of a function's calls


class _Worker:
    def __init__(self, attempt: str, node: str) -> None:
        self.attempt = attempt
        self.node = node
        self.hand: list[Part] = []
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

    @property
    def able(self) -> bool:
        return self.serves and not self.ending and not self.away


class CallDesk:
    """`restored`: an earlier life of the server has had the job."""

    def __init__(self, job: str, restored: bool = False) -> None:
        self._job = job
        self._restored = restored
        self.said: list[Instruction] = []
        self.paused = False
        """What nodes hold is not known yet: nothing is given out."""
        self._due = CallsDue()
        self._left = ResultsLeft()
        self._highest: dict[str, int] = {}
        """Source -> the highest number of a cell that it has submitted: it sends them in their order."""
        self._functions: dict[str, FunctionCode] = {}
        self._of_workers: set[str] = set()
        """Those among them that calls have submitted calls of."""
        self._told: dict[str, set[str]] = {}
        """Node -> functions that it has."""
        self._mean_s: dict[str, float] = {}
        """Function -> seconds of a call, of late."""
        self._workers: dict[str, _Worker] = {}
        self._coming = 0
        """Workers that are leased and not there yet."""
        self._replaced = False
        """A worker has ended, and another will be there: until then, or until who awaits children says again
        that it does."""
        self._idle: dict[str, _Worker] = {}
        self._ahead: dict[str, _Worker] = {}
        """Workers with one short cell in hand."""
        self._early: dict[Key, list[tuple[str, bool, CellDone]]] = {}
        """Results of cells that an earlier life of the server had, and that have not been sent again yet."""
        self._claimed: dict[Key, list[tuple[str, Piece]]] = {}
        """In the hands of workers, of such cells."""

    # --- what submitters say ---

    def function(self, code: FunctionCode, of_worker: bool = False) -> None:
        """`of_worker`: a call submits calls of it."""
        self._functions.setdefault(code.function, code)
        if of_worker:
            self._of_workers.add(code.function)

    def forget_functions(self, functions: Iterable[str]) -> None:
        """No cell of the client's names them any more. Of what workers have submitted nobody knows that."""
        named = {cell.message.function for cell in self._due.cells.values()}
        named |= {cell.message.function for cell in self._due.dropped.values()}
        named |= self._of_workers
        gone = [each for each in functions if each not in named and each in self._functions]
        for function in gone:
            del self._functions[function]
            self._mean_s.pop(function, None)
        for node, told in self._told.items():
            if own := tuple(each for each in gone if each in told):
                told.difference_update(own)
                self.said.append(SendToNode(node, ForgetFunctions(self._job, own)))

    def has_function(self, function: str) -> bool:
        return function in self._functions

    def submit(self, source: str, cells: Iterable[Cell]) -> None:
        """Take these, but for those that are here already. `source`: a worker, "" the client."""
        if source and source not in self._workers:
            return
        for message in cells:
            key = source, message.cell
            if key in self._due.cells or key in self._due.dropped:
                continue
            self._highest[source] = max(message.cell, self._highest.get(source, -1))
            cell = self._due.take_in(source, message)
            for attempt, piece in self._claimed.pop(key, ()):
                if attempt in self._workers:
                    self._due.claim(cell, piece, self._workers[attempt].hand)
            for node, keeps, done in self._early.pop(key, ()):
                self._take(node, keeps, done)
        self._give_out()

    def drop(self, source: str, numbers: Iterable[int]) -> None:
        """Their results are not wanted any more."""
        dropped = [number for number in numbers if self._due.drop((source, number))]
        if dropped:
            nodes = {worker.node for worker in self._workers.values()}
            self.said += [
                SendToNode(node, DropCells(self._job, tuple(dropped), source)) for node in sorted(nodes)
            ]

    def taken(self, pieces: Iterable[Piece]) -> None:
        """Who submitted the cells has these results."""
        by_node: dict[str, list[Piece]] = {}
        for piece in pieces:
            node = self._left.taken(piece)
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
            for part in [each for each in worker.hand if each.meets(piece)]:
                low, high = max(part.start, piece.start), min(part.stop, piece.stop)
                self._due.shrink(part, low, high)
                if part.cell.dropped:
                    continue
                size = max(1, -(-(high - low) // spread))  # there are hands free for some of it
                for start in range(high - size, low - size, -size):
                    self._due.wait(Part(part.cell, max(low, start), start + size), first=True)
        self._sort_in(worker)
        self._give_out()

    def worker_awaits(self, attempt: str, waiting: bool, first: int = 0) -> None:
        worker = self._workers.get(attempt)
        if worker is not None:
            if waiting and worker.awaits:
                self._replaced = False
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
            if not any(part.meets(piece) for piece in held):
                self._due.back(part)  # it has not arrived
        for piece in held:
            key = piece.source, piece.cell
            cell = self._due.cells.get(key)
            if cell is None:
                self._claimed.setdefault(key, []).append((attempt, piece))
            else:
                self._due.claim(cell, piece, worker.hand)
        self._sort_in(worker)
        self._give_out()

    def worker_gone(self, attempt: str, died: ErrorReport | None = None) -> None:
        """It has ended, or is lost; `died`: in the middle of what it had in hand, of this."""
        worker = self._workers.pop(attempt, None)
        if worker is None:
            return
        self._serves(worker)  # or is not waited for any more
        self._replaced = bool(self._workers)
        self._idle.pop(attempt, None)
        self._ahead.pop(attempt, None)
        self._highest.pop(attempt, None)
        self.drop(attempt, self._due.forget_source(attempt))
        hand = list(worker.hand)
        blamed = hand[:1] + (hand[1:][-1:] if worker.awaits else [])
        for part in reversed(hand):
            if died is not None and part in blamed:
                self._blame(part, died)
            else:
                self._due.back(part)
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
        for cell, done in self._left.lost_with(node):
            self._redo(cell, done)
        self._give_out()

    def result_lost(self, name: str) -> None:
        """What is attached to a result cannot be read at its node."""
        lost = self._left.lost(name)
        if lost is not None:
            self._redo(*lost)
            self._give_out()

    # --- what the job asks ---

    @property
    def counts(self) -> CallCounts:
        return self._due.counts

    @property
    def cells(self) -> int:
        """Of which calls are due that somebody wants."""
        return len(self._due.cells)

    @property
    def waiting(self) -> int:
        """Parts of cells that nobody has begun."""
        return self._due.waiting

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
        return bool(self._due.dropped)

    def attached_at(self, name: str) -> str | None:
        """The node where a result lies that is not taken."""
        return self._left.node_of(name)

    def needs_of(self, node: str) -> int:
        """Results that lie there and are not taken."""
        return self._left.files_at(node)

    def children_of(self, attempt: str) -> list[int]:
        """Numbers of the cells that its calls have submitted, and that are not done."""
        return list(self._due.children.get(attempt, ()))

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

    # --- inside: results ---

    def _blame(self, part: Part, died: ErrorReport) -> None:
        """An executor has died while it was at this."""
        self._due.is_done(part)
        if part.cell.dropped:
            return
        cell, half = part.cell, part.calls // 2
        if half:
            for start, stop in ((part.start + half, part.stop), (part.start, part.start + half)):
                self._due.wait(Part(cell, start, stop, alone=True), first=True)
            return
        cell.deaths[part.start] += 1
        self._due.wait(Part(cell, part.start, part.stop, alone=True), first=True)
        if cell.deaths[part.start] >= CALL_DEATHS_MAX:
            number = cell.message.first + part.start
            details = {**died.details, "call": str(number), "executors": str(CALL_DEATHS_MAX)}
            error = msgspec.structs.replace(died, details=details)
            failed = CallFailed(part.start, b"", error)
            source, numbered = cell.key
            self._take("", False, CellDone(source, numbered, part.start, part.stop, failed=(failed,)))

    def _take(self, node: str, keeps: bool, done: CellDone) -> None:
        key = done.source, done.cell
        if done.stop <= done.start:
            return
        dropped = self._due.dropped.get(key)
        if dropped is not None:
            self._due.done(dropped, done.start, done.stop)
        cell = self._due.cells.get(key)
        if cell is None and dropped is None and self._may_still_come(key):
            self._early.setdefault(key, []).append((node, keeps, done))
        elif cell is not None and cell.has_due(done.start, done.stop):
            self._count(cell, done, timed=bool(node))
            if keeps or done.attached is not None:
                self._left.add(node, cell.message, done)
            self._due.done(cell, done.start, done.stop)
            self._deliver(node, done)
        elif done in self._left:  # it comes again, for its way may have been cut
            self._deliver(node, done)
        elif keeps or done.attached is not None:  # nobody will take it
            piece = Piece(done.source, done.cell, done.start, done.stop)
            self.said.append(SendToNode(node, CellsTaken(self._job, (piece,))))

    def _count(self, cell: DueCell, done: CellDone, timed: bool) -> None:
        calls = done.stop - done.start
        self.counts.done += calls
        self.counts.failed += len(done.failed)
        self.counts.delivered += calls
        self.counts.delivered_failed += len(done.failed)
        if timed:
            function, seconds = cell.message.function, done.seconds / calls
            before = self._mean_s.get(function, seconds)
            self._mean_s[function] = before + _NEW_SHARE * (seconds - before)

    def _may_still_come(self, key: Key) -> bool:
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

    def _redo(self, message: Cell, done: CellDone) -> None:
        """A result was lost before it was taken."""
        self.counts.done -= done.stop - done.start
        self.counts.failed -= len(done.failed)
        self._due.again(message, done.start, done.stop)

    # --- inside: who gets what ---

    def _serves(self, worker: _Worker) -> None:
        if not worker.serves:
            worker.serves = True
            self._replaced = False
            self._coming -= 1

    def _sort_in(self, worker: _Worker) -> None:
        """Among the idle, or those that may be sent a cell ahead, or neither."""
        able = worker.able
        if able and not worker.hand:
            self._idle[worker.attempt] = worker
        else:
            self._idle.pop(worker.attempt, None)
        waits = worker.awaits or worker.stuck
        if able and not waits and len(worker.hand) == 1 and self._is_short(worker.hand[0]):
            self._ahead[worker.attempt] = worker
        else:
            self._ahead.pop(worker.attempt, None)

    def _is_short(self, part: Part) -> bool:
        mean_s = self._mean_s.get(part.cell.message.function)
        return mean_s is not None and not part.alone and part.calls * mean_s < CELL_AHEAD_S

    def _give_out(self) -> None:
        if self.paused:
            return
        self._help(self._child)
        while self.waiting and (self._idle or self._ahead):
            part = self._due.next()
            if part is None:
                break
            if self._idle:
                worker = next(iter(self._idle.values()))
                self._share(part)
            elif part.alone:
                self._due.put_back(part)
                break
            else:
                worker = next(iter(self._ahead.values()))
            self._send(worker, part)
        self._help(self._descendant)

    def _share(self, part: Part) -> None:
        """A cell that takes long (as it has become, or was guessed too short) is cut where others stand idle
        and nothing else waits."""
        mean_s = self._mean_s.get(part.cell.message.function, 0.0)
        hands = min(len(self._idle), part.calls)
        if hands > 1 and self.waiting == 1 and part.calls * mean_s > 2 * CELL_S:
            self._due.split(part, part.start + -(-part.calls // hands))

    def _help(self, with_children_of: Callable[[_Worker], Part | None]) -> None:
        """Give calls that wait for their children what can be done towards them."""
        for attempt in [each for each in self._due.children if self._workers[each].awaits]:
            worker = self._workers[attempt]
            if worker.helped or worker.ending:
                continue
            part = with_children_of(worker)
            if part is not None and not (self._is_risky(part, worker) and self._has_others()):
                worker.helped = True
                self._send(worker, part, worker.awaits_from)

    def _is_risky(self, part: Part, worker: _Worker) -> bool:
        """The call that waits may be lost with it."""
        alone = part.alone or any(each.alone for each in worker.hand)
        return alone or part.cell.message.timeout_s > 0

    def _has_others(self) -> bool:
        """Workers that do not wait for calls: they are there, or one in the place of one that has ended."""
        coming = self._replaced or self._coming > 0
        return coming or any(each.able and not each.awaits for each in self._workers.values())

    def _child(self, worker: _Worker) -> Part | None:
        """What the call that waits has submitted itself. (Numbers grow: what calls around it have submitted,
        which it must not wait for, is older.)"""
        part = self._due.newest(worker.attempt)
        return part if part is not None and part.cell.message.cell >= worker.awaits_from else None

    def _descendant(self, worker: _Worker) -> Part | None:
        """What its children have submitted, elsewhere. All that a worker submits is below the cell that it
        was given first: others come into its hand only in the middle of that."""
        if not self.waiting:
            return None
        for source in islice(self._due.children, HELP_LOOKS_MAX):
            part = self._due.newest(source) if source != worker.attempt else None
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

    def _send(self, worker: _Worker, part: Part, awaited: int = 0) -> None:
        self._due.hand_over(part, worker.hand)
        cell = part.cell.message
        told = self._told.setdefault(worker.node, set())
        if cell.function not in told:
            told.add(cell.function)
            self.said.append(SendToNode(worker.node, self._functions[cell.function]))
        if (part.start, part.stop) != (cell.start, cell.end):
            cell = msgspec.structs.replace(cell, start=part.start, stop=part.stop)
        self.said.append(SendToNode(worker.node, RunCells(worker.attempt, (cell,), awaited)))
        self._sort_in(worker)

"""What a node's workers have in hand: passes calls to the executors that serve them, and results back.

It opens neither. It knows which functions it has of a job, and tells each worker one before the first cell
that names it; which cells a worker has; and, where the server may die (`keep`), it keeps results until those
who submitted the cells have them, and children's cells until their results are here, so that after a lost
link, or another life of the server, all of it is said again.
"""

from __future__ import annotations

from collections.abc import Callable

from cortex.wire.messages import (
    CellDone,
    CellsGivenBack,
    CellsRun,
    CellsTaken,
    ChildCells,
    ChildrenDone,
    ChildrenDropped,
    DropCells,
    EndServing,
    ForgetFunctions,
    FromNode,
    FromWorker,
    FunctionCode,
    Piece,
    RunCells,
    ToWorker,
    WorkerHolds,
    WorkerSaid,
)
from cortex.wire.messages.compute import Cell

ForWorkers = FunctionCode | ForgetFunctions | RunCells | DropCells | ChildrenDone | CellsTaken | EndServing
"""From the server."""
_Key = tuple[str, int, int]
"""Source, cell and first call of a piece."""


class _Worker:
    def __init__(self, job: str) -> None:
        self.job = job
        self.functions: set[str] = set()
        """That it was told."""
        self.in_hand: dict[_Key, Piece] = {}
        """In the order in which it got them."""
        self.children: dict[int, tuple[Cell, list[Piece]]] = {}
        """That it has submitted, each with what it has no result of."""

    def done(self, source: str, cell: int, start: int, stop: int) -> None:
        """It has calls [start, stop) in hand no more."""
        if not any(key[:2] == (source, cell) for key in self.in_hand):
            return
        left = [
            each
            for piece in self.in_hand.values()
            for each in (
                piece.without(start, stop) if (piece.source, piece.cell) == (source, cell) else [piece]
            )
        ]
        self.in_hand = {(piece.source, piece.cell, piece.start): piece for piece in left}


class Workers:
    """`send` takes messages to the server, `tell(attempt, message)` to the executor that runs it.
    `discard(job, name)` removes a result that was attached."""

    def __init__(
        self,
        node: str,
        incarnation: Callable[[], str],
        send: Callable[[FromNode], None],
        tell: Callable[[str, ToWorker], bool],
        discard: Callable[[str, str], None],
        *,
        keep: bool,
    ) -> None:
        self._node = node
        self._incarnation = incarnation
        self._send = send
        self._tell = tell
        self._discard = discard
        self._keep = keep
        self._functions: dict[str, dict[str, FunctionCode]] = {}
        self._workers: dict[str, _Worker] = {}
        self._kept: dict[str, dict[_Key, tuple[str, CellDone]]] = {}
        """Job -> results that were not taken yet, and which worker's they are."""

    def receive(self, message: ForWorkers) -> None:
        """From the server. What is for a worker that has ended is dropped: the server hears of its end."""
        if isinstance(message, FunctionCode):
            self._functions.setdefault(message.job, {})[message.function] = message
        elif isinstance(message, ForgetFunctions):
            self._forget(message)
        elif isinstance(message, RunCells):
            self._run(message)
        elif isinstance(message, ChildrenDone):
            self._children_done(message)
        elif isinstance(message, EndServing):
            self._tell(message.attempt, message)
        elif isinstance(message, DropCells):
            for attempt in [each for each, worker in self._workers.items() if worker.job == message.job]:
                self._tell(attempt, message)
        else:
            self._taken(message)

    def began(self, job: str, attempt: str) -> None:
        """A worker was leased here."""
        self._workers[attempt] = _Worker(job)

    def ended(self, attempt: str) -> None:
        self._workers.pop(attempt, None)

    def said(self, attempt: str, said: FromWorker) -> None:
        """By an executor."""
        worker = self._workers.get(attempt)
        if worker is None:
            return
        if isinstance(said, CellsRun):
            for done in said.results:
                worker.done(done.source, done.cell, done.start, done.stop)
                if self._keep or done.attached is not None:
                    key = done.source, done.cell, done.start
                    self._kept.setdefault(worker.job, {})[key] = attempt, done
        elif isinstance(said, CellsGivenBack):
            for piece in said.pieces:
                worker.done(piece.source, piece.cell, piece.start, piece.stop)
        elif isinstance(said, FunctionCode):
            self._functions.setdefault(worker.job, {})[said.function] = said
            worker.functions.add(said.function)
        elif isinstance(said, ChildCells) and self._keep:
            for cell in said.cells:
                worker.children[cell.cell] = cell, [Piece(attempt, cell.cell, cell.start, cell.end)]
        elif isinstance(said, ChildrenDropped):
            for number in list(worker.children) if said.all else said.cells:
                worker.children.pop(number, None)
        self._say(attempt, said)

    def hello(self) -> None:
        """A way to the server is open again: say all that it may not know."""
        for results in self._kept.values():
            for attempt, done in results.values():
                self._say(attempt, CellsRun(attempt, (done,)))
        for attempt, worker in self._workers.items():
            functions = self._functions.get(worker.job, {})
            children = tuple(cell for cell, _ in worker.children.values())
            for name in sorted({cell.function for cell in children}):
                if name in functions:
                    self._say(attempt, functions[name])
            if children:
                self._say(attempt, ChildCells(attempt, children))
            self._send(
                WorkerHolds(
                    self._node,
                    self._incarnation(),
                    attempt,
                    tuple(worker.in_hand.values()),
                    tuple(functions),
                )
            )

    def end_job(self, job: str) -> None:
        self._functions.pop(job, None)
        self._kept.pop(job, None)
        for attempt in [each for each, worker in self._workers.items() if worker.job == job]:
            del self._workers[attempt]

    # --- inside ---

    def _say(self, attempt: str, said: FromWorker) -> None:
        self._send(WorkerSaid(self._node, self._incarnation(), attempt, said))

    def _run(self, message: RunCells) -> None:
        worker = self._workers.get(message.attempt)
        if worker is None:
            return
        functions = self._functions.get(worker.job, {})
        for cell in message.cells:
            if cell.function not in worker.functions:
                worker.functions.add(cell.function)
                self._tell(message.attempt, functions[cell.function])
            key = cell.source, cell.cell, cell.start
            worker.in_hand[key] = Piece(cell.source, cell.cell, cell.start, cell.end)
        self._tell(message.attempt, message)

    def _forget(self, message: ForgetFunctions) -> None:
        functions = self._functions.get(message.job, {})
        for function in message.functions:
            functions.pop(function, None)
        for attempt, worker in self._workers.items():
            if worker.job == message.job and worker.functions.intersection(message.functions):
                worker.functions.difference_update(message.functions)
                self._tell(attempt, message)

    def _children_done(self, message: ChildrenDone) -> None:
        worker = self._workers.get(message.attempt)
        if worker is None:
            return
        self._tell(message.attempt, message)
        if not self._keep:
            return
        for done in message.results:
            cell, due = worker.children.pop(done.cell, (None, []))
            left = [each for piece in due for each in piece.without(done.start, done.stop)]
            if cell is not None and left:
                worker.children[done.cell] = cell, left
        pieces = tuple(Piece(each.source, each.cell, each.start, each.stop) for each in message.results)
        self._say(message.attempt, CellsTaken(worker.job, pieces))

    def _taken(self, message: CellsTaken) -> None:
        results = self._kept.get(message.job, {})
        for piece in message.pieces:
            taken = results.pop((piece.source, piece.cell, piece.start), None)
            if taken is not None and taken[1].attached is not None:
                self._discard(message.job, taken[1].attached.name)

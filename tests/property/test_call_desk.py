"""Calls of a compute job, played with workers that die, are lost, give back and come back: at any moment.

The oracle is what was submitted: every call's result is delivered, once, and the one that kills its executors
fails by name. Nothing waits for ever.
"""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.errors import ExecutorDied
from cortex.limits import CALL_DEATHS_MAX
from cortex.scheduling.call_desk import CallDesk
from cortex.scheduling.events import SendToClient, SendToNode
from cortex.wire.messages import (
    Attached,
    CallForm,
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

F = "0" * 32
DIED = ExecutorDied("the executor died", signature="x").report()
Key = tuple[str, int]


class World:
    """Workers, nodes and the client, around a desk. `deadly`: calls of cells that kill whoever runs them."""

    def __init__(self, seed: int, nodes: int, deadly: set[tuple[int, int]], keeps: bool) -> None:
        self.random = random.Random(seed)
        self.desk = CallDesk("j")
        self.desk.function(FunctionCode("j", F, "f", b""))
        self.nodes = nodes
        self.deadly = deadly
        self.keeps = keeps
        self.number = 0
        self.hands: dict[str, list[Cell]] = {}
        self.node_of: dict[str, str] = {}
        self.told: dict[str, set[str]] = {}
        self.ending: set[str] = set()
        self.kept: dict[tuple[str, int, int], tuple[str, CellDone]] = {}
        self.got: Counter[tuple[int, int]] = Counter()
        self.failed: Counter[tuple[int, int]] = Counter()
        self.ran = 0
        self.names = 0

    # --- what the desk says ---

    def obey(self) -> None:
        while self.desk.said:
            said, self.desk.said = self.desk.said, []
            for each in said:
                if isinstance(each, SendToClient):
                    assert isinstance(each.message, CellsDone)
                    self.client_has(each.message)
                    continue
                assert isinstance(each, SendToNode)
                message = each.message
                if isinstance(message, FunctionCode):
                    self.told.setdefault(each.node, set()).add(message.function)
                elif isinstance(message, RunCells):
                    if message.attempt in self.hands:
                        assert F in self.told[each.node]
                        assert each.node == self.node_of[message.attempt]
                        self.hands[message.attempt] += message.cells
                elif isinstance(message, EndServing):
                    self.ending.add(message.attempt)
                elif isinstance(message, CellsTaken):
                    for piece in message.pieces:
                        self.kept.pop((piece.source, piece.cell, piece.start), None)
                else:
                    assert isinstance(message, DropCells | ChildrenDone)

    def client_has(self, message: CellsDone) -> None:
        for done in message.results:
            bad = {each.call for each in done.failed}
            for call in range(done.start, done.stop):
                self.got[done.cell, call] += 1
                self.failed[done.cell, call] += call in bad
            piece = Piece(done.source, done.cell, done.start, done.stop)
            if self.keeps or done.attached is not None:
                self.desk.taken([piece])

    # --- what happens ---

    def lease(self) -> None:
        if self.desk.wanted and len(self.hands) < 4:
            self.number += 1
            attempt, node = f"w{self.number}", f"n{self.random.randrange(self.nodes)}"
            self.hands[attempt], self.node_of[attempt] = [], node
            self.desk.worker_leased(attempt, node)
            self.desk.worker_ran(attempt, node, self.keeps, [])

    def run(self, attempt: str) -> None:
        """The cell in hand: whole, or up to a call that is a long one, or to the worker's death."""
        hand = self.hands[attempt]
        if not hand:
            if attempt in self.ending:
                self.gone(attempt, None)
            return
        cell = hand[0]
        fatal = [c for c in range(cell.start, cell.end) if (cell.cell, c) in self.deadly]
        if fatal:
            self.gone(attempt, DIED)
            return
        stuck = self.random.random() < 0.2 and cell.end - cell.start > 1
        stop = self.random.randrange(cell.start, cell.end) if stuck else cell.end
        if stop > cell.start:
            self.result(attempt, cell, cell.start, stop)
        if stuck:
            behind = [Piece(cell.source, cell.cell, stop + 1, cell.end)] if stop + 1 < cell.end else []
            behind += [Piece(c.source, c.cell, c.start, c.end) for c in hand[1:]]
            hand[:] = [cell]
            self.desk.worker_gave_back(attempt, behind)
            self.obey()
            self.result(attempt, cell, stop, stop + 1)
        del hand[0]

    def result(self, attempt: str, cell: Cell, start: int, stop: int) -> None:
        self.ran += stop - start
        attached = None
        if self.random.random() < 0.2:
            self.names += 1
            attached = Attached(f"r{self.names}", (1,))
        done = CellDone(cell.source, cell.cell, start, stop, b"x", attached=attached)
        node = self.node_of[attempt]
        if self.keeps or attached is not None:
            self.kept[cell.source, cell.cell, start] = node, done
        self.desk.worker_ran(attempt, node, self.keeps, [done])
        self.obey()

    def gone(self, attempt: str, died: object) -> None:
        del self.hands[attempt]
        self.ending.discard(attempt)
        self.desk.worker_gone(attempt, died)  # type: ignore[arg-type]
        self.obey()

    def lose_node(self) -> None:
        node = f"n{self.random.randrange(self.nodes)}"
        for attempt in [a for a, at in self.node_of.items() if at == node and a in self.hands]:
            self.gone(attempt, None)
        self.told.pop(node, None)
        self.kept = {key: each for key, each in self.kept.items() if each[0] != node}
        self.desk.node_lost(node)
        self.obey()

    def relink(self) -> None:
        """A node's link ends, with what was on its way to it; it comes back and says what it has."""
        node = f"n{self.random.randrange(self.nodes)}"
        self.desk.node_away(node)
        here = [a for a, at in self.node_of.items() if at == node and a in self.hands]
        for attempt in here:
            if self.hands[attempt] and self.random.random() < 0.5:
                del self.hands[attempt][-1]
        for at, done in list(self.kept.values()):
            if at == node:
                self.desk.worker_ran("", node, self.keeps, [done])
        for attempt in here:
            pieces = [Piece(c.source, c.cell, c.start, c.end) for c in self.hands[attempt]]
            self.desk.worker_holds(attempt, node, pieces, sorted(self.told.get(node, ())))
        self.obey()


@settings(deadline=None, max_examples=300)
@given(
    st.integers(0, 2**32),
    st.lists(st.integers(1, 40), min_size=1, max_size=25),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2),
)
def test_every_call_is_delivered_once(
    seed: int, cells: list[int], keeps: bool, faults: bool, deadly_calls: int
) -> None:
    rng = random.Random(seed)
    deadly = set()
    for _ in range(deadly_calls):
        cell = rng.randrange(len(cells))
        deadly.add((cell, rng.randrange(cells[cell])))
    world = World(seed, 3, deadly, keeps)
    waiting = [Cell(number, F, count, CallForm.ONE, b"d") for number, count in enumerate(cells)]
    steps = 0
    while world.desk.cells or waiting or world.hands or world.kept:
        steps += 1
        assert steps < 20_000, "it does not come to an end"
        if waiting and rng.random() < 0.5:
            some = waiting[: rng.randrange(1, 4)]
            del waiting[: len(some)]
            world.desk.submit("", some)
            world.desk.submit("", some)  # sent again: taken once
            world.obey()
        world.lease()
        world.obey()
        if world.hands:
            world.run(rng.choice(sorted(world.hands)))
        if faults and steps < 300 and rng.random() < 0.1:
            rng.choice([world.lose_node, world.relink])()
        if not world.desk.cells and not waiting:
            world.desk.end_workers(10)
            world.obey()
            if all(not hand for hand in world.hands.values()):
                for at, done in list(world.kept.values()):
                    world.desk.worker_ran("", at, keeps, [done])
                world.obey()
    calls = {(number, call) for number, count in enumerate(cells) for call in range(count)}
    assert set(world.got) == calls
    assert {key for key, n in world.failed.items() if n} == deadly
    counts = world.desk.counts
    assert (counts.leased, counts.waiting, world.desk.waiting) == (0, 0, 0)
    assert (counts.done, counts.total, counts.failed) == (len(calls), len(calls), len(deadly))
    if not faults:
        assert set(world.got.values()) == {1}
        assert world.ran == len(calls) - len(deadly)  # nothing is run twice


def test_a_deadly_call_is_found_in_few_deaths_and_its_neighbours_are_not_blamed() -> None:
    world = World(1, 1, {(0, 777)}, False)
    world.desk.submit("", [Cell(0, F, 1000, CallForm.ONE, b"d")])
    deaths = 0
    while world.desk.cells:
        world.lease()
        world.obey()
        before = len(world.hands)
        for attempt in list(world.hands):
            world.run(attempt)
        deaths += before - len(world.hands)
    assert deaths <= 10 + CALL_DEATHS_MAX
    assert [key for key, n in world.failed.items() if n] == [(0, 777)]


def test_a_call_that_awaits_its_children_gets_those_that_nobody_has_begun() -> None:
    desk = CallDesk("j")
    desk.function(FunctionCode("j", F, "f", b""))
    desk.worker_leased("w1", "n1")
    desk.worker_ran("w1", "n1", False, [])
    desk.submit("", [Cell(0, F, 1, CallForm.ONE, b"parent")])
    desk.said.clear()
    desk.submit("w1", [Cell(0, F, 1, CallForm.ONE, b"a"), Cell(1, F, 1, CallForm.ONE, b"b")])
    assert not desk.said  # its only worker is busy with the parent
    desk.worker_awaits("w1", True)  # the newest first: older ones may be of a call around this one
    assert [e.message.cells[0].data for e in desk.said if isinstance(e.message, RunCells)] == [b"b"]  # type: ignore[union-attr]
    desk.said.clear()
    desk.worker_ran("w1", "n1", False, [CellDone("w1", 1, 0, 1, b"B")])
    ran = [e.message for e in desk.said]
    assert [m.results[0].data for m in ran if isinstance(m, ChildrenDone)] == [b"B"]
    assert [m.cells[0].data for m in ran if isinstance(m, RunCells)] == [b"a"]
    desk.said.clear()
    desk.worker_gone("w1")
    assert (desk.cells, desk.waiting) == (1, 1)  # the parent runs again, and submits anew
    assert desk.wanted == 1


def test_idle_workers_end_first_and_a_long_cell_is_shared() -> None:
    desk = CallDesk("j")
    desk.function(FunctionCode("j", F, "f", b""))
    for attempt in ("w1", "w2"):
        desk.worker_leased(attempt, "n1")
        desk.worker_ran(attempt, "n1", False, [])
    desk.submit("", [Cell(0, F, 1, CallForm.ONE, b"d")])
    desk.worker_ran("w1", "n1", False, [CellDone("", 0, 0, 1, b"x", seconds=0.1)])
    desk.said.clear()
    desk.submit("", [Cell(1, F, 10, CallForm.ONE, b"d")])  # a second of work: both take half of it
    sent = [e.message for e in desk.said if isinstance(e.message, RunCells)]  # type: ignore[union-attr]
    assert sorted((m.attempt, m.cells[0].start, m.cells[0].end) for m in sent) in (
        [("w1", 0, 5), ("w2", 5, 10)],
        [("w1", 5, 10), ("w2", 0, 5)],
    )
    own = next(m.cells[0] for m in sent if m.attempt == "w1")
    desk.worker_ran("w1", "n1", False, [CellDone("", 1, own.start, own.end, b"x")])
    assert desk.idle == 1
    desk.said.clear()
    assert desk.end_workers(1) == 1
    assert [e.message for e in desk.said] == [EndServing("w1")]


def _run_cells(desk: CallDesk) -> list[tuple[str, bytes, int]]:
    """To whom which, and for which wait, since the last time."""
    said = [e.message for e in desk.said if isinstance(e, SendToNode)]
    desk.said.clear()
    return [(m.attempt, m.cells[0].data, m.awaited) for m in said if isinstance(m, RunCells)]


def _one(number: int, data: bytes) -> Cell:
    return Cell(number, F, 1, CallForm.ONE, data)


@pytest.mark.parametrize("first", [1, 2])
def test_a_call_that_awaits_helps_those_it_waits_for_and_no_other(first: int) -> None:
    """Cell 1 of w1 is at w2. If the call that waits has submitted it (`first`), w1 may run what it submits;
    if one around that has, w1 must not: what is around may be waited for by what it would begin."""
    desk = CallDesk("j")
    desk.function(FunctionCode("j", F, "f", b""))
    for worker in ("w1", "w2"):
        desk.worker_leased(worker, "n1")
        desk.worker_ran(worker, "n1", False, [])
    desk.submit("", [_one(0, b"parent")])
    desk.submit("w1", [_one(1, b"c1"), _one(2, b"c2")])
    assert _run_cells(desk) == [("w1", b"parent", 0), ("w2", b"c1", 0)]
    desk.worker_awaits("w1", True, first)
    assert _run_cells(desk) == [("w1", b"c2", first)]
    desk.submit("w2", [_one(1, b"d1"), _one(2, b"d2"), _one(3, b"d3")])
    desk.worker_awaits("w2", True, 1)
    assert _run_cells(desk) == [("w2", b"d3", 1)]
    desk.worker_ran("w1", "n1", False, [CellDone("w1", 2, 0, 1, b"")])
    assert _run_cells(desk) == ([("w1", b"d2", 1)] if first == 1 else [])
    desk.worker_ran("w2", "n1", False, [CellDone("w2", 3, 0, 1, b"")])
    assert _run_cells(desk) == [("w2", b"d1" if first == 1 else b"d2", 1)]


def _with_parent(workers: int) -> CallDesk:
    """w1 has a call in hand that waits for two; the others are idle."""
    desk = CallDesk("j")
    desk.function(FunctionCode("j", F, "f", b""))
    desk.submit("", [_one(0, b"parent")])
    for number in range(1, workers + 1):
        desk.worker_leased(f"w{number}", "n1")
        desk.worker_ran(f"w{number}", "n1", False, [])
    assert _run_cells(desk) == [("w1", b"parent", 0)]
    return desk


def test_what_may_take_its_executor_along_is_run_where_no_call_waits_if_it_can_be() -> None:
    timed = [msgspec.structs.replace(_one(number, b"c%d" % number), timeout_s=1.0) for number in (1, 2)]
    desk = _with_parent(2)
    desk.submit("w1", timed)
    desk.worker_awaits("w1", True, 1)
    assert _run_cells(desk) == [("w2", b"c1", 0)]
    desk.worker_ran("w2", "n1", False, [CellDone("w1", 1, 0, 1, b"")])
    assert _run_cells(desk) == [("w2", b"c2", 0)]
    desk.worker_gone("w2", DIED)
    assert _run_cells(desk) == []  # there will be another
    desk.worker_leased("w3", "n1")
    desk.worker_awaits("w1", True, 1)
    assert _run_cells(desk) == []
    desk.worker_ran("w3", "n1", False, [])
    assert _run_cells(desk) == [("w3", b"c2", 0)]
    desk.worker_gone("w3", DIED)
    desk.worker_awaits("w1", True, 1)  # a while later
    assert _run_cells(desk) == [("w1", b"c2", 1)]  # as there was none after all


def test_where_all_wait_they_run_what_may_take_their_executor_along() -> None:
    desk = _with_parent(1)
    desk.submit("w1", [msgspec.structs.replace(_one(1, b"c1"), timeout_s=1.0)])
    desk.worker_awaits("w1", True, 1)
    assert _run_cells(desk) == [("w1", b"c1", 1)]


def test_a_call_whose_executor_died_while_it_waited_gets_nothing_to_run() -> None:
    desk = _with_parent(2)
    desk.submit("w1", [_one(1, b"c1"), _one(2, b"c2")])
    desk.worker_awaits("w1", True, 1)
    assert _run_cells(desk) == [("w2", b"c1", 0), ("w1", b"c2", 1)]
    desk.worker_gone("w1", DIED)
    desk.worker_ran("w2", "n1", False, [CellDone("w1", 1, 0, 1, b"")])
    assert _run_cells(desk) == [("w2", b"parent", 0)]
    desk.worker_leased("w3", "n1")
    desk.submit("w2", [_one(1, b"c1"), _one(2, b"c2")])
    desk.worker_awaits("w2", True, 1)
    assert _run_cells(desk) == []
    desk.worker_ran("w3", "n1", False, [])
    assert _run_cells(desk) == [("w3", b"c1", 0)]

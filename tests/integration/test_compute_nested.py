"""Calls that submit calls, in an executor that is spoken to as its node does."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cortex import Client
from cortex.limits import MIB, NESTED_DEPTH_MAX
from cortex.tasks.cell_pickles import load_exception
from cortex.wire.messages import (
    CallForm,
    CallPrinted,
    CellDone,
    CellsGivenBack,
    CellsRun,
    ChildCells,
    ChildrenAwaited,
    ChildrenDone,
    ChildrenDropped,
    FunctionCode,
    Piece,
    RunCells,
)
from cortex.wire.messages.compute import Cell
from tests.integration.executor_side import ATTEMPT, JOB, ComputeSide, function_code


def _child(side: ComputeSide, done: Cell, value: Any) -> CellDone:
    return CellDone(done.source, done.cell, done.start, done.end, pickle.dumps([value], 5))


def _submits(code: FunctionCode) -> Any:
    """A function that submits a call of `code` with its argument less one, and waits."""

    def parent(x: int) -> Any:
        import pickle

        from cortex.tasks import nested_calls
        from cortex.wire.messages.compute import Cell

        link = nested_calls.current()
        assert link is not None
        got: list[Any] = []
        link.send_function(code)
        cell = Cell(link.next_cell(), code.function, 1, CallForm.ONE, pickle.dumps([x - 1], 5))
        link.send_cells([cell], got.append)
        assert link.wait(lambda: bool(got), 20)
        return [x, *pickle.loads(got[0].data)]

    return parent


def test_a_call_submits_calls_and_others_run_them(side: ComputeSide) -> None:
    code = function_code(lambda x: x * 10)
    side.send(side.cell(side.function(_submits(code)), [5]))
    assert side.receive(FunctionCode) == code
    (child,) = side.receive(ChildCells).cells
    assert side.receive(ChildrenAwaited).waiting
    assert pickle.loads(child.data) == [4]
    side.link.send(ChildrenDone(ATTEMPT, (_child(side, child, 40),)))
    assert not side.receive(ChildrenAwaited).waiting
    assert side.values(side.done()) == [[5, 40]]


def test_a_call_that_waits_runs_the_calls_that_wait_for_a_worker(side: ComputeSide) -> None:
    code = function_code(lambda x: print("in place") or x * 10)
    outer = side.cell(side.function(_submits(code)), [5])
    other = side.cell(outer.function, [6])
    side.send(outer, other)
    said = [side.any() for _ in range(4)]
    ((child,),) = [each.cells for each in said if isinstance(each, ChildCells)]
    given = [each.pieces for each in said if isinstance(each, CellsGivenBack)]
    assert given == [(Piece("", other.cell, 0, 1),)]
    assert said[-1] == ChildrenAwaited(ATTEMPT, True, child.cell)
    mine = msgspec.structs.replace(child, source=ATTEMPT)
    side.link.send(RunCells(ATTEMPT, (mine,), child.cell + 1))  # of a wait that is over
    assert side.receive(CellsGivenBack).pieces == (Piece(ATTEMPT, child.cell, 0, 1),)
    side.link.send(RunCells(ATTEMPT, (mine,), child.cell))
    printed = side.receive(CallPrinted)
    assert (printed.text, printed.nested) == ("in place\n", True)
    done = side.done()
    assert (done.source, done.cell) == (ATTEMPT, child.cell)
    side.link.send(ChildrenDone(ATTEMPT, (done,)))
    assert not side.receive(ChildrenAwaited).waiting
    done = side.done()
    assert (done.source, side.values(done)) == ("", [[5, 40]])


def test_calls_in_calls_in_calls_end_with_a_typed_error(side: ComputeSide) -> None:
    def deep(x: int) -> Any:
        import pickle

        from cortex.tasks import nested_calls
        from cortex.wire.messages.compute import Cell

        link = nested_calls.current()
        assert link is not None
        got: list[Any] = []
        cell = Cell(link.next_cell(), "a" * 32, 1, CallForm.ONE, pickle.dumps([x + 1], 5))
        link.send_cells([cell], got.append)
        link.wait(lambda: bool(got))
        if got[0].failed:
            raise load_exception(got[0].failed[0])

    deepest = 0
    side.link.send(FunctionCode(JOB, "a" * 32, "deep", function_code(deep).code))
    side.send(side.cell("a" * 32, [1]))
    while True:
        message = side.any()
        if isinstance(message, ChildCells):
            deepest += 1
            (child,) = message.cells
        elif isinstance(message, ChildrenAwaited) and message.waiting and message.first == child.cell:
            mine = msgspec.structs.replace(child, source=ATTEMPT)
            side.link.send(RunCells(ATTEMPT, (mine,), message.first))
        elif isinstance(message, CellsRun):
            (done,) = message.results
            if not done.source:
                break
            side.link.send(ChildrenDone(ATTEMPT, (done,)))
    assert deepest == NESTED_DEPTH_MAX
    assert f"more than {NESTED_DEPTH_MAX} deep" in done.failed[0].error.message


def test_calls_that_nobody_waited_for_are_dropped(side: ComputeSide) -> None:
    def leaves(x: int) -> None:
        from cortex.tasks import nested_calls
        from cortex.wire.messages.compute import Cell

        link = nested_calls.current()
        assert link is not None
        cells = [Cell(link.next_cell(), "a" * 32, 1, CallForm.ONE, b"") for _ in range(3)]
        link.send_cells(cells, print)
        link.drop([cells[0].cell])

    side.send(side.cell(side.function(leaves), [1]))
    numbers = [each.cell for each in side.receive(ChildCells).cells]
    assert side.receive(ChildrenDropped).cells == (numbers[0],)
    assert side.receive(ChildrenDropped).cells == tuple(numbers[1:])
    assert side.done().stop == 1


def test_threads_of_a_call_wait_for_calls(hasty: ComputeSide) -> None:
    def threads(x: int) -> list[Any]:

        from cortex.tasks import nested_calls
        from cortex.wire.messages import CallForm
        from cortex.wire.messages.compute import Cell

        link = nested_calls.current()
        assert link is not None
        got: list[Any] = []
        waited: list[bool] = []
        cell = Cell(link.next_cell(), "a" * 32, 1, CallForm.ONE, b"")
        link.send_cells([cell], got.append)
        thread = threading.Thread(target=lambda: waited.append(link.wait(lambda: bool(got), 10)))
        thread.start()
        thread.join()
        return [waited, len(got)]

    hasty.send(hasty.cell(hasty.function(threads), [1]))
    (child,) = hasty.receive(ChildCells).cells
    hasty.link.send(ChildrenDone(ATTEMPT, (_child(hasty, child, 1),)))
    assert hasty.values(hasty.done()) == [[[True], 1]]


def test_outside_of_calls_there_is_no_way_out(side: ComputeSide) -> None:
    def forked(x: int) -> bool:

        from cortex.tasks import nested_calls

        pid = os.fork()
        if not pid:
            os._exit(0 if nested_calls.current() is None else 1)
        return os.waitpid(pid, 0)[1] == 0 and nested_calls.current() is not None

    assert side.values(side.call(forked, [1])) == [True]


def test_on_a_cluster_results_go_from_call_to_call_in_frames(tmp_path: Path) -> None:
    side = ComputeSide(tmp_path, input_socket=str(tmp_path / "no door"))
    try:
        f = side.function(lambda n: np.ones(n, dtype=np.uint8))
        side.send(side.cell(f, [3 * MIB], source="another"), side.cell(f, [3 * MIB]))
        nested, own = side.done(), side.done()
        assert nested.attached is None
        assert side.values(nested)[0].nbytes == 3 * MIB
        assert own.attached is not None
        side.send(side.cell(f, [40 * MIB], source="another"))
        error = side.done().failed[0].error
        assert "at most 32" in error.message
        assert error.cure
    finally:
        side.close()


def test_trees_of_calls_on_two_workers_end() -> None:
    """Neither is ever at a call that waits for one below it in the other's hand."""

    def tree(n: int) -> int:
        if n <= 1:
            return n
        client = Client()
        first, second = client.submit(tree, n - 1), client.submit(tree, n - 2)
        return int(first.result() + second.result())

    with Client(slots=2) as client:
        assert [client.submit(tree, n).result(60) for n in (8, 9, 10, 11)] == [21, 34, 55, 89]

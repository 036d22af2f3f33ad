"""Executors of a compute job over their own link: what calls do, and what is said of it."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from cortex.limits import CALL_STUCK_S, CELL_CALLS_MAX, MIB, NESTED_DEPTH_MAX, PRINTED_BYTES_MAX
from cortex.tasks.attached_files import new_name, write_attached
from cortex.tasks.cell_pickles import dump_list, load_exception
from cortex.wire.messages import (
    Attached,
    CallForm,
    CallPrinted,
    CellDone,
    CellsGivenBack,
    CellsRun,
    ChildCells,
    ChildrenAwaited,
    ChildrenDone,
    ChildrenDropped,
    DropCells,
    EndServing,
    FunctionCode,
    Piece,
    Retiring,
    RunCells,
    ServeResult,
    Stop,
    TaskFinished,
)
from cortex.wire.messages.compute import Cell
from tests.integration.executor_side import ATTEMPT, JOB, ComputeSide, function_code


@pytest.fixture
def side(tmp_path: Path) -> Iterator[ComputeSide]:
    found = ComputeSide(tmp_path)
    yield found
    found.close()


def test_values_in_every_form(side: ComputeSide) -> None:
    done = side.call(lambda x: x * 2, [1, "a", [3]])
    assert side.values(done) == [2, "aa", [3, 3]]
    assert (done.cell, done.start, done.stop, done.failed) == (1, 0, 3, ())
    done = side.call(lambda x, y: x - y, [(5, 3), (1, 1)], form=CallForm.STAR)
    assert side.values(done) == [2, 0]
    done = side.call(lambda *a, **k: (a, k), [((1,), {"b": 2}), ((), {})], form=CallForm.FULL)
    assert side.values(done) == [((1,), {"b": 2}), ((), {})]


def test_a_slice_of_a_cell_is_run_alone(side: ComputeSide) -> None:
    done = side.call(lambda x: x, list(range(10)), start=3, stop=7)
    assert (done.start, done.stop) == (3, 7)
    assert side.values(done) == [3, 4, 5, 6]


@pytest.mark.parametrize("form", list(CallForm))
def test_results_that_are_only_counted(side: ComputeSide, form: CallForm) -> None:
    def touch(path: str) -> str:
        Path(path).touch()
        return path

    paths = [str(side.folder / name) for name in "abc"]
    entry = {CallForm.ONE: lambda p: p, CallForm.STAR: lambda p: (p,), CallForm.FULL: lambda p: ((p,), {})}
    done = side.call(touch, [entry[form](path) for path in paths], form=form, discard=True)
    assert (done.data, done.buffers, done.attached, done.failed) == (b"", (), None, ())
    assert (done.start, done.stop) == (0, 3)
    assert all(map(os.path.exists, paths))


def test_a_failing_call_harms_no_other(side: ComputeSide) -> None:
    def inverse(x: int) -> float:
        return 1 / x

    done = side.call(inverse, [1, 0, 2, 0, 4], first=100)
    assert side.values(done) == [1.0, 0.5, 0.25]
    assert [failed.call for failed in done.failed] == [1, 3]
    failed = done.failed[0]
    assert isinstance(load_exception(failed), ZeroDivisionError)
    assert failed.error.code == "user-code"
    assert failed.error.details["call"] == "101"
    shown = failed.error.details["traceback"]
    assert "return 1 / x" in shown
    assert "division by zero" in shown
    assert "call_worker" not in shown
    assert "cell_run" not in shown
    assert failed.error.message.startswith("inverse raised ZeroDivisionError at test_compute_executor.py:")


def test_whatever_a_call_raises_is_its_failure(side: ComputeSide) -> None:
    def raises(name: str) -> None:
        class Odd(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__(one)

        class Worse(Exception):
            def __str__(self) -> str:
                raise ValueError("no text")

        class Holds(Exception):
            pass

        made: dict[str, BaseException] = {
            "exit": SystemExit(3),
            "interrupt": KeyboardInterrupt(),
            "stop": StopIteration(7),
            "generator": GeneratorExit(),
            "odd": Odd(1, 2),
            "worse": Worse(),
            "lock": Holds(threading.Lock()),
            "index": IndexError("mine"),
        }
        raise made[name]

    names = ["exit", "interrupt", "stop", "generator", "odd", "worse", "lock", "index"]
    done = side.call(raises, names)
    assert [each.call for each in done.failed] == list(range(len(names)))
    errors = dict(zip(names, map(load_exception, done.failed)))
    assert isinstance(errors["exit"], SystemExit)
    assert isinstance(errors["interrupt"], KeyboardInterrupt)
    assert errors["stop"].args == (7,)
    assert type(errors["odd"]).__name__ == "UserCodeError"  # it cannot be made again: its words are there
    assert "Odd" in str(errors["odd"])
    assert "raised Worse" in done.failed[5].error.message
    assert done.failed[6].pickled == b""
    assert "Holds" in str(errors["lock"])
    assert errors["index"].args == ("mine",)
    assert side.values(side.call(lambda: 1, [((), {})], form=CallForm.FULL)) == [1]


def test_the_cause_is_shown_too(side: ComputeSide) -> None:
    def chained(x: int) -> None:
        try:
            {}[x]
        except KeyError as error:
            raise ValueError("no such thing") from error

    shown = side.call(chained, [1]).failed[0].error.details["traceback"]
    assert shown.index("KeyError: 1") < shown.index("direct cause") < shown.index("ValueError: no such thing")


def test_many_failures_come_in_several_messages(side: ComputeSide) -> None:
    def fails(x: int) -> None:
        raise ValueError("x" * 100_000)

    side.send(side.cell(side.function(fails), list(range(100))))
    calls: list[int] = []
    while len(calls) < 100:
        message = side.receive(CellsRun)
        for done in message.results:
            assert done.start == len(calls)
            calls += [each.call for each in done.failed]
    assert calls == list(range(100))


def test_a_result_that_cannot_be_pickled_names_itself_alone(side: ComputeSide) -> None:
    def locked(x: int) -> Any:
        return threading.Lock() if x in (3, 4, 9) else x

    side.send(side.cell(side.function(locked), list(range(10)), first=20))
    (message,) = [side.receive(CellsRun)]
    values: list[Any] = []
    failed = {}
    at = 0
    for done in message.results:
        assert done.start == at
        at = done.stop
        failed |= {each.call: each for each in done.failed}
        values += side.values(done) if done.data else []
    assert at == 10
    assert values == [0, 1, 2, 5, 6, 7, 8]
    assert sorted(failed) == [3, 4, 9]
    assert "what locked returned for call 23, a lock, cannot be pickled" in failed[3].error.message


def test_arguments_that_cannot_be_unpickled_fail_and_the_next_cell_runs(side: ComputeSide) -> None:
    f = side.function(lambda x: x)
    bad = cloudpickle.dumps([_Bomb()])
    side.send(side.cell(f, [1], data=bad, first=5), side.cell(f, [2]))
    failed = side.done().failed[0]
    assert "the argument of call 5 of <lambda> cannot be unpickled" in failed.error.message
    assert "boom" in failed.error.message
    assert side.values(side.done()) == [2]
    side.send(side.cell(f, [1, 2, 3], data=b"\x80\x05garbage"))
    done = side.done()
    assert [each.call for each in done.failed] == [0, 1, 2]
    assert "the arguments of 3 calls, one of them" in done.failed[0].error.message


class _Bomb:
    def __reduce__(self) -> Any:
        return eval, ("(_ for _ in ()).throw(ValueError('boom'))",)


def test_a_function_that_cannot_be_loaded_says_so_for_each_cell(side: ComputeSide) -> None:
    code = function_code(lambda x: x)
    bad = FunctionCode(JOB, "0" * 32, "broken", code.code[:-20] + b"\x00" * 20)
    other = FunctionCode(JOB, "1" * 32, "missing", function_code(_Importing()).code)
    side.link.send(bad)
    side.link.send(other)
    side.send(side.cell("0" * 32, [1]), side.cell("1" * 32, [1]), side.cell("1" * 32, [1]))
    side.send(side.cell("f" * 32, [1]))
    assert "broken" in side.done().failed[0].error.message
    for _ in range(2):
        error = side.done().failed[0].error
        assert "missing cannot be loaded in an executor" in error.message
        assert "no_such_module_anywhere" in error.message
    assert "came before its function" in side.done().failed[0].error.message


class _Importing:
    def __call__(self) -> None: ...
    def __reduce__(self) -> Any:
        return __import__, ("no_such_module_anywhere",)


def test_modules_travel_and_another_edition_replaces_the_first(side: ComputeSide) -> None:
    def uses(x: int) -> int:
        import helper_of_mine.inner

        return int(helper_of_mine.inner.answer() + x)

    for answer in (40, 50):
        modules = {
            "helper_of_mine/__init__.py": b"",
            "helper_of_mine/inner.py": f"def answer(): return {answer}".encode(),
        }
        side.send(side.cell(side.function(uses, modules), [2]))
        assert side.values(side.done()) == [answer + 2]


def test_classes_of_main_go_and_come_back_as_themselves(side: ComputeSide) -> None:
    Point = type("Point", (), {"__module__": "__main__", "__init__": lambda self, x: setattr(self, "x", x)})
    cell = side.cell(side.function(lambda p: p), [0], data=cloudpickle.dumps([Point(3)]))
    side.send(cell)
    done = side.done()
    (value,) = side.values(done)
    assert type(value) is Point
    assert value.x == 3


def test_large_buffers_travel_beside_frames_and_are_writable(side: ComputeSide) -> None:
    array = np.arange(3 * MIB, dtype=np.uint8)
    small = np.arange(10.0)
    pickled = dump_list([(array, small)])
    name = new_name("arguments")
    write_attached(str(side.folder / name), pickled)

    def doubles(both: Any) -> Any:
        large, small = both
        large[0] = 7  # of the mapping alone
        small[0] = 5.0
        return large, small, large.ctypes.data % 64

    f = side.function(doubles)
    side.send(side.cell(f, [0], data=b"\x00", attached=Attached(name, pickled.sizes)))
    done = side.done()
    assert done.attached is not None
    assert done.data == b""
    assert not done.buffers
    (result,) = side.values(done)
    assert result[0][0] == 7
    assert np.array_equal(result[0][1:], array[1:])
    assert result[1].tolist() == [5.0, *range(1, 10)]
    assert result[2] == 0
    result[0][1] = 9  # writable here, too
    assert (side.folder / name).read_bytes()[-(3 * MIB) :][0] == 0  # the file is as it was


def test_small_buffers_come_in_the_frame_and_are_writable(side: ComputeSide) -> None:
    done = side.call(lambda n: np.zeros(n), [100, 20_000])
    assert done.attached is None
    assert [len(each) for each in done.buffers] == [160_000]
    small, large = side.values(done)
    small[0] = large[0] = 1.0


def test_an_attachment_that_is_gone_is_a_typed_error(side: ComputeSide) -> None:
    f = side.function(lambda x: x)
    side.send(side.cell(f, [0], data=b"\x00", attached=Attached("nowhere", (10,))))
    assert side.done().failed[0].error.code == "input-lost"


def test_a_stuck_call_gives_back_what_waits(side: ComputeSide) -> None:
    def slow(x: float) -> float:
        time.sleep(x)
        return x

    f = side.function(slow)
    first = side.cell(f, [0.0, 0.001, 1.0, 0.0, 0.0])
    second, third = side.cell(f, [0.0]), side.cell(f, [0.0])
    started = time.monotonic()
    side.send(first, second)
    done = side.done()
    assert (done.start, done.stop) == (0, 2)
    assert side.values(done) == [0.0, 0.001]
    assert done.seconds < 0.05
    assert side.receive(CellsGivenBack).pieces == (Piece("", first.cell, 3, 5),)
    assert side.receive(CellsGivenBack).pieces == (Piece("", second.cell, 0, 1),)
    assert CALL_STUCK_S <= time.monotonic() - started < 0.9
    side.send(third)  # into the middle of the call
    assert side.receive(CellsGivenBack).pieces == (Piece("", third.cell, 0, 1),)
    assert time.monotonic() - started < 0.9
    done = side.done()
    assert (done.start, done.stop) == (2, 3)
    assert side.values(done) == [1.0]
    assert 0.9 < done.seconds < 1.5
    side.send(third)
    assert side.values(side.done()) == [0.0]


def test_after_a_rest_a_long_call_is_watched_again(side: ComputeSide) -> None:
    f = side.function(time.sleep)
    time.sleep(1.4)
    long, other = side.cell(f, [0.6]), side.cell(f, [0.0])
    side.send(long, other)
    assert side.receive(CellsGivenBack).pieces == (Piece("", other.cell, 0, 1),)
    assert side.done().cell == long.cell


def test_a_call_over_its_time_fails_and_its_executor_ends(side: ComputeSide) -> None:
    def sleeps(x: float) -> float:
        time.sleep(x)
        return x

    f = side.function(sleeps)
    cell, other = side.cell(f, [0.01, 30.0, 0.0], timeout_s=0.4, first=10), side.cell(f, [0.0])
    started = time.monotonic()
    side.send(cell, other)
    assert side.values(side.done()) == [0.01]
    assert side.receive(CellsGivenBack).pieces == (Piece("", cell.cell, 2, 3),)
    assert side.receive(CellsGivenBack).pieces == (Piece("", other.cell, 0, 1),)
    done = side.done()
    assert 0.4 <= time.monotonic() - started < 1.5
    (failed,) = done.failed
    assert (done.start, done.stop, failed.call) == (1, 2, 1)
    assert failed.error.code == "task-timeout"
    assert "call 11 of sleeps took more than its 0.4 s" in failed.error.message
    assert "time.sleep(x)" in failed.error.details["stack"]
    assert type(load_exception(failed)).__name__ == "TaskTimeout"
    finished = side.receive(TaskFinished)
    assert finished.result == ServeResult(2, 1)
    side.receive(Retiring)
    assert side.link.receive(5) is None


def test_calls_within_their_time_are_not_ended(side: ComputeSide) -> None:
    cell = side.cell(side.function(time.sleep), [0.09] * 8, timeout_s=0.3)
    side.send(cell)
    calls, given = 0, None
    while calls < (given.start if given else 8):
        message = side.any()
        if isinstance(message, CellsGivenBack):
            (given,) = message.pieces
        else:
            assert isinstance(message, CellsRun)
            assert not message.results[0].failed
            calls = message.results[0].stop


def test_end_serving_gives_back_what_has_not_begun(side: ComputeSide) -> None:
    f = side.function(time.sleep)
    first, second = side.cell(f, [0.3]), side.cell(f, [0.0])
    side.send(first)
    time.sleep(0.05)
    side.send(second)
    side.link.send(EndServing(ATTEMPT))
    got = [side.any() for _ in range(3)]
    kinds = [type(each) for each in got]
    assert sorted(kinds, key=str) == sorted([CellsGivenBack, CellsRun, TaskFinished], key=str)
    assert kinds[-1] is TaskFinished
    given = next(each for each in got if isinstance(each, CellsGivenBack))
    assert given.pieces == (Piece("", second.cell, 0, 1),)
    finished = got[-1]
    assert isinstance(finished, TaskFinished)
    assert finished.result == ServeResult(1, 0)
    side.begin()  # the executor serves on
    assert side.values(side.call(lambda x: x, [4])) == [4]


def test_stop_ends_the_executor(side: ComputeSide) -> None:
    side.link.send(Stop())
    side.receive(TaskFinished)
    side.receive(Retiring)
    assert side.link.receive(5) is None


def test_printed_lines_are_told_as_the_calls(side: ComputeSide) -> None:
    def prints(x: int) -> None:
        print("value", x)
        if x == 2:
            print("twice", file=sys.stderr)

    side.send(side.cell(side.function(prints), [1, 2, 3], first=40))
    said = [side.receive(CallPrinted) for _ in range(3)]
    assert [(each.call, each.text) for each in said] == [
        (40, "value 1\n"),
        (41, "value 2\ntwice\n"),
        (42, "value 3\n"),
    ]
    assert not said[0].nested
    assert side.done().stop == 3
    assert "value 1\nvalue 2\ntwice\nvalue 3\n" in (side.folder / "stderr").read_text()


def test_printed_lines_come_while_the_call_runs_and_no_more_than_the_limit(side: ComputeSide) -> None:
    def talks(x: int) -> None:
        print("begun")
        time.sleep(0.7)
        for _ in range(x):
            print("y" * 99)

    started = time.monotonic()
    side.send(side.cell(side.function(talks), [10_000]))
    assert side.receive(CallPrinted).text == "begun\n"
    assert time.monotonic() - started < 0.6
    text = ""
    while not text.endswith("more characters printed by this call)\n"):
        text += side.receive(CallPrinted).text
    assert PRINTED_BYTES_MAX - 100 < len(text) < PRINTED_BYTES_MAX + 100
    assert str(1_000_006 - PRINTED_BYTES_MAX) in text
    side.done()


def test_what_needs_too_much_memory_fails_and_the_next_call_has_it_again(side: ComputeSide) -> None:
    def takes(mb: int) -> int:
        return len(bytearray(mb << 20))

    for _ in range(2):
        done = side.call(takes, [3000, 1])
        assert side.values(done) == [1 << 20]
        error = done.failed[0].error
        assert error.code == "user-memory"
        assert "takes needs more memory than its slot has (400" in error.message
        assert side.values(side.call(takes, [300])) == [300 << 20]


def test_a_worker_whose_memory_does_not_come_back_ends_in_order(side: ComputeSide) -> None:
    def leaks(mb: int) -> None:
        import sys as holder

        held = getattr(holder, "_held", [])
        block = bytearray(mb << 20)
        block[::4096] = b"x" * len(block[::4096])
        holder._held = [*held, block]  # type: ignore[attr-defined]

    f, calls = side.function(leaks), 0
    while calls < 20:
        side.send(side.cell(f, [40]))
        message = side.any()
        if isinstance(message, TaskFinished):
            break
        assert isinstance(message, CellsRun), message
        assert not message.results[0].failed
        calls += 1
        time.sleep(0.3)  # the worker looks, and ends before the next cell or gives it back
        if isinstance(ended := side.soon(), TaskFinished):
            message = ended
            break
    assert isinstance(message, TaskFinished)
    assert message.result == ServeResult(calls, 0)
    side.receive(Retiring)
    assert side.link.receive(5) is None


def test_dropped_cells_are_not_run(side: ComputeSide) -> None:
    def slow(path: str) -> None:
        with open(path, "a") as file:
            file.write("x")
        time.sleep(0.02)

    f = side.function(slow)
    first = side.cell(f, [str(side.folder / "first")] * 3)
    second = side.cell(f, [str(side.folder / "second")])
    third = side.cell(f, [str(side.folder / "third")])
    side.send(first, second, third)
    side.link.send(DropCells(JOB, (second.cell,)))
    got = [side.any() for _ in range(3)]
    assert [each.pieces for each in got if isinstance(each, CellsGivenBack)] == [
        (Piece("", second.cell, 0, 1),)
    ]
    ran = [each.results[0].cell for each in got if isinstance(each, CellsRun)]
    assert ran == [first.cell, third.cell]
    assert not (side.folder / "second").exists()


def test_dropping_a_cell_in_hand_ends_it_after_its_call(side: ComputeSide) -> None:
    cell = side.cell(side.function(time.sleep), [0.4, 0.0, 0.0])
    side.send(cell)
    assert side.receive(CellsGivenBack).pieces == (Piece("", cell.cell, 1, 3),)  # it was stuck first
    side.link.send(DropCells(JOB, (cell.cell,)))
    done = side.done()
    assert (done.start, done.stop) == (0, 1)


def test_the_largest_cell(side: ComputeSide) -> None:
    done = side.call(lambda x: x, list(range(CELL_CALLS_MAX)))
    assert side.values(done) == list(range(CELL_CALLS_MAX))


def _child(side: ComputeSide, done: Cell, value: Any) -> CellDone:
    return CellDone(done.source, done.cell, done.start, done.end, pickle.dumps([value], 5))


def _submits(code: FunctionCode) -> Any:
    """A function that submits a call of `code` with its argument less one, and waits."""

    def parent(x: int) -> Any:
        import pickle

        from cortex.tasks import nested_calls
        from cortex.wire.messages import CallForm
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
    side.receive(FunctionCode)
    (child,) = side.receive(ChildCells).cells
    assert side.receive(CellsGivenBack).pieces == (Piece("", other.cell, 0, 1),)
    assert side.receive(ChildrenAwaited).waiting
    mine = Cell(**{n: getattr(child, n) for n in child.__struct_fields__} | {"source": ATTEMPT})
    side.link.send(code)
    side.send(mine)
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
        from cortex.wire.messages import CallForm
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
            named = {n: getattr(child, n) for n in child.__struct_fields__}
            side.send(Cell(**named | {"source": ATTEMPT}))
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
        from cortex.wire.messages import CallForm
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


def test_threads_of_a_call_wait_for_calls(side: ComputeSide) -> None:
    def threads(x: int) -> list[Any]:
        import threading

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

    side.send(side.cell(side.function(threads), [1]))
    (child,) = side.receive(ChildCells).cells
    side.link.send(ChildrenDone(ATTEMPT, (_child(side, child, 1),)))
    assert side.values(side.done()) == [[[True], 1]]


def test_outside_of_calls_there_is_no_way_out(side: ComputeSide) -> None:
    def forked(x: int) -> bool:
        import os

        from cortex.tasks import nested_calls

        pid = os.fork()
        if not pid:
            os._exit(0 if nested_calls.current() is None else 1)
        return os.waitpid(pid, 0)[1] == 0 and nested_calls.current() is not None

    assert side.values(side.call(forked, [1])) == [True]


def test_the_end_of_the_link_ends_a_call(side: ComputeSide) -> None:
    def says(path: str) -> None:
        Path(path).write_text(str(os.getpid()))
        time.sleep(30)

    path = side.folder / "pid"
    side.send(side.cell(side.function(says), [str(path)]))
    side.until(lambda: path.exists() and path.read_text() != "")
    pid = path.read_text()
    side.link.close()

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    side.until(gone, 3)


def test_a_run_of_cells_for_another_attempt_is_not_taken(side: ComputeSide) -> None:
    f = side.function(lambda x: x)
    side.link.send(RunCells(f"{JOB}-w000001.1", (side.cell(f, [1]),)))
    cell = side.cell(f, [2])
    side.send(cell)
    assert side.done().cell == cell.cell

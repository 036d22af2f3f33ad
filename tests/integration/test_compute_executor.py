"""Executors of a compute job over their own link: what calls do, and what is said of it."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from cortex.limits import CALL_STUCK_S, CELL_CALLS_MAX, PRINTED_BYTES_MAX
from cortex.tasks.cell_pickles import load_exception
from cortex.wire.messages import (
    CallForm,
    CallPrinted,
    CellsGivenBack,
    CellsRun,
    DropCells,
    EndServing,
    ForgetFunctions,
    Piece,
    Retiring,
    RunCells,
    ServeResult,
    Stop,
    TaskFinished,
)
from tests.integration.executor_side import ATTEMPT, JOB, ComputeSide


def test_values_in_every_form(side: ComputeSide) -> None:
    done = side.call(lambda x: x * 2, [1, "a", [3]])
    assert side.values(done) == [2, "aa", [3, 3]]
    assert (done.cell, done.start, done.stop, done.failed) == (1, 0, 3, ())
    done = side.call(lambda x, y: x - y, [(5, 3), (1, 1)], form=CallForm.STAR)
    assert side.values(done) == [2, 0]
    done = side.call(lambda *a, **k: (a, k), [((1,), {"b": 2}), ((), {})], form=CallForm.FULL)
    assert side.values(done) == [((1,), {"b": 2}), ((), {})]


def test_a_function_that_is_forgotten_comes_again_before_its_next_cell(side: ComputeSide) -> None:
    function = side.function(lambda x: x + 1)
    side.send(side.cell(function, [1]))
    assert side.values(side.done()) == [2]
    side.link.send(ForgetFunctions(JOB, (function,)))
    side.send(side.cell(function, [2]))
    assert "came before its function" in side.done().failed[0].error.message
    assert side.function(lambda x: x + 1)
    side.send(side.cell(side.function(lambda x: x + 1), [3]))
    assert side.values(side.done()) == [4]


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
                self.two = two

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
    assert type(errors["odd"]).__name__ == "Odd"  # though it is not to be made of its args
    assert (errors["odd"].args, vars(errors["odd"])["two"]) == ((1,), 2)
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


def test_a_stuck_call_gives_back_what_waits(hasty: ComputeSide) -> None:
    def slow(x: float) -> float:
        time.sleep(x)
        return x

    f = hasty.function(slow)
    first = hasty.cell(f, [0.0, 0.001, 1.0, 0.0, 0.0])
    second, third = hasty.cell(f, [0.0]), hasty.cell(f, [0.0])
    started = time.monotonic()
    hasty.send(first, second)
    done = hasty.done()
    assert (done.start, done.stop) == (0, 2)
    assert hasty.values(done) == [0.0, 0.001]
    assert done.seconds < 0.05
    assert hasty.receive(CellsGivenBack).pieces == (Piece("", first.cell, 3, 5),)
    assert hasty.receive(CellsGivenBack).pieces == (Piece("", second.cell, 0, 1),)
    assert CALL_STUCK_S <= time.monotonic() - started < 0.9
    hasty.send(third)  # into the middle of the call
    assert hasty.receive(CellsGivenBack).pieces == (Piece("", third.cell, 0, 1),)
    assert time.monotonic() - started < 0.9
    done = hasty.done()
    assert (done.start, done.stop) == (2, 3)
    assert hasty.values(done) == [1.0]
    assert 0.9 < done.seconds < 1.5
    hasty.send(third)
    assert hasty.values(hasty.done()) == [0.0]


def test_after_a_rest_a_long_call_is_watched_again(hasty: ComputeSide) -> None:
    f = hasty.function(time.sleep)
    time.sleep(1.4)
    long, other = hasty.cell(f, [0.6]), hasty.cell(f, [0.0])
    hasty.send(long, other)
    assert hasty.receive(CellsGivenBack).pieces == (Piece("", other.cell, 0, 1),)
    assert hasty.done().cell == long.cell


def test_a_call_over_its_time_fails_and_its_executor_ends(hasty: ComputeSide) -> None:
    def sleeps(x: float) -> float:
        time.sleep(x)
        return x

    f = hasty.function(sleeps)
    cell, other = hasty.cell(f, [0.01, 30.0, 0.0], timeout_s=0.4, first=10), hasty.cell(f, [0.0])
    started = time.monotonic()
    hasty.send(cell, other)
    assert hasty.values(hasty.done()) == [0.01]
    assert hasty.receive(CellsGivenBack).pieces == (Piece("", cell.cell, 2, 3),)
    assert hasty.receive(CellsGivenBack).pieces == (Piece("", other.cell, 0, 1),)
    done = hasty.done()
    assert 0.4 <= time.monotonic() - started < 1.5
    (failed,) = done.failed
    assert (done.start, done.stop, failed.call) == (1, 2, 1)
    assert failed.error.code == "task-timeout"
    assert "call 11 of sleeps took more than its 0.4 s" in failed.error.message
    assert "time.sleep(x)" in failed.error.details["stack"]
    assert type(load_exception(failed)).__name__ == "TaskTimeout"
    finished = hasty.receive(TaskFinished)
    assert finished.result == ServeResult(2, 1)
    hasty.receive(Retiring)
    assert hasty.link.receive(5) is None


def test_calls_within_their_time_are_not_ended(hasty: ComputeSide) -> None:
    cell = hasty.cell(hasty.function(time.sleep), [0.09] * 8, timeout_s=0.3)
    hasty.send(cell)
    calls, given = 0, None
    while calls < (given.start if given else 8):
        message = hasty.any()
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
    assert [type(each) for each in got] == [CellsRun, CellsGivenBack, TaskFinished]
    assert isinstance(got[1], CellsGivenBack)
    assert got[1].pieces == (Piece("", second.cell, 0, 1),)
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


def test_printed_text_that_is_no_unicode_is_told_as_the_log_has_it(side: ComputeSide) -> None:
    def prints(x: int) -> int:
        print("half of a pair: \ud800")
        return x

    side.send(side.cell(side.function(prints), [1]))
    assert side.receive(CallPrinted).text == "half of a pair: \\ud800\n"
    assert side.values(side.done()) == [1]


def test_a_call_that_closes_its_output_harms_no_other(side: ComputeSide) -> None:
    def closes(x: int) -> None:
        print(x)
        sys.stdout.close()

    side.send(side.cell(side.function(closes), [1, 2]))
    assert [side.receive(CallPrinted).text for _ in range(2)] == ["1\n", "2\n"]
    assert not side.done().failed


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


def test_dropping_a_cell_in_hand_ends_it_after_its_call(hasty: ComputeSide) -> None:
    cell = hasty.cell(hasty.function(time.sleep), [0.4, 0.0, 0.0])
    hasty.send(cell)
    assert hasty.receive(CellsGivenBack).pieces == (Piece("", cell.cell, 1, 3),)  # it was stuck first
    hasty.link.send(DropCells(JOB, (cell.cell,)))
    done = hasty.done()
    assert (done.start, done.stop) == (0, 1)


def test_the_largest_cell(side: ComputeSide) -> None:
    done = side.call(lambda x: x, list(range(CELL_CALLS_MAX)))
    assert side.values(done) == list(range(CELL_CALLS_MAX))


def test_the_end_of_the_link_ends_a_call(hasty: ComputeSide) -> None:
    def says(path: str) -> None:
        Path(path).write_text(str(os.getpid()))
        time.sleep(30)

    path = hasty.folder / "pid"
    hasty.send(hasty.cell(hasty.function(says), [str(path)]))
    hasty.until(lambda: path.exists() and path.read_text() != "")
    pid = path.read_text()
    hasty.link.close()

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    deadline = time.monotonic() + 3
    while not gone():
        assert time.monotonic() < deadline, "its executor goes on without a node"
        time.sleep(0.01)


def test_a_run_of_cells_for_another_attempt_is_not_taken(side: ComputeSide) -> None:
    f = side.function(lambda x: x)
    side.link.send(RunCells(f"{JOB}-w000001.1", (side.cell(f, [1]),)))
    cell = side.cell(f, [2])
    side.send(cell)
    assert side.done().cell == cell.cell


def test_a_call_that_forks_leaves_the_link_to_its_parent(side: ComputeSide) -> None:
    def forks(x: int) -> int:
        pid = os.fork()
        if not pid:
            print("of the child")
            return 0  # out of the call, as forgetful code does
        os.waitpid(pid, 0)
        print("of the parent")
        return x

    side.send(side.cell(side.function(forks), [1]))
    assert side.receive(CallPrinted).text == "of the parent\n"
    assert side.values(side.done()) == [1]

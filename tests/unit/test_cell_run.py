"""A cell in hand, and what of it is taken, failed and given back."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cortex.errors import ErrorReport
from cortex.tasks.cell_run import CellRun, Outcomes
from cortex.wire.messages import CallFailed, CallForm, Piece
from cortex.wire.messages.compute import Cell


def _cell(count: int, **more: Any) -> Cell:
    return Cell(7, "0" * 32, count, more.pop("form", CallForm.ONE), b"", **more)


def _failed(call: int) -> CallFailed:
    return CallFailed(call, b"", ErrorReport("user-code", "no"))


def _loaded(entries: list[Any], **more: Any) -> CellRun:
    run = CellRun(_cell(len(entries), **more), "f", 1)
    run.load(entries)
    return run


def _run_all(run: CellRun, function: Any) -> None:
    while True:
        try:
            run.run(function)
            return
        except Exception:
            run.failed(_failed(run.call))


def _told(taken: Outcomes | None) -> tuple[int, int, list[Any], list[int]]:
    assert taken is not None
    return taken.start, taken.stop, taken.values, [each.call for each in taken.failed]


def test_failures_stand_between_values() -> None:
    run = _loaded([1, 0, 2, 0])
    _run_all(run, lambda x: 6 // x)
    taken = run.take_done(ended=True)
    assert _told(taken) == (0, 4, [6, 3], [1, 3])
    assert run.take_done(ended=True) is None
    assert run.give_back() is None


@pytest.mark.parametrize("error", [IndexError, StopIteration, GeneratorExit, RuntimeError])
def test_no_error_of_a_call_is_taken_for_the_end(error: type[BaseException]) -> None:
    run = _loaded([1, 2, 3])

    def fails(x: int) -> int:
        if x == 2:
            raise error
        return x

    with pytest.raises(error):
        run.run(fails)
    assert run.call == 1
    run.failed(_failed(1))
    run.run(fails)
    assert _told(run.take_done(ended=True)) == (0, 3, [1, 3], [1])


def test_results_that_are_discarded_are_counted() -> None:
    run = _loaded([((1,), {}), ((0,), {}), ((2,), {})], form=CallForm.FULL, discard=True)
    _run_all(run, lambda x: 1 // x)
    assert _told(run.take_done(ended=True)) == (0, 3, [None, None], [1])


def test_what_is_taken_in_mid_call_is_what_is_done() -> None:
    at = threading.Event()
    on = threading.Event()
    run = _loaded(list(range(10)))

    def stops(x: int) -> int:
        if x == 4:
            at.set()
            assert on.wait(10)
        return x

    thread = threading.Thread(target=run.run, args=(stops,))
    thread.start()
    assert at.wait(10)
    assert _told(run.take_done()) == (0, 4, [0, 1, 2, 3], [])
    assert run.give_back() == Piece("", 7, 5, 10)
    assert run.stop == 5
    on.set()
    thread.join()
    assert _told(run.take_done(ended=True)) == (4, 5, [4], [])
    assert run.rest() is None


def test_giving_back_while_calls_run_fast_loses_and_repeats_none() -> None:
    for begun in range(0, 10_000, 200):
        run = _loaded(list(range(20_000)))
        ran: list[int] = []
        thread = threading.Thread(target=run.run, args=(ran.append,))
        thread.start()
        while len(ran) < begun:
            continue
        piece = run.give_back()
        thread.join()
        assert ran == list(range(run.stop))
        assert piece is None or (piece.start, piece.stop) == (run.stop, 20_000)
        assert _told(run.take_done(ended=True))[:2] == (0, run.stop)


def test_the_end_in_mid_call_fails_one_call_and_gives_back_all_behind() -> None:
    run = _loaded(list(range(5)), start=0)
    at, on = threading.Event(), threading.Event()

    def stops(x: int) -> int:
        if x == 2:
            at.set()
            on.wait(10)
        return x

    thread = threading.Thread(target=run.run, args=(stops,))
    thread.start()
    assert at.wait(10)
    assert _told(run.take_done()) == (0, 2, [0, 1], [])
    assert _told(run.fail_in_hand(_failed(2))) == (2, 3, [], [2])
    assert run.rest() == Piece("", 7, 3, 5)
    on.set()
    thread.join()


def test_the_time_of_calls() -> None:
    run = _loaded([1, 2])
    begun = run.begun_at
    assert run.watched(begun + 1) == 1
    _run_all(run, lambda x: x)
    assert run.watched(begun + 2) == 0  # no call is in hand
    taken = run.take_done(ended=True)
    assert taken is not None
    assert 0 < taken.seconds < 0.5


def test_halves() -> None:
    whole = Outcomes(2, 7, ["b", "d", "e"], [_failed(3), _failed(6)], 1.0)
    # calls 2: b, 3: failed, 4: d, 5: e, 6: failed
    first, second = whole.halves()
    assert _told(first) == (2, 4, ["b"], [3])
    assert _told(second) == (4, 7, ["d", "e"], [6])
    assert first.seconds + second.seconds == 1.0

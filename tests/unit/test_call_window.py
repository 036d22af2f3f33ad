"""What a client decides about cells, by examples; `tests/property/test_call_window.py` by faults."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from itertools import pairwise

import pytest

from cortex.client.call_window import CellSizes, Flight, Held, Ledger, Order
from cortex.errors import UserCodeError
from cortex.limits import (
    ARGUMENTS_BYTES,
    CELL_AHEAD_S,
    CELL_CALLS_MAX,
    CELL_GROWTH_MAX,
    CELL_RATE_MAX,
    CELL_S,
    CELLS_IN_FLIGHT,
    RESULTS_FILED_BYTES,
    RESULTS_HELD_BYTES,
)
from cortex.wire.messages import Attached, CallFailed, CallForm, Cell, CellDone

F = "0" * 32


def cell_of(number: int, count: int) -> Cell:
    return Cell(number, F, count, CallForm.ONE, b"pickle")


def done(cell: int, start: int, stop: int, *failed: int, data: bytes = b"") -> CellDone:
    report = UserCodeError("no").report()
    return CellDone("", cell, start, stop, data, failed=tuple(CallFailed(n, b"", report) for n in failed))


def grown(call_s: float, slots: int = 2, cells: int = 20) -> CellSizes:
    sizes = CellSizes()
    for _ in range(cells):
        calls = sizes.next(slots)
        sizes.sent(calls, calls, 0.0)
        sizes.came(calls, calls * call_s, calls)
    return sizes


def flying(cells: int, size_bytes: int = 1) -> Flight:
    flight = Flight()
    for number in range(cells):
        flight.begin(number, 1, size_bytes)
    return flight


def test_the_first_cell_has_one_call_and_no_step_is_larger_than_the_growth_allows() -> None:
    sizes = CellSizes()
    steps = []
    for _ in range(8):
        steps.append(sizes.next(2))
        sizes.came(steps[-1], 0.0, 0)
    assert steps[0] == 1
    assert all(after <= before * CELL_GROWTH_MAX for before, after in pairwise(steps))
    assert steps[-1] == CELL_CALLS_MAX


def test_cells_come_to_hold_as_much_work_as_is_wanted() -> None:
    for call_s in (1e-6, 1e-4, 1e-3):
        work_s = grown(call_s).next(2) * call_s
        assert CELL_S * 0.5 < work_s <= CELL_S
    assert grown(0.5).next(2) == 1


def test_with_many_slots_cells_have_more_work_so_that_they_are_not_too_many() -> None:
    slots = 200
    work_s = grown(1e-4, slots).next(slots) * 1e-4
    assert slots / work_s <= 1010


def test_cells_shrink_at_once_when_calls_become_slow_and_one_slow_call_is_forgotten() -> None:
    sizes = grown(1e-6)
    sizes.came(3, 0.3, 3)
    assert sizes.next(2) == 1
    for _ in range(10):
        calls = sizes.next(2)
        sizes.came(calls, calls * 1e-6, calls)
    assert sizes.next(2) > 1000


def test_large_arguments_and_large_results_make_small_cells() -> None:
    sizes = grown(0.0)
    sizes.sent(10, 10 * 100_000, 0.0)
    assert sizes.next(2) <= 5
    sizes = grown(0.0)
    sizes.came(10, 0.0, 10 * 100_000)
    assert sizes.next(2) <= 5


def test_a_slow_source_makes_small_cells() -> None:
    sizes = grown(0.0)
    sizes.sent(100, 100, 1.0)
    assert sizes.next(2) == 5


def test_towards_the_end_of_a_source_cells_shrink() -> None:
    sizes = grown(1e-5)
    assert sizes.next(2, left=10**6) == sizes.next(2)
    assert sizes.next(2, left=400) == 100
    assert sizes.next(2, left=3) == 3, "less work than a cell costs on its way"
    slow = grown(0.002)
    assert slow.next(2, left=4) == 1


def test_short_cells_are_several_for_each_slot_and_long_ones_few() -> None:
    assert grown(1e-6).in_flight(4) == 4 * CELLS_IN_FLIGHT
    assert 4 < grown(CELL_AHEAD_S * 2).in_flight(4) < 8


def test_results_that_are_not_read_hold_back_the_sending() -> None:
    sizes = grown(1e-6)
    assert sizes.may_send(2, flying(0), Held(5, 100, 0))
    assert not sizes.may_send(2, flying(2 * CELLS_IN_FLIGHT), Held())
    assert not sizes.may_send(2, flying(0), Held(5, RESULTS_HELD_BYTES, 0))
    assert not sizes.may_send(2, flying(0), Held(5, 0, RESULTS_FILED_BYTES))
    assert sizes.may_send(2, flying(0), Held()), "one always goes, however large its result may be"


def test_large_arguments_hold_back_the_sending_of_more_than_two() -> None:
    sizes = grown(1.0)
    sizes.sent(1, ARGUMENTS_BYTES, 0.0)
    assert sizes.may_send(8, flying(1, ARGUMENTS_BYTES), Held())
    assert not sizes.may_send(8, flying(2, ARGUMENTS_BYTES), Held())
    sizes.sent(1, ARGUMENTS_BYTES // 4, 0.0)
    assert sizes.may_send(8, flying(3, ARGUMENTS_BYTES // 4), Held())
    assert not sizes.may_send(8, flying(4, ARGUMENTS_BYTES // 4), Held())


def test_a_cell_is_under_way_until_its_last_result() -> None:
    flight = flying(2, 10)
    flight.begin(5, 3, 7)
    assert (flight.cells, flight.size_bytes) == (3, 27)
    assert not flight.came(5, 2)
    flight.begin(5, 1, 0)
    assert not flight.came(5, 1)
    assert flight.came(5, 1)
    assert (flight.cells, flight.size_bytes) == (2, 20)
    flight.end(0)
    assert (flight.cells, flight.size_bytes) == (1, 10)


def test_what_is_held_is_counted_by_where_it_is() -> None:
    held = Held()
    attached = CellDone("", 1, 0, 1, attached=Attached("file", (10, 2000)))
    inline = done(2, 0, 1, data=b"x" * 500)
    held.count(attached)
    held.count(inline)
    assert held.filed_bytes == 2010
    assert 500 < held.memory_bytes < 5000
    held.count(attached, -1)
    held.count(inline, -1)
    assert (held.cells, held.memory_bytes, held.filed_bytes) == (0, 0, 0)


# --- the ledger -----------------------------------------------------------------------------------


def test_a_result_counts_once() -> None:
    ledger: Ledger[str] = Ledger()
    ledger.add(cell_of(1, 10), "map")
    settled = ledger.settle(done(1, 0, 4))
    assert settled is not None
    assert settled.ranges == ((0, 4),)
    assert not settled.fresh.complete
    settled = ledger.settle(done(1, 2, 10))
    assert settled is not None
    assert settled.ranges == ((4, 10),)
    assert settled.fresh.complete
    assert ledger.settle(done(1, 0, 10)) is None
    assert ledger.settle(done(7, 0, 1)) is None, "nobody has sent it"


def test_what_has_no_result_yet_is_sent_again() -> None:
    ledger: Ledger[str] = Ledger()
    for number in (1, 2, 3):
        ledger.add(cell_of(number, 10), "map")
    ledger.settle(done(1, 0, 10))
    ledger.settle(done(2, 0, 4))
    again = [(cell.cell, cell.start, cell.end) for cell in ledger.unfinished()]
    assert again == [(2, 4, 10), (3, 0, 10)]


def test_failed_calls_are_tried_again_as_often_as_was_said() -> None:
    ledger: Ledger[str] = Ledger()
    ledger.add(cell_of(ledger.number(), 5), "map", retries=2)
    settled = ledger.settle(done(1, 0, 5, 1, 4))
    assert settled is not None
    assert settled.ranges == ((0, 1), (2, 4))
    assert [(cell.start, cell.end) for cell in settled.again] == [(1, 2), (4, 5)]
    first = settled.again[0]
    for tries_left in (True, False):
        settled = ledger.settle(done(first.cell, 1, 2, 1))
        assert settled is not None
        assert settled.fresh.root == 1
        assert bool(settled.again) is tries_left
        if tries_left:
            assert settled.ranges == ()
            first = settled.again[0]
    assert settled.ranges == ((1, 2),)
    assert len(ledger) == 1, "the other one is still under way"


def test_a_dropped_owner_s_results_do_not_count() -> None:
    ledger: Ledger[str] = Ledger()
    ledger.add(cell_of(1, 10), "one")
    ledger.add(cell_of(2, 10), "other")
    assert [cell.cell for cell in ledger.drop("one")] == [1]
    assert ledger.settle(done(1, 0, 10)) is None
    assert ledger.settle(done(2, 0, 10)) is not None


# --- order ----------------------------------------------------------------------------------------


def given(order: Order[str]) -> list[int]:
    calls: list[int] = []
    while (ready := order.take()) is not None:
        calls += range(ready.unit.first + ready.start, ready.unit.first + ready.stop)
    return calls


def test_an_ordered_map_waits_for_its_next_call_only() -> None:
    order: Order[str] = Order(True)
    order.sent(1, 0, 4)
    order.sent(2, 4, 4)
    order.came(2, 0, 4, "b")
    assert given(order) == []
    order.came(1, 0, 2, "a")
    assert given(order) == [0, 1]
    order.came(1, 2, 4, "a")
    assert given(order) == [2, 3, 4, 5, 6, 7]
    assert order.empty


def test_an_unordered_map_gives_what_comes() -> None:
    order: Order[str] = Order(False)
    order.sent(1, 0, 4)
    order.sent(2, 4, 4)
    order.came(2, 0, 4, "b")
    order.came(1, 2, 4, "a")
    assert given(order) == [4, 5, 6, 7, 2, 3]
    assert not order.empty
    order.came(1, 0, 2, "a")
    assert given(order) == [0, 1]
    assert order.empty


def test_what_could_not_be_read_comes_again() -> None:
    for ordered in (True, False):
        order: Order[str] = Order(ordered)
        order.sent(1, 0, 3)
        order.came(1, 0, 3, "unreadable")
        ready = order.take()
        assert ready is not None
        order.back(ready)
        assert not order.empty
        for call in (2, 0, 1):
            order.came(1, call, call + 1, "readable")
        assert given(order) == ([0, 1, 2] if ordered else [2, 0, 1])
        assert order.empty


# --- how busy executors are -----------------------------------------------------------------------


def busy_share(slots: int, calls: int, call_s: float, way_s: float) -> tuple[float, int]:
    """(share of the time that slots are busy until the last one ends, cells): calls of one length, cells that
    take `way_s` to the server and their results as long back, a server that has a cell for each free slot as
    long as there is one."""
    sizes, flight, held = CellSizes(), Flight(), Held()
    events: list[tuple[float, int, str, int]] = []
    order = itertools.count()
    waiting: deque[int] = deque()
    counts: list[int] = []
    made = 0
    free = slots
    end_s = 0.0

    def feed(now: float) -> None:
        nonlocal made
        while made < calls and sizes.may_send(slots, flight, held):
            count = sizes.next(slots, calls - made)
            sizes.sent(count, count, 0.0)
            flight.begin(len(counts), count, count)
            heapq.heappush(events, (now + way_s, next(order), "arrives", len(counts)))
            counts.append(count)
            made += count

    feed(0.0)
    while events:
        now, _, what, cell = heapq.heappop(events)
        if what == "arrives":
            waiting.append(cell)
        elif what == "ends":
            end_s = now
            free += 1
            heapq.heappush(events, (now + way_s, next(order), "is back", cell))
        else:
            flight.came(cell, counts[cell])
            sizes.came(counts[cell], counts[cell] * call_s, counts[cell])
            feed(now)
        while free and waiting:
            free -= 1
            cell = waiting.popleft()
            heapq.heappush(events, (now + counts[cell] * call_s, next(order), "ends", cell))
    assert sum(counts) == calls
    return calls * call_s / slots / end_s, len(counts)


@pytest.mark.parametrize("slots", [1, 2, 8, 64])
@pytest.mark.parametrize(
    ("call_s", "work_s"), [(1e-5, 2.0), (1e-4, 2.0), (1e-3, 2.0), (0.02, 10.0), (0.5, 50.0), (10.0, 1000.0)]
)
def test_every_slot_is_busy_however_long_calls_take(slots: int, call_s: float, work_s: float) -> None:
    share, cells = busy_share(slots, round(work_s / call_s) * slots, call_s, 0.0005)
    assert share > 0.98
    if call_s < CELL_S:
        assert cells / work_s < 2 * CELL_RATE_MAX, "and client and server are not"

"""Which ready task a node gets: its own first, then anybody's, then others' after a delay."""

from __future__ import annotations

from array import array
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from cortex.limits import LOCALITY_DELAY_S
from cortex.scheduling.placement import ANY, LOST, Placement
from cortex.scheduling.task_state import TaskEvent, TaskState, TaskTable

SETS = [(), (), ("a",), ("b",), ("a", "b")]
A, B, BOTH = 2, 3, 4


def placed(*segments: tuple[int, int]) -> tuple[TaskTable, Placement]:
    """Segments of (tasks, set), all ready."""
    table = TaskTable(sum(count for count, _ in segments))
    starts, first = array("I"), 0
    for count, _ in segments:
        starts.append(first)
        first += count
    placement = Placement(table, SETS, starts, array("I", [number for _, number in segments]))
    table.needs_met(0, first)
    return table, placement


def take(table: TaskTable, placement: Placement, node: str, now: float = 0.0) -> int | None:
    index = placement.choose(node, now)
    if index is not None:
        table.lease(index)
    return index


def test_a_node_gets_its_own_in_order_and_then_what_anybody_may_have() -> None:
    table, placement = placed((2, B), (2, A), (1, ANY), (1, BOTH))
    assert [take(table, placement, "a") for _ in range(4)] == [2, 3, 5, 4]
    assert [take(table, placement, "b") for _ in range(2)] == [0, 1]
    assert take(table, placement, "c") is None


def test_others_come_after_a_delay_and_from_where_most_wait() -> None:
    table, placement = placed((2, A), (5, B))
    assert take(table, placement, "c", 10.0) is None
    assert take(table, placement, "c", 10.0 + LOCALITY_DELAY_S / 2) is None
    assert take(table, placement, "c", 10.0 + LOCALITY_DELAY_S) == 2
    assert take(table, placement, "c", 10.0 + LOCALITY_DELAY_S) == 3  # it has waited: no delay for each
    assert take(table, placement, "a", 20.0) == 0


def test_a_node_that_finds_its_own_again_waits_anew() -> None:
    table, placement = placed((1, A), (5, B))
    assert take(table, placement, "a", 0.0) == 0
    assert take(table, placement, "a", 0.0) is None
    assert take(table, placement, "a", LOCALITY_DELAY_S) == 1
    table.apply(0, TaskEvent.RETRY)
    assert take(table, placement, "a", LOCALITY_DELAY_S) == 0
    assert take(table, placement, "a", LOCALITY_DELAY_S) is None


def test_a_slow_holder_keeps_no_other_node_waiting() -> None:
    """It finds tasks of its own all the time, which says nothing to the others."""
    table, placement = placed((100, A))
    taken = []
    for beat in range(20):
        now = beat * LOCALITY_DELAY_S / 4
        if beat % 4 == 0:
            take(table, placement, "a", now)
        taken.append(take(table, placement, "b", now))
    assert taken[:4] == [None] * 4
    assert None not in taken[4:]


def test_what_nobody_has_any_more_is_leased_to_nobody() -> None:
    table, placement = placed((3, LOST), (1, A))
    assert placement.lost == 0
    assert take(table, placement, "a", 0.0) == 3
    assert take(table, placement, "a", 1000.0) is None


def test_it_may_begin_with_a_table_that_is_under_way() -> None:
    table = TaskTable(10)
    table.needs_met(2, 8)
    table.lease(4)
    placement = Placement(table, SETS, array("I", [0, 6]), array("I", [A, B]))
    assert [take(table, placement, "a") for _ in range(4)] == [2, 3, 5, None]
    assert [take(table, placement, "b") for _ in range(3)] == [6, 7, None]


@given(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([ANY, A, B, BOTH])), min_size=1, max_size=8),
    st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 9)), max_size=60),
)
def test_every_task_is_given_out_and_only_when_it_is_ready(
    segments: list[tuple[int, int]], steps: list[tuple[str, int]]
) -> None:
    table, placement = placed(*segments)
    now, running = 0.0, deque[int]()

    def give(node: str) -> bool:
        index = placement.choose(node, now)
        if index is None:
            return False
        assert table.state(index) is TaskState.READY
        table.lease(index)
        running.append(index)
        return True

    for node, chance in steps:
        now += 0.3
        give(node)
        if running and chance < 6:
            running.rotate(chance)
            table.apply(running.popleft(), TaskEvent.RETRY if chance < 2 else TaskEvent.FINISH)
    while not table.finished:  # nobody waits for ever
        given_out = give("c")
        now += 2 * LOCALITY_DELAY_S
        given_out = give("c") or given_out
        assert given_out or running
        while running:
            table.apply(running.popleft(), TaskEvent.FINISH)

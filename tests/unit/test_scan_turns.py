"""Which scan is next: a lane for each set of nodes, and not too far ahead of the maps."""

from __future__ import annotations

import pytest

from cortex.errors import InternalError
from cortex.job.plan import OUT, UNKNOWN, InputFile, InputPlan, Split, SplitGroups, Splits
from cortex.limits import SCAN_AHEAD_PER_SLOT
from cortex.scheduling.scan_turns import ScanTurns
from cortex.wire.messages import ScanResult, ScanTask


def plan(files: int, splits: int) -> InputPlan:
    """Files of so many splits of 10 bytes, a map each."""
    return InputPlan(
        tuple(InputFile(f, f"/in/{f}.csv", "csv", 10 * splits, 0, 1, needs_scan=True) for f in range(files)),
        Splits.of(
            Split(f * splits + i, f, 10 * i, 10, start_state=UNKNOWN if i else OUT)
            for f in range(files)
            for i in range(splits)
        ),
        SplitGroups.of((i,) for i in range(files * splits)),
        (("x", "int64"),),
        10 * files * splits,
        1,
    )


def lease(turns: ScanTurns) -> int | None:
    """The first that is ready."""
    first = turns.table.first_ready()
    return None if first is None else turns.table.lease(first)[0]


def begin_all(turns: ScanTurns) -> list[tuple[int, int]]:
    """Every scan, as (its number, the splits ahead once it has begun), in the order in which they come."""
    begun = []
    while (index := lease(turns)) is not None:
        turns.issue(index)
        begun.append((index, turns.ahead))
    return begun


def finish(turns: ScanTurns, index: int, task: ScanTask, state: int = OUT) -> tuple[range, int]:
    ends = tuple((state,) * 3 for _ in task.boundaries[1:])
    return turns.finish(index, task, ScanResult(ends))


def test_files_of_one_lane_follow_one_another_those_of_others_are_beside_them() -> None:
    one = ScanTurns(plan(3, 3), 0)
    assert one.open({}) == []
    assert one.table.ready == 1
    assert [index for index, _ in begin_all(one)] == [0, 1, 3, 4, 6, 7]
    each = ScanTurns(plan(3, 3), 0)
    each.open({0: 2, 1: 3, 2: 2})
    assert each.table.ready == 2  # the first of each lane
    assert [index for index, _ in begin_all(each)] == [0, 1, 3, 4, 6, 7]
    second = ScanTurns(plan(3, 3), 0)
    second.open({0: 2, 1: 3, 2: 2})
    second.issue(second.table.lease(3)[0])  # the other lane's need not wait
    assert second.table.ready == 2


def test_maps_become_ready_as_their_splits_are_known() -> None:
    turns = ScanTurns(plan(1, 3), 0)
    turns.open({})
    first = lease(turns)
    assert first == 0
    task = turns.issue(first)
    assert task == ScanTask(0, (0, 10), OUT)
    known, scanned_bytes = finish(turns, first, task)
    assert (known, scanned_bytes) == (range(1), 10)
    assert turns.maps_of(known) == range(1)
    assert [split.end_state for split in turns.splits_for(0)] == [OUT]


def test_scans_ahead_are_counted_until_their_maps_begin() -> None:
    turns = ScanTurns(plan(1, 12), 0)
    turns.open({})
    slots = 1
    assert turns.is_due(slots, maps_wait=True)
    begun = []
    while turns.is_due(slots, maps_wait=True):
        index = lease(turns)
        assert index is not None
        turns.issue(index)
        begun.append(index)
    assert turns.ahead >= SCAN_AHEAD_PER_SLOT * slots
    assert turns.may_be_leased(slots) == 0
    assert not turns.is_due(slots, maps_wait=False)  # one is leased: a map will come
    ahead = turns.ahead
    turns.begin_map(0)
    turns.begin_map(0)  # again, as its output was lost
    assert turns.ahead == ahead - 1
    turns.begin_map(11)  # the last split of a file is not scanned
    assert turns.ahead == ahead - 1


def test_what_an_earlier_life_had_begun_is_caught_up_with() -> None:
    turns = ScanTurns(plan(1, 12), 0)
    turns.open({})
    turns.catch_up(3)
    assert turns.table.ready == 4  # those from 0, 1 and 3 on, which have begun, and the next
    assert turns.ahead == 1 + 2 + 4
    turns.catch_up(3)
    assert turns.ahead == 1 + 2 + 4


def test_a_result_that_does_not_fit_is_refused() -> None:
    turns = ScanTurns(plan(1, 3), 0)
    turns.open({})
    index = lease(turns)
    assert index is not None
    task = turns.issue(index)
    with pytest.raises(InternalError, match="the scan of 1 splits"):
        turns.finish(index, task, ScanResult(()))

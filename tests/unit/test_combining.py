"""Which map outputs a node combines, and when it stops."""

from __future__ import annotations

import pytest

from cortex.job.spec import InputSpec, JobSpec
from cortex.node.combining import Combining, combines
from cortex.wire.messages import CombineResult, CombineTask, RunTask

JOB = "j0123456789ab"


def output(index: int, number: int = 0) -> str:
    return f"{JOB}-m{index:06d}.{number}"


def begun(*maps: int, asked: bool = True, maps_min: int = 3, maps_max: int = 4) -> Combining:
    found = Combining(JOB, maps_min, 2, maps_max, 0.2)
    if asked:
        found.asked()
    for index in maps:
        found.finished(output(index))
    return found


def maps_of(run: RunTask | None) -> list[int]:
    assert run is not None
    assert isinstance(run.task, CombineTask)
    return [int(member.partition("-m")[2].partition(".")[0]) for member in run.task.members]


def saved(part: float) -> CombineResult:
    return CombineResult(1000, int(1000 * (1 - part)), kept=part >= 0.2)


def test_a_group_is_made_when_there_are_enough_outputs_and_one_at_a_time() -> None:
    found = begun(5, 1)
    assert found.next_group() is None
    found.finished(output(9))
    group = found.next_group()
    assert maps_of(group) == [1, 5, 9]
    assert group is not None
    assert group.attempt == f"{JOB}-c000000.0"
    for index in (2, 3, 4, 6, 7):
        found.finished(output(index))
    assert found.next_group() is None  # the first is in hand
    assert found.made(saved(0.5)) == (output(1), output(5), output(9))
    second = found.next_group()
    assert maps_of(second) == [2, 3, 4, 6]  # at most so many
    assert second is not None
    assert second.attempt == f"{JOB}-c000001.0"


def test_nothing_is_combined_before_another_node_asks() -> None:
    found = begun(0, 1, 2, asked=False)
    assert found.next_group() is None
    found.asked()
    assert maps_of(found.next_group()) == [0, 1, 2]


def test_a_group_that_saves_too_little_is_the_last() -> None:
    found = begun(0, 1, 2)
    assert found.next_group() is not None
    assert found.made(saved(0.19)) == ()
    assert not found.going_on
    for index in range(3, 9):
        found.finished(output(index))
    assert found.next_group() is None


def test_one_that_fails_is_the_last_and_one_that_gave_way_is_not() -> None:
    found = begun(0, 1, 2)
    found.next_group()
    found.dropped()
    assert found.going_on
    for index in (3, 4, 5):
        found.finished(output(index))
    assert maps_of(found.next_group()) == [3, 4, 5]
    found.failed()
    assert not found.going_on


def test_where_order_counts_a_group_is_of_neighbours() -> None:
    found = begun(0, 2, 4)
    assert maps_of(found.next_group()) == [0, 2, 4]
    assert found.made(CombineResult(neighbours_only=True)) == ()
    assert found.going_on
    found.finished(output(7))
    assert found.next_group() is None
    found.finished(output(8))
    found.finished(output(9, 2))
    group = found.next_group()
    assert maps_of(group) == [7, 8, 9]
    assert group is not None
    assert isinstance(group.task, CombineTask)
    assert group.task.members[2] == output(9, 2)
    assert found.made(saved(0.9)) == (output(7), output(8), output(9, 2))
    found.finished(output(1))
    assert maps_of(found.next_group()) == [0, 1, 2]


def test_when_reduces_begin_a_group_in_hand_may_still_end() -> None:
    found = begun(0, 1, 2, 3, 4, 5, 6)
    found.next_group()
    found.stop()
    assert found.made(saved(0.5)) == tuple(output(index) for index in range(4))
    assert found.next_group() is None


@pytest.mark.parametrize(
    ("form", "combine", "said"),
    [
        ("aggregate", "", True),
        ("fold", "sum", True),
        ("rows", "method", True),
        ("rows", "", False),
        ("batch", "", False),
        ("none", "", False),
    ],
)
def test_jobs_that_combine(form: str, combine: str, said: bool) -> None:
    spec = JobSpec("x", InputSpec(("a",)), reduce_form=form, combine=combine)  # type: ignore[arg-type]
    assert combines(spec) is said

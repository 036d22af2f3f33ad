"""A plan's splits, packed: what goes in comes out, and a million of them fit in a frame."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import ProtocolError
from cortex.job.plan import CLOSED, OUT, UNKNOWN, InputFile, InputPlan, Split, SplitGroups, Splits, SplitsMade
from cortex.limits import FRAME_BYTES_MAX, SPLITS_MAX
from cortex.wire.framing import FrameDecoder, encode_frame
from cortex.wire.messages import PlanResult, TaskFinished

BIG = st.integers(0, 2**62)
SPLITS = st.lists(
    st.tuples(
        st.integers(0, 2**31), BIG, BIG, st.integers(-1, 2**40), st.integers(0, 2**31), st.integers(0, 2**31),
        st.sampled_from([OUT, UNKNOWN]), st.sampled_from([OUT, CLOSED, UNKNOWN]),
    ),
    max_size=20,
)  # fmt: skip


@given(SPLITS)
def test_splits_come_out_as_they_went_in(rows: list[tuple[int, ...]]) -> None:
    splits = [Split(i, *row) for i, row in enumerate(rows)]
    packed = Splits.of(splits)
    assert list(packed) == splits
    assert [packed[i] for i in range(len(packed))] == splits
    assert packed[1:-1] == splits[1:-1]
    with pytest.raises(IndexError):
        packed[len(splits)]


@given(st.lists(st.integers(0, 4), max_size=12))
def test_groups_are_ranges_of_neighbours(sizes: list[int]) -> None:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    wanted = [range(end - size, end) for end, size in zip(ends, sizes)]
    groups = SplitGroups.of(wanted)
    assert list(groups) == wanted
    assert [groups[i] for i in range(len(groups))] == wanted
    for split in range(sum(sizes)):
        assert split in groups[groups.group_of(split)]
    with pytest.raises(IndexError):
        groups[len(wanted)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_the_splits_of_a_file_are_found_by_search(sizes: list[int]) -> None:
    made, first = SplitsMade(), 0
    for file, size in enumerate(sizes):
        for _ in range(size):
            made.add(Split(len(made), 2 * file, 0, 1))
    splits = made.done()
    for size in sizes:
        assert splits.end_of_file(first) == first + size
        first += size


def test_what_is_no_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="split 1 stands at place 0"):
        Splits.of([Split(1, 0, 0, 1)])
    with pytest.raises(ValueError, match="not neighbours from split 1 on"):
        SplitGroups.of([[0], [2]])
    with pytest.raises(ValueError, match="do not stand together"):
        Splits.of(Split(i, file, 0, 1) for i, file in enumerate([0, 2, 1, 0])).end_of_file(1)
    with pytest.raises(msgspec.ValidationError, match="no whole splits"):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"packed": b"x" * 39}), type=Splits)
    with pytest.raises(msgspec.ValidationError, match="no whole groups"):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"packed": b"x" * 5}), type=SplitGroups)
    frame = encode_frame(TaskFinished("a", PlanResult(plan_of(b"x" * 37, b"")), 0.0, 0))
    with pytest.raises(ProtocolError, match="no whole splits"):
        list(FrameDecoder[TaskFinished](TaskFinished).feed(frame))


def plan_of(splits: bytes, groups: bytes) -> InputPlan:
    """Packed by hand, so that a wrong plan can be made."""
    made = Splits()
    msgspec.structs.force_setattr(made, "packed", splits)
    file = InputFile(0, "/in/" + "x" * 200, "csv", 1, 0, 0, (("c", "int64"),) * 20)
    return InputPlan((file,) * 5000, made, SplitGroups(groups), (), 1, 1)


def test_a_plan_of_as_many_splits_as_there_may_be_fits_in_a_frame() -> None:
    plan = plan_of(bytes(38 * SPLITS_MAX), bytes(4 * SPLITS_MAX))
    assert len(plan.splits) == len(plan.tasks) == SPLITS_MAX
    encode_frame(TaskFinished("a", PlanResult(plan), 0.0, 0), FRAME_BYTES_MAX)

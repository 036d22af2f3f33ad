"""Counts in one integer against counts in a list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import InternalError
from cortex.scheduling.packed_counts import COUNT_MAX, PackedCounts

COUNT = st.sampled_from([0, 0, 1, 255, 256, 70_000, 1 << 32, COUNT_MAX]) | st.integers(0, COUNT_MAX)


@given(st.integers(0, 9).flatmap(lambda n: st.lists(st.lists(COUNT, min_size=n, max_size=n), min_size=1)))
def test_packed_counts_add_up_as_counts_do(rows: list[list[int]]) -> None:
    counts = PackedCounts(len(rows[0]))
    packed = [counts.pack(row) for row in rows]
    for row, each in zip(rows, packed):
        assert list(counts.unpack(each)) == row
        assert list(counts.positive(each)) == [int(count > 0) for count in row]
    total = sum(packed)
    assert list(counts.unpack(total)) == [sum(column) for column in zip(*rows)]
    for row, each in zip(rows, packed):
        assert list(counts.unpack(total - each)) == [sum(c) - n for c, n in zip(zip(*rows), row)]


def test_a_million_of_the_largest_do_not_spill_over() -> None:
    counts = PackedCounts(3)
    most = 1_000_000 * COUNT_MAX
    assert list(counts.unpack(1_000_000 * counts.pack((COUNT_MAX, 0, COUNT_MAX)))) == [most, 0, most]


@pytest.mark.parametrize(
    "row", [(), (1,), (1, 2, 3), (1, -1), (1, 1 << 64), (COUNT_MAX + 1, 1), (1, (1 << 64) - 1)]
)
def test_what_is_no_count_is_refused(row: tuple[int, ...]) -> None:
    with pytest.raises(InternalError, match="instead of 2"):
        PackedCounts(2).pack(row)

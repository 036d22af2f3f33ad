"""What rows are said to take, and batches cut by it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from cortex.formats.row_sizes import bounded, row_sizes

_TEXTS = ["a", None, "b" * 50, ""]
MAP = pa.map_(pa.string(), pa.int8())


@pytest.mark.parametrize(
    ("column", "sizes"),
    [
        (pa.nulls(4), [1, 1, 1, 1]),
        (pa.array([True, None, False, True]), [1, 1, 1, 1]),
        (pa.array([1, None, 2, 3]), [8, 8, 8, 8]),
        (pa.array(_TEXTS), [5, 4, 54, 4]),
        (pa.array(_TEXTS, pa.large_string()), [5, 4, 54, 4]),
        (pa.array(_TEXTS, pa.string_view()), [5, 4, 54, 4]),
        (pa.array(_TEXTS).dictionary_encode(), [5, 4, 54, 4]),
        (pa.array([None] * 4, pa.string()).dictionary_encode(), [4, 4, 4, 4]),
        (pa.array([7, None, 7, 9]).dictionary_encode(), [8, 8, 8, 8]),
        (pa.array([["a", "bb"], None, [], ["c"]]), [4 + 5 + 6, 4, 4, 4 + 5]),
        (pa.array([[1], None, [2, 3], []], pa.large_list(pa.int32())), [8, 4, 12, 4]),
        (pa.array([[1, 2], None, [3, 4], [5, 6]], pa.list_(pa.int32(), 2)), [12, 4, 12, 12]),
        (pa.array([{"x": "a", "y": 1}, None, {"x": "bb", "y": None}, {}]), [13, 12, 14, 12]),
        (pa.array([[("a", 1)], None, [("bb", 2), ("", None)], []], MAP), [10, 4, 4 + 7 + 5, 4]),
        (pa.array([[[("a", 1)]], None, [[], None], [[("bb", 2)] * 2]], pa.list_(MAP)), [14, 4, 12, 22]),
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)] * 4, pa.binary(16))), [16] * 4),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_sizes_are_of_the_rows_and_not_of_their_buffers(column: pa.Array, sizes: list[int]) -> None:
    def of(array: pa.Array) -> list[int]:
        return list(row_sizes(pa.record_batch([array], names=["x"])))

    assert of(column) == sizes
    assert of(column.slice(1, 2)) == sizes[1:3]
    assert of(column.slice(4)) == []
    assert of(pa.concat_arrays([column, column]).slice(3)) == [sizes[3], *sizes]


def test_what_stands_under_nulls_does_not_count() -> None:
    whole = pa.array(["a" * 9, "b" * 9])
    masked = pa.Array.from_buffers(pa.string(), 2, [pa.py_buffer(b"\x01"), *whole.buffers()[1:]])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), whole, mask=pa.array([False, True]))
    assert list(row_sizes(pa.record_batch([masked, lists], names=["s", "l"]))) == [13 + 17, 4 + 4]
    mask = pa.array([True, False])
    maps = pa.MapArray.from_arrays(pa.array([0, 1, 2], pa.int32()), whole, pa.array([1, 2]), mask=mask)
    assert list(row_sizes(pa.record_batch([maps], names=["m"]))) == [4, 4 + 13 + 8]


def test_slices_are_bounded_by_rows_and_by_bytes() -> None:
    texts = pa.record_batch([pa.array(["x" * n for n in (1, 96, 96, 1, 500, 1, 1)])], names=["s"])
    assert [part.num_rows for part in bounded(texts, 100, 100)] == [2, 1, 2, 2]
    assert [part.num_rows for part in bounded(texts, 2, 100)] == [2, 1, 1, 1, 1, 1]
    numbers = pa.record_batch([np.arange(1000)], names=["i"])
    assert [part.num_rows for part in bounded(numbers, 300, 1 << 20)] == [300, 300, 300, 100]
    assert pa.Table.from_batches(bounded(texts, 2, 100)).equals(pa.Table.from_batches([texts]))

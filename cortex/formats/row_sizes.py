"""How many bytes each row's values take: a fact of the rows, however they are batched, encoded or padded.

What readers and writers cut batches by. The size of an array's buffers would not do: a dictionary's rows are
small until they are decoded, and a slice has the buffers of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_OFFSET_BYTES: Final = 4
_SHORT_BYTES: Final = 64  # a dictionary's entries this short are as well taken for equally long
_OTHER_BYTES: Final = 64  # of a union or an interval


def row_sizes(batch: pa.RecordBatch) -> NDArray[np.int64]:
    return _sum_of_sizes(batch.columns, batch.num_rows)


def total_size(batch: pa.RecordBatch) -> int:
    """About what the rows take together; the rows are looked at only where their buffers do not say it."""
    return sum(map(_total_size, batch.columns))


def _total_size(column: pa.Array) -> int:
    if not _shares(column.type):
        return int(column.nbytes)
    if pa.types.is_dictionary(column.type) and _is_any_text(column.type.value_type):
        longest = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
        if longest <= _SHORT_BYTES:
            return (_OFFSET_BYTES + int(longest)) * len(column)
    return int(_sum_of_sizes([column], len(column)).sum())


def bounded(batch: pa.RecordBatch, rows_max: int, bytes_max: int) -> Iterator[pa.RecordBatch]:
    """Slices of at most `rows_max` rows, each ended early by the row that brings it to `bytes_max`."""
    for low in range(0, batch.num_rows, rows_max):
        part = batch.slice(low, rows_max)
        if total_size(part) < bytes_max:
            yield part
            continue
        ends, done, at = np.cumsum(row_sizes(part)), 0, 0
        while at < part.num_rows:
            end = min(int(np.searchsorted(ends, done + bytes_max)) + 1, part.num_rows)
            yield part.slice(at, end - at)
            done, at = int(ends[end - 1]), end


def _sum_of_sizes(columns: Sequence[pa.Array], rows: int) -> NDArray[np.int64]:
    found = [_sizes(column) for column in columns]
    sizes = np.full(rows, sum(size for size in found if isinstance(size, int)), np.int64)
    for size in found:
        if not isinstance(size, int):
            sizes += size
    return sizes


def _sizes(column: pa.Array) -> NDArray[np.int64] | int:
    """One for each row, or what every row takes. Of nulls of variable width only the offset counts."""
    kind = column.type
    sizes: NDArray[np.int64]
    if isinstance(kind, pa.BaseExtensionType):
        return _sizes(column.storage)
    if pa.types.is_dictionary(kind):
        entries = _sizes(column.dictionary)
        if isinstance(entries, int):
            return entries
        indices = pc.fill_null(column.indices.cast(pa.int64()), -1).to_numpy()
        sizes = np.append(entries, _OFFSET_BYTES)[indices]
    elif pa.types.is_struct(kind):
        return _sum_of_sizes(column.flatten(), len(column))
    elif pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        views = np.frombuffer(column.buffers()[1], np.int32).reshape(-1, 4)  # the first: the length
        lengths = views[column.offset : column.offset + len(column), 0]
        sizes = np.where(column.is_valid().to_numpy(zero_copy_only=False), lengths, 0) + _OFFSET_BYTES
    elif pa.types.is_map(kind):  # a list, but pyarrow's kernels of lists do not take it
        offsets = column.offsets.to_numpy()  # of a slice too they count from the children's first entry
        first, last = int(offsets[0]), int(offsets[-1])
        children = [child.slice(first, last - first) for child in (column.keys, column.items)]
        held = np.append(0, np.cumsum(_sum_of_sizes(children, last - first)))
        lengths = np.diff(held[offsets - first])
        sizes = np.where(column.is_valid().to_numpy(zero_copy_only=False), lengths, 0) + _OFFSET_BYTES
    elif _is_any_list(kind):
        ends = np.append(0, np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy()))
        values = column.flatten()  # without what stands under nulls
        held = np.append(0, np.cumsum(_sum_of_sizes([values], len(values))))
        sizes = np.diff(held[ends]) + _OFFSET_BYTES
    elif _is_any_text(kind):
        sizes = pc.fill_null(pc.binary_length(column), 0).to_numpy() + np.int64(_OFFSET_BYTES)
    else:
        try:
            return max(1, int(kind.bit_width) // 8)
        except ValueError:
            return 1 if pa.types.is_null(kind) else _OTHER_BYTES
    return sizes


def _shares(kind: pa.DataType) -> bool:
    """True if rows may have their bytes in common, and so take more than the array's buffers."""
    tests = (pa.types.is_dictionary, pa.types.is_string_view, pa.types.is_binary_view, pa.types.is_list_view)
    return any(test(kind) for test in tests) or any(
        _shares(kind.field(i).type) for i in range(kind.num_fields)
    )


def _is_any_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    return any(test(kind) for test in tests)


def _is_any_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)

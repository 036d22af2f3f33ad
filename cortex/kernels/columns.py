"""Arrow columns as NumPy arrays, without copies where the layout allows it.

Every column is one of two kinds here:

* *fixed*: a value is canonically eight bytes (`is_fixed`), read by `fixed_words` as uint64. Every
  integer and bool is widened to a 64-bit two's complement, uint64 keeps its eight bytes, floats become
  float64 with one zero and one NaN, temporal values are their integer in the column's own unit.
* *bytes*: a value is a range of bytes (`byte_ranges`): UTF-8 of strings, binary, the 16 (or 32)
  little-endian bytes of a decimal's unscaled integer.

`plain` comes first: it turns views, dictionaries and small decimals into a layout this module reads.
Values under nulls are unspecified throughout: `valid_mask` says which rows are null.

Raises KeyTypeError for types that are neither (lists, structs, intervals ...).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from cortex.errors import KeyTypeError

_SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
_UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_FLOATS = {16: np.float16, 32: np.float32, 64: np.float64}

CANONICAL_NAN_BITS = 0x7FF8000000000000


def is_fixed(data_type: pa.DataType) -> bool:
    """True if a value of this (plain) type is canonically eight bytes."""
    return bool(
        pt.is_integer(data_type)
        or pt.is_floating(data_type)
        or pt.is_boolean(data_type)
        or pt.is_temporal(data_type)
    ) and not pt.is_interval(data_type)


def is_bytes(data_type: pa.DataType) -> bool:
    """True if a value of this (plain) type is a range of bytes."""
    return bool(
        pt.is_string(data_type)
        or pt.is_large_string(data_type)
        or pt.is_binary(data_type)
        or pt.is_large_binary(data_type)
        or pt.is_fixed_size_binary(data_type)
        or pt.is_decimal128(data_type)
        or pt.is_decimal256(data_type)
    )


def plain_type(data_type: pa.DataType) -> pa.DataType:
    """The type `plain` gives a column of this type."""
    if pt.is_dictionary(data_type):
        return plain_type(data_type.value_type)
    if pt.is_string_view(data_type):
        return pa.large_string()
    if pt.is_binary_view(data_type):
        return pa.large_binary()
    if pt.is_decimal(data_type) and data_type.bit_width < 128:
        return pa.decimal128(data_type.precision, data_type.scale)
    return data_type


def plain(column: pa.Array) -> pa.Array:
    """The same values in a layout that `fixed_words` or `byte_ranges` reads (or of the null type)."""
    wanted = plain_type(column.type)
    if pt.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type != wanted:
        column = column.cast(wanted)
    if not (is_fixed(wanted) or is_bytes(wanted) or pt.is_null(wanted)):
        raise KeyTypeError(
            f"a column of type {wanted} cannot be hashed, ordered or compared",
            cure="use a number, text, bytes, date, time, bool or decimal; or several columns",
        )
    return column


def _bits(buffer: pa.Buffer, offset: int, rows: int) -> NDArray[np.bool_]:
    first, last = offset >> 3, (offset + rows + 7) >> 3
    packed = np.frombuffer(buffer, np.uint8, last - first, first)
    skip = offset & 7
    return np.unpackbits(packed, count=skip + rows, bitorder="little")[skip:].view(np.bool_)


def valid_mask(column: pa.Array) -> NDArray[np.bool_] | None:
    """True where the row is not null; None when no row is."""
    if column.null_count == 0:
        return None
    if pt.is_null(column.type):
        return np.zeros(len(column), np.bool_)
    return _bits(column.buffers()[0], column.offset, len(column))


def _values(column: pa.Array, dtype: Any) -> NDArray[Any]:
    """The values buffer of a fixed-width column, sliced to the column's rows. A view."""
    buffer = column.buffers()[1]
    if buffer is None or len(column) == 0:
        return np.zeros(len(column), dtype)
    return np.frombuffer(buffer, dtype, len(column), column.offset * np.dtype(dtype).itemsize)


def native_values(column: pa.Array) -> NDArray[Any]:
    """The values of a fixed column in their own width (bool as uint8, temporal as integers). A view
    where the layout allows it."""
    data_type = column.type
    if pt.is_boolean(data_type):
        buffer = column.buffers()[1]
        if buffer is None or len(column) == 0:
            return np.zeros(len(column), np.uint8)
        return _bits(buffer, column.offset, len(column)).view(np.uint8)
    width = data_type.bit_width
    if pt.is_floating(data_type):
        return _values(column, _FLOATS[width])
    if pt.is_unsigned_integer(data_type):
        return _values(column, _UNSIGNED[width])
    return _values(column, _SIGNED[width])


def canonical_floats(values: NDArray[Any]) -> NDArray[np.float64]:
    """As float64, with -0.0 as 0.0 and every NaN as the same NaN."""
    wide = values.astype(np.float64) + 0.0
    lost = np.isnan(wide)
    if lost.any():
        wide[lost] = np.uint64(CANONICAL_NAN_BITS).view(np.float64)
    return wide


def canonical_key(column: pa.Array) -> pa.Array:
    """The column with equal keys made identical: floats lose -0.0 and the different NaNs."""
    if not pt.is_floating(column.type) or len(column) == 0:
        return column
    values = native_values(column)
    clean = (values + values.dtype.type(0)).astype(values.dtype)
    lost = np.isnan(clean)
    if lost.any():
        clean[lost] = np.nan
    mask = valid_mask(column)
    validity = None if mask is None else pa.py_buffer(np.packbits(mask, bitorder="little"))
    return pa.Array.from_buffers(column.type, len(column), [validity, pa.py_buffer(clean)])


def fixed_words(column: pa.Array) -> NDArray[np.uint64]:
    """The eight canonical bytes of each value of a fixed column, as uint64. May be a view."""
    values = native_values(column)
    if values.dtype.kind == "f":
        return canonical_floats(values).view(np.uint64)
    if values.dtype.kind == "u":
        return values.astype(np.uint64, copy=False)
    return values.astype(np.int64, copy=False).view(np.uint64)


def byte_ranges(
    column: pa.Array, first: int, last: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """(data, starts, ends) of rows [first, last) of a bytes column: row i is data[starts[i]:ends[i]].

    Starts and ends ascend. `data` is a view of the whole buffer, possibly empty.
    """
    buffers = column.buffers()
    data_type = column.type
    rows = last - first
    begin = column.offset + first
    if pt.is_fixed_size_binary(data_type) or pt.is_decimal(data_type):
        width = data_type.byte_width
        edges = np.arange(begin, begin + rows + 1, dtype=np.int64) * width
        payload = buffers[1]
    else:
        large = pt.is_large_string(data_type) or pt.is_large_binary(data_type)
        dtype: Any = np.int64 if large else np.int32
        if rows == 0 or buffers[1] is None:
            edges = np.zeros(rows + 1, np.int64)
        else:
            raw = np.frombuffer(buffers[1], dtype, rows + 1, begin * np.dtype(dtype).itemsize)
            edges = raw.astype(np.int64, copy=False)
        payload = buffers[2]
    data = np.frombuffer(payload, np.uint8) if payload is not None else np.zeros(0, np.uint8)
    return data, edges[:-1], edges[1:]


def row_bytes(columns: Sequence[pa.Array]) -> NDArray[np.int64] | None:
    """The bytes of each row in the columns of ranges (strings, binary) together; None without such a
    column. What every row has alike is not counted."""
    total: NDArray[np.int64] | None = None
    for column in columns:
        kind = column.type
        large = pt.is_large_string(kind) or pt.is_large_binary(kind)
        if not (large or pt.is_string(kind) or pt.is_binary(kind)) or not len(column):
            continue
        edges = np.frombuffer(
            column.buffers()[1],
            np.int64 if large else np.int32,
            len(column) + 1,
            column.offset * (8 if large else 4),
        )
        lengths = np.diff(edges)
        total = lengths.astype(np.int64) if total is None else total + lengths
    return total


def unaligned_words(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """words[i] is the little-endian word data[i:i + 8]: an overlapping view, gathered from by index."""
    return np.ndarray((max(data.size - 7, 0),), "<u8", buffer=data, strides=(1,))


def byte_ranges_at(
    column: pa.Array, rows: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """As `byte_ranges`, of any rows in any order."""
    buffers = column.buffers()
    data_type = column.type
    if pt.is_fixed_size_binary(data_type) or pt.is_decimal(data_type):
        width = data_type.byte_width
        starts = (rows + column.offset) * width
        return np.frombuffer(buffers[1], np.uint8), starts, starts + width
    large = pt.is_large_string(data_type) or pt.is_large_binary(data_type)
    dtype: Any = np.int64 if large else np.int32
    edges = np.frombuffer(buffers[1], dtype, len(column) + 1, column.offset * np.dtype(dtype).itemsize)
    data = np.frombuffer(buffers[2], np.uint8) if buffers[2] is not None else np.zeros(0, np.uint8)
    return data, edges[rows].astype(np.int64), edges[rows + 1].astype(np.int64)

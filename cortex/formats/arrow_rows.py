"""Some rows of a record batch, read from an Arrow IPC file without the rest of it.

A batch may be as large as its file, and pyarrow reads its columns whole. Of what is not compressed the bytes
of any rows can be found: a buffer holds its rows in order. Not so dictionaries and views, whose values lie
elsewhere.

Reads begin at a row whose number is divisible by eight, as bits do; the arrays made of them begin behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from .arrow_metadata import Batch
from .input_bytes import InputBytes

_is = pa.types
_VIEWS = -1


class BatchRows:
    """One record batch of a file with `schema`. Raises ValueError where its parts do not fit together."""

    def __init__(self, data: InputBytes, batch: Batch, schema: pa.Schema) -> None:
        self._data = data
        self._batch = batch
        self._schema = schema
        self._node = self._buffer = 0
        """Those of the field that is read next."""
        self._begins: list[tuple[int, int]] = []
        """Where the nodes and buffers of each column begin, and where those of the last one end."""
        views = iter(batch.variadic)
        for kind in schema.types:
            self._begins.append((self._node, self._buffer))
            for buffers in _buffers(kind):
                self._node += 1
                self._buffer += buffers if buffers != _VIEWS else 2 + next(views, 0)
        self._begins.append((self._node, self._buffer))

    def readable(self, name: str) -> bool:
        """True if rows of this column can be read."""
        batch, index = self._batch, self._schema.get_field_index(name)
        if batch.codec is not None or self._begins[-1] != (len(batch.nodes), len(batch.buffers)):
            return False
        length = batch.nodes[self._begins[index][0]][0]
        if length != batch.rows:
            raise ValueError(f"column {name!r} has {length} rows in a batch of {batch.rows}")
        return _readable(self._schema.field(index).type)

    def column_bytes(self, name: str) -> int:
        index = self._schema.get_field_index(name)
        (_, first), (_, end) = self._begins[index : index + 2]
        return sum(length for _, length in self._batch.buffers[first:end])

    def read(self, name: str, low: int, high: int) -> pa.Array:
        """Rows [low, high) of a column that is readable. What is in its buffers is not checked."""
        index = self._schema.get_field_index(name)
        self._node, self._buffer = self._begins[index]
        return self._read(self._schema.field(index).type, low, high)

    def _read(self, kind: pa.DataType, low: int, high: int) -> pa.Array:
        length, nulls = self._batch.nodes[self._node]
        if not 0 <= low <= high <= length:
            raise ValueError(f"rows {low} to {high} are wanted of a column that has {length}")
        if low == high:
            for buffers in _buffers(kind):
                self._node += 1
                self._buffer += buffers
            return pa.array([], kind)
        self._node += 1
        if _is.is_null(kind):
            return pa.nulls(high - low)
        start = low - low % 8
        found: list[pa.Buffer | None] = [None]
        children: list[pa.Array] = []
        if nulls:
            found = [self._bytes(start // 8, -(-high // 8))]
        else:
            self._buffer += 1
        if _is.is_struct(kind):
            children = [self._read(field.type, start, high) for field in kind]
        elif _is.is_list(kind) or _is_text(kind):
            dtype = np.dtype(np.int64 if _is_large(kind) else np.int32)
            ends = np.frombuffer(self._bytes(start * dtype.itemsize, (high + 1) * dtype.itemsize), dtype)
            first, last = int(ends[0]), int(ends[-1])
            found.append(pa.py_buffer(ends - first))
            if _is.is_list(kind):
                children = [self._read(kind.value_type, first, last)]
            else:
                found.append(self._bytes(first, last))
        else:
            found.append(self._bytes(start * kind.bit_width // 8, -(-high * kind.bit_width // 8)))
        return pa.Array.from_buffers(kind, high - low, found, offset=low - start, children=children)

    def _bytes(self, low: int, high: int) -> pa.Buffer:
        """Bytes [low, high) of the next buffer."""
        offset, length = self._batch.buffers[self._buffer]
        self._buffer += 1
        if not 0 <= low <= high <= length:
            raise ValueError(f"bytes {low} to {high} are wanted of a buffer that has {length}")
        data = self._data.read(high - low, offset + low)
        if len(data) < high - low:
            raise ValueError(f"the file ends before byte {offset + high}")
        return pa.py_buffer(data)


def _buffers(kind: pa.DataType) -> Iterator[int]:
    """How many buffers a column has, and after it each that is nested in it."""
    if isinstance(kind, pa.BaseExtensionType):
        yield from _buffers(kind.storage_type)
        return
    if _is.is_string_view(kind) or _is.is_binary_view(kind):
        yield _VIEWS
    elif _is.is_null(kind) or _is.is_run_end_encoded(kind):
        yield 0
    elif _is.is_struct(kind) or _is.is_fixed_size_list(kind):
        yield 1
    elif _is.is_union(kind):
        yield 1 if kind.mode == "sparse" else 2
    else:
        yield 3 if _is_text(kind) or _is.is_list_view(kind) or _is.is_large_list_view(kind) else 2
    for index in range(kind.num_fields):
        yield from _buffers(kind.field(index).type)


def _readable(kind: pa.DataType) -> bool:
    if _is.is_list(kind) or _is.is_struct(kind):
        return all(_readable(kind.field(index).type) for index in range(kind.num_fields))
    tests = (_is.is_null, _is.is_primitive, _is.is_decimal, _is.is_fixed_size_binary, _is_text)
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    return _is_large(kind) or bool(_is.is_string(kind) or _is.is_binary(kind))


def _is_large(kind: pa.DataType) -> bool:
    return bool(_is.is_large_string(kind) or _is.is_large_binary(kind))

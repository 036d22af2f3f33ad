"""Parquet and Arrow IPC from record batches, cut again so that the bytes depend on the rows alone.

A row group (or record batch) ends after `_GROUP_ROWS` rows, or at the first multiple of `_STEP_ROWS` where it
holds `_GROUP_BYTES` of values: both are facts of the rows, not of the batches they came in. What stands in a
null's place and after a bitmap's end is cleared, as Arrow files hold buffers as they are.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cortex.limits import MIB

_GROUP_ROWS: Final = 65_536  # bounds what a writer and later a reader hold; more compresses hardly better
_STEP_ROWS: Final = 1_024
_GROUP_BYTES: Final = 16 * MIB


def value_bytes(column: pa.Array) -> int:
    """Size of a column's values, the same however they were batched (nulls of variable width count none)."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return value_bytes(column.dictionary_decode())
    if pa.types.is_struct(kind):
        return sum(value_bytes(child) for child in column.flatten())
    if pa.types.is_nested(kind):
        return (
            4 * len(column) + value_bytes(column.flatten())
            if hasattr(column, "flatten")
            else 64 * len(column)
        )
    if pa.types.is_null(kind):
        return len(column)
    try:
        return len(column) * max(1, int(kind.bit_width) // 8)
    except ValueError:
        return 4 * len(column) + int(pc.sum(pc.binary_length(column)).as_py() or 0)


class Regrouped:
    """Collects batches and gives them back as tables of the sizes described above."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._pending: list[pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """The groups that are complete now."""
        if not batch.num_rows:
            return []
        self._pending.append(batch)
        self._rows += batch.num_rows
        self._bytes += sum(value_bytes(column) for column in batch.columns)
        groups = []
        while self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            group = self._cut()
            if group is None:
                break
            groups.append(group)
        return groups

    def finish(self) -> list[pa.RecordBatch]:
        groups = []
        while self._rows:
            group = self._cut()
            groups.append(group if group is not None else self._take(self._rows))
        return groups

    def _cut(self) -> pa.RecordBatch | None:
        """The first group of what is pending, or None if its end is not among the rows yet."""
        if self._bytes < _GROUP_BYTES:
            return self._take(_GROUP_ROWS) if self._rows >= _GROUP_ROWS else None
        table = self._table()
        size = 0
        for low in range(0, min(self._rows, _GROUP_ROWS), _STEP_ROWS):
            if low + _STEP_ROWS > self._rows:
                return None
            for column in table.columns:
                size += value_bytes(_one_chunk(column.slice(low, _STEP_ROWS)))
            if size >= _GROUP_BYTES or low + _STEP_ROWS == _GROUP_ROWS:
                return self._take(low + _STEP_ROWS)
        return None

    def _table(self) -> pa.Table:
        return pa.Table.from_batches(self._pending, schema=self._schema)

    def _take(self, rows: int) -> pa.RecordBatch:
        table = self._table()
        group = table.slice(0, rows)
        rest = table.slice(rows)
        self._pending = rest.to_batches()
        self._rows = rest.num_rows
        self._bytes = sum(value_bytes(column) for batch in self._pending for column in batch.columns)
        return pa.RecordBatch.from_arrays([_cleared(c) for c in group.columns], schema=self._schema)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _cleared(column: pa.ChunkedArray) -> pa.Array:
    """One array with nothing in it but its values: zero under nulls, bitmaps that end with the rows."""
    array = _one_chunk(column)
    if not array.null_count and not pa.types.is_nested(array.type) and not pa.types.is_boolean(array.type):
        return array
    # take makes every buffer anew and writes zero where the index or the value is null.
    return array.take(pa.array(np.arange(len(array), dtype=np.int64)))


class ParquetEncoder:
    def __init__(self, file: pa.NativeFile, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq  # 20 ms (file systems, TLS): not in the start of every job

        self._writer = pq.ParquetWriter(file, schema, compression="snappy", version="2.6")

    def write(self, group: pa.RecordBatch) -> None:
        self._writer.write_batch(group, row_group_size=_GROUP_ROWS)

    def close(self) -> None:
        self._writer.close()


class ArrowEncoder:
    def __init__(self, file: pa.NativeFile, schema: pa.Schema) -> None:
        options = pa.ipc.IpcWriteOptions(use_threads=False)
        self._writer = pa.ipc.new_file(file, schema, options=options)

    def write(self, group: pa.RecordBatch) -> None:
        self._writer.write_batch(group)

    def close(self) -> None:
        self._writer.close()

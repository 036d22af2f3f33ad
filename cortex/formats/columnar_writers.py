"""Parquet and Arrow IPC from record batches, cut again so that the bytes depend on the rows alone.

A row group (or record batch) ends after `_GROUP_ROWS` rows, or with the first row that brings its values to
`_GROUP_BYTES`: both are facts of the rows, not of the batches they came in. What stands in a null's place and
after a bitmap's end is cleared, as Arrow files hold buffers as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa

from cortex.limits import MIB

from .row_sizes import row_sizes

_GROUP_ROWS: Final = 65_536  # bounds what a writer and later a reader hold; more compresses hardly better
_GROUP_BYTES: Final = 8 * MIB  # encoding long values takes five times as much
_PAGE_ROWS: Final = 64  # between two looks at the size of a page or dictionary, which long values fill soon


class Regrouped:
    """Collects batches and gives them back as batches of the sizes described above."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._pending: list[pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """The groups that are complete now."""
        ends, done, at = np.cumsum(row_sizes(batch)), 0, 0
        while at < batch.num_rows:
            fills = int(np.searchsorted(ends, done + _GROUP_BYTES - self._bytes))
            end = min(fills + 1, at + _GROUP_ROWS - self._rows, batch.num_rows)
            self._pending.append(batch.slice(at, end - at))
            self._rows += end - at
            self._bytes += int(ends[end - 1]) - done
            done, at = int(ends[end - 1]), end
            if self._rows == _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
                yield self._take()

    def finish(self) -> Iterator[pa.RecordBatch]:
        if self._rows:
            yield self._take()

    def _take(self) -> pa.RecordBatch:
        table = pa.Table.from_batches(self._pending, schema=self._schema)
        self._pending, self._rows, self._bytes = [], 0, 0
        return pa.RecordBatch.from_arrays([_cleared(c) for c in table.columns], schema=self._schema)


def _cleared(column: pa.ChunkedArray) -> pa.Array:
    """One array with nothing in it but its values: zero under nulls, bitmaps that end with the rows."""
    array = pa.concat_arrays(column.chunks)  # a copy even of one: Arrow pads a slice with what follows it
    if not array.null_count and not pa.types.is_nested(array.type) and not pa.types.is_boolean(array.type):
        return array
    # take makes every buffer anew and writes zero where the index or the value is null.
    return array.take(pa.array(np.arange(len(array), dtype=np.int64)))


class ParquetEncoder:
    def __init__(self, file: pa.NativeFile, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq  # 20 ms (file systems, TLS): not in the start of every job

        self._writer = pq.ParquetWriter(
            file, schema, compression="snappy", version="2.6", write_batch_size=_PAGE_ROWS
        )

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


def reread(path: str, format_: str) -> Iterator[pa.RecordBatch]:
    """The groups of a finished parquet or arrow file."""
    if format_ == "parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            for index in range(file.num_row_groups):
                yield from file.iter_batches(row_groups=[index], use_threads=False)
        return
    with pa.OSFile(path) as file, pa.ipc.open_file(file) as reader:
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)

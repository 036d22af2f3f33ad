"""Parquet files: their schema and row groups for the plan, and a reader of some row groups.

Only the wanted columns are read, in batches of bounded size; column chunks are read through a small
buffer, so that a row group larger than memory is no problem.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from cortex.job.plan import InputFile, Split
from cortex.limits import BATCH_ROWS_MAX, KIB

from .columnar import Projection, Unit, damage_reported
from .sources import check_identity, open_checked

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_READ_BUFFER_BYTES: Final = 256 * KIB  # a column: enough to make reads sequential


def _open(path: str) -> pq.ParquetFile:
    import pyarrow.parquet as pq  # 20 ms (file systems, TLS): not in the start of every job

    return pq.ParquetFile(
        path,
        memory_map=False,
        buffer_size=_READ_BUFFER_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,  # where pages have one: a flipped bit may be a value too
    )


def read_layout(path: str) -> tuple[pa.Schema, list[Unit]]:
    """Schema and row groups. InputError if the file is no Parquet file or its footer is damaged."""
    with damage_reported(path, "Parquet"), _open(path) as file:
        units = []
        for index in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(index)
            low, high = 0, 0
            for column in range(group.num_columns):
                chunk = group.column(column)
                start = chunk.data_page_offset
                if chunk.dictionary_page_offset is not None:
                    start = min(start, chunk.dictionary_page_offset)
                low = start if column == 0 else min(low, start)
                high = max(high, start + chunk.total_compressed_size)
            units.append(Unit(low, high - low, group.num_rows))
        return file.schema_arrow, units


class ParquetReader:
    def __init__(
        self, file: InputFile, split: Split, columns: Sequence[tuple[str, str]], *, block_bytes: int
    ) -> None:
        self._file = file
        self._split = split
        self._projection = Projection(file.path, columns)
        self._block_bytes = block_bytes
        self._row = self._next_row = 0
        self.bytes_read = 0
        self._descriptor = open_checked(file.path)
        try:
            check_identity(file, self._descriptor)
            with damage_reported(file.path, "Parquet"):
                self._parquet = _open(file.path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        parquet = getattr(self, "_parquet", None)
        if parquet is not None:
            parquet.close()

    def _batch_rows(self, group: int) -> int:
        """Rows of one batch, from the decoded size that the footer states."""
        data = self._parquet.metadata.row_group(group)
        wanted = set(self._projection.names)
        size = 0
        for column in range(data.num_columns):
            chunk = data.column(column)
            if chunk.path_in_schema.partition(".")[0] in wanted or chunk.path_in_schema in wanted:
                # A column of few distinct strings is small in the file and large in memory.
                size += chunk.total_uncompressed_size + 8 * data.num_rows
        rows = self._block_bytes * data.num_rows // max(size, 1)
        return int(max(1, min(rows, BATCH_ROWS_MAX)))

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        split = self._split
        metadata = self._parquet.metadata
        self._next_row = sum(metadata.row_group(i).num_rows for i in range(split.first_unit))
        for index in range(split.first_unit, split.first_unit + split.units):
            with damage_reported(self._file.path, "Parquet"):
                batch_rows = self._batch_rows(index)
            batches = self._parquet.iter_batches(
                batch_size=batch_rows,
                row_groups=[index],
                columns=self._projection.names,
                use_threads=False,
            )
            group = metadata.row_group(index)
            while True:
                with damage_reported(self._file.path, "Parquet"):
                    batch = next(batches, None)
                if batch is None:
                    break
                self._row, self._next_row = self._next_row, self._next_row + batch.num_rows
                self.bytes_read += split.length * batch.num_rows // max(1, group.num_rows * split.units)
                if batch.num_rows:
                    yield self._projection.apply(batch, self._row)
        self.bytes_read = split.length
        check_identity(self._file, self._descriptor)

    def describe(self, position: int) -> tuple[int, str]:
        """(-1, which row of the file) of the record at `position` in the batch yielded last."""
        return -1, f"row {self._row + position} of the file"

"""Parquet files: their schema and row groups for the plan, and a reader of some row groups.

Only the wanted columns are read, in batches of bounded size as decoded; column chunks are read through a
small buffer, so that a row group larger than memory is no problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from cortex.errors import InputError
from cortex.job.plan import InputFile, Split
from cortex.limits import BATCH_ROWS_MAX, KIB

from .columnar import Projection, Unit, damage_reported
from .input_bytes import InputBytes, Opener, open_local
from .row_sizes import bounded, total_size

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_READ_BUFFER_BYTES: Final = 256 * KIB  # a column: enough to make reads sequential
_FIRST_ROWS: Final = 1024  # read before it is known what rows take
_MORE: Final = 4  # times as many rows asked for as the last time, at most
_FEWER: Final = 8  # times fewer, where there was not memory enough


def _open(native: pa.NativeFile) -> pq.ParquetFile:
    import pyarrow.parquet as pq  # 20 ms (file systems, TLS): not in the start of every job

    return pq.ParquetFile(
        native,
        memory_map=False,
        buffer_size=_READ_BUFFER_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,  # where pages have one: a flipped bit may be a value too
    )


def read_layout(data: InputBytes) -> tuple[pa.Schema, list[Unit]]:
    """Schema and row groups. InputError if the file is no Parquet file or its footer is damaged."""
    with damage_reported(data.file.path, "Parquet"), data.native() as native, _open(native) as file:
        units = []
        for index in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(index)
            low, high = 0, 0
            for column in range(group.num_columns):
                start, end = _chunk_range(group.column(column))
                low = start if column == 0 else min(low, start)
                high = max(high, end)
            units.append(Unit(low, high - low, group.num_rows))
        return file.schema_arrow, units


def _chunk_range(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Where a column's part of a row group lies."""
    start = chunk.data_page_offset
    if chunk.dictionary_page_offset is not None:
        start = min(start, chunk.dictionary_page_offset)
    return start, start + chunk.total_compressed_size


class ParquetReader:
    def __init__(
        self,
        file: InputFile,
        split: Split,
        columns: Sequence[tuple[str, str]],
        *,
        block_bytes: int,
        open_input: Opener = open_local,
    ) -> None:
        self._file = file
        self._split = split
        self._projection = Projection(file.path, columns)
        self._block_bytes = block_bytes
        self._row = self._next_row = 0
        self._batch_rows = _FIRST_ROWS
        self.bytes_read = 0
        self._data = open_input(file)
        self._native: pa.NativeFile | None = None
        try:
            with damage_reported(file.path, "Parquet"):
                self._native = self._data.native()
                self._parquet = _open(self._native)
                self._expect_chunks()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._native is not None:
            self._native.close()
            self._native = None
        self._data.close()

    def _expect_chunks(self) -> None:
        groups = range(self._split.first_unit, self._split.first_unit + self._split.units)
        self._data.expect(_chunk_range(chunk) for group in groups for chunk in self._wanted_chunks(group))

    def _wanted_chunks(self, group: int) -> Iterator[pq.ColumnChunkMetaData]:
        """Of the columns that are read."""
        data = self._parquet.metadata.row_group(group)
        wanted = set(self._projection.names)
        for column in range(data.num_columns):
            chunk = data.column(column)
            if chunk.path_in_schema.partition(".")[0] in wanted or chunk.path_in_schema in wanted:
                yield chunk

    def _rows_by_footer(self, group: int) -> int:
        """Rows of one batch, from the size that the footer states: dictionaries make it too small."""
        group_rows = self._parquet.metadata.row_group(group).num_rows
        size = sum(chunk.total_uncompressed_size + 8 * group_rows for chunk in self._wanted_chunks(group))
        rows = self._block_bytes * group_rows // max(size, 1)
        return int(max(1, min(rows, BATCH_ROWS_MAX)))

    def _batches(self, group: int) -> Iterator[pa.RecordBatch]:
        """A row group in batches of about a block: the rows of each are set by what the last ones took.

        No size that a file states bounds what its texts take when they are decoded, so a batch may still
        need more memory than there is: then the group is read again, fewer rows at once.
        """
        with damage_reported(self._file.path, "Parquet"):
            most, done, at = self._rows_by_footer(group), 0, 0
        self._batch_rows = min(self._batch_rows, most)
        batches = self._read(group)
        while True:
            try:
                with damage_reported(self._file.path, "Parquet"):
                    batch = next(batches, None)
            except MemoryError as error:
                if self._batch_rows == 1:
                    raise self._too_large(group, done) from error
                self._batch_rows = most = max(1, self._batch_rows // _FEWER)
                batches, at = self._read(group), 0
                continue
            if batch is None:
                return
            at += batch.num_rows
            if at > done:
                fits = self._block_bytes * batch.num_rows // max(1, total_size(batch))
                self._batch_rows = max(1, min(fits, most, self._batch_rows * _MORE))
                self._parquet.reader.set_batch_size(self._batch_rows)  # of the batches still to be read
                yield batch.slice(batch.num_rows - (at - done))
                done = at

    def _read(self, group: int) -> Iterator[pa.RecordBatch]:
        batches: Iterator[pa.RecordBatch] = self._parquet.iter_batches(
            batch_size=self._batch_rows,
            row_groups=[group],
            columns=self._projection.names,
            use_threads=False,
        )
        return batches

    def _too_large(self, group: int, row: int) -> InputError:
        return InputError(
            "not even one row of a Parquet file's row group can be read in the memory there is",
            details={
                "file": self._file.path,
                "row group": f"{group} of {self._parquet.metadata.num_row_groups}",
                "row": f"{row} of the row group",
            },
            cure="raise --memory or lower --slots; write the file with smaller pages; or hold less in the "
            "job's own code",
        )

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        split = self._split
        metadata = self._parquet.metadata
        self._next_row = sum(metadata.row_group(i).num_rows for i in range(split.first_unit))
        for index in range(split.first_unit, split.first_unit + split.units):
            group = metadata.row_group(index)
            for batch in self._batches(index):
                for part in bounded(batch, BATCH_ROWS_MAX, 2 * self._block_bytes):
                    self._row, self._next_row = self._next_row, self._next_row + part.num_rows
                    self.bytes_read += split.length * part.num_rows // max(1, group.num_rows * split.units)
                    yield self._projection.apply(part, self._row)
        self.bytes_read = split.length
        self._data.check()

    def describe(self, position: int) -> tuple[int, str]:
        """(-1, which row of the file) of the record at `position` in the batch yielded last."""
        return -1, f"row {self._row + position} of the file"

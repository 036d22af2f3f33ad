"""Arrow IPC files: their schema and record batches for the plan, and a reader of some record batches.

Batches are read with plain reads, never mapped: a mapped file that is cut short kills its reader. A large
batch is read some rows at a time where that can be done (`arrow_rows`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import pyarrow as pa

from cortex.errors import InputError
from cortex.job.plan import InputFile, Split
from cortex.limits import BATCH_ROWS_MAX
from cortex.units import format_bytes

from .arrow_metadata import check_sizes, read_batch, read_footer, read_rows
from .arrow_rows import BatchRows
from .columnar import Projection, Unit, bytes_type, damage_reported
from .input_bytes import InputBytes, Opener, open_local
from .row_sizes import bounded

_LARGE_BLOCKS: Final = 4  # a batch of more blocks than these is read some rows at a time
_FEWER: Final = 8  # times fewer rows, where there was not memory enough


def read_layout(data: InputBytes) -> tuple[pa.Schema, list[Unit]]:
    """Schema and record batches. InputError if the file is no Arrow IPC file or is damaged."""
    with damage_reported(data.file.path, "Arrow IPC"):
        units = [
            Unit(block.offset, block.metadata_bytes + block.body_bytes, read_rows(data, block))
            for block in read_footer(data).batches
        ]
        with data.native() as file:
            schema = pa.ipc.open_file(file).schema
            str(schema)  # decodes its names, which may be damaged
    return schema, units


def _validate(columns: Iterable[pa.Array]) -> None:
    """ArrowInvalid for columns whose parts do not fit together. Whether their bytes are UTF-8, or a decimal's
    digits, the projection checks."""
    for column in columns:
        kind = bytes_type(column.type, decimals=True)
        (column if kind == column.type else column.view(kind)).validate(full=True)


class ArrowReader:
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
        self._block_bytes = block_bytes
        self._projection = Projection(file.path, columns)
        self._row = 0
        self.bytes_read = 0
        self._data = open_input(file)
        self._native: pa.NativeFile | None = None
        self._readers: dict[tuple[str, ...], pa.RecordBatchFileReader] = {}
        """By the columns that each reads."""
        try:
            with damage_reported(file.path, "Arrow IPC"):
                self._footer = read_footer(self._data)
                self._native = self._data.native()
                self._schema = pa.ipc.open_file(self._native).schema
                self._expect_batches()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._native is not None:
            self._native.close()
            self._native = None
        self._data.close()

    def _expect_batches(self) -> None:
        """Batches of which every column is wanted are read whole."""
        split = self._split
        if set(self._schema.names) <= set(self._projection.names):
            blocks = self._footer.batches[split.first_unit : split.first_unit + split.units]
            self._data.expect(
                (block.offset, block.offset + block.metadata_bytes + block.body_bytes) for block in blocks
            )

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        split, blocks = self._split, self._footer.batches
        with damage_reported(self._file.path, "Arrow IPC"):
            row = sum(read_rows(self._data, block) for block in blocks[: split.first_unit])
        for index in range(split.first_unit, split.first_unit + split.units):
            with damage_reported(self._file.path, "Arrow IPC"):
                rows, before = read_rows(self._data, blocks[index]), self.bytes_read
            first = row
            for batch in self._batches(index):
                for part in bounded(batch, BATCH_ROWS_MAX, 2 * self._block_bytes):
                    self._row, row = row, row + part.num_rows
                    self.bytes_read = before + split.length // split.units * (row - first) // max(1, rows)
                    yield self._projection.apply(part, self._row)
        self.bytes_read = split.length
        self._data.check()

    def _batches(self, index: int) -> Iterator[pa.RecordBatch]:
        """A record batch, whole or some rows at a time."""
        names, block = self._projection.names, self._footer.batches[index]
        if block.body_bytes <= _LARGE_BLOCKS * self._block_bytes or not self._footer.little_endian:
            yield self._whole(index, names)
            return
        with damage_reported(self._file.path, "Arrow IPC"):
            layout = read_batch(self._data, block)
            rows = BatchRows(self._data, layout, self._schema)
            by_rows = [name for name in names if rows.readable(name)]
        others = [name for name in names if name not in by_rows]
        whole = self._whole(index, others) if others else None
        if whole is not None and not by_rows:
            yield whole
            return
        size = sum(map(rows.column_bytes, by_rows))
        step, low = max(1, min(BATCH_ROWS_MAX, self._block_bytes * layout.rows // max(1, size))), 0
        while low < layout.rows:
            high = min(low + step, layout.rows)
            try:
                with damage_reported(self._file.path, "Arrow IPC"):
                    columns = {name: rows.read(name, low, high) for name in by_rows}
                    _validate(columns.values())
            except MemoryError as error:
                if step == 1:
                    raise self._too_large(index) from error
                step = max(1, step // _FEWER)
                continue
            if whole is not None:
                columns |= {name: whole.column(name).slice(low, high - low) for name in others}
            yield pa.RecordBatch.from_arrays([columns[name] for name in names], names=names)
            low = high

    def _whole(self, index: int, names: Sequence[str]) -> pa.RecordBatch:
        """Columns of a record batch. What they take the file says, and a damaged one may say anything."""
        try:
            with damage_reported(self._file.path, "Arrow IPC"):
                whole = self._reader(tuple(names)).get_batch(index)
                whole.validate()
                _validate(whole.columns)
        except MemoryError as error:
            with damage_reported(self._file.path, "Arrow IPC"):
                for block in (*self._footer.dictionaries, self._footer.batches[index]):
                    check_sizes(self._data, block)
            raise self._too_large(index) from error
        return whole

    def _reader(self, names: tuple[str, ...]) -> pa.RecordBatchFileReader:
        if names not in self._readers:
            fields = sorted(self._schema.get_field_index(name) for name in names)
            options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
            self._readers[names] = pa.ipc.open_file(self._native, options=options)
        return self._readers[names]

    def _too_large(self, index: int) -> InputError:
        block, count = self._footer.batches[index], len(self._footer.batches)
        return InputError(
            "a record batch of an Arrow IPC file does not fit in the memory there is",
            details={
                "file": self._file.path,
                "record batch": f"{index} of {count}, {format_bytes(block.body_bytes)} in the file",
            },
            cure="write the file with smaller record batches (in pyarrow: max_chunksize=65_536), or raise "
            "--memory, or lower --slots",
        )

    def describe(self, position: int) -> tuple[int, str]:
        """(-1, which row of the file) of the record at `position` in the batch yielded last."""
        return -1, f"row {self._row + position} of the file"

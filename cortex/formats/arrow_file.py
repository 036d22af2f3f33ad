"""Arrow IPC files: their schema and record batches for the plan, and a reader of some record batches.

pyarrow does not say where a file's record batches lie, so the footer is read here: a flatbuffer (tables
with a vtable of field offsets, all little-endian) with the `Block` of every batch. Batches are read with
plain reads, never mapped: a mapped file that is cut short kills its reader.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa

from cortex.errors import InputError
from cortex.job.plan import InputFile, Split
from cortex.limits import BATCH_ROWS_MAX

from .columnar import Projection, Unit, damage_reported
from .row_sizes import bounded
from .sources import check_identity, open_checked

_MAGIC: Final = b"ARROW1"
_FOOTER_RECORD_BATCHES: Final = 3  # fields of the format's tables, by their number in the schema
_MESSAGE_HEADER: Final = 2
_RECORD_BATCH_LENGTH: Final = 0


def _field(data: bytes, table: int, number: int) -> int:
    """Position of a table's field, or 0 if it has its default."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _follow(data: bytes, position: int) -> int:
    return position + int(struct.unpack_from("<I", data, position)[0])


def _blocks(path: str, descriptor: int) -> list[tuple[int, int, int]]:
    """(offset, metadata bytes, body bytes) of every record batch."""
    size = os.fstat(descriptor).st_size
    if os.pread(descriptor, 6, 0) != _MAGIC:
        raise InputError(
            "not an Arrow IPC file: it does not begin with ARROW1",
            details={"file": path},
            cure="write it in the file format (pyarrow.ipc.new_file), not as a stream",
        )
    end = os.pread(descriptor, 10, size - 10) if size >= 22 else b""
    if end[4:] != _MAGIC:
        raise InputError(
            "not a whole Arrow IPC file: its footer is missing",
            details={"file": path, "size": f"{size} bytes"},
            cure="copy or make the file again",
        )
    length = struct.unpack("<i", end[:4])[0]
    footer = os.pread(descriptor, length, size - 10 - length)
    table = _follow(footer, 0)
    field = _field(footer, table, _FOOTER_RECORD_BATCHES)
    if not field:
        return []
    vector = _follow(footer, field)
    count = struct.unpack_from("<I", footer, vector)[0]
    return [struct.unpack_from("<qi4xq", footer, vector + 4 + 24 * i) for i in range(count)]


def _rows(descriptor: int, offset: int, metadata_bytes: int) -> int:
    """The row count in a record batch's message."""
    message = os.pread(descriptor, metadata_bytes, offset)
    start = 8 if message[:4] == b"\xff\xff\xff\xff" else 4  # with or without the continuation marker
    message = message[start:]
    header = _field(message, _follow(message, 0), _MESSAGE_HEADER)
    length = _field(message, _follow(message, header), _RECORD_BATCH_LENGTH)
    return int(struct.unpack_from("<q", message, length)[0]) if length else 0


def read_layout(path: str) -> tuple[pa.Schema, list[Unit]]:
    """Schema and record batches. InputError if the file is no Arrow IPC file or is damaged."""
    descriptor = open_checked(path)
    try:
        with damage_reported(path, "Arrow IPC"):
            try:
                units = [
                    Unit(offset, metadata + body, _rows(descriptor, offset, metadata))
                    for offset, metadata, body in _blocks(path, descriptor)
                ]
            except struct.error as error:
                raise ValueError(f"its footer is damaged ({error})") from error
            with pa.OSFile(path) as file:
                schema = pa.ipc.open_file(file).schema
    finally:
        os.close(descriptor)
    return schema, units


def _structure(column: pa.Array) -> pa.Array:
    """The column as bytes: whether they are UTF-8, or a decimal's digits, the projection checks."""
    kind = column.type
    if pa.types.is_string(kind):
        return column.view(pa.binary())
    if pa.types.is_large_string(kind):
        return column.view(pa.large_binary())
    return column.view(pa.binary(kind.byte_width)) if pa.types.is_decimal(kind) else column


class ArrowReader:
    def __init__(
        self, file: InputFile, split: Split, columns: Sequence[tuple[str, str]], *, block_bytes: int
    ) -> None:
        self._file = file
        self._split = split
        self._block_bytes = block_bytes
        self._projection = Projection(file.path, columns)
        self._row = 0
        self.bytes_read = 0
        self._descriptor = open_checked(file.path)
        self._os_file: pa.NativeFile | None = None
        try:
            check_identity(file, self._descriptor)
            with damage_reported(file.path, "Arrow IPC"):
                self._os_file = pa.OSFile(file.path)
                schema = pa.ipc.open_file(self._os_file).schema
                fields = sorted(schema.get_field_index(name) for name in self._projection.names)
                options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
                self._batches = pa.ipc.open_file(self._os_file, options=options)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._os_file is not None:
            self._os_file.close()
            self._os_file = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        split = self._split
        first = 0
        if split.first_unit:
            with damage_reported(self._file.path, "Arrow IPC"):
                blocks = _blocks(self._file.path, self._descriptor)[: split.first_unit]
                first = sum(_rows(self._descriptor, offset, size) for offset, size, _ in blocks)
        for index in range(split.first_unit, split.first_unit + split.units):
            with damage_reported(self._file.path, "Arrow IPC"):
                whole = self._batches.get_batch(index)
                whole.validate()
                for column in whole.columns:
                    _structure(column).validate(full=True)
            for part in bounded(whole, BATCH_ROWS_MAX, 2 * self._block_bytes):
                self._row, first = first, first + part.num_rows
                yield self._projection.apply(part, self._row)
            self.bytes_read += split.length // max(1, split.units)
        self.bytes_read = split.length
        check_identity(self._file, self._descriptor)

    def describe(self, position: int) -> tuple[int, str]:
        """(-1, which row of the file) of the record at `position` in the batch yielded last."""
        return -1, f"row {self._row + position} of the file"

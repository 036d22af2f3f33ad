"""Lines of text: as lists of str (or bytes) for row mappers, or as batches of one column `line`.

A line ends at ``\\n`` or ``\\r\\n``, which are not part of it; a lone ``\\r`` is. Bytes that are not UTF-8
are an `InputError` with their offset, unless the encoding is ``bytes``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cortex.errors import InputError
from cortex.job.plan import InputFile, Split
from cortex.limits import BATCH_ROWS_MAX

from .blocks import TAIL_BYTES, Block, record_blocks
from .csv_records import positions_of
from .input_bytes import Opener, open_local
from .sources import KEPT_BUFFER_BYTES, Source, line_text, open_source


class LineCuts:
    """Record ends of text: every newline."""

    def __init__(self, data: bytes | bytearray, count: int, final: bool) -> None:
        self._data, self._count = data, count

    def first_end(self, low: int) -> int:
        found = self._data.find(b"\n", max(low - 1, 0), self._count)
        return found + 1 if found >= 0 else -1

    def last_end(self) -> int:
        return self._data.rfind(b"\n", 0, self._count) + 1


def first_line_start(source: Source, offset: int, end: int) -> int:
    """The first line start at or after `offset`, or `end` if none comes before it."""
    if offset <= source.file.data_start:
        return min(source.file.data_start, end)
    position = offset - 1
    while position < end:
        data, count, _ = source.window(position, 64 * 1024)
        if not count:
            return end
        found = data.find(b"\n", 0, count)
        if found >= 0:
            return min(end, position + found + 1)
        position += count
    return end


class TextReader:
    """Iterates over one split: lists of lines (`as_lines`), or batches with one column."""

    def __init__(
        self,
        file: InputFile,
        split: Split,
        columns: Sequence[tuple[str, str]],
        *,
        block_bytes: int,
        as_lines: bool,
        open_input: Opener = open_local,
    ) -> None:
        self._file = file
        self._open_input = open_input
        self._source = open_source(file, open_input)
        self._block_bytes = block_bytes
        self._as_lines = as_lines
        self._raw = file.encoding == "bytes"
        self._column = columns[0][0] if columns else "line"
        self._start = split.offset
        self._end = None if file.compression else split.offset + split.length
        self._block_start = 0
        self._block_size = 0
        self._row = 0

    @property
    def bytes_read(self) -> int:
        if self._end is None:
            return self._source.bytes_read
        return max(0, min(self._block_start + self._block_size, self._end) - self._start)

    def close(self) -> None:
        self._source.close()

    def __iter__(self) -> Iterator[Any]:
        source = self._source
        start = source.file.data_start
        if self._end is not None:
            source.expect(self._start - 1, self._end + TAIL_BYTES)
            start = first_line_start(source, self._start, self._end)
        for block in record_blocks(source, start, self._end, self._block_bytes, LineCuts):
            self._block_start, self._block_size, self._row = block.position, block.size, 0
            if self._as_lines:
                lines = self._lines(block)
                if block.size > KEPT_BUFFER_BYTES:  # a long line: it is there twice, and may be copied again
                    source.release()
                del block
                yield lines
            else:
                next_row = 0
                for batch in self._batches(block):
                    self._row, next_row = next_row, next_row + batch.num_rows
                    yield batch
        source.finish()

    def _decode(self, block: Block, size: int = -1) -> str:
        try:
            return str(memoryview(block.data)[: block.size if size < 0 else size], "utf-8")
        except UnicodeDecodeError as error:
            raise self._not_utf8(block, error) from None

    def _not_utf8(self, block: Block, error: UnicodeDecodeError) -> InputError:
        at = error.start
        start = block.data.rfind(b"\n", 0, at) + 1
        stop = block.data.find(b"\n", at, block.size)
        record = memoryview(block.data)[start : stop if stop >= 0 else block.size]
        return InputError(
            f"invalid UTF-8: byte 0x{block.data[at]:02x} ({error.reason})",
            details={"file": self._file.path, "offset": block.position + at, "line": line_text(record)},
            cure="save the file as UTF-8, or read bytes (encoding: bytes)",
        )

    def _lines(self, block: Block) -> list[Any]:
        if not block.unfinished and block.data.find(b"\n", 0, block.size) == block.size - 1:
            # One line, which may be long: without the copy that cutting it out would be.
            size = block.size - (2 if block.data[block.size - 2 : block.size - 1] == b"\r" else 1)
            return [bytes(memoryview(block.data)[:size]) if self._raw else self._decode(block, size)]
        if self._raw:
            data = bytes(memoryview(block.data)[: block.size])
            if b"\r\n" in data:
                data = data.replace(b"\r\n", b"\n")
            raw = data.split(b"\n")
            if not block.unfinished:
                raw.pop()
            return raw
        text = self._decode(block)
        if "\r\n" in text:
            text = text.replace("\r\n", "\n")
        lines = text.split("\n")
        if not block.unfinished:
            lines.pop()
        return lines

    def _batches(self, block: Block) -> Iterator[pa.RecordBatch]:
        if not self._raw and not block.data.isascii():
            self._decode(block)
        data_type = pa.binary() if self._raw else pa.string()
        if block.unfinished or block.data.find(b"\r", 0, block.size) >= 0:
            column = pa.array(self._lines(block), data_type)
        else:
            # Lines as they stand, newlines included, then one byte off each: no list of lines is made.
            ends = positions_of(np.frombuffer(block.data, dtype=np.uint8, count=block.size), 10)
            offsets = np.zeros(len(ends) + 1, dtype=np.int32)
            offsets[1:] = ends + 1
            data = pa.py_buffer(memoryview(block.data)[: block.size])
            whole = pa.Array.from_buffers(pa.binary(), len(ends), [None, pa.py_buffer(offsets), data])
            column = pc.binary_slice(whole, 0, -1)  # a copy: the block's buffer is used again
            if not self._raw:
                column = column.view(pa.string())  # checked by _decode
        for at in range(0, len(column), BATCH_ROWS_MAX):
            yield pa.RecordBatch.from_arrays([column.slice(at, BATCH_ROWS_MAX)], names=[self._column])

    def describe(self, position: int) -> tuple[int, str]:
        """(offset, text) of the record at `position` in what was yielded last."""
        source = open_source(self._file, self._open_input)
        try:
            data, _, _ = source.window(self._block_start, self._block_size)
            data = bytes(memoryview(data)[: self._block_size])
        finally:
            source.close()
        start = 0
        for _ in range(self._row + position):
            start = data.find(b"\n", start) + 1
        stop = data.find(b"\n", start)
        return self._block_start + start, line_text(data[start : stop + 1 if stop >= 0 else len(data)])

"""The (decompressed) bytes of one input file, read in windows: plain files anywhere, gzip as a stream.

A window is a buffer the source owns: it is valid until the next call. A file that is not the one that
was planned (another size, modification time or inode), at open or at the end, is an `InputChanged`.
"""

from __future__ import annotations

import abc
import zlib
from typing import Final

from cortex.errors import InputChanged, InputError
from cortex.job.plan import InputFile
from cortex.limits import KIB, LINE_TEXT_CHARS_MAX, MIB

from .input_bytes import Opener, open_local

_GZIP_READ_BYTES: Final = 256 * KIB  # compressed bytes fed at once: what comes out stays a few MB at most
_GZIP_OUT_BYTES: Final = 1024 * KIB
KEPT_BUFFER_BYTES: Final = 8 * MIB  # of a buffer that grew for a long record

UTF8_BOM: Final = b"\xef\xbb\xbf"


def line_text(record: bytes | bytearray | memoryview) -> str:
    """A record as an error shows it: without its line end, invalid bytes escaped, cut to a bounded length."""
    head = bytes(record[: 4 * LINE_TEXT_CHARS_MAX + 4])
    text = head.decode("utf-8", "backslashreplace").rstrip("\r\n")
    return text if len(text) <= LINE_TEXT_CHARS_MAX else text[: LINE_TEXT_CHARS_MAX - 1] + "…"


class Source(abc.ABC):
    """Windows of one file's (decompressed) bytes."""

    bytes_read: int = 0
    """Bytes read from the file so far (compressed ones, for gzip)."""

    def __init__(self, file: InputFile, open_input: Opener = open_local) -> None:
        self.file = file
        self._bytes = open_input(file)

    @abc.abstractmethod
    def window(self, position: int, length: int) -> tuple[bytes | bytearray, int, bool]:
        """(buffer, count, at_end): `count` bytes from `position` stand at the buffer's start.

        `count` is at least `length` unless the data ends before; `at_end` is True when it is known that
        nothing follows them. The buffer may be longer than `count`.
        """

    def expect(self, low: int, high: int) -> None:
        """Windows from `low` on will be asked for, one after the other, about as far as `high`."""
        self._bytes.expect([(low, min(high, self.file.size_bytes))])

    def without(self, byte: bytes, low: int, high: int) -> int:
        """How far it is known that `byte` does not occur in [low, high): `low` where only reading tells."""
        return self._bytes.without(byte, low, high)

    def release(self) -> None:  # noqa: B027  (a stream has no buffer of its own)
        """Drop the buffer: what it has is no longer needed."""

    def finish(self) -> None:
        """Called when the last record was read: the file must still be the one that was planned."""
        self._bytes.check()

    def close(self) -> None:
        self._bytes.close()


class FileSource(Source):
    def __init__(self, file: InputFile, open_input: Opener = open_local) -> None:
        super().__init__(file, open_input)
        self._buffer = bytearray()

    def window(self, position: int, length: int) -> tuple[bytearray, int, bool]:
        length = max(0, min(length, self.file.size_bytes - position))
        if len(self._buffer) < length or len(self._buffer) > max(KEPT_BUFFER_BYTES, 4 * length):
            self._buffer = bytearray()  # freed first, and a new one: Arrow may still hold the old one
            self._buffer = bytearray(length)
        count = self._bytes.read_into(memoryview(self._buffer)[:length], position)
        if count < length:
            self._bytes.check()
            raise InputChanged(
                "input file became shorter while the job read it", details={"file": self.file.path}
            )
        self.bytes_read += count
        return self._buffer, count, position + count >= self.file.size_bytes

    def release(self) -> None:
        self._buffer = bytearray()


class GzipSource(Source):
    """A gzip file (of one or more members) as one stream: positions only move forward."""

    def __init__(self, file: InputFile, open_input: Opener = open_local) -> None:
        super().__init__(file, open_input)
        self.expect(0, file.size_bytes)
        self._data = b""
        self._start = 0
        self._at_end = False
        self._input = b""
        self._member = zlib.decompressobj(wbits=31)
        self._member_started = False
        self._members_done = 0

    def window(self, position: int, length: int) -> tuple[bytes, int, bool]:
        parts, available = [], self._start + len(self._data) - position
        if available >= 0:
            parts.append(self._data[position - self._start :])
        while available < length and not self._at_end:
            part = self._more()
            available += len(part)
            if available > 0:
                parts.append(part[-available:] if available < len(part) else part)
        self._data, self._start = b"".join(parts), position
        return self._data, len(self._data), self._at_end

    def _more(self) -> bytes:
        """The next decompressed bytes; b"" only at a member's end or the file's."""
        try:
            while True:
                if not self._input:
                    self._input = self._bytes.read(_GZIP_READ_BYTES, self.bytes_read)
                    self.bytes_read += len(self._input)
                    if not self._input:
                        return self._end_of_file()
                if not self._member_started:
                    if self._members_done:
                        self._input = self._input.lstrip(b"\0")  # padding after a member, as gzip reads it
                        if not self._input:
                            continue
                    self._member_started = True
                out = self._member.decompress(self._input, _GZIP_OUT_BYTES)
                if self._member.eof:
                    self._input = self._member.unused_data
                    self._member, self._member_started = zlib.decompressobj(wbits=31), False
                    self._members_done += 1
                else:
                    self._input = self._member.unconsumed_tail
                if out:
                    return out
        except zlib.error as error:
            raise InputError(
                f"the gzip data is damaged: {error}",
                details={
                    "file": self.file.path,
                    "near compressed offset": self.bytes_read - len(self._input),
                },
                cure="make the file again; `gzip -t` tests it",
            ) from error

    def _end_of_file(self) -> bytes:
        if self._member_started:
            raise InputError(
                "the gzip file is cut short: its data ends in the middle of a stream",
                details={"file": self.file.path, "size": f"{self.file.size_bytes} bytes"},
                cure="copy or make the file again; `gzip -t` tests it",
            )
        self._at_end = True
        return b""


def open_source(file: InputFile, open_input: Opener = open_local) -> Source:
    return GzipSource(file, open_input) if file.compression == "gzip" else FileSource(file, open_input)

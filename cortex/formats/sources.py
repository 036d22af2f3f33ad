"""The bytes of one input file, read in windows: plain files with `pread`, gzip as a stream.

A window is a buffer the source owns: it is valid until the next call. A file that is not the one that
was planned (another size, modification time or inode), at open or at the end, is an `InputChanged`.
"""

from __future__ import annotations

import abc
import os
import zlib
from typing import Final

from cortex.errors import InputChanged, InputError
from cortex.job.plan import InputFile
from cortex.limits import KIB, LINE_TEXT_CHARS_MAX, MIB

_GZIP_READ_BYTES: Final = 256 * KIB  # compressed bytes fed at once: what comes out stays a few MB at most
_GZIP_OUT_BYTES: Final = 1024 * KIB
KEPT_BUFFER_BYTES: Final = 8 * MIB  # of a buffer that grew for a long record

UTF8_BOM: Final = b"\xef\xbb\xbf"


def line_text(record: bytes | bytearray | memoryview) -> str:
    """A record as an error shows it: without its line end, invalid bytes escaped, cut to a bounded length."""
    head = bytes(record[: 4 * LINE_TEXT_CHARS_MAX + 4])
    text = head.decode("utf-8", "backslashreplace").rstrip("\r\n")
    return text if len(text) <= LINE_TEXT_CHARS_MAX else text[: LINE_TEXT_CHARS_MAX - 1] + "…"


def open_checked(path: str) -> int:
    """A read-only descriptor of an input file; InputError when it cannot be opened."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(
            f"input file cannot be opened: {error.strerror}",
            details={"file": path},
            cure="check that the file exists and that you may read it",
        ) from error


def check_identity(file: InputFile, descriptor: int) -> None:
    """InputChanged unless the open file is the one that was planned."""
    now = os.fstat(descriptor)
    for what, planned, found in (
        ("size", file.size_bytes, now.st_size),
        ("modification time", file.modified_ns, now.st_mtime_ns),
        ("inode", file.inode, now.st_ino),
    ):
        if planned != found:
            raise InputChanged(
                f"input file changed while the job read it: its {what} was {planned} and is now {found}",
                details={"file": file.path},
                cure="run the job again when nothing writes to its input",
            )


class Source(abc.ABC):
    """Windows of one file's (decompressed) bytes."""

    bytes_read: int = 0
    """Bytes read from the file so far (compressed ones, for gzip)."""

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self._descriptor = open_checked(file.path)
        try:
            check_identity(file, self._descriptor)
        except BaseException:
            self.close()
            raise

    @abc.abstractmethod
    def window(self, position: int, length: int) -> tuple[bytes | bytearray, int, bool]:
        """(buffer, count, at_end): `count` bytes from `position` stand at the buffer's start.

        `count` is at least `length` unless the data ends before; `at_end` is True when it is known that
        nothing follows them. The buffer may be longer than `count`.
        """

    def release(self) -> None:  # noqa: B027  (a stream has no buffer of its own)
        """Drop the buffer: what it has is no longer needed."""

    def finish(self) -> None:
        """Called when the last record was read: the file must still be the one that was planned."""
        check_identity(self.file, self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class FileSource(Source):
    def __init__(self, file: InputFile) -> None:
        super().__init__(file)
        self._buffer = bytearray()

    def window(self, position: int, length: int) -> tuple[bytearray, int, bool]:
        length = max(0, min(length, self.file.size_bytes - position))
        if len(self._buffer) < length or len(self._buffer) > max(KEPT_BUFFER_BYTES, 4 * length):
            self._buffer = bytearray()  # freed first, and a new one: Arrow may still hold the old one
            self._buffer = bytearray(length)
        view = memoryview(self._buffer)
        count = 0
        while count < length:
            got = os.preadv(self._descriptor, [view[count:length]], position + count)
            if got == 0:
                check_identity(self.file, self._descriptor)
                raise InputChanged(
                    "input file became shorter while the job read it", details={"file": self.file.path}
                )
            count += got
        self.bytes_read += count
        return self._buffer, count, position + count >= self.file.size_bytes

    def release(self) -> None:
        self._buffer = bytearray()


class GzipSource(Source):
    """A gzip file (of one or more members) as one stream: positions only move forward."""

    def __init__(self, file: InputFile) -> None:
        super().__init__(file)
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
                    self._input = os.pread(self._descriptor, _GZIP_READ_BYTES, self.bytes_read)
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


def open_source(file: InputFile) -> Source:
    return GzipSource(file) if file.compression == "gzip" else FileSource(file)

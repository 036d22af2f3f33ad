"""A job's input files as an executor's readers see them: in place where they are here, or far.

A node with data roots says which it has below them. One without reads in place what lies at the client's path
if that has the same size, modification time and fingerprint: a shared file system, or the client's own
machine. Of others the bytes are asked for in pieces, and come from another node or the client. What a reader
says it will read is asked for before it is needed, INPUT_AHEAD_BYTES of a file at most, so that nobody waits
for a round trip.
"""

from __future__ import annotations

import bisect
import io
import os
import stat
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from cortex.formats.input_bytes import InputBytes, LocalBytes, changed
from cortex.job.data_names import is_data_name
from cortex.job.plan import InputFile
from cortex.limits import (
    INPUT_AHEAD_BYTES,
    INPUT_FILES_AHEAD,
    INPUT_FIND_BYTES,
    INPUT_KEPT_BYTES,
    INPUT_READ_BYTES,
    INPUT_STREAMS_MAX,
)
from cortex.storage.fingerprint import fingerprint_of
from cortex.tasks.input_link import Answer, InputLink
from cortex.wire.messages import InputLocated

if TYPE_CHECKING:
    import pyarrow as pa


class ClientInput:
    """One for each job of an executor; see `InputLink` for its arguments. `has_roots`: the node says what it
    has. `full`: files are compared as a whole, which a node does once, and an executor does not."""

    def __init__(
        self,
        socket_path: str,
        job: str,
        waiting: Callable[[], None],
        *,
        has_roots: bool = False,
        full: bool = False,
    ) -> None:
        self._link = InputLink(socket_path, job, waiting)
        self._has_roots = has_roots
        self._full = full
        self._places: dict[int, InputLocated | None] = {}
        """Where files are that were looked for; None: not here."""
        self.fetched = Fetched()
        self._heads: OrderedDict[int, Answer] = OrderedDict()
        """Beginnings that were asked for before their turn."""

    def open(self, file: InputFile) -> InputBytes:
        """An `Opener`. A file that only the client has is first looked at when it is read."""
        if file.client_file < 0:
            return LocalBytes(file)
        head = self._heads.pop(file.client_file, None)
        place = self._place(file)
        if place is None:
            return ClientBytes(file, self._link, head, self.fetched)
        if head is not None:
            self._link.forget([head])
        there = msgspec.structs.replace(file, modified_ns=place.modified_ns, inode=place.inode)
        return LocalBytes(there, place.path)

    def soon(self, file: InputFile) -> None:
        """A `Soon`: the file's beginning will be read by the next reader that opens it."""
        if file.client_file in self._heads or file.client_file < 0 or self._place(file) is not None:
            return
        while len(self._heads) > INPUT_FILES_AHEAD:  # those of a task that has failed
            self._link.forget([self._heads.popitem(last=False)[1]])
        self._heads[file.client_file] = self._link.ask(file.client_file, 0, _head_bytes(file))

    def close(self) -> None:
        self._link.close()

    def check(self, files: Iterable[InputFile]) -> None:
        """Raise what keeps a file from being read: of one that is elsewhere, what whoever has it says."""
        for file in files:
            found = self.open(file)
            try:
                found.check()
            finally:
                found.close()

    def _place(self, file: InputFile) -> InputLocated | None:
        """Where this machine has the file; None if it does not. Found out once."""
        if file.client_file not in self._places:
            if self._has_roots:
                found = self._link.locate(file.client_file)
                self._places[file.client_file] = found if found.path else None
            else:
                self._places[file.client_file] = None if self._full else _same_at_path(file)
        return self._places[file.client_file]


class Fetched:
    """Bytes that were taken from afar."""

    def __init__(self) -> None:
        self.node_bytes = 0
        self.client_bytes = 0

    @property
    def total(self) -> int:
        return self.node_bytes + self.client_bytes


def _same_at_path(file: InputFile) -> InputLocated | None:
    """The client's file on this machine, at its path, if that is the same one and can be read."""
    if is_data_name(file.path):
        return None
    try:
        here = os.stat(file.path)
        same = (here.st_size, here.st_mtime_ns) == (file.size_bytes, file.modified_ns)
        if not same or not stat.S_ISREG(here.st_mode):
            return None
        if fingerprint_of(file.path, here.st_size) != file.fingerprint:
            return None
    except OSError:
        return None
    return InputLocated(0, file.path, here.st_mtime_ns, here.st_ino)


def _head_bytes(file: InputFile) -> int:
    return min(INPUT_KEPT_BYTES, file.size_bytes)


class _Piece:
    __slots__ = ("answer", "data", "high", "low")

    def __init__(self, low: int, high: int, answer: Answer) -> None:
        self.low, self.high = low, high
        self.answer: Answer | None = answer
        self.data = b""
        """Once `answer` was taken, which is None then."""


class _Stream:
    """Neighbouring pieces around a place that is being read, from the oldest still held."""

    __slots__ = ("high", "pieces", "position")

    def __init__(self, offset: int) -> None:
        self.pieces: deque[_Piece] = deque()
        self.high = offset
        """Behind the last piece."""
        self.position = offset
        """Where the last read ended."""

    def goes_on(self, offset: int) -> bool:
        """Whether a read from `offset` on is this stream's next. (Not where another one's range begins, to
        whose edge this one has read ahead.)"""
        if offset == self.position:
            return True
        return bool(self.pieces) and self.pieces[0].low <= offset < self.high


class ClientBytes(InputBytes):
    """Of a file that the client or another node has. It is checked there with every read, once the bytes are
    read: so the last check comes after all of them. `head` is a read of the first bytes that was begun
    before; what comes is counted in `fetched`."""

    def __init__(
        self, file: InputFile, link: InputLink, head: Answer | None = None, fetched: Fetched | None = None
    ) -> None:
        super().__init__(file)
        self._fetched = fetched or Fetched()
        self._link = link
        self._checked = False
        self._streams: list[_Stream] = []
        """The one read last is the last."""
        self._expected: list[tuple[int, int]] = []
        self._ends: set[int] = set()
        if head is not None:
            stream = _Stream(0)
            stream.high = _head_bytes(file)
            stream.pieces.append(_Piece(0, stream.high, head))
            self._streams.append(stream)

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._expected = sorted((max(0, low), min(high, self.file.size_bytes)) for low, high in ranges)
        self._ends = {high for _, high in self._expected}

    def read_into(self, view: memoryview, offset: int) -> int:
        end = min(offset + len(view), self.file.size_bytes)
        if offset >= end:
            return 0
        stream, wanted = self._stream_at(offset), self._wanted(offset, end)
        try:
            self._fill(view, stream, offset, end, wanted)
        except BaseException:
            self._drop(stream)  # a reader may try again, with less memory
            raise
        if end == wanted and end in self._ends:
            self._drop(stream)
        return end - offset

    def without(self, byte: bytes, low: int, high: int) -> int:
        position = low
        while position < high:
            size = min(INPUT_FIND_BYTES, high - position)
            clear = self._link.wait(self._link.ask(self.file.client_file, position, 0, byte, size)).without
            position += clear
            self._checked = True
            if clear < size:
                break
        return position

    def native(self) -> pa.NativeFile:
        import pyarrow as pa

        return pa.PythonFile(_Seekable(self), mode="r")

    def check(self) -> None:
        if not self._checked:
            self._link.wait(self._link.ask(self.file.client_file, 0, 0))

    def close(self) -> None:
        for stream in list(self._streams):
            self._drop(stream)

    def _stream_at(self, offset: int) -> _Stream:
        found = next((each for each in reversed(self._streams) if each.goes_on(offset)), None)
        if found is None:
            found = _Stream(offset)
            if len(self._streams) >= INPUT_STREAMS_MAX:
                self._drop(self._streams[0])
        else:
            self._streams.remove(found)
        self._streams.append(found)
        return found

    def _wanted(self, offset: int, end: int) -> int:
        """How far to read ahead: not beyond what is expected to be read after `offset`."""
        place = bisect.bisect_right(self._expected, offset, key=lambda each: each[0]) - 1
        range_end = self._expected[place][1] if place >= 0 else 0
        others = sum(stream.high - stream.position for stream in self._streams[:-1])
        ahead = min(INPUT_AHEAD_BYTES // len(self._streams), INPUT_AHEAD_BYTES - others)
        return max(end, min(range_end, end + ahead))

    def _ask(self, stream: _Stream, position: int, end: int, wanted: int) -> None:
        """Have pieces on their way: what is read now, and ahead of it once half of that is used up."""
        if stream.high >= end and (stream.high - end) * 2 >= wanted - end:
            return
        most = position + INPUT_AHEAD_BYTES + INPUT_READ_BYTES  # of a large read, the rest as it comes
        while stream.high < min(wanted, most):
            high = min(stream.high + INPUT_READ_BYTES, wanted)
            answer = self._link.ask(self.file.client_file, stream.high, high - stream.high)
            stream.pieces.append(_Piece(stream.high, high, answer))
            stream.high = high

    def _fill(self, view: memoryview, stream: _Stream, offset: int, end: int, wanted: int) -> None:
        position = offset
        while position < end:
            self._ask(stream, position, end, wanted)
            piece = next(piece for piece in stream.pieces if piece.high > position)
            data, stop = memoryview(self._data(piece)), min(piece.high, end)
            view[position - offset : stop - offset] = data[position - piece.low : stop - piece.low]
            stream.position = position = stop
            self._trim(stream, position)

    def _data(self, piece: _Piece) -> bytes:
        if piece.answer is not None:
            answer = self._link.wait(piece.answer)
            piece.data, piece.answer = answer.data, None
            if answer.from_node:
                self._fetched.node_bytes += len(piece.data)
            else:
                self._fetched.client_bytes += len(piece.data)
            self._checked = True
            if len(piece.data) != piece.high - piece.low:
                raise changed(self.file.path, "it has become shorter")
        return piece.data

    def _drop(self, stream: _Stream) -> None:
        self._streams.remove(stream)
        self._forget(stream.pieces)

    def _trim(self, stream: _Stream, position: int) -> None:
        """Let go of what was read, but for the last: the next block begins with the record that was cut."""
        low = position - INPUT_KEPT_BYTES
        while stream.pieces and stream.pieces[0].high <= low:
            self._forget([stream.pieces.popleft()])
        if stream.pieces:
            first = stream.pieces[0]
            if first.answer is None and low - first.low > INPUT_KEPT_BYTES and first.high <= position:
                first.data, first.low = first.data[low - first.low :], low

    def _forget(self, pieces: Iterable[_Piece]) -> None:
        self._link.forget([piece.answer for piece in pieces if piece.answer is not None])


class _Seekable(io.RawIOBase):
    """As Arrow reads a Python file."""

    def __init__(self, data: InputBytes) -> None:
        self._data = data
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = (0, self._position, self._data.file.size_bytes)[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._data.file.size_bytes - self._position)
        data = self._data.read(left if size < 0 else min(size, left), self._position)
        self._position += len(data)
        return data

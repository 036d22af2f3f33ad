"""An executor's way to files that the job's client has: their bytes, through the node, some ahead.

A file that this machine has as well (the same path, size and modification time: a shared file system, or the
client's own machine) is read in place; the others are asked for in pieces. What a reader says it will read is
asked for before it is needed, INPUT_AHEAD_BYTES of a file at most, so that nobody waits for a round trip.

A read has no time limit: while the client is away it waits, and says so to who watches over the task.
"""

from __future__ import annotations

import bisect
import io
import itertools
import os
import socket
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from cortex.errors import CortexError, InputChanged, InputError, InternalError, from_report
from cortex.formats.input_bytes import InputBytes, LocalBytes, changed
from cortex.job.plan import InputFile
from cortex.limits import (
    INPUT_AHEAD_BYTES,
    INPUT_FIND_BYTES,
    INPUT_KEPT_BYTES,
    INPUT_READ_BYTES,
    INPUT_STREAMS_MAX,
    INPUT_WAIT_S,
    KIB,
)
from cortex.wire import messages
from cortex.wire.framing import BlockingConnection
from cortex.wire.messages import FromInputDoor, InputHello, InputUnread, ReadInput

if TYPE_CHECKING:
    import pyarrow as pa

_RECEIVER_STACK_BYTES: Final = 256 * KIB  # it calls little; the default of 8 MB counts against RLIMIT_DATA


class _Answer:
    """What a read brought, once it is there."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        self.found: messages.InputBytes | InputUnread | None = None


class ClientInput:
    """One for each job of an executor. `waiting()` is called every INPUT_WAIT_S of a read that waits.

    The node is dialed with the first read; what it sends is taken by a thread, so that the node need not hold
    what an executor has asked for and not come to yet.
    """

    def __init__(self, socket_path: str, job: str, waiting: Callable[[], None]) -> None:
        self._socket_path = socket_path
        self._job = job
        self._still_waiting = waiting
        self._numbers = itertools.count(1)
        self._connection: BlockingConnection[FromInputDoor] | None = None
        self._changed = threading.Condition()
        self._answers: dict[int, _Answer] = {}
        self._ended: BaseException | None = None

    def open(self, file: InputFile) -> InputBytes:
        """An `Opener`. A file of the client's is first looked at when it is read."""
        if file.client_file < 0:
            return LocalBytes(file)
        return _in_place(file) or ClientBytes(file, self)

    def ask(
        self, file: InputFile, offset: int, length: int, find: bytes = b"", find_bytes: int = 0
    ) -> _Answer:
        """Begin a read, of INPUT_READ_BYTES at most (see `ReadInput`)."""
        connection, answer, number = self._connected(), _Answer(), next(self._numbers)
        with self._changed:
            self._answers[number] = answer
        try:
            connection.send(ReadInput(number, self._job, file.client_file, offset, length, find, find_bytes))
        except OSError as error:
            raise self._gone(error) from error
        return answer

    def wait(self, answer: _Answer) -> bytes:
        """Its bytes."""
        return self.answered(answer).data

    def answered(self, answer: _Answer) -> messages.InputBytes:
        """Raises the typed error of what kept the client from reading them."""
        with self._changed:
            while answer.found is None:
                if self._ended is not None:
                    raise self._gone(self._ended) from self._ended
                if not self._changed.wait(INPUT_WAIT_S):
                    self._still_waiting()
        if isinstance(answer.found, InputUnread):
            raise from_report(answer.found.error)
        return answer.found

    def forget(self, answers: Iterable[_Answer]) -> None:
        """Nobody will wait for these."""
        unwanted = set(answers)
        if not unwanted:
            return
        with self._changed:
            for number in [number for number, each in self._answers.items() if each in unwanted]:
                del self._answers[number]

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _connected(self) -> BlockingConnection[FromInputDoor]:
        if self._connection is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection = BlockingConnection[FromInputDoor](sock, FromInputDoor)
            try:
                sock.connect(self._socket_path)
                connection.send(InputHello(self._job))
            except OSError as error:
                connection.close()
                raise self._gone(error) from error
            self._connection = connection
            threading.stack_size(_RECEIVER_STACK_BYTES)
            threading.Thread(target=self._receive, args=(connection,), name="input", daemon=True).start()
            threading.stack_size(0)
        return self._connection

    def _receive(self, connection: BlockingConnection[FromInputDoor]) -> None:
        """In a thread, until the node closes the link or the executor ends."""
        ended: BaseException = ConnectionResetError("the node closed the link")
        try:
            while (message := connection.receive()) is not None:
                with self._changed:
                    answer = self._answers.pop(message.read, None)
                    if answer is not None:
                        answer.found = message
                        self._changed.notify_all()
        except BaseException as error:  # raised in the task's thread, where somebody waits
            ended = error
        with self._changed:
            self._ended = ended
            self._changed.notify_all()

    def _gone(self, error: BaseException) -> BaseException:
        if isinstance(error, CortexError | MemoryError):
            return error
        return InternalError(
            f"the way to the client's files is cut off: {error}",
            cure="the node's log may say why",
            signature="client-input",
        )


def _in_place(file: InputFile) -> InputBytes | None:
    """The same file on this machine, if it is there and can be read."""
    try:
        here = os.stat(file.path)
        if not stat.S_ISREG(here.st_mode):
            return None
        if (here.st_size, here.st_mtime_ns) != (file.size_bytes, file.modified_ns):
            return None
        return LocalBytes(file)
    except (OSError, InputError, InputChanged):
        return None


class _Piece:
    __slots__ = ("answer", "data", "high", "low")

    def __init__(self, low: int, high: int, answer: _Answer) -> None:
        self.low, self.high = low, high
        self.answer = answer
        self.data: bytes | None = None


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
    """Of a file that the client has. It is checked there with every read."""

    def __init__(self, file: InputFile, client: ClientInput) -> None:
        super().__init__(file)
        self._client = client
        self._streams: list[_Stream] = []
        """The one read last is the last."""
        self._expected: list[tuple[int, int]] = []
        self._ends: set[int] = set()

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._expected = sorted((max(0, low), min(high, self.file.size_bytes)) for low, high in ranges)
        self._ends = {high for _, high in self._expected}

    def read_into(self, view: memoryview, offset: int) -> int:
        end = min(offset + len(view), self.file.size_bytes)
        if offset >= end:
            return 0
        stream, wanted = self._stream_at(offset), self._wanted(offset, end)
        position = offset
        while position < end:
            self._ask(stream, position, end, wanted)
            piece = next(piece for piece in stream.pieces if piece.high > position)
            data, stop = self._data(piece), min(piece.high, end)
            view[position - offset : stop - offset] = memoryview(data)[
                position - piece.low : stop - piece.low
            ]
            stream.position = position = stop
            self._trim(stream, position)
        if position == wanted and position in self._ends:
            self._streams.remove(stream)
            self._forget(stream.pieces)
        return end - offset

    def without(self, byte: bytes, low: int, high: int) -> int:
        position = low
        while position < high:
            size = min(INPUT_FIND_BYTES, high - position)
            clear = self._client.answered(self._client.ask(self.file, position, 0, byte, size)).without
            position += clear
            if clear < size:
                break
        return position

    def native(self) -> pa.NativeFile:
        import pyarrow as pa

        return pa.PythonFile(_Seekable(self), mode="r")

    def check(self) -> None:
        self._client.wait(self._client.ask(self.file, 0, 0))

    def close(self) -> None:
        while self._streams:
            self._forget(self._streams.pop().pieces)

    def _stream_at(self, offset: int) -> _Stream:
        found = next((each for each in reversed(self._streams) if each.goes_on(offset)), None)
        if found is None:
            found = _Stream(offset)
            if len(self._streams) >= INPUT_STREAMS_MAX:
                self._forget(self._streams.pop(0).pieces)
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
            answer = self._client.ask(self.file, stream.high, high - stream.high)
            stream.pieces.append(_Piece(stream.high, high, answer))
            stream.high = high

    def _data(self, piece: _Piece) -> bytes:
        if piece.data is None:
            data = self._client.wait(piece.answer)
            if len(data) != piece.high - piece.low:
                raise changed(self.file.path, "it has become shorter")
            piece.data = data
        return piece.data

    def _trim(self, stream: _Stream, position: int) -> None:
        """Let go of what was read, but for the last: the next block begins with the record that was cut."""
        low = position - INPUT_KEPT_BYTES
        while stream.pieces and stream.pieces[0].high <= low:
            self._forget([stream.pieces.popleft()])
        if stream.pieces:
            first = stream.pieces[0]
            if first.data is not None and low - first.low > INPUT_KEPT_BYTES and first.high <= position:
                first.data, first.low = first.data[low - first.low :], low

    def _forget(self, pieces: Iterable[_Piece]) -> None:
        self._client.forget([piece.answer for piece in pieces if piece.data is None])


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

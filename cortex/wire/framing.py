"""Frames: a 4-byte big-endian length, then one message as msgpack. Pure: bytes in, messages out.

`encode_frame` makes a frame, `FrameDecoder` takes bytes however the transport cut them, and
`BlockingConnection` does both over a plain socket for the processes without a reactor (client and
executors). Decoding is the check: a frame over the limit, or one whose body is not exactly one
message of the link's union, raises ProtocolError, and the connection is of no more use.

A receiver starts with a small limit (`limits.HELLO_BYTES_MAX`) and raises it when it knows its peer.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from cortex.errors import ProtocolError
from cortex.limits import FRAME_BYTES_MAX, KIB
from cortex.units import format_bytes
from cortex.wire.messages import Message

HEADER = struct.Struct(">I")
_RECEIVE_BYTES = 256 * KIB  # one recv: as much as a unix socket buffers, so large frames need few calls
_ENCODER = msgspec.msgpack.Encoder()

M = TypeVar("M")


def encode_frame(message: Message, max_bytes: int = FRAME_BYTES_MAX) -> bytes:
    """The frame of one message. Raises ProtocolError when its receiver would refuse its size."""
    body = _ENCODER.encode(message)
    if len(body) > max_bytes:
        raise ProtocolError(
            f"a {type(message).__name__} message of {format_bytes(len(body))} is larger than a frame"
            f" may be ({format_bytes(max_bytes)})",
            cure="make the job's code smaller (large data in side files: `files` and self.file),"
            " or take larger splits, so that there are fewer tasks",
        )
    return HEADER.pack(len(body)) + body


class _Tag(msgspec.Struct):
    """As much of a message as says which one it is."""

    type: str


class FrameDecoder(Generic[M]):
    """Bytes to messages of one union; any cutting of the same bytes gives the same messages.

    `union` is the link's union of messages; `max_bytes` bounds a body. Bytes are copied once into
    one buffer and decoded from it in place: the work is linear in the bytes, however they come.
    `explain(name)` may give a better error for a message that is called `name` and is not of the union.
    """

    def __init__(
        self,
        union: Any,
        max_bytes: int = FRAME_BYTES_MAX,
        explain: Callable[[str], ProtocolError | None] | None = None,
    ) -> None:
        self._explain = explain
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(union)
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._failed: ProtocolError | None = None

    def set_limit(self, max_bytes: int) -> None:
        """The limit of every frame not yet handed out, those already received included."""
        self._max_bytes = max_bytes

    @property
    def at_boundary(self) -> bool:
        """True when no part of a frame is held: the only place where an end is a clean one."""
        return not self._buffer

    @property
    def missing_bytes(self) -> int:
        """How many bytes to feed for one more message, or to know how long it is: at least 1, once every
        message is taken. For a stream in which other bytes stand between frames."""
        have = len(self._buffer)
        if have < HEADER.size:
            return HEADER.size - have
        (length,) = HEADER.unpack_from(self._buffer)
        return max(1, HEADER.size + int(length) - have)

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[M]:
        """Take `data` at once; hand out the messages complete by now, one at a time.

        One at a time, so that the reader's answer to one (`set_limit` after a hello) counts for the
        next, and so that the messages before a bad frame are seen before it raises ProtocolError.
        Messages not taken from the iterator come with the next `feed`.
        """
        self._buffer += data
        return self._messages()

    def _messages(self) -> Iterator[M]:
        while True:
            if self._failed is not None:
                raise self._failed
            buffer = self._buffer
            if len(buffer) < HEADER.size:
                return
            (length,) = HEADER.unpack_from(buffer)
            if length > self._max_bytes:
                raise self._fail(
                    f"a frame of {format_bytes(length)} came where at most"
                    f" {format_bytes(self._max_bytes)} are taken"
                )
            end = HEADER.size + length
            if len(buffer) < end:
                return
            with memoryview(buffer) as view, view[HEADER.size : end] as body:
                message = self._decode(body)
            # Deleting a bytearray's front moves its start, not its bytes; a new one gives a large
            # frame's memory back.
            if len(buffer) == end:
                self._buffer = bytearray()
            else:
                del buffer[:end]
            yield message

    def _decode(self, body: memoryview) -> M:
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            explained = self._explained(body)
            if explained is not None:
                self._buffer, self._failed = bytearray(), explained
                raise explained from error
            raise self._fail(f"a frame of {format_bytes(len(body))} is no message: {error}") from error

    def _explained(self, body: memoryview) -> ProtocolError | None:
        if self._explain is None:
            return None
        try:
            return self._explain(msgspec.msgpack.decode(body, type=_Tag).type)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _fail(self, message: str) -> ProtocolError:
        self._buffer = bytearray()
        self._failed = ProtocolError(
            message, cure="both ends must be the same version of cortex; restart the older one"
        )
        return self._failed


class StreamSocket(Protocol):
    """As much of a connected stream socket as a link needs: a socket's, or `blocking_tls.TlsSocket`'s."""

    def setblocking(self, flag: bool, /) -> None: ...
    def fileno(self) -> int: ...
    def sendall(self, data: bytes, /) -> None: ...
    def recv_into(self, buffer: bytearray, /) -> int:
        """0 at the end; BlockingIOError when what came was nothing for us, and there may be more later."""
        ...

    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


class BlockingConnection(Generic[M]):
    """A link over a connected stream socket, for processes without a reactor. Owns the socket.

    One thread may receive while others send: a message is sent whole under a lock.
    """

    def __init__(self, sock: StreamSocket, receive_union: Any, max_bytes: int = FRAME_BYTES_MAX) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._decoder: FrameDecoder[M] = FrameDecoder(receive_union, max_bytes)
        self._send_lock = threading.Lock()
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Message) -> None:
        """Send one message, waiting while the peer does not read.

        Raises OSError (BrokenPipeError, ConnectionResetError) when the peer is gone.
        """
        frame = encode_frame(message)
        with self._send_lock:
            self._sock.sendall(frame)

    def receive(self, timeout: float | None = None) -> M | None:
        """The next message; None when the peer has closed the connection between two frames.

        Raises TimeoutError when none is complete after `timeout` seconds (what came is kept), and
        ProtocolError for a bad frame or an end inside one. A reset counts as an end: it is what a
        killed peer leaves behind when it had not read everything.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            for message in self._decoder.feed(b""):  # what an earlier recv brought along
                return message
            if deadline is not None:
                left_s = max(0.0, deadline - time.monotonic())
                if not self._poll.poll(left_s * 1000):
                    raise TimeoutError(f"no message in {timeout} s")
            try:
                count = self._sock.recv_into(self._buffer)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                count = 0
            if count == 0:
                if self._decoder.at_boundary:
                    return None
                raise ProtocolError("the connection ended inside a message: the peer process ended")
            with memoryview(self._buffer) as view:
                self._decoder.feed(view[:count])

    def close(self) -> None:
        """Close the socket; a second call does nothing. A receive in another thread then ends."""
        with contextlib.suppress(OSError):  # the peer closed first, or we did: nothing is left to end
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def __enter__(self) -> BlockingConnection[M]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

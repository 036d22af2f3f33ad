"""A node's side of the output's way to the client: staged parts, read and sent as far as credit reaches.

A part is read in chunks by the node's own pool of threads, one chunk ahead of nothing: the next is read
when the last was sent and credit is left. So a node holds one chunk a stream, whoever reads slowly.

All methods are called on the reactor's thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cortex.errors import CortexError, ResultsLost
from cortex.limits import PART_CHUNK_BYTES
from cortex.wire.messages import FromNode, PartChunk, PartUnread, SendPart


@dataclass(eq=False)
class _Stream:
    number: int
    path: str
    credit_bytes: int
    offset: int = 0
    reading: bool = False
    dropped: bool = False


class PartStreams:
    """`in_thread(function, *arguments)` runs one in a thread, `from_thread` comes back from there."""

    def __init__(
        self,
        node: str,
        send: Callable[[FromNode], None],
        in_thread: Callable[..., Any],
        from_thread: Callable[..., Any],
    ) -> None:
        self._node = node
        self._send = send
        self._in_thread = in_thread
        self._from_thread = from_thread
        self._streams: dict[int, _Stream] = {}

    def begin(self, message: SendPart, folder: str | None) -> None:
        """Send the part, which lies in `folder` under its own name. None: its job is not here any more."""
        path = os.path.join(folder or "", message.staged_as)
        stream = _Stream(message.stream, path, message.credit_bytes, message.offset)
        self._streams[stream.number] = stream
        if folder is None:
            self._end(stream, ResultsLost("the node has dropped the result", cure="run the job again"))
            return
        if os.path.basename(message.staged_as) != message.staged_as:
            self._end(stream, ResultsLost(f"{message.staged_as!r} is no name of a part"))
            return
        self._go_on(stream)

    def credit(self, number: int, credit_bytes: int) -> None:
        stream = self._streams.get(number)
        if stream is not None:  # else it has ended: the last credits come after it
            stream.credit_bytes += credit_bytes
            self._go_on(stream)

    def drop(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.dropped = True

    def drop_all(self) -> None:
        for number in list(self._streams):
            self.drop(number)

    def _go_on(self, stream: _Stream) -> None:
        if not stream.reading and stream.credit_bytes > 0:
            stream.reading = True
            self._in_thread(self._read, stream, min(PART_CHUNK_BYTES, stream.credit_bytes))

    def _read(self, stream: _Stream, size: int) -> None:
        """In a thread."""
        try:
            with open(stream.path, "rb", buffering=0) as file:
                file.seek(stream.offset)
                data = file.read(size)
                last = stream.offset + len(data) >= os.fstat(file.fileno()).st_size
        except OSError as error:
            found = ResultsLost(
                f"a part of the result cannot be read: {error.strerror or error}",
                cure="run the job again",
                details={"node": self._node, "file": stream.path},
            )
            self._from_thread(self._end, stream, found)
            return
        self._from_thread(self._was_read, stream, data, last)

    def _was_read(self, stream: _Stream, data: bytes, last: bool) -> None:
        stream.reading = False
        if stream.dropped:
            return
        stream.offset += len(data)
        stream.credit_bytes -= len(data)
        if last:
            del self._streams[stream.number]
        self._send(PartChunk(self._node, stream.number, data, last))
        if not last:
            self._go_on(stream)

    def _end(self, stream: _Stream, error: CortexError) -> None:
        if not stream.dropped and self._streams.pop(stream.number, None) is not None:
            self._send(PartUnread(self._node, stream.number, error.report()))

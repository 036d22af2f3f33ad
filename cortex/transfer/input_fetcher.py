"""Reads of input that lies on other nodes, straight from them: one connection a holder, over the data port.

Who asks is anything hashable (an executor's link). What is asked of one holder at once is bounded, and its
askers take turns (`ReadQueue`). A holder that cannot be reached, ends the connection or is silent for
INPUT_STALL_S while bytes are due gives everything back: `failed(holder, reads, error)`. Which holder is
asked, and what follows, is the caller's.

All methods and callbacks are on the reactor's thread.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from cortex.errors import CortexError, ProtocolError, Unreachable
from cortex.limits import (
    FETCH_CONNECT_S_MAX,
    FETCH_RECEIVE_BYTES,
    INPUT_HOLDER_BYTES,
    INPUT_HOLDER_READS_MAX,
    INPUT_READ_BYTES,
    INPUT_STALL_S,
    KIB,
    TRANSFER_TICK_S,
)
from cortex.transfer.read_queue import ReadQueue
from cortex.wire.framing import FrameDecoder, encode_frame
from cortex.wire.messages import FromInputServer, InputBytes, InputUnread, ReadInput

Asker = Hashable
_ANSWER_BYTES_MAX = INPUT_READ_BYTES + 64 * KIB


class InputFetcher:
    """`connect(holder)` gives an endpoint, `check(holder, transport)` raises for a peer that is another one.
    `answered(holder, asker, read, answer)`: the answer has the asker's number."""

    def __init__(
        self,
        reactor: Any,
        clock: Callable[[], float],
        connect: Callable[[str], Any],
        check: Callable[[str, Any], None],
        answered: Callable[[str, Any, ReadInput, InputBytes | InputUnread], None],
        failed: Callable[[str, Sequence[tuple[Any, ReadInput]], CortexError], None],
    ) -> None:
        self.reactor = reactor
        self.clock = clock
        self.connect = connect
        self.check = check
        self.answered = answered
        self.failed = failed
        self._holders: dict[str, _Holder] = {}
        self._timer: Any = None
        self._stopping = False

    def ask(self, holder: str, asker: Asker, read: ReadInput) -> None:
        found = self._holders.get(holder)
        if found is None:
            found = self._holders[holder] = _Holder(self, holder)
            found.dial()
        found.queue.ask(asker, read)
        if self._timer is None or not self._timer.active():
            self._timer = self.reactor.callLater(TRANSFER_TICK_S, self._tick)

    def load(self, holder: str) -> int:
        """Bytes that are asked of it."""
        found = self._holders.get(holder)
        return 0 if found is None else found.queue.bytes_asked

    def drop(self, asker: Asker) -> None:
        for holder in self._holders.values():
            holder.queue.drop(asker)

    def stop(self) -> None:
        self._stopping = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        for holder in list(self._holders.values()):
            holder.end()
        self._holders.clear()

    def _tick(self) -> None:
        for holder in list(self._holders.values()):
            holder.look()
        if any(holder.queue.bytes_asked or holder.queue.unanswered for holder in self._holders.values()):
            self._timer = self.reactor.callLater(TRANSFER_TICK_S, self._tick)

    def lost(self, holder: _Holder, error: CortexError) -> None:
        if self._holders.get(holder.name) is not holder:
            return
        del self._holders[holder.name]
        holder.end()
        reads = holder.queue.drain()
        if reads and not self._stopping:
            self.failed(holder.name, reads, error)


class _Holder:
    """A node and the connection to it."""

    def __init__(self, fetcher: InputFetcher, name: str) -> None:
        self.name = name
        self._fetcher = fetcher
        self.queue: ReadQueue[Any] = ReadQueue(
            itertools.count(1), self._send, INPUT_HOLDER_BYTES, up=False, reads_max=INPUT_HOLDER_READS_MAX
        )
        self._connection: _Connection | None = None
        self._connecting: Deferred[Any] | None = None
        self.heard_at = fetcher.clock()

    def dial(self) -> None:
        factory = Factory.forProtocol(lambda: _Connection(self))
        factory.noisy = False
        connecting = maybeDeferred(lambda: self._fetcher.connect(self.name).connect(factory))
        self._connecting = connecting
        timer = self._fetcher.reactor.callLater(FETCH_CONNECT_S_MAX, connecting.cancel)

        def made(connection: _Connection) -> None:
            timer.cancel()
            if self._connecting is None:
                connection.transport.abortConnection()
                return
            self._connecting, self._connection = None, connection
            self.heard_at = self._fetcher.clock()
            self.queue.up()

        def not_made(failure: Failure) -> None:
            if timer.active():
                timer.cancel()
            if self._connecting is not None:
                self._connecting = None
                said = f"node {self.name} cannot be reached: {failure.getErrorMessage()}"
                self._fetcher.lost(self, Unreachable(said))

        connecting.addCallbacks(made, not_made)

    def look(self) -> None:
        """From time to time: a peer that owes bytes and sends none is stuck."""
        still_s = self._fetcher.clock() - self.heard_at
        if self._connection is not None and self.queue.unanswered and still_s >= INPUT_STALL_S:
            said = f"node {self.name} sent nothing for {INPUT_STALL_S:g} s"
            self._fetcher.lost(self, Unreachable(said))

    def heard(self, data: FromInputServer) -> None:
        found = self.queue.answered(data.read)
        if found is None:
            return  # nobody wants it any more
        asker, read = found
        if isinstance(data, InputBytes):
            if len(data.data) > read.length:
                raise ProtocolError(f"node {self.name} sent more bytes than were asked for")
            answer: InputBytes | InputUnread = InputBytes(read.read, data.data, data.without, from_node=True)
        else:
            answer = InputUnread(read.read, data.error)
        self._fetcher.answered(self.name, asker, read, answer)

    def identify(self, transport: Any) -> None:
        self._fetcher.check(self.name, transport)

    def now(self) -> None:
        self.heard_at = self._fetcher.clock()

    def lost(self, error: CortexError) -> None:
        self._fetcher.lost(self, error)

    def end(self) -> None:
        connecting, self._connecting = self._connecting, None
        connection, self._connection = self._connection, None
        if connecting is not None:
            connecting.cancel()
        if connection is not None:
            connection.transport.abortConnection()

    def _send(self, read: ReadInput) -> None:
        assert self._connection is not None
        if not self.queue.bytes_asked:
            self.now()
        self._connection.transport.write(encode_frame(read))


class _Connection(Protocol):
    transport: Any

    def __init__(self, holder: _Holder) -> None:
        self._holder = holder
        self._checked = False
        self._decoder: FrameDecoder[FromInputServer] = FrameDecoder(FromInputServer, _ANSWER_BYTES_MAX)

    def connectionMade(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self.transport.setTcpNoDelay(True)
        self.transport.bufferSize = FETCH_RECEIVE_BYTES

    def dataReceived(self, data: bytes) -> None:
        self._holder.now()
        try:
            if not self._checked:
                self._holder.identify(self.transport)
                self._checked = True
            for answer in self._decoder.feed(data):
                self._holder.heard(answer)
        except CortexError as error:
            self._holder.lost(error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._holder.lost(Unreachable(f"the connection ended: {reason.getErrorMessage()}"))

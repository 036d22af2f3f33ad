"""One connection to a holder of segments: asks, and takes the answers apart. The fetcher decides."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from cortex.errors import CortexError, FetchFailed, ProtocolError, from_report
from cortex.limits import FETCH_RECEIVE_BYTES
from cortex.transfer.fetch_queue import Ask, Wanted
from cortex.transfer.landing import Landing
from cortex.wire.framing import encode_frame
from cortex.wire.messages import FetchSegment, FromSegmentServer, SegmentHeader, SegmentLater
from cortex.wire.segment_framing import SegmentDecoder

if TYPE_CHECKING:
    from cortex.transfer.segment_fetcher import SegmentFetcher


class FetchConnection(Protocol):
    """Connection `number` of the fetcher's queue. `heard_at` is the time of the last byte that was due."""

    transport: Any

    def __init__(self, fetcher: SegmentFetcher, number: int, holder: str) -> None:
        self.number = number
        self._holder = holder
        self._checked = False
        self.heard_at = 0.0
        self._fetcher = fetcher
        self._decoder = SegmentDecoder()
        self._asked: deque[tuple[int, Wanted]] = deque()
        self._landing: Landing | None = None
        self._covers: tuple[int, ...] = ()
        """Requests that what is landing answers as well."""
        self._paused = False
        self._ended = False

    # --- what the fetcher calls ---

    @property
    def waiting(self) -> bool:
        """True while bytes are due."""
        return bool(self._asked) and not self._paused

    def ask(self, ask: Ask) -> None:
        if not self._asked:
            self.heard_at = self._fetcher.clock()
        wanted, others = ask.wanted, tuple(each.attempt for each in ask.others)
        self._asked.extend(enumerate((wanted, *ask.others), ask.request))
        message = FetchSegment(ask.request, wanted.job, wanted.attempt, wanted.partition, others, ask.ahead)
        self.transport.write(encode_frame(message))

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            self.transport.pauseProducing()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self.heard_at = self._fetcher.clock()
            self.transport.resumeProducing()

    def abort(self) -> None:
        """End it now, and say nothing more of it."""
        if self._ended:
            return
        self._end()
        self.transport.abortConnection()

    # --- what Twisted calls ---

    def connectionMade(self) -> None:
        self.heard_at = self._fetcher.clock()
        with contextlib.suppress(OSError, AttributeError):  # a unix socket has nothing to delay
            self.transport.setTcpNoDelay(True)
        self.transport.bufferSize = FETCH_RECEIVE_BYTES  # without TLS, whose records are 16 KiB anyway

    def dataReceived(self, data: bytes) -> None:
        if self._ended:
            return
        self.heard_at = self._fetcher.clock()
        try:
            if not self._checked:
                self._fetcher.check(self._holder, self.transport)
                self._checked = True
            for item in self._decoder.feed(data):
                if isinstance(item, bytes):
                    self._take(item)
                else:
                    self._answer(item)
                if self._ended:
                    return
        except CortexError as error:
            self.abort()
            self._fetcher.connection_lost(self, error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._ended:
            return
        self._end()
        error = FetchFailed(f"the connection ended: {reason.getErrorMessage()}")
        self._fetcher.connection_lost(self, error)

    # --- inside ---

    def _answer(self, answer: FromSegmentServer) -> None:
        if not self._asked or answer.request != self._asked[0][0]:
            raise ProtocolError(f"an answer came to request {answer.request}, which was not next")
        request, wanted = self._asked[0]
        if isinstance(answer, SegmentHeader):
            others = self._take_covered(wanted, answer.covers)
            self._covers = answer.covers
            self._landing = self._fetcher.begin(request, wanted, answer.size_bytes, others)
            if not answer.size_bytes:
                self._take(b"")
        elif isinstance(answer, SegmentLater):
            self._asked.popleft()
            self._fetcher.later(request)
        else:
            self._asked.popleft()
            self._fetcher.refused(request, from_report(answer.error))

    def _take_covered(self, wanted: Wanted, covers: tuple[int, ...]) -> list[Wanted]:
        """What a combined segment answers besides the first: asked for with it, and waited for no more here.
        Until all bytes have come, the queue counts it as asked for."""
        if not covers:
            return []
        some = iter(self._asked)
        next(some)  # the first itself
        found = {number: other for number, other in some if number in covers}
        alike = all(
            other.combines and (other.job, other.partition) == (wanted.job, wanted.partition)
            for other in (wanted, *found.values())
        )
        if len(found) != len(covers) or not alike:
            raise ProtocolError("a segment stands for some that were not asked for with it")
        self._asked = deque(each for each in self._asked if each[0] not in found)
        return [found[number] for number in covers]

    def _take(self, data: bytes) -> None:
        landing = self._landing
        assert landing is not None
        landing.add(data)
        if not landing.missing_bytes:
            self._landing = None
            covers, self._covers = self._covers, ()
            self._fetcher.received(self._asked.popleft()[0], covers)
        landing.write_on()

    def _end(self) -> None:
        self._ended = True
        if self._landing is not None:
            self._landing.abandon()
            self._landing = None


def stalled(seconds: float) -> CortexError:
    return FetchFailed(f"no byte came for {seconds:g} s: the node or its disk is stuck, or the network is")

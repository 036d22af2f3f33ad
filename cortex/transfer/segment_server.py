"""Serves the segments of this node's map outputs to other nodes.

Each connection is a push producer of its transport. What the page cache holds is read as it is sent
(`Filesystem.read_cached`, which never waits: map outputs were written a moment ago). All else is read by
a bounded pool of threads, one batch ahead: while one is being sent, the next is read. A batch is
`batch_bytes`, less when all connections together hold much, so that what is held in memory is bounded
whoever reads slowly. Requests are answered in order.

A peer is known by `identify(transport)`, called when its first bytes come, which TLS lets through only
after a handshake: it gives the peer's name or raises CortexError (and, behind `listen_tls`, tells the
port that this is no stranger). `cut_off` ends the connections of a peer that is out. Peers never send
paths: a request names a job that was registered here and one of its map attempts. A peer that breaks a
rule, asks for too much at once, says nothing or takes nothing for too long is cut off; fetchers try again.

All methods are called on the reactor's thread.
"""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from cortex.errors import CortexError, InternalError, ProtocolError
from cortex.limits import (
    HELLO_S_MAX,
    SEGMENT_REQUEST_BYTES_MAX,
    SERVE_BATCH_BYTES,
    SERVE_BATCH_BYTES_MIN,
    SERVE_BYTES_MAX,
    SERVE_CACHED_BYTES,
    SERVE_CONNECTIONS_MAX,
    SERVE_CONNECTIONS_PER_PEER,
    SERVE_IDLE_S,
    SERVE_READERS,
    SERVE_REQUESTS_MAX,
    SERVE_STALL_S,
    TRANSFER_TICK_S,
)
from cortex.storage.filesystem import Filesystem
from cortex.transfer.answers import Answers, InputReads, ServedJob
from cortex.wire.framing import FrameDecoder
from cortex.wire.messages import FetchSegment, ReadInput, ToSegmentServer

_log = Logger()


@dataclass(frozen=True)
class ServePolicy:
    batch_bytes: int = SERVE_BATCH_BYTES
    batch_bytes_min: int = SERVE_BATCH_BYTES_MIN
    cached_bytes: int = SERVE_CACHED_BYTES
    bytes_max: int = SERVE_BYTES_MAX
    readers: int = SERVE_READERS
    connections_max: int = SERVE_CONNECTIONS_MAX
    connections_per_peer: int = SERVE_CONNECTIONS_PER_PEER
    requests_max: int = SERVE_REQUESTS_MAX
    first_request_s_max: float = HELLO_S_MAX
    stall_s: float = SERVE_STALL_S
    idle_s: float = SERVE_IDLE_S


class SegmentServer(Factory):
    """See the module. It is the factory of its connections: listen with it, plain or inside TLS.

    `threads` is for tests: something with `callInThread`, in place of the pool. `inputs()` makes what answers
    a connection's reads of input; None: this node has none.
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        clock: Callable[[], float],
        fs: Filesystem,
        identify: Callable[[Any], str],
        policy: ServePolicy | None = None,
        threads: Any = None,
        inputs: Callable[[], InputReads] | None = None,
    ) -> None:
        self.inputs = inputs
        self.reactor = reactor
        self.clock = clock
        self.fs = fs
        self.identify = identify
        self.policy = policy or ServePolicy()
        self.held_bytes = 0
        """Read, and not yet taken by the kernel."""
        self.held_bytes_peak = 0
        self.sent_bytes = 0
        self.scratch = memoryview(bytearray(self.policy.cached_bytes))
        self.connections: set[_Serving] = set()
        self.of_peer: Counter[str] = Counter()
        self._jobs: dict[str, ServedJob] = {}
        self._first_asked: dict[str, Callable[[], None]] = {}
        self._timer: Any = None
        self._stopping = False
        self._pool = None if threads is not None else ThreadPool(0, self.policy.readers, name="segment-read")
        self._threads: Any = threads if threads is not None else self._pool
        if self._pool is not None:
            self._pool.start()

    def register_job(self, job: str, folder: str, asked: Callable[[], None] | None = None) -> None:
        """From now on serve the map outputs in `folder`. `asked()` is called once, when one is asked for."""
        self._jobs[job] = ServedJob(folder)
        if asked is not None:
            self._first_asked[job] = asked

    def combining(self, job: str, on: bool) -> None:
        """Whether more of the job's map outputs will be combined here."""
        self._jobs[job].combining = on

    def combined(self, job: str, name: str, members: Sequence[str]) -> None:
        """From now on the committed file `name` may be given in place of these map attempts' own."""
        self._jobs[job].combined.update(dict.fromkeys(members, name))

    def unregister_job(self, job: str) -> None:
        """Begin no further answer for this job; one that is being sent is sent whole. None is fine."""
        self._first_asked.pop(job, None)
        served = self._jobs.pop(job, None)
        if served is not None:
            served.ended = True

    def cut_off(self, peer: str, why: str) -> None:
        """End the connections of this peer; whether it may come back is for `identify`."""
        for connection in [each for each in self.connections if each.peer == peer]:
            connection.cut_off(why)

    def stop(self, gone: Callable[[], None]) -> None:
        """Cut off every peer; `gone()` when no thread reads any more. The caller stops listening."""
        self._stopping = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        connections = list(self.connections)
        for connection in connections:
            connection.cut_off("the node is stopping")

        def stop_threads() -> None:
            if self._pool is not None:
                self._pool.stop()
            for connection in connections:
                connection.answers.close()
            self.reactor.callFromThread(gone)

        # stop() waits for the threads: it must not run on the reactor's thread
        threading.Thread(target=stop_threads, name="stop-segment-read").start()

    def buildProtocol(self, addr: Any) -> Protocol | None:
        if self._stopping or len(self.connections) >= self.policy.connections_max:
            return None  # Twisted closes it
        return _Serving(self)

    # --- for its connections ---

    def job(self, job: str) -> ServedJob | None:
        """The job of which something is asked for."""
        asked = self._first_asked.pop(job, None)
        if asked is not None:
            asked()
        return self._jobs.get(job)

    def in_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        if not self._stopping:
            self._threads.callInThread(function, *arguments)

    def room(self) -> int:
        """How large the next batch may be: a fourth of what is left for all, within bounds."""
        left = self.policy.bytes_max - self.held_bytes
        return max(self.policy.batch_bytes_min, min(self.policy.batch_bytes, left // 4))

    def hold(self, size_bytes: int) -> None:
        self.held_bytes += size_bytes
        self.held_bytes_peak = max(self.held_bytes_peak, self.held_bytes)

    def opened(self, connection: _Serving) -> None:
        self.connections.add(connection)
        if self._timer is None or not self._timer.active():
            self._timer = self.reactor.callLater(TRANSFER_TICK_S, self._tick)

    def _tick(self) -> None:
        for connection in list(self.connections):
            connection.check()
        if self.connections:
            self._timer = self.reactor.callLater(TRANSFER_TICK_S, self._tick)


class _Serving(Protocol):
    """One connection; see the module."""

    transport: Any

    def __init__(self, server: SegmentServer) -> None:
        self._server = server
        self._decoder: FrameDecoder[FetchSegment | ReadInput] = FrameDecoder(
            ToSegmentServer, SEGMENT_REQUEST_BYTES_MAX
        )
        self.answers = Answers(server.fs, None if server.inputs is None else server.inputs())
        self.peer = ""
        self._reading = False
        self._paused = False
        self._ended = False
        self._lost = False
        self._ready: list[bytes] = []
        """The batch read ahead."""
        self._ready_bytes = 0
        self._sending_bytes = 0
        """Given to the transport, which has not drained since."""
        self._progress_at = server.clock()

    # --- what Twisted calls ---

    def connectionMade(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # a unix socket has nothing to delay
            self.transport.setTcpNoDelay(True)  # else a small answer may wait for the peer's next request
        self.transport.registerProducer(self, True)
        self._server.opened(self)

    def dataReceived(self, data: bytes) -> None:
        if self._ended:
            return
        try:
            if not self.peer:
                self._identify()
            for request in self._decoder.feed(data):
                more = len(request.others) if isinstance(request, FetchSegment) else 0
                if self.answers.unanswered + more >= self._server.policy.requests_max:
                    raise ProtocolError(f"it asks for more than {self._server.policy.requests_max} at once")
                self.answers.ask(request, self._server.job(request.job))
        except CortexError as error:
            self.cut_off(error.message)
            return
        if not self._paused:
            self._progress_at = self._server.clock()
        self._read_on()

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._drained()
        self._progress_at = self._server.clock()
        self._send_ready()
        self._read_on()

    def stopProducing(self) -> None:
        """The transport has ended; connectionLost follows."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ended = self._lost = True
        self._drained()
        self._server.held_bytes -= self._ready_bytes
        self._ready, self._ready_bytes = [], 0
        self._server.connections.discard(self)
        if self.peer:
            self._server.of_peer[self.peer] -= 1
            self._server.of_peer += Counter()  # drops those that have none left
        if not self._reading:
            self._server.in_thread(self.answers.close)

    # --- what the server calls ---

    def check(self) -> None:
        """From time to time: cut off a peer that says nothing or takes nothing."""
        policy, still_s = self._server.policy, self._server.clock() - self._progress_at
        if not self.peer:
            if still_s >= policy.first_request_s_max:
                self.cut_off(f"no request within {policy.first_request_s_max:g} s of connecting")
        elif self._paused:
            if still_s >= policy.stall_s:
                self.cut_off(f"it has taken nothing for {policy.stall_s:g} s")
        elif not self._reading and still_s >= policy.idle_s:
            self.cut_off(f"no request for {policy.idle_s:g} s")

    def cut_off(self, why: str) -> None:
        if self._ended:
            return
        self._ended = True
        _log.info(
            "a connection of {peer} that fetches segments is closed: {why}", peer=self.peer or "?", why=why
        )
        self.transport.unregisterProducer()
        self.transport.abortConnection()

    # --- inside ---

    def _identify(self) -> None:
        server = self._server
        peer = server.identify(self.transport)
        if server.of_peer[peer] >= server.policy.connections_per_peer:
            raise ProtocolError(f"it has {server.policy.connections_per_peer} connections already")
        server.of_peer[peer] += 1
        self.peer = peer

    def _read_on(self) -> None:
        """Send on from the page cache, or have a batch read unless one is being read, or waits to be sent."""
        while self.answers.owed and not (self._reading or self._ready or self._ended):
            if not self.answers.cached:
                self._reading = True
                self._server.in_thread(self._read, self._server.room())
            elif self._paused:
                return  # `resumeProducing` reads on
            else:
                self._read_cached()

    def _read_cached(self) -> None:
        room = min(self._server.room(), self._server.policy.cached_bytes)
        try:
            self._take(self.answers.read_cached(self._server.scratch[:room]))
        except CortexError as error:
            self.cut_off(error.message)
            return
        self._send_ready()

    def _read(self, bytes_max: int) -> None:
        """In a thread."""
        try:
            pieces: list[bytes] = self.answers.read(bytes_max)
            failure: CortexError | None = None
        except CortexError as error:
            pieces, failure = [], error
        except Exception as error:
            pieces, failure = [], InternalError(str(error), details={"traceback": traceback.format_exc()})
        self._server.reactor.callFromThread(self._have_read, pieces, failure)

    def _have_read(self, pieces: list[bytes], failure: CortexError | None) -> None:
        self._reading = False
        if self._ended:
            if self._lost:
                self._server.in_thread(self.answers.close)
            return
        if failure is not None:
            if isinstance(failure, InternalError):
                _log.error("reading segments failed: {failure}", failure=failure)
            self.cut_off(failure.message)
            return
        self._take(pieces)
        if not self._paused:
            self._send_ready()
        self._read_on()

    def _take(self, pieces: list[bytes]) -> None:
        self._ready = pieces
        self._ready_bytes = sum(map(len, pieces))
        self._server.hold(self._ready_bytes)

    def _send_ready(self) -> None:
        if not self._ready:
            return
        pieces, self._ready = self._ready, []
        self._sending_bytes += self._ready_bytes
        self._server.sent_bytes += self._ready_bytes
        self._ready_bytes = 0
        self._progress_at = self._server.clock()
        self.transport.writeSequence(pieces)
        if not self._paused:  # so small that the transport does not count it
            self._drained()

    def _drained(self) -> None:
        self._server.held_bytes -= self._sending_bytes
        self._sending_bytes = 0

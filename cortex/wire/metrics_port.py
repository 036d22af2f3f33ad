"""A port for those who watch a process: GET /metrics (Prometheus text) and GET /healthz, over TLS.

As every other port of a cluster it takes nobody without a certificate of the cluster's authority; monitors,
clients and admins that were not put out are answered, others told why not. HTTP is Twisted's. What a request
brings beside its first lines is not kept.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any, Final

from twisted.internet.interfaces import IHandshakeListener, IProtocolNegotiationFactory
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.web.http import HTTPChannel, HTTPFactory, Request
from zope.interface.declarations import implementer

from cortex.errors import NotAllowed, ProtocolError
from cortex.ids import Role
from cortex.limits import HELLO_S_MAX, METRICS_CONNECTIONS_MAX, METRICS_IDLE_S
from cortex.metric_text import CONTENT_TYPE, Family, text_of
from cortex.wire.gate import Members, Strangers
from cortex.wire.join import Endpoint
from cortex.wire.peers import listen_tls
from cortex.wire.tls import Renewable, peer_of

_log = Logger()
_READERS: Final = (Role.MONITOR, Role.CLIENT, Role.ADMIN)
_PLAIN: Final = "text/plain; charset=utf-8"


class MetricsPort:
    """`families()` gives the figures, `ailing()` what is wrong with the process, a line each; both are asked
    at each request and must be quick. `settings` are of `tls.data_port`. Raises UsageError for an address
    that cannot be listened on."""

    def __init__(
        self,
        reactor: Any,
        endpoint: Endpoint,
        settings: Renewable,
        members: Members,
        families: Callable[[], Iterable[Family]],
        ailing: Callable[[], list[str]],
        wall_clock: Callable[[], float],
    ) -> None:
        self.reactor = reactor
        self.members = members
        self.families = families
        self.ailing = ailing
        self.wall_clock = wall_clock
        self.open = 0
        """Connections whose other end is known."""
        factory: Any = _Factory(timeout=METRICS_IDLE_S, reactor=reactor)
        factory.noisy = False
        factory.log = lambda request: None
        factory.protocol = lambda: _Channel(self)
        self._port = listen_tls(reactor, endpoint, settings, Strangers(), factory)

    @property
    def port(self) -> int:
        return int(self._port.getHost().port)

    def stop(self) -> None:
        self._port.stopListening()

    def answer(self, transport: Any, method: bytes, path: bytes) -> tuple[int, str, str]:
        """(status, content type, text) for a request on this connection."""
        try:
            peer = peer_of(transport)
            self.members.check(peer, _READERS)
            if peer is not None and peer.not_after <= self.wall_clock():
                raise NotAllowed(f"the certificate of {peer} has expired")
        except ProtocolError as error:
            _log.warn("metrics: {error}", error=error.message)
            return 403, _PLAIN, f"{error.message}\n"
        if method not in (b"GET", b"HEAD"):
            return 405, _PLAIN, "this is for reading\n"
        if path == b"/metrics":
            return 200, CONTENT_TYPE, text_of(self.families())
        if path == b"/healthz":
            ailing = self.ailing()
            return (503, _PLAIN, "\n".join(ailing) + "\n") if ailing else (200, _PLAIN, "ok\n")
        return 404, _PLAIN, "there are /metrics and /healthz\n"


class _Request(Request):
    """Answered at once; its body is let go."""

    def gotLength(self, length: int | None) -> None:
        self.content = io.BytesIO()

    def handleContentChunk(self, data: bytes) -> None: ...

    def process(self) -> None:
        channel: Any = self.channel
        respond: Any = self  # Twisted says no types
        owner = channel.owner
        path = self.uri.partition(b"?")[0]
        try:
            status, kind, text = owner.answer(channel.transport, self.method, path)
        except Exception:  # a bug in a figure must not be one in the process
            _log.failure("the metrics could not be told")
            status, kind, text = 500, _PLAIN, "a bug in cortex; the log says more\n"
        body = text.encode()
        if status == 403:
            channel.persistent = False  # another connection may show another certificate
        respond.setResponseCode(status)
        respond.setHeader(b"content-type", kind.encode())
        respond.setHeader(b"content-length", b"%d" % len(body))
        if self.method != b"HEAD":
            respond.write(body)
        respond.finish()


@implementer(IProtocolNegotiationFactory)
class _Factory(HTTPFactory):
    def acceptableProtocols(self) -> list[bytes]:
        """Prometheus and curl offer HTTP/2 as well, and TLS ends where nothing of an offer is taken."""
        return [b"http/1.1"]


@implementer(IHandshakeListener)
class _Channel(HTTPChannel):
    requestFactory = _Request

    def __init__(self, owner: MetricsPort) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = owner

        self._late: Any = None
        self._known = False

    def connectionMade(self) -> None:
        super().connectionMade()  # type: ignore[no-untyped-call]
        self._late = self.owner.reactor.callLater(HELLO_S_MAX, self._cut)

    def handshakeCompleted(self) -> None:
        """The authority has signed the other end's certificate: it is no stranger."""
        transport: Any = self.transport
        self._late.cancel()
        if self.owner.open >= METRICS_CONNECTIONS_MAX:
            _log.warn("metrics: too many connections, {address} is cut off", address=str(transport.getPeer()))
            self._cut()
            return
        self._known = True
        self.owner.open += 1
        transport.factory.known(transport)

    def connectionLost(self, reason: Any = connectionDone) -> None:
        if self._late is not None and self._late.active():
            self._late.cancel()
        if self._known:
            self._known = False
            self.owner.open -= 1
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def _cut(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

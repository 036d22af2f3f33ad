"""Links between machines: TLS over TCP, every peer known by its certificate before its first byte counts.

Twisted calls a TLS connection made when TCP is connected, before anything is verified. So nothing is
sent or decoded until `handshakeCompleted`; then the peer is read from its certificate, and its role
decides which messages are messages at all. HELLO_S_MAX runs from the TCP connection: a handshake that
never ends is a hello that never comes.

`listen_tls` and `dial` own no reactor and make no retry. A link does not outlive the certificate it
was opened with.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from OpenSSL.SSL import Error as TlsError
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import CannotListenError, NoProtocol
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface.declarations import implementer

from cortex.errors import CortexError, NotAllowed, NotTrusted, ProtocolError, Unreachable, UsageError
from cortex.ids import Role, peer_name
from cortex.limits import (
    DIAL_S_MAX,
    HELLO_BYTES_MAX,
    HELLO_S_MAX,
    LINK_SILENCE_S_MAX,
    NODE_HELLO_BYTES_MAX,
)
from cortex.wire.authority import Peer
from cortex.wire.framing import FrameDecoder
from cortex.wire.gate import Strangers
from cortex.wire.identity import Identity
from cortex.wire.join import Endpoint
from cortex.wire.permissions import not_allowed
from cortex.wire.tls import Renewable, dialing, peer_of
from cortex.wire.tls_failures import explain
from cortex.wire.transports import MessageProtocol

M = TypeVar("M")
_log = Logger()
_LISTEN_CURES: Final = {
    errno.EADDRINUSE: "another process listens there, perhaps one of cortex: end it, or name another port:"
    " --listen ADDRESS:PORT",
    errno.EADDRNOTAVAIL: "this machine has no such address: write 0.0.0.0 for all it has, or 127.0.0.1 for"
    " itself alone",
    errno.EACCES: "ports below 1024 are not for every user: name another one: --listen ADDRESS:PORT",
}


@implementer(IHandshakeListener)
class _SecureProtocol(MessageProtocol[M], ABC):
    """One end of a TLS link. `peer` is who is at the other end, once the handshake has completed."""

    def __init__(
        self,
        clock: Any,
        received: Callable[[Any, M], None],
        lost: Callable[[Any, CortexError | None], None],
    ) -> None:
        super().__init__(clock, None, received, lost, check_peer=False)
        self.peer: Peer | None = None
        self._shaken = False

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)  # a machine that vanished is noticed in the end
        self._timer = self._clock.callLater(HELLO_S_MAX, self._hello_late)

    @abstractmethod
    def handshakeCompleted(self) -> None:
        """Twisted's: who is at the other end is known now."""

    def _start(self, union: Any, explain_tag: Callable[[str], ProtocolError | None] | None = None) -> None:
        """Nothing of the peer has been decoded until here; from here on, `union` is."""
        node = self.peer is not None and self.peer.role is Role.NODE
        limit = NODE_HELLO_BYTES_MAX if node else HELLO_BYTES_MAX
        self._decoder = FrameDecoder(union, limit, explain_tag)
        self.transport.registerProducer(self, True)

    def _cut(self, error: CortexError) -> None:
        """End the connection without a word."""
        self._closing = True
        self._error = error
        self._stop_timer()
        self.transport.abortConnection()

    def _hello_late(self) -> None:
        if self._shaken:
            super()._hello_late()
            return
        self._timer = None
        self._cut(NotTrusted(f"no TLS handshake within {HELLO_S_MAX:g} s of connecting"))

    def _explain_end(self, reason: Failure) -> CortexError | None:
        said = _tls_words(reason)
        return None if said is None else explain(said, self._who())

    def _who(self) -> str:
        return "the peer" if self.peer is None else str(self.peer)


class AcceptedProtocol(_SecureProtocol[M]):
    """A link that somebody dialed to us. Its owner hears of it only when the peer is admitted.

    `admit(protocol)` is called once, when the handshake has completed and `peer` is known (None: one
    without certificate). It gives the union of messages to take, and `lost` will follow; or it raises
    ProtocolError to refuse the peer, and nothing follows. `wall_clock` is what certificates go by.
    Call `accept` after a good hello, as with any link.
    """

    def __init__(
        self,
        clock: Any,
        admit: Callable[[Any], Any],
        received: Callable[[Any, M], None],
        lost: Callable[[Any, CortexError | None], None],
        wall_clock: Callable[[], float],
    ) -> None:
        super().__init__(clock, received, lost)
        self._admit = admit
        self._wall_clock = wall_clock
        self._expiry: Any = None
        self._unknown_to_owner = True

    def handshakeCompleted(self) -> None:
        if self._closing:
            return
        self._shaken = True
        try:
            self.peer = peer_of(self.transport)
            union = self._admit(self)
        except ProtocolError as error:
            _log.warn("{address}: {error}", address=self._address(), error=error.message)
            self._refuse(error)
            return
        self._unknown_to_owner = False
        self._start(union, partial(not_allowed, None if self.peer is None else self.peer.role))
        if self.peer is not None:
            self.transport.factory.known(self.transport)
            left_s = max(0.0, self.peer.not_after - self._wall_clock())
            self._expiry = self._clock.callLater(left_s, self._expired)

    def hold(self) -> None:
        """The peer has said what it wants and may wait for the answer; its frames stay small."""
        self._stop_timer()

    def renewed(self, not_after: float) -> None:
        """The peer has another certificate, which it was sent over this link: the link may go on as long."""
        if self.peer is not None and self._expiry is not None and self._expiry.active():
            self.peer = replace(self.peer, not_after=not_after)
            self._expiry.reset(max(0.0, not_after - self._wall_clock()))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._expiry is not None and self._expiry.active():
            self._expiry.cancel()
        if not self._shaken and self._error is None:
            said = _tls_words(reason) or reason.getErrorMessage()
            _log.info("{address}: no handshake: {said}", address=self._address(), said=said)
        super().connectionLost(reason)

    def _expired(self) -> None:
        self._refuse(NotAllowed(f"the certificate of {self._who()} has expired", cure="connect again"))

    def _address(self) -> str:
        return str(self.transport.getPeer())


class DialedProtocol(_SecureProtocol[M]):
    """A link that we dial (`dial`), to the process whose certificate has the name `name`.

    `opened(protocol)` is called when the peer has proven who it is: say hello there. In TLS 1.3 it may
    still refuse us: its first answer is what counts, and `accept` is called for it.
    `lost(protocol, error)` is called once, whether the link ended, never came about (Unreachable) or was
    not to be trusted (NotTrusted). It has ended as well when nothing that was sent has arrived for
    LINK_SILENCE_S_MAX (Linux; elsewhere when the system gives up).
    """

    def __init__(
        self,
        clock: Any,
        name: str,
        union: Any,
        opened: Callable[[Any], None],
        received: Callable[[Any, M], None],
        lost: Callable[[Any, CortexError | None], None],
    ) -> None:
        super().__init__(clock, received, lost)
        self._name = name
        self._union = union
        self._opened = opened
        self._endpoint: Endpoint | None = None

    def connectionMade(self) -> None:
        super().connectionMade()
        sock = getattr(self.transport.transport, "socket", None)
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * LINK_SILENCE_S_MAX))

    def handshakeCompleted(self) -> None:
        if self._closing:
            return
        self._shaken = True
        try:
            self.peer = peer_of(self.transport)
        except ProtocolError as error:
            self._cut(error)
            return
        # Twisted has checked the name, but takes a certificate that names nothing at all.
        peer = self.peer
        if peer is None or peer_name(peer.cluster, peer.role, peer.id) != self._name:
            self._cut(explain("hostname mismatch", self._who()))
            return
        self._start(self._union)
        self._opened(self)

    def dialing(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def not_connected(self, reason: Failure) -> None:
        """TCP did not connect."""
        if self._closing or self.transport is not None:
            return
        self._closing = True
        cancelled = reason.check(CancelledError) is not None
        error = Unreachable(
            f"no connection to {self._endpoint}: {reason.getErrorMessage()}",
            cure="is the process there running, and is the way to it open?",
        )
        self._lost(self, None if cancelled else error)

    def _refuse(self, error: ProtocolError) -> None:
        """Who dialed has nobody to refuse: the link is closed, and the owner hears why."""
        if not self._closing:
            self.close()
            self._error = error

    def _who(self) -> str:
        return f"{self._name} at {self._endpoint}"


class _Once(Factory):
    """Builds the one protocol it was given, once: two addresses of a name may connect together."""

    noisy = False

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol

    def buildProtocol(self, _address: Any) -> Any:
        protocol, self._protocol = self._protocol, None
        if protocol is None:
            raise NoProtocol
        return protocol


def dial(
    reactor: Any, endpoint: Endpoint, identity: Identity, name: str, protocol: DialedProtocol[Any]
) -> Deferred[Any]:
    """Connect `protocol`, as `identity`, to `name` at `endpoint`. Cancel what is returned to give up."""
    protocol.dialing(endpoint)
    once: Any = _Once(protocol)
    tls = TLSMemoryBIOFactory(dialing(identity, name), True, once, clock=reactor)
    tcp: Any = HostnameEndpoint(reactor, endpoint.host, endpoint.port, timeout=DIAL_S_MAX)
    connecting: Deferred[Any] = tcp.connect(tls)
    connecting.addErrback(protocol.not_connected)
    return connecting


class _Port(TLSMemoryBIOFactory):
    """TLS for a listening port; turns strangers away before they cost anything, when there are too many."""

    def __init__(self, settings: Renewable, strangers: Strangers, factory: Factory, clock: Any) -> None:
        super().__init__(settings, False, factory, clock=clock)  # type: ignore[arg-type]
        self._strangers = strangers
        self._unknown: dict[TLSMemoryBIOProtocol, str] = {}

    def buildProtocol(self, addr: Any) -> Any:
        if not self._strangers.may_enter(addr.host):
            _log.warn("{address}: too many connections without a certificate", address=str(addr))
            return None
        return super().buildProtocol(addr)

    def registerProtocol(self, p: TLSMemoryBIOProtocol) -> None:
        super().registerProtocol(p)  # type: ignore[no-untyped-call]
        if p not in self._unknown:  # Twisted registers a connection twice
            address = self._unknown[p] = p.getPeer().host
            self._strangers.entered(address)

    def unregisterProtocol(self, p: TLSMemoryBIOProtocol) -> None:
        super().unregisterProtocol(p)  # type: ignore[no-untyped-call]
        self.known(p)

    def known(self, p: TLSMemoryBIOProtocol) -> None:
        """This one is no stranger any more; a second call does nothing."""
        address = self._unknown.pop(p, None)
        if address is not None:
            self._strangers.left(address)


def listen_tls(
    reactor: Any, endpoint: Endpoint, settings: Renewable, strangers: Strangers, factory: Factory
) -> Any:
    """Listen at `endpoint`, whose host is an address of this machine; gives Twisted's port.

    `factory` builds AcceptedProtocols, or protocols of its own that read nothing before
    `handshakeCompleted` and then call ``transport.factory.known(transport)`` for a peer they know.
    Raises UsageError for an address that cannot be listened on.
    """
    try:
        host = str(ipaddress.ip_address(endpoint.host))
    except ValueError as error:
        raise UsageError(
            f"cannot listen on {endpoint}: the host must be an address of this machine",
            cure="write 0.0.0.0 for all, or 127.0.0.1 for this machine alone; --advertise takes a name",
        ) from error
    port = _Port(settings, strangers, factory, reactor)
    try:
        return reactor.listenTCP(endpoint.port, port, interface=host)
    except CannotListenError as error:
        cause: Any = error.socketError
        raise UsageError(
            f"cannot listen on {endpoint}: {getattr(cause, 'strerror', None) or cause}",
            cure=_LISTEN_CURES.get(getattr(cause, "errno", 0), "name another address or port: --listen"),
        ) from error


def _tls_words(reason: Failure) -> str | None:
    """What the TLS library says of a connection's end; None when TLS has nothing to do with it."""
    error = reason.value
    if isinstance(error, TlsError):
        queue = error.args[0] if error.args else ()
        return "; ".join(str(entry[-1]) for entry in queue) or "handshake failed" if queue else None
    if type(error).__module__.startswith("service_identity"):
        return "hostname mismatch"
    return None

"""Segments between the nodes of a cluster: both ends of `cortex.transfer` over the cluster's own TLS.

Holders are named by their node's id. A node serves nodes of its cluster that were not put out, and takes
segments from no one but the node it dialed: addresses are only where to look for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS

from cortex.errors import NotAllowed, NotTrusted
from cortex.ids import Role, peer_name
from cortex.limits import DIAL_S_MAX
from cortex.transfer.segment_server import SegmentServer
from cortex.wire.gate import Members, Strangers
from cortex.wire.identity import Identity
from cortex.wire.join import Endpoint
from cortex.wire.peers import listen_tls
from cortex.wire.tls import Renewable, dialing, peer_of


class DataPort:
    """`identify` is for a SegmentServer, `connect` and `check` are for a SegmentFetcher.

    `identity()` is this node's, now; `address_of(node)` is where a node serves others, or raises
    CortexError. `wall_clock` is what certificates go by: connections do not outlive theirs.
    """

    def __init__(
        self,
        reactor: Any,
        wall_clock: Callable[[], float],
        members: Members,
        identity: Callable[[], Identity],
        address_of: Callable[[str], Endpoint],
    ) -> None:
        self._reactor = reactor
        self._wall_clock = wall_clock
        self._members = members
        self._identity = identity
        self._address_of = address_of
        self._server: SegmentServer | None = None
        self._expiries: dict[str, Any] = {}
        self._trusted = True

    def listen(
        self, endpoint: Endpoint, settings: Renewable, strangers: Strangers, server: SegmentServer
    ) -> Any:
        """Serve at `endpoint`; gives Twisted's port. `settings` are of `tls.data_port`."""
        self._server = server
        return listen_tls(self._reactor, endpoint, settings, strangers, server)

    def put_out(self, node: str) -> None:
        """The node was revoked: its connections end, and it is served no more."""
        self._members.revoke(node)
        self._cut_off(node, "it was revoked")

    def trust(self, trusted: bool) -> None:
        """False: this node does not know any more who was put out, and serves nobody."""
        self._trusted = trusted
        if not trusted and self._server is not None:
            for peer in list(self._server.of_peer):
                self._cut_off(peer, "this node has lost its server")

    def stop(self) -> None:
        """Forget the timers. Who listens stops listening."""
        for expiry in self._expiries.values():
            if expiry.active():
                expiry.cancel()
        self._expiries.clear()

    def identify(self, transport: Any) -> str:
        """The id of the node that fetches. Raises ProtocolError for whoever may not."""
        if not self._trusted:
            raise NotAllowed("this node has lost its server, and does not know who was put out")
        peer = peer_of(transport)
        self._members.check(peer, (Role.NODE,))
        assert peer is not None
        transport.factory.known(transport)
        if peer.id not in self._expiries:
            left_s = max(0.0, peer.not_after - self._wall_clock())
            self._expiries[peer.id] = self._reactor.callLater(left_s, self._expired, peer.id)
        return peer.id

    def connect(self, holder: str) -> Any:
        """An endpoint to a node."""
        identity, address = self._identity(), self._address_of(holder)
        tcp: Any = HostnameEndpoint(self._reactor, address.host, address.port, timeout=DIAL_S_MAX)
        return wrapClientTLS(dialing(identity, self._name(holder)), tcp, self._reactor)

    def check(self, holder: str, transport: Any) -> None:
        """Raise NotTrusted unless the node at the other end is `holder`. Twisted has checked the name, but
        takes a certificate that names nothing at all."""
        peer = peer_of(transport)
        if peer is None or peer_name(peer.cluster, peer.role, peer.id) != self._name(holder):
            raise NotTrusted(f"{peer or 'a peer without certificate'} answers where {holder} should be")

    def _name(self, node: str) -> str:
        return peer_name(self._members.cluster, Role.NODE, node)

    def _expired(self, node: str) -> None:
        del self._expiries[node]
        self._cut_off(node, "its certificate has expired")

    def _cut_off(self, node: str, why: str) -> None:
        if self._server is not None:
            self._server.cut_off(node, why)

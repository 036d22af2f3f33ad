"""Who may come in, and who is out: counts and sets, pure.

`Strangers` bounds the connections of those who have not shown a certificate yet, by address and in
all, so that nobody can hold the door shut for others. `Members` knows the cluster's name and the
revoked.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Collection, Iterable

from cortex.errors import NotAllowed
from cortex.ids import Role
from cortex.limits import STRANGERS_MAX, STRANGERS_PER_ADDRESS_MAX
from cortex.wire.authority import Peer


def neighbourhood(address: str) -> str:
    """The addresses counted as one: an IPv4 address, or the /64 of an IPv6 one, which one host can have."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


class Strangers:
    """Connections whose other end is not known. Every `entered` is followed by one `left`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.total = 0

    def may_enter(self, address: str) -> bool:
        few_here = self._counts[neighbourhood(address)] < STRANGERS_PER_ADDRESS_MAX
        return self.total < STRANGERS_MAX and few_here

    def entered(self, address: str) -> None:
        self._counts[neighbourhood(address)] += 1
        self.total += 1

    def left(self, address: str) -> None:
        place = neighbourhood(address)
        self._counts[place] -= 1
        self.total -= 1
        if not self._counts[place]:
            del self._counts[place]


def revoked(peer: Peer) -> NotAllowed:
    """Its home keeps what it is, so that a new join line alone would be of no use."""
    folder = peer.role.value
    return NotAllowed(
        f"{peer} was revoked",
        cure=f"remove the folder {folder!r} in its home, and join again with a line from:"
        " cortex token create",
    )


class Members:
    """Who is of the cluster: what a certificate cannot say of itself."""

    def __init__(self, cluster: str, revoked: Iterable[str] = ()) -> None:
        self.cluster = cluster
        self._revoked = set(revoked)

    @property
    def revoked(self) -> tuple[str, ...]:
        return tuple(sorted(self._revoked))

    def revoke(self, peer: str) -> None:
        self._revoked.add(peer)

    def check(self, peer: Peer | None, roles: Collection[Role]) -> None:
        """Raise NotAllowed unless `peer` is of this cluster, in one of `roles`, and not revoked."""
        if peer is None:
            raise NotAllowed("a peer without certificate has no business at this port")
        if peer.cluster != self.cluster:
            raise NotAllowed(f"{peer} is of another cluster, {peer.cluster}")
        if peer.id in self._revoked:
            raise revoked(peer)
        if peer.role not in roles:
            wanted = " or ".join(role.value for role in roles)
            raise NotAllowed(f"{peer} has no business at this port: it is for a {wanted}")

"""Segments over the cluster's own TLS: nodes of the cluster fetch from each other, and nobody else does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortex.ids import Role, new_peer_id
from cortex.transfer.data_port import DataPort
from cortex.transfer.fetch_queue import Wanted
from cortex.transfer.segment_server import SegmentServer
from cortex.wire.authority import Authority, make_key
from cortex.wire.gate import Members, Strangers
from cortex.wire.identity import Identity, make_identity
from cortex.wire.join import Endpoint
from cortex.wire.tls import Renewable, data_port
from tests.integration.test_segment_transfer import Fetching, Loop, source, wait_for
from tests.segment_tools import FS, JOB, attempt

AUTHORITY, OTHER_AUTHORITY = (Authority.make("k0123456789ab", time.time()) for _ in range(2))


def identity_of(role: Role, authority: Authority = AUTHORITY) -> Identity:
    key = make_key()
    certificate = authority.issue(key.public_key(), role, new_peer_id(role), time.time())
    return make_identity(key, certificate, authority.certificate, "h:1")


class Served:
    """A node that serves a few map outputs."""

    def __init__(self, loop: Loop, folder: Path) -> None:
        self.loop, self.folder = loop, folder
        self.identity, self.members, self.strangers = (
            identity_of(Role.NODE),
            Members(AUTHORITY.cluster),
            Strangers(),
        )
        self.wall_clock = time.time()
        self.data_port = DataPort(
            loop.reactor, lambda: self.wall_clock, self.members, lambda: self.identity, self.nowhere
        )
        self.server = loop.call(
            lambda: SegmentServer(loop.reactor, time.monotonic, FS, self.data_port.identify)
        )
        loop.call(lambda: self.server.register_job(JOB, str(folder)))
        settings = Renewable(data_port(self.identity))
        self.port = loop.call(
            lambda: self.data_port.listen(Endpoint("127.0.0.1", 0), settings, self.strangers, self.server)
        )
        self.endpoint = Endpoint("127.0.0.1", self.port.getHost().port)

    def nowhere(self, node: str) -> Endpoint:
        raise AssertionError("it fetches nothing")

    def close(self) -> None:
        gone = threading.Event()
        self.loop.call(self.data_port.stop)
        self.loop.call(lambda: self.server.stop(gone.set))
        assert gone.wait(10)
        self.loop.call(self.port.stopListening)


@pytest.fixture
def loop() -> Iterator[Loop]:
    found = Loop()
    yield found
    found.close()


@pytest.fixture
def served(tmp_path: Path, loop: Loop) -> Iterator[Served]:
    found = Served(loop, source(tmp_path, "a", range(3), partitions=2, blocks=40, block_bytes=65_536))
    yield found
    found.close()


def fetch(served: Served, tmp_path: Path, identity: Identity, holder: str = "", **policy: Any) -> Fetching:
    """Fetch everything as `identity`, from the node that should be at the served one's address."""
    port = DataPort(
        served.loop.reactor,
        time.time,
        Members(AUTHORITY.cluster),
        lambda: identity,
        lambda node: served.endpoint,
    )
    options = {"tries_max": 2, "backoff_first_s": 0.1, **policy}
    fetching = Fetching(served.loop, tmp_path / "here", port.connect, check=port.check, **options)
    name = holder or served.identity.id
    fetching.fetch([Wanted(JOB, name, attempt(i), p) for i in range(3) for p in range(2)])
    return fetching


def test_a_node_fetches_from_another(served: Served, tmp_path: Path) -> None:
    fetching = fetch(served, tmp_path, identity_of(Role.NODE))
    fetching.wait(6)
    assert fetching.failed == []
    fetching.check({served.identity.id: served.folder})
    assert served.strangers.total == 0
    fetching.close()


@pytest.mark.parametrize(
    "identity",
    [identity_of(role) for role in (Role.CLIENT, Role.ADMIN, Role.SERVER)]
    + [identity_of(Role.NODE, OTHER_AUTHORITY)],
    ids=["client", "admin", "server", "other cluster"],
)
def test_nobody_but_a_node_of_the_cluster_fetches(served: Served, tmp_path: Path, identity: Identity) -> None:
    fetching = fetch(served, tmp_path, identity)
    fetching.wait(6)
    assert fetching.landed == []
    wait_for(lambda: not served.server.connections)
    assert served.server.held_bytes_peak == 0
    fetching.close()


def test_nothing_is_taken_from_another_node_at_the_holders_address(served: Served, tmp_path: Path) -> None:
    fetching = fetch(served, tmp_path, identity_of(Role.NODE), holder=new_peer_id(Role.NODE))
    fetching.wait(6)
    assert fetching.landed == []
    fetching.close()


def test_a_node_that_is_put_out_is_cut_off_and_not_served_again(served: Served, tmp_path: Path) -> None:
    node = identity_of(Role.NODE)
    fetching = fetch(served, tmp_path, node)
    fetching.wait(6)
    assert served.server.of_peer[node.id] == 1
    served.loop.call(lambda: served.data_port.put_out(node.id))
    wait_for(lambda: not served.server.connections)
    again = fetch(served, tmp_path, node)
    again.wait(6)
    assert again.landed == []
    fetching.close()
    again.close()


def test_a_node_without_its_server_serves_nobody_until_it_is_back(served: Served, tmp_path: Path) -> None:
    node = identity_of(Role.NODE)
    fetching = fetch(served, tmp_path, node)
    fetching.wait(6)
    assert served.server.of_peer[node.id] == 1
    served.loop.call(lambda: served.data_port.trust(False))
    wait_for(lambda: not served.server.connections)
    without = fetch(served, tmp_path, node)
    without.wait(6)
    assert without.landed == []
    served.loop.call(lambda: served.data_port.trust(True))
    after = fetch(served, tmp_path, node)
    after.wait(6)
    assert after.failed == []
    for each in (fetching, without, after):
        each.close()


def test_a_connection_does_not_outlive_its_certificate(served: Served, tmp_path: Path) -> None:
    node = identity_of(Role.NODE)
    served.wall_clock = node.expires_at - 2.0
    fetching = fetch(served, tmp_path, node)
    fetching.wait(6)
    assert fetching.failed == []
    assert served.server.connections
    wait_for(lambda: not served.server.connections, 10)
    fetching.close()

"""Server and fetcher joined by a network that cuts, delays and drops: what lands is right, always."""

from __future__ import annotations

import os
import random
import tempfile
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.python.failure import Failure

from cortex.errors import CortexError, FetchFailed
from cortex.transfer.fetch_queue import FetchPolicy, Wanted
from cortex.transfer.segment_fetcher import SegmentFetcher
from cortex.transfer.segment_server import SegmentServer, ServePolicy
from tests.segment_tools import (
    FS,
    JOB,
    FakeReactor,
    SlowTransport,
    Threads,
    attempt,
    damage,
    segment_bytes,
    write_run,
)

LOST = Failure(ConnectionLost())


@dataclass(eq=False)
class Link:
    """One connection: both ends, and what is on its way."""

    server: Any
    server_transport: SlowTransport
    client: Any
    client_transport: SlowTransport
    sent: list[int]
    """Bytes delivered to the client, and to the server."""

    @property
    def ended(self) -> bool:
        return self.server_transport.aborted or self.client_transport.aborted

    def deliver(self, rng: random.Random) -> None:
        size = rng.choice([1, 7, 100, 5_000, 70_000])
        for_server = self.client_transport.value()[self.sent[1] :][:size]
        if for_server:
            self.sent[1] += len(for_server)
            self.server.dataReceived(for_server)
        for_client = self.server_transport.value()[self.sent[0] :][:size]
        if for_client and self.client_transport.reading:
            self.sent[0] += len(for_client)
            self.client.dataReceived(for_client)
        if self.sent[0] == len(self.server_transport.value()):
            self.server_transport.drain()

    def drop(self) -> None:
        self.server_transport.aborted = True
        self.server.connectionLost(LOST)
        self.client.connectionLost(LOST)


class World:
    def __init__(self, rng: random.Random, folder: str, fault: float) -> None:
        self.rng, self.fault = rng, fault
        self.reactor, self.threads = FakeReactor(), Threads()
        self.links: list[Link] = []
        self.source, self.target = os.path.join(folder, "source"), os.path.join(folder, "target")
        os.mkdir(self.source)
        os.mkdir(self.target)
        self.landed: dict[tuple[str, int], int] = {}
        self.failed: dict[tuple[str, int], CortexError] = {}
        self.server = SegmentServer(
            self.reactor,
            self.reactor.seconds,
            FS,
            lambda transport: "peer",
            ServePolicy(batch_bytes=20_000, cached_bytes=9_000, bytes_max=60_000, batch_bytes_min=4_000),
            self.threads,
        )
        self.server.register_job(JOB, self.source)
        self.fetcher = SegmentFetcher(
            self.reactor,
            self.reactor.seconds,
            FS,
            lambda holder: self,
            self.on_landed,
            self.on_failed,
            policy=FetchPolicy(connections_max=2, requests_ahead=3, bytes_max=12_000, batch_bytes=4_000),
            jitter=rng.random,
            threads=self.threads,
        )
        self.fetcher.open_job(JOB, self.target)

    def on_landed(self, wanted: Wanted, size_bytes: int, rows: int, others: list[Wanted]) -> None:
        assert wanted.key not in self.landed
        assert wanted.key not in self.failed
        self.landed[wanted.key] = size_bytes

    def on_failed(self, wanted: Wanted, error: CortexError) -> None:
        assert wanted.key not in self.landed
        assert wanted.key not in self.failed
        self.failed[wanted.key] = error

    def connect(self, factory: Any) -> Deferred[Any]:
        server = self.server.buildProtocol(None)
        if server is None or self.rng.random() < self.fault / 2:
            return fail(ConnectionRefusedError())
        link = Link(server, SlowTransport(), factory.buildProtocol(None), SlowTransport(), [0, 0])
        link.server.makeConnection(link.server_transport)
        link.client.makeConnection(link.client_transport)
        self.links.append(link)
        return succeed(link.client)

    def step(self) -> None:
        for link in [link for link in self.links if link.ended]:
            self.links.remove(link)
            link.drop()
        choice = self.rng.random()
        if choice < 0.6 and self.links:
            link = self.rng.choice(self.links)
            if self.rng.random() < self.fault / 50:
                self.links.remove(link)
                link.drop()
            else:
                link.deliver(self.rng)
        elif choice < 0.95 and self.threads.waiting:
            self.threads.waiting.rotate(-self.rng.randrange(2))
            function, arguments = self.threads.waiting.popleft()
            function(*arguments)
        else:
            self.reactor.advance(0.1)
        assert self.fetcher.inflight.held_bytes < 12_000 + 80_000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), fault=st.sampled_from([0.0, 0.3, 1.0]), damaged=st.booleans())
def test_what_is_wanted_lands_or_fails_once_and_what_landed_is_right(
    seed: int, fault: float, damaged: bool
) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        world = World(rng, folder, fault)
        expected: dict[tuple[str, int], bytes] = {}
        broken = rng.randrange(6) if damaged else -1
        for index in range(6):
            path = write_run(
                world.source,
                attempt(index),
                partitions=3,
                blocks=rng.randrange(1, 5),
                block_bytes=rng.choice([50, 3_000, 15_000]),
            )
            expected.update({(attempt(index), p): segment_bytes(path, p) for p in range(3)})
            if index == broken:
                damage(path, 20)  # in partition 0 of its first run
        world.fetcher.fetch([Wanted(JOB, "peer", name, p, len(data)) for (name, p), data in expected.items()])
        for _ in range(200_000):
            world.step()
            if len(world.landed) + len(world.failed) == len(expected) and not world.threads.waiting:
                break
        assert {**world.landed, **world.failed}.keys() == expected.keys()
        for (name, partition), size_bytes in world.landed.items():
            with open(os.path.join(world.target, f"{name}.p{partition:05d}.segment"), "rb") as file:
                assert file.read() == expected[name, partition]
            assert size_bytes == len(expected[name, partition])
        for key, error in world.failed.items():
            assert isinstance(error, FetchFailed)
            assert fault or key == (attempt(broken), 0)
        assert damaged <= ((attempt(broken), 0) in world.failed)
        assert not [name for name in os.listdir(world.target) if name.endswith("partial")]
        assert world.fetcher.inflight.held_bytes == 0

"""Server and fetcher joined by a network that cuts, delays and drops: what lands is right, always."""

from __future__ import annotations

import os
import random
import tempfile
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.python.failure import Failure

from cortex.errors import CortexError, FetchFailed
from cortex.storage.segment_file import plan_segment
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
    write_combined,
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
        self.together: dict[tuple[str, int], tuple[str, ...]] = {}
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
        for each in (wanted, *others):
            assert each.key not in self.landed
            assert each.key not in self.failed
            self.landed[each.key] = size_bytes
        if others:
            self.together[wanted.key] = tuple(each.attempt for each in (wanted, *others))

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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    fault=st.sampled_from([0.0, 0.3]),
    damaged=st.booleans(),
    combining=st.booleans(),
)
def test_what_is_combined_comes_once_with_all_it_stands_for(
    seed: int, fault: float, damaged: bool, combining: bool
) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        world = World(rng, folder, fault)
        names = [attempt(index) for index in range(9)]
        own = {name: write_run(world.source, name, partitions=3, blocks=1, block_bytes=500) for name in names}
        rows = {name: {p for p in range(3) if rng.random() < 0.8} for name in names}
        left, files = list(names), dict[str, str]()
        rng.shuffle(left)
        for number in range(2):
            members, left = left[: (n := rng.randrange(2, 5))], left[n:]
            if not any(rows[name] for name in members):
                continue
            file = f"{JOB}-c{number:06d}.0"
            path = write_combined(
                world.source, file, {name: rows[name] for name in members}, block_bytes=3_000
            )
            files.update(dict.fromkeys(members, path))
            world.server.combined(JOB, file, members)
            if damaged and number == 0:
                damage(path, 20)  # in its first partition
        world.server.combining(JOB, combining)
        everything = [Wanted(JOB, "peer", name, p, combines=True) for name in names for p in range(3)]
        rng.shuffle(everything)
        early = [replace(each, ahead=True) for each in everything if rng.random() < 0.6]
        world.fetcher.fetch(early)
        for _ in range(rng.randrange(200)):
            world.step()
        world.fetcher.fetch([each for each in everything if each.key not in world.landed])
        for _ in range(200_000):
            world.step()
            if len(world.landed) + len(world.failed) == len(everything) and not world.threads.waiting:
                break
        assert {**world.landed, **world.failed}.keys() == {each.key for each in everything}
        if not fault:
            assert not world.failed
        covered = {
            (name, partition)
            for (first, partition), members in world.together.items()
            for name in members
            if name != first
        }
        for name, partition in world.landed.keys() - covered:
            members = world.together.get((name, partition), ())
            source = files[name] if members else own[name]
            if members:
                assert plan_segment(FS, source, partition).members == members
                assert members == tuple(
                    each for each in names if files.get(each) == source and partition in rows[each]
                )
            with open(os.path.join(world.target, f"{name}.p{partition:05d}.segment"), "rb") as file_here:
                assert file_here.read() == segment_bytes(source, partition)
        left_over = sorted(os.listdir(world.target))
        assert len(left_over) == len(world.landed.keys() - covered)
        assert world.fetcher.inflight.held_bytes == 0

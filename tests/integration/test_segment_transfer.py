"""Segments between real processes over loopback: whole, bounded, and right when either end is killed.

Holders are processes (`segment_node`); the fetcher runs here on a private reactor in a thread.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography.x509.oid import NameOID
from twisted.internet import ssl
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.pollreactor import PollReactor
from twisted.protocols.tls import TLSMemoryBIOFactory

from benchmarks.certificates import NAME, make_certificates
from cortex.errors import CortexError, FetchFailed
from cortex.storage.filesystem import LocalFile, LocalFilesystem
from cortex.storage.map_output_store import MapOutputStore
from cortex.transfer.fetch_queue import FetchPolicy, Wanted
from cortex.transfer.segment_fetcher import SegmentFetcher
from cortex.transfer.segment_server import SegmentServer
from cortex.wire.transports import use_monotonic_clock
from tests.segment_tools import FS, JOB, attempt, damage, segment_bytes, write_run

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
MIB = 1 << 20
T = TypeVar("T")


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Holder:
    """A process that serves the map outputs in a folder."""

    def __init__(self, folder: Path, port: int = 0, **policy: Any) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "tests.integration.segment_node", "serve", folder, port]
        self.process = subprocess.Popen(
            [*map(str, command), json.dumps(policy)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        word, _, number = self.output.readline().partition(" ")
        assert word == "ready"
        self.port = int(number)

    def state(self) -> dict[str, Any]:
        self.input.write("?\n")
        self.input.flush()
        found: dict[str, Any] = json.loads(self.output.readline())
        return found

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.input.close()
        self.output.close()


class Loop:
    """A private reactor in a thread of its own."""

    def __init__(self) -> None:
        self.reactor: Any = PollReactor()
        use_monotonic_clock(self.reactor)
        started = threading.Event()
        self.reactor.callWhenRunning(started.set)
        self.thread = threading.Thread(target=self.reactor.run, args=(False,), daemon=True)
        self.thread.start()
        assert started.wait(10)

    def call(self, function: Callable[[], T]) -> T:
        """Run on the reactor's thread; its result."""
        done = threading.Event()
        result: list[Any] = []

        def run() -> None:
            try:
                result.append(function())
            finally:
                done.set()

        self.reactor.callFromThread(run)
        assert done.wait(PATIENCE_S)
        return result[0]  # type: ignore[no-any-return]

    def close(self) -> None:
        self.reactor.callFromThread(self.reactor.stop)
        self.thread.join(10)
        assert not self.thread.is_alive()


class Fetching:
    """A fetcher on a loop, and what it reported."""

    def __init__(
        self,
        loop: Loop,
        folder: Path,
        connect: Callable[[str], Any],
        fs: Any = FS,
        check: Callable[[str, Any], None] = lambda holder, transport: None,
        **policy: Any,
    ) -> None:
        self.loop, self.folder = loop, folder
        folder.mkdir(exist_ok=True)
        self.landed: list[Wanted] = []
        self.failed: list[tuple[Wanted, CortexError]] = []
        self.fetcher = loop.call(
            lambda: SegmentFetcher(
                loop.reactor,
                time.monotonic,
                fs,
                connect,
                lambda one, size, rows, others: self.landed.append(one),
                lambda one, error: self.failed.append((one, error)),
                check,
                FetchPolicy(**policy),
            )
        )
        loop.call(lambda: self.fetcher.open_job(JOB, str(folder)))

    def fetch(self, *several: Sequence[Wanted]) -> None:
        self.loop.call(lambda: [self.fetcher.fetch(some) for some in several])

    def wait(self, count: int, seconds: float = PATIENCE_S) -> None:
        wait_for(lambda: len(self.landed) + len(self.failed) >= count, seconds)
        assert len(self.landed) + len(self.failed) == count

    def cancel(self) -> None:
        gone = threading.Event()
        self.loop.call(lambda: self.fetcher.cancel(JOB, gone.set))
        assert gone.wait(PATIENCE_S)

    def check(self, holders: dict[str, Path]) -> None:
        """What landed is what its holder has; nothing else is left."""
        for one in self.landed:
            landed = self.folder / f"{one.attempt}.p{one.partition:05d}.segment"
            source = holders[one.holder] / f"{one.attempt}.run"
            assert landed.read_bytes() == segment_bytes(str(source), one.partition)
        assert len(list(self.folder.iterdir())) == len(self.landed)
        assert self.fetcher.inflight.held_bytes == 0

    def close(self) -> None:
        gone = threading.Event()
        self.loop.call(lambda: self.fetcher.stop(gone.set))
        assert gone.wait(PATIENCE_S)


@pytest.fixture
def loop() -> Iterator[Loop]:
    found = Loop()
    yield found
    found.close()


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[list[Holder]]:
    """What a test appends is ended after it."""
    found: list[Holder] = []
    yield found
    for holder in found:
        holder.close()


def tcp(loop: Loop, ports: dict[str, int]) -> Callable[[str], Any]:
    return lambda holder: TCP4ClientEndpoint(loop.reactor, "127.0.0.1", ports[holder])


def source(tmp_path: Path, name: str, maps: range, **shape: Any) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    for index in maps:
        write_run(str(folder), attempt(index), **shape)
    return folder


def test_many_segments_of_several_nodes(tmp_path: Path, loop: Loop, holders: list[Holder]) -> None:
    some: list[Wanted] = []
    for number in range(3):
        maps = range(number * 15, number * 15 + 15)
        holders.append(Holder(source(tmp_path, f"node-{number}", maps, partitions=6)))
        some += [Wanted(JOB, f"node-{number}", attempt(i), p) for i in maps for p in range(6)]
    ports = {f"node-{n}": holder.port for n, holder in enumerate(holders)}
    fetching = Fetching(loop, tmp_path / "here", tcp(loop, ports), requests_ahead=5)
    fetching.fetch(some[:100], some[50:])  # in one turn of the reactor: none of them can have landed between
    fetching.wait(len(some))
    assert fetching.failed == []
    fetching.check({f"node-{n}": holder.folder for n, holder in enumerate(holders)})
    store = MapOutputStore(FS, str(tmp_path / "here"))
    here = store.open(attempt(20), 4)
    there = MapOutputStore(FS, str(tmp_path / "node-1")).open(attempt(20), 4)
    for ours, theirs in zip(here.runs, there.runs, strict=True):
        assert list(ours.batches(4)) == list(theirs.batches(4))
    assert [holder.state()["held_bytes"] for holder in holders] == [0, 0, 0]
    fetching.close()


def test_large_segments(tmp_path: Path, loop: Loop, holders: list[Holder]) -> None:
    folder = source(tmp_path, "a", range(2), partitions=2, blocks=60, block_bytes=131_072, runs=2)
    holders.append(Holder(folder))
    fetching = Fetching(loop, tmp_path / "here", tcp(loop, {"a": holders[0].port}))
    fetching.fetch([Wanted(JOB, "a", attempt(i), p) for i in range(2) for p in range(2)])
    fetching.wait(4)
    fetching.check({"a": folder})
    assert (folder / f"{attempt(0)}.run").stat().st_size > 30 * MIB
    fetching.close()


class SlowFilesystem(LocalFilesystem):
    """Takes 20 ms for each write of a segment."""

    def create(self, path: str, mode: int = 0o600) -> Any:
        file: Any = super().create(path, mode)

        class Slow(LocalFile):
            def write_all(self, pieces: Sequence[bytes], /) -> int:
                time.sleep(0.02)
                return super().write_all(pieces)

        file.__class__ = Slow
        return file


def test_a_slow_disk_holds_up_the_senders_and_memory_is_bounded(
    tmp_path: Path, loop: Loop, holders: list[Holder]
) -> None:
    ports, some = {}, []
    for number in range(3):
        name, maps = f"node-{number}", range(number * 2, number * 2 + 2)
        folder = source(tmp_path, name, maps, partitions=2, blocks=30, block_bytes=65_536, runs=1)
        holders.append(Holder(folder, batch_bytes=256 << 10, bytes_max=MIB))
        ports[name] = holders[-1].port
        some += [Wanted(JOB, name, attempt(i), p) for i in maps for p in range(2)]
    # the network itself holds megabytes a connection: far less than the 24 MB that are moved
    fetching = Fetching(
        loop, tmp_path / "here", tcp(loop, ports), SlowFilesystem(), bytes_max=MIB, batch_bytes=64 << 10
    )
    fetching.fetch(some)
    fetching.wait(len(some))
    assert fetching.failed == []
    assert MIB // 2 < fetching.fetcher.inflight.peak_bytes < MIB + 3 * 2 * 256 * 1024
    for holder in holders:
        state = holder.state()
        assert 0 < state["peak_bytes"] < MIB + 2 * 64 * 1024
        assert (state["held_bytes"], state["modules"]) == (0, [])
    fetching.check({name: holder.folder for name, holder in zip(ports, holders, strict=True)})
    fetching.close()


def test_a_holder_killed_half_way_is_given_up_and_one_restarted_is_not(
    tmp_path: Path, loop: Loop, holders: list[Holder]
) -> None:
    folder = source(tmp_path, "a", range(6), partitions=1, blocks=60, block_bytes=65_536)
    first = Holder(folder)
    holders.append(first)
    fetching = Fetching(
        loop,
        tmp_path / "here",
        tcp(loop, {"a": first.port}),
        SlowFilesystem(),
        batch_bytes=64 << 10,
        bytes_max=MIB,
        tries_max=4,
        backoff_first_s=0.2,
    )
    some = [Wanted(JOB, "a", attempt(i), 0) for i in range(6)]
    fetching.fetch(some)
    wait_for(lambda: fetching.landed)
    first.signal(signal.SIGKILL)
    first.process.wait()
    count = len(fetching.landed)
    holders.append(Holder(folder, first.port))
    fetching.wait(6)
    assert fetching.failed == []
    assert count < 6
    fetching.check({"a": folder})

    fetching.landed.clear()
    fetching.fetch(some)
    wait_for(lambda: fetching.landed)
    holders[1].signal(signal.SIGKILL)
    fetching.wait(6)
    assert fetching.failed
    for one, error in fetching.failed:
        assert isinstance(error, FetchFailed)
        assert error.details["attempt"] == one.attempt
        assert error.details["holder"] == "a"
    assert not [name for name in os.listdir(fetching.folder) if name.endswith("partial")]
    fetching.close()


def test_a_receiver_killed_half_way_leaves_the_holder_in_order(
    tmp_path: Path, loop: Loop, holders: list[Holder]
) -> None:
    folder = source(tmp_path, "a", range(3), partitions=1, blocks=200, block_bytes=131_072, runs=1)
    holders.append(Holder(folder))
    there = tmp_path / "there"
    there.mkdir()
    wanted = json.dumps([[attempt(index), 0] for index in range(3)])
    command = ["-m", "tests.integration.segment_node", "fetch", str(there), str(holders[0].port), wanted]
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, cwd=ROOT) as receiver:
        wait_for(lambda: any(file.stat().st_size > MIB for file in there.glob("*.partial")))
        receiver.kill()
    assert list(there.glob("*.partial"))  # removed with the job's folder
    wait_for(lambda: holders[0].state()["connections"] == 0)
    assert holders[0].state()["held_bytes"] == 0
    descriptors = Path(f"/proc/{holders[0].process.pid}/fd")
    if descriptors.exists():
        wait_for(lambda: not [fd for fd in descriptors.iterdir() if os.readlink(fd).endswith(".run")])
    fetching = Fetching(loop, tmp_path / "here", tcp(loop, {"a": holders[0].port}))
    fetching.fetch([Wanted(JOB, "a", attempt(i), 0) for i in range(3)])
    fetching.wait(3)
    fetching.check({"a": folder})
    fetching.close()


def test_damaged_map_outputs_fail_alone(tmp_path: Path, loop: Loop, holders: list[Holder]) -> None:
    folder = source(tmp_path, "a", range(6), partitions=2, blocks=40, block_bytes=131_072, runs=1)
    holders.append(Holder(folder, batch_bytes=MIB))
    paths = [str(folder / f"{attempt(index)}.run") for index in range(6)]
    os.truncate(paths[0], os.path.getsize(paths[0]) // 2)
    os.unlink(paths[1])
    damage(paths[2], 20)  # found before anything of partition 0 is sent
    damage(paths[3], os.path.getsize(paths[3]) * 9 // 10)  # when most of partition 1 is
    damage(paths[4], -40)
    fetching = Fetching(loop, tmp_path / "here", tcp(loop, {"a": holders[0].port}))
    fetching.fetch([Wanted(JOB, "a", attempt(i), p) for i in range(6) for p in range(2)])
    fetching.wait(12)
    lost = {(one.attempt, one.partition) for one, _ in fetching.failed}
    assert lost == {
        *((attempt(i), p) for i in (0, 1, 4) for p in range(2)),
        (attempt(2), 0),
        (attempt(3), 1),
    }
    assert all("damaged" in error.message for _, error in fetching.failed)
    for one in fetching.landed:
        size = (tmp_path / "here" / f"{one.attempt}.p{one.partition:05d}.segment").stat().st_size
        assert size > 40 * 131_072
    assert not list((tmp_path / "here").glob("*.partial"))
    fetching.close()


def test_a_stuck_holder_is_tried_again(tmp_path: Path, loop: Loop, holders: list[Holder]) -> None:
    folder = source(tmp_path, "a", range(4), partitions=1, blocks=60, block_bytes=131_072)
    holders.append(Holder(folder))
    fetching = Fetching(
        loop,
        tmp_path / "here",
        tcp(loop, {"a": holders[0].port}),
        SlowFilesystem(),
        stall_s=0.5,
        backoff_first_s=0.1,
        tries_max=5,
        batch_bytes=256 << 10,
    )
    fetching.fetch([Wanted(JOB, "a", attempt(i), 0) for i in range(4)])
    wait_for(lambda: any(fetching.folder.iterdir()))
    holders[0].signal(signal.SIGSTOP)
    seen = set(fetching.fetcher._open)
    wait_for(
        lambda: not seen & set(fetching.fetcher._open) and fetching.fetcher._open
    )  # cut off, dialled anew
    holders[0].signal(signal.SIGCONT)
    fetching.wait(4)
    assert fetching.failed == []
    fetching.check({"a": folder})
    fetching.close()


def test_cancel_half_way_leaves_a_folder_that_can_be_removed(
    tmp_path: Path, loop: Loop, holders: list[Holder]
) -> None:
    folder = source(tmp_path, "a", range(3), partitions=1, blocks=100, block_bytes=131_072)
    holders.append(Holder(folder))
    fetching = Fetching(loop, tmp_path / "here", tcp(loop, {"a": holders[0].port}), SlowFilesystem())
    fetching.fetch([Wanted(JOB, "a", attempt(i), 0) for i in range(3)])
    wait_for(lambda: any(fetching.folder.iterdir()))
    fetching.cancel()
    landed = len(fetching.landed)
    assert not list(fetching.folder.glob("*.partial"))
    shutil.rmtree(fetching.folder)
    time.sleep(0.3)
    assert not fetching.folder.exists()
    assert len(fetching.landed) == landed < 3
    assert fetching.failed == []
    assert fetching.fetcher.inflight.held_bytes == 0
    fetching.close()


def test_segments_over_tls_with_a_slow_disk(tmp_path: Path, loop: Loop) -> None:
    """Both ends here, in one reactor: TLS pauses and resumes as plain TCP does."""
    folder = source(tmp_path, "a", range(3), partitions=2, blocks=30, block_bytes=65_536)
    make_certificates(tmp_path / "certificates")
    own = ssl.PrivateCertificate.loadPEM((tmp_path / "certificates" / "node.pem").read_bytes())
    authority = ssl.Certificate.loadPEM((tmp_path / "certificates" / "ca.pem").read_bytes())
    trust: Any = ssl.trustRootFromCertificates([authority])
    context = ssl.CertificateOptions(
        own.privateKey.original, own.original, trustRoot=trust, raiseMinimumTo=ssl.TLSVersion.TLSv1_3
    )
    peers: list[str] = []

    def identify(transport: Any) -> str:
        certificate = transport.getPeerCertificate().to_cryptography()
        peers.append(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        return peers[-1]

    server = loop.call(lambda: SegmentServer(loop.reactor, time.monotonic, FS, identify))
    loop.call(lambda: server.register_job(JOB, str(folder)))
    factory = TLSMemoryBIOFactory(context, False, server, loop.reactor)
    port = loop.call(lambda: loop.reactor.listenTCP(0, factory, interface="127.0.0.1"))

    def connect(with_certificate: bool) -> Callable[[str], Any]:
        options = ssl.optionsForClientTLS(NAME, trust, own if with_certificate else None)
        endpoint = TCP4ClientEndpoint(loop.reactor, "127.0.0.1", port.getHost().port)
        return lambda holder: wrapClientTLS(options, endpoint, loop.reactor)

    some = [Wanted(JOB, "a", attempt(i), p) for i in range(3) for p in range(2)]
    fetching = Fetching(
        loop, tmp_path / "here", connect(True), SlowFilesystem(), bytes_max=MIB, batch_bytes=128 << 10
    )
    fetching.fetch(some)
    fetching.wait(6)
    fetching.check({"a": folder})
    assert fetching.fetcher.inflight.peak_bytes < MIB + 2 * 128 * 1024
    assert set(peers) == {"node"}

    stranger = Fetching(loop, tmp_path / "there", connect(False), tries_max=2, backoff_first_s=0.1)
    stranger.fetch(some)
    stranger.wait(6)
    assert stranger.landed == []
    assert set(peers) == {"node"}
    fetching.close()
    stranger.close()
    stopped = threading.Event()
    loop.call(lambda: server.stop(stopped.set))
    assert stopped.wait(10)
    loop.call(port.stopListening)

"""The segment server on a test clock: order, refusals, bounded memory, and peers that break the rules."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from cortex.errors import CortexError, ProtocolError, from_report
from cortex.limits import KIB
from cortex.storage.filesystem import LocalReadableFile
from cortex.storage.segment_file import plan_segment
from cortex.transfer.segment_server import SegmentServer, ServePolicy
from cortex.wire.framing import HEADER, encode_frame
from cortex.wire.messages import FetchSegment, SegmentHeader, SegmentLater, SegmentRefused, Stop
from cortex.wire.segment_framing import SegmentDecoder
from tests.segment_tools import (
    FS,
    JOB,
    OTHER_JOB,
    FakeReactor,
    SlowTransport,
    Threads,
    attempt,
    damage,
    segment_bytes,
    write_combined,
    write_run,
)

GONE = Failure(ConnectionDone())


class Side:
    """A server with one job of a few maps, and peers on transports that the test drains."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        self.folder = str(folder)
        self.paths = [write_run(self.folder, attempt(i)) for i in range(3)]
        self.paths.append(write_run(self.folder, attempt(3), block_bytes=100_000, blocks=6, partitions=1))
        self.reactor, self.threads = FakeReactor(), Threads()
        self.refuse: CortexError | None = None
        self.server = SegmentServer(
            self.reactor, self.reactor.seconds, FS, self.identify, ServePolicy(**policy), self.threads
        )
        self.server.register_job(JOB, self.folder)

    def identify(self, transport: Any) -> str:
        if self.refuse is not None:
            raise self.refuse
        return "node-7"

    def connect(self) -> tuple[Any, SlowTransport]:
        connection, transport = self.server.buildProtocol(None), SlowTransport()
        assert connection is not None
        connection.makeConnection(transport)
        return connection, transport

    def ask(self, connection: Any, index: int, partition: int = 0, request: int = 0, job: str = JOB) -> None:
        connection.dataReceived(encode_frame(FetchSegment(request, job, attempt(index, job), partition)))
        self.threads.run()

    def drained(self, transport: SlowTransport) -> list[Any]:
        """Let the transport send all; the answers, each header with its bytes."""
        while transport.unsent_bytes and not transport.aborted:
            transport.drain()
            self.threads.run()
        return answers(transport.value())


def answers(data: bytes) -> list[Any]:
    found: list[Any] = []
    for item in SegmentDecoder().feed(data):
        if isinstance(item, SegmentHeader):
            found.append((item, bytearray()))
        elif isinstance(item, bytes):
            found[-1][1].extend(item)
        else:
            found.append(item)
    return found


def test_segments_come_whole_and_in_the_order_they_were_asked_for(tmp_path: Path) -> None:
    side = Side(tmp_path)
    connection, transport = side.connect()
    asked = [(0, 1), (3, 0), (2, 0), (0, 0), (1, 0)]
    data = b"".join(
        encode_frame(FetchSegment(n, JOB, attempt(index), partition))
        for n, (index, partition) in enumerate(asked)
    )
    connection.dataReceived(data[:50])  # cut anywhere
    connection.dataReceived(data[50:])
    side.threads.run()
    got = side.drained(transport)
    assert [header.request for header, _ in got] == [0, 1, 2, 3, 4]
    for (index, partition), (header, data) in zip(asked, got, strict=True):
        assert data == segment_bytes(side.paths[index], partition)
        assert header.size_bytes == len(data)
        assert header.rows > 0
    assert side.server.held_bytes == 0


@pytest.mark.parametrize("cached", [True, False])
def test_what_is_not_in_the_page_cache_is_read_in_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    asked: list[int] = []

    def read_cached(self: Any, into: memoryview, offset: int) -> bool:
        asked.append(len(into))
        if cached:
            into[:] = self.pread(len(into), offset)
        return cached

    monkeypatch.setattr(LocalReadableFile, "read_cached", read_cached)
    side = Side(tmp_path, batch_bytes=250_000, cached_bytes=250_000)
    connection, transport = side.connect()
    side.ask(connection, 3)
    assert [bytes(data) for _, data in side.drained(transport)] == [segment_bytes(side.paths[3], 0)]
    assert len(asked) == (
        4 if cached else 1
    )  # neither the first piece nor the last, where files are opened and closed
    assert max(asked) <= 250_000


def test_segments_that_cannot_be_had_are_refused_and_the_next_is_served(tmp_path: Path) -> None:
    side = Side(tmp_path)
    (tmp_path / f"{attempt(8)}.run").symlink_to(side.paths[0])
    (tmp_path / "elsewhere").write_bytes(Path(side.paths[0]).read_bytes())
    damage(side.paths[1], -30)
    connection, transport = side.connect()
    requests = [
        FetchSegment(1, OTHER_JOB, attempt(0, OTHER_JOB), 0),
        FetchSegment(2, JOB, attempt(9), 0),
        FetchSegment(3, JOB, attempt(1), 0),
        FetchSegment(4, JOB, attempt(8), 0),
        FetchSegment(5, JOB, "../elsewhere", 0),
        FetchSegment(6, JOB, f"{attempt(0)}.run/../../elsewhere", 0),
        FetchSegment(7, JOB, attempt(0), -1),
        FetchSegment(8, JOB, attempt(0), 4096),
        FetchSegment(9, JOB, attempt(0, OTHER_JOB), 0),
        FetchSegment(10, JOB, f"{JOB}-r000000.1000", 0),
        FetchSegment(11, "", "", 0),
        FetchSegment(12, JOB, attempt(0), 0),
    ]
    for request in requests:
        connection.dataReceived(encode_frame(request))
    side.threads.run()
    *refused, (header, data) = side.drained(transport)
    assert [each.request for each in refused] == list(range(1, 12))
    codes = [from_report(each.error).code for each in refused]
    assert codes == ["fetch-failed", *["corrupt-run"] * 3, *["protocol"] * 7]
    assert (header.request, data) == (12, segment_bytes(side.paths[0], 0))


def test_a_damaged_block_is_refused_before_anything_of_its_segment_was_sent(tmp_path: Path) -> None:
    side = Side(tmp_path)
    damage(side.paths[0], 1_000)
    connection, transport = side.connect()
    side.ask(connection, 0, partition=0, request=1)
    side.ask(connection, 0, partition=1, request=2)
    refused, (header, data) = side.drained(transport)
    assert isinstance(refused, SegmentRefused)
    assert from_report(refused.error).details["file"] == side.paths[0]
    assert (header.request, data) == (2, segment_bytes(side.paths[0], 1))


@pytest.mark.parametrize("cached_bytes", [0, 1 << 20])
def test_damage_found_half_way_ends_the_connection_and_is_refused_the_next_time(
    tmp_path: Path, cached_bytes: int
) -> None:
    side = Side(tmp_path, batch_bytes=250_000, cached_bytes=cached_bytes)
    damage(side.paths[3], 750_000)
    connection, transport = side.connect()
    side.ask(connection, 3)
    (header, data), *_ = side.drained(transport)
    assert transport.aborted
    assert 0 < len(data) < header.size_bytes
    connection.connectionLost(GONE)
    side.threads.run()
    assert side.server.held_bytes == 0
    connection, transport = side.connect()
    side.ask(connection, 3, request=5)
    (refused,) = side.drained(transport)
    assert from_report(refused.error).code == "corrupt-run"


def test_a_peer_that_does_not_read_holds_two_batches_and_is_cut_off(tmp_path: Path) -> None:
    side = Side(tmp_path, batch_bytes=250_000, cached_bytes=0, stall_s=60.0)
    connection, transport = side.connect()
    side.ask(connection, 3)
    transport.drain()  # the second piece is not in the cache: from here on one is read ahead
    for _ in range(3):
        side.ask(connection, 3)
    assert 400_000 < side.server.held_bytes < 520_000
    side.reactor.pump([10.0] * 5)
    transport.drain()  # some progress: the minute begins anew
    side.threads.run()
    side.reactor.pump([10.0] * 5)
    assert not transport.aborted
    side.reactor.pump([10.0] * 2)
    assert transport.aborted
    connection.connectionLost(GONE)
    side.threads.run()
    assert side.server.held_bytes == 0
    assert not side.server.connections


def test_batches_get_smaller_as_more_is_held(tmp_path: Path) -> None:
    side = Side(tmp_path, bytes_max=2_000_000, batch_bytes=300_000, batch_bytes_min=64 * KIB, cached_bytes=0)
    rooms = []
    for _ in range(8):
        connection, _transport = side.connect()
        rooms.append(side.server.room())
        side.ask(connection, 3)
    assert rooms[0] == 300_000
    assert rooms == sorted(rooms, reverse=True)
    assert rooms[-1] >= 64 * KIB
    assert side.server.held_bytes_peak < 2_000_000 + 8 * 2 * 64 * KIB


@pytest.mark.parametrize(
    "data",
    [HEADER.pack(5000), HEADER.pack(3) + b"abc", encode_frame(Stop()), encode_frame(SegmentHeader(1, 2, 3))],
)
def test_what_is_no_request_ends_the_connection(tmp_path: Path, data: bytes) -> None:
    side = Side(tmp_path)
    connection, transport = side.connect()
    connection.dataReceived(data)
    assert transport.aborted
    side.ask(connection, 0)  # what still comes is not answered
    assert transport.value() == b""


def test_a_peer_that_is_not_known_is_not_answered(tmp_path: Path) -> None:
    side = Side(tmp_path)
    side.refuse = ProtocolError("its certificate is a client's")
    connection, transport = side.connect()
    side.ask(connection, 0)
    assert transport.aborted
    assert transport.value() == b""
    connection.connectionLost(GONE)


def test_a_peer_that_is_out_is_cut_off(tmp_path: Path) -> None:
    side = Side(tmp_path)
    connection, transport = side.connect()
    side.ask(connection, 3)
    side.server.cut_off("node-8", "it was revoked")
    assert not transport.aborted
    side.server.cut_off("node-7", "it was revoked")
    assert transport.aborted
    connection.connectionLost(GONE)
    side.threads.run()
    assert side.server.held_bytes == 0


def test_a_peer_may_have_so_many_connections_and_requests(tmp_path: Path) -> None:
    side = Side(tmp_path, connections_per_peer=2, connections_max=3, requests_max=4)
    first, second, third = (side.connect() for _ in range(3))
    assert side.server.buildProtocol(None) is None
    for connection, _ in (first, second, third):
        side.ask(connection, 0)
    assert [transport.aborted for _, transport in (first, second, third)] == [False, False, True]
    third[0].connectionLost(GONE)
    first[0].connectionLost(GONE)
    connection, transport = side.connect()
    side.ask(connection, 0)
    assert not transport.aborted
    request = encode_frame(FetchSegment(1, JOB, attempt(3), 0))
    connection.dataReceived(request * 4)
    assert not transport.aborted
    connection.dataReceived(request)
    assert transport.aborted


def test_silent_peers_are_cut_off(tmp_path: Path) -> None:
    side = Side(tmp_path, first_request_s_max=10.0, idle_s=120.0)
    _, silent = side.connect()
    connection, idle = side.connect()
    side.ask(connection, 0)
    side.reactor.pump([1.0] * 9)
    assert not silent.aborted
    side.reactor.pump([1.0] * 2)
    assert silent.aborted
    side.reactor.pump([10.0] * 10)
    assert not idle.aborted
    side.reactor.pump([10.0] * 2)
    assert idle.aborted


def test_a_slow_disk_is_not_the_peers_fault(tmp_path: Path) -> None:
    side = Side(tmp_path)
    connection, transport = side.connect()
    connection.dataReceived(encode_frame(FetchSegment(1, JOB, attempt(0), 0)))
    side.reactor.pump([10.0] * 30)  # the thread still reads
    assert not transport.aborted
    side.threads.run()
    assert len(side.drained(transport)) == 1


def test_an_ended_job_is_served_no_more(tmp_path: Path) -> None:
    side = Side(tmp_path, batch_bytes=250_000)
    connection, transport = side.connect()
    side.ask(connection, 3, request=1)
    side.ask(connection, 0, request=2)
    side.server.unregister_job(JOB)
    side.server.unregister_job(JOB)
    os.unlink(side.paths[3])
    side.ask(connection, 1, request=3)
    (header, data), *refused = side.drained(transport)
    assert header.size_bytes == len(data)  # begun before: sent whole
    assert [(each.request, from_report(each.error).code) for each in refused] == [
        (2, "fetch-failed"),
        (3, "fetch-failed"),
    ]


def test_files_of_lost_connections_are_closed(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    side = Side(tmp_path, batch_bytes=250_000)
    before = descriptors()
    for during_read in (True, False):
        connection, _ = side.connect()
        side.ask(connection, 3)
        if during_read:
            side.ask(connection, 3)
            connection.resumeProducing()
            connection.connectionLost(GONE)
        else:
            connection.connectionLost(GONE)
        side.threads.run()
        assert descriptors() == before
    assert side.server.held_bytes == 0


# --- combined segments ---

GROUP = f"{JOB}-c000000.0"


class Combined(Side):
    """Maps 0, 1 and 2 were combined; of these map 1 has no rows of partition 1."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        super().__init__(folder, **policy)
        members = {attempt(0): {0, 1}, attempt(1): {0}, attempt(2): {0, 1}}
        self.combined = write_combined(self.folder, GROUP, members)
        self.server.combined(JOB, GROUP, list(members))
        self.connection, self.transport = self.connect()

    def together(self, first: int, *others: int, partition: int = 0, ahead: bool = False) -> list[Any]:
        """The answers to one message; its requests are numbered by their maps."""
        before = len(self.drained(self.transport))
        names = tuple(attempt(index) for index in others)
        message = FetchSegment(first, JOB, attempt(first), partition, names, ahead)
        self.connection.dataReceived(encode_frame(message))
        self.threads.run()
        return self.drained(self.transport)[before:]


def test_outputs_asked_for_together_come_combined(tmp_path: Path) -> None:
    side = Combined(tmp_path)
    combined, other = side.together(0, 1, 2, 3)
    assert (combined[0].request, combined[0].covers) == (0, (1, 2))
    assert combined[1] == segment_bytes(side.combined, 0)
    assert (other[0].request, other[0].covers) == (3, ())
    assert other[1] == segment_bytes(side.paths[3], 0)


def test_only_outputs_with_rows_of_the_partition_have_to_be_asked_for(tmp_path: Path) -> None:
    side = Combined(tmp_path)
    ((header, data),) = side.together(0, 2, partition=1)
    # by number, not by map: what follows the first in its message
    assert (header.request, header.covers) == (0, (1,))
    assert data == segment_bytes(side.combined, 1)
    assert check_segment_bytes(tmp_path, data, 1) == (attempt(0), attempt(2))


def check_segment_bytes(folder: Path, data: bytes, partition: int) -> tuple[str, ...]:
    path = folder / "received"
    path.write_bytes(data)
    return plan_segment(FS, str(path), partition).members


def test_an_output_without_rows_comes_by_itself(tmp_path: Path) -> None:
    side = Combined(tmp_path)
    first, second = side.together(0, 1, partition=1)
    assert [(each[0].request, each[0].covers) for each in (first, second)] == [(0, ()), (1, ())]
    assert [each[1] for each in (first, second)] == [segment_bytes(side.paths[i], 1) for i in (0, 1)]


def test_what_is_not_all_asked_for_in_one_message_comes_one_by_one(tmp_path: Path) -> None:
    side = Combined(tmp_path)
    data = b"".join(
        encode_frame(FetchSegment(number, JOB, attempt(index), 0, others))
        for number, index, others in ((0, 0, (attempt(1),)), (2, 2, ()))
    )
    side.connection.dataReceived(data)
    side.threads.run()
    got = side.drained(side.transport)
    assert [(header.request, header.covers) for header, _ in got] == [(0, ()), (1, ()), (2, ())]
    assert [data for _, data in got] == [segment_bytes(side.paths[i], 0) for i in range(3)]


def test_what_is_asked_for_ahead_is_put_off_while_more_will_be_combined(tmp_path: Path) -> None:
    side = Combined(tmp_path)
    side.server.combining(JOB, True)
    assert side.together(0, 1, ahead=True) == [SegmentLater(0), SegmentLater(1)]
    ((header, _),) = side.together(0, 1, 2, ahead=True)
    assert header.covers == (1, 2)
    assert side.together(3, ahead=True) == [SegmentLater(3)]
    ((header, _),) = side.together(3)  # a reduce waits for it
    assert header.covers == ()
    side.server.combining(JOB, False)
    assert [header.covers for header, _ in side.together(0, 1, ahead=True)] == [(), ()]


@pytest.mark.parametrize("block_bytes", [2000, 100_000])
def test_a_combined_file_that_is_damaged_is_given_no_more(tmp_path: Path, block_bytes: int) -> None:
    """If nothing of it was sent, each output comes by itself at once; else when it is asked for again."""
    side = Combined(tmp_path, batch_bytes=50_000, batch_bytes_min=50_000, cached_bytes=50_000)
    members = {attempt(index): {0} for index in range(3)}
    os.unlink(side.combined)
    path = write_combined(side.folder, GROUP, members, block_bytes=block_bytes, blocks=2)
    damage(path, 40 if block_bytes == 2000 else 150_000)
    got = side.together(0, 1, 2)
    if block_bytes > 2000:
        assert side.transport.aborted
        side.connection, side.transport = side.connect()
        got = side.together(0, 1, 2)
    assert [(header.request, header.covers) for header, _ in got] == [(0, ()), (1, ()), (2, ())]
    assert [data for _, data in got] == [segment_bytes(side.paths[i], 0) for i in range(3)]


def test_the_first_that_asks_for_a_job_is_noticed(tmp_path: Path) -> None:
    side = Side(tmp_path)
    asked: list[int] = []
    side.server.register_job(JOB, side.folder, lambda: asked.append(1))
    connection, _ = side.connect()
    assert asked == []
    side.ask(connection, 0)
    side.ask(connection, 1)
    assert asked == [1]


def test_one_message_may_not_ask_for_more_than_is_allowed_at_once(tmp_path: Path) -> None:
    side = Combined(tmp_path, requests_max=3)
    assert len(side.together(0, 1, 2)) == 1
    side.together(0, 1, 2, 3)
    assert side.transport.aborted

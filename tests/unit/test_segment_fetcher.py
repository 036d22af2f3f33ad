"""The segment fetcher on a test clock: what lands, what is tried again, what is given up, what is held."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.python.failure import Failure

from cortex.errors import CorruptRun, CortexError, FetchFailed, InternalError, ProtocolError
from cortex.storage.filesystem import Filesystem
from cortex.transfer.fetch_queue import FetchPolicy, Wanted
from cortex.transfer.segment_fetcher import SegmentFetcher
from cortex.wire.framing import HEADER, FrameDecoder, encode_frame
from cortex.wire.messages import FetchSegment, SegmentHeader, SegmentLater, SegmentRefused, ToSegmentServer
from tests.faulty_filesystem import FaultyFilesystem
from tests.segment_tools import (
    FS,
    JOB,
    OTHER_JOB,
    FakeReactor,
    SlowTransport,
    Threads,
    attempt,
    segment_bytes,
    write_combined,
    write_run,
)

BROKEN = Failure(ConnectionLost())


class Holder:
    """The other end: takes connections as `mode` says, and shows what it was asked."""

    def __init__(self) -> None:
        self.mode = "accept"
        self.dialled = 0
        self.connections: list[tuple[Any, SlowTransport]] = []

    def connect(self, factory: Any) -> Deferred[Any]:
        self.dialled += 1
        if self.mode == "refuse":
            return fail(ConnectionRefusedError("no one listens"))
        if self.mode == "never":
            return Deferred()
        protocol, transport = factory.buildProtocol(None), SlowTransport()
        protocol.makeConnection(transport)
        self.connections.append((protocol, transport))
        return succeed(protocol)

    def asked(self, index: int = -1) -> list[FetchSegment]:
        """Everything asked on one connection."""
        frames: FrameDecoder[FetchSegment] = FrameDecoder(ToSegmentServer)
        return list(frames.feed(self.connections[index][1].value()))

    def say(self, data: bytes, index: int = -1) -> None:
        self.connections[index][0].dataReceived(data)

    def drop(self, index: int = -1) -> None:
        self.connections[index][0].connectionLost(BROKEN)


class Side:
    def __init__(self, tmp_path: Path, fs: Filesystem = FS, **policy: Any) -> None:
        source = tmp_path / "source"
        source.mkdir()
        self.paths = [write_run(str(source), attempt(i)) for i in range(3)]
        self.folder = tmp_path / "job"
        self.folder.mkdir()
        self.reactor, self.threads, self.holder = FakeReactor(), Threads(), Holder()
        self.stranger: CortexError | None = None
        self.landed: list[tuple[Wanted, int, int]] = []
        self.failed: list[tuple[Wanted, CortexError]] = []
        self.fetcher = SegmentFetcher(
            self.reactor,
            self.reactor.seconds,
            fs,
            lambda name: self.holder,
            lambda *found: self.landed.append(found),
            lambda *found: self.failed.append(found),
            self.check,
            FetchPolicy(**{"connections_per_holder": 1, **policy}),
            lambda: 0.5,
            self.threads,
        )
        self.fetcher.open_job(JOB, str(self.folder))

    def check(self, holder: str, transport: Any) -> None:
        assert holder == "node-7"
        if self.stranger is not None:
            raise self.stranger

    def segment(self, index: int, partition: int = 0) -> bytes:
        return segment_bytes(self.paths[index], partition)

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            self.reactor.advance(0.25)

    def files(self) -> list[str]:
        return sorted(os.listdir(self.folder))


def wanted(index: int, partition: int = 0, job: str = JOB) -> Wanted:
    return Wanted(job, "node-7", attempt(index, job), partition)


def header(request: FetchSegment, size_bytes: int) -> bytes:
    return encode_frame(SegmentHeader(request.request, size_bytes, 1))


def name(index: int, partition: int = 0) -> str:
    return f"{attempt(index)}.p{partition:05d}.segment"


def test_segments_land_under_their_names(tmp_path: Path) -> None:
    side = Side(tmp_path)
    some = [wanted(0), wanted(1, 1), wanted(2)]
    side.fetcher.fetch(some)
    asked = side.holder.asked()
    assert [(each.job, each.attempt, each.partition) for each in asked] == [
        (each.job, each.attempt, each.partition) for each in some
    ]
    parts = [side.segment(0), side.segment(1, 1), side.segment(2)]
    stream = b"".join(header(ask, len(part)) + part for ask, part in zip(asked, parts, strict=True))
    for at in range(0, len(stream), 1000):
        side.holder.say(stream[at : at + 1000])
    assert side.files() == []
    side.threads.run()
    assert [found[0] for found in side.landed] == some
    assert [found[1] for found in side.landed] == [len(part) for part in parts]
    assert side.files() == [name(0), name(1, 1), name(2)]
    assert [(side.folder / file).read_bytes() for file in side.files()] == parts
    assert side.fetcher.inflight.held_bytes == 0
    assert side.failed == []


def test_what_is_received_is_bounded_and_the_sender_paused(tmp_path: Path) -> None:
    side = Side(tmp_path, bytes_max=8_000, batch_bytes=3_000)
    side.fetcher.fetch([wanted(0)])
    part, transport = side.segment(0), side.holder.connections[0][1]
    side.holder.say(header(side.holder.asked()[0], len(part)))
    for at in range(0, len(part), 500):
        while not transport.reading:
            assert 8_000 <= side.fetcher.inflight.held_bytes < 8_500
            side.threads.run()
        side.holder.say(part[at : at + 500])
    side.threads.run()
    assert len(side.landed) == 1
    assert side.fetcher.inflight.peak_bytes < 8_500
    assert len(part) > 10_000


def test_many_segments_each_below_a_batch_do_not_lock_each_other(tmp_path: Path) -> None:
    side = Side(tmp_path, bytes_max=8_000, batch_bytes=5_000, connections_per_holder=2, requests_ahead=1)
    side.fetcher.fetch([wanted(0), wanted(1)])
    parts = [side.segment(0), side.segment(1)]
    for index in range(2):
        ask = side.holder.asked(index)[0]
        side.holder.say(header(ask, len(parts[index])) + parts[index][:4_000], index)
    assert not any(transport.reading for _, transport in side.holder.connections)
    side.threads.run()
    assert all(transport.reading for _, transport in side.holder.connections)
    for index in range(2):
        side.holder.say(parts[index][4_000:], index)
    side.threads.run()
    assert len(side.landed) == 2


def test_segments_with_less_than_a_batch_behind_one_being_written_go_on(tmp_path: Path) -> None:
    side = Side(tmp_path, bytes_max=8_000, batch_bytes=3_000, connections_per_holder=2, requests_ahead=1)
    side.fetcher.fetch([wanted(0), wanted(1)])
    parts = [side.segment(0), side.segment(1)]
    for index in range(2):
        ask = side.holder.asked(index)[0]
        side.holder.say(header(ask, len(parts[index])) + parts[index][:3_000], index)
        side.holder.say(parts[index][3_000:5_900], index)
    assert not any(transport.reading for _, transport in side.holder.connections)
    side.threads.run()
    assert all(transport.reading for _, transport in side.holder.connections)


def test_many_small_segments_count_for_more_than_their_bytes(tmp_path: Path) -> None:
    side = Side(tmp_path, bytes_max=40_000, requests_ahead=16)
    side.fetcher.fetch([wanted(0, partition) for partition in range(16)])
    for ask in side.holder.asked():
        side.holder.say(header(ask, 1_000) + bytes(1_000))
    assert not side.holder.connections[0][1].reading
    side.threads.run()
    assert side.holder.connections[0][1].reading
    assert side.fetcher.inflight.held_bytes == 0


def test_a_refused_segment_fails_with_its_attempt_and_holder(tmp_path: Path) -> None:
    side = Side(tmp_path)
    side.fetcher.fetch([wanted(0), wanted(1)])
    first, second = side.holder.asked()
    error = CorruptRun("run file x is damaged", details={"file": "x"})
    part = side.segment(1)
    side.holder.say(
        encode_frame(SegmentRefused(first.request, error.report())) + header(second, len(part)) + part
    )
    side.threads.run()
    ((lost, cause),) = side.failed
    assert lost == wanted(0)
    assert isinstance(cause, FetchFailed)
    assert cause.details == {"attempt": attempt(0), "partition": "0", "holder": "node-7", "file": "x"}
    assert [found[0] for found in side.landed] == [wanted(1)]


def test_a_connection_that_breaks_leaves_nothing_and_is_made_again(tmp_path: Path) -> None:
    side = Side(tmp_path, batch_bytes=1_000)
    side.fetcher.fetch([wanted(0)])
    part = side.segment(0)
    side.holder.say(header(side.holder.asked()[0], len(part)) + part[:5_000])
    side.threads.run()
    side.holder.say(part[5_000:8_000])
    assert len(side.files()) == 1
    side.holder.drop()
    side.threads.run()
    assert side.files() == []
    assert side.fetcher.inflight.held_bytes == 0
    assert side.holder.dialled == 1
    side.pass_time(0.5)
    assert side.holder.dialled == 2
    side.holder.say(header(side.holder.asked()[0], len(part)) + part)
    side.threads.run()
    assert side.files() == [name(0)]


def test_a_holder_that_cannot_be_reached_is_given_up_after_some_tries(tmp_path: Path) -> None:
    side = Side(tmp_path, tries_max=3, backoff_first_s=1.0)
    side.holder.mode = "refuse"
    side.fetcher.fetch([wanted(0), wanted(1)])
    side.pass_time(0.75)
    assert side.holder.dialled == 1
    side.pass_time(0.5)
    assert side.holder.dialled == 2
    assert side.failed == []
    side.pass_time(5.0)
    assert [lost for lost, _ in side.failed] == [wanted(0), wanted(1)]
    assert "no one listens" in side.failed[0][1].message
    side.pass_time(20.0)
    assert side.holder.dialled == 3


def test_a_connection_that_is_never_made_is_given_up(tmp_path: Path) -> None:
    side = Side(tmp_path, connect_s_max=15.0)
    side.holder.mode = "never"
    side.fetcher.fetch([wanted(0)])
    side.pass_time(14.5)
    assert side.holder.dialled == 1
    side.holder.mode = "accept"
    side.pass_time(1.0)
    assert len(side.holder.asked()) == 1


def test_a_stuck_peer_is_cut_off_and_tried_again(tmp_path: Path) -> None:
    side = Side(tmp_path, stall_s=20.0)
    side.fetcher.fetch([wanted(0)])
    part = side.segment(0)
    side.pass_time(15.0)
    side.holder.say(header(side.holder.asked()[0], len(part)))
    side.pass_time(15.0)
    assert not side.holder.connections[0][1].aborted
    side.pass_time(5.5)
    assert side.holder.connections[0][1].aborted
    assert len(side.holder.connections) == 2
    side.holder.say(b"late bytes of the first connection", 0)
    side.holder.say(header(side.holder.asked()[0], len(part)) + part)
    side.threads.run()
    assert len(side.landed) == 1


def test_a_peer_is_not_stuck_while_this_node_does_not_read_or_asks_nothing(tmp_path: Path) -> None:
    side = Side(tmp_path, stall_s=20.0, bytes_max=4_000, batch_bytes=1_000, idle_s=500.0)
    side.fetcher.fetch([wanted(0)])
    part, transport = side.segment(0), side.holder.connections[0][1]
    side.holder.say(header(side.holder.asked()[0], len(part)) + part[:-100])
    assert not transport.reading
    side.pass_time(100.0)
    assert not transport.aborted
    side.threads.run()
    side.pass_time(15.0)
    assert not transport.aborted  # its time counts from when it was read from again
    side.holder.say(part[-100:])
    side.threads.run()
    side.pass_time(100.0)
    assert not transport.aborted


def test_a_segment_that_comes_damaged_is_fetched_again_then_given_up(tmp_path: Path) -> None:
    side = Side(tmp_path, tries_max=3)
    side.fetcher.fetch([wanted(0)])
    part = side.segment(1, 1)  # whole, and another partition's
    for count in (1, 2, 3):
        (ask,) = side.holder.asked()[count - 1 :]
        side.holder.say(header(ask, len(part)) + part)
        side.threads.run()
        assert side.files() == []
        assert len(side.failed) == (count == 3)
        side.pass_time(20.0)
    assert isinstance(side.failed[0][1], FetchFailed)
    assert len(side.holder.connections) == 1  # the connection is in order


def test_an_empty_segment_is_damaged(tmp_path: Path) -> None:
    side = Side(tmp_path, tries_max=1)
    side.fetcher.fetch([wanted(0)])
    side.holder.say(header(side.holder.asked()[0], 0))
    side.threads.run()
    assert len(side.failed) == 1


@pytest.mark.parametrize(
    ("fs", "code"),
    [
        (FaultyFilesystem(capacity_bytes=4_000), "spill-full"),
        (FaultyFilesystem(fail_at=4, error=errno.EIO), "spill-failed"),
        (FaultyFilesystem(fail_at=0, error=errno.ENOENT), "spill-failed"),
    ],
)
def test_what_this_node_cannot_write_is_said_at_once(tmp_path: Path, fs: Any, code: str) -> None:
    side = Side(tmp_path, fs, batch_bytes=1_000)
    side.fetcher.fetch([wanted(0)])
    part = side.segment(0)
    side.holder.say(header(side.holder.asked()[0], len(part)))
    for at in range(0, len(part), 1000):
        side.holder.say(part[at : at + 1000])
        side.threads.run()
    assert [error.code for _, error in side.failed] == [code]
    assert side.files() == []
    assert side.fetcher.inflight.held_bytes == 0
    assert side.holder.dialled == 1


@pytest.mark.parametrize(
    "answer",
    [
        lambda ask: header(FetchSegment(ask.request + 1, "", "", 0), 10),
        lambda ask: encode_frame(SegmentRefused(99, ProtocolError("x").report())),
        lambda ask: HEADER.pack(1 << 20),
        lambda ask: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
def test_an_answer_out_of_turn_ends_the_connection(
    tmp_path: Path, answer: Callable[[FetchSegment], bytes]
) -> None:
    side = Side(tmp_path, tries_max=2)
    side.fetcher.fetch([wanted(0)])
    side.holder.say(answer(side.holder.asked()[0]))
    assert side.holder.connections[0][1].aborted
    side.pass_time(1.0)
    assert len(side.holder.connections) == 2
    side.holder.say(answer(side.holder.asked()[0]))
    assert len(side.failed) == 1


@pytest.mark.parametrize("covers", [(2,), (4,), (1,), (2, 2), (9,)])
def test_a_segment_stands_only_for_what_was_asked_for_with_it(
    tmp_path: Path, covers: tuple[int, ...]
) -> None:
    side = Side(tmp_path, tries_max=2)
    alike = [replace(wanted(i), combines=True) for i in range(2)]
    side.fetcher.fetch([*alike, replace(wanted(0, 1), combines=True), wanted(2)])
    asked = side.holder.asked()
    assert [(each.request, each.others) for each in asked] == [(1, (attempt(1),)), (3, ()), (4, ())]
    side.holder.say(encode_frame(SegmentHeader(1, 10, 1, covers)))
    # 2 was asked for with 1; 3 is of another partition, 4 of none that combine, and 9 of nothing
    assert side.holder.connections[0][1].aborted is (covers != (2,))


@pytest.mark.parametrize("right", [True, False])
def test_a_combined_segment_lands_under_the_name_of_its_first(tmp_path: Path, right: bool) -> None:
    side = Side(tmp_path)
    path = write_combined(str(tmp_path / "source"), f"{JOB}-c000000.0", {attempt(0): {0}, attempt(1): {0}})
    some = [replace(wanted(i), combines=True) for i in range(2 if right else 3)]
    side.fetcher.fetch(some)
    data = segment_bytes(path, 0)
    covers = tuple(range(2, 1 + len(some)))  # one that it does not stand for, if not right
    side.holder.say(encode_frame(SegmentHeader(1, len(data), 1, covers)) + data)
    side.threads.run()
    if right:
        assert [(found[0], found[3]) for found in side.landed] == [(some[0], some[1:])]
        assert side.files() == [name(0)]
    else:
        assert side.landed == side.failed == []
        assert side.files() == []
        side.pass_time(1.0)
        assert [each.others for each in side.holder.asked()[1:]] == [(), (), ()]  # each alone


def test_what_its_holder_gives_later_is_asked_for_when_it_is_waited_for(tmp_path: Path) -> None:
    side = Side(tmp_path)
    early = replace(wanted(0), combines=True, ahead=True)
    side.fetcher.fetch([early])
    assert side.holder.asked()[0].ahead
    side.holder.say(encode_frame(SegmentLater(1)))
    side.pass_time(5.0)
    assert len(side.holder.asked()) == 1
    side.fetcher.fetch([replace(early, ahead=False)])
    _, again = side.holder.asked()
    assert (again.request, again.ahead) == (2, False)
    part = side.segment(0)
    side.holder.say(header(again, len(part)) + part)
    side.threads.run()
    assert len(side.landed) == 1


def test_nothing_is_taken_from_a_peer_that_is_not_the_holder(tmp_path: Path) -> None:
    side = Side(tmp_path, tries_max=1)
    side.stranger = ProtocolError("it is another node")
    side.fetcher.fetch([wanted(0)])
    part = side.segment(0)
    side.holder.say(header(side.holder.asked()[0], len(part)) + part)
    side.threads.run()
    assert side.holder.connections[0][1].aborted
    assert ["another node" in error.message for _, error in side.failed] == [True]
    assert side.files() == []


def test_cancel_says_when_no_thread_works_for_the_job(tmp_path: Path) -> None:
    side = Side(tmp_path, batch_bytes=1_000)
    side.fetcher.open_job(OTHER_JOB, str(tmp_path))
    side.fetcher.fetch([wanted(0), wanted(1), wanted(0, job=OTHER_JOB)])
    first, second, _ = side.holder.asked()
    parts = [side.segment(0), side.segment(1)]
    side.holder.say(
        header(first, len(parts[0])) + parts[0] + header(second, len(parts[1])) + parts[1][:5_000]
    )
    gone: list[int] = []
    side.fetcher.cancel(JOB, lambda: gone.append(1))
    assert side.holder.connections[0][1].aborted
    assert gone == []
    side.threads.run()
    assert gone == [1]
    assert [file for file in side.files() if file.endswith("partial")] == []
    assert side.landed == side.failed == []
    assert [ask.job for ask in side.holder.asked(1)] == [OTHER_JOB]  # anew, on a connection of its own
    side.fetcher.cancel(JOB, lambda: gone.append(2))
    assert gone == [1, 2]
    with pytest.raises(InternalError):
        side.fetcher.fetch([wanted(2)])


def test_a_callback_may_cancel_and_fetch(tmp_path: Path) -> None:
    side = Side(tmp_path)
    gone: list[int] = []

    def failed(lost: Wanted, error: CortexError) -> None:
        side.failed.append((lost, error))
        side.fetcher.fetch([wanted(2)])
        side.fetcher.cancel(JOB, lambda: gone.append(1))

    side.fetcher._failed = failed
    side.fetcher.fetch([wanted(0), wanted(1)])
    first, second = side.holder.asked()
    refusal = encode_frame(SegmentRefused(first.request, CorruptRun("gone").report()))
    side.holder.say(refusal + header(second, 100) + b"x" * 50)
    side.threads.run()
    assert gone == [1]
    assert [lost for lost, _ in side.failed] == [wanted(0)]
    assert side.files() == []


def test_stop_cuts_everything(tmp_path: Path) -> None:
    side = Side(tmp_path)
    side.fetcher.fetch([wanted(0)])
    side.holder.say(header(side.holder.asked()[0], 1000) + b"x" * 10)
    gone: list[int] = []
    side.fetcher.stop(lambda: gone.append(1))
    for thread in threading.enumerate():
        if thread.name == "stop-segment-write":
            thread.join(10)
    assert gone == [1]
    assert side.holder.connections[0][1].aborted
    side.pass_time(60.0)
    assert side.holder.dialled == 1
    assert side.failed == side.landed == []

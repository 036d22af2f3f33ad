"""Frames over a real socket pair, their limits, and the Twisted end of a link on a test clock."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from cortex.errors import CortexError, ProtocolError, UsageError
from cortex.limits import HELLO_BYTES_MAX, HELLO_S_MAX
from cortex.private_files import check_private_folder
from cortex.wire import messages
from cortex.wire.framing import HEADER, BlockingConnection, FrameDecoder, encode_frame
from cortex.wire.transports import MessageProtocol, listen_unix, peer_uid

HELLO = messages.ClientHello({"python": "3.11"})


def decoder(max_bytes: int = 1 << 20) -> FrameDecoder[messages.ToServer]:
    return FrameDecoder(messages.ToServer, max_bytes)


def test_a_message_survives_the_wire() -> None:
    sent = messages.CancelJob("j000000000000")
    assert list(decoder().feed(encode_frame(sent))) == [sent]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "truncated"),
        (b"\xc1", "malformed"),
        (b"\x80", "required"),
        (encode_frame(messages.Stop())[4:], "Invalid value 'Stop'"),
        (encode_frame(HELLO)[4:] + b"\x00", "trailing"),
        # Python before 3.14 bounds the depth itself; 3.14 bounds only the bytes of stack that are there.
        (b"\x82\xa4type\xa9CancelJob\xa1x" + b"\x91" * 1_000_000, "recursion|stack overflow|truncated"),
        (b"\x82\xa4type\xa9CancelJob\xa3job\xa2\xff\xfe", "utf-8"),
    ],
)
def test_bytes_that_are_no_message_are_refused(body: bytes, why: str) -> None:
    frames = decoder()
    with pytest.raises(ProtocolError, match=rf"(?i){why}"):
        list(frames.feed(HEADER.pack(len(body)) + body))
    with pytest.raises(ProtocolError):  # and stay refused: the stream has lost its place
        list(frames.feed(encode_frame(HELLO)))


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", ".x", "", "_SUCCESS", "x\n", "x\0", "x" * 201])
def test_a_part_whose_name_is_a_path_is_no_message(name: str) -> None:
    """Of a node that says it to the server, and of a server that says it to the client."""
    good = "part-00000.csv", "j000000000000-r000000.0.csv"
    for names in ((name, good[1]), (good[0], name)):
        part = messages.OutputPart(*names, 1, 1, ())
        stats = messages.TaskStats()
        result = messages.ReduceResult(0, stats, (part,))
        done = messages.TaskFinished("j000000000000-r000000.0", result, 1.0, 1)
        said = messages.AttemptFinished("n0123456789ab", "1", done)
        told = messages.JobDone("j000000000000", messages.JobReport("j000000000000", "x", 1.0), (part,))
        for message, union in ((said, messages.FromNode), (told, messages.FromServer)):
            with pytest.raises(ProtocolError, match=r"regex|length"):
                list(FrameDecoder[Any](union, 1 << 20).feed(encode_frame(message)))
    part = messages.OutputPart(*good, 1, 1, ())
    told = messages.JobDone("j000000000000", messages.JobReport("j000000000000", "x", 1.0), (part,))
    assert list(FrameDecoder[Any](messages.FromServer, 1 << 20).feed(encode_frame(told))) == [told]


def test_a_frame_over_the_limit_is_refused_by_its_header_alone() -> None:
    with pytest.raises(ProtocolError, match="at most 1 KB"):
        list(decoder(1024).feed(HEADER.pack(1025)))
    with pytest.raises(ProtocolError, match="SubmitJob message of 2"):
        encode_frame(messages.SubmitJob(None, b"x" * 2000, (), ""), max_bytes=1024)  # type: ignore[arg-type]


def test_the_limit_raised_after_a_hello_counts_for_frames_already_received() -> None:
    frames: FrameDecoder[messages.FromServer] = FrameDecoder(messages.FromServer, HELLO_BYTES_MAX)
    large = messages.JobAccepted("j" * (HELLO_BYTES_MAX + 1))
    got = []
    for message in frames.feed(encode_frame(messages.JobAccepted("first")) + encode_frame(large)):
        got.append(message)
        frames.set_limit(1 << 20)
    assert got == [messages.JobAccepted("first"), large]


def test_feeding_byte_by_byte_is_linear() -> None:
    frame = encode_frame(messages.JobAccepted("j" * 300_000))
    frames: FrameDecoder[messages.FromServer] = FrameDecoder(messages.FromServer)
    got = [m for i in range(len(frame)) for m in frames.feed(frame[i : i + 1])]
    assert len(got) == 1  # quadratic copying would move 45 GB here


def pair() -> tuple[BlockingConnection[messages.ToServer], socket.socket]:
    ours, theirs = socket.socketpair()
    return BlockingConnection(ours, messages.ToServer), theirs


def test_blocking_connection_receives_what_was_sent() -> None:
    connection, theirs = pair()
    with connection, BlockingConnection(theirs, messages.FromServer) as peer:
        accepted = messages.JobAccepted("x" * 3_000_000)  # larger than a socket's buffer
        sender = threading.Thread(target=connection.send, args=(accepted,))
        sender.start()
        assert peer.receive(timeout=20) == accepted
        sender.join()
        peer.send(HELLO)
        peer.send(messages.CancelJob("a"))
        assert [connection.receive(), connection.receive()] == [HELLO, messages.CancelJob("a")]


def test_a_timeout_keeps_what_came() -> None:
    connection, theirs = pair()
    frame = encode_frame(HELLO)
    with connection, theirs:
        theirs.sendall(frame[:7])
        with pytest.raises(TimeoutError):
            connection.receive(timeout=0.01)
        theirs.sendall(frame[7:])
        assert connection.receive(timeout=5) == HELLO


def test_an_end_between_frames_is_none_and_inside_one_an_error() -> None:
    connection, theirs = pair()
    with connection:
        theirs.sendall(encode_frame(HELLO))
        theirs.close()
        assert connection.receive() == HELLO
        assert connection.receive() is None
    connection, theirs = pair()
    with connection:
        theirs.sendall(encode_frame(HELLO)[:-1])
        theirs.close()
        with pytest.raises(ProtocolError, match="inside a message"):
            connection.receive()


def test_a_peer_killed_with_unread_input_is_an_end() -> None:
    connection, theirs = pair()
    with connection:
        connection.send(HELLO)
        theirs.close()  # with our hello unread: the kernel resets the connection
        assert connection.receive() is None


# --- the Twisted end ---


class Link:
    """A MessageProtocol on a StringTransport, and what its owner was told."""

    def __init__(self, unsent_bytes_max: int = 1 << 20, check_peer: bool = False) -> None:
        self.clock, self.transport = Clock(), StringTransport()
        self.messages: list[object] = []
        self.ends: list[CortexError | None] = []
        self.protocol: MessageProtocol[messages.ToServer] = MessageProtocol(
            self.clock,
            messages.ToServer,
            lambda _, message: self.messages.append(message),
            lambda _, error: self.ends.append(error),
            check_peer=check_peer,
            unsent_bytes_max=unsent_bytes_max,
        )

    def connect(self) -> Link:
        self.protocol.makeConnection(self.transport)
        return self

    def sent(self) -> list[messages.FromServer]:
        decoder: FrameDecoder[messages.FromServer] = FrameDecoder(messages.FromServer)
        return list(decoder.feed(self.transport.value()))

    def end(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))


def test_a_silent_peer_is_refused_after_the_hello_time() -> None:
    link = Link().connect()
    link.clock.advance(HELLO_S_MAX - 0.1)
    assert not link.transport.disconnecting
    link.clock.advance(0.2)
    assert [type(m) for m in link.sent()] == [messages.Refused]
    assert link.transport.disconnecting
    link.end()
    assert [type(e) for e in link.ends] == [ProtocolError]
    assert not link.clock.getDelayedCalls()


def test_an_accepted_peer_may_be_silent_and_send_large_frames() -> None:
    link = Link().connect()
    link.protocol.dataReceived(encode_frame(HELLO))
    link.protocol.accept()
    link.clock.advance(HELLO_S_MAX * 10)
    large = messages.CancelJob("j" * (HELLO_BYTES_MAX * 2))
    link.protocol.dataReceived(encode_frame(large))
    assert link.messages == [HELLO, large]
    assert not link.transport.disconnecting


def test_a_large_first_frame_is_refused_and_nothing_more_is_read() -> None:
    link = Link().connect()
    link.protocol.dataReceived(encode_frame(messages.CancelJob("j" * (HELLO_BYTES_MAX * 2))))
    link.protocol.dataReceived(encode_frame(HELLO))
    assert link.messages == []
    refused = link.sent()[0]
    assert isinstance(refused, messages.Refused)
    assert refused.error.code == "protocol"


def test_a_peer_that_does_not_read_is_cut_off() -> None:
    link = Link(unsent_bytes_max=1000).connect()
    link.protocol.accept()
    link.protocol.pauseProducing()
    assert link.protocol.congested
    before = len(link.transport.value())
    for _ in range(100):
        link.protocol.send(messages.JobAccepted("j" * 100))
    assert len(link.transport.value()) == before
    assert link.transport.disconnected or link.transport.disconnecting
    link.end()
    assert isinstance(link.ends[0], ProtocolError)
    assert "does not read" in link.ends[0].message


def test_what_waited_is_sent_in_order_when_the_peer_reads_again() -> None:
    link = Link().connect()
    link.protocol.accept()
    link.protocol.send(messages.JobAccepted("0"))
    link.protocol.pauseProducing()
    for i in range(1, 5):
        link.protocol.send(messages.JobAccepted(str(i)))
    link.protocol.resumeProducing()
    assert link.sent() == [messages.JobAccepted(str(i)) for i in range(5)]


def test_close_sends_the_last_message_and_aborts_a_peer_that_hangs() -> None:
    link = Link().connect()
    link.protocol.accept()
    link.protocol.pauseProducing()
    link.protocol.send(messages.JobAccepted("1"))
    link.protocol.close(messages.JobAccepted("2"))
    link.protocol.send(messages.JobAccepted("3"))
    assert link.sent() == [messages.JobAccepted("1"), messages.JobAccepted("2")]
    assert link.transport.disconnecting
    link.clock.advance(3)
    assert link.transport.disconnected
    link.end()
    assert link.ends == [None]


def test_an_end_inside_a_message_is_told() -> None:
    link = Link().connect()
    link.protocol.dataReceived(encode_frame(HELLO)[:5])
    link.end()
    assert "inside a message" in str(link.ends[0])


def test_the_kernel_names_the_peer_of_a_unix_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_uid(ours) == os.geteuid()
        link = Link(check_peer=True)
        link.transport.getHandle = lambda: ours  # type: ignore[attr-defined]
        link.connect()
        assert not link.transport.disconnected
        link.end()
        monkeypatch.setattr(os, "geteuid", lambda: peer_uid(theirs) + 1)
        stranger = Link(check_peer=True)
        stranger.transport.getHandle = lambda: ours  # type: ignore[attr-defined]
        stranger.connect()
        stranger.protocol.dataReceived(encode_frame(HELLO))
        assert stranger.transport.disconnected
        assert stranger.messages == []


def test_the_socket_folder_must_be_private(tmp_path: object) -> None:
    folder = str(tmp_path)
    os.chmod(folder, 0o700)
    check_private_folder(folder)
    os.chmod(folder, 0o750)
    with pytest.raises(UsageError, match="0750: others"):
        check_private_folder(folder)
    os.chmod(folder, 0o700)
    os.symlink(folder, folder + "/link")
    with pytest.raises(UsageError, match="not a folder"):
        check_private_folder(folder + "/link")
    with pytest.raises(UsageError, match="cannot be used"):
        check_private_folder(folder + "/none")
    with pytest.raises(UsageError, match="takes 103"):
        listen_unix(None, folder + "/" + "s" * 104, None)


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "x\n", "a" * 201])
def test_a_large_result_cannot_name_a_file_elsewhere(name: str) -> None:
    """The client opens and removes a file of this name."""
    done = messages.CellDone("", 1, 0, 1, attached=messages.Attached("j1-w000000.0.12.3", (1,)))
    good = messages.CellsDone("j1", (done,), 1)
    assert list(FrameDecoder[messages.FromServer](messages.FromServer).feed(encode_frame(good))) == [good]
    bad = messages.CellsDone(
        "j1", (messages.CellDone("", 1, 0, 1, attached=messages.Attached(name, (1,))),), 1
    )
    with pytest.raises(ProtocolError):
        list(FrameDecoder[messages.FromServer](messages.FromServer).feed(encode_frame(bad)))

"""Reads of a client's files on their way: who is asked, for how much, and who may answer."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from cortex.errors import InputChanged, ProtocolError, from_report
from cortex.limits import (
    INPUT_CLIENT_BYTES,
    INPUT_FIND_BYTES,
    INPUT_NODE_BYTES,
    INPUT_READ_BYTES,
    INPUT_READS_MAX,
)
from cortex.node import input_door
from cortex.node.input_door import InputDoor
from cortex.server.input_relay import InputRelay
from cortex.transfer.read_queue import ReadQueue
from cortex.wire import messages as m
from cortex.wire.framing import FrameDecoder, encode_frame

JOB, OTHER = "j0123456789ab", "j00000000000f"


def _read(number: int, length: int, job: str = JOB, offset: int = 0) -> m.ReadInput:
    return m.ReadInput(number, job, 0, offset, length)


# --- the queue -------------------------------------------------------------------------------------

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from("abc"), st.integers(0, 10)),
        st.tuples(st.just("answer"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("down"), st.just(0), st.just(0)),
        st.tuples(st.just("up"), st.just(0), st.just(0)),
        st.tuples(st.just("drop"), st.sampled_from("abc"), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(_STEPS)
def test_every_read_is_answered_once_unless_it_is_dropped(steps: list[tuple[str, Any, int]]) -> None:
    sent: dict[int, m.ReadInput] = {}
    most = 12

    def send(read: m.ReadInput) -> None:
        assert read.read not in sent
        sent[read.read] = read
        assert queue.bytes_asked <= most
        assert queue.bytes_asked == sum(each.length for each in sent.values())

    queue = ReadQueue[str](itertools.count(), send, most)
    numbers = itertools.count(100)
    wanted: dict[int, str] = {}
    answered: list[tuple[str, int]] = []

    def answer(number: int) -> None:
        offset = sent.pop(number).offset
        found = queue.answered(number)
        if found is not None:
            asker, read = found
            assert read.offset == offset
            assert wanted.pop(read.read) == asker
            answered.append((asker, read.read))

    for what, which, length in steps:
        if what == "ask":
            number = next(numbers)
            wanted[number] = which
            queue.ask(which, _read(number, length, offset=number))
        elif what == "answer" and sent:
            answer(sorted(sent)[which % len(sent)])
        elif what == "down":
            sent.clear()
            queue.down()
        elif what == "up":
            queue.up()
        elif what == "drop":
            queue.drop(which)
            wanted = {number: asker for number, asker in wanted.items() if asker != which}
    queue.up()
    while sent:
        answer(min(sent))
    assert wanted == {}
    assert queue.answered(12345) is None
    assert queue.bytes_asked == 0


def test_askers_take_turns_and_small_reads_are_bounded_too() -> None:
    sent: list[m.ReadInput] = []
    queue = ReadQueue[str](itertools.count(), sent.append, 10)
    for offset in range(4):
        queue.ask("a", _read(1, 5, offset=offset))
    queue.ask("b", _read(1, 5, offset=100))
    assert [read.offset for read in sent] == [0, 1]
    queue.answered(0)
    queue.answered(1)
    assert [read.offset for read in sent] == [0, 1, 2, 100]
    queue.ask("c", _read(1, 11, offset=7))  # larger than all that may be asked for: alone
    for number in (2, 3, 4):
        queue.answered(number)
    assert sent[-1].offset == 7
    assert queue.bytes_asked == 11
    queue.answered(5)
    sent.clear()
    for _ in range(2 * INPUT_READS_MAX):
        queue.ask("a", _read(1, 0))
    assert len(sent) == INPUT_READS_MAX


def test_what_was_not_answered_is_asked_again_in_order() -> None:
    sent: list[m.ReadInput] = []
    queue = ReadQueue[str](itertools.count(), sent.append, 100, up=False)
    for offset in range(5):
        queue.ask("a", _read(1, 30, offset=offset))
    assert sent == []
    queue.up()
    queue.answered(1)
    queue.down()
    sent.clear()
    queue.up()
    assert [read.offset for read in sent] == [0, 2, 3]
    assert queue.answered(0) is None  # the answer to a question of before
    for read in list(sent):
        assert queue.answered(read.read) == ("a", _read(1, 30, offset=read.offset))


# --- the server ------------------------------------------------------------------------------------


class _Cluster:
    def __init__(self) -> None:
        self.there: set[str] = set()
        self.to_nodes: list[tuple[str, Any]] = []
        self.to_clients: list[tuple[Any, Any]] = []
        self.relay = InputRelay(
            lambda node, message: self.to_nodes.append((node, message)),
            lambda client, message: self.to_clients.append((client, message)),
            lambda job: job in self.there,
        )

    def ask(self, node: str, number: int, length: int = 10, job: str = JOB) -> None:
        self.relay.read(m.NodeReads(node, _read(number, length, job, offset=number)))

    def asked(self, client: Any) -> list[m.ReadInput]:
        return [read for each, read in self.to_clients if each == client]


def test_an_answer_goes_to_the_node_that_asked_under_its_number() -> None:
    cluster = _Cluster()
    cluster.relay.client_here(JOB, "client")
    cluster.ask("n1", 7)
    cluster.ask("n2", 7)
    first, second = cluster.asked("client")
    assert (first.job, first.offset, first.length) == (JOB, 7, 10)
    assert first.read != second.read
    cluster.relay.answer("client", m.InputBytes(second.read, b"b"))
    error = InputChanged("it changed", details={"file": "/x"}).report()
    cluster.relay.answer("client", m.InputUnread(first.read, error))
    assert cluster.to_nodes == [("n2", m.InputBytes(7, b"b")), ("n1", m.InputUnread(7, error))]


def test_reads_wait_while_the_client_is_away() -> None:
    cluster = _Cluster()
    cluster.relay.client_here(JOB, "before")
    cluster.ask("n1", 1)
    (lost,) = cluster.asked("before")
    cluster.relay.client_lost("before")
    cluster.ask("n1", 2)
    assert len(cluster.to_clients) == 1
    cluster.relay.answer("before", m.InputBytes(lost.read, b"too late"))  # an answer of a link that is gone
    assert cluster.to_nodes == []
    cluster.relay.client_here(JOB, "after")
    again = cluster.asked("after")
    assert [read.offset for read in again] == [1, 2]
    for read in again:
        cluster.relay.answer("after", m.InputBytes(read.read, b"x"))
    assert cluster.to_nodes == [("n1", m.InputBytes(1, b"x")), ("n1", m.InputBytes(2, b"x"))]


def test_reads_wait_for_the_client_of_a_job_that_was_there_before_the_server() -> None:
    cluster = _Cluster()
    cluster.there.add(JOB)
    cluster.ask("n1", 1)
    assert cluster.to_nodes == []
    cluster.relay.client_here(JOB, "client")
    (read,) = cluster.asked("client")
    cluster.relay.answer("client", m.InputBytes(read.read, b"x"))
    assert cluster.to_nodes == [("n1", m.InputBytes(1, b"x"))]


def test_a_client_that_comes_over_another_link_is_asked_there() -> None:
    cluster = _Cluster()
    cluster.relay.client_here(JOB, "before")
    cluster.ask("n1", 1)
    cluster.relay.client_here(JOB, "after")  # the end of the first was not seen yet
    cluster.relay.client_lost("before")
    (again,) = cluster.asked("after")
    cluster.relay.answer("after", m.InputBytes(again.read, b"x"))
    assert cluster.to_nodes == [("n1", m.InputBytes(1, b"x"))]


def test_a_client_is_asked_for_bounded_bytes_whatever_nodes_want() -> None:
    cluster = _Cluster()
    cluster.relay.client_here(JOB, "client")
    numbers = itertools.count()
    for node in range(20):
        for _ in range(INPUT_NODE_BYTES // INPUT_READ_BYTES):
            cluster.ask(f"n{node}", next(numbers), INPUT_READ_BYTES)
    asked = cluster.asked("client")
    assert sum(read.length for read in asked) == INPUT_CLIENT_BYTES
    most = 0
    data = bytes(INPUT_READ_BYTES)
    for answered in range(20 * INPUT_NODE_BYTES // INPUT_READ_BYTES):
        asked = cluster.asked("client")
        most = max(most, len(asked) - answered)
        cluster.relay.answer("client", m.InputBytes(asked[answered].read, data))
    assert most * INPUT_READ_BYTES == INPUT_CLIENT_BYTES
    # the first node's were all asked for; the others take turns
    assert {node for node, _ in cluster.to_nodes[32:51]} == {f"n{node}" for node in range(1, 20)}


def test_a_node_that_asks_for_more_than_it_may_hold_is_told_so() -> None:
    cluster = _Cluster()
    cluster.relay.client_here(JOB, "client")
    for number in range(INPUT_NODE_BYTES // INPUT_READ_BYTES + 1):
        cluster.ask("n1", number, INPUT_READ_BYTES)
    assert cluster.to_nodes == []
    cluster.ask("n1", 99, INPUT_READ_BYTES)
    ((node, refused),) = cluster.to_nodes
    assert (node, refused.read) == ("n1", 99)
    assert isinstance(from_report(refused.error), ProtocolError)


def test_a_client_answers_for_itself_alone_and_what_was_asked() -> None:
    cluster = _Cluster()
    cluster.relay.client_here(JOB, "mine")
    cluster.relay.client_here(OTHER, "yours")
    cluster.ask("n1", 1)
    (read,) = cluster.asked("mine")
    with pytest.raises(ProtocolError, match="another client's file"):
        cluster.relay.answer("yours", m.InputBytes(read.read, b"x"))
    with pytest.raises(ProtocolError, match="11 bytes where 10"):
        cluster.relay.answer("mine", m.InputBytes(read.read, b"x" * 11))
    cluster.relay.answer("mine", m.InputBytes(4711, b"x"))  # of nothing that is known
    ((node, told),) = cluster.to_nodes  # an executor waits for it: it is not to wait for ever
    assert (node, told.read, told.error.code) == ("n1", 1, "protocol")


def test_reads_of_jobs_that_have_ended_and_of_lost_nodes_end() -> None:
    cluster = _Cluster()
    cluster.relay.client_here(JOB, "client")
    cluster.ask("n1", 1)
    cluster.ask("n2", 2)
    cluster.relay.node_lost("n1")
    cluster.relay.node_lost("n9")  # it never asked
    for read in cluster.asked("client"):
        cluster.relay.answer("client", m.InputBytes(read.read, b"x"))
    assert cluster.to_nodes == [("n2", m.InputBytes(2, b"x"))]
    cluster.ask("n2", 3)
    late = cluster.asked("client")[-1]
    cluster.relay.close_job(JOB)
    cluster.relay.close_job(JOB)
    cluster.relay.answer("client", m.InputBytes(late.read, b"x"))
    assert len(cluster.to_nodes) == 1
    cluster.ask("n2", 4)  # an executor must not wait for ever
    node, refused = cluster.to_nodes[-1]
    assert (node, refused.read, refused.error.code) == ("n2", 4, "not-allowed")
    # what was not answered counts no more
    cluster.relay.client_here(OTHER, "client")
    for number in range(INPUT_NODE_BYTES // INPUT_READ_BYTES):
        cluster.ask("n2", number, INPUT_READ_BYTES, OTHER)
    assert len(cluster.to_nodes) == 2


def _find(too_many: int, find: bytes = b"x") -> m.ReadInput:
    return m.ReadInput(1, JOB, 0, 0, 0, find, INPUT_FIND_BYTES + too_many)


def test_a_read_is_bounded_where_it_is_decoded() -> None:
    decoder = msgspec.msgpack.Decoder(m.ReadInput)
    for read in (
        _read(1, INPUT_READ_BYTES + 1),
        _read(1, -1),
        _read(1, 1, offset=-1),
        _find(2),
        _find(0, b"ab"),
    ):
        with pytest.raises(msgspec.ValidationError):
            decoder.decode(msgspec.msgpack.encode(read))


# --- the node --------------------------------------------------------------------------------------


class _Door:
    """A door without a socket: executors' links over string transports."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(input_door, "listen_unix", lambda *_: self)
        self.sent: list[m.NodeReads] = []
        self.listening = True
        self.door = InputDoor(Clock(), "n1", self.sent.append, "/door")  # type: ignore[arg-type]
        self.door.open_job(JOB)

    def stopListening(self) -> None:
        self.listening = False

    def link(self) -> tuple[Any, StringTransport, FrameDecoder[Any]]:
        link, transport = self.door._build(None), StringTransport()
        link._check_peer = False
        link.makeConnection(transport)
        return link, transport, FrameDecoder(m.FromInputDoor | m.Refused)


def _heard(transport: StringTransport, decoder: FrameDecoder[Any]) -> list[Any]:
    data = transport.value()
    transport.clear()
    return list(decoder.feed(data))


def test_executors_are_answered_under_their_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    door = _Door(monkeypatch)
    one, two = door.link(), door.link()
    for link in (one, two):
        link[0].dataReceived(encode_frame(m.InputHello(JOB)) + encode_frame(_read(5, 10)))
    first, second = door.sent
    assert (first.node, first.asked.job, first.asked.length) == ("n1", JOB, 10)
    door.door.answer(m.InputBytes(second.asked.read, b"two"))
    door.door.answer(m.InputBytes(first.asked.read, b"one"))
    assert _heard(*one[1:]) == [m.InputBytes(5, b"one")]
    assert _heard(*two[1:]) == [m.InputBytes(5, b"two")]
    one[0].dataReceived(encode_frame(_read(6, 10)))
    one[0].connectionLost(Failure(ConnectionDone()))
    door.door.answer(m.InputBytes(door.sent[-1].asked.read, b"late"))
    door.door.server_gone()
    two[0].dataReceived(encode_frame(_read(7, 10)))
    assert len(door.sent) == 3
    door.door.server_back()
    assert [each.asked.length for each in door.sent[3:]] == [10]
    door.door.stop()
    assert not door.listening
    assert two[1].disconnecting


@pytest.mark.parametrize(
    "says",
    [
        (m.InputHello(OTHER),),
        (_read(1, 10),),
        (m.InputHello(JOB), _read(1, 10, OTHER)),
        (m.InputHello(JOB), m.InputHello(JOB)),
    ],
)
def test_an_executor_reads_for_its_own_job_alone(
    monkeypatch: pytest.MonkeyPatch, says: tuple[m.Message, ...]
) -> None:
    door = _Door(monkeypatch)
    link, transport, decoder = door.link()
    link.dataReceived(b"".join(map(encode_frame, says)))
    (refused,) = _heard(transport, decoder)
    assert isinstance(refused, m.Refused)
    assert transport.disconnecting
    assert door.sent == []


def test_a_node_asks_for_bounded_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    door = _Door(monkeypatch)
    for _ in range(20):
        link, _, _ = door.link()
        link.dataReceived(encode_frame(m.InputHello(JOB)))
        for number in range(8):
            link.dataReceived(encode_frame(_read(number, INPUT_READ_BYTES)))
    assert sum(each.asked.length for each in door.sent) == INPUT_NODE_BYTES
    # A job that ends leaves no room taken: the server answers none of its reads.
    door.door.open_job(OTHER)
    link, _, _ = door.link()
    link.dataReceived(encode_frame(m.InputHello(OTHER)))
    for number in range(8):
        link.dataReceived(encode_frame(_read(number, INPUT_READ_BYTES, OTHER)))
    door.sent.clear()
    door.door.close_job(JOB)
    assert [each.asked.job for each in door.sent] == [OTHER] * 8
    door.door.close_job(OTHER)
    assert door.door._queue.bytes_asked == 0

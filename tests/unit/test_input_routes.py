"""Whom a node asks for input it does not have: a holder, the next one, the client; and when it gives up."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from cortex.errors import InputChanged, NotAllowed, Unreachable
from cortex.limits import INPUT_HOLDERS_S_MAX, INPUT_REST_S
from cortex.node import input_door
from cortex.node.input_door import InputDoor
from cortex.wire import messages as m
from cortex.wire.framing import FrameDecoder, encode_frame

JOB = "j0123456789ab"


class Fetcher:
    """Keeps what holders are asked."""

    def __init__(self, answered: Callable[..., None], failed: Callable[..., None]) -> None:
        self.answered, self.failed = answered, failed
        self.asked: list[tuple[str, Any, m.ReadInput]] = []
        self.busy: dict[str, int] = {}

    def ask(self, holder: str, asker: Any, read: m.ReadInput) -> None:
        self.asked.append((holder, asker, read))

    def load(self, holder: str) -> int:
        return self.busy.get(holder, 0)

    def drop(self, asker: Any) -> None:
        self.asked = [each for each in self.asked if each[1] is not asker]

    def stop(self) -> None: ...


class Machine:
    """A node's door with one executor. File 0 is the client's, file 1 lies on nodes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(input_door, "listen_unix", lambda *_: self)
        self.clock = Clock()
        self.to_server: list[m.NodeReads] = []
        self.learned: list[str] = []
        self.door = InputDoor(
            self.clock,
            "n1",
            self.to_server.append,  # type: ignore[arg-type]
            "/door",
            clock=self.clock.seconds,
            fetcher=self._made,  # type: ignore[arg-type]
            learn=lambda nodes: self.learned.extend(node.data_address for node in nodes),
        )
        self.door.open_job(JOB)
        self.link, self.transport = self.door._build(None), StringTransport()
        self.link._check_peer = False
        self.link.makeConnection(self.transport)
        self.link.dataReceived(encode_frame(m.InputHello(JOB)))
        self._decoder: FrameDecoder[Any] = FrameDecoder(m.FromInputDoor)

    def _made(self, answered: Callable[..., None], failed: Callable[..., None]) -> Fetcher:
        self.fetcher = Fetcher(answered, failed)
        return self.fetcher

    def stopListening(self) -> None: ...

    def holders(self, *nodes: str) -> None:
        known = tuple(m.OutputNode(node, f"{node}:1") for node in nodes)
        every = tuple(range(len(nodes)))
        self.door.holders(m.InputHolders(JOB, known, (every,), struct.pack("<2I", 0, 0), 1))

    def read(self, number: int, file: int) -> None:
        self.link.dataReceived(encode_frame(m.ReadInput(number, JOB, file, 0, 10)))

    def heard(self) -> list[Any]:
        data = self.transport.value()
        self.transport.clear()
        return list(self._decoder.feed(data))

    def fail(self, holder: str) -> None:
        lost = [(link, read) for at, link, read in self.fetcher.asked if at == holder]
        self.fetcher.asked = [each for each in self.fetcher.asked if each[0] != holder]
        self.fetcher.failed(holder, lost, Unreachable("gone"))

    def asked(self) -> list[tuple[str, int]]:
        return [(holder, read.read) for holder, _, read in self.fetcher.asked]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_the_holder_with_the_least_to_do_is_asked(machine: Machine) -> None:
    machine.holders("n1", "n2", "n3")
    assert machine.learned == ["n1:1", "n2:1", "n3:1"]
    machine.fetcher.busy["n2"] = 5
    machine.read(7, 1)
    assert machine.asked() == [("n3", 7)]  # never itself
    holder, link, read = machine.fetcher.asked.pop()
    machine.fetcher.answered(holder, link, read, m.InputBytes(7, b"x", from_node=True))
    assert machine.heard() == [m.InputBytes(7, b"x", from_node=True)]
    assert machine.to_server == []


def test_the_next_holder_is_asked_and_then_the_client(machine: Machine) -> None:
    machine.holders("n2", "n3")
    machine.read(7, 0)
    (first,) = machine.asked()
    machine.fail(first[0])
    (second,) = machine.asked()
    assert {first[0], second[0]} == {"n2", "n3"}
    machine.fail(second[0])
    assert [each.asked.file for each in machine.to_server] == [0]
    machine.clock.advance(INPUT_REST_S)
    machine.read(8, 0)
    assert len(machine.asked()) == 1  # it may be there again


def test_what_only_nodes_have_waits_for_them(machine: Machine) -> None:
    machine.holders("n2")
    machine.read(7, 1)
    machine.fail("n2")
    assert machine.asked() == []
    machine.clock.pump([1.0] * int(INPUT_REST_S + 1))
    assert machine.asked() == [("n2", 7)]
    machine.fail("n2")
    machine.holders("n3")  # the server knows of another one
    assert machine.asked() == [("n3", 7)]
    assert machine.to_server == []


def test_a_read_that_no_holder_answers_fails(machine: Machine) -> None:
    machine.holders("n2")
    machine.read(7, 1)
    for _ in range(int(INPUT_HOLDERS_S_MAX) + 2):
        machine.fail("n2")
        machine.clock.advance(1.0)
    (unread,) = machine.heard()
    assert (unread.read, unread.error.code, unread.error.fault) == (7, "input-lost", "lost")
    assert unread.error.cure


def test_nothing_fails_while_the_server_is_away(machine: Machine) -> None:
    machine.holders("n2")
    machine.read(7, 1)
    machine.door.server_gone()
    for _ in range(2 * int(INPUT_HOLDERS_S_MAX)):
        machine.fail("n2")
        machine.clock.advance(1.0)
    assert machine.heard() == []
    machine.door.server_back()
    for _ in range(int(INPUT_HOLDERS_S_MAX) + 2):
        machine.fail("n2")
        machine.clock.advance(1.0)
    assert [each.error.code for each in machine.heard()] == ["input-lost"]


def test_a_changed_file_is_told_and_a_holder_that_does_not_know_the_job_is_not(machine: Machine) -> None:
    machine.holders("n2", "n3")
    machine.read(7, 1)
    holder, link, read = machine.fetcher.asked.pop()
    machine.fetcher.answered(holder, link, read, m.InputUnread(7, NotAllowed("what job?").report()))
    assert machine.heard() == []
    (other, link, read) = machine.fetcher.asked.pop()
    assert other != holder
    machine.fetcher.answered(other, link, read, m.InputUnread(7, InputChanged("changed").report()))
    assert [each.error.code for each in machine.heard()] == ["input-changed"]


def test_an_executor_that_is_gone_is_forgotten(machine: Machine) -> None:
    machine.holders("n2")
    machine.read(7, 1)
    machine.read(8, 1)
    machine.fail("n2")
    machine.link.connectionLost(Failure(ConnectionDone()))
    machine.clock.pump([1.0] * 10)
    assert machine.asked() == []


def test_without_data_roots_nothing_is_located(machine: Machine) -> None:
    machine.link.dataReceived(encode_frame(m.LocateInput(3, JOB, 0)))
    assert machine.heard() == [m.InputLocated(3)]

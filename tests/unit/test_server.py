"""The server between a client's link and a node, on a test clock; the peer check sees a real socket."""

from __future__ import annotations

import platform
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from cortex.errors import ErrorReport
from cortex.job.plan import InputFile, InputPlan, Split, SplitGroups, Splits
from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import FRAME_BYTES_MAX, PROGRESS_S
from cortex.server.local_link import LocalLink
from cortex.server.server import Server
from cortex.wire import messages as m
from cortex.wire.framing import FrameDecoder, encode_frame
from cortex.wire.versions import local_versions

SUBMIT = m.SubmitJob(
    JobSpec("a job", InputSpec(("/in/a",)), reduce_form="aggregate"), b"\x80code", (), "/staging"
)
PLAN = InputPlan(
    (InputFile(0, "/in/a", "text", 10, 0, 1),),
    Splits.of([Split(0, 0, 0, 10)]),
    SplitGroups.of([(0,)]),
    (),
    10,
    1,
)


class Machine:
    """A server, and a node of one slot that answers every lease when it is told to."""

    def __init__(self, attach: bool = True) -> None:
        self.clock = Clock()
        self.server = Server(self.clock, self.clock.seconds)
        self.sent: list[m.ToNode] = []
        self.say: Any = None
        self.sockets = socket.socketpair()
        if attach:
            self.attach()

    def attach(self) -> None:
        self.say = self.server.attach_node(self)
        self.say(m.NodeHello("n", "1", 1, 1000, {}))
        self.turn()

    def send(self, message: m.ToNode) -> None:
        self.sent.append(message)

    def turn(self) -> None:
        self.clock.advance(0)

    def connect(self) -> Client:
        return Client(self)

    def leases(self) -> list[m.RunTask]:
        return [run for message in self.sent if isinstance(message, m.Lease) for run in message.tasks]

    def finish(self, run: m.RunTask, result: m.Result) -> None:
        self.say(m.AttemptFinished("n", "1", m.TaskFinished(run.attempt, result, 1.0, 1)))
        self.turn()


class Client:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.transport = StringTransport()
        self.transport.getHandle = lambda: machine.sockets[0]  # type: ignore[attr-defined]
        self.protocol = machine.server.client_factory().buildProtocol(None)  # type: ignore[arg-type]
        assert self.protocol is not None
        self.protocol.makeConnection(self.transport)
        self.decoder: FrameDecoder[m.FromServer] = FrameDecoder(m.FromServer)

    def say(self, *messages: m.Message) -> list[m.FromServer]:
        assert self.protocol is not None
        self.protocol.dataReceived(b"".join(map(encode_frame, messages)))
        self.machine.turn()
        return self.heard()

    def heard(self) -> list[m.FromServer]:
        data = self.transport.value()
        self.transport.clear()
        return list(self.decoder.feed(data))

    def hello(self) -> list[m.FromServer]:
        return self.say(m.ClientHello(local_versions()))

    def leave(self) -> None:
        assert self.protocol is not None
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.machine.turn()


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.server.stop()
    assert not made.clock.getDelayedCalls()
    for sock in made.sockets:
        sock.close()


def submit(client: Client) -> str:
    accepted = client.say(SUBMIT)[0]
    assert isinstance(accepted, m.JobAccepted)
    return accepted.job


def test_a_client_is_greeted_with_what_the_node_has(machine: Machine) -> None:
    client = machine.connect()
    assert client.hello() == [m.ServerHello(local_versions(), 1, 1000)]
    client.leave()


def test_a_client_that_comes_first_is_answered_when_the_node_is_there() -> None:
    machine = Machine(attach=False)
    client = machine.connect()
    assert client.hello() == []
    machine.attach()
    assert client.heard() == [m.ServerHello(local_versions(), 1, 1000)]
    machine.say(m.NodeHello("n", "2", 1, 1000, {}))  # the node starts again: no second greeting
    machine.turn()
    assert client.heard() == []
    client.leave()
    machine.server.stop()


@pytest.mark.parametrize(
    ("name", "version", "fits"),
    [
        ("python", "2.7.18", False),
        ("python", platform.python_version().rpartition(".")[0] + ".99", True),
        ("cloudpickle", "0.1.0", False),
        ("pyarrow", "1.0.0", False),
        ("protocol", "0", False),
        ("protocol", "", False),
    ],
)
def test_versions_that_would_break_pickles_are_refused(
    machine: Machine, name: str, version: str, fits: bool
) -> None:
    client = machine.connect()
    answer = client.say(m.ClientHello({**local_versions(), name: version}))[0]
    if fits:
        assert isinstance(answer, m.ServerHello)
    else:
        assert isinstance(answer, m.Refused)
        assert answer.error.code == "version-mismatch"
        assert f"{name} {version}" in answer.error.message
        assert client.transport.disconnecting
    client.leave()


@pytest.mark.parametrize(
    "messages",
    [
        (SUBMIT,),
        (m.ClientHello(local_versions()),) * 2,
        (m.ClientHello(local_versions()), m.JobReceived("j")),
    ],
)
def test_a_message_out_of_turn_is_refused(machine: Machine, messages: tuple[m.Message, ...]) -> None:
    client = machine.connect()
    refused = client.say(*messages)[-1]
    assert isinstance(refused, m.Refused)
    assert refused.error.code == "protocol"
    assert not machine.leases()
    client.leave()


def test_a_job_runs_and_its_progress_and_end_reach_its_client_alone(machine: Machine) -> None:
    client, other = machine.connect(), machine.connect()
    client.hello(), other.hello()
    job = submit(client)
    start = machine.sent[0]
    assert isinstance(start, m.StartJob)
    assert (start.job, start.code, start.staging_dir) == (job, b"\x80code", "/staging")
    machine.finish(machine.leases()[0], m.PlanResult(PLAN))
    machine.clock.advance(PROGRESS_S)
    assert [type(message) for message in client.heard()] == [m.JobProgress]
    machine.finish(machine.leases()[1], m.MapResult(0, m.TaskStats(), (3,)))
    machine.finish(machine.leases()[2], m.ReduceResult(0, m.TaskStats(rows_in=3)))
    assert [type(message) for message in client.heard()] == [m.JobDone]
    assert m.EndJob(job) not in machine.sent
    assert client.say(m.JobReceived(job)) == []
    assert machine.sent[-1] == m.EndJob(job)
    assert other.heard() == []
    client.leave(), other.leave()
    assert machine.sent.count(m.EndJob(job)) == 1


def test_a_client_that_goes_takes_its_jobs_with_it(machine: Machine) -> None:
    machine.say(m.NodeHello("n", "2", 2, 1000, {}))  # a slot for each
    client = machine.connect()
    client.hello()
    jobs = [submit(client), submit(client)]
    client.leave()
    assert [message.job for message in machine.sent if isinstance(message, m.EndJob)] == sorted(jobs)
    late = m.TaskFinished(machine.leases()[0].attempt, m.PlanResult(PLAN), 1.0, 1)
    machine.say(m.AttemptFinished("n", "2", late))  # was on its way: it changes nothing
    machine.turn()
    assert len(machine.leases()) == 2


def test_a_cancelled_job_says_so(machine: Machine) -> None:
    client = machine.connect()
    client.hello()
    job = submit(client)
    (failed,) = client.say(m.CancelJob(job))
    assert isinstance(failed, m.JobFailed)
    assert failed.error.code == "cancelled"
    assert machine.sent[-1] == m.EndJob(job)
    client.leave()


def test_progress_is_left_out_for_a_client_that_does_not_read_and_the_end_is_not(machine: Machine) -> None:
    client = machine.connect()
    client.hello()
    job = submit(client)
    client.protocol.pauseProducing()  # type: ignore[union-attr]
    machine.clock.pump([PROGRESS_S] * 20)
    client.say(m.CancelJob(job))
    client.protocol.resumeProducing()  # type: ignore[union-attr]
    assert [type(message) for message in client.heard()] == [m.JobFailed]
    client.leave()


def test_a_result_too_large_for_a_frame_fails_by_name(machine: Machine) -> None:
    client = machine.connect()
    client.hello()
    submit(client)
    machine.finish(machine.leases()[0], m.PlanResult(PLAN))
    error = ErrorReport("input", "x" * (FRAME_BYTES_MAX + 1))
    machine.say(m.AttemptFailed("n", "1", m.TaskFailed(machine.leases()[1].attempt, error, 1.0, 1)))
    machine.turn()
    (failed,) = client.heard()
    assert isinstance(failed, m.JobFailed)
    assert failed.error.code == "protocol"
    client.leave()


def test_a_lost_node_leaves_jobs_waiting_for_the_next(machine: Machine) -> None:
    client = machine.connect()
    client.hello()
    submit(client)
    machine.server.detach_node("n")
    machine.sent.clear()
    machine.attach()
    assert [run.attempt[-6:] for run in machine.leases()] == ["plan.1"]
    client.leave()


def test_a_broken_scheduler_fails_its_jobs_and_serves_the_next(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = machine.connect()
    client.hello()
    job = submit(client)
    broken = machine.server.scheduler
    monkeypatch.setattr(broken, "_handlers", {})
    machine.clock.advance(PROGRESS_S)
    (failed,) = client.heard()
    assert isinstance(failed, m.JobFailed)
    assert failed.error.code == "internal"
    assert "KeyError" in failed.error.details["traceback"]
    assert machine.sent[-1] == m.EndJob(job)
    submit(client)
    assert [r.attempt[-6:] for r in machine.leases()] == ["plan.0", "plan.0"]
    client.leave()


def test_a_local_link_keeps_order_and_never_calls_back_at_once() -> None:
    clock, got = Clock(), []

    def deliver(message: int) -> None:
        got.append(message)
        if message < 3:
            link.send(message + 10)
            assert got[-1] == message  # not delivered within

    link: LocalLink[int] = LocalLink(clock, deliver)
    for i in range(3):
        link.send(i)
    assert got == []
    clock.advance(0)
    assert got == [0, 1, 2, 10, 11, 12]
    assert not clock.getDelayedCalls()


class _OtherLink:
    def __init__(self) -> None:
        self.sent: list[m.ToNode] = []

    def send(self, message: m.ToNode) -> None:
        self.sent.append(message)


def test_a_node_reads_the_clients_input_over_its_present_link(machine: Machine) -> None:
    client = machine.connect()
    client.hello()
    job = submit(client)
    earlier, link = machine.say, _OtherLink()
    machine.server.detach_node("n")
    now = machine.server.attach_node(link)
    now(m.NodeHello("n", "1", 1, 1000, {}))
    machine.turn()
    client.heard()
    earlier(m.NodeReads("n", m.ReadInput(7, job, 0, 100, 10)))  # was on its way when the link ended
    machine.turn()
    assert client.heard() == []
    now(m.NodeReads("n", m.ReadInput(7, job, 0, 200, 10)))
    machine.turn()
    (read,) = client.heard()
    assert isinstance(read, m.ReadInput)
    assert (read.job, read.file, read.offset, read.length) == (job, 0, 200, 10)
    client.say(m.InputBytes(read.read, b"0123456789"))
    assert link.sent[-1] == m.InputBytes(7, b"0123456789")
    client.leave()

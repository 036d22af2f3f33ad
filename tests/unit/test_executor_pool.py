"""The pool of executors on a test clock, between a template and executors that say what a test says."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from cortex.errors import CortexError, ServerDied
from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import EXECUTOR_EXIT_S_MAX, EXECUTOR_REFILL_S, EXECUTOR_START_DEATHS_MAX
from cortex.node.executor_pool import ExecutorPool
from cortex.wire import messages as m
from cortex.wire.framing import FrameDecoder, encode_frame


class Link:
    """The far end of a link of the pool."""

    def __init__(self, protocol: Any, union: Any, handle: socket.socket) -> None:
        self.transport = StringTransport()
        self.transport.getHandle = lambda: handle  # type: ignore[attr-defined]
        self.protocol = protocol
        self.decoder: FrameDecoder[Any] = FrameDecoder(union)
        protocol.makeConnection(self.transport)

    def say(self, message: m.Message) -> None:
        self.protocol.dataReceived(encode_frame(message))

    def heard(self) -> list[Any]:
        data = self.transport.value()
        self.transport.clear()
        return list(self.decoder.feed(data))

    def end(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))


class Machine:
    """A pool, its owner, and what the template was asked for."""

    def __init__(self, folder: Path, size: int) -> None:
        self.reactor = MemoryReactorClock()
        self.sockets = socket.socketpair()
        ours, self.theirs = socket.socketpair()
        self.ended: list[m.TaskFinished | m.TaskFailed] = []
        self.wrote: list[tuple[str, int, str]] = []
        self.returned: list[tuple[str, m.RunTask]] = []
        self.lost: list[CortexError] = []
        self.links: dict[int, Link] = {}
        folder.chmod(0o700)
        self.pool = ExecutorPool(
            self.reactor,  # type: ignore[arg-type]
            self.reactor.seconds,
            self,
            ours,
            size=size,
            socket_path=str(folder / "s"),
            log_dir=str(folder),
        )
        (_, _, factory), *_ = self.reactor.adoptedStreamConnections
        self.template = Link(factory.buildProtocol(None), m.ToTemplate, self.sockets[0])
        # what was sent before the transport was there is lost to this one: the first forks are known
        self.template.say(m.TemplateReady(1, True))

    def connect(self, index: int) -> Link:
        (_, factory, *_), *_ = self.reactor.unixServers
        self.links[index] = Link(factory.buildProtocol(None), m.ToExecutor, self.sockets[0])
        self.template.say(m.ExecutorForked(index, 100 + index))
        self.links[index].say(m.ExecutorHello(index, 100 + index))
        return self.links[index]

    def dies(self, index: int, signal_number: int = signal.SIGKILL, status: int = 0) -> None:
        self.template.say(m.ExecutorExited(index, 100 + index, signal_number, status, 1))
        if index in self.links:
            self.links.pop(index).end()

    def forks(self) -> list[int]:
        return [each.executor for each in self.template.heard() if isinstance(each, m.ForkExecutor)]

    def attempt_progress(self, job: str, progress: m.TaskProgress) -> None: ...

    def attempt_ended(self, job: str, ended: m.TaskFinished | m.TaskFailed) -> None:
        self.ended.append(ended)

    def attempt_returned(self, job: str, run: m.RunTask) -> None:
        self.returned.append((job, run))

    def room(self) -> None: ...

    def executor_wrote(self, job: str, executor: int, text: str) -> None:
        self.wrote.append((job, executor, text))

    def pool_lost(self, error: CortexError) -> None:
        self.lost.append(error)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path, 2)
    yield made
    for each in (*made.sockets, made.theirs):
        each.close()


def open_job(job: str) -> m.OpenJob:
    return m.OpenJob(job, JobSpec(job, InputSpec(("in",))), b"", (), "/w", "/s", 0)


TASK = m.RunTask("a-m000000.0", m.MapTask(0, ()))


def test_only_deaths_in_a_row_before_a_hello_end_the_pool(machine: Machine) -> None:
    young = [0]
    for _ in range(EXECUTOR_START_DEATHS_MAX - 1):
        machine.dies(young[-1])
        machine.reactor.advance(EXECUTOR_REFILL_S)
        young += machine.forks()
    machine.connect(young[-1])
    machine.dies(1)
    machine.reactor.advance(EXECUTOR_REFILL_S)
    (last,) = machine.forks()
    for _ in range(EXECUTOR_START_DEATHS_MAX - 1):
        assert machine.lost == []
        machine.dies(last, 0, 1)
        machine.reactor.advance(EXECUTOR_REFILL_S)
        last, *_ = machine.forks() or [last]
    (error,) = machine.lost
    assert isinstance(error, ServerDied)
    assert error.details["exit"] == "exit status 1"


def test_an_executor_that_made_room_is_replaced_by_one_without_a_job(machine: Machine) -> None:
    machine.pool.open_job(open_job("a"))
    links = [machine.connect(0), machine.connect(1)]
    machine.pool.open_job(open_job("b"))
    assert not machine.pool.run("b", TASK)
    machine.pool.make_room(["b", "b"], 1)  # one slot is free
    said = [link.heard() for link in links]
    assert [m.Stop() in each for each in said] == [False, True]
    machine.dies(1, 0)
    link = machine.connect(*machine.forks())
    assert machine.pool.run("b", TASK)
    assert link.heard() == [open_job("b"), TASK]


def test_a_task_that_a_retiring_executor_was_sent_is_returned(machine: Machine) -> None:
    machine.pool.open_job(open_job("a"))
    link = machine.connect(0)
    assert machine.pool.run("a", TASK)
    link.say(m.Retiring())
    machine.template.heard()
    machine.reactor.advance(EXECUTOR_EXIT_S_MAX)
    assert machine.template.heard() == [m.SignalExecutor(0, signal.SIGKILL)]
    machine.dies(0)
    assert (machine.returned, machine.ended) == ([("a", TASK)], [])


def test_an_exit_status_alone_says_nothing(machine: Machine) -> None:
    machine.pool.open_job(open_job("a"))
    machine.connect(0)
    assert machine.pool.run("a", TASK)
    machine.dies(0, 0, 75)
    (failed,) = machine.ended
    assert isinstance(failed, m.TaskFailed)
    assert (machine.returned, failed.error.code) == ([], "executor-died")


def test_a_log_that_its_disk_does_not_give_back_holds_up_nothing(machine: Machine, tmp_path: Path) -> None:
    """Its disk has become read-only: executors are replaced all the same, and the node beats on."""
    gone: list[str] = []
    machine.pool.open_job(open_job("a"))
    for index in (0, 1):
        machine.connect(index)
        (tmp_path / f"executor-{index}.log").mkdir()  # as root, nothing else is refused
    machine.pool.close_job("a", lambda: gone.append("a"))
    machine.dies(0)
    machine.dies(1)
    assert gone == ["a"]
    machine.reactor.advance(EXECUTOR_REFILL_S)
    assert machine.forks() == [2, 3]


def test_looking_at_a_log_that_cannot_be_looked_at_ends_nothing(machine: Machine, tmp_path: Path) -> None:
    machine.connect(0)
    (tmp_path / "executor-0.log").symlink_to("executor-0.log")  # a loop: OSError, but not "not found"
    machine.pool.check()
    machine.connect(1)
    machine.pool.open_job(open_job("a"))
    assert machine.pool.run("a", TASK)


def test_a_job_has_no_more_executors_than_its_memory_is_for(machine: Machine) -> None:
    machine.pool.open_job(open_job("a"), 1)
    links = [machine.connect(0), machine.connect(1)]
    assert [len(link.heard()) for link in links] == [1, 0]  # one is bound
    assert machine.pool.run("a", TASK)
    assert not machine.pool.run("a", m.RunTask("a-m000001.0", m.MapTask(1, ())))
    machine.pool.make_room(["a"], 1)
    assert [link.heard() for link in links] == [[TASK], []]  # nobody is ended, or bound, for it
    machine.pool.open_job(open_job("b"))
    assert machine.pool.run("b", TASK)


def test_slots_that_are_free_get_executors_of_the_jobs_that_wait(machine: Machine) -> None:
    machine.pool.open_job(open_job("a"))
    links = [machine.connect(0), machine.connect(1)]
    machine.pool.open_job(open_job("b"))
    machine.pool.make_room(["b", "b", "b"], 2)
    machine.pool.make_room(["b", "b", "b"], 2)  # they are on their way
    assert [m.Stop() in link.heard() for link in links] == [True, True]
    machine.dies(0, 0)
    machine.dies(1, 0)
    young = machine.forks()
    assert len(young) == 2
    for index in young:
        machine.connect(index)
        assert machine.pool.run("b", TASK)
    assert not machine.pool.run("b", TASK)

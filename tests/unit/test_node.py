"""A node between its server and its executors: what it does with words that it cannot follow."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twisted.internet.testing import MemoryReactorClock

from cortex.errors import CortexError, InternalError, SpillFull
from cortex.job.spec import InputSpec, JobSpec
from cortex.memory_plan import plan_memory
from cortex.node.node import Node
from cortex.wire import messages as m

JOB = "j" + "1" * 12


class Reactor(MemoryReactorClock):
    def callFromThread(self, function: Callable[..., object], *arguments: object) -> None:
        self.callLater(0, function, *arguments)


class World:
    """A node with one slot and no executor, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.reactor = Reactor()
        self.failures: list[CortexError] = []
        self.heard: list[object] = []
        self.folder = folder
        folder.mkdir(mode=0o700)
        self.template, self._theirs = socket.socketpair()
        self.node = Node(
            self.reactor,
            self.reactor.seconds,
            self.heard.append,
            name="n1",
            plan=plan_memory(0, 1),
            spill_dirs=[str(folder)],
            versions={},
            failed=self.failures.append,
        )
        self.node.start(self.template, socket_path=str(folder / "s"))

    def close(self) -> None:
        self.node._stop_threads(lambda: None)  # all that is left of it: nothing runs, and nothing is spilled
        self.template.close()
        self._theirs.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "spill")
    yield made
    made.close()


def test_a_message_that_cannot_be_taken_ends_the_node_once_with_the_cause(world: World) -> None:
    world.node.receive(m.FetchAhead(JOB, (1,)))  # of a job that nobody started here
    world.node.receive(m.FetchAhead(JOB, (1,)))
    (error,) = world.failures
    assert isinstance(error, InternalError)
    assert "node n1 could not take FetchAhead" in error.message
    assert JOB in error.message
    assert "in _take" in error.details["traceback"]


def test_an_error_with_a_name_of_its_own_keeps_it(world: World) -> None:
    (world.folder / JOB).write_text("in the way")
    spec = JobSpec("job", InputSpec(("in",)))
    world.node.receive(m.StartJob(JOB, spec, b"", (), ""))
    (error,) = world.failures
    assert isinstance(error, SpillFull)
    assert str(world.folder / JOB) in error.message


def test_what_has_not_begun_is_given_back_the_last_leased_first(world: World) -> None:
    start = m.StartJob(JOB, JobSpec("a job", InputSpec(("/in",))), b"", (), "/staging")
    world.node.receive(start)
    attempts = [f"{JOB}-m{index:06d}.0" for index in range(3)]
    world.node.receive(m.Lease(tuple(m.RunTask(attempt, m.MapTask(0, ())) for attempt in attempts)))
    for wanted, given in ((2, attempts[:0:-1]), (5, attempts[:1]), (1, [])):
        world.node.receive(m.Recall(JOB, wanted))
        answer = world.heard.pop()
        assert isinstance(answer, m.GivenBack)
        assert list(answer.attempts) == given


def test_what_is_leased_for_a_free_slot_goes_before_what_waits(world: World) -> None:
    other = "j" + "2" * 12
    for job in (JOB, other):
        world.node.receive(m.StartJob(job, JobSpec("a job", InputSpec(("/in",))), b"", (), "/staging"))
    tasks = [m.RunTask(f"{job}-m{n:06d}.0", m.MapTask(n, ())) for job, n in ((JOB, 0), (JOB, 1), (other, 0))]
    world.node.receive(m.Lease(tuple(tasks[:2]), 1))
    world.node.receive(m.Lease((tasks[2],)))
    assert world.node._attempts.waiting() == [tasks[0].attempt, tasks[2].attempt, tasks[1].attempt]

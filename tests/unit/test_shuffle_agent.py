"""A node's part in the shuffle: reduces wait for their segments, and longer while the server is away."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cortex.errors import CortexError, FetchFailed
from cortex.transfer.fetch_queue import Wanted
from cortex.transfer.shuffle_agent import Addresses, ShuffleAgent
from cortex.wire.messages import MapBlock, OutputNode, ReduceTask, RunTask

JOB = "j" + "1" * 12
NODES = (OutputNode("n1", "a:1"), OutputNode("n2", "b:1"))
LOST = FetchFailed("this node has lost its server")


class Fetcher:
    """What is asked for, and the two ways it ends."""

    def __init__(self, landed: Callable[..., None], lost: Callable[..., None]) -> None:
        self.landed, self.lost = landed, lost
        self.asked: list[Wanted] = []

    def open_job(self, job: str, folder: str) -> None: ...

    def fetch(self, wanted: Iterable[Wanted]) -> None:
        self.asked += wanted

    def cancel(self, job: str, gone: Callable[[], None]) -> None:
        gone()

    def take(self) -> list[Wanted]:
        asked, self.asked = self.asked, []
        return asked


class Server:
    def register_job(self, job: str, folder: str, asked: Any = None) -> None: ...
    def unregister_job(self, job: str) -> None: ...


class World:
    """The agent of node n1; maps 0 and 1 ran here and at n2."""

    def __init__(self) -> None:
        self.ready: list[str] = []
        self.failed: list[tuple[str, CortexError]] = []
        self.fetcher: Any = None

        def fetcher(landed: Any, lost: Any) -> Any:
            self.fetcher = Fetcher(landed, lost)
            return self.fetcher

        server: Any = Server()
        self.agent = ShuffleAgent(
            server, fetcher, Addresses(), self.ready.append, lambda *failed: self.failed.append(failed)
        )
        self.agent.open_job(JOB, "/spill")

    def bring(self, partition: int, number: int = 0) -> str:
        attempt = f"{JOB}-r{partition:06d}.{number}"
        task = ReduceTask(partition, (0, 2), (MapBlock(0, (1, 0, 1, 1)),))
        assert not self.agent.bring(JOB, RunTask(attempt, task), "n1", NODES)
        return attempt


def test_a_reduce_is_ready_when_what_other_nodes_have_is_here() -> None:
    world = World()
    attempt = world.bring(3)
    (wanted,) = world.fetcher.take()
    assert (wanted.holder, wanted.attempt, wanted.partition) == ("n2", f"{JOB}-m000001.0", 3)
    world.fetcher.landed(wanted, 10, 1)
    assert world.ready == [attempt]


def test_a_segment_that_cannot_be_had_fails_its_reduce() -> None:
    world = World()
    attempt = world.bring(3)
    world.fetcher.lost(world.fetcher.take()[0], LOST)
    assert world.failed == [(attempt, LOST)]


def test_while_the_server_is_away_nothing_is_lost_and_afterwards_it_is_asked_for_again() -> None:
    world = World()
    attempt, other = world.bring(3), world.bring(4)
    first, second = world.fetcher.take()
    world.agent.server_gone()
    world.fetcher.lost(first, LOST)
    world.fetcher.landed(second, 10, 1)  # what is on its way still comes
    assert (world.failed, world.ready) == ([], [other])
    world.agent.server_back()
    assert world.fetcher.take() == [first]
    world.fetcher.landed(first, 10, 1)
    assert (world.failed, world.ready) == ([], [other, attempt])
    world.agent.server_back()
    assert world.fetcher.take() == []


def test_what_cannot_be_had_when_the_server_is_back_is_lost() -> None:
    world = World()
    attempt = world.bring(3)
    (wanted,) = world.fetcher.take()
    world.agent.server_gone()
    world.fetcher.lost(wanted, LOST)
    world.agent.server_back()
    world.fetcher.lost(world.fetcher.take()[0], LOST)
    assert world.failed == [(attempt, LOST)]


def test_what_nobody_waits_for_any_more_is_not_asked_for_again() -> None:
    world = World()
    attempt = world.bring(3)
    world.bring(4)
    first, second = world.fetcher.take()
    world.agent.server_gone()
    world.fetcher.lost(first, LOST)
    world.agent.forget(attempt)
    world.fetcher.lost(second, LOST)
    world.agent.close_job(JOB, lambda: None)
    world.agent.server_back()
    assert world.fetcher.take() == []
    world.agent.open_job(JOB, "/spill")
    world.bring(3, 1)
    assert [each.partition for each in world.fetcher.take()] == [3]

"""A node's part in the shuffle: reduces wait for their segments, and longer while the server is away."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cortex.errors import CortexError, FetchFailed
from cortex.transfer.fetch_queue import Wanted
from cortex.transfer.shuffle_agent import Addresses, ShuffleAgent
from cortex.wire.messages import (
    MapBlock,
    MapLocations,
    OutputNode,
    ReduceResult,
    ReduceTask,
    RunTask,
    TaskStats,
)

JOB = "j" + "1" * 12
NODES = (OutputNode("n1", "a:1"), OutputNode("n2", "b:1"))
LOST = FetchFailed("this node has lost its server")


class Fetcher:
    """What is asked for, and the two ways it ends."""

    def __init__(self, landed: Callable[..., None], lost: Callable[..., None]) -> None:
        self.landed, self.lost = landed, lost
        self.asked: list[Wanted] = []
        self.moved: list[str] = []

    def open_job(self, job: str, folder: str) -> None: ...

    def fetch(self, wanted: Iterable[Wanted]) -> None:
        self.asked += wanted

    def cancel(self, job: str, gone: Callable[[], None]) -> None:
        gone()

    def holder_moved(self, holder: str) -> None:
        self.moved.append(holder)

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


def test_a_node_that_is_back_elsewhere_is_asked_there_at_once() -> None:
    world = World()
    world.bring(3)
    task = ReduceTask(4, (0, 2), (MapBlock(0, (1, 0, 1, 2)),))
    nodes = (*NODES, OutputNode("n2", "b:2"))
    assert not world.agent.bring(JOB, RunTask(f"{JOB}-r000004.0", task), "n1", nodes)
    assert world.fetcher.moved == ["n2"]


# --- combined segments ---


class Combining(World):
    """Of a job that combines; maps 0 to 3 ran at n2, unless they were made again."""

    def __init__(self) -> None:
        super().__init__()
        self.agent.close_job(JOB, lambda: None)
        self.agent.open_job(JOB, "/spill", True)
        self.fetcher.discarded = []
        self.fetcher.discard = lambda job, attempt, partition: self.fetcher.discarded.append(attempt)

    def bring_all(self, number: int = 0, redone: dict[int, int] | None = None) -> bool:
        """Of partition 3. True if all is here."""
        task = ReduceTask(3, (0, 4), (MapBlock(0, (4, 1), redone or {}),))
        return self.agent.bring(JOB, RunTask(f"{JOB}-r000003.{number}", task), "n1", NODES)

    def ahead(self) -> list[Wanted]:
        told = MapLocations(JOB, 0, (), (MapBlock(0, (4, 1)),))
        self.agent.fetch_ahead(told, (3,), "n1", NODES)
        return self.fetcher.take()

    def land(self, first: Wanted, *others: Wanted) -> None:
        self.fetcher.landed(first, 10, 1, list(others))


def maps(wanted: Iterable[Wanted]) -> list[str]:
    return [each.attempt.partition("-m")[2] for each in wanted]


def test_what_was_told_ahead_is_hurried_when_a_reduce_waits() -> None:
    world = Combining()
    early = world.ahead()
    assert [(each.ahead, each.combines) for each in early] == [(True, True)] * 4
    world.land(early[0], early[2])
    assert not world.bring_all()
    late = world.fetcher.take()
    assert maps(late) == ["000001.0", "000003.0"]
    assert [(each.ahead, each.combines) for each in late] == [(False, True)] * 2
    world.land(late[0], late[1])
    assert world.ready == [f"{JOB}-r000003.0"]


def test_a_combined_segment_serves_a_reduce_that_reads_all_of_it() -> None:
    world = Combining()
    world.land(*world.ahead())
    assert world.bring_all()
    assert world.fetcher.take() == []
    world.agent.used(JOB, ReduceResult(3, TaskStats()))
    assert f"{JOB}-m000000.0" in world.fetcher.discarded
    assert not world.bring_all(1)  # it is gone: all is fetched anew
    assert len(world.fetcher.take()) == 4


def test_one_that_stands_for_an_output_made_again_is_dropped_when_a_reduce_is_leased() -> None:
    world = Combining()
    world.land(*world.ahead())
    assert not world.bring_all(redone={2: 1})
    assert world.fetcher.discarded == [f"{JOB}-m000000.0"]
    again = world.fetcher.take()
    assert maps(again) == ["000000.0", "000001.0", "000002.1", "000003.0"]
    for each in again:
        world.land(each)
    assert world.ready == [f"{JOB}-r000003.0"]


def test_one_that_lands_for_a_reduce_that_does_not_read_all_of_it_is_fetched_one_by_one() -> None:
    world = Combining()
    early = world.ahead()
    assert not world.bring_all(redone={2: 1})
    hurried = {each.attempt: each for each in world.fetcher.take()}
    assert len(hurried) == 4
    world.land(*early)  # with map 2 as it was first
    assert world.ready == []
    assert world.fetcher.discarded == [f"{JOB}-m000000.0"]
    again = world.fetcher.take()
    assert maps(again) == ["000000.0", "000001.0", "000003.0"]
    assert [(each.ahead, each.combines) for each in again] == [(False, False)] * 3
    for each in again:
        world.land(each)
    world.land(hurried[f"{JOB}-m000002.1"])
    assert world.ready == [f"{JOB}-r000003.0"]


def test_what_was_told_ahead_and_held_back_is_asked_for_as_what_a_reduce_waits_for() -> None:
    world = Combining()
    early = world.ahead()
    world.bring_all()
    world.fetcher.take()
    world.agent.server_gone()
    world.fetcher.lost(early[1], LOST)  # as it was first wanted
    world.agent.server_back()
    (again,) = world.fetcher.take()
    assert (again.attempt, again.ahead) == (early[1].attempt, False)

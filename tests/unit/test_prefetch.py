"""Which node fetches ahead for which reduce, and which reduce it then runs."""

from __future__ import annotations

from typing import Any

from cortex.errors import ErrorReport, Fault
from cortex.job.plan import OUT, InputFile, InputPlan, Split, SplitGroups, Splits
from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import PROGRESS_S
from cortex.scheduling import events
from cortex.scheduling.prefetch import Prefetch
from cortex.scheduling.scheduler import Scheduler
from cortex.scheduling.task_state import TaskEvent, TaskState, TaskTable
from cortex.wire import messages as m

JOB = "j000000000001"


def test_reduces_are_promised_by_slots_and_once() -> None:
    prefetch = Prefetch(5, 1)
    assert prefetch.promise([("a", 1), ("b", 3)]) == {"b": (0, 1, 3), "a": (2,)}
    assert prefetch.promise([("c", 9)]) == {}
    assert Prefetch(1, 1).promise([("a", 1), ("b", 1)]) == {"a": (0,)}


def test_a_node_runs_what_it_was_promised_then_what_nobody_was_then_anything() -> None:
    prefetch = Prefetch(5, 1)
    prefetch.promise([("a", 1), ("b", 3)])
    done: set[int] = set()

    def choose(node: str) -> int:
        first = min(set(range(5)) - done)
        index = prefetch.choose(node, first, lambda i: i not in done, 5)
        done.add(index)
        return index

    assert [choose("a"), choose("a"), choose("b"), choose("a"), choose("b")] == [2, 4, 0, 1, 3]


def test_what_a_lost_node_was_promised_is_anybodys() -> None:
    prefetch = Prefetch(3, 1)
    prefetch.promise([("a", 1), ("b", 1)])
    prefetch.forget("a")
    assert prefetch.choose("b", 0, lambda i: i != 1, 3) == 0
    prefetch.forget("nobody")


def test_portions_are_few() -> None:
    prefetch = Prefetch(1, 1600)
    assert sum(prefetch.due(done) for done in range(1601)) == 16
    few = Prefetch(1, 3)
    assert [few.due(done) for done in (0, 1, 1, 3, 3)] == [False, True, False, True, False]


def test_any_ready_task_can_be_leased() -> None:
    table = TaskTable(6)
    table.needs_met(0, 6)
    assert table.lease(3) == (3, 0)
    assert table.lease(0) == (0, 0)
    table.apply(3, TaskEvent.RETRY)
    assert [table.lease(table.first_ready()), table.lease(5), table.lease(3)] == [(1, 0), (5, 0), (3, 1)]
    assert [table.lease(table.first_ready())[0], table.lease(table.first_ready())[0]] == [2, 4]
    assert table.first_ready() is None
    assert all(table.state(index) is TaskState.LEASED for index in range(6))


class Cluster:
    """A scheduler and nodes that keep what they are sent."""

    def __init__(self, nodes: int, slots: int = 1) -> None:
        self.scheduler, self.now = Scheduler(), 0.0
        self.heard: dict[str, list[Any]] = {}
        for number in range(nodes):
            hello = m.NodeHello(f"n{number}", "1", slots, 1000, {}, f"h{number}:1")
            self.heard[hello.node] = []
            self.tell(events.NodeJoined(hello))

    def tell(self, event: events.Event) -> None:
        for instruction in self.scheduler.handle(event, self.now):
            if isinstance(instruction, events.SendToNode):
                self.heard[instruction.node].append(instruction.message)

    def tick(self) -> None:
        self.now += PROGRESS_S
        self.tell(events.Tick())

    def leased(self) -> dict[str, str]:
        return {a: n.name for n in self.scheduler.leases.nodes.values() for a in n.held}

    def finish(self, attempt: str, result: m.Result) -> None:
        node = self.leased()[attempt]
        self.tell(m.AttemptFinished(node, "1", m.TaskFinished(attempt, result, 1.0, 1)))

    def mapped(self, index: int, number: int = 0) -> None:
        rows = (1,) * 4
        self.finish(f"{JOB}-m{index:06d}.{number}", m.MapResult(index, m.TaskStats(), rows))

    def of(self, kind: type, node: str) -> list[Any]:
        return [message for message in self.heard[node] if isinstance(message, kind)]


def begun(nodes: int, maps: int = 8) -> Cluster:
    cluster = Cluster(nodes)
    spec = JobSpec("x", InputSpec(("/in",)), reduce_form="aggregate")
    cluster.tell(events.JobSubmitted(JOB, m.SubmitJob(spec, b"", (), "")))
    plan = InputPlan(
        (InputFile(0, "/in", "text", maps, 0, 1),),
        Splits.of(Split(i, 0, i, 1, start_state=OUT) for i in range(maps)),
        SplitGroups.of((i,) for i in range(maps)),
        (),
        maps,
        4,
    )
    cluster.finish(f"{JOB}-plan.0", m.PlanResult(plan))
    return cluster


def test_nodes_are_told_of_outputs_while_maps_run_and_get_the_reduces_they_fetched_for() -> None:
    cluster = begun(nodes=2)
    cluster.mapped(0)
    cluster.tick()
    ahead = {name: cluster.of(m.FetchAhead, name) for name in ("n0", "n1")}
    assert [[each.partitions for each in told] for told in ahead.values()] == [[(0,)], [(1,)]]
    assert [block.first for block in cluster.of(m.MapLocations, "n1")[0].blocks] == [0]
    cluster.tick()
    assert len(cluster.of(m.MapLocations, "n1")) == 1  # nothing new
    for index in range(1, 8):
        cluster.mapped(index)
    cluster.tick()
    told = [block.first for message in cluster.of(m.MapLocations, "n1") for block in message.blocks]
    assert told == list(range(8))  # each block once
    leased = cluster.leased()
    assert leased[f"{JOB}-r000000.0"] == "n0"
    assert leased[f"{JOB}-r000001.0"] == "n1"
    assert set(leased) == {f"{JOB}-r{index:06d}.0" for index in range(4)}
    assert all(len(cluster.of(m.FetchAhead, name)) == 1 for name in ("n0", "n1"))


def test_a_node_alone_fetches_nothing_ahead() -> None:
    cluster = begun(nodes=1)
    cluster.mapped(0)
    cluster.tick()
    assert not cluster.of(m.FetchAhead, "n0") + cluster.of(m.MapLocations, "n0")


def test_an_output_that_was_lost_meanwhile_is_told_of_again() -> None:
    cluster = begun(nodes=3, maps=3)
    for index in range(2):
        cluster.mapped(index)
    cluster.tick()
    lost = "n0"
    cluster.tell(events.NodeLost(lost))
    while any("-m" in attempt for attempt in cluster.leased()):
        attempt = min(attempt for attempt in cluster.leased() if "-m" in attempt)
        index, number = attempt.partition("-m")[2].split(".")
        cluster.mapped(int(index), int(number))
    for name in ("n1", "n2"):
        known: dict[int, str] = {}
        nodes: list[str] = []
        for message in cluster.of(m.MapLocations, name):
            assert message.first_node == len(nodes)
            nodes += [each.node for each in message.nodes]
            known.update((block.first, nodes[block.runs[1]]) for block in message.blocks)
        assert set(known) == {0, 1, 2}
        assert lost not in known.values()
    assert cluster.scheduler.jobs[JOB].state.value == "reducing"
    error = ErrorReport("fetch-failed", "x", fault=Fault.LOST.value, details={"attempt": f"{JOB}-m000000.0"})
    reduce = next(iter(cluster.leased()))
    cluster.tell(m.AttemptFailed(cluster.leased()[reduce], "1", m.TaskFailed(reduce, error, 0.0, 0)))
    assert cluster.scheduler.jobs[JOB].state.value in ("reducing", "mapping")

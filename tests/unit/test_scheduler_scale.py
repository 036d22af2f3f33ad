"""The scheduler with many nodes and tasks, at a size that takes no time: counts and invariants, no seconds.

`benchmarks.scheduler_scale` checks every instruction as it plays the cluster, and the job's end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from benchmarks.scheduler_scale import JOB, Cluster, Simulation, held_bytes, main
from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import GRANTS_PER_DECISION_MAX, HEARTBEAT_S, PREFETCH_PORTIONS, PROGRESS_S
from cortex.scheduling import events
from cortex.scheduling.columns import zeros
from cortex.scheduling.leases import LeaseBook, Running
from cortex.scheduling.map_outputs import MapOutputs
from cortex.scheduling.scheduler import Scheduler
from cortex.wire import messages as m

SMALL = Cluster(nodes=12, slots=4, maps=150, partitions=20, files=5, map_s=10.0, reduce_s=10.0, runs_lost=2)


@pytest.mark.parametrize(
    "change", [{}, {"scanned": True}, {"touched": 3}, {"seed": 1, "partitions": 1}], ids=str
)
def test_a_cluster_with_faults_finishes_a_job(change: dict[str, Any]) -> None:
    cluster = Cluster(**{**SMALL.__dict__, **change})
    simulation = Simulation(cluster)
    simulation.run()
    assert simulation.tasks_leased > cluster.maps + cluster.partitions  # some had to be done again
    assert simulation.stale_messages > 0  # of the node that fell silent
    # Leases come several tasks at once, and every node is told once of what does not change.
    assert simulation.instructions["Lease"] < simulation.tasks_leased
    joined = cluster.nodes + cluster.nodes_lost
    assert simulation.instructions["StartJob"] <= joined
    assert simulation.instructions["JobPlanned"] <= joined


def test_without_faults_every_task_is_leased_once_and_nothing_is_said_twice() -> None:
    cluster = Cluster(**{**SMALL.__dict__, "nodes_lost": 0, "nodes_silent": 0, "runs_lost": 0})
    simulation = Simulation(cluster)
    simulation.run()
    assert simulation.tasks_leased == 1 + cluster.maps + cluster.partitions
    assert simulation.stale_messages == simulation.instructions["Revoke"] == 0
    assert simulation.instructions["StartJob"] == simulation.instructions["EndJob"] == cluster.nodes
    ahead = simulation.instructions["FetchAhead"]
    assert ahead == min(cluster.nodes, cluster.partitions)
    assert simulation.instructions["MapLocations"] <= ahead * (PREFETCH_PORTIONS + 2)


def test_the_benchmark_writes_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    options = ["--nodes", "3", "--maps", "60", "--partitions", "4", "--files", "2", "--nodes-lost", "1"]
    assert main([*options, "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert figures["cluster"]["maps"] == 60
    assert figures["decisions"]["MapResult"]["count"] >= 60
    assert len(figures["decisions"]["longest"]) == 5
    assert figures["bytes_per_map"] > 0


# --- what a decision costs ------------------------------------------------------------------------


def operations(call: Callable[[], Any]) -> int:
    """Python operations that `call` executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return count


def cluster_at_work(nodes: int, slots: int = 8) -> Simulation:
    """All maps leased that there is room for, a few of them done."""
    cluster = Cluster(
        nodes, slots, maps=nodes * slots * 4, partitions=4, files=1, nodes_lost=0, nodes_silent=0, runs_lost=0
    )
    simulation = Simulation(cluster)
    decisions = 0

    def enough() -> bool:
        nonlocal decisions
        decisions += 1
        room = sum(node.room for node in simulation.scheduler.leases.nodes.values())
        return decisions > nodes and room < nodes * slots

    simulation.run(until=enough)
    return simulation


@pytest.mark.parametrize("kind", ["MapResult", "Heartbeat"])
def test_a_decision_costs_the_same_whatever_the_number_of_nodes(kind: str) -> None:
    costs = []
    for nodes in (4, 100):
        simulation = cluster_at_work(nodes)
        spent = []
        for name, node in list(simulation.scheduler.leases.nodes.items())[:3]:
            attempt, running = next(iter(node.held.items()))
            life = node.hello.incarnation
            event: events.Event
            if kind == "Heartbeat":
                event = m.Heartbeat(name, life, (m.TaskProgress(attempt, m.TaskStats(1, 2)),), 1, 1)
            else:
                result = m.MapResult(running.index, m.TaskStats(), (1, 2, 3, 4))
                event = m.AttemptFinished(name, life, m.TaskFinished(attempt, result, 1.0, 1))
            spent.append(operations(partial(simulation.scheduler.handle, event, simulation.now)))
        costs.append(sorted(spent)[1])
    few, many = costs
    assert few > 100
    assert many < few * 1.1


def test_a_map_costs_the_server_little_memory_and_nothing_for_each_partition() -> None:
    held, partitions = [], 200
    for maps in (4_000, 12_000):
        outputs = MapOutputs(JOB, maps, partitions)
        for index in range(maps):
            rows = tuple(range(index, index + partitions))
            outputs.accept(m.MapResult(index, m.TaskStats(), rows), 0, m.OutputNode(f"n{index % 7}", ""))
        assert outputs.expected_rows(1) == sum(range(1, maps + 1))
        held.append(held_bytes(outputs))
    assert (held[1] - held[0]) / 8_000 < 50


def test_what_the_server_holds_is_counted_in_full() -> None:
    assert 6000 < held_bytes([bytearray(1000), memoryview(bytearray(2000)), zeros("I", 750)]) < 6500


# --- leases ---------------------------------------------------------------------------------------


def test_a_decision_leases_so_many_tasks_and_the_next_goes_on() -> None:
    nodes = GRANTS_PER_DECISION_MAX // 16 + 5
    simulation = Simulation(Cluster(nodes, 8, 10_000, 1, 1, nodes_lost=0, nodes_silent=0, runs_lost=0))
    granted = []
    tell = simulation.tell

    def counted(event: Any) -> None:
        before = simulation.tasks_leased
        tell(event)
        granted.append(simulation.tasks_leased - before)

    simulation.tell = counted  # type: ignore[method-assign]
    simulation.run(until=lambda: simulation.tasks_leased >= nodes * 16)
    assert max(granted) == GRANTS_PER_DECISION_MAX
    assert all(node.room < 4 for node in simulation.scheduler.leases.nodes.values())


def test_few_tasks_are_spread_and_many_come_in_ranges() -> None:
    simulation = Simulation(Cluster(10, 8, 1000, 10, 1, nodes_lost=0, nodes_silent=0, runs_lost=0))
    simulation.run(until=lambda: simulation.tasks_leased > 100)
    for node in simulation.scheduler.leases.nodes.values():
        maps = [running.index for running in node.held.values() if running.stage == "map"]
        assert maps == list(range(maps[0], maps[0] + len(maps)))
    simulation.run(until=lambda: simulation.tasks_leased == 1011)
    for node in simulation.scheduler.leases.nodes.values():
        assert [running.stage for running in node.held.values()] == ["reduce"]


def hello(name: str, slots: int = 4, memory_bytes: int = 100) -> m.NodeHello:
    return m.NodeHello(name, "1", slots, memory_bytes, {}, f"{name}:8787")


def held(book: LeaseBook, node: str, *names: str) -> list[Running]:
    at = book.nodes[node]
    running = [Running(name, JOB, "map", 0, 0, at.output_node, m.PlanTask()) for name in names]  # type: ignore[arg-type]
    book.hold(at, running)
    return running


def test_the_roomiest_node_is_first_and_sums_are_true() -> None:
    book = LeaseBook()
    assert book.roomiest() is None
    for name, slots in (("a", 4), ("b", 4), ("c", 8)):
        book.join(hello(name, slots), 0.0)
    assert (book.slots, book.cap_bytes, book.wanting) == (16, 300, 3)
    assert book.roomiest() is book.nodes["a"]  # as good as the others, and there first
    first = held(book, "a", "1", "2")
    assert book.roomiest() is book.nodes["b"]
    held(book, "b", "3", "4", "5")
    held(book, "c", *map(str, range(10, 15)))
    assert [book.nodes[n].offer for n in "abc"] == [1.5, 1.25, 1.375]
    assert book.roomiest() is book.nodes["a"]
    held(book, "a", "6", "7", "8", "9")
    assert book.nodes["a"].room == 2
    held(book, "a", "16")
    assert (book.nodes["a"].room, book.nodes["a"].wants, book.wanting) == (1, False, 2)
    assert book.roomiest() is book.nodes["c"]
    book.silence(book.nodes["c"])
    assert (book.slots, book.wanting, book.roomiest()) == (8, 1, book.nodes["b"])
    book.release(first)
    assert book.nodes["a"].wants
    book.revive(book.nodes["c"])
    assert book.slots == 16
    book.measured(book.nodes["c"], 50, 60)
    book.measured(book.nodes["b"], 5, 6)
    assert (book.memory_bytes, book.memory_peak_bytes) == (55, 66)
    book.leave("c")
    book.leave("b")
    book.join(hello("b", 1), 0.0)
    assert (book.memory_bytes, book.memory_peak_bytes, book.slots, book.cap_bytes) == (0, 0, 5, 200)
    assert book.roomiest() is book.nodes["b"]


def test_void_entries_do_not_pile_up() -> None:
    book = LeaseBook()
    for name in "abc":
        book.join(hello(name), 0.0)
    for _ in range(1000):
        node = book.roomiest()
        assert node is not None
        book.release(held(book, node.name, "1"))
    assert len(book._by_room) < 50


def test_progress_is_told_less_often_the_more_nodes_there_are() -> None:
    scheduler = Scheduler()
    book = scheduler.leases
    told = []
    for number in range(1000):
        book.join(hello(f"n{number}"), 0.0)
        told.append(book.progress_s)
    assert told[0] == told[40] == PROGRESS_S
    assert PROGRESS_S < told[199] < told[299] < HEARTBEAT_S
    assert told[-1] == HEARTBEAT_S
    request = m.SubmitJob(JobSpec("a", InputSpec(("/in",))), b"", (), "/staging")
    start = scheduler.handle(events.JobSubmitted(JOB, request), 0.0)[0].message
    assert isinstance(start, m.StartJob)
    assert start.progress_s == HEARTBEAT_S

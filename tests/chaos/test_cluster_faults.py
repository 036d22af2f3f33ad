"""Nodes killed with SIGKILL in each phase, segments damaged on their way: a cluster of real processes.

The output is byte for byte that of a run without faults, and only what was lost is done again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex.errors import CortexError

PATIENCE_S = 60.0
LINES = 12


def hold(marks: str, phase: str, what: str) -> None:
    """Note that this executor, whose log lies in its node's spill folder, has begun; wait for the gate."""
    log = os.readlink("/proc/self/fd/2")
    node = os.path.basename(os.path.dirname(os.path.dirname(os.path.dirname(log))))
    path = os.path.join(marks, f"{phase}.{what}.{node}.{os.getpid()}.{time.monotonic_ns()}")
    with open(path, "x"):
        pass
    while not os.path.exists(os.path.join(marks, phase)):
        time.sleep(0.01)


class Unpickled:
    """Part of a job's code that holds the executors that load it: the first of them is to plan."""

    def __init__(self, marks: str, what: str = "") -> None:
        self.marks = marks
        if what:
            hold(marks, "plan", what)

    def __reduce__(self) -> tuple[Any, ...]:
        return Unpickled, (self.marks, "code")


class Gated(cortex.MapReduceJob):
    """Each task notes that it began and on which node, and waits for the file ``<phase>`` in `marks`."""

    marks = ""
    held: Any = None
    reducers = 4
    split_size = 7

    def map(self, line: str) -> Iterator[tuple[str, str]]:
        hold(self.marks, "map", line)
        for i in range(20):
            yield f"key{i}", line

    def reduce(self, key: str, values: Iterator[str]) -> Iterator[tuple[str, str]]:
        hold(self.marks, "reduce", key)
        yield key, ",".join(values)


class Run(threading.Thread):
    def __init__(self, folder: Path, cluster: cortex.LocalCluster | None, *gates: str) -> None:
        super().__init__(daemon=True)
        self.marks, self.out = folder / "marks", folder / "out"
        self.marks.mkdir(parents=True)
        data = folder / "in.txt"
        data.write_text("".join(f"line{i:02}\n" for i in range(LINES)))
        held = Unpickled(str(self.marks))
        self.job = Gated(input=str(data), output=str(self.out), marks=str(self.marks), held=held)
        self.cluster = cluster
        self.outcome: Any = None
        for gate in gates:
            self.open(gate)
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.job.run(self.cluster)
        except CortexError as error:
            self.outcome = error

    def open(self, gate: str) -> None:
        (self.marks / gate).touch()

    def begun(self, phase: str) -> list[list[str]]:
        """[what, node, pid, time] of every attempt."""
        return [path.name.split(".")[1:] for path in self.marks.glob(f"{phase}.*")]

    def result(self) -> cortex.Result:
        self.join(PATIENCE_S)
        assert isinstance(self.outcome, cortex.Result), self.outcome
        return self.outcome

    def bytes(self) -> dict[str, bytes]:
        self.result()
        return {path.name: path.read_bytes() for path in sorted(self.out.glob("part-*"))}


def wait_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What comes out on one machine."""
    folder = tmp_path_factory.mktemp("quiet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORTEX_HOME", str(folder / "state"))
        run = Run(folder, None, "plan", "map", "reduce")
        run.join(PATIENCE_S)
    wanted = {f"key{i}": ",".join(f"line{n:02}" for n in range(LINES)) for i in range(20)}
    assert dict(run.result()) == wanted
    return run.bytes()


@pytest.fixture
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=2, memory="400MB") as found:
        yield found


def kill(cluster: cortex.LocalCluster, node: str) -> None:
    os.kill(cluster.nodes[node].pid, signal.SIGKILL)
    cluster.nodes[node].wait()


def test_a_node_killed_while_it_maps(
    cluster: cortex.LocalCluster, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    run = Run(tmp_path, cluster, "plan", "reduce")
    wait_for(lambda: len({node for _, node, *_ in run.begun("map")}) == 2)
    kill(cluster, "node1")
    run.open("map")
    assert run.bytes() == expected
    assert run.result().report.failed_attempts == 0  # a lost node costs no attempt


@pytest.mark.parametrize("phase", ["plan", "map", "reduce"])
def test_executors_killed_in_each_phase_cost_their_own_attempts(
    cluster: cortex.LocalCluster, tmp_path: Path, expected: dict[str, bytes], phase: str
) -> None:
    """One on every node that has one by then; what had finished is not done again."""
    run = Run(tmp_path, cluster, *(gate for gate in ("plan", "map", "reduce") if gate != phase))
    nodes = 1 if phase == "plan" else 2
    wait_for(lambda: len({node for _, node, *_ in run.begun(phase)}) == nodes)
    victims = {node: (int(pid), what) for what, node, pid, _ in run.begun(phase)}
    for pid, _ in victims.values():
        os.kill(pid, signal.SIGKILL)
    run.open(phase)
    assert run.bytes() == expected
    report = run.result().report
    assert report.failed_attempts == len(victims)
    for earlier in ("map", "reduce"):
        counts = Counter(what for what, *_ in run.begun(earlier))
        killed = {what for _, what in victims.values()} if phase == earlier else set()
        assert {what for what, count in counts.items() if count > 1} == killed, earlier


@pytest.mark.parametrize("nodes", [1, 5])
def test_any_number_of_nodes_of_which_some_are_killed_gives_the_same_bytes(
    tmp_path: Path, expected: dict[str, bytes], nodes: int
) -> None:
    with cortex.LocalCluster(nodes=nodes, memory="400MB") as cluster:
        run = Run(tmp_path, cluster, "plan")
        wait_for(lambda: any(node == "node1" for _, node, *_ in run.begun("map")))
        kill(cluster, "node1")
        cluster.start_node("node1")
        run.open("map")
        (killed,) = {node for _, node, *_ in wait_for(lambda: run.begun("reduce")[:1])}
        kill(cluster, killed)
        cluster.start_node(killed)
        run.open("reduce")
        assert run.bytes() == expected


def test_a_node_killed_while_it_reduces_costs_what_it_had(
    cluster: cortex.LocalCluster, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    run = Run(tmp_path, cluster, "plan", "map")
    wait_for(lambda: len({node for _, node, *_ in run.begun("reduce")}) == 2)
    first = {what: node for what, node, *_ in run.begun("map")}
    kill(cluster, "node1")
    run.open("reduce")
    assert run.bytes() == expected
    again = Counter(what for what, *_ in run.begun("map"))
    lost = {what for what, node in first.items() if node == "node1"}
    assert lost
    assert {what for what, count in again.items() if count > 1} == lost


def test_a_node_that_is_killed_and_comes_back_works_on(
    cluster: cortex.LocalCluster, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    run = Run(tmp_path, cluster, "plan", "reduce")
    wait_for(lambda: len({node for _, node, *_ in run.begun("map")}) == 2)
    kill(cluster, "node1")
    cluster.start_node("node1")
    wait_for(lambda: len([1 for _, node, *_ in run.begun("map") if node == "node1"]) >= 2)
    run.open("map")
    assert run.bytes() == expected


def test_the_only_node_with_the_result_is_killed_before_the_client_has_it(
    cluster: cortex.LocalCluster, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cortex.client import cluster_session

    killed = threading.Event()
    is_done = cluster_session.Follower._is_done

    def killing(self: Any, done: Any) -> None:
        if not killed.is_set():
            killed.set()
            kill(cluster, "node1")
        is_done(self, done)

    monkeypatch.setattr(cluster_session.Follower, "_is_done", killing)
    run = Run(tmp_path, cluster, "plan", "map", "reduce")
    assert run.bytes() == expected
    assert killed.is_set()
    assert max(Counter(what for what, *_ in run.begun("reduce")).values()) == 2


def test_a_damaged_segment_runs_its_map_alone_again(
    cluster: cortex.LocalCluster, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    run = Run(tmp_path, cluster, "plan", "reduce")
    wait_for(lambda: run.begun("map"))
    # the gate of the last map stays shut until the first one's output is damaged
    first = run.begun("map")[0]
    wait_for(lambda: len({node for _, node, *_ in run.begun("map")}) == 2)

    def damage() -> bool:
        for path in (cluster.folder / first[1] / "spill").glob("cortex-*/j*/*-m*.run"):
            data = bytearray(path.read_bytes())
            data[len(data) // 3] ^= 0x10
            path.write_bytes(data)
            return True
        return False

    damaging = threading.Thread(target=lambda: wait_for(damage))
    damaging.start()
    run.open("map")
    damaging.join(PATIENCE_S)
    assert run.bytes() == expected
    again = Counter(what for what, *_ in run.begun("map"))
    assert sum(count - 1 for count in again.values()) == 1


def test_a_node_whose_spill_folder_is_gone_leaves_the_job_to_others(
    cluster: cortex.LocalCluster, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    (own,) = (cluster.folder / "node1" / "spill").glob("cortex-*")
    for path in own.iterdir():
        path.unlink()
    own.rmdir()
    run = Run(tmp_path, cluster, "plan", "map", "reduce")
    assert run.bytes() == expected
    assert {node for _, node, *_ in run.begun("map")} == {"node2"}
    if not any("cannot make a folder for spilled data" in note for note in run.result().report.notes):
        # Its executors' logs lay there, too: when it needs new ones first it ends, and says why.
        assert cluster.nodes["node1"].wait(PATIENCE_S) == 1
        assert "executors in a row ended before they could be used" in cluster.output("node1")


def test_a_template_that_is_killed_ends_its_node_with_the_cause(
    cluster: cortex.LocalCluster, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    from cortex.process_memory import descendant_pids

    run = Run(tmp_path, cluster, "plan", "reduce")
    wait_for(lambda: len({node for _, node, *_ in run.begun("map")}) == 2)
    own = cluster.nodes["node1"]
    template = next(
        pid
        for pid in descendant_pids(own.pid)
        if b"cortex.tasks.template" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(template, signal.SIGKILL)
    assert own.wait(PATIENCE_S) == 1
    assert "template" in cluster.output("node1")
    run.open("map")
    assert run.bytes() == expected

"""Nodes that leave a cluster of processes: drained, told to end, put out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex.errors import CortexError
from cortex.process_memory import descendant_pids
from cortex.wire.identity import load_identity

PATIENCE_S = 60.0


def command(cluster: cortex.LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CORTEX_")}
    return subprocess.run(
        [sys.executable, "-m", "cortex", *arguments, "--home", str(cluster.folder / "server")],
        env=kept, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def id_of(cluster: cortex.LocalCluster, name: str) -> str:
    found = load_identity(str(cluster.folder / name / "node"))
    assert found is not None
    return found.id


def listed(cluster: cortex.LocalCluster) -> dict[str, dict[str, Any]]:
    """Nodes by their ids; none while the server does not answer."""
    said = json.loads(command(cluster, "nodes", "list", "--json").stdout)
    return {node["node"]: node for node in said} if isinstance(said, list) else {}


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


class Gated(cortex.MapReduceJob):
    """Each map says that it has begun and waits for its turn: the file `gate`, or one of its line's name."""

    marks = ""
    reducers = 3

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        with open(os.path.join(self.marks, f"{line}-{os.getpid()}"), "x"):
            pass
        while not any(os.path.exists(os.path.join(self.marks, name)) for name in ("gate", f"go-{line}")):
            time.sleep(0.01)
        for key in range(40):
            yield f"key{key}", len(line)

    def reduce(self, key: str, values: Any) -> Iterator[tuple[str, int]]:
        with open(os.path.join(self.marks, f"{key}-{os.getpid()}"), "w"):
            pass
        while not os.path.exists(os.path.join(self.marks, "reduces")):
            time.sleep(0.01)
        yield key, sum(values)


WANTED = {f"key{key}": 6 * 6 for key in range(40)}


class Running(threading.Thread):
    def __init__(self, folder: Path, cluster: cortex.LocalCluster | cortex.Client) -> None:
        super().__init__(daemon=True)
        self.marks = folder / "marks"
        self.marks.mkdir()
        (folder / "in.txt").write_text("".join(f"line{i:02}\n" for i in range(6)))
        self.job = Gated(input=str(folder / "in.txt"), split_size=7, marks=str(self.marks))
        self.cluster = cluster
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.job.run(self.cluster)
        except CortexError as error:
            self.outcome = error

    def begun(self, what: str = "line") -> list[str]:
        return sorted(path.name.partition("-")[0] for path in self.marks.glob(f"{what}*-*"))

    def go(self, *names: str) -> None:
        for name in names:
            (self.marks / name).touch()

    def result(self) -> Any:
        self.join(PATIENCE_S)
        assert self.outcome is not None
        return self.outcome


@pytest.fixture
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=2) as found:
        yield found


def test_a_node_is_drained_while_a_job_runs_and_its_process_ends_well(
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    running = Running(tmp_path, cluster)
    wait_for(lambda: len(running.begun()) == 2)
    node = id_of(cluster, "node1")
    assert command(cluster, "drain", node, "--no-wait").stdout == f"{node} is draining\n"
    assert listed(cluster)[node]["state"] == "draining"
    assert "draining" in command(cluster, "status").stdout
    running.go("gate")
    wait_for(lambda: running.begun("key"))  # the maps are done; map outputs of this node are needed
    shown = command(cluster, "nodes", "list").stdout
    assert f"{node} waits for: map outputs of j" in shown, shown
    assert cluster.nodes["node1"].poll() is None
    running.go("reduces")
    assert cluster.nodes["node1"].wait(PATIENCE_S) == 0
    result = running.result()
    assert dict(result) == WANTED
    assert result.report.failed_attempts == 0
    assert len(running.begun()) == 6  # each map ran once
    assert list(listed(cluster)) == [id_of(cluster, "node2")]
    cluster.start_node("node1")  # the machine works again when its node is started
    wait_for(lambda: listed(cluster).get(node, {}).get("state") == "up")


def test_what_a_node_runs_when_its_time_is_over_runs_elsewhere(
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    running = Running(tmp_path, cluster)
    wait_for(lambda: len(running.begun()) == 2)
    node = id_of(cluster, "node1")
    drained = command(cluster, "drain", node, "--timeout", "0.5")
    assert drained.stdout == f"{node} has left\n", drained.stderr
    assert " waits for: " in drained.stderr
    assert " task" in drained.stderr
    assert cluster.nodes["node1"].wait(PATIENCE_S) == 0
    running.go("gate", "reduces")
    result = running.result()
    assert dict(result) == WANTED
    assert result.report.failed_attempts == 0


class Steady(cortex.MapReduceJob):
    """Takes a few seconds on two or three nodes."""

    reducers = 6

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        time.sleep(0.2)
        for key in range(40):
            yield f"key{key}", len(line)

    def reduce(self, key: str, values: Any) -> Iterator[tuple[str, int]]:
        time.sleep(0.02)
        yield key, sum(values)


def test_nodes_are_drained_and_started_again_one_after_the_other_while_jobs_run(tmp_path: Path) -> None:
    """As an upgrade to a patch release does it."""
    (tmp_path / "in.txt").write_text("".join(f"line{i:02}\n" for i in range(40)))
    wanted = {f"key{key}": 6 * 40 for key in range(40)}
    ends: list[Any] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                ends.append(dict(Steady(input=str(tmp_path / "in.txt"), split_size=7).run(cluster)))
            except CortexError as error:
                ends.append(error)

    with cortex.LocalCluster(nodes=3) as cluster:
        jobs = threading.Thread(target=run)
        jobs.start()
        try:
            for name in list(cluster.nodes):
                wait_for(lambda: any(job.state == "mapping" for job in cluster.client.status().jobs))
                node = id_of(cluster, name)
                drained = command(cluster, "drain", node, "--timeout", "1")
                assert drained.returncode == 0, drained.stderr
                assert cluster.nodes[name].wait(PATIENCE_S) == 0
                cluster.start_node(name)
                wait_for(lambda node=node: listed(cluster).get(node, {}).get("state") == "up")
        finally:
            stop.set()
            jobs.join(PATIENCE_S)
        assert ends
        assert all(end == wanted for end in ends), ends


def test_a_drain_outlives_the_servers_restart(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    running = Running(tmp_path, cluster)
    wait_for(lambda: len(running.begun()) == 2)
    node = id_of(cluster, "node1")
    drain = [sys.executable, "-m", "cortex", "drain", node, "--home", str(cluster.folder / "server")]
    waiting = subprocess.Popen(drain, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: listed(cluster)[node]["state"] == "draining")
    assert cluster.server is not None
    cluster.server.kill()
    cluster.server.wait()
    cluster.start_server()
    wait_for(lambda: listed(cluster).get(node, {}).get("state") == "draining")
    running.go("gate", "reduces")
    assert cluster.nodes["node1"].wait(PATIENCE_S) == 0
    out, err = waiting.communicate(timeout=PATIENCE_S)
    assert (waiting.returncode, out) == (0, f"{node} has left\n"), err
    result = running.result()
    assert dict(result) == WANTED
    assert result.report.failed_attempts == 0
    assert len(running.begun()) == 6


def test_a_drain_is_undone_and_a_node_that_is_not_there_is_said(cluster: cortex.LocalCluster) -> None:
    node = id_of(cluster, "node2")
    address = listed(cluster)[node]["data_address"]
    os.kill(cluster.nodes["node2"].pid, signal.SIGSTOP)  # it cannot leave yet
    try:
        assert command(cluster, "drain", node, "--no-wait").returncode == 0
        assert command(cluster, "drain", address, "--undo").returncode in (0, 2)
    finally:
        os.kill(cluster.nodes["node2"].pid, signal.SIGCONT)
    unknown = command(cluster, "drain", "n000000000000")
    assert unknown.returncode == 2
    assert "there is no node 'n000000000000'" in unknown.stderr
    several = command(cluster, "drain", listed(cluster)[id_of(cluster, "node1")]["host"], "--no-wait")
    assert several.returncode in (0, 2)


def test_a_node_that_is_told_to_end_says_goodbye_and_its_work_moves_at_once(
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    running = Running(tmp_path, cluster)
    wait_for(lambda: len(running.begun()) == 2)
    node = id_of(cluster, "node1")
    process = cluster.nodes["node1"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0
    assert node not in listed(cluster)  # not away for NODE_AWAY_S
    assert f"{node} is gone" in cluster.output("server")
    running.go("gate", "reduces")
    result = running.result()
    assert dict(result) == WANTED
    assert result.report.failed_attempts == 0


def test_a_second_signal_ends_a_node_on_the_spot(cluster: cortex.LocalCluster) -> None:
    process = cluster.nodes["node2"]
    children = descendant_pids(process.pid)
    assert children
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) in (0, 130)  # the first may have been enough
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children))
    cluster.start_node("node2")
    wait_for(lambda: listed(cluster).get(id_of(cluster, "node2"), {}).get("state") == "up")


def test_nodes_are_listed_with_their_versions_and_certificates_and_are_put_out(
    cluster: cortex.LocalCluster,
) -> None:
    found = listed(cluster)
    assert len(found) == 2
    for node in found.values():
        assert node["state"] == "up"
        assert node["versions"]["cortex"] == cortex.__version__
        assert 29 * 86400 < node["certificate_expires_at"] - time.time() < 31 * 86400
        assert node["host"]
    shown = command(cluster, "nodes", "list").stdout
    assert all(node in shown for node in found)
    node = id_of(cluster, "node1")
    assert command(cluster, "nodes", "revoke", node).stdout == f"{node} is revoked\n"
    assert cluster.nodes["node1"].wait(PATIENCE_S) == 1
    assert f"node {node} was revoked" in cluster.output("node1")
    assert node not in listed(cluster)


def test_a_client_that_is_put_out_is_cut_off_from_the_job_that_it_follows(
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    line = command(cluster, "token", "create", "--role", "client").stdout.split()[-1]
    login = [sys.executable, "-m", "cortex", "login", line, "--home", str(home)]
    assert subprocess.run(login, capture_output=True, timeout=PATIENCE_S).returncode == 0
    client = cortex.Client(cluster.address, home=home)
    running = Running(tmp_path, client)
    wait_for(lambda: len(running.begun()) == 2)
    found = load_identity(str(home / "client"))
    assert found is not None
    assert command(cluster, "token", "revoke", found.id).returncode == 0
    error = running.result()
    assert isinstance(error, CortexError)
    assert f"client {found.id} was" in error.message, error
    running.go("gate", "reduces")


def test_nodes_are_expected_back_after_the_servers_restart(cluster: cortex.LocalCluster) -> None:
    nodes = {id_of(cluster, "node1"), id_of(cluster, "node2")}
    assert cluster.server is not None
    wait_for(lambda: set(listed(cluster)) == nodes)
    os.kill(cluster.nodes["node2"].pid, signal.SIGSTOP)
    try:
        cluster.server.kill()
        cluster.server.wait()
        cluster.start_server()
        expected = id_of(cluster, "node2")
        shown = wait_for(lambda: listed(cluster).get(expected))
        assert shown["state"] == "expected"
        assert shown["leaves_in_s"] > 0
        assert f"{expected} " in command(cluster, "status").stdout
    finally:
        os.kill(cluster.nodes["node2"].pid, signal.SIGCONT)
    wait_for(lambda: {node["state"] for node in listed(cluster).values()} == {"up"})

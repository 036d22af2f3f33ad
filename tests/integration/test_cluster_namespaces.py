"""A cluster over a real network: server, nodes and client on machines of their own.

They are those of `tests.integration.machines`. Nothing is shared but one input folder, which nobody may
write to. What crosses which cable is counted.
"""

from __future__ import annotations

import csv
import filecmp
import json
import random
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortex.limits import KIB
from tests.integration.machines import Machine, Network, Refused

ROWS = 40_000
PARTS = 8  # reduces are twice as many as slots
LEASE_S = 3  # instead of thirty, so that the test can wait for it
QUICK = f"""
import cortex.limits as limits
limits.LEASE_S = limits.LINK_SILENCE_S_MAX = {LEASE_S}
limits.FETCH_TRIES_MAX = limits.FETCH_CONNECT_S_MAX = limits.FETCH_STALL_S = 2  # nodes give up in it, too
from cortex.cli.__main__ import main
main()
"""
# Lies in the client's own folder: the nodes get it with the job. Keeps all it is given until the reduce,
# and answers with few bytes: what is shuffled and what is not can be told apart.
JOB = """
import hashlib, time
import cortex

class Digest(cortex.MapReduceJob):
    def map(self, row):
        yield row.city, row.note

    def reduce(self, city, notes):
        digest, count, lines = hashlib.sha256(), 0, 0
        for note in notes:
            digest.update(note.encode() + b"\\0")
            count, lines = count + 1, lines + note.count("\\n")
        yield city, f"{count} {lines} {digest.hexdigest()}"

class SlowMaps(Digest):
    def map(self, row):
        time.sleep(0.0001)
        yield from super().map(row)

class SlowReduces(Digest):
    def reduce(self, city, notes):
        time.sleep(0.03)
        yield from super().reduce(city, notes)
"""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    try:
        network = Network(["head", "node1", "node2", "laptop"])
    except Refused as why:
        pytest.skip(f"namespaces cannot be made here: {why}")
    with network:
        _write_input(network.shared / "notes.csv")
        (network["laptop"].folder / "digest.py").write_text(JOB)
        head, laptop = network["head"], network["laptop"]
        head.start(sys.executable, "-c", QUICK, "server", "--advertise", head.address)
        line = _wait(lambda: _join_line(head.said()), head)
        for name in ("node1", "node2"):
            node = network[name]
            size = "--slots", "2", "--memory", "800MB", "--advertise", node.address
            node.start(sys.executable, "-c", QUICK, "node", *size, CORTEX_JOIN=line)
        invited = head.run("cortex", "token", "create", "--role", "client").stdout
        assert invited.startswith(f"cortex login {head.address}:8786/")
        laptop.run(*invited.split())
        _wait(lambda: len(_nodes(laptop)) == 2, network["node1"])
        served = [f"{network[name].address}:8787" for name in ("node1", "node2")]
        assert sorted(node["data_address"] for node in _nodes(laptop)) == served
        yield network


def _write_input(path: Path) -> None:
    dice = random.Random(20261125)
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["city", "note"])
        for _ in range(ROWS):
            note = dice.randbytes(40).hex()
            if dice.random() < 0.4:
                note = f'{note[:30]}\n{note[30:50]}, "{note[50:]}"\n'
            rows.writerow([f"city {dice.randrange(300)}", note])


def _join_line(said: str) -> str:
    return next(
        (line.split()[-1] for line in said.splitlines() if line.startswith("  cortex node --join ")), ""
    )


def _nodes(laptop: Machine) -> list[Any]:
    status = laptop.run("cortex", "status", "--json", check=False).stdout
    return [node for node in json.loads(status or "{}").get("nodes", []) if not node["silent"]]


def _wait(what: Any, of: Machine, seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"it did not come about in {seconds:g} s; {of.name} says: {of.log()}")


def _job(network: Network, name: str, output: str) -> list[str]:
    return [
        "cortex", "mapreduce", f"digest.py:{name}", "--input", str(network.shared / "notes.csv"),
        "--output", output, "--split-size", "200KB", "--reducers", str(PARTS), "--json",
    ]  # fmt: skip


def _on_cluster(network: Network) -> list[str]:
    return ["--server", f"{network['head'].address}:8786"]


def _same(laptop: Machine, one: str, other: str) -> bool:
    a, b = laptop.folder / one, laptop.folder / other
    names = [f"part-0000{number}.csv" for number in range(PARTS)]
    assert sorted(path.name for path in a.iterdir()) == ["_SUCCESS", "_manifest.json", *names]
    assert sorted(path.name for path in b.iterdir()) == ["_SUCCESS", "_manifest.json", *names]
    return filecmp.cmpfiles(a, b, names, shallow=False) == (names, [], [])


@pytest.fixture(scope="module")
def alone(network: Network) -> str:
    """The output of one machine, which every other must equal."""
    network["laptop"].run(*_job(network, "Digest", "alone"))
    return "alone"


def test_nothing_is_shared_but_the_input(network: Network) -> None:
    for machine in network.machines.values():
        for other in network.machines.values():
            seen = machine.run("ls", str(other.folder)).stdout.split()
            assert bool(seen) is (machine is other)
        assert machine.run("touch", str(network.shared / "mine"), check=False).returncode != 0
        assert machine.run("head", "-1", str(network.shared / "notes.csv")).stdout == "city,note\n"


def test_segments_go_from_node_to_node_and_not_through_the_server(network: Network, alone: str) -> None:
    laptop = network["laptop"]
    before = {name: machine.carried() for name, machine in network.machines.items()}
    done = laptop.run(*_job(network, "Digest", "cluster"), *_on_cluster(network))
    after = {name: machine.carried() for name, machine in network.machines.items()}
    assert _same(laptop, alone, "cluster")
    shuffled = json.loads(done.stdout)["report"]["shuffled_bytes"]
    assert shuffled > 1024 * KIB
    sent = {name: after[name].sent - before[name].sent for name in before}
    received = {name: after[name].received - before[name].received for name in before}
    # The output and every word of control, both ways, are a fraction of what is shuffled.
    server = sent["head"] + received["head"]
    assert server < shuffled / 4
    # What the nodes sent and the server did not get went from one to the other: half of the segments, about.
    between = sent["node1"] + sent["node2"] - received["head"]
    assert shuffled / 4 < between < shuffled
    for node in ("node1", "node2"):
        assert received[node] > shuffled / 10
    assert sent["laptop"] + received["laptop"] < server
    assert re.search(r"client c\w{12} submits 'Digest', code [0-9a-f]{64}\n", network["head"].log())


def test_a_file_that_only_the_client_has_is_sent_to_the_nodes(network: Network, alone: str) -> None:
    """Through the server, which passes on what comes."""
    laptop = network["laptop"]
    own = laptop.folder / "own.csv"
    shutil.copyfile(network.shared / "notes.csv", own)  # with its time, and another path
    before = {name: machine.carried() for name, machine in network.machines.items()}
    words = [str(own) if word.endswith("notes.csv") else word for word in _job(network, "Digest", "own")]
    laptop.run(*words, *_on_cluster(network))
    after = {name: machine.carried() for name, machine in network.machines.items()}
    assert _same(laptop, alone, "own")
    size = own.stat().st_size
    sent, passed_on = (after[name].sent - before[name].sent for name in ("laptop", "head"))
    # Once for the maps and once for the scan, which these notes leave in doubt; a megabyte for the plan; and
    # of each small split a third more than itself.
    assert 2 * size < sent < 3.2 * size
    assert sent - size / 4 < passed_on < sent + size / 2


@pytest.mark.parametrize("stage", ["map", "reduce"])
def test_a_node_cut_off_in_the_middle_of_a_job_costs_its_work_and_nothing_else(
    network: Network, alone: str, stage: str
) -> None:
    laptop, node = network["laptop"], network["node2"]
    name = node.said().split()[2]
    losses = node.log().count("no link to the server")
    job = laptop.start(*_job(network, f"Slow{stage.title()}s", stage), *_on_cluster(network))

    def amid_its_work() -> bool:
        """Tasks of this stage run, the node has some, and there is output of others to lose."""
        status = json.loads(laptop.run("cortex", "status", "--json").stdout)
        stages = [
            s for job in status["jobs"] if job["state"] not in ("done", "failed") for s in job["stages"]
        ]
        running = [s for s in stages if s["stage"] == stage and s["tasks_running"]]
        (held,) = [each["running"] for each in status["nodes"] if each["node"] == name]
        return held > 0 and any(stage == "reduce" or s["tasks_done"] > 4 for s in running)

    _wait(amid_its_work, laptop)
    node.plug(False)
    assert job.wait(60) == 0, laptop.log()
    assert _same(laptop, alone, stage)
    assert [each["node"] != name for each in _nodes(laptop)] == [True]
    _wait(lambda: node.log().count("no link to the server") > losses, node)  # it has noticed, too
    node.plug(True)
    _wait(lambda: len(_nodes(laptop)) == 2, node)


def test_two_nodes_that_cannot_reach_each_other_end_a_job_right_or_by_name(
    network: Network, alone: str
) -> None:
    """A firewall between them, most likely: the server hears both, and they hear the server."""
    laptop, node, other = network["laptop"], network["node1"], network["node2"]
    ways = [(node, other.address), (other, node.address)]
    for machine, address in ways:
        machine.run("ip", "route", "add", "unreachable", f"{address}/32")
    done = laptop.run(*_job(network, "Digest", "apart"), *_on_cluster(network), check=False)
    if done.returncode:
        error = json.loads(done.stdout)["error"]
        assert error["code"] == "fetch-failed"
        assert error["details"]["unreachable"] == "yes"
        assert "port" in error["cure"]
        assert not (laptop.folder / "apart").exists()
    else:
        assert _same(laptop, alone, "apart")
    for machine, address in ways:
        machine.run("ip", "route", "del", "unreachable", f"{address}/32")
    laptop.run(*_job(network, "Digest", "together"), *_on_cluster(network))
    assert _same(laptop, alone, "together")

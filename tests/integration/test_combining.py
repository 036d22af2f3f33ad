"""Map outputs combined at their nodes, on clusters of real processes: the bytes of one machine, and fewer of
them on the way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import cortex
from cortex.ids import Role
from tests.integration.test_cluster_metrics import Watched, ask, member, scraped
from tests.segment_tools import damage

PATIENCE_S = 60.0
BEFORE, AFTER = (f"cortex_node_combined_bytes_total{{side={side}}}" for side in ("before", "after"))
FETCHED = "cortex_node_fetched_bytes_total"


class Nodes(Watched):
    """Nodes, and what they say of themselves."""

    settings: ClassVar[dict[str, str]] = {}

    def __init__(self, nodes: int = 3, slots: int = 1, memory: str = "400MB") -> None:
        super().__init__(nodes=nodes, slots=slots, memory=memory)
        member(self, Role.CLIENT, self.folder / "scraper")

    def _start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        return super()._start(name, *arguments, **environment, **self.settings)

    def value(self, name: str, metric: str) -> float:
        return float(scraped(ask(self.watched(name), self.folder / "scraper")[1])[metric])

    def sum(self, metric: str) -> float:
        return sum(self.value(name, metric) for name, node in self.nodes.items() if node.poll() is None)


class Uncombined(Nodes):
    settings: ClassVar[dict[str, str]] = {"CORTEX_COMBINE": "off"}


class Slow(cortex.MapReduceJob):
    """Maps that are still running when nodes begin to fetch: before, nothing is combined."""

    pause_s = 0.06

    def setup(self) -> None:
        time.sleep(self.pause_s)


class Words(Slow):
    combine = sum
    reducers = 5
    split_size = 12_000

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        for word in line.split():
            yield word, 1


class Floats(Words):
    """Sums that would round, were they not exact; and a reduce behind them."""

    def map(self, line: str) -> Iterator[tuple[str, float]]:
        for word in line.split():
            yield word, 0.1 * len(word)

    def reduce(self, key: str, values: Iterator[float]) -> Iterator[tuple[str, float]]:
        yield key, sum(values)


def joined(earlier: str, later: str) -> str:
    return earlier + later


class InOrder(Words):
    """Each value, in order: a combiner that shows every change of it."""

    combine = joined

    def map(self, line: str) -> Iterator[tuple[str, str]]:
        words = line.split()
        yield words[0], words[1]


class Distinct(Words):
    """No key comes twice: nothing can be saved."""

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        for number, _ in enumerate(line.split()):
            yield f"{line[-30:]}-{number}", number


class Totals(cortex.MapReduceJob):
    group_by = ("product",)
    aggregate: ClassVar[dict[str, str]] = {
        "orders": "count()",
        "most": "max(quantity)",
        "mean": "mean(price)",
        "total": "sum(price)",
    }
    reducers = 4
    split_size = 12_000


def text(folder: Path, lines: int = 12_000) -> str:
    """About a megabyte of words, of which there are two thousand."""
    rng = random.Random(1)
    words = [f"word{i:04}" for i in range(2000)]
    path = folder / "in.txt"
    path.write_text("".join(" ".join(rng.choices(words, k=10)) + "\n" for _ in range(lines)))
    return str(path)


def orders(folder: Path) -> str:
    rng = random.Random(2)
    path = folder / "orders.csv"
    rows = (
        f"p{rng.randrange(2000):04},{rng.randrange(1, 9)},{rng.random() * 10 ** rng.randrange(9)!r}\n"
        for _ in range(60_000)
    )
    path.write_text("product,quantity,price\n" + "".join(rows))
    return str(path)


def parts(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}
    assert found
    return found


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with Nodes() as found:
        yield found


@pytest.fixture(scope="module")
def uncombined() -> Iterator[Nodes]:
    with Uncombined() as found:
        yield found


def fetched(cluster: Nodes, job: Any) -> float:
    """Run a job; the bytes that nodes fetched of each other for it."""
    before = cluster.sum(FETCHED)
    job.run(cluster)
    return cluster.sum(FETCHED) - before


@pytest.mark.parametrize("job", [Words, Floats, Totals])
def test_fewer_bytes_cross_the_network_and_the_output_is_that_of_one_machine(
    cluster: Nodes, uncombined: Nodes, job: Any, tmp_path: Path
) -> None:
    data = orders(tmp_path) if job is Totals else text(tmp_path)
    at_once = {} if job is Totals else {"pause_s": 0.0}
    job(input=data, output=str(tmp_path / "local"), **at_once).run()
    wanted = parts(tmp_path / "local")
    plain_bytes = fetched(uncombined, job(input=data, output=str(tmp_path / "plain")))
    assert parts(tmp_path / "plain") == wanted
    assert uncombined.sum(BEFORE) == 0
    before = cluster.sum(BEFORE)
    # Nobody waits for what is not combined yet: on a busy machine a run may have its reduces too early.
    for run in range(4):
        combined_bytes = fetched(cluster, job(input=data, output=str(tmp_path / f"combined{run}")))
        assert parts(tmp_path / f"combined{run}") == wanted
        if combined_bytes < 0.75 * plain_bytes:
            break
    assert combined_bytes < 0.75 * plain_bytes
    assert cluster.sum(BEFORE) > before
    assert cluster.sum(AFTER) < 0.8 * cluster.sum(BEFORE)


def test_a_users_combiner_keeps_the_order_of_values(tmp_path: Path) -> None:
    """Only neighbours are combined, of which nodes with several slots have some."""
    data = text(tmp_path)
    InOrder(input=data, output=str(tmp_path / "local"), pause_s=0.0).run()
    with Nodes(nodes=2, slots=4, memory="700MB") as cluster:
        InOrder(input=data, output=str(tmp_path / "out")).run(cluster)
        assert cluster.sum(BEFORE) > 0
    assert parts(tmp_path / "out") == parts(tmp_path / "local")


def test_a_job_of_distinct_keys_stops_after_the_first_group_of_a_node(cluster: Nodes, tmp_path: Path) -> None:
    data = text(tmp_path, 6_000)
    before = cluster.sum(BEFORE)
    Distinct(input=data, output=str(tmp_path / "local"), split_size=6_000, pause_s=0.0).run()
    Distinct(input=data, output=str(tmp_path / "out"), split_size=6_000).run(cluster)
    assert parts(tmp_path / "out") == parts(tmp_path / "local")
    stopped = [cluster.output(name).count("would save too little") for name in cluster.nodes]
    assert max(stopped) == 1
    assert cluster.sum(BEFORE) == before


class Gated(Floats):
    """Its maps are slow, and its reduces wait for a gate."""

    marks = ""

    def map(self, line: str) -> Iterator[tuple[str, float]]:
        time.sleep(0.0005)
        yield from super().map(line)

    def reduce(self, key: str, values: Iterator[float]) -> Iterator[tuple[str, float]]:
        if not os.path.exists(os.path.join(self.marks, "gate")):
            log = os.readlink("/proc/self/fd/2")
            node = os.path.basename(os.path.dirname(os.path.dirname(os.path.dirname(log))))
            with open(os.path.join(self.marks, f"{node}.{os.getpid()}"), "a"):
                pass
            while not os.path.exists(os.path.join(self.marks, "gate")):
                time.sleep(0.01)
        yield key, sum(values)


def test_nodes_killed_while_maps_are_combined_and_while_reduces_run_change_no_byte(tmp_path: Path) -> None:
    data, marks = text(tmp_path), tmp_path / "marks"
    Floats(input=data, output=str(tmp_path / "local"), pause_s=0.0).run()
    marks.mkdir()
    outcome: list[Any] = []
    with Nodes() as cluster:
        job = Gated(input=data, output=str(tmp_path / "out"), marks=str(marks))
        thread = threading.Thread(target=lambda: outcome.append(job.run(cluster)), daemon=True)
        thread.start()

        def combining() -> str:
            """A node with combined outputs, which are lost with it."""
            return next((name for name in cluster.nodes if cluster.value(name, BEFORE)), "")

        kill(cluster, wait_for(combining))
        reducing = wait_for(lambda: next((path.name for path in marks.iterdir()), ""))
        kill(cluster, reducing.partition(".")[0])
        (marks / "gate").touch()
        thread.join(PATIENCE_S)
        assert outcome
        assert cluster.sum(BEFORE) > 0
    assert parts(tmp_path / "out") == parts(tmp_path / "local")


def kill(cluster: Nodes, name: str) -> None:
    """With its executors; another process takes its place, with the same home."""
    node = cluster.nodes[name]
    os.killpg(node.pid, signal.SIGKILL)
    node.wait()
    cluster.start_node(name)
    wait_for(lambda: "metrics for clients" in cluster._output(name))


def test_combined_files_that_are_damaged_are_replaced_by_what_they_were_made_of(
    cluster: Nodes, tmp_path: Path
) -> None:
    """The first reduces, one a slot, have what they need; the others fetch when these are done."""
    data, marks = text(tmp_path), tmp_path / "marks"
    Floats(input=data, output=str(tmp_path / "local"), pause_s=0.0).run()
    marks.mkdir()
    outcome: list[Any] = []
    job = Gated(input=data, output=str(tmp_path / "out"), marks=str(marks), reducers=9)
    thread = threading.Thread(target=lambda: outcome.append(job.run(cluster)), daemon=True)
    thread.start()
    wait_for(lambda: len(list(marks.iterdir())) == 3)
    made = list((cluster.folder).glob("node*/spill/cortex-*/j*/j*-c*.run"))
    assert made
    for path in made:
        for offset in range(8, path.stat().st_size // 2, 1000):
            damage(str(path), offset)
    (marks / "gate").touch()
    thread.join(PATIENCE_S)
    assert outcome
    assert rows(tmp_path / "out") == rows(tmp_path / "local")


def rows(folder: Path) -> list[bytes]:
    """Of all parts, whose sequence does not depend on how many there are."""
    return [line for data in parts(folder).values() for line in data.splitlines()[1:]]

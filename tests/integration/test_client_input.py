"""The client's own files, on a cluster whose nodes do not see them: real processes, real TLS."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cortex
from cortex.client.embedded_start import child_environment
from cortex.client.input_sender import InputSender
from cortex.errors import InputChanged, InputError
from cortex.limits import INPUT_NODE_BYTES, MIB
from cortex.wire.messages import JobProgress, ReadInput
from tests.chaos.test_server_restart import Proxy
from tests.integration.hidden_cluster import HIDE, HiddenCluster, can_hide

pytestmark = pytest.mark.skipif(
    not can_hide(), reason="no mount namespaces here (unshare): nodes would see all"
)


ENDED = ("done", "failed", "cancelled")


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that no node sees."""
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module")
def cluster(hidden: Path) -> Iterator[HiddenCluster]:
    with HiddenCluster(2, [hidden]) as made:
        yield made


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[ReadInput]:
    """What this process is asked for, as a client."""
    asked: list[ReadInput] = []
    ask = InputSender.ask

    def noted(self: InputSender, read: ReadInput) -> None:
        asked.append(read)
        ask(self, read)

    monkeypatch.setattr(InputSender, "ask", noted)
    return asked


class Totals(cortex.MapReduceJob):
    group_by = "name"
    aggregate = {"n": "count()", "total": "sum(value)"}  # noqa: RUF012
    split_size = 200_000
    reducers = 3


class Words(cortex.MapReduceJob):
    combine = sum
    split_size = 200_000

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        for word in line.split():
            yield word, 1


class SlowLines(cortex.MapReduceJob):
    combine = sum
    split_size = 100_000

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        time.sleep(0.0002)
        yield line[-3:], 1


def _table(rows: int) -> pa.Table:
    chance = random.Random(11)
    names = [f'n "{chance.randrange(500)}"\nof many' for _ in range(rows)]
    return pa.table({"name": names, "value": [chance.randrange(1000) for _ in range(rows)]})


def _csv(table: pa.Table) -> bytes:
    lines = [
        '"' + name.replace('"', '""') + f'",{value}\n'
        for name, value in zip(table["name"].to_pylist(), table["value"].to_pylist())
    ]
    return ("name,value\n" + "".join(lines)).encode()


def _write(folder: Path, kind: str) -> tuple[type[cortex.MapReduceJob], Path]:
    path = folder / f"in.{kind}"
    if kind == "csv":
        path.write_bytes(_csv(_table(60_000)))
    elif kind == "plain.csv":
        rows = "".join(f"n{i % 700},{i}\n" for i in range(150_000))
        path.write_text("name,value\n" + rows)
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(_csv(_table(60_000)), 1))
    elif kind == "txt":
        path.write_text("".join(f"wörter {i % 100} line {i}\r\n" for i in range(60_000)))
        return Words, path
    elif kind == "parquet":
        pq.write_table(_table(60_000), path, row_group_size=7000)
    else:
        with pa.ipc.new_file(path, _table(60_000).schema) as writer:
            writer.write_table(_table(60_000), max_chunksize=7000)
    return Totals, path


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("part-")}


@pytest.mark.parametrize("kind", ["csv", "plain.csv", "csv.gz", "txt", "parquet", "arrow"])
def test_output_is_that_of_one_machine(
    hidden: Path, cluster: HiddenCluster, tmp_path: Path, kind: str, reads: list[ReadInput]
) -> None:
    job, path = _write(hidden, kind)
    here = job(input=path, output=tmp_path / "here").run()
    there = job(input=path, output=tmp_path / "there").run(cluster)
    assert _bytes(tmp_path / "there") == _bytes(tmp_path / "here")
    assert sum(map(len, _bytes(tmp_path / "there").values())) > 1000
    assert there.report.rows_in == here.report.rows_in
    assert there.report.bytes_in == here.report.bytes_in
    assert sum(read.length for read in reads) > 0


def test_files_that_nodes_see_as_well_are_read_in_place(
    hidden: Path, cluster: HiddenCluster, tmp_path: Path, reads: list[ReadInput]
) -> None:
    _, unseen = _write(hidden, "csv")
    _, seen = _write(tmp_path, "csv")
    (tmp_path / "in").mkdir()
    Totals(input=[seen, unseen], output=tmp_path / "here").run()
    Totals(input=[seen, unseen], output=tmp_path / "there").run(cluster)
    assert _bytes(tmp_path / "there") == _bytes(tmp_path / "here")
    assert {read.file for read in reads} == {1}
    reads.clear()
    Totals(input=seen, output=tmp_path / "alone").run(cluster)
    assert reads == []


def test_folders_and_patterns_mean_the_clients_files(
    hidden: Path, cluster: HiddenCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hidden / "many"
    (folder / "below").mkdir(parents=True)
    for i in range(30):
        (folder / f"{i:02d}.txt").write_text(f"one w{i}\n")
    (folder / "below" / "x.txt").write_text("below\n")
    (folder / "_not.txt").write_text("not\n")
    monkeypatch.chdir(hidden)
    for given in ("many", "many/0*.txt", ["many/2*.txt", "many/below", "many/21.txt"]):
        expected = sorted(Words(input=given).run())
        assert sorted(Words(input=given).run(cluster)) == expected
    assert ("below", 1) in expected


def test_a_bad_row_is_told_as_on_one_machine(hidden: Path, cluster: HiddenCluster) -> None:
    path = hidden / "bad.csv"
    rows = "".join(f'"n\n{i % 7}",{i}\n' for i in range(150_000))  # more than types are inferred from
    path.write_text("name,value\n" + rows + "n,not a number\n" + rows)
    told = []
    for where in (None, cluster):
        with pytest.raises(InputError) as found:
            Totals(input=path).run(where)
        told.append((found.value.message, found.value.cure, found.value.details))
    assert told[0] == told[1]
    assert told[0][2]["file"] == str(path)


def test_input_that_nobody_has_is_named(hidden: Path, cluster: HiddenCluster) -> None:
    with pytest.raises(InputError, match="input does not exist") as found:
        Totals(input=hidden / "nowhere.csv").run(cluster)
    assert found.value.details["looked for"] == "on the client's machine, then on a node"


def _when(running: Callable[[JobProgress], bool], act: Callable[[], Any]) -> Callable[[JobProgress], None]:
    done = []

    def on_progress(progress: JobProgress) -> None:
        if not done and running(progress):
            done.append(act())

    return on_progress


def _maps_done(progress: JobProgress) -> bool:
    return any(stage.stage == "map" and stage.tasks_done for stage in progress.stages)


def _lines(path: Path, count: int) -> None:
    with path.open("w") as file:
        file.writelines(f"some line of text number {i}\n" for i in range(count))


@pytest.mark.parametrize("how", ["appended to", "written anew"])
def test_a_file_that_changes_while_it_is_read_is_named(
    hidden: Path, cluster: HiddenCluster, how: str
) -> None:
    path = hidden / "changing.txt"
    _lines(path, 100_000)

    def change() -> None:
        if how == "appended to":
            with path.open("a") as file:
                file.write("more\n")
        else:
            _lines(path, 100_000)

    with pytest.raises(InputChanged) as found:
        SlowLines(input=path).run(cluster, on_progress=_when(_maps_done, change))
    assert found.value.details["file"] == str(path)


def test_a_node_that_stands_still_does_not_grow_the_server(
    hidden: Path, cluster: HiddenCluster, tmp_path: Path
) -> None:
    """The node's socket takes nothing: what it asked for is all that can lie in the server."""
    path = hidden / "large.txt"
    _lines(path, 4_000_000)
    assert cluster.server is not None
    node = cluster.nodes["node1"]
    before = _peak(cluster.server.pid)
    stopped = threading.Event()

    def stop() -> None:
        node.send_signal(signal.SIGSTOP)
        stopped.set()

        def go_on() -> None:
            time.sleep(1.5)
            node.send_signal(signal.SIGCONT)

        threading.Thread(target=go_on).start()

    class Lines(Words):
        split_size = 8_000_000
        reducers = 1

        def map(self, line: str) -> Iterator[tuple[str, int]]:
            yield line[-1:], 1

    counts = dict(Lines(input=path).run(cluster, on_progress=_when(_maps_done, stop)))
    assert stopped.is_set()
    assert sum(counts.values()) == 4_000_000
    assert _peak(cluster.server.pid) - before < 2 * INPUT_NODE_BYTES + 8 * MIB


def _peak(pid: int) -> int:
    """Peak memory in bytes."""
    with open(f"/proc/{pid}/status") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _command(cluster: HiddenCluster, hide: list[str], *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cortex", "mapreduce", *map(os.fspath, arguments)]
    environment = child_environment() | {
        "CORTEX_SERVER": cluster.address,
        "CORTEX_HOME": str(cluster.folder / "server"),
    }
    return subprocess.Popen(
        [*HIDE, *hide, "--", *command] if hide else command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _idle(cluster: HiddenCluster) -> bool:
    status = cluster.client.status()
    return all(node.running == 0 for node in status.nodes) and not any(
        job.state not in ENDED for job in status.jobs
    )


def _wait(what: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


JOB_FILE = """
import time
import cortex

class Lines(cortex.MapReduceJob):
    combine = sum
    split_size = 1_000_000
    def map(self, line):
        time.sleep(0.0002)
        yield line[-3:], 1
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_client_that_ends_while_it_is_read_from_leaves_the_cluster_idle(
    hidden: Path, cluster: HiddenCluster, tmp_path: Path, number: signal.Signals
) -> None:
    path = hidden / "long.txt"
    _lines(path, 400_000)
    (tmp_path / "job.py").write_text(JOB_FILE)
    client = _command(cluster, [], f"{tmp_path}/job.py:Lines", "--input", path, "--quiet")
    _wait(lambda: not _idle(cluster) and any(node.running for node in cluster.client.status().nodes))
    time.sleep(1)
    client.send_signal(number)
    out, err = client.communicate(timeout=10)
    assert client.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), (out, err)
    if number == signal.SIGKILL:  # it might come back: its job waits, and takes nothing but its slots
        (job,) = [job for job in cluster.client.status().jobs if job.state not in ENDED]
        assert any(node.running for node in cluster.client.status().nodes)
        cluster.client.cancel(job.job)
    _wait(lambda: _idle(cluster))
    assert sorted(Words(input=path, split_size=0).run(cluster))[:1]


def test_reads_wait_for_a_client_that_stands_still(
    hidden: Path, cluster: HiddenCluster, tmp_path: Path
) -> None:
    path = hidden / "waiting.txt"
    _lines(path, 40_000)
    (tmp_path / "job.py").write_text(JOB_FILE)
    client = _command(
        cluster, [], f"{tmp_path}/job.py:Lines", "--input", path, "--split-size", "100KB", "--quiet", "--json"
    )
    _wait(lambda: any(node.running for node in cluster.client.status().nodes))
    client.send_signal(signal.SIGSTOP)
    time.sleep(3)  # longer than what was read lasts
    assert any(node.running for node in cluster.client.status().nodes)
    client.send_signal(signal.SIGCONT)
    out, err = client.communicate(timeout=60)
    assert client.returncode == 0, err
    report = json.loads(out)["report"]
    assert (report["rows_in"], report["failed_attempts"]) == (40_000, 0)


def test_a_server_killed_while_it_passes_input_on_costs_no_attempt(hidden: Path) -> None:
    """Reads that were on their way are asked again, by nodes that live and of a client that comes back."""
    path = hidden / "passed-on.txt"
    _lines(path, 40_000)
    here = dict(SlowLines(input=path).run())
    with HiddenCluster(2, [hidden]) as own:

        def kill() -> None:
            assert own.server is not None
            own.server.kill()
            own.server.wait()
            own.start_server()

        there = SlowLines(input=path).run(own, on_progress=_when(_maps_done, kill))
        assert dict(there) == here
        assert there.report.failed_attempts == 0


def test_a_client_whose_link_is_cut_is_read_from_again(hidden: Path, cluster: HiddenCluster) -> None:
    path = hidden / "cut.txt"
    _lines(path, 40_000)
    here = dict(SlowLines(input=path).run())
    with contextlib.closing(Proxy(cluster.address)) as proxy:
        client = cortex.Client(proxy.address, home=cluster.folder / "server")
        cuts: list[int] = []

        def cut_now_and_then(progress: JobProgress) -> None:
            done = sum(stage.tasks_done for stage in progress.stages if stage.stage == "map")
            if done >= 2 * len(cuts) + 1 and len(cuts) < 3:
                cuts.append(proxy.cut())

        there = SlowLines(input=path).run(client, on_progress=cut_now_and_then)
    assert len(cuts) == 3
    assert dict(there) == here
    assert there.report.failed_attempts == 0


def test_a_node_killed_while_it_reads_costs_its_work_alone(hidden: Path, tmp_path: Path) -> None:
    path = hidden / "read.txt"
    _lines(path, 40_000)
    here = dict(SlowLines(input=path).run())
    with HiddenCluster(2, [hidden]) as own:
        killed = []

        def kill() -> None:
            own.nodes["node1"].kill()
            killed.append(own.nodes["node1"].wait())

        there = SlowLines(input=path).run(own, on_progress=_when(_maps_done, kill))
        assert killed == [-signal.SIGKILL]
        assert dict(there) == here
        assert there.report.failed_attempts == 0


def test_files_that_nodes_alone_see_are_found_by_them(
    hidden: Path, cluster: HiddenCluster, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "a.txt").write_text("from nodes\n")
    (hidden / "mine.txt").write_text("from me\n")
    (tmp_path / "job.yaml").write_text(
        "input: {path: x, format: text}\nreduce: {group_by: [line], aggregate: {n: count()}}\n"
    )
    client = _command(
        cluster, [str(shared)], tmp_path / "job.yaml", "--input", f"{shared}/*.txt", "--input",
        hidden / "mine.txt", "--quiet",
    )  # fmt: skip
    out, err = client.communicate(timeout=30)
    assert sorted(out.splitlines()) == ["from me,1", "from nodes,1", "line,n"], err


def test_the_cluster_is_sound_at_the_end(cluster: HiddenCluster) -> None:
    for name in ("server", "node1", "node2"):
        said = cluster.output(name)
        assert "Traceback" not in said, said

"""A cluster of real processes: the same bytes as on one machine, and what its commands say."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex.clusters import _free_port
from cortex.errors import CortexError, NotAllowed, Unreachable, UsageError
from cortex.limits import MIB
from cortex.process_memory import descendant_pids, own_anonymous_bytes
from datasets import Items, Orders, Text

PATIENCE_S = 60.0
JOBS = {
    "words.py": """
import cortex

class Words(cortex.MapReduceJob):
    combine = sum
    reducers = 5

    def map(self, line):
        for word in line.split():
            yield word, 1

class Notes(cortex.MapReduceJob):
    '''Every value, in order: what a reducer sees depends on it.'''
    reducers = 3

    def map(self, row):
        yield row.customer, row.note or ""

    def reduce(self, key, values):
        values = list(values)
        yield key, f"{len(values)}:{hash_of(values)}"

def hash_of(values):
    import hashlib
    return hashlib.sha256("|".join(values).encode()).hexdigest()[:16]
""",
    "totals.yaml": """
name: totals
map: {where: quantity > 1}
reduce:
  group_by: [product]
  aggregate: {orders: count(), most: max(quantity), mean: mean(price), total: sum(price)}
resources: {reducers: 4}
""",
    "copy.yaml": """
name: copy
map: {select: {order_id: order_id, note: note}}
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    for name, text in JOBS.items():
        (folder / name).write_text(text)
    for name, made in (
        ("items.csv", Items(30_000)),
        ("orders.csv", Orders(10_000)),
        ("text.txt", Text(20_000)),
    ):
        (folder / name).write_bytes(made.header + made.block(0, made.rows))
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=2) as found:
        yield found


def command(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CORTEX_")}
    environment["CORTEX_HOME"] = str(folder / "state")
    return subprocess.run(
        [sys.executable, "-m", "cortex", *arguments],
        env=environment | options.pop("env", {}),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        **options,
    )


def where(cluster: cortex.LocalCluster) -> tuple[str, ...]:
    return "--server", cluster.address, "--home", str(cluster.folder / "server")


def parts(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}
    assert found
    return found


RUNS = [
    ("words.py:Words", "text.txt", "csv"),
    ("words.py:Notes", "orders.csv", "csv"),
    ("totals.yaml", "items.csv", "parquet"),
    ("copy.yaml", "orders.csv", "arrow"),
]


def test_output_is_that_of_one_machine_for_one_two_and_five_nodes(folder: Path) -> None:
    wanted = {}
    for target, data, format_ in RUNS:
        out = folder / "local" / target.replace(":", "-")
        options = ("--input", data, "--split-size", "100KB", "--output-format", format_, "--quiet")
        ran = command(folder, "mapreduce", target, *options, "--output", str(out))
        assert ran.returncode == 0, ran.stderr
        wanted[target] = parts(out)
    for nodes in (1, 2, 5):
        with cortex.LocalCluster(nodes=nodes, memory="400MB") as cluster:
            for target, data, format_ in RUNS:
                out = folder / str(nodes) / target.replace(":", "-")
                options = ("--input", data, "--split-size", "100KB", "--output-format", format_, "--quiet")
                ran = command(folder, "mapreduce", target, *options, "--output", str(out), *where(cluster))
                assert ran.returncode == 0, ran.stderr
                assert parts(out) == wanted[target]
                assert {path.name for path in out.iterdir()} == {
                    "_SUCCESS",
                    "_manifest.json",
                    *wanted[target],
                }
            wait_for(lambda found=cluster: not any(list(spilled(found, name)) for name in found.nodes))


def spilled(cluster: cortex.LocalCluster, node: str) -> Iterator[Path]:
    """Folders of jobs at a node."""
    return (cluster.folder / node / "spill").glob("cortex-*/j*")


def test_commands_tell_of_nodes_and_jobs(cluster: cortex.LocalCluster, folder: Path) -> None:
    options = ("--input", "items.csv", "--split-size", "200KB", "--quiet")
    ran = command(folder, "mapreduce", "totals.yaml", *options, *where(cluster))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("product,orders,most,mean,total\n")
    status = json.loads(command(folder, "status", "--json", *where(cluster)).stdout)
    assert len(status["nodes"]) == 2
    assert all(node["slots"] == 1 and node["data_address"] for node in status["nodes"])
    free = shutil.disk_usage(cluster.folder).free
    assert all(0 < node["disk_free_bytes"] < 2 * free for node in status["nodes"])
    job = status["jobs"][-1]
    assert (job["name"], job["state"]) == ("totals", "done")
    shown = command(folder, "status", *where(cluster)).stdout
    assert "2 nodes, 0 of 2 slots busy" in shown
    assert all(node["data_address"] in shown for node in status["nodes"])
    assert job["job"] in command(folder, "jobs", *where(cluster)).stdout
    assert "done" in command(folder, "job", job["job"], "--wait", *where(cluster)).stdout
    assert "2 nodes" in command(folder, "cluster_status", *where(cluster)).stdout
    unknown = command(folder, "job", "j000000000000", *where(cluster))
    assert unknown.returncode == 2
    assert "there is no job" in unknown.stderr


class Slow(cortex.MapReduceJob):
    """A map that waits for the file `gate` beside its marks."""

    marks = ""
    reducers = 2

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        with open(os.path.join(self.marks, f"{line}-{os.getpid()}-{time.monotonic_ns()}"), "x"):
            pass
        print(line, "is here", flush=True)
        while not os.path.exists(os.path.join(self.marks, "gate")):
            time.sleep(0.01)
        yield line, 1


class Late(Slow):
    """Only its last map waits."""

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        while line == "line11" and not os.path.exists(os.path.join(self.marks, "gate")):
            time.sleep(0.01)
        for i in range(50):
            yield f"key{i}", len(line)


class Running(threading.Thread):
    """A job in a thread; `outcome` is its result or its error."""

    def __init__(self, job: cortex.MapReduceJob, cluster: cortex.LocalCluster | cortex.Client) -> None:
        super().__init__(daemon=True)
        self.job, self.cluster = job, cluster
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.job.run(self.cluster)
        except CortexError as error:
            self.outcome = error

    def result(self) -> Any:
        self.join(PATIENCE_S)
        assert self.outcome is not None
        return self.outcome


def slow(tmp_path: Path, lines: int, kind: type[Slow] = Slow) -> Slow:
    (tmp_path / "marks").mkdir()
    (tmp_path / "in.txt").write_text("".join(f"line{i:02}\n" for i in range(lines)))
    return kind(input=str(tmp_path / "in.txt"), split_size=7, marks=str(tmp_path / "marks"))


def wait_for(condition: Any) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_a_node_that_comes_while_a_job_runs_works_for_it(tmp_path: Path) -> None:
    with cortex.LocalCluster(nodes=1) as cluster:
        job = slow(tmp_path, 8)
        running = Running(job, cluster)
        wait_for(lambda: list((tmp_path / "marks").glob("line*")))
        cluster.add_node()
        wait_for(lambda: len({path.name.split("-")[1] for path in (tmp_path / "marks").glob("line*")}) == 2)
        (tmp_path / "marks" / "gate").touch()
        assert dict(running.result()) == {f"line{i:02}": 1 for i in range(8)}


def test_segments_are_fetched_while_maps_run(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    running = Running(slow(tmp_path, 12, Late), cluster)

    def fetched() -> bool:
        per_node = [
            list(folder.glob("*.segment")) for name in cluster.nodes for folder in spilled(cluster, name)
        ]
        return len(per_node) == 2 and all(per_node)

    wait_for(fetched)
    assert any(job.state == "mapping" for job in cluster.client.status().jobs)
    (tmp_path / "marks" / "gate").touch()
    result = running.result()
    assert result.to_arrow().num_rows == 12 * 50
    assert result.report.failed_attempts == 0


def test_what_a_jobs_code_wrote_is_shown_while_it_runs_and_after(
    cluster: cortex.LocalCluster, tmp_path: Path, folder: Path
) -> None:
    running = Running(slow(tmp_path, 4), cluster)
    wait_for(lambda: len(list((tmp_path / "marks").glob("line*"))) == 2)
    job = next(job.job for job in cluster.client.status().jobs if job.state == "mapping")
    shown = command(folder, "logs", job, *where(cluster)).stdout
    assert shown.count("=== node n") == 2
    assert "line00 is here" in shown
    (tmp_path / "marks" / "gate").touch()
    running.result()

    def after() -> bool:
        text = command(folder, "logs", job, *where(cluster)).stdout
        return all(f"line{i:02} is here" in text for i in range(4))

    wait_for(after)
    unknown = command(folder, "logs", "j000000000000", *where(cluster))
    assert unknown.returncode == 1
    assert "no job of yours" in unknown.stderr
    assert "is done: it had ended before" in command(folder, "cancel", job, *where(cluster)).stdout


def test_a_job_is_cancelled_by_its_id(cluster: cortex.LocalCluster, tmp_path: Path, folder: Path) -> None:
    running = Running(slow(tmp_path, 4), cluster)
    wait_for(lambda: list((tmp_path / "marks").glob("line*")))
    job = next(job.job for job in cluster.client.status().jobs if job.state == "mapping")
    ran = command(folder, "cancel", job, *where(cluster))
    assert ran.stdout == f"{job} is cancelled\n", ran.stderr
    assert running.result().code == "cancelled"
    states = {job.job: job.state for job in cluster.client.status().jobs}
    assert states[job] == "cancelled"
    wait_for(lambda: not any(list(spilled(cluster, name)) for name in cluster.nodes))


def test_another_client_joins_with_a_token_and_may_not_do_everything(
    cluster: cortex.LocalCluster, tmp_path: Path, folder: Path
) -> None:
    made = command(folder, "token", "create", "--role", "client", "--uses", "1", *where(cluster)).stdout
    line = made.split()[-1]
    home = ("--home", str(tmp_path / "home"))
    assert command(folder, "login", line, *home).returncode == 0
    again = command(folder, "login", line, "--home", str(tmp_path / "other"))
    assert again.returncode != 0
    assert "token" in again.stderr
    shown = command(folder, "status", *home)  # no --server: where it logged in
    assert "2 nodes" in shown.stdout, shown.stderr
    refused = command(folder, "token", "create", *home)
    assert refused.returncode == 1
    assert "may not send CreateToken" in refused.stderr
    client = cortex.Client(home=tmp_path / "home")
    (tmp_path / "in.txt").write_text("a b a\n")

    assert dict(Words(input=str(tmp_path / "in.txt")).run(client)) == {"a": 2, "b": 1}
    running = Running(slow(tmp_path, 2), cluster)
    wait_for(lambda: list((tmp_path / "marks").glob("line*")))
    job = next(job.job for job in client.status().jobs if job.name == "Slow")
    with pytest.raises(NotAllowed, match="no job of yours"):
        client.cancel(job)
    (tmp_path / "marks" / "gate").touch()
    assert dict(running.result()) == {"line00": 1, "line01": 1}


class Words(cortex.MapReduceJob):
    combine = sum

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        for word in line.split():
            yield word, 1


def test_a_script_finds_its_server_in_the_environment(cluster: cortex.LocalCluster, folder: Path) -> None:
    env = {"CORTEX_SERVER": cluster.address, "CORTEX_HOME": str(cluster.folder / "server")}
    before = len(cluster.client.status().jobs)
    ran = command(folder, "mapreduce", "words.py:Words", "text.txt", "--quiet", env=env)
    assert ran.returncode == 0, ran.stderr
    counts = Counter((folder / "text.txt").read_text().split())
    assert len(ran.stdout.splitlines()) == len(counts) + 1
    assert len(cluster.client.status().jobs) == before + 1
    local = command(
        folder, "mapreduce", "words.py:Words", "text.txt", "--quiet", "--server", "local", env=env
    )
    assert sorted(local.stdout.splitlines()) == sorted(ran.stdout.splitlines())
    assert len(cluster.client.status().jobs) == before + 1


def test_an_error_of_the_job_is_told_as_on_one_machine(cluster: cortex.LocalCluster, folder: Path) -> None:
    (folder / "bad.py").write_text(
        "import cortex\n\nclass Bad(cortex.MapReduceJob):\n"
        "    def map(self, line):\n        yield line, 1 / 0\n"
    )
    (folder / "one.txt").write_text("x\n")
    ran = command(folder, "mapreduce", "bad.py:Bad", "one.txt", "--output", "bad-out", *where(cluster))
    assert ran.returncode == 1
    assert "ZeroDivisionError" in ran.stderr
    assert "yield line, 1 / 0" in ran.stderr
    assert not (folder / "bad-out").exists()


def test_a_server_that_is_not_there_is_named(folder: Path, cluster: cortex.LocalCluster) -> None:
    client = cortex.Client("127.0.0.1:1", home=cluster.folder / "server")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        client.status()
    with pytest.raises(UsageError, match="not logged in"):
        cortex.Client(cluster.address, home=folder / "nobody").status()
    with pytest.raises(UsageError, match="nonsense"):
        cortex.Client("nonsense")


def test_status_is_shown_again_until_ctrl_c(cluster: cortex.LocalCluster, folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cortex", "status", "--watch", *where(cluster)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        heads = 0
        while heads < 3:  # a second apart
            heads += process.stdout.readline().startswith("cluster k")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130


def test_tokens_are_listed_without_their_secrets_and_ended(
    cluster: cortex.LocalCluster, tmp_path: Path, folder: Path
) -> None:
    line = command(
        folder, "token", "create", "--role", "client", "--hours", "2", *where(cluster)
    ).stdout.split()[-1]
    token = line.partition("/")[2]
    token_id, secret = token[:13], token[13:].partition(".")[0]
    shown = command(folder, "token", "list", *where(cluster)).stdout
    assert token_id in shown
    assert "0 of 50" in shown
    assert secret not in shown
    listed = json.loads(command(folder, "token", "list", "--json", *where(cluster)).stdout)
    assert token_id in {each["token_id"] for each in listed}
    assert command(folder, "token", "revoke", token_id, *where(cluster)).returncode == 0
    assert "revoked" in command(folder, "token", "list", *where(cluster)).stdout
    refused = command(folder, "login", line, "--home", str(tmp_path / "home"))
    assert refused.returncode == 1
    assert "revoked" in refused.stderr


def test_waiting_for_a_job_ends_with_its_exit_code(
    cluster: cortex.LocalCluster, tmp_path: Path, folder: Path
) -> None:
    running = Running(slow(tmp_path, 2), cluster)
    wait_for(lambda: list((tmp_path / "marks").glob("line*")))
    job = next(job.job for job in cluster.client.status().jobs if job.state == "mapping")
    threading.Timer(0.5, (tmp_path / "marks" / "gate").touch).start()
    assert command(folder, "job", job, "--wait", *where(cluster)).returncode == 0
    running.result()
    (tmp_path / "two").mkdir()
    running = Running(slow(tmp_path / "two", 2), cluster)
    wait_for(lambda: list((tmp_path / "two" / "marks").glob("line*")))
    job = next(job.job for job in cluster.client.status().jobs if job.state == "mapping")
    cluster.client.cancel(job)
    assert command(folder, "job", job, "--wait", *where(cluster)).returncode == 1
    assert running.result().code == "cancelled"


def test_the_server_is_found_by_flag_before_environment_before_dotenv(
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    home, nowhere = str(cluster.folder / "server"), "127.0.0.1:1"
    (tmp_path / ".env").write_text(f"CORTEX_SERVER={nowhere}\nCORTEX_HOME={home}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CORTEX_")}

    def status(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cortex", "status", *arguments],
            env=environment | more,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    assert nowhere in status().stderr
    assert "2 nodes" in status(CORTEX_SERVER=cluster.address).stdout
    assert "2 nodes" in status("--server", cluster.address, CORTEX_SERVER=nowhere).stdout
    assert nowhere in status("--server", nowhere, CORTEX_SERVER=cluster.address).stderr


def test_a_node_that_is_told_to_end_leaves_its_work_to_others_and_nothing_behind(tmp_path: Path) -> None:
    with cortex.LocalCluster(nodes=2) as cluster:
        running = Running(slow(tmp_path, 6), cluster)
        wait_for(lambda: len({path.name.split("-")[1] for path in (tmp_path / "marks").glob("line*")}) == 2)
        cluster.nodes["node1"].terminate()
        assert cluster.nodes["node1"].wait(PATIENCE_S) == 0
        assert not list((cluster.folder / "node1" / "spill").iterdir())
        (tmp_path / "marks" / "gate").touch()
        assert dict(running.result()) == {f"line{i:02}": 1 for i in range(6)}
        assert running.result().report.failed_attempts == 0


@pytest.mark.parametrize("name", ["server", "node"])
def test_server_and_node_are_commands_of_their_own(name: str) -> None:
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts[f"cortex_{name}"] == f"cortex.cli.__main__:{name}"
    call = f"from cortex.cli.__main__ import {name}; sys.exit({name}())"
    code = f"import sys; sys.argv = ['cortex_{name}', '--help']; {call}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"Usage: cortex {name}" in ran.stdout


def test_a_cluster_is_ended_by_its_admin_and_leaves_nothing(folder: Path) -> None:
    with cortex.LocalCluster(nodes=2) as cluster:
        processes = [*cluster.nodes.values(), cluster.server]
        ran = command(folder, "kill-cluster", "--yes", *where(cluster))
        assert ran.stdout == "the cluster has ended\n", ran.stderr
        for process in processes:
            assert process is not None
            assert process.wait(PATIENCE_S) == 0
        assert not list(cluster.folder.glob("node*/spill/*"))


def test_a_node_waits_for_its_server_and_a_second_one_in_its_home_is_refused(tmp_path: Path) -> None:
    with cortex.LocalCluster(nodes=1) as cluster:
        server = cluster.server
        assert server is not None
        server.terminate()
        server.wait(PATIENCE_S)
        cluster.start_node("node2")
        wait_for(lambda: "waiting for it" in cluster.output("node2"))
        cluster.start_server()
        wait_for(lambda: len(nodes_of(cluster)) == 2)
        home = str(cluster.folder / "node1")
        ran = command(tmp_path, "node", "--home", home, "--listen", "127.0.0.1:0")
        assert ran.returncode == 2
        assert "another node lives in" in ran.stderr
        ran = command(tmp_path, "node", "--home", str(tmp_path / "new"), "--listen", "127.0.0.1:0")
        assert ran.returncode == 2
        assert "--join" in ran.stderr


def test_a_job_says_when_there_is_no_node(tmp_path: Path, folder: Path) -> None:
    with cortex.LocalCluster(nodes=1) as cluster:
        cluster.nodes["node1"].terminate()
        cluster.nodes["node1"].wait(PATIENCE_S)
        environment = dict(os.environ, CORTEX_HOME=str(cluster.folder / "server"))
        arguments = (
            "words.py:Words",
            "text.txt",
            "--server",
            cluster.address,
            "--output",
            str(tmp_path / "out"),
        )
        with subprocess.Popen(
            [sys.executable, "-m", "cortex", "mapreduce", *arguments],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            assert "the cluster has no node just now" in process.stderr.readline()
            cluster.start_node("node1")
            assert process.wait(PATIENCE_S) == 0
    assert parts(tmp_path / "out")


def nodes_of(cluster: cortex.LocalCluster) -> tuple[Any, ...]:
    try:
        return cluster.client.status().nodes
    except CortexError:
        return ()


def listeners(pid: int) -> set[str]:
    """Addresses that a process listens on over TCP."""
    shown = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    return {line.split()[3] for line in shown.splitlines() if f"pid={pid}," in line}


def test_every_listener_is_one_that_was_asked_for(cluster: cortex.LocalCluster) -> None:
    server = cluster.server
    assert server is not None
    assert listeners(server.pid) == {cluster.address}
    addresses = {node.data_address for node in cluster.client.status().nodes}
    assert set().union(*(listeners(process.pid) for process in cluster.nodes.values())) == addresses
    children = [pid for process in cluster.nodes.values() for pid in descendant_pids(process.pid)]
    assert len(children) > len(cluster.nodes)
    assert set().union(*map(listeners, children)) == addresses  # templates and executors have none


class Wide(cortex.MapReduceJob):
    """Shuffles about as many bytes as it reads."""

    reducers = 4
    split_size = "4MB"

    def map(self, line: str) -> Iterator[tuple[str, str]]:
        yield line[:12], line

    def reduce(self, key: str, values: Iterator[str]) -> Iterator[tuple[str, int]]:
        yield key, sum(map(len, values))


def spent(pid: int) -> tuple[float, int]:
    """(processor seconds, anonymous bytes) of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), own_anonymous_bytes(pid)


def test_the_server_does_not_grow_with_what_is_shuffled(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    server = cluster.server
    assert server is not None
    noise = random.Random(0).randbytes(4_000_000).hex()  # half of it is left when it is packed
    costs = []
    for lines in (1_000, 1_000, 16_000):  # the first warms up
        data = tmp_path / "wide.txt"
        starts = (number * 397 % 7_000_000 for number in range(lines))
        data.write_text("".join(f"{n:012}{noise[at : at + 4000]}\n" for n, at in enumerate(starts)))
        processor_s, held_bytes = spent(server.pid)
        result = Wide(input=str(data)).run(cluster)
        assert len(result) == lines
        assert result.report.shuffled_bytes > lines * 2000
        after_s, after_bytes = spent(server.pid)
        costs.append((after_s - processor_s, after_bytes - held_bytes))
    (_, (few_s, _), (many_s, grown_bytes)) = costs
    assert grown_bytes < 8 * MIB
    assert many_s - few_s < 1.0


def test_a_machine_that_has_run_jobs_alone_becomes_a_server(tmp_path: Path, folder: Path) -> None:
    """The state folder that a local job makes is private, as a server's has to be."""
    dropped = ("CORTEX_", "XDG_STATE_HOME")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    environment["HOME"] = str(tmp_path)
    cortex_command = [sys.executable, "-m", "cortex"]
    job = [*cortex_command, "mapreduce", "words.py:Words", "text.txt", "--quiet"]
    subprocess.run(job, env=environment, cwd=folder, stdout=subprocess.DEVNULL, check=True, umask=0o022)
    with subprocess.Popen(
        [*cortex_command, "server", "--listen", f"127.0.0.1:{_free_port()}"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("cortex server of cluster k")
        server.terminate()
        assert server.wait(PATIENCE_S) == 0

"""The server of a cluster killed and started again: its jobs go on, on the same nodes, for the same clients.

Real processes on loopback. What a job's maps and reduces begin is written to a file by the job's own code, so
that a task that ran twice is seen.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex.errors import Unreachable
from cortex.wire.messages import JobStatus

PATIENCE_S = 90.0
SPLITS, LINES = 12, 40
REDUCERS = 4
JOB = """
import os, time
import cortex

class Words(cortex.MapReduceJob):
    input = {input!r}
    split_size = {split_bytes}
    reducers = {reducers}

    def begun(self, what):
        with open({begun!r}, "a") as file:
            file.write(what + "\\n")

    def map(self, line):
        if line.startswith("first"):
            self.begun("map " + line.split()[1])
        time.sleep({map_s} / {lines})
        for word in line.split():
            yield word, 1

    def reduce(self, key, values):
        if key.startswith("#"):
            self.begun("reduce " + key)
        time.sleep({reduce_s})
        yield key, sum(values)
"""
CLIENT = """
import sys
sys.path.insert(0, {folder!r})
import cortex
from words import Words
Words(output={output!r}).run(cortex.Client({server!r}, home={home!r}))
"""


class Run:
    """One job on one cluster, its client a process of its own."""

    def __init__(self, folder: Path, map_s: float = 0.3, reduce_s: float = 0.01) -> None:
        self.folder = folder
        self.begun = folder / "begun"
        self.begun.touch()
        data = folder / "in.txt"
        with open(data, "w") as file:
            for split in range(SPLITS):
                for line in range(LINES):
                    head = "first" if line == 0 else "other"
                    file.write(f"{head} {split:04d} #{(split * LINES + line) % 60:02d} w{line % 7}\n")
        split_bytes = data.stat().st_size // SPLITS
        text = JOB.format(
            input=os.fspath(data), split_bytes=split_bytes, reducers=REDUCERS, begun=os.fspath(self.begun),
            map_s=map_s, reduce_s=reduce_s, lines=LINES,
        )  # fmt: skip
        (folder / "words.py").write_text(text)

    def expected(self) -> dict[str, bytes]:
        """What one machine makes of it."""
        output = self.folder / "alone"
        code = (
            f"import sys; sys.path.insert(0, {os.fspath(self.folder)!r})\n"
            "from words import Words\n"
            "Words.begun = lambda self, what: None\n"
            f"Words(output={os.fspath(output)!r}).run()"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)
        return parts(output)

    @contextlib.contextmanager
    def client(self, cluster: cortex.LocalCluster, output: str = "out") -> Iterator[subprocess.Popen[str]]:
        code = CLIENT.format(
            folder=os.fspath(self.folder), output=os.fspath(self.folder / output), server=cluster.address,
            home=os.fspath(cluster.folder / "server"),
        )  # fmt: skip
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def counts(self) -> Counter[str]:
        return Counter(self.begun.read_text().split("\n")[:-1])

    def check(self, process: subprocess.Popen[str], output: str = "out") -> str:
        """The job has ended well, with the right bytes; gives what its client said."""
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said
        assert parts(self.folder / output) == self.expected()
        return said


def parts(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.name.startswith("part-")}


def wait_for(cluster: cortex.LocalCluster, wanted: Callable[[JobStatus], bool]) -> JobStatus:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for job in jobs(cluster):
            if wanted(job):
                return job
        time.sleep(0.05)
    raise AssertionError(f"{jobs(cluster)}\n{cluster.output('server')}")


def jobs(cluster: cortex.LocalCluster) -> tuple[JobStatus, ...]:
    try:
        return cluster.client.status().jobs
    except Unreachable:  # it is starting
        return ()


def tasks_done(job: JobStatus, stage: str) -> int:
    return sum(each.tasks_done for each in job.stages if each.stage == stage)


def kill_server(cluster: cortex.LocalCluster) -> None:
    assert cluster.server is not None
    cluster.server.kill()
    cluster.server.wait()


def restart(cluster: cortex.LocalCluster) -> None:
    """A crash, a second without any server, and a new life."""
    kill_server(cluster)
    time.sleep(1.0)
    cluster.start_server()


@pytest.fixture
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=2) as made:
        yield made


def signal_nodes(cluster: cortex.LocalCluster, number: int) -> None:
    for process in cluster.nodes.values():
        process.send_signal(number)


def once(run: Run) -> None:
    counts = run.counts()
    assert set(counts.values()) == {1}, counts
    assert sum(what.startswith("map") for what in counts) == SPLITS
    assert sum(what.startswith("reduce") for what in counts) == 60


def test_before_the_plan_is_made(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    run = Run(tmp_path, map_s=0.05)
    signal_nodes(cluster, signal.SIGSTOP)
    with run.client(cluster) as client:
        wait_for(cluster, lambda job: job.state == "planning")
        restart(cluster)
        signal_nodes(cluster, signal.SIGCONT)
        assert "closed the connection; trying again" in run.check(client)
    once(run)


def submit_here(cluster: cortex.LocalCluster, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """From this process, whose connections a test can lay hands on; the job runs once and ends well."""
    monkeypatch.syspath_prepend(run.folder)
    monkeypatch.delitem(sys.modules, "words", raising=False)
    words = importlib.import_module("words")
    words.Words(output=os.fspath(run.folder / "out")).run(cluster.client)
    assert parts(run.folder / "out") == run.expected()
    once(run)


@pytest.mark.parametrize("when", ["before it is sent", "when it is taken", "while it is written down"])
def test_between_a_job_and_its_acceptance(
    cluster: cortex.LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The client does not know whether its job was taken. It asks again, and the job runs once."""
    from cortex.client.cluster_client import ClusterConnection
    from cortex.wire.messages import SubmitJob

    run = Run(tmp_path, map_s=0.05)
    ask = ClusterConnection.ask
    asked: list[str] = []

    def interrupted(self: ClusterConnection, question: Any, answer: Any) -> Any:
        if isinstance(question, SubmitJob):
            asked.append(question.job)
            if len(asked) == 1:
                if when == "before it is sent":
                    restart(cluster)
                else:
                    self.send(question)
                    if when == "when it is taken":
                        wait_for(cluster, lambda job: True)
                    restart(cluster)
                    raise self._gone()  # whatever the answer was
        return ask(self, question, answer)

    monkeypatch.setattr(ClusterConnection, "ask", interrupted)
    submit_here(cluster, run, monkeypatch)
    assert len(asked) == 2
    assert [(each.job, each.state) for each in jobs(cluster)] == [(asked[0], "done")]


def test_a_connection_that_ends_before_the_acceptance(
    cluster: cortex.LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, with a server that lives on, and that hears of the job twice."""
    from cortex.client.cluster_client import ClusterConnection
    from cortex.wire.messages import SubmitJob

    run = Run(tmp_path, map_s=0.05)
    ask = ClusterConnection.ask
    asked: list[str] = []

    def cut(self: ClusterConnection, question: Any, answer: Any) -> Any:
        if isinstance(question, SubmitJob):
            asked.append(question.job)
            if len(asked) < 4:
                self.send(question)
                self._connection._sock.shutdown(socket.SHUT_RDWR)
        return ask(self, question, answer)

    monkeypatch.setattr(ClusterConnection, "ask", cut)
    submit_here(cluster, run, monkeypatch)
    assert len(asked) == 4
    assert [(each.job, each.state) for each in jobs(cluster)] == [(asked[0], "done")]


def test_while_maps_run(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    """Twice: no map runs again, neither finished nor under way, and the job is listed all the time."""
    run = Run(tmp_path)
    with run.client(cluster) as client:
        job = wait_for(cluster, lambda job: tasks_done(job, "map") >= 3)
        restart(cluster)
        again = wait_for(cluster, lambda job: job.state == "mapping")
        assert (again.job, again.name, again.owner) == (job.job, job.name, job.owner)
        wait_for(cluster, lambda job: tasks_done(job, "map") >= 7)
        restart(cluster)
        run.check(client)
    once(run)
    assert [(each.job, each.state) for each in jobs(cluster)] == [(job.job, "done")]


def test_while_reduces_run_and_then_its_history(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    run = Run(tmp_path, map_s=0.05, reduce_s=0.1)
    with run.client(cluster) as client:
        wait_for(cluster, lambda job: job.state == "reducing" and tasks_done(job, "reduce") >= 1)
        restart(cluster)
        run.check(client)
    once(run)
    (job,) = jobs(cluster)
    restart(cluster)
    later = wait_for(cluster, lambda job: True)
    assert (later.job, later.state, later.owner, later.seconds) == (job.job, "done", job.owner, job.seconds)


def test_when_the_result_was_not_fetched(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    run = Run(tmp_path, map_s=0.05)
    with run.client(cluster) as client:
        wait_for(cluster, lambda job: tasks_done(job, "map") >= 3)
        client.send_signal(signal.SIGSTOP)
        wait_for(cluster, lambda job: job.state == "done")
        restart(cluster)
        client.send_signal(signal.SIGCONT)
        run.check(client)
    once(run)


def test_a_node_that_dies_with_the_server(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    """What it had is made again when it has not come back for a while, or comes back as another."""
    run = Run(tmp_path)
    with run.client(cluster) as client:
        wait_for(cluster, lambda job: tasks_done(job, "map") >= 6)
        kill_server(cluster)
        node = cluster.nodes["node1"]
        node.kill()
        node.wait()
        cluster.start_server()
        cluster.start_node("node1")
        run.check(client)
    counts = run.counts()
    assert sum(what.startswith("map") for what in counts) == SPLITS
    assert max(counts.values()) == 2


class Proxy:
    """Between a node and its server, so that the link can be cut while both live."""

    def __init__(self, to: str) -> None:
        host, _, port = to.rpartition(":")
        self._to = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._to)
                self._pairs.append((near, far))
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self) -> int:
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for each in pair:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        return len(pairs)

    def close(self) -> None:
        self._listener.close()
        self.cut()


def test_a_link_that_is_cut_while_both_ends_live(tmp_path: Path) -> None:
    """The node works on, comes back, and nothing is done again."""
    run = Run(tmp_path)
    with cortex.LocalCluster(nodes=1) as cluster, contextlib.closing(Proxy(cluster.address)) as proxy:
        line = cluster._join_line
        cluster._join_line = proxy.address + line[line.index("/") :]
        cluster.add_node()
        with run.client(cluster) as client:
            for done in (2, 5, 8):
                wait_for(cluster, lambda job, done=done: tasks_done(job, "map") >= done)  # type: ignore[misc]
                end = time.monotonic() + 30
                while not proxy.cut():  # it may not be back since the last time
                    assert time.monotonic() < end
                    time.sleep(0.05)
            run.check(client)
        assert cluster.output("node2").count("trying again") >= 2  # once for each link that was whole
    once(run)


NODE = """
import sys
import cortex.node.cluster_node
cortex.node.cluster_node.SERVER_SILENCE_S_MAX = 1.0
from cortex.cli.__main__ import main
sys.exit(main())
"""


def test_a_node_that_waited_too_long_has_dropped_its_work(tmp_path: Path) -> None:
    """And says so when it is back: what it had is made again."""
    run = Run(tmp_path)
    with cortex.LocalCluster(nodes=1) as cluster:
        home = cluster.folder / "other"
        home.mkdir(mode=0o700)
        command = [
            sys.executable,
            "-c",
            NODE,
            "node",
            "--join",
            cluster._join_line,
            "--home",
            os.fspath(home),
        ]
        command += [
            "--listen",
            f"127.0.0.1:{free_port()}",
            "--spill",
            os.fspath(home / "spill"),
            "--slots",
            "1",
        ]
        with open(cluster.folder / "other.log", "wb") as log:
            node = subprocess.Popen([*command, "--memory", "768MB"], stdout=log, stderr=log)
        try:
            cluster._wait_for(2)
            with run.client(cluster) as client:
                wait_for(cluster, lambda job: tasks_done(job, "map") >= 6)
                kill_server(cluster)
                time.sleep(4.0)
                assert "its jobs are dropped" in (cluster.folder / "other.log").read_text()
                cluster.start_server()
                run.check(client)
        finally:
            node.terminate()
            node.wait()
    counts = run.counts()
    assert sum(what.startswith("map") for what in counts) == SPLITS
    assert max(counts.values()) == 2


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are Linux's")
def test_a_server_that_cannot_write_refuses_jobs_and_hangs_nobody(
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    run, other = Run(tmp_path), Run(tmp_path / "other", map_s=0.05)
    assert cluster.server is not None
    with run.client(cluster) as client:
        wait_for(cluster, lambda job: tasks_done(job, "map") >= 3)
        wal = cluster.folder / "server" / "journal" / "journal.sqlite-wal"
        full = wal.stat().st_size
        resource.prlimit(cluster.server.pid, resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
        with other.client(cluster) as refused:
            _, said = refused.communicate(timeout=PATIENCE_S)
        assert refused.returncode == 1
        assert "journal.sqlite' cannot be used" in said
        assert "check that its disk is not full" in said
        run.check(client)
    once(run)
    unlimited = resource.RLIM_INFINITY, resource.RLIM_INFINITY
    resource.prlimit(cluster.server.pid, resource.RLIMIT_FSIZE, unlimited)
    with other.client(cluster) as client:
        other.check(client)
    restart(cluster)
    assert {job.state for job in cluster_jobs(cluster, 2)} == {"done"}


def cluster_jobs(cluster: cortex.LocalCluster, count: int) -> tuple[JobStatus, ...]:
    wait_for(cluster, lambda _: len(jobs(cluster)) == count)
    return jobs(cluster)


def test_a_damaged_journal_is_named_with_its_cure(cluster: cortex.LocalCluster) -> None:
    kill_server(cluster)
    folder = cluster.folder / "server" / "journal"
    path = folder / "journal.sqlite"
    path.write_bytes(path.read_bytes()[:5000])
    for each in folder.glob("journal.sqlite-*"):
        each.unlink()
    command = [sys.executable, "-m", "cortex", "server", "--listen", cluster.address]
    said = subprocess.run(
        [*command, "--home", os.fspath(cluster.folder / "server")], capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 1
    assert f"{os.fspath(path)!r} is damaged" in said.stderr
    assert f"mv {folder} {folder}.damaged" in said.stderr
    folder.rename(f"{folder}.damaged")  # the cure: members are kept
    cluster.start_server()
    cluster._wait_for(2)

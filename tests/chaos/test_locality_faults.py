"""Nodes that have the input are stopped, killed and started again, while a job maps it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex.clusters import LocalCluster
from cortex.errors import InputLost

_LIMITS = """
import cortex.limits as limits
limits.LEASE_S, limits.NODE_AWAY_S, limits.HOLDER_RETURN_S = 3.0, 1.0, {holder_return_s}
limits.INPUT_STALL_S, limits.INPUT_REST_S, limits.INPUT_HOLDERS_S_MAX = 1.0, 0.5, 3.0
from cortex.cli.__main__ import main
main()
"""


class QuickCluster(LocalCluster):
    """Gives nodes up in seconds instead of half a minute, so that tests can wait for it."""

    holder_return_s = 60.0

    def _command(self, _name: str) -> list[str]:
        return [sys.executable, "-P", "-c", _LIMITS.format(holder_return_s=self.holder_return_s)]


class Impatient(QuickCluster):
    holder_return_s = 2.0


class Slow(cortex.MapReduceJob):
    combine = sum
    split_size = 2_000

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        import time

        time.sleep(0.002)
        yield line[-1:], 1


LINES = 6_000


def write(*folders: Path) -> dict[str, int]:
    text = "".join(f"line {i:05d} of many {i % 7}\n" for i in range(LINES))
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / "in.txt").write_text(text)
    return {str(k): len(range(k, LINES, 7)) for k in range(7)}


class Running:
    """A job in a thread; `when_maps(n)` waits until so many maps are done."""

    def __init__(self, job: cortex.MapReduceJob, cluster: LocalCluster) -> None:
        self._done = threading.Condition()
        self._maps = 0
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(job, cluster))
        self._thread.start()

    def _run(self, job: cortex.MapReduceJob, cluster: LocalCluster) -> None:
        def heard(progress: Any) -> None:
            maps = [stage.tasks_done for stage in progress.stages if stage.stage == "map"]
            with self._done:
                self._maps = sum(maps)
                self._done.notify_all()

        try:
            self.result = job.run(cluster, on_progress=heard)
        except BaseException as error:
            self.error = error
        with self._done:
            self._maps = sys.maxsize
            self._done.notify_all()

    def when_maps(self, count: int) -> None:
        with self._done:
            assert self._done.wait_for(lambda: self._maps >= count, 60)
            assert self._maps < sys.maxsize, self.error or "the job was too fast"

    def end(self) -> Any:
        self._thread.join(120)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


def name_of(cluster: LocalCluster, node: str) -> str:
    return (cluster.folder / f"{node}.out").read_text().split()[2]


def test_a_holder_that_is_stopped_or_killed_does_not_hold_the_job(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    expected = write(first, second)
    with QuickCluster(nodes=3, data=[first, second]) as cluster:
        running = Running(Slow(input="data:in.txt"), cluster)
        running.when_maps(3)
        with contextlib.ExitStack() as stack:
            os.killpg(cluster.nodes["node1"].pid, signal.SIGSTOP)
            stack.callback(os.killpg, cluster.nodes["node1"].pid, signal.SIGCONT)
            done = running.end()
        assert dict(done) == expected
        found = done.report.locality
        assert found.client_bytes == 0
        assert found.streamed_maps > 0  # the third node has nothing of its own
        running = Running(Slow(input="data:in.txt"), cluster)
        running.when_maps(3)
        os.killpg(cluster.nodes["node2"].pid, signal.SIGKILL)
        assert dict(running.end()) == expected


def test_a_holder_that_comes_back_goes_on_and_the_client_stands_in_for_its_own_file(tmp_path: Path) -> None:
    root, other = tmp_path / "a", tmp_path / "b"
    expected = write(root)
    other.mkdir()
    with QuickCluster(nodes=2, data=[root, other]) as cluster:
        running = Running(Slow(input="data:in.txt"), cluster)
        running.when_maps(3)
        os.killpg(cluster.nodes["node1"].pid, signal.SIGKILL)
        cluster.nodes["node1"].wait()
        cluster.start_node("node1")
        assert dict(running.end()) == expected
        running = Running(Slow(input=root / "in.txt"), cluster)
        running.when_maps(3)
        os.killpg(cluster.nodes["node1"].pid, signal.SIGKILL)
        done = running.end()
        assert dict(done) == expected
        assert done.report.locality.client_maps > 0


def test_without_its_only_holder_a_job_fails_by_name(tmp_path: Path) -> None:
    root = tmp_path / "a"
    write(root)
    with Impatient(nodes=2, data=[root]) as cluster:
        name = name_of(cluster, "node1")
        running = Running(Slow(input="data:in.txt"), cluster)
        running.when_maps(3)
        os.killpg(cluster.nodes["node1"].pid, signal.SIGKILL)
        with pytest.raises(InputLost) as found:
            running.end()
        assert name in found.value.message
        assert "data:in.txt" in found.value.message
        assert "--data" in found.value.cure


def test_a_server_that_starts_again_learns_anew_who_has_what(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    expected = write(first)
    second.mkdir()
    with QuickCluster(nodes=2, data=[first, second]) as cluster:
        running = Running(Slow(input="data:in.txt"), cluster)
        running.when_maps(3)
        assert cluster.server is not None
        cluster.server.kill()
        cluster.server.wait()
        cluster.start_server()
        done = running.end()
        assert dict(done) == expected
        assert done.report.locality.client_bytes == 0

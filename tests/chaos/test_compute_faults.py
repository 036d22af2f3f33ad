"""Executors, nodes and the server killed while functions are called: every result comes, once, in every mode.

Real processes on loopback. What calls run is written to a file by the calls themselves. All modes run at the
same time, so that one fault meets all of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import pytest

import cortex

CALLS = 120
CALL_S = 0.02
Fault = Callable[[cortex.LocalCluster, Path], None]


def work(argument: tuple[str, int, str]) -> int:
    """`argument`: file, number, and a file to die beside once ("" not to)."""
    file, number, deadly = argument
    with open(file, "a") as marks:
        marks.write(f"{number}\n")
    time.sleep(CALL_S)
    if deadly and not os.path.exists(deadly):
        Path(deadly).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


class Modes:
    """All ways to have calls run, each in a thread of its own."""

    def __init__(self, client: cortex.Client, folder: Path, deadly: bool) -> None:
        self.client = client
        self.folder = folder
        self.deadly = deadly
        self.got: dict[str, list[Any]] = {}
        self.begun = threading.Barrier(6)
        self.errors: list[BaseException] = []
        modes = [self.ordered, self.stream, self.collect, self.callback, self.none, self.futures]
        self.threads = [threading.Thread(target=self.guarded, args=(mode,)) for mode in modes]

    def arguments(self, mode: str) -> Iterator[tuple[str, int, str]]:
        for number in range(CALLS):
            deadly = self.deadly and number == CALLS // 2
            yield str(self.folder / mode), number, str(self.folder / f"{mode}.died") if deadly else ""

    def guarded(self, mode: Callable[[], None]) -> None:
        try:
            mode()
        except BaseException as error:
            self.errors.append(error)

    def ordered(self) -> None:
        got = self.got["ordered"] = []
        for value in self.client.map(work, self.arguments("ordered")):
            got.append(value)
        assert got == sorted(got)

    def stream(self) -> None:
        self.got["stream"] = list(self.client.imap_unordered(work, self.arguments("stream")))

    def collect(self) -> None:
        self.got["collect"] = list(self.client.starmap(lambda *a: work(a), self.arguments("collect")))

    def callback(self) -> None:
        got = self.got["callback"] = []
        self.client.for_each(work, self.arguments("callback"), callback=got.append)

    def none(self) -> None:
        counts = self.client.for_each(work, self.arguments("none"))
        self.got["none"] = list(range(counts.done))
        assert counts.failed == 0

    def futures(self) -> None:
        futures = [self.client.submit(work, argument) for argument in self.arguments("futures")]
        self.got["futures"] = [future.result() for future in as_completed(futures, 120)]

    def ran(self) -> Counter[str]:
        """(mode and number) -> times that it was begun."""
        return Counter(
            f"{mode} {line}"
            for mode in ("ordered", "stream", "collect", "callback", "none", "futures")
            if (self.folder / mode).exists()
            for line in (self.folder / mode).read_text().split()
        )

    def run(self, fault: Callable[[], None]) -> None:
        for thread in self.threads:
            thread.start()
        while sum(self.ran().values()) < 6 * CALLS // 4:
            assert not self.errors, self.errors
            time.sleep(0.02)
        fault()
        for thread in self.threads:
            thread.join(120)
            assert not thread.is_alive()
        assert not self.errors, self.errors
        for mode, got in self.got.items():
            assert Counter(got) == Counter(range(CALLS)), mode
        assert len(self.got) == 6
        assert len(self.ran()) == 6 * CALLS


@pytest.fixture
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=2, slots=2) as cluster:
        yield cluster


def repeated(modes: Modes) -> int:
    return sum(times - 1 for times in modes.ran().values())


def test_a_node_is_killed_and_another_joins(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    with cluster.client as client:
        modes = Modes(client, tmp_path, deadly=False)

        def fault() -> None:
            cluster.nodes["node1"].kill()
            cluster.add_node(wait=False)

        modes.run(fault)
        assert repeated(modes) < 6 * CALLS // 4  # what it had in hand, and no more
        assert client.submit(os.getpid).result() > 0


def test_the_server_is_killed_and_nothing_runs_twice(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    with cluster.client as client:
        modes = Modes(client, tmp_path, deadly=False)

        def fault() -> None:
            assert cluster.server is not None
            cluster.server.kill()
            cluster.server.wait()
            cluster.start_server()

        modes.run(fault)
        assert repeated(modes) == 0


def test_executors_are_killed(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    with cluster.client as client:
        modes = Modes(client, tmp_path, deadly=True)
        modes.run(lambda: None)
        died = [mode for mode in modes.got if (tmp_path / f"{mode}.died").exists()]
        assert sorted(died) == sorted(modes.got)
        assert 6 <= repeated(modes) < 6 * CALLS // 4


def test_a_node_is_drained_and_nothing_runs_twice(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    with cluster.client as client:
        modes = Modes(client, tmp_path, deadly=False)

        def fault() -> None:
            node = client.status().nodes[0].node
            command = [sys.executable, "-m", "cortex", "drain", node, "--no-wait"]
            home = str(cluster.folder / "server")
            subprocess.run([*command, "--home", home], check=True, capture_output=True, timeout=60)

        modes.run(fault)
        assert len(client.status().nodes) == 1 or client.status().nodes[0].state == "draining"
        assert repeated(modes) == 0

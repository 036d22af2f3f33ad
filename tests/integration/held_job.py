"""A job whose maps and reduces wait until a test lets them go on, and what tests ask of its cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cortex
from cortex.errors import Unreachable

PATIENCE_S = 90.0
LINES = 600
JOB = """
import os, time
import cortex

class Words(cortex.MapReduceJob):
    input = {input!r}
    split_size = "2KB"
    reducers = 3
    gates = {gates!r}
    '''Folder of files that maps and reduces wait for.'''

    def held(self, stage):
        while not os.path.exists(os.path.join(self.gates, stage)):
            time.sleep(0.01)

    def map(self, line):
        self.held("map")
        for word in line.split():
            yield word, 1

    def reduce(self, key, values):
        self.held("reduce")
        yield key, sum(values)

class Large(Words):
    def reduce(self, key, values):
        yield key, key * 50_000

class Wrong(Words):
    def map(self, line):
        self.held("map")
        raise ValueError("no such word")
        yield
"""


class Folder:
    """A job's files, where client and nodes see them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gates = path / "gates"
        self.gates.mkdir(parents=True)
        (path / "in.txt").write_text("".join(f"a{i % 7} b{i % 50} c\n" for i in range(LINES)))
        (path / "words.py").write_text(
            JOB.format(input=os.fspath(path / "in.txt"), gates=os.fspath(self.gates))
        )

    def open(self, *stages: str) -> None:
        for stage in stages:
            (self.gates / stage).touch()

    def job(self, name: str = "Words", **options: Any) -> cortex.MapReduceJob:
        from cortex.user_code import load_object

        found: cortex.MapReduceJob = load_object(f"{self.path / 'words.py'}:{name}")(**options)
        return found

    def alone(self) -> dict[str, bytes]:
        """What one machine makes of it."""
        self.open("map", "reduce")
        ran = self.command("mapreduce", "words.py:Words", "--output", "alone", "--server", "local", "--quiet")
        assert ran.returncode == 0, ran.stderr
        return parts(self.path / "alone")

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CORTEX_")}
        environment["CORTEX_HOME"] = os.fspath(self.path / "state")
        return subprocess.run(
            [sys.executable, "-m", "cortex", *arguments],
            env=environment, cwd=self.path, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip


def where(cluster: cortex.LocalCluster) -> tuple[str, ...]:
    return "--server", cluster.address, "--home", str(cluster.folder / "server")


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def wait_for(found: Callable[[], Any], what: str = "") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def tasks_done(handle: cortex.JobHandle, stage: str) -> int:
    return sum(each.tasks_done for each in handle.status().stages if each.stage == stage)


def restart(cluster: cortex.LocalCluster) -> None:
    assert cluster.server is not None
    cluster.server.kill()
    cluster.server.wait()
    cluster.start_server()
    wait_for(lambda: answers(cluster), cluster.output("server"))


def answers(cluster: cortex.LocalCluster) -> bool:
    try:
        return bool(cluster.client.status())
    except Unreachable:
        return False

"""Nodes with a quota, or a full disk: a typed error for the attempt, another node for its work, no hang."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex.errors import SpillFull
from tests.integration.test_cluster import Running

ROWS = 6000
_QUICK_RESTS = """
import sys
from cortex.scheduling import leases
leases.SPILL_REST_S = 0.2
from cortex.cli.__main__ import main
sys.exit(main())
"""


class QuotaCluster(cortex.LocalCluster):
    """`quotas`: of node1, node2 ...; "" none. `file_bytes`: no file of node1 may be larger."""

    def __init__(self, quotas: list[str], file_bytes: int = 0, **rest: Any) -> None:
        self._quotas = {f"node{i}": quota for i, quota in enumerate(quotas, 1) if quota}
        self._file_bytes = file_bytes
        super().__init__(nodes=len(quotas), **rest)

    def _command(self, name: str) -> list[str]:
        if name == "server":
            return [sys.executable, "-P", "-c", _QUICK_RESTS]
        if name == "node1" and self._file_bytes:
            limit = f'ulimit -f {self._file_bytes // 1024}; exec "$@"'
            return ["bash", "-c", limit, "bash", *super()._command(name)]
        return super()._command(name)

    def _start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        if name in self._quotas:
            environment["CORTEX_SPILL_QUOTA"] = self._quotas[name]
        return super()._start(name, *arguments, **environment)


class Wide(cortex.MapReduceJob):
    """Spills all that it reads, a few hundred bytes a row that do not compress."""

    reducers = 3

    def map(self, line: str) -> Iterator[tuple[str, str]]:
        yield line, "".join(hashlib.sha256(f"{line}{i}".encode()).hexdigest() for i in range(8))

    def reduce(self, key: str, values: Any) -> Iterator[tuple[str, int]]:
        yield key, sum(map(len, values))


class Few(cortex.MapReduceJob):
    combine = sum

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        yield line[:1], 1


def wide(tmp_path: Path) -> Wide:
    (tmp_path / "in.txt").write_text("".join(f"{i:06}\n" for i in range(ROWS)))
    return Wide(input=str(tmp_path / "in.txt"), split_size=7 * ROWS // 6)


@pytest.mark.parametrize(("quota", "file_bytes"), [("1MB", 0), ("", 256 * 1024)], ids=["quota", "full disk"])
def test_a_job_that_needs_more_than_the_only_node_may_spill_fails_by_name_and_the_node_lives(
    tmp_path: Path, quota: str, file_bytes: int
) -> None:
    with QuotaCluster([quota], file_bytes) as cluster:
        with pytest.raises(SpillFull) as raised:
            wide(tmp_path).run(cluster)
        details = raised.value.details
        assert details["node"].startswith("n")
        assert ("quota is used up" in details["cause"]) is bool(quota), details
        assert raised.value.cure
        assert cluster.nodes["node1"].poll() is None
        deadline = time.monotonic() + 30
        while True:  # what it had spilled is removed, and counted as free at the next look
            try:
                assert dict(Few(input=str(tmp_path / "in.txt")).run(cluster)) == {"0": ROWS}
                break
            except SpillFull:
                assert time.monotonic() < deadline


def test_another_node_takes_what_a_full_one_cannot(tmp_path: Path) -> None:
    with QuotaCluster(["400KB", ""]) as cluster:  # less than one map spills
        result = wide(tmp_path).run(cluster)
        assert result.report.failed_attempts > 0
        assert dict(result) == {f"{i:06}": 512 for i in range(ROWS)}
        nodes = {node.spill_limit_bytes: node for node in cluster.client.status().nodes}
        assert min(nodes) in (400_000, 400 * 1024)
        assert max(nodes) > 10 * min(nodes)


def test_segments_that_no_node_may_fetch_end_the_job_by_name(tmp_path: Path) -> None:
    with QuotaCluster(
        ["1900KB", "1900KB"]
    ) as cluster:  # a half of the map outputs, and no reduce's input more
        with pytest.raises(SpillFull) as raised:
            wide(tmp_path).run(cluster)
        assert raised.value.details["node"].startswith("n")
        assert all(node.poll() is None for node in cluster.nodes.values())


def test_what_is_spilled_is_shown_beside_the_quota(tmp_path: Path) -> None:
    with QuotaCluster(["800MB"]) as cluster:
        marks = tmp_path / "marks"
        marks.mkdir()
        job = wide(tmp_path)
        running = Running(
            Waiting(input=job.input, split_size=7 * ROWS // 6, gate=str(marks / "gate")), cluster
        )
        deadline = time.monotonic() + 60
        while True:
            (node,) = cluster.client.status().nodes
            if node.spill_bytes > 1_000_000:
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert node.spill_limit_bytes in (800_000_000, 800 * 1024**2)
        home = str(cluster.folder / "server")
        shown = subprocess.run(
            [sys.executable, "-m", "cortex", "nodes", "list", "--home", home],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
        assert " of 800 MB" in shown, shown
        (marks / "gate").touch()
        assert len(dict(running.result())) == ROWS


class Waiting(Wide):
    gate = ""

    def reduce(self, key: str, values: Any) -> Iterator[tuple[str, int]]:
        while not os.path.exists(self.gate):
            time.sleep(0.02)
        yield key, sum(map(len, values))

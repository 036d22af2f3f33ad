"""The server killed while the files of a job are on their way: to it, and from it to its nodes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import cortex
from tests.integration.test_travelling import folders_named, leftovers, start, wait_for

MAPS = 8


@pytest.fixture
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=2) as made:
        yield made


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Every map reads a file of 150 MB, which takes a second or two to come."""
    with open(tmp_path / "large.bin", "wb") as file:
        for _ in range(150):
            file.write(os.urandom(1 << 20))
    (tmp_path / "sums.py").write_text(
        "import hashlib, cortex\n"
        "class Sums(cortex.MapReduceJob):\n"
        "    def map(self, line):\n"
        "        with open(self.file('large.bin'), 'rb') as file:\n"
        "            yield hashlib.file_digest(file, 'sha256').hexdigest(), 1\n"
        "    def reduce(self, key, values):\n"
        "        yield key, sum(values)\n"
    )
    (tmp_path / "in.txt").write_text("x\n" * MAPS)
    (tmp_path / "job.yaml").write_text(
        "job: sums.py:Sums\ninput: {path: in.txt}\nfiles: [large.bin]\nresources: {split_size: 2B}\n"
    )
    return tmp_path


def restart(cluster: cortex.LocalCluster) -> None:
    assert cluster.server is not None
    cluster.server.kill()
    cluster.server.wait()
    cluster.start_server()


def test_files_on_their_way_to_nodes_come_after_all(cluster: cortex.LocalCluster, job: Path) -> None:
    spills = [cluster.folder / name / "spill" for name in cluster.nodes]
    with start(job, "job.yaml", cluster) as process:
        wait_for(lambda: any(folders_named("blobs", spill) for spill in spills))
        restart(cluster)
        said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, (said, errors)
    digest = hashlib.sha256((job / "large.bin").read_bytes()).hexdigest()
    assert json.loads(said)["rows"] == [[digest, MAPS]]
    assert json.loads(said)["report"]["failed_attempts"] == 0
    wait_for(lambda: not leftovers(cluster))


def test_files_half_way_to_the_server_are_sent_again(cluster: cortex.LocalCluster, job: Path) -> None:
    blobs = cluster.folder / "server" / "blobs"
    with start(job, "job.yaml", cluster) as process:
        wait_for(lambda: any(name.endswith(".part") for name in os.listdir(blobs)))
        restart(cluster)
        said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, (said, errors)
    assert "trying again" in errors
    wait_for(lambda: not os.listdir(blobs))

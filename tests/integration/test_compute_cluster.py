"""Calls of functions on a cluster of real processes: elastic, and beside MapReduce jobs."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cortex


def where(seconds: float) -> int:
    """The template of the node that runs it."""
    time.sleep(seconds)
    return os.getppid()


class Words(cortex.MapReduceJob):
    combine = sum

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        for word in line.split():
            yield word, 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=1) as cluster:
        yield cluster


def test_nodes_join_and_leave_while_an_endless_source_is_mapped(cluster: cortex.LocalCluster) -> None:
    with cluster.client as client:
        results = client.imap_unordered(where, itertools.repeat(0.01))
        first = next(results)
        joined = threading.Thread(target=cluster.add_node)
        joined.start()
        deadline = time.monotonic() + 60
        second = next(each for each in results if each != first or time.monotonic() > deadline)
        assert second != first
        joined.join()
        cluster.nodes["node2"].terminate()
        cluster.nodes["node2"].wait(30)
        del cluster.nodes["node2"]
        after = list(itertools.islice(results, 200))
        assert set(after[-50:]) == {first}
        results.close()  # what has not begun is dropped
        assert client.submit(where, 0).result(30) == first
        status = next(job for job in client.status().jobs if job.state == "computing")
        (calls,) = status.stages
        assert calls.stage == "calls"
        assert calls.tasks_running + calls.tasks_done <= calls.tasks_total


def test_a_job_beside_calls_gets_slots_and_calls_get_them_back(
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "words.txt").write_text("a b a\n" * 100)
    with cluster.client as client:
        results = client.imap_unordered(where, itertools.repeat(0.02))
        next(results)
        going_on = threading.Thread(target=lambda: list(itertools.islice(results, 100)))
        going_on.start()
        counts = Words(input=tmp_path / "words.txt").run(cluster)
        assert dict(counts) == {"a": 200, "b": 100}
        going_on.join(60)
        assert not going_on.is_alive()


def test_an_idle_client_is_in_nobodys_way(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a b a\n" * 100)
    with cluster.client as client:
        client.submit(where, 0).result(30)
        (before,) = [job for job in client.status().jobs if job.state == "computing"]
        assert before.slots == 1  # the only one there is
        assert dict(Words(input=tmp_path / "words.txt").run(cluster)) == {"a": 200, "b": 100}
        assert client.submit(where, 0).result(30) > 0

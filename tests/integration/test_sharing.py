"""Several jobs at once on a cluster of real processes: who has which slots, and whose memory it is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cortex
from benchmarks.cgroup import MemoryCgroup, unavailable
from benchmarks.tree_memory import TreeMemory, descendants, process_bytes
from cortex.errors import ClusterFull, CortexError, MemoryTooSmall, UserMemoryError
from cortex.limits import MIB

PATIENCE_S = 90.0
NODES, SLOTS = 2, 2


class Nap(cortex.MapReduceJob):
    """A map a line, which notes when it began and ended."""

    marks = ""
    who = ""
    nap_s = 0.1
    ballast_mb = 0
    reducers = 0

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        began = time.time()
        ballast = b"x" * (self.ballast_mb * 1_000_000)
        time.sleep(self.nap_s)
        with open(os.path.join(self.marks, f"{self.who}-{line}"), "w") as file:
            file.write(f"{began} {time.time()} {os.getpid()} {len(ballast)}")
        yield line, 1


def naps(marks: Path, who: str) -> list[tuple[float, float, int]]:
    """(began, ended, pid) of the tasks of a job that have ended, in order."""
    found = []
    for path in marks.glob(f"{who}-*"):
        words = path.read_text().split()
        if len(words) == 4:
            found.append((float(words[0]), float(words[1]), int(words[2])))
    return sorted(found)


def wait_for(found: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Running:
    """A job in a thread of its own."""

    def __init__(self, job: cortex.MapReduceJob, client: object) -> None:
        self.error: CortexError | None = None

        def run() -> None:
            try:
                job.run(client).close()  # type: ignore[arg-type]
            except CortexError as error:
                self.error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def end(self) -> CortexError | None:
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.error


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


@pytest.fixture
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=NODES, slots=SLOTS, memory="500MB") as found:
        yield found


def lines(folder: Path, count: int) -> tuple[str, int]:
    """A file of so many lines, and the split size that makes a map of each."""
    path = folder / f"{count}.txt"
    path.write_text("".join(f"{number:06d}\n" for number in range(count)))
    return str(path), 7


def under_way(cluster: cortex.LocalCluster) -> str:
    """The one job that is."""
    (job,) = [job for job in cluster.client.status().jobs if job.state == "mapping"]
    return job.job


def another_user(cluster: cortex.LocalCluster, folder: Path) -> cortex.Client:
    """A client with an identity of its own."""
    where = ("--server", cluster.address, "--home", str(cluster.folder / "server"))
    line = command("token", "create", "--role", "client", *where).split()[-1]
    command("login", line, "--home", str(folder / "other"))
    return cortex.Client(cluster.address, home=folder / "other")


def command(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CORTEX_")}
    ran = subprocess.run(
        [sys.executable, "-m", "cortex", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_second_users_job_starts_at_once_and_has_half_of_the_slots(
    cluster: cortex.LocalCluster, tmp_path: Path, marks: Path
) -> None:
    (many, split), (fewer, _) = lines(tmp_path, 2000), lines(tmp_path, 60)
    other = another_user(cluster, tmp_path)
    first = Running(Nap(input=many, split_size=split, marks=str(marks), who="first"), cluster)
    wait_for(lambda: len(naps(marks, "first")) > 20, "the first job fills the slots")
    submitted = time.time()
    second = Running(Nap(input=fewer, split_size=split, marks=str(marks), who="second"), other)
    wait_for(lambda: naps(marks, "second"), "the second job has begun")
    shown = [job for job in cluster.client.status().jobs if job.state == "mapping"]
    assert [job.slots_wanted for job in shown] == [NODES * SLOTS] * 2
    assert len({job.owner for job in shown}) == 2
    assert second.end() is None
    begun = naps(marks, "second")[0][0]
    waited = [nap for nap in naps(marks, "first") if submitted < nap[0] < begun]
    assert len(waited) < 200  # of 2000, on a machine however slow; the benchmark has the seconds
    last = naps(marks, "second")[-8][0]
    mine, theirs = (
        sum(begun + 0.5 < nap[0] < last for nap in naps(marks, who)) for who in ("second", "first")
    )
    assert 0.35 < mine / (mine + theirs) < 0.65
    cluster.client.cancel(under_way(cluster))
    assert first.end() is not None


def test_a_job_of_a_higher_priority_overtakes(
    cluster: cortex.LocalCluster, tmp_path: Path, marks: Path
) -> None:
    (many, split), (fewer, _) = lines(tmp_path, 2000), lines(tmp_path, 60)
    first = Running(Nap(input=many, split_size=split, marks=str(marks), who="first"), cluster)
    wait_for(lambda: len(naps(marks, "first")) > 20, "the first job fills the slots")
    urgent = Nap(input=fewer, split_size=split, marks=str(marks), who="urgent", priority=2)
    second = Running(urgent, cluster)
    wait_for(lambda: naps(marks, "urgent"), "the urgent job has begun")
    shown = command("jobs", "--server", cluster.address, "--home", str(cluster.folder / "server"))
    assert shown.splitlines()[0].split() == [
        "job", "name", "state", "slots", "priority", "tasks", "maps", "time", "user",
    ]  # fmt: skip
    assert second.end() is None
    begun = naps(marks, "urgent")
    between = [
        sum(begun[8][0] < nap[0] < begun[-8][0] for nap in naps(marks, w)) for w in ("urgent", "first")
    ]
    assert between[0] > 3 * between[1]
    ended = len(naps(marks, "first"))
    wait_for(lambda: len(naps(marks, "first")) > ended + 20, "the first job has its slots again")
    cluster.client.cancel(under_way(cluster))
    assert first.end() is not None


def most_at_once(found: list[tuple[float, float, int]]) -> int:
    changes = sorted([(began, 1) for began, _, _ in found] + [(ended, -1) for _, ended, _ in found])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's /proc")
def test_jobs_at_once_on_one_node_stay_within_its_memory_and_each_within_its_own(
    tmp_path: Path, marks: Path
) -> None:
    cap, job_cap = 600 * MIB, 210 * MIB
    (path, split) = lines(tmp_path, 40)
    with cortex.LocalCluster(nodes=1, slots=4, memory=cap) as cluster:
        (node,) = cluster.nodes.values()
        group = None if unavailable() else MemoryCgroup(cap + 64 * MIB)
        try:
            for pid in descendants(node.pid) if group is not None else ():
                (group.folder / "cgroup.procs").write_text(str(pid))
            peaks = {"first": 0, "second": 0}
            ended = threading.Event()

            def watch() -> None:
                while not ended.wait(0.05):
                    alive = set(descendants(node.pid))
                    for who in peaks:
                        own = {pid for _, _, pid in naps(marks, who)} & alive
                        peaks[who] = max(peaks[who], sum(map(process_bytes, own)))

            watching = threading.Thread(target=watch, daemon=True)
            watching.start()
            with TreeMemory(lambda: descendants(node.pid)) as tree:
                options = {"input": path, "split_size": split, "marks": str(marks), "memory": job_cap}
                jobs = [Running(Nap(who=who, ballast_mb=30, nap_s=0.2, **options), cluster) for who in peaks]
                assert [job.end() for job in jobs] == [None, None]
            ended.set()
            watching.join()
            if group is not None:
                assert group.oom_kills() == 0
        finally:
            if group is not None:
                cluster.close()  # before the group, which kills what is left in it
                group.close()
    assert tree.peak_bytes < cap
    for who, peak_bytes in peaks.items():
        assert 60 * MIB < peak_bytes < job_cap
        assert most_at_once(naps(marks, who)) <= 3  # slots of 70 MB
    both = naps(marks, "first") + naps(marks, "second")
    assert most_at_once(both) > 2  # they did run side by side
    assert most_at_once(both) <= 4


def test_a_jobs_memory_bounds_it_and_must_be_there(
    cluster: cortex.LocalCluster, tmp_path: Path, marks: Path
) -> None:
    (path, split) = lines(tmp_path, 3)
    options = {"input": path, "split_size": split, "marks": str(marks), "ballast_mb": 90}
    Nap(who="free", **options).run(cluster).close()  # as much as its slot has: 190 MB
    with pytest.raises(UserMemoryError):
        Nap(who="bound", memory="75MB", **options).run(cluster)
    with pytest.raises(MemoryTooSmall, match=r"2 GB of memory at each node, and the largest.* 500 MB"):
        Nap(who="large", memory="2GB", **options).run(cluster)
    with pytest.raises(MemoryTooSmall, match="cannot run in 20 MB"):
        Nap(who="small", memory="20MB", **options).run(cluster)


class CappedCluster(cortex.LocalCluster):
    def start_server(self) -> None:
        self._environment["CORTEX_JOBS_PER_USER"] = "1"
        super().start_server()


def test_a_user_has_so_many_jobs_at_once(tmp_path: Path, marks: Path) -> None:
    (path, split) = lines(tmp_path, 1)
    with CappedCluster(nodes=1, slots=2, memory="500MB") as cluster:
        job = Nap(input=path, split_size=split, marks=str(marks), who="first", nap_s=600)
        first = Running(job, cluster)
        wait_for(lambda: cluster.client.status().jobs, "the first job is taken")
        again = Nap(input=path, split_size=split, marks=str(marks), who="second", nap_s=0)
        with pytest.raises(ClusterFull, match=r"1 jobs of user a.* as many as one user may have") as caught:
            again.run(cluster)
        assert "--jobs-per-user" in caught.value.cure
        again.run(another_user(cluster, tmp_path)).close()  # it is a cap of each
        cluster.client.cancel(under_way(cluster))
        assert first.end() is not None
        again.run(cluster).close()

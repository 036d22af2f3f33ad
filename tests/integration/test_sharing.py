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
from cortex.errors import ClusterFull, CortexError, MemoryTooSmall

PATIENCE_S = 90.0
NODES, SLOTS = 2, 2


class Nap(cortex.MapReduceJob):
    """A map a line, which notes when it began and ended."""

    marks = ""
    who = ""
    nap_s = 0.1
    reducers = 0

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        began = time.time()
        time.sleep(self.nap_s)
        with open(os.path.join(self.marks, f"{self.who}-{line}"), "w") as file:
            file.write(f"{began} {time.time()}")
        yield line, 1


def naps(marks: Path, who: str) -> list[tuple[float, float]]:
    """(began, ended) of the tasks of a job that have ended, in order."""
    found = []
    for path in marks.glob(f"{who}-*"):
        words = path.read_text().split()
        if len(words) == 2:
            found.append((float(words[0]), float(words[1])))
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
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=NODES, slots=SLOTS, memory="500MB") as found:
        yield found


def lines(folder: Path, count: int) -> tuple[str, int]:
    """A file of so many lines, and the split size that makes a map of each."""
    path = folder / f"{count}.txt"
    path.write_text("".join(f"{number:06d}\n" for number in range(count)))
    return str(path), 7


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
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
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
    print("waited", begun - submitted, len(waited))
    assert len(waited) < 200
    last = naps(marks, "second")[-8][0]
    mine, theirs = (
        sum(begun + 0.5 < nap[0] < last for nap in naps(marks, who)) for who in ("second", "first")
    )
    print("shares", mine, theirs)
    assert 0.35 < mine / (mine + theirs) < 0.65
    (under_way,) = [job for job in cluster.client.status().jobs if job.state == "mapping"]
    cluster.client.cancel(under_way.job)
    assert first.end() is not None

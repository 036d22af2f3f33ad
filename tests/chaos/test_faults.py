"""Executors killed at random moments, run files damaged between map and reduce: real processes and tasks.

The output is byte for byte that of the run without faults, or the job fails and says what killed it.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cortex
from cortex.errors import CortexError, ExecutorDied
from cortex.limits import TASK_ATTEMPTS_MAX
from cortex.process_memory import descendant_pids

LINES = 3_000
PATIENCE_S = 60.0


class Words(cortex.MapReduceJob):
    """Word count that takes its time and notes in `marks` who is at what."""

    marks = ""

    def setup(self) -> None:
        self.noted: set[str] = set()

    def note(self, what: str) -> None:
        if what not in self.noted:
            self.noted.add(what)
            with open(os.path.join(self.marks, f"{what}-{os.getpid()}-{time.monotonic_ns()}"), "x"):
                pass

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        self.note("map")
        if "7" in line:
            time.sleep(0.0005)
        for word in line.split():
            yield word, 1

    def reduce(self, key: str, values: Iterator[int]) -> Iterator[tuple[str, int]]:
        self.note("reduce")
        time.sleep(0.0005)
        yield key, sum(values)


class Gated(Words):
    """A map that meets the line ``gate`` waits for the file of that name in `marks`."""

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        self.note(f"map.{line.split()[0]}")
        while line == "gate" and not os.path.exists(os.path.join(self.marks, "gate")):
            time.sleep(0.01)
        for word in line.split():
            yield word, 1


class Doomed(cortex.MapReduceJob):
    marks = ""

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        if line == "doom":
            import sys

            print("last words", file=sys.stderr)
            with open(self.marks, "a") as log:
                log.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        yield line, 1


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORTEX_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("CORTEX_MEMORY", raising=False)
    (tmp_path / "in.txt").write_text("".join(f"w{i} w{i % 97} w{i % 7}\n" for i in range(LINES)))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Killer(threading.Thread):
    """Kills an executor in each of `stages`, a random while after it was seen to be at work in it.

    One of each task at most is lost before its last attempt: there are fewer stages than attempts.
    """

    def __init__(self, marks: Path, stages: list[str], seed: int) -> None:
        super().__init__(daemon=True)
        assert len(stages) < TASK_ATTEMPTS_MAX
        self.marks, self.stages, self.random = marks, stages, random.Random(seed)
        self.killed: list[str] = []

    def run(self) -> None:
        seen: set[str] = set()
        end = time.monotonic() + PATIENCE_S
        while self.stages and time.monotonic() < end:
            new = sorted({path.name for path in self.marks.glob(f"{self.stages[0]}-*")} - seen)
            if not new:
                time.sleep(0.002)
                continue
            seen.add(new[-1])
            time.sleep(self.random.uniform(0, 0.1))
            pid = int(new[-1].split("-")[1])
            if pid in descendant_pids(os.getpid()):
                os.kill(pid, signal.SIGKILL)
                self.killed.append(self.stages.pop(0))


def run_words(home: Path, name: str, marks: Path) -> cortex.Result:
    marks.mkdir()
    job = Words(
        input=str(home / "in.txt"),
        output=str(home / name),
        split_size=4000,
        reducers=3,
        slots=2,
        marks=str(marks),
    )
    return job.run()


def test_executors_killed_in_map_and_reduce_change_no_byte(home: Path) -> None:
    undisturbed = run_words(home, "out", home / "marks")
    assert undisturbed.report.failed_attempts == 0
    expected = contents(home / "out")
    words = Counter(word for i in range(LINES) for word in (f"w{i}", f"w{i % 97}", f"w{i % 7}"))
    assert dict(undisturbed) == words
    failed_attempts = 0
    for seed, stages in enumerate((["map", "map", "reduce"], ["map", "reduce", "reduce"])):
        killer = Killer(home / f"marks{seed}", list(stages), seed)
        killer.start()
        result = run_words(home, f"out{seed}", home / f"marks{seed}")
        killer.join(PATIENCE_S)
        assert killer.killed == stages
        assert contents(home / f"out{seed}") == expected
        assert result.report.failed_attempts <= len(stages)
        failed_attempts += result.report.failed_attempts
    assert failed_attempts >= 2  # the others were between two tasks when they were killed
    assert not any((home / "state" / "spill").iterdir())


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9)


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, os.unlink])
def test_a_damaged_run_file_redoes_its_map_alone(home: Path, damage: Callable[[Path], None]) -> None:
    (home / "in.txt").write_text("".join(f"line{i} a b c\n" for i in range(9)) + "gate\n")
    marks = home / "marks"
    marks.mkdir()
    found: list[cortex.Result | BaseException] = []

    def run() -> None:
        try:
            found.append(
                Gated(
                    input=str(home / "in.txt"),
                    output=str(home / "out"),
                    split_size=12,
                    slots=1,
                    marks=str(marks),
                ).run()
            )
        except CortexError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: found or list(marks.glob("map.gate-*")))
    (first,) = (home / "state" / "spill").glob("cortex-*/*/*-m000000.0.run")
    damage(first)
    (marks / "gate").touch()
    thread.join(PATIENCE_S)
    (result,) = found
    assert isinstance(result, cortex.Result), result
    expected = {f"line{i}": 1 for i in range(9)} | {"a": 9, "b": 9, "c": 9, "gate": 1}
    assert dict(result) == expected
    assert result.report.rows_in == 10
    ran = Counter(path.name.split("-")[0] for path in marks.glob("map.*"))
    assert ran == Counter({f"map.line{i}": 1 for i in range(9)} | {"map.gate": 1, "map.line0": 2})


def test_a_task_that_kills_its_executor_has_four_attempts_and_a_cause_of_death(home: Path) -> None:
    (home / "in.txt").write_text("fine\n" * 10 + "doom\n")
    job = Doomed(
        input=str(home / "in.txt"), output=str(home / "out"), split_size=25, slots=2, marks=str(home / "log")
    )
    with pytest.raises(ExecutorDied, match="killed by SIGKILL") as caught:
        job.run()
    text = str(caught.value)
    assert "last words" in text
    assert "split 2 of" in text
    assert str(home / "in.txt") in text
    assert "peak resident memory" in text
    assert (home / "log").read_text() == "x" * TASK_ATTEMPTS_MAX
    assert f"{TASK_ATTEMPTS_MAX} of at most {TASK_ATTEMPTS_MAX}" in text
    assert not (home / "out").exists()
    assert {path.name for path in home.iterdir()} == {"in.txt", "log", "state"}

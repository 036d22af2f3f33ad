"""A node's own task: what it leaves, what it answers, and what a reduce makes of its file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from cortex.errors import CorruptRun, CortexError
from cortex.ids import is_attempt_id, parse_attempt
from cortex.job.spec import InputSpec, JobSpec, OutputSpec, Resources
from cortex.tasks.combine_task import neighbours
from cortex.tasks.runner import JobContext
from cortex.tasks.words import describe_task
from cortex.wire.messages import (
    CombineResult,
    CombineTask,
    MapBlock,
    MapResult,
    MapTask,
    OpenJob,
    PlanResult,
    PlanTask,
    ReduceResult,
    ReduceTask,
)
from tests.one_process import JOB, fetch_all
from tests.property.test_jobs import Code

GROUP = f"{JOB}-c000000.0"


def output(index: int) -> str:
    return f"{JOB}-m{index:06d}.0"


class Job:
    """Four maps of a word count, run; their outputs lie in `work`."""

    def __init__(self, folder: Path, distinct: bool = False, combine: Any = None) -> None:
        (folder / "staging").mkdir()
        (folder / "in.txt").write_text("".join(f"line{i}\n" for i in range(4)))
        self.work = folder / "work"

        def pairs(line: str) -> Iterator[tuple[str, int]]:
            for number in range(300):
                yield (f"{line}-{number}" if distinct else f"word{number}"), 1

        spec = JobSpec(
            "test",
            InputSpec((str(folder / "in.txt"),)),
            OutputSpec(),
            Resources(split_bytes=6, reducers=2),
            map_form="rows",
            reduce_form="fold",
            combine="binary" if combine else "sum",
        )
        code = cloudpickle.dumps(Code(pairs, combine=combine))
        self.context = JobContext(OpenJob(JOB, spec, code, (), str(self.work), str(folder / "staging"), 0))
        planned = self.run(f"{JOB}-plan.0", PlanTask())
        assert isinstance(planned, PlanResult)
        self.context.planned(planned.plan)
        self.maps: list[MapResult] = []
        for index, members in enumerate(planned.plan.tasks):
            splits = tuple(planned.plan.splits[member] for member in members)
            self.maps.append(self.run(output(index), MapTask(index, splits)))
        assert len(self.maps) == 4

    def run(self, attempt: str, task: Any) -> Any:
        return self.context.run(attempt, task, lambda stats: None)

    def combine(self, *maps: int, saving_min: float = 0.2) -> CombineResult:
        found = self.run(GROUP, CombineTask(tuple(map(output, maps)), saving_min))
        assert isinstance(found, CombineResult)
        return found

    def reduce(self, partition: int, *maps: int) -> ReduceResult:
        inputs = tuple(MapBlock(index, (1, 0)) for index in maps)
        found = self.run(f"{JOB}-r{partition:06d}.0", ReduceTask(partition, (), inputs))
        assert isinstance(found, ReduceResult)
        return found

    def files(self) -> list[str]:
        return sorted(os.listdir(self.work))


def test_a_reduce_counts_what_a_combined_segment_stands_for(tmp_path: Path) -> None:
    job = Job(tmp_path)
    result = job.combine(0, 1, 3)
    assert result.kept
    assert result.bytes_in == sum(os.path.getsize(job.work / f"{output(i)}.run") for i in (0, 1, 3))
    assert result.bytes_out == os.path.getsize(job.work / f"{GROUP}.run") < 0.5 * result.bytes_in
    fetch_all(str(job.work), 2, [GROUP])
    assert len(job.files()) == 4  # of each partition one for the group, and one for map 2
    reduced = [job.reduce(partition, 0, 1, 2, 3) for partition in range(2)]
    for partition, found in enumerate(reduced):
        assert found.stats.rows_in == sum(each.partition_rows[partition] for each in job.maps)
    assert sum(each.stats.bytes_in for each in reduced) == sum(each.stats.bytes_out for each in job.maps)
    assert sum(each.stats.groups for each in reduced) == 300


def test_a_segment_that_stands_for_what_a_reduce_does_not_read_is_corrupt(tmp_path: Path) -> None:
    """So its first member's map runs again, and nothing is read twice or left out."""
    job = Job(tmp_path)
    job.combine(0, 1, 3)
    fetch_all(str(job.work), 2, [GROUP])
    with pytest.raises(CorruptRun, match="does not read") as caught:
        job.reduce(0, 0, 2, 3)
    assert caught.value.details["attempt"] == output(0)


def test_a_file_that_saves_too_little_is_not_kept(tmp_path: Path) -> None:
    job = Job(tmp_path, distinct=True)
    before = job.files()
    result = job.combine(0, 1, 2, 3)
    assert not result.kept
    assert result.bytes_out > 0.8 * result.bytes_in
    assert job.files() == before


def test_a_users_combiner_joins_neighbours_only(tmp_path: Path) -> None:
    job = Job(tmp_path, combine=lambda earlier, later: earlier + later)
    before = job.files()
    assert job.combine(0, 2, 3) == CombineResult(neighbours_only=True)
    assert job.files() == before
    assert job.combine(1, 2, 3).kept


def test_a_task_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(earlier: int, later: int) -> int:
        raise ValueError("it cannot be added")

    job = Job(tmp_path, combine=fails)
    before = job.files()
    with pytest.raises((CortexError, ValueError)):
        job.combine(0, 1, 2)
    assert job.files() == before
    os.truncate(job.work / f"{output(2)}.run", 100)
    with pytest.raises(CorruptRun):
        job.combine(1, 2, 3)
    assert job.files() == before


def test_neighbours_are_maps_without_a_gap() -> None:
    assert neighbours([output(3), output(4), output(5)])
    assert not neighbours([output(3), output(5)])


def test_its_attempt_names_a_file_and_is_no_attempt_of_the_servers() -> None:
    assert is_attempt_id(GROUP)
    assert parse_attempt(GROUP) is None
    assert "combining 2 map outputs" in describe_task(CombineTask((output(0), output(1)), 0.2))

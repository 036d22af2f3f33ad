"""A job's real tasks, run one after the other in this process: no sockets, no forks, every byte real.

The order of the tasks is what the scheduler would do without faults. For tests that ask what comes out.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import msgspec

from cortex.job.output_types import OutputTypes
from cortex.job.plan import OUT, ClientFiles, InputPlan
from cortex.job.spec import JobSpec
from cortex.storage.fetched_segments import FetchedSegments
from cortex.storage.file_names import run_path
from cortex.storage.filesystem import LocalFilesystem
from cortex.storage.segment_file import SegmentCutter, plan_segment
from cortex.tasks.runner import JobContext
from cortex.wire.messages import (
    CombineResult,
    CombineTask,
    MapBlock,
    MapResult,
    MapTask,
    OpenJob,
    OutputPart,
    PlanResult,
    PlanTask,
    ReduceResult,
    ReduceTask,
    ScanResult,
    ScanTask,
)

JOB = "j0123456789ab"


@dataclass
class Outcome:
    plan: InputPlan
    maps: list[MapResult]
    reduces: list[ReduceResult]
    parts: list[OutputPart]
    files: list[bytes]
    """The parts' bytes, in output order."""

    @property
    def data(self) -> bytes:
        return b"".join(self.files)

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        total: dict[str, dict[str, int]] = {}
        for result in [*self.maps, *self.reduces]:
            for group, names in result.counters.items():
                for name, count in names.items():
                    total.setdefault(group, {})[name] = total.get(group, {}).get(name, 0) + count
        return total


def run_tasks(
    spec: JobSpec,
    code: Any = None,
    *,
    budget: Any = None,
    fetched: bool = False,
    combined: random.Random | None = None,
    client_files: ClientFiles = (),
    input_socket: str = "",
) -> Outcome:
    """Run a job. `budget` replaces the tasks' memory budget (`cortex.tasks.budget.Budget`). With `fetched`
    no reduce finds a run file, only segments cut out of them, as where every map ran on another node.
    With `combined` some of these come combined, of maps that it chooses.
    `client_files` are those of a client, which answers at `input_socket`."""
    with tempfile.TemporaryDirectory() as folder:
        staging = os.path.join(folder, "staging")
        os.mkdir(staging)
        blob = cloudpickle.dumps(code) if code is not None else b""
        work = os.path.join(folder, "work")
        context = JobContext(OpenJob(JOB, spec, blob, (), work, staging, 0, input_socket=input_socket))
        if budget is not None:
            context._program.budget = budget
        try:
            return _run(context, staging, fetched or combined is not None, combined, client_files)
        finally:
            context.close()


def fetch_all(work_dir: str, partitions: int, together: Sequence[str] = ()) -> None:
    """Put segments in the place of every run file in a folder; those named in `together` are combined files,
    whose segments come in place of their members'."""
    fs = LocalFilesystem()
    fetched = FetchedSegments(fs, work_dir)
    names = [name.removesuffix(".run") for name in os.listdir(work_dir) if name.endswith(".run")]
    for partition in range(partitions):
        covered: set[str] = set()
        for name in sorted(names):  # combined ones first, by their names
            plan = plan_segment(fs, run_path(work_dir, name), partition)
            if name in covered or (name in together and not plan.members):
                continue
            covered.update(plan.members)
            cutter = SegmentCutter(fs, plan)
            first = plan.members[0] if plan.members else name
            incoming = fetched.create(first, partition, plan.size_bytes, plan.members)
            while not cutter.ended:
                incoming.write(cutter.read(1000))
            assert incoming.commit() == plan.rows
    for name in names:
        os.unlink(run_path(work_dir, name))


def combine_some(context: JobContext, maps: int, rng: random.Random) -> list[str]:
    """Combine map outputs in groups chosen at random; the names of the files made. Of any maps where their
    order does not count, else of neighbours."""
    made: list[str] = []

    def combine(members: list[int]) -> CombineResult:
        name = f"{JOB}-c{len(made):06d}.0"
        attempts = tuple(f"{JOB}-m{index:06d}.0" for index in sorted(members))
        result = context.run(name, CombineTask(attempts, -1000.0), lambda stats: None)
        assert isinstance(result, CombineResult)
        if result.kept:
            made.append(name)
        return result

    left = list(range(maps))
    rng.shuffle(left)
    while len(left) > 1:
        size = rng.randrange(1, 6)
        members, left = left[:size], left[size:]
        if len(members) > 1 and combine(members).neighbours_only:
            left = sorted((*members, *left))
            for begin in range(0, len(left), 3):
                some = [index for index in left if left[begin] <= index < left[begin] + 3]
                if some == left[begin : begin + 3] and len(some) > 1:
                    neighbours = [index for at, index in enumerate(some) if index == some[0] + at]
                    assert combine(neighbours).kept
            break
    return made


def _run(
    context: JobContext,
    staging: str,
    fetched: bool,
    combined: random.Random | None,
    client_files: ClientFiles,
) -> Outcome:
    def progress(stats: Any) -> None:
        assert stats.rows_in >= 0

    planned = context.run(f"{JOB}-plan.0", PlanTask(client_files), progress)
    assert isinstance(planned, PlanResult)
    plan = planned.plan
    context.planned(plan)
    splits = {split.index: split for split in plan.splits}
    for file in plan.files:
        own = [split for split in plan.splits if split.file == file.index]
        if not (file.needs_scan and own):
            continue
        bounds = (*(split.offset for split in own), own[-1].offset + own[-1].length)
        scanned = context.run(f"{JOB}-s{file.index:06d}.0", ScanTask(file.index, bounds, OUT), progress)
        assert isinstance(scanned, ScanResult)
        state = OUT
        for split, ends in zip(own, scanned.ends):
            splits[split.index] = msgspec.structs.replace(split, start_state=state, end_state=ends[state])
            state = ends[state]
    types = OutputTypes()
    maps: list[MapResult] = []
    reduces: list[ReduceResult] = []
    tasks = list(plan.tasks) or ([range(0)] if plan.reducers == 0 else [])
    for index, members in enumerate(tasks):
        task = MapTask(index, tuple(splits[member] for member in members))
        result = context.run(f"{JOB}-m{index:06d}.0", task, progress)
        assert isinstance(result, MapResult)
        types = types.joined(result.types)
        maps.append(result)
    if fetched:
        together = [] if combined is None else combine_some(context, len(maps), combined)
        fetch_all(context._store.work_dir, plan.reducers, together)
    types = OutputTypes()
    for partition in range(plan.reducers):
        wrote = [m.map_index for m in maps if m.partition_rows[partition]]
        spans = tuple(bound for index in wrote for bound in (index, index + 1))
        inputs = tuple(MapBlock(index, (1, 0)) for index in wrote)
        task = ReduceTask(partition, spans, inputs)
        reduced = context.run(f"{JOB}-r{partition:06d}.0", task, progress)
        assert isinstance(reduced, ReduceResult)
        assert reduced.stats.rows_in == sum(m.partition_rows[partition] for m in maps)
        types = types.joined(reduced.types)
        reduces.append(reduced)
    if reduces:
        assert sum(each.stats.bytes_in for each in reduces) == sum(each.stats.bytes_out for each in maps)
    parts = [part for result in [*maps, *reduces] for part in result.parts]
    files = []
    for part in parts:
        with open(os.path.join(staging, part.staged_as), "rb") as file:
            files.append(file.read())
    return Outcome(plan, maps, reduces, parts, files)

"""What is merged and reduced from fetched segments is, byte for byte, what the run files themselves give."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.shuffle.merge import GiantGroup, merge_rounds
from cortex.shuffle.segments import sources_of
from cortex.storage.fetched_segments import FetchedSegments
from cortex.storage.map_output_store import MapOutputStore
from cortex.storage.segment_file import SegmentCutter, plan_segment
from tests.memory_filesystem import MemoryFilesystem
from tests.one_process import run_tasks
from tests.property.test_jobs import BUDGETS, LINES, REDUCERS, SLOW, SPLITS, Code, spec_for
from tests.property.test_merge import KEYS, collect


def fetch(
    fs: MemoryFilesystem,
    here: MapOutputStore,
    there: FetchedSegments,
    attempt: str,
    partition: int,
    chunk: int,
) -> None:
    plan = plan_segment(fs, here.path(attempt), partition)
    cutter = SegmentCutter(fs, plan)
    incoming = there.create(attempt, partition, plan.size_bytes)
    while not cutter.ended:
        incoming.write(cutter.read(chunk))
    assert incoming.commit() == plan.rows


def merged(store: MapOutputStore, attempts: list[str], partition: int, budget: int) -> list[Any]:
    """Every batch that the merge hands out, and where its groups begin."""
    sources = [s for a in attempts for s in sources_of(store.open(a, partition), partition)]
    found: list[Any] = []
    for item in merge_rounds(sources, budget):
        if isinstance(item, GiantGroup):
            found.append((item.layout, list(item.keys), list(item.batches())))
        else:
            found.append((item.layout, item.batch, item.starts.tolist()))
    return found


@settings(max_examples=100, deadline=None)
@given(
    keys=KEYS,
    maps=st.integers(1, 3),
    partitions=st.integers(1, 5),
    spill=st.sampled_from([1, 200, 1 << 20]),
    budget=st.sampled_from([1, 300, 1 << 20]),
    chunk=st.sampled_from([1, 90, 1 << 20]),
    mixed=st.booleans(),
)
def test_a_merge_of_segments_is_the_merge_of_their_run_files(
    keys: list[Any], maps: int, partitions: int, spill: int, budget: int, chunk: int, mixed: bool
) -> None:
    pairs = [(key, str(i) if mixed and i % 3 == 0 else i) for i, key in enumerate(keys)]
    fs = MemoryFilesystem()
    here, other = MapOutputStore(fs, "/here"), MapOutputStore(fs, "/other")
    there = FetchedSegments(fs, "/other")
    size = max(1, -(-len(pairs) // maps))
    attempts = []
    for index, begin in enumerate(range(0, len(pairs), size)):
        attempts.append(f"j0123456789ab-m{index:06d}.0")
        collect(here, attempts[-1], pairs[begin : begin + size], partitions, spill, None, 7)
    for partition in range(partitions):
        for attempt in attempts:
            fetch(fs, here, there, attempt, partition, chunk)
        assert merged(other, attempts, partition, budget) == merged(here, attempts, partition, budget)
    assert other.committed() == []


@SLOW
@given(LINES, SPLITS, REDUCERS, BUDGETS)
def test_a_job_gives_the_same_bytes_from_segments(
    lines: list[str], split: int, reducers: int, budget: Any
) -> None:
    def words(line: str) -> Iterator[tuple[str, str]]:
        for place, word in enumerate(line.split()):
            yield word, f"{place} of {line}"

    def listed(key: str, values: Iterator[str]) -> Iterator[tuple[str, str]]:
        yield key, ";".join(values)

    with tempfile.TemporaryDirectory() as folder:
        data = "\n".join(lines).encode()
        for form, code in (({}, Code(words, listed)), ({"combine": "max"}, Code(words, listed))):
            spec = spec_for(
                Path(folder), "in.txt", data, split, reducers, map_form="rows", reduce_form="rows", **form
            )
            read_in_place = run_tasks(spec, code, budget=budget)
            fetched = run_tasks(spec, code, budget=budget, fetched=True)
            assert fetched.files == read_in_place.files
            assert fetched.reduces == read_in_place.reduces

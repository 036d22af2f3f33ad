"""A partition's segments, as the merge reads them; and fewer, longer runs made of too many.

Merging k runs holds what each has left of a batch, so at most `fan_in` are merged at once. With more,
neighbours are merged into one run in a temporary file first, level by level. Only neighbours: the
order of values of one key is the order of the sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from cortex.ids import AttemptId, task_of
from cortex.shuffle.collector import Combiner, RunSink
from cortex.shuffle.merge import GiantGroup, RunSource, merge_rounds
from cortex.shuffle.partitioner import Partitioner
from cortex.shuffle.run_schema import Layout, layout_of
from cortex.storage.map_output_store import MapOutputStore
from cortex.storage.run_reader import RunFileReader
from cortex.storage.run_writer import RunFileWriter


def sources_of(reader: RunFileReader, partition: int) -> list[RunSource]:
    """The runs of one map output file that have rows of `partition`, in the order they were spilled."""
    sources = []
    for run in reader.runs:
        entries = run.entries(partition)
        if not len(entries):
            continue
        sources.append(
            RunSource(
                layout=layout_of(run.schema),
                first_hashes=entries["first_hash"].astype(np.uint64),
                last_hashes=entries["last_hash"].astype(np.uint64),
                sizes_bytes=entries["raw_bytes"].astype(np.int64),
                rows=entries["rows"].astype(np.int64),
                read=lambda index, run=run, entries=entries: run.read(entries[index]),  # type: ignore[misc]
            )
        )
    return sources


_TEMPORARY_FROM = 1000  # far above limits.TASK_ATTEMPTS_MAX


class EarlyMerges:
    """The files of runs merged early: beside the map outputs, under attempt numbers that no attempt has.

    Numbered from 0. `step` is called for every item merged. `close` removes what is left.
    """

    def __init__(self, store: MapOutputStore, attempt: str, step: Callable[[], None]) -> None:
        self.step = step
        self._store = store
        self._task = task_of(AttemptId(attempt))
        self._made: set[int] = set()

    def create(self, number: int) -> RunFileWriter:
        self._made.add(number)
        return self._store.create(self._name(number))

    def finish(self, number: int, writer: RunFileWriter) -> tuple[int, RunFileReader]:
        summary = self._store.commit(writer, self._name(number))
        return summary.bytes, self._store.open(self._name(number))

    def discard(self, number: int) -> None:
        self._store.discard(self._name(number))
        self._made.discard(number)

    def close(self) -> None:
        """Remove all that is left."""
        for number in list(self._made):
            self.discard(number)

    def _name(self, number: int) -> str:
        return f"{self._task}.{_TEMPORARY_FROM + number}"


def reduce_fan_in(
    sources: Sequence[RunSource],
    runs_max: int,
    budget_bytes: int,
    files: EarlyMerges,
    combine: Combiner | None,
) -> tuple[list[RunSource], int]:
    """At most `runs_max` sources with the rows of `sources`, and the bytes written to get there."""
    level: list[tuple[RunSource, int]] = [(source, -1) for source in sources]  # -1: of a map output
    written = number = 0
    while len(level) > runs_max:
        size = -(-len(level) // -(-len(level) // runs_max))  # groups of about equal numbers of runs
        merged: list[tuple[RunSource, int]] = []
        for begin in range(0, len(level), size):
            some = level[begin : begin + size]
            if len(some) == 1:
                merged.extend(some)
                continue
            writer = files.create(number)
            try:
                sink = RunSink(writer, Partitioner(1))
                _merge_into(sink, [source for source, _ in some], budget_bytes, combine, files.step)
                size_bytes, reader = files.finish(number, writer)
            except BaseException:
                writer.abort()
                raise
            written += size_bytes
            merged.extend((source, number) for source in sources_of(reader, 0))
            number += 1
        for old in sorted({n for _, n in level} - {n for _, n in merged} - {-1}):
            files.discard(old)
        if len(merged) >= len(level):
            # What combine gave changed its layout again and again, and each change began a run. Rows as
            # they are have one layout, so that the next level has one run a group and is shorter.
            combine = None
        level = merged
    return [source for source, _ in level], written


def _merge_into(
    sink: RunSink,
    sources: Sequence[RunSource],
    budget_bytes: int,
    combine: Combiner | None,
    step: Callable[[], None],
) -> None:
    """One run of all rows, or as many as there are layouts in turn (the next merge makes them one)."""
    for layout, batch in merged_batches(sources, budget_bytes, combine):
        sink.append(layout, batch)
        step()
    sink.end()


def merged_batches(
    sources: Sequence[RunSource], budget_bytes: int, combine: Combiner | None
) -> Iterator[tuple[Layout, pa.RecordBatch]]:
    """The rows of `sources`, merged and, with `combine`, one row a group where it is not a giant."""
    for item in merge_rounds(sources, budget_bytes):
        if isinstance(item, GiantGroup):
            for batch in item.batches():
                yield item.layout, batch
        else:
            yield (
                (item.layout, item.batch)
                if combine is None
                else combine(item.layout, item.batch, item.starts)
            )

"""A partition's segments, as the merge reads them; and fewer, longer runs made of too many.

Merging k runs holds what each has left of a batch, so at most `fan_in` are merged at once. With more,
neighbours are merged into one run in a temporary file first, level by level. Only neighbours: the
order of values of one key is the order of the sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from cortex.shuffle.collector import Combiner, RunSink
from cortex.shuffle.merge import GiantGroup, RunSource, merge_rounds
from cortex.shuffle.partitioner import Partitioner
from cortex.shuffle.run_schema import Layout, layout_of
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


def reduce_fan_in(
    sources: Sequence[RunSource],
    runs_max: int,
    budget_bytes: int,
    create: Callable[[int], RunFileWriter],
    finish: Callable[[int, RunFileWriter], tuple[int, RunFileReader]],
    combine: Combiner | None,
) -> tuple[list[RunSource], int]:
    """At most `runs_max` sources with the rows of `sources`, and the bytes written to get there.

    `create(n)` makes the n-th temporary file, `finish(n, writer)` closes it and opens it for reading,
    with its bytes; the caller removes them all.
    """
    level, written, number = list(sources), 0, 0
    while len(level) > runs_max:
        size = -(-len(level) // -(-len(level) // runs_max))  # groups of about equal numbers of runs
        merged: list[RunSource] = []
        for begin in range(0, len(level), size):
            some = level[begin : begin + size]
            if len(some) == 1:
                merged.extend(some)
                continue
            writer = create(number)
            try:
                _merge_into(RunSink(writer, Partitioner(1)), some, budget_bytes, combine)
                size_bytes, reader = finish(number, writer)
            except BaseException:
                writer.abort()
                raise
            written += size_bytes
            merged.extend(sources_of(reader, 0))
            number += 1
        level = merged
    return level, written


def _merge_into(
    sink: RunSink, sources: Sequence[RunSource], budget_bytes: int, combine: Combiner | None
) -> None:
    """One run of all rows, or as many as there are layouts in turn (the next merge makes them one)."""
    for layout, batch in _merged_batches(sources, budget_bytes, combine):
        sink.append(layout, batch)
    sink.end()


def _merged_batches(
    sources: Sequence[RunSource], budget_bytes: int, combine: Combiner | None
) -> Iterator[tuple[Layout, pa.RecordBatch]]:
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

"""Combining at the node: the outputs of several maps become one file, before they cross the network.

Partition by partition their runs are merged in map order and folded by what reduces use for early merges.
The members' own files stay: which of the two is sent is the node's decision, segment by segment. The file
says for each partition how many rows and bytes of which members it stands for, counted from what was read,
so that a reduce's count is that of what the maps wrote.

Partial states of aggregates may be joined in any order: sums are exact, least and greatest have a total
order (`cortex.kernels.aggregate_states`), and equal keys are equal bytes (`canonical_key`), so the result is,
too. What Python folds is joined in map order only, so only of maps that are next to each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise

from cortex.ids import map_attempt
from cortex.shuffle.collector import RunSink
from cortex.shuffle.merge import RunSource, fan_in
from cortex.shuffle.partitioner import Partitioner
from cortex.shuffle.run_schema import STATES, Layout, layout_of
from cortex.shuffle.segments import EarlyMerges, merged_batches, reduce_fan_in, sources_of
from cortex.storage.run_format import Combined, StandsFor
from cortex.storage.run_reader import RunFileReader
from cortex.tasks.combiners import combiner_of
from cortex.tasks.program import Program
from cortex.wire.messages import CombineResult, CombineTask, TaskStats


class CombineAttempt:
    """`run` does it all. Nothing is left but the file it committed, if that saves enough."""

    def __init__(
        self, program: Program, task: CombineTask, attempt: str, progress: Callable[[TaskStats], None]
    ) -> None:
        self._program = program
        self._task = task
        self._attempt = attempt
        self._progress = progress
        self._rows_in = 0
        self._temporary = EarlyMerges(program.store, attempt, program.position.step)

    def run(self) -> CombineResult:
        """Raises what the merge raises: CorruptRun, SpillFull, the user's own error, ..."""
        store = self._program.store
        readers = [store.open(attempt) for attempt in self._task.members]
        try:
            layouts = {layout_of(run.schema) for reader in readers for run in reader.runs}
            if not (in_any_order(layouts) or neighbours(self._task.members)):
                return CombineResult(neighbours_only=True)
            with self._program.task_scope():
                result = self._write(readers)
            self._program.take_counters()  # maps and reduces count: this work is the node's own
            return result
        finally:
            self._temporary.close()
            for reader in readers:
                reader.close()

    def _write(self, readers: Sequence[RunFileReader]) -> CombineResult:
        program = self._program
        bytes_in = sum(os.stat(reader.path).st_size for reader in readers)
        writer = program.store.create(self._attempt)
        try:
            sink = RunSink(writer, Partitioner(program.reducers))
            made_of: dict[int, StandsFor] = {}
            for partition in range(program.reducers):
                sources: list[RunSource] = []
                members = 0
                for number, reader in enumerate(readers):
                    found = sources_of(reader, partition)
                    members |= bool(found) << number
                    sources += found
                if sources:
                    rows = sum(int(source.rows.sum()) for source in sources)
                    raw_bytes = sum(int(source.sizes_bytes.sum()) for source in sources)
                    made_of[partition] = StandsFor(rows, raw_bytes, members)
                    self._merge(sources, sink)
                    self._rows_in += rows
            sink.end()
            if writer.bytes_written > bytes_in * (1 - self._task.saving_min):
                writer.abort()
                return CombineResult(bytes_in, writer.bytes_written)
        except BaseException:
            writer.abort()
            raise
        combined = Combined(self._task.members, made_of)
        summary = program.store.commit(writer, self._attempt, combined)
        return CombineResult(bytes_in, summary.bytes, kept=True)

    def _merge(self, sources: list[RunSource], sink: RunSink) -> None:
        budget = self._program.budget.merge
        combine = combiner_of(self._program, sources[0].layout)
        runs_max = fan_in(budget, max(source.layout.columns for source in sources))
        if len(sources) > runs_max:
            sources, _ = reduce_fan_in(sources, runs_max, budget, self._temporary, combine)
        for layout, batch in merged_batches(sources, budget, combine):
            sink.append(layout, batch)
            self._program.position.step()
            self._progress(TaskStats(rows_in=self._rows_in))


def in_any_order(layouts: set[Layout]) -> bool:
    """May rows of these runs be joined in any order, and give the same bytes?"""
    return all(layout.payload.startswith(STATES) for layout in layouts)


def neighbours(attempts: Sequence[str]) -> bool:
    """Are these the attempts of maps next to each other, in map order?"""
    maps = [found[1] for found in map(map_attempt, attempts) if found is not None]
    return all(later == earlier + 1 for earlier, later in pairwise(maps))

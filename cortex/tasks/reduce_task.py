"""A reduce attempt: merge one partition's segments in rounds, reduce each group, write the part.

The segments are read in place, in map order. The rows that their indexes have are counted: the server
compares the count with what the maps wrote, and the merge with what it hands out. A segment that a node
combined counts for what it stands for, and its members are read with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cortex.errors import CorruptRun, CortexError, ValueTypeError
from cortex.ids import AttemptId, job_of
from cortex.shuffle.aggregation import Aggregation
from cortex.shuffle.keys import decode_keys, key_array
from cortex.shuffle.merge import GiantGroup, RunSource, SortedGroups, common_layout, fan_in, merge_rounds
from cortex.shuffle.run_schema import STATES, VALUES, Layout
from cortex.shuffle.segments import EarlyMerges, reduce_fan_in, sources_of
from cortex.shuffle.values import decode_values, encode_values, tag_of
from cortex.storage.run_format import Combined, corrupt
from cortex.storage.run_reader import RunFileReader
from cortex.tasks.combiners import aggregation_as_mapped, combiner_of
from cortex.tasks.held_columns import held_batch
from cortex.tasks.pair_emitters import (
    PYTHON_FOLDS,
    complex_values,
)
from cortex.tasks.part_output import PairWriter, PartWriter
from cortex.tasks.program import Program
from cortex.tasks.table_emitters import aggregation_of, batches_from, indexed_calls
from cortex.tasks.user_errors import (
    USER_EXCEPTIONS,
    raise_fold_error,
    reduce_arguments,
    shorten,
    user_error,
    user_frames,
)
from cortex.wire.map_locations import map_outputs
from cortex.wire.messages import OutputPart, ReduceResult, ReduceTask, TaskStats


class ReduceAttempt:
    """One attempt; `run` does it all and leaves only the part it staged."""

    def __init__(
        self, program: Program, task: ReduceTask, attempt: str, progress: Callable[[TaskStats], None]
    ) -> None:
        self._program = program
        self._task = task
        self._attempt = attempt
        self._progress = progress
        self._rows_in = 0
        self._groups = 0
        self._bytes_in = 0
        self._merged_bytes = 0
        self._temporary = EarlyMerges(program.store, attempt, program.position.step)
        self._part = PartWriter(
            program.staging_dir, attempt, task.partition, program.output_format, program.room
        )
        self._writer: PartWriter | PairWriter = self._part

    def run(self) -> ReduceResult:
        """Raises CorruptRun (details: the map attempt) when a segment cannot be read."""
        spec = self._program.spec
        try:
            sources = self._sources()
            with self._program.task_scope():
                if spec.reduce_form == "aggregate":
                    parts = self._aggregate(sources)
                elif spec.reduce_form == "fold":
                    parts = self._fold(sources)
                elif spec.reduce_form == "batch":
                    parts = self._reduce_batches(sources)
                else:
                    parts = self._reduce_rows(sources)
            stats = TaskStats(
                rows_in=self._rows_in,
                bytes_in=self._bytes_in,
                rows_out=sum(part.rows for part in parts),
                bytes_out=sum(part.size_bytes for part in parts),
                spilled_bytes=self._merged_bytes,
                shuffled_bytes=self._bytes_in,
                groups=self._groups,
            )
            counters = self._program.take_counters()
            return ReduceResult(self._task.partition, stats, parts, counters, self._writer.types)
        except BaseException:
            self._part.abort()
            raise
        finally:
            self._temporary.close()

    # --- input ------------------------------------------------------------------------------------

    def _sources(self) -> list[RunSource]:
        """Every segment of the partition in map order, in few enough runs to merge at once."""
        program, partition = self._program, self._task.partition
        sources: list[RunSource] = []
        outputs = [each.attempt for each in map_outputs(self._task.inputs, job_of(AttemptId(self._attempt)))]
        with_another: set[str] = set()
        for attempt in outputs:
            if attempt in with_another:
                continue
            try:
                reader = program.store.open(attempt, partition)
                found = sources_of(reader, partition)
                if reader.combined is not None:
                    with_another.update(self._members(reader, reader.combined, attempt, outputs))
            except CorruptRun as error:
                error.details["attempt"] = attempt
                raise
            if reader.combined is None:
                self._rows_in += sum(int(source.rows.sum()) for source in found)
                self._bytes_in += sum(int(source.sizes_bytes.sum()) for source in found)
            sources += [_named(source, attempt) for source in found]
        columns = max((source.layout.columns for source in sources), default=0)
        runs_max = fan_in(program.budget.merge, columns)
        if len(sources) <= runs_max:
            return sources
        combine = combiner_of(program, sources[0].layout)
        level, written = reduce_fan_in(sources, runs_max, program.budget.merge, self._temporary, combine)
        self._merged_bytes = written
        return level

    def _members(
        self, reader: RunFileReader, combined: Combined, attempt: str, outputs: Sequence[str]
    ) -> tuple[str, ...]:
        """What a combined segment stands for, which is counted as the maps wrote it."""
        partition, wanted = self._task.partition, set(outputs)
        made_of = combined.partitions.get(partition)
        if made_of is None or combined.members[:1] != (attempt,) or not wanted.issuperset(combined.members):
            raise corrupt(reader.path, "it stands for map outputs that this reduce does not read")
        self._rows_in += made_of.rows
        self._bytes_in += made_of.raw_bytes
        return combined.members

    def _rounds(self, sources: Sequence[RunSource]) -> Iterator[SortedGroups | GiantGroup]:
        for item in merge_rounds(sources, self._program.budget.merge):
            yield item
            self._progress(TaskStats(rows_in=self._rows_in, rows_out=self._part.rows, groups=self._groups))

    # --- aggregates -------------------------------------------------------------------------------

    def _aggregation(self, layout: Layout) -> Aggregation:
        return aggregation_as_mapped(self._program, layout)

    def _aggregate(self, sources: Sequence[RunSource]) -> tuple[OutputPart, ...]:
        spec = self._program.spec
        names = [*spec.group_by, *spec.aggregate]
        if not sources:
            self._empty_aggregate(names)
            return self._part.finish()
        layout = common_layout([source.layout for source in sources])
        aggregation = self._aggregation(layout)
        for layout, keys, states in merged_groups(self._rounds(sources), aggregation):
            results = aggregation.finish(states, layout.key_type, keys, tuple(spec.aggregate))
            columns = [*keys, *results]
            batch = pa.RecordBatch.from_arrays(columns, names=names)
            self._groups += batch.num_rows
            self._part.write(batch)
        return self._part.finish()

    def _empty_aggregate(self, names: list[str]) -> None:
        """No rows reached this partition. Without group_by there is one group all the same (and one
        partition); a part with columns and no rows otherwise, if the columns are known."""
        program, spec = self._program, self._program.spec
        if spec.map_form == "declared":
            mapped = program.mapped_schema()
            _, aggregation = aggregation_of(program.calls, mapped)
            keys = [pa.nulls(0, mapped.field(name).type) for name in spec.group_by]
        elif not spec.group_by:  # columns that map_batch never gave hold nothing
            calls, arguments = indexed_calls(program.calls)
            aggregation, keys = Aggregation(calls, [pa.null()] * len(arguments)), []
        else:
            return
        groups = 0 if spec.group_by else 1
        states = aggregation.new(groups)
        columns = [*keys, *aggregation.finish(states, "", keys)]
        self._groups += groups
        self._part.write(pa.RecordBatch.from_arrays(columns, names=names))

    # --- folds ------------------------------------------------------------------------------------

    def _pair_writer(self) -> PairWriter:
        program = self._program
        writer = self._writer = PairWriter(self._part, program.output_format, program.python_values)
        return writer

    def _fold(self, sources: Sequence[RunSource]) -> tuple[OutputPart, ...]:
        spec = self._program.spec
        writer = self._pair_writer()
        if not sources:
            return writer.finish()
        layout = common_layout([source.layout for source in sources])
        if layout.payload.startswith(STATES):
            aggregation = self._aggregation(layout)
            for layout, keys, states in merged_groups(self._rounds(sources), aggregation):
                columns = aggregation.finish(states, layout.key_type, keys)
                self._groups += len(columns[0])
                if len(columns) == 2:
                    writer.write(decode_keys(layout.key_type, keys), complex_values(*columns))
                    continue
                (values,) = columns
                tag = tag_of(values.type)
                writer.write_columns(layout.key_type, key_array(layout.key_type, keys), tag, values)
            return writer.finish()
        if spec.combine == "method":
            self._reduce_each(sources, writer, self._program.code.combine, "combine")
            return writer.finish()
        function = (
            self._program.code.combine_function if spec.combine == "binary" else PYTHON_FOLDS[spec.combine]
        )

        def folded(key: Any, values: Iterator[Any]) -> Any:
            value = total = next(values)
            try:
                for value in values:
                    total = function(total, value)
            except Exception as error:
                raise_fold_error(error, "combine", total, value)
                raise
            return ((key, total),)

        self._reduce_each(sources, writer, folded, "combine")
        return writer.finish()

    # --- the user's reduce ------------------------------------------------------------------------

    def _reduce_rows(self, sources: Sequence[RunSource]) -> tuple[OutputPart, ...]:
        writer = self._pair_writer()
        if sources:
            self._reduce_each(sources, writer, self._program.code.reduce, "reduce")
        return writer.finish()

    def _reduce_each(
        self, sources: Sequence[RunSource], writer: PairWriter, reduce: Callable[[Any, Any], Any], name: str
    ) -> None:
        state = _InHand()
        try:
            for item in self._pre_folded(sources):
                pairs = (
                    self._giant(item, reduce, state)
                    if isinstance(item, GiantGroup)
                    else self._groups_of(item, reduce, state)
                )
                writer.write_all(pairs, f"{name}()")
        except (CortexError, MemoryError):
            raise
        except USER_EXCEPTIONS as error:
            if not user_frames(error):
                if isinstance(error, TypeError | ValueError) and state.busy:
                    raise ValueTypeError(
                        f"{name}() must give (key, value) pairs: {error}",
                        cure=f"yield pairs from {name}(): yield key, value",
                        details={"key": shorten(repr(state.key))},
                    ) from error
                raise
            raise user_error(
                error,
                function=name,
                code=self._program.code,
                code_name=self._program.spec.code_name,
                where={
                    "key": shorten(repr(state.key)),
                    "values": state.shown(),
                    "partition": self._task.partition,
                },
                arguments=reduce_arguments(state.key, state.values)
                if name == "reduce" and state.whole
                else None,
            ) from error

    def _pre_folded(self, sources: Sequence[RunSource]) -> Iterator[SortedGroups | GiantGroup]:
        """Rounds for a Python reduce. With combine = sum, min or max the runs hold partial states:
        they are finished first, so that reduce sees one combined value a key."""
        layout = common_layout([source.layout for source in sources])
        if not layout.payload.startswith(STATES):
            yield from self._rounds(sources)
            return
        aggregation = self._aggregation(layout)
        for layout, keys, states in merged_groups(self._rounds(sources), aggregation):
            columns = aggregation.finish(states, layout.key_type, keys)
            if len(columns) == 2:
                tag, values = encode_values(complex_values(*columns))
            else:
                tag, values = tag_of(columns[0].type), columns[0]
            finished = Layout(
                layout.key_type,
                tuple(k.type for k in keys),
                f"{VALUES}:{tag}",
                (("value", values.type),),
                layout.placed,
            )
            rows = len(values)
            batch = finished.batch(np.zeros(rows, np.uint64), keys, [values])
            yield SortedGroups(finished, batch, np.arange(rows, dtype=np.int64))

    def _groups_of(
        self, item: SortedGroups, reduce: Callable[[Any, Any], Any], state: _InHand
    ) -> Iterator[Any]:
        layout, starts = item.layout, item.starts
        firsts = item.batch.take(pa.array(starts))
        keys = self._keys(layout, firsts)
        values = self._values(layout, item.batch)
        bounds = [*starts.tolist(), len(values)]
        self._groups += len(keys)
        for position, key in enumerate(keys):
            group = values[bounds[position] : bounds[position + 1]]
            state.begin(key, group, whole=True)
            made = reduce(key, self._program.position.over(group))
            if made is not None:
                yield from made
            state.busy = False

    def _giant(self, item: GiantGroup, reduce: Callable[[Any, Any], Any], state: _InHand) -> Iterator[Any]:
        (key,) = self._keys(item.layout, None, item.keys)
        self._groups += 1
        state.begin(key, [], whole=False)

        def values() -> Iterator[Any]:
            for batch in item.batches():
                self._progress(
                    TaskStats(rows_in=self._rows_in, rows_out=self._part.rows, groups=self._groups)
                )
                chunk = self._values(item.layout, batch)
                state.values = chunk
                yield from self._program.position.over(chunk)

        made = reduce(key, values())
        if made is not None:
            yield from made
        state.busy = False

    def _keys(
        self, layout: Layout, firsts: pa.RecordBatch | None, columns: Sequence[pa.Array] = ()
    ) -> list[Any]:
        columns = columns or (firsts.columns[1 : 1 + layout.keys] if firsts is not None else ())
        return decode_keys(layout.key_type, columns)

    def _values(self, layout: Layout, batch: pa.RecordBatch) -> list[Any]:
        return decode_values(layout.value_tag, batch.column(1 + layout.keys))

    def _reduce_batches(self, sources: Sequence[RunSource]) -> tuple[OutputPart, ...]:
        state = _InHand()
        try:
            for made in batches_from(
                self._program.code.reduce_batch(self._key_ordered(sources, state)), "reduce_batch()"
            ):
                if made.num_rows:
                    self._part.write(held_batch(made))
        except (CortexError, MemoryError):
            raise
        except USER_EXCEPTIONS as error:
            if not user_frames(error):
                raise
            raise user_error(
                error,
                function="reduce_batch",
                code=self._program.code,
                code_name=self._program.spec.code_name,
                record=f"a batch of {state.rows} rows",
                where={"partition": self._task.partition},
            ) from error
        return self._part.finish()

    def _key_ordered(self, sources: Sequence[RunSource], state: _InHand) -> Iterator[pa.RecordBatch]:
        """The partition as bounded batches with the map's own column names, keys first."""
        for item in self._rounds(sources) if sources else ():
            if isinstance(item, GiantGroup):
                self._groups += 1
                batches: Iterator[pa.RecordBatch] = item.batches()
            else:
                self._groups += len(item.starts)
                batches = iter((item.batch,))
            for batch in batches:
                state.rows = batch.num_rows
                self._program.position.step()
                yield self._named(item.layout, batch)

    def _named(self, layout: Layout, batch: pa.RecordBatch) -> pa.RecordBatch:
        spec = self._program.spec
        keys = batch.columns[1 : 1 + layout.keys]
        if spec.map_form == "rows":
            values = batch.column(1 + layout.keys)
            if layout.value_tag == "pickle":
                raise ValueTypeError(
                    "reduce_batch() takes columns, and the values of map() are no numbers or text",
                    cure="yield plain values of one type, or write reduce(key, values)",
                )
            return pa.RecordBatch.from_arrays(
                [key_array(layout.key_type, keys), values], names=["key", "value"]
            )
        names = [*spec.group_by, *(name for name, _ in layout.payload_fields)]
        return pa.RecordBatch.from_arrays([*keys, *batch.columns[1 + layout.keys :]], names=names)


def _named(source: RunSource, attempt: str) -> RunSource:
    """The source with its faults named by attempt."""
    read = source.read

    def named(index: int) -> pa.RecordBatch:
        try:
            return read(index)
        except CorruptRun as error:
            error.details["attempt"] = attempt
            raise

    return RunSource(
        source.layout, source.first_hashes, source.last_hashes, source.sizes_bytes, source.rows, named
    )


class _InHand:
    """The group that the user's function is working on, for its error."""

    def __init__(self) -> None:
        self.key: Any = None
        self.values: list[Any] = []
        self.whole = False
        self.busy = False
        self.rows = 0

    def begin(self, key: Any, values: list[Any], *, whole: bool) -> None:
        self.key, self.values, self.whole, self.busy = key, values, whole, True

    def shown(self) -> str:
        more = "" if self.whole else " (of a group larger than memory, the part being read)"
        return shorten(repr(self.values[:20])[:-1] + (", ...]" if len(self.values) > 20 else "]")) + more


def merged_groups(
    rounds: Iterator[SortedGroups | GiantGroup], aggregation: Aggregation
) -> Iterator[tuple[Layout, list[pa.Array], Any]]:
    """(layout, key columns, states), a row a group, in order."""
    for item in rounds:
        if isinstance(item, GiantGroup):
            states = aggregation.new(1)
            for batch in item.batches():
                aggregation.merge(states, np.zeros(1, np.int64), batch, item.layout)
            yield item.layout, list(item.keys), states
            continue
        states = aggregation.new(len(item.starts))
        aggregation.merge(states, item.starts, item.batch, item.layout)
        firsts = item.batch.select(list(range(1, 1 + item.layout.keys))).take(pa.array(item.starts))
        yield item.layout, list(firsts.columns), states

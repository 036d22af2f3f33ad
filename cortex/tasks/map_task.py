"""A map attempt: read its splits in order, apply the job's map, collect what comes out.

The three ways to say a map are one path: a reader yields blocks (lines, or record batches), the map
form makes pairs or batches of them, an emitter takes those. An attempt that fails leaves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cortex.errors import CortexError, UserCodeError, ValueTypeError
from cortex.formats.readers import Reader, open_reader
from cortex.job.plan import InputFile, Split
from cortex.job.row import row_maker
from cortex.kernels.expressions import Compiled, compile_expression, compile_filter
from cortex.shuffle.collector import Place, RowCollector
from cortex.shuffle.keys import to_python
from cortex.tasks.pair_emitters import (
    FoldedPairs,
    PairEmitter,
    PairsToPart,
    PairsToShuffle,
    method_fold,
)
from cortex.tasks.part_output import PairWriter, PartWriter
from cortex.tasks.program import Program
from cortex.tasks.shuffle_output import ShuffleOutput, user_placement
from cortex.tasks.table_emitters import (
    TableEmitter,
    TableToAggregates,
    TableToPart,
    TableToShuffle,
    batches_from,
)
from cortex.tasks.user_errors import user_error, user_frames
from cortex.wire.messages import MapResult, MapTask, TaskStats

_ROWS_AT_ONCE = 4096  # table rows made into Python objects at once


class MapAttempt:
    """One attempt. `run` does it all; whatever happens, nothing is left but what it committed."""

    def __init__(
        self, program: Program, task: MapTask, attempt: str, progress: Callable[[TaskStats], None]
    ) -> None:
        self._program = program
        self._task = task
        self._attempt = attempt
        self._progress = progress
        self._rows_in = 0
        self._bytes_done = 0
        self._reader: Reader | None = None
        self._split: Split | None = None
        self._file: InputFile | None = None
        self._shuffle: ShuffleOutput | None = None
        self._part: PartWriter | None = None
        self._pairs: PairWriter | None = None
        self._emitter: PairEmitter | TableEmitter | None = None

    def run(self) -> MapResult:
        """Raises the typed error of what went wrong: InputError, UserCodeError, SpillFull ..."""
        program = self._program
        try:
            with program.task_scope():
                if program.spec.map_form == "rows":
                    self._run_rows(self._pair_emitter())
                else:
                    self._run_batches(self._table_emitter())
            return self._commit()
        except CortexError:
            raise
        except MemoryError:
            raise
        except Exception as error:
            raise self._error_of(error, "map", None, -1) from error
        finally:
            self._close()

    # --- emitters ---------------------------------------------------------------------------------

    def _open_part(self) -> PartWriter:
        program = self._program
        self._part = PartWriter(
            program.staging_dir, self._attempt, self._task.map_index, program.output_format
        )
        return self._part

    def _open_shuffle(self) -> ShuffleOutput:
        self._shuffle = ShuffleOutput(self._program.store, self._attempt, self._program.reducers)
        return self._shuffle

    def _pair_emitter(self) -> PairEmitter:
        program, spec = self._program, self._program.spec
        if spec.reduce_form == "none":
            self._pairs = PairWriter(self._open_part(), program.output_format, program.python_values)
            self._emitter = PairsToPart(self._pairs)
            return self._emitter
        output = self._open_shuffle()
        place: Place | None = None
        if spec.custom_partition:
            place = user_placement(output.partitioner, program.code.partition)
        budget = program.budget.buffer
        if spec.combine in ("sum", "min", "max", "binary"):
            function = program.code.combine_function if spec.combine == "binary" else None
            self._emitter = FoldedPairs(output, budget, spec.combine, function, place)
            return self._emitter
        combine = method_fold(program.code.combine) if spec.combine == "method" else None
        collector = RowCollector(output.sink, budget, place=place, combine=combine)
        self._emitter = PairsToShuffle(collector, place is not None)
        return self._emitter

    def _table_emitter(self) -> TableEmitter:
        program, spec = self._program, self._program.spec
        if spec.reduce_form == "none":
            self._emitter = TableToPart(self._open_part())
        elif spec.reduce_form == "aggregate":
            self._emitter = TableToAggregates(
                self._open_shuffle().sink, program.budget.buffer, spec.group_by, program.calls
            )
        else:
            collector = RowCollector(self._open_shuffle().sink, program.budget.buffer)
            self._emitter = TableToShuffle(collector, spec.group_by)
        return self._emitter

    # --- the two loops ----------------------------------------------------------------------------

    def _blocks(self, as_lines: bool) -> Iterator[Any]:
        """The blocks of every split, in order; progress is reported after each."""
        program = self._program
        block_bytes = program.budget.lines_block if as_lines else program.budget.block
        for split in self._task.splits:
            file = program.plan.files[split.file]
            self._split, self._file = split, file
            reader = open_reader(
                file, split, program.plan.columns, block_bytes=block_bytes, as_lines=as_lines
            )
            self._reader = reader
            try:
                for block in reader:
                    yield block
                    self._report(reader)
            finally:
                self._bytes_done += reader.bytes_read
                self._reader = None
                reader.close()

    def _report(self, reader: Reader | None) -> None:
        self._progress(self._stats(self._bytes_done + (reader.bytes_read if reader else 0)))

    def _stats(self, bytes_in: int) -> TaskStats:
        written = self._shuffle.bytes_written if self._shuffle else 0
        rows_out = self._emitter.rows_out if self._emitter else 0
        return TaskStats(rows_in=self._rows_in, bytes_in=bytes_in, rows_out=rows_out, spilled_bytes=written)

    def _run_rows(self, emitter: PairEmitter) -> None:
        map_record = self._program.code.map
        at: list[Any] = []
        as_lines = self._program.text_input
        for block in self._blocks(as_lines):
            if as_lines:
                self._map_records(emitter, block, map_record, at, 0)
                continue
            for begin in range(0, block.num_rows, _ROWS_AT_ONCE):
                rows = rows_of(block.slice(begin, _ROWS_AT_ONCE))
                self._map_records(emitter, rows, map_record, at, begin)
        emitter.flush()

    def _map_records(
        self,
        emitter: PairEmitter,
        records: Sequence[Any],
        map_record: Callable[[Any], Any],
        at: list[Any],
        begin: int,
    ) -> None:
        try:
            emitter.records(self._program.position.over(records), map_record, at)
        except (CortexError, MemoryError):
            raise
        except Exception as error:
            record = at[-1] if at else None
            position = next((i for i, r in enumerate(records) if r is record), -1)
            raise self._error_of(error, "map", record, begin + position if position >= 0 else -1) from error
        self._rows_in += len(records)

    def _run_batches(self, emitter: TableEmitter) -> None:
        declared = Declared(self._program) if self._program.spec.map_form == "declared" else None
        map_batch = None if declared else self._program.code.map_batch
        seen = False
        for batch in self._blocks(as_lines=False):
            seen = True
            if declared is not None:
                self._declared(declared, batch, emitter)
            else:
                assert map_batch is not None
                self._mapped(map_batch, batch, emitter)
            self._rows_in += batch.num_rows
        if not seen and declared is not None:  # no rows at all: the columns are known all the same
            emitter.batch(declared.apply(self._program.empty_batch()))
        emitter.flush()

    def _declared(self, declared: Declared, batch: pa.RecordBatch, emitter: TableEmitter) -> None:
        try:
            emitter.batch(declared.apply(batch))
        except CortexError as error:
            if self._file is not None and "file" not in error.details:
                error.details["file"] = self._file.path
            raise

    def _mapped(self, map_batch: Callable[[Any], Any], batch: pa.RecordBatch, emitter: TableEmitter) -> None:
        try:
            for made in batches_from(map_batch(batch), "map_batch()"):
                emitter.batch(made)
        except (CortexError, MemoryError):
            raise
        except Exception as error:
            raise self._error_of(error, "map_batch", batch, 0) from error

    # --- ends -------------------------------------------------------------------------------------

    def _commit(self) -> MapResult:
        stats = self._stats(self._bytes_done)
        counters = self._program.take_counters()
        if self._shuffle is not None:
            written, partition_rows, checksum = self._shuffle.commit()
            self._shuffle = None
            stats = TaskStats(
                rows_in=stats.rows_in,
                bytes_in=stats.bytes_in,
                rows_out=stats.rows_out,
                spilled_bytes=written,
            )
            return MapResult(self._task.map_index, stats, partition_rows, checksum, (), counters)
        assert self._part is not None
        parts = self._pairs.finish() if self._pairs is not None else self._part.finish()
        self._part = None
        stats = TaskStats(
            rows_in=stats.rows_in,
            bytes_in=stats.bytes_in,
            rows_out=sum(part.rows for part in parts),
            bytes_out=sum(part.size_bytes for part in parts),
        )
        return MapResult(self._task.map_index, stats, (), 0, parts, counters)

    def _close(self) -> None:
        if self._shuffle is not None:
            self._shuffle.abort()
        if self._part is not None:
            self._part.abort()

    def _error_of(self, error: Exception, function: str, record: Any, position: int) -> CortexError:
        """The user's error with where the record stands; a bug of ours stays what it is."""
        if not user_frames(error) and not isinstance(error, TypeError | ValueError):
            raise error
        where: dict[str, Any] = {}
        if self._file is not None:
            where["file"] = self._file.path
        if position >= 0 and self._reader is not None and function == "map":
            offset, _ = self._reader.describe(position)
            if offset >= 0:
                where["offset"] = offset
        elif self._split is not None:
            where["split"] = f"{self._split.index} (offset {self._split.offset}, {self._split.length} bytes)"
        if not user_frames(error):
            if record is None or function != "map":
                raise error
            return ValueTypeError(
                f"map() must give (key, value) pairs: {error}",
                cure="yield pairs from map(): yield key, value",
                details={"record": repr(record), **where},
            )
        shown = record if function == "map" else f"a batch of {getattr(record, 'num_rows', 0)} rows"
        made: UserCodeError = user_error(
            error,
            function=function,
            code_name=self._program.spec.code_name,
            record=shown,
            where=where,
            call=f"map({record!r})" if function == "map" and position >= 0 else "",
        )
        return made


class Declared:
    """A declared map: the rows where `where` holds, and of them the columns that are used."""

    def __init__(self, program: Program) -> None:
        schema = program.empty_batch().schema
        self._where: Compiled | None = (
            compile_filter(program.where, schema) if program.where is not None else None
        )
        self._select = [(name, compile_expression(e, schema)) for name, e in program.selected]
        self._all = not program.spec.select

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self._where is not None:
            kept = self._where.evaluate(batch)
            if kept.null_count or pc.min(kept).as_py() is not True:
                batch = batch.filter(kept)
        if self._all:
            return batch
        columns = [compiled.evaluate(batch) for _, compiled in self._select]
        if not columns:
            return batch.select([])
        return pa.RecordBatch.from_arrays(columns, names=[name for name, _ in self._select])


def rows_of(batch: pa.RecordBatch) -> list[Any]:
    """The batch's rows as `Row` objects."""
    make = row_maker(tuple(batch.schema.names))
    return list(map(make, zip(*[to_python(column) for column in batch.columns])))

"""A map attempt: read its splits in order, apply the job's map, collect what comes out.

The three ways to say a map are one path: a reader yields blocks (lines, or record batches), the map
form makes pairs or batches of them, an emitter takes those. An attempt that fails leaves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cortex.errors import CortexError, KeyTypeError, ValueTypeError
from cortex.formats.input_bytes import announced
from cortex.formats.readers import Reader, open_reader
from cortex.job.plan import InputFile, Split
from cortex.kernels.expressions import Compiled, compile_expression, compile_filter
from cortex.shuffle.collector import Place, RowCollector
from cortex.tasks.pair_emitters import (
    FoldedPairs,
    PairEmitter,
    PairsToPart,
    PairsToShuffle,
    method_fold,
    pairs_error,
)
from cortex.tasks.part_output import PairWriter, PartWriter
from cortex.tasks.program import Program
from cortex.tasks.rows import not_python, rows_of
from cortex.tasks.shuffle_output import ShuffleOutput, user_placement
from cortex.tasks.table_emitters import (
    TableEmitter,
    TableToAggregates,
    TableToPart,
    TableToShuffle,
    batches_from,
)
from cortex.tasks.user_errors import USER_EXCEPTIONS, shorten, user_error, user_frames
from cortex.wire.messages import InputOrigin, MapResult, MapTask, TaskStats

_BLAME_S_MAX = 2.0  # to find the record whose pairs are at fault, by mapping again
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
        self._local_bytes = 0
        """Of those, of splits that nothing had to come for."""
        fetched = program.fetched
        self._fetched_before = fetched.node_bytes, fetched.client_bytes
        self._reader: Reader | None = None
        self._split: Split | None = None
        self._file: InputFile | None = None
        self._in_hand: tuple[Sequence[Any], int] = ((), 0)
        """Records that were given to the emitter last, and which of its block the first is."""
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
        except (CortexError, MemoryError):
            raise
        except USER_EXCEPTIONS as error:
            if program.spec.map_form != "declared":  # which has no code of the user's: it is a bug of ours
                self._raise_of(error, None, -1)
            raise
        finally:
            self._close()

    # --- emitters ---------------------------------------------------------------------------------

    def _open_part(self) -> PartWriter:
        program = self._program
        self._part = PartWriter(
            program.staging_dir, self._attempt, self._task.map_index, program.output_format, program.room
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
        self._emitter = PairsToShuffle(collector, place is not None, spec.reduce_form == "batch")
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
        files = program.plan.files
        for split in announced(self._task.splits, lambda split: files[split.file], program.soon):
            file = files[split.file]
            self._split, self._file = split, file
            reader = open_reader(
                file,
                split,
                program.plan.columns,
                block_bytes=block_bytes,
                as_lines=as_lines,
                open_input=program.open_input,
            )
            self._reader = reader
            far = program.fetched.total
            try:
                for block in reader:
                    yield block
                    self._report(reader)
            finally:
                self._bytes_done += reader.bytes_read
                if program.fetched.total == far:
                    self._local_bytes += reader.bytes_read
                reader.close()  # it still describes what it gave last

    def _report(self, reader: Reader | None) -> None:
        self._progress(self._stats(self._bytes_done + (reader.bytes_read if reader else 0)))

    def _stats(self, bytes_in: int) -> TaskStats:
        written = self._shuffle.bytes_written if self._shuffle else 0
        rows_out = self._emitter.rows_out if self._emitter else 0
        return TaskStats(rows_in=self._rows_in, bytes_in=bytes_in, rows_out=rows_out, spilled_bytes=written)

    def _run_rows(self, emitter: PairEmitter) -> None:
        map_record = self._program.code.map
        as_lines = self._program.text_input
        for block in self._blocks(as_lines):
            if as_lines:
                self._map_records(emitter, block, map_record, 0)
                continue
            for begin in range(0, block.num_rows, _ROWS_AT_ONCE):
                rows = self._rows_of(block.slice(begin, _ROWS_AT_ONCE), begin)
                self._map_records(emitter, rows, map_record, begin)
        try:
            emitter.flush()
        except (KeyTypeError, ValueTypeError) as error:
            self._raise_of_record(error)
            raise

    def _rows_of(self, batch: pa.RecordBatch, begin: int) -> list[Any]:
        """Rows of the block in hand, of which `begin` is the first."""
        try:
            return rows_of(batch)
        except pa.ArrowInvalid as error:
            row, found = not_python(batch)
            found.details = self._place(begin + row, text=True)
            raise found from error

    def _map_records(
        self,
        emitter: PairEmitter,
        records: Sequence[Any],
        map_record: Callable[[Any], Any],
        begin: int,
    ) -> None:
        self._in_hand = (records, begin)
        source = self._program.position.over(records)
        try:
            emitter.records(source, map_record)
        except (KeyTypeError, ValueTypeError) as error:
            self._raise_of_record(error)
            raise
        except (CortexError, MemoryError):
            raise
        except USER_EXCEPTIONS as error:
            # A generator's StopIteration may come after the last record: its iterator then has no length.
            position = len(records) - length_hint(source) - 1
            self._raise_of(error, records[position], begin + position)
            raise
        self._rows_in += len(records)

    def _raise_of_record(self, error: CortexError) -> None:
        """Raise the error of the record in hand whose pairs alone are at fault, if there is one.

        Pairs are checked a few thousand at once, and their types by column.
        """
        records, begin = self._in_hand
        until = time.monotonic() + _BLAME_S_MAX
        for position, record in enumerate(records):
            found = pairs_error(self._program.code.map, record)
            if found is not None:
                found.details = {"record": shorten(repr(record)), **self._place(begin + position)}
                raise found from error
            if time.monotonic() > until:
                break
        if len({split.file for split in self._task.splits}) == 1:  # else an earlier one may be to blame
            error.details = {**self._place(-1), **error.details}

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
            if "file" not in error.details and self._file is not None:
                row = None if error.batch_row is None else declared.row_read(error.batch_row)
                place = {"file": self._file.path} if row is None else self._place(row, text=True)
                error.details = {**place, **error.details}
            raise

    def _mapped(self, map_batch: Callable[[Any], Any], batch: pa.RecordBatch, emitter: TableEmitter) -> None:
        try:
            for made in batches_from(map_batch(batch), "map_batch()"):
                emitter.batch(made)
        except (CortexError, MemoryError):
            raise
        except USER_EXCEPTIONS as error:
            self._raise_of(error, batch, -1)
            raise

    # --- ends -------------------------------------------------------------------------------------

    def _commit(self) -> MapResult:
        stats = self._stats(self._bytes_done)
        counters = self._program.take_counters()
        assert self._emitter is not None
        types = self._emitter.types
        if self._shuffle is not None:
            made = self._shuffle.commit()
            self._shuffle = None
            stats = TaskStats(
                rows_in=stats.rows_in,
                bytes_in=stats.bytes_in,
                rows_out=stats.rows_out,
                bytes_out=made.raw_bytes,
                spilled_bytes=made.written_bytes,
            )
            rows, checksum = made.partition_rows, made.checksum
            origin = self._origin()
            return MapResult(self._task.map_index, stats, rows, checksum, (), counters, types, origin)
        assert self._part is not None
        parts = self._pairs.finish() if self._pairs is not None else self._part.finish()
        self._part = None
        stats = TaskStats(
            rows_in=stats.rows_in,
            bytes_in=stats.bytes_in,
            rows_out=sum(part.rows for part in parts),
            bytes_out=sum(part.size_bytes for part in parts),
        )
        return MapResult(self._task.map_index, stats, (), 0, parts, counters, types, self._origin())

    def _origin(self) -> InputOrigin:
        fetched, (node_bytes, client_bytes) = self._program.fetched, self._fetched_before
        return InputOrigin(
            self._local_bytes, fetched.node_bytes - node_bytes, fetched.client_bytes - client_bytes
        )

    def _close(self) -> None:
        if self._shuffle is not None:
            self._shuffle.abort()
        if self._part is not None:
            self._part.abort()

    def _place(self, position: int, text: bool = False) -> dict[str, str]:
        """Where a record of the block in hand stands (-1: which one is not known)."""
        place: dict[str, str] = {}
        if self._file is not None:
            place["file"] = self._file.path
        if position >= 0 and self._reader is not None:
            offset, said = self._reader.describe(position)
            if offset < 0:
                place["row"] = said
            else:
                place["offset"] = str(offset)
                if text:
                    place["line"] = said
        elif self._split is not None:
            place["split"] = f"{self._split.index} (offset {self._split.offset}, {self._split.length} bytes)"
        return place

    def _raise_of(self, error: BaseException, record: Any, position: int) -> None:
        """Raise the user's error with where the record stands; return for a bug of ours."""
        spec, code = self._program.spec, self._program.code
        rows = spec.map_form == "rows"
        if not user_frames(error):
            found = pairs_error(code.map, record) if rows and position >= 0 else None
            if found is None and rows and position >= 0 and isinstance(error, TypeError):
                found = ValueTypeError(
                    f"combine cannot take what map() yielded for this record: {error}",
                    cure="yield values that it takes, or write combine as a function of two values",
                )
            if found is None:
                return
            found.details = {"record": shorten(repr(record)), **self._place(position)}
            raise found from error
        if not rows:
            shown = None if record is None else f"a batch of {getattr(record, 'num_rows', 0)} rows"
        else:
            shown = shorten(repr(record)) if position >= 0 else None
        raise user_error(
            error,
            function="map" if rows else "map_batch",
            code=code,
            code_name=spec.code_name,
            where=self._place(position),
            record=shown,
            arguments=repr(record) if rows and position >= 0 else None,
        ) from error


class Declared:
    """A declared map: the rows where `where` holds, and of them the columns that are used."""

    def __init__(self, program: Program) -> None:
        schema = program.empty_batch().schema
        self._where: Compiled | None = (
            compile_filter(program.where, schema) if program.where is not None else None
        )
        self._select = [(name, compile_expression(e, schema)) for name, e in program.selected]
        self._all = not program.spec.select
        self._kept: pa.BooleanArray | None = None

    def row_read(self, row: int) -> int:
        """The row of the batch that was read, for a row of what is left of it."""
        if self._kept is None:
            return row
        return int(np.flatnonzero(pc.fill_null(self._kept, False).to_numpy(zero_copy_only=False))[row])

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        self._kept = None
        if self._where is not None:
            kept = self._where.evaluate(batch)
            if kept.null_count or pc.min(kept).as_py() is not True:
                batch = batch.filter(kept)
                self._kept = kept
        if self._all:
            return batch
        columns = [compiled.evaluate(batch) for _, compiled in self._select]
        if not columns:
            return batch.select([])
        return pa.RecordBatch.from_arrays(columns, names=[name for name, _ in self._select])

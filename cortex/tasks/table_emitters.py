"""Where the batches of a declared or batch-form map go: an output part, the shuffle, or an aggregation."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

import pyarrow as pa

from cortex.errors import ColumnError, ValueTypeError
from cortex.formats.row_sizes import bounded, total_size
from cortex.job.aggregates import AggregateCall
from cortex.job.expressions import Expression
from cortex.job.output_types import OutputTypes
from cortex.job.types import type_name
from cortex.kernels.columns import canonical_key, plain
from cortex.kernels.expressions import Compiled, compile_expression
from cortex.limits import BATCH_ROWS_MAX, MIB
from cortex.shuffle.aggregation import AggregateCollector, Aggregation
from cortex.shuffle.collector import RowCollector, RunSink
from cortex.shuffle.run_schema import ROWS, Layout
from cortex.tasks.held_columns import held, held_batch
from cortex.tasks.part_output import PartWriter
from cortex.tasks.user_errors import user_frames

_ARGUMENT_ROWS_MIN: Final = 1024  # of a batch, whose aggregates' arguments are made at once
_BATCH_BYTES: Final = 8 * MIB  # of what user code returned, at once: dictionaries grow when they are decoded


class TableEmitter(Protocol):
    rows_out: int

    @property
    def types(self) -> OutputTypes: ...
    def batch(self, batch: pa.RecordBatch) -> None: ...
    def flush(self) -> None: ...


class TableToPart:
    """A map-only job."""

    def __init__(self, part: PartWriter) -> None:
        self.rows_out = 0
        self._part = part

    @property
    def types(self) -> OutputTypes:
        return self._part.types

    def batch(self, batch: pa.RecordBatch) -> None:
        self.rows_out += batch.num_rows
        if batch.num_rows or self.rows_out == 0:  # an empty first batch gives an empty part its columns
            self._part.write(held_batch(batch))

    def flush(self) -> None:
        return None


class TableToShuffle:
    """Rows by their key columns, for a reduce_batch."""

    def __init__(self, collector: RowCollector, key_names: Sequence[str]) -> None:
        self.rows_out = 0
        self.types = OutputTypes()
        self._collector = collector
        self._key_names = tuple(key_names)
        self._layout: Layout | None = None

    def batch(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        self.rows_out += batch.num_rows
        keys = [key_column(batch, name) for name in self._key_names]
        others = [name for name in batch.schema.names if name not in self._key_names]
        payload = [held(name, batch.column(name)) for name in others]
        layout = Layout(
            "", tuple(k.type for k in keys), ROWS, tuple((n, p.type) for n, p in zip(others, payload))
        )
        if layout != self._layout:
            fields = (*zip(self._key_names, layout.key_types), *layout.payload_fields)
            self.types = self.types.joined(_table_types(fields))
            self._layout = layout
        self._collector.add(layout, keys, payload)

    def flush(self) -> None:
        self._collector.flush()


class TableToAggregates:
    """Rows folded to partial states of the job's aggregates, group by group.

    What the aggregates do not use may differ from batch to batch.
    """

    def __init__(
        self, sink: RunSink, budget_bytes: int, key_names: Sequence[str], calls: Sequence[AggregateCall]
    ) -> None:
        self.rows_out = 0
        self.types = OutputTypes()
        self._sink = sink
        self._budget_bytes = budget_bytes
        self._key_names = tuple(key_names)
        self._calls = list(calls)
        self._schema: pa.Schema | None = None
        self._key_types: list[pa.DataType] = []
        self._arguments: list[Compiled] = []
        self._collector: AggregateCollector | None = None

    def batch(self, batch: pa.RecordBatch) -> None:
        """Many arguments take far more than the columns they are made of: they are made of fewer rows."""
        step = max(_ARGUMENT_ROWS_MIN, self._budget_bytes // 4 // max(1, self._argument_bytes(batch)))
        for begin in range(0, batch.num_rows, step):
            self._add(batch.slice(begin, step))

    def _argument_bytes(self, batch: pa.RecordBatch) -> int:
        """About what the arguments of a row take."""
        arguments = {call.argument for call in self._calls if call.argument is not None}
        cells: int = batch.num_rows * batch.num_columns
        return len(arguments) * max(8, total_size(batch) // max(1, cells))

    def _add(self, batch: pa.RecordBatch) -> None:
        keys = [key_column(batch, name) for name in self._key_names]
        if self._schema is None or not batch.schema.equals(self._schema):
            self._take_schema(batch.schema, [key.type for key in keys])
        assert self._collector is not None
        self.rows_out += batch.num_rows
        arguments = [argument.evaluate(batch) for argument in self._arguments]
        self._collector.add("", keys, arguments, rows=batch.num_rows)

    def _take_schema(self, schema: pa.Schema, key_types: list[pa.DataType]) -> None:
        self._schema = schema
        self._arguments, aggregation = aggregation_of(self._calls, schema)
        types = _table_types(zip(self._key_names, key_types), aggregation.argument_types)
        self.types = self.types.joined(types)
        if self._collector is None or key_types != self._key_types:  # of a key that had no value
            self.flush()
            self._collector = AggregateCollector(self._sink, self._budget_bytes, aggregation)
            self._key_types = key_types

    def flush(self) -> None:
        if self._collector is not None:
            self._collector.flush()


def _table_types(fields: Iterable[tuple[str, pa.DataType]], values: str = "") -> OutputTypes:
    return OutputTypes("", values, tuple((name, type_name(kind)) for name, kind in fields))


def indexed_calls(
    calls: Sequence[AggregateCall],
) -> tuple[list[tuple[str, int | None]], list[Expression]]:
    """The calls as `AggregateSet` has them, and their distinct arguments."""
    arguments: list[Expression] = []
    indexed: list[tuple[str, int | None]] = []
    for call in calls:
        if call.argument is None:
            indexed.append((call.function, None))
            continue
        if call.argument not in arguments:
            arguments.append(call.argument)
        indexed.append((call.function, arguments.index(call.argument)))
    return indexed, arguments


def aggregation_of(calls: Sequence[AggregateCall], schema: pa.Schema) -> tuple[list[Compiled], Aggregation]:
    """The aggregates' distinct arguments, compiled for `schema`, and the aggregation over them."""
    indexed, arguments = indexed_calls(calls)
    compiled = [compile_expression(argument, schema) for argument in arguments]
    return compiled, Aggregation(indexed, [c.type for c in compiled])


def key_column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column as key: plain, equal values made identical. ColumnError if there is none of this name."""
    index = batch.schema.get_field_index(name)
    if index < 0:
        near = difflib.get_close_matches(name, batch.schema.names, 1)
        raise ColumnError(
            f"there is no key column {name!r}; the columns are {', '.join(batch.schema.names)}",
            cure=f"did you mean {near[0]!r}?" if near else "name a column that map returns",
        )
    return canonical_key(plain(batch.column(index)))


def batches_from(result: Any, function: str) -> Iterator[pa.RecordBatch]:
    """What user code returned for a batch, as record batches of bounded rows and bytes.

    A RecordBatch, a Table, anything with ``__arrow_c_array__`` or ``__arrow_c_stream__`` (pandas and
    Polars frames, DuckDB results), a dict of columns, None (nothing), or an iterable of these.
    """
    if result is None:
        return
    if isinstance(result, (list, tuple)) or (hasattr(result, "__next__") and not _is_table(result)):
        for part in result:
            yield from batches_from(part, function)
        return
    if not _is_table(result):
        raise ValueTypeError(
            f"{function} returned {type(result).__name__}, which is no table",
            cure="return a RecordBatch, a Table, a DataFrame, a dict of columns, or an iterable of them",
        )
    for batch in _batches_of(result, function):
        _refuse_equal_names(batch.schema.names, function)
        if not batch.num_rows:  # it says what the columns are
            yield batch
        yield from bounded(batch, BATCH_ROWS_MAX, _BATCH_BYTES)


def _is_table(result: Any) -> bool:
    return (
        isinstance(result, (pa.RecordBatch, pa.Table, dict))
        or hasattr(result, "__arrow_c_stream__")
        or hasattr(result, "__arrow_c_array__")
    )


def _batches_of(result: Any, function: str) -> Iterator[pa.RecordBatch]:
    """The record batches of one table. ValueTypeError if its columns make none."""
    try:
        if isinstance(result, pa.RecordBatch):
            yield result
        elif isinstance(result, pa.Table):
            yield from result.combine_chunks().to_batches(max_chunksize=BATCH_ROWS_MAX)
        elif isinstance(result, dict):
            yield pa.RecordBatch.from_pydict(result)
        elif hasattr(result, "__arrow_c_stream__"):
            yield from pa.RecordBatchReader.from_stream(result)
        else:
            yield pa.record_batch(result)
    except (pa.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, MemoryError) or user_frames(error):
            raise
        raise ValueTypeError(
            f"{function} returned a {type(result).__name__} that makes no table: {error}",
            cure="return columns of one length, each of values of one type",
        ) from error


def _refuse_equal_names(names: Sequence[str], function: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ColumnError(
            f"{function} returned two columns named {twice!r}", cure="give each column a name of its own"
        )

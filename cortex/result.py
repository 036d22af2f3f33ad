"""`Result`: the output rows of a finished job, read from its part files when asked for.

Rows come in output order (parts in order, rows as they are in each), which is the same for every split
size, memory and number of slots. Reading streams: a result may be larger than memory, except for
`to_arrow` and `to_pandas`.

A job with an output folder leaves its files there and the result only reads them. Without one the parts
are Arrow IPC files in a temporary folder that the result owns: it is removed by `close`, at the end of a
``with`` block, when the result is garbage collected and at exit.
"""

from __future__ import annotations

import functools
import os
import pickle
import weakref
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cortex.errors import InputError, UsageError, ValueTypeError
from cortex.job.protocol import FIELD_KIND, KEY_COLUMN, KIND_DECIMAL, KIND_PICKLE, KIND_TUPLE
from cortex.job.spec import JobSpec
from cortex.limits import DISPLAY_ROWS, MIB
from cortex.units import format_bytes, format_count, format_decimal, format_seconds
from cortex.wire.messages import Counters, JobReport, OutputPart

if TYPE_CHECKING:
    import pyarrow as pa

_READ_BYTES = 4 * MIB  # of a text-like part at a time: decoded it is a few times that


class Result:
    """Rows of a finished job: iterate over it, or take it to Arrow, pandas, Polars or DuckDB.

    Iteration gives ``(key, value)`` pairs with the Python values that the job yielded, or one tuple a row
    for tables. Written to text files (csv, tsv, jsonl, text), values read back have the columns' types.
    """

    def __init__(
        self,
        spec: JobSpec,
        report: JobReport,
        parts: Sequence[OutputPart],
        folder: str,
        remove: Callable[[], object] | None = None,
    ) -> None:
        """`folder` holds the parts. With `remove` it is temporary, they have their staged names, and the
        result removes it."""
        self._spec = spec
        self._report = report
        self._parts = tuple(parts)
        self._folder = folder
        self._temporary = remove is not None
        self._remove = weakref.finalize(self, remove) if remove is not None else None

    @property
    def report(self) -> JobReport:
        """What the job did: rows, bytes, stages, peak memory, slowest task."""
        return self._report

    @property
    def counters(self) -> Counters:
        """group -> name -> count, of the job's own counters."""
        return self._report.counters

    @property
    def path(self) -> str | None:
        """The output folder; None if the job had none."""
        return None if self._temporary else self._folder

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._parts[0].columns) if self._parts else ()

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns that say what a row is about; () where rows have no key (map-only jobs)."""
        if self._spec.reduce_form == "none":
            return ()
        names = (KEY_COLUMN,) if self._spec.map_form == "rows" else self._spec.group_by
        return tuple(name for name in names if name in self.columns)

    def close(self) -> None:
        """Remove the temporary files, if the result has any. It cannot be read afterwards."""
        if self._remove is not None:
            self._remove()

    def __enter__(self) -> Result:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return sum(part.rows for part in self._parts)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for batch in self.to_batches():
            yield from python_rows(batch)

    # --- Arrow ------------------------------------------------------------------------------------

    @property
    def schema(self) -> pa.Schema:
        """Columns of all parts. Cells of Python values that have no Arrow type are pickles (binary)."""
        return _unify([self._part_schema(part) for part in self._parts])

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """The rows as bounded record batches of one schema."""
        schema = self.schema
        for part in self._parts:
            for batch in self._part_batches(part):
                yield _conform(batch, schema)

    def to_arrow(self) -> pa.Table:
        import pyarrow as pa

        return pa.Table.from_batches(self.to_batches(), schema=self.schema)

    def to_pandas(self) -> Any:
        """A pandas DataFrame; needs pandas installed."""
        try:
            pd: Any = import_module("pandas")
        except ImportError:
            raise UsageError(
                "pandas is not installed", cure="pip install pandas, or use to_arrow()"
            ) from None
        table = self.to_arrow()
        frame = table.to_pandas()
        for name, field in zip(table.column_names, table.schema):
            if _kind(field):
                cells = [v for chunk in table[name].chunks for v in python_values(chunk, field)]
                frame[name] = pd.Series(cells, dtype=object)
        return frame

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        import pyarrow as pa

        reader = pa.RecordBatchReader.from_batches(self.schema, self.to_batches())
        return reader.__arrow_c_stream__(requested_schema)

    # --- parts ------------------------------------------------------------------------------------

    def _part_path(self, part: OutputPart) -> str:
        path = os.path.join(self._folder, part.staged_as if self._temporary else part.name)
        if not os.path.exists(path):
            gone = self._remove is not None and not self._remove.alive
            raise InputError(
                f"{path}: the result's file is gone",
                cure="read the result before close()" if gone else "run the job again",
            )
        return path

    def _part_schema(self, part: OutputPart) -> pa.Schema:
        import pyarrow as pa

        if self._spec.output.format == "arrow":
            with pa.OSFile(self._part_path(part)) as file, pa.ipc.open_file(file) as reader:
                return reader.schema
        if self._spec.output.format == "parquet":
            import pyarrow.parquet as pq

            return pq.read_schema(self._part_path(part))
        from cortex.job.types import arrow_type

        fields = [pa.field(name, arrow_type(kind)) for name, kind in part.columns]
        if self._spec.map_form == "rows" and self._spec.reduce_form != "batch":
            fields = [  # of a pair's columns only the key is a struct, and that is a tuple
                f.with_metadata({FIELD_KIND: KIND_TUPLE}) if pa.types.is_struct(f.type) else f for f in fields
            ]
        return pa.schema(fields)

    def _part_batches(self, part: OutputPart) -> Iterator[pa.RecordBatch]:
        form, path = self._spec.output.format, self._part_path(part)
        if form == "arrow":
            return _ipc_batches(path)
        if form == "parquet":
            return _parquet_batches(path)
        schema = self._part_schema(part)
        if form == "jsonl":
            return _json_batches(path, schema)
        return _delimited_batches(path, schema, form)

    # --- for people -------------------------------------------------------------------------------

    def first_rows(self, count: int = DISPLAY_ROWS) -> tuple[list[tuple[Any, ...]], int]:
        """The first `count` rows by key (in output order where rows have no key), and how many are left.

        Reads all rows when there is a key, and keeps only `count` of them and a batch in memory.
        """
        import pyarrow as pa

        keys = self.key_columns
        best: pa.Table | None = None
        for batch in self.to_batches():
            table = pa.Table.from_batches([batch])
            if best is None:
                best = _smallest(table, keys, count)
            elif keys:
                candidates = _below_worst(best, table, keys, count)
                if candidates.num_rows:
                    best = _smallest(pa.concat_tables([best, candidates]), keys, count)
            elif best.num_rows < count:
                best = pa.concat_tables([best, table]).slice(0, count)
            if not keys and best.num_rows >= count:
                break
        batches = [] if best is None else best.combine_chunks().to_batches()
        rows = [row for batch in batches for row in python_rows(batch)]
        return rows, len(self) - len(rows)

    def __repr__(self) -> str:
        where = self.path or "a temporary folder"
        size = format_bytes(sum(part.size_bytes for part in self._parts))
        rows = f"{format_count(len(self))} rows ({', '.join(self.columns)})"
        return (
            f"<cortex.Result of {self._spec.name}: {rows}, {size} in {where},"
            f" {format_seconds(self._report.seconds)}>"
        )

    def _repr_html_(self) -> str:
        rows, more = self.first_rows()
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(display(value))}</td>" for value in row) + "</tr>" for row in rows
        )
        rest = f"<p>and {format_count(more)} more rows</p>" if more else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def display(value: Any) -> str:
    """One cell as a person reads it: null for None, text as it is."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return format_decimal(value) if isinstance(value, Decimal) else str(value)


# --- cells as Python values -------------------------------------------------------------------------


def _kind(field: pa.Field) -> bytes:
    kind: bytes = (field.metadata or {}).get(FIELD_KIND, b"")
    return kind


def is_pickled(field: pa.Field) -> bool:
    """True for a column of Python values that Arrow has no type for."""
    return _kind(field) == KIND_PICKLE


def python_values(column: pa.Array, field: pa.Field, inside_tuple: bool = False) -> list[Any]:
    """A column's cells as the Python values that the job yielded. Structs in tuples are tuples."""
    import pyarrow as pa

    kind = _kind(field)
    if kind == KIND_PICKLE:
        return [None if cell is None else pickle.loads(cell) for cell in column.to_pylist()]
    if kind == KIND_DECIMAL:
        return [None if cell is None else Decimal(cell) for cell in column.to_pylist()]
    if kind == KIND_TUPLE or (inside_tuple and pa.types.is_struct(column.type)):
        if not column.type.num_fields:
            return [()] * len(column)
        # flatten, not field(): it knows the slice's offset and the struct's own nulls
        inner = [python_values(c, column.type.field(i), True) for i, c in enumerate(column.flatten())]
        valid = column.is_valid().to_pylist()
        return [cell if ok else None for cell, ok in zip(zip(*inner), valid)]
    from cortex.kernels.casts import python_list

    try:
        return python_list(column)
    except pa.ArrowInvalid as error:
        raise ValueTypeError(
            f"column {field.name!r} has no Python value: {error}",
            cure="take it as Arrow, with to_arrow() or to_batches(), or write it in the format parquet",
        ) from error


def python_rows(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    if batch.num_columns == 0:
        return iter([()] * batch.num_rows)
    return zip(*(python_values(column, field) for column, field in zip(batch.columns, batch.schema)))


# --- one schema for all parts -----------------------------------------------------------------------


def _unify(schemas: list[pa.Schema]) -> pa.Schema:
    """Columns by position; one that has no value in some parts takes the others' type."""
    import pyarrow as pa

    from cortex.kernels.wider import wider_schema

    if not schemas:
        return pa.schema([])
    fields = functools.reduce(wider_schema, schemas)
    return pa.schema([f.with_metadata({FIELD_KIND: _kind(f)} if _kind(f) else None) for f in fields])


def _conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    from cortex.kernels.wider import widened_batch

    return widened_batch(batch, schema) if batch.num_columns else batch


# --- first rows by key ------------------------------------------------------------------------------


def _leaves(table: pa.Table, keys: Sequence[str]) -> Iterator[Any]:
    """The key as columns that sort: tuples by their items, booleans as 0 and 1, Decimals by their number:
    the nearest float, which tells most of them apart, then the place among those of this table."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = [(table[name], table.schema.field(name)) for name in keys]
    while columns:
        column, field = columns.pop(0)
        if pa.types.is_struct(column.type):
            inner = enumerate(column.type)
            columns[:0] = [(pc.struct_field(column, [i]), field) for i, field in inner]
        elif _kind(field) == KIND_DECIMAL:
            yield pc.cast(column, pa.float64())
            yield _places(column)
        elif pa.types.is_boolean(column.type):
            yield pc.cast(column, pa.uint8())
        elif not pa.types.is_null(column.type):
            yield column


def _places(texts: Any) -> pa.Array:
    """The place of each Decimal among all in the column; null for null and NaN."""
    import pyarrow as pa

    cells = texts.to_pylist()
    numbers = {cell: Decimal(cell) for cell in set(cells) - {None}}
    in_order = sorted((n, cell) for cell, n in numbers.items() if not n.is_nan())
    place = {cell: i for i, (_, cell) in enumerate(in_order)}
    return pa.array([place.get(cell) for cell in cells], pa.int64())


def _smallest(table: pa.Table, keys: Sequence[str], count: int) -> pa.Table:
    """The first `count` rows by key, rows with equal keys in their order; nulls last."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    leaves = list(_leaves(table, keys))
    if not leaves:
        return table.slice(0, count)
    names = [str(i) for i in range(len(leaves) + 1)]
    numbers = pa.chunked_array([pa.array(np.arange(table.num_rows))])
    sortable = pa.table([*leaves, numbers], names=names)
    order = pc.sort_indices(sortable, sort_keys=[(name, "ascending") for name in names])
    return table.take(order.slice(0, count))


def _below_worst(best: pa.Table, table: pa.Table, keys: Sequence[str], count: int) -> pa.Table:
    """The rows of `table` that may come before the last row of `best`: a cheap test on one column."""
    import pyarrow.compute as pc

    first = next(_leaves(best, keys), None)
    if best.num_rows < count or first is None:
        return table
    worst = first[best.num_rows - 1]
    value = worst.as_py()
    if value is None or value != value:  # null and NaN come last: anything may be before them
        return table
    return table.filter(pc.less_equal(next(_leaves(table, keys)), worst))


# --- reading part files -----------------------------------------------------------------------------


def _ipc_batches(path: str) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    with pa.OSFile(path) as file, pa.ipc.open_file(file) as reader:
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


def _parquet_batches(path: str) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(use_threads=False)


def _delimited_batches(path: str, schema: pa.Schema, form: str) -> Iterator[pa.RecordBatch]:
    """csv and tsv have a header and quotes; text has neither."""
    import pyarrow as pa
    import pyarrow.csv as csv

    if os.path.getsize(path) == 0:
        return
    text = form == "text"
    nested = [i for i, field in enumerate(schema) if pa.types.is_nested(field.type)]
    read_as = schema
    for i in nested:
        read_as = read_as.set(i, pa.field(schema.names[i], pa.string()))
    try:
        reader = csv.open_csv(
            path,
            read_options=csv.ReadOptions(
                use_threads=False, block_size=_READ_BYTES, column_names=schema.names if text else None
            ),
            parse_options=csv.ParseOptions(
                delimiter="," if form == "csv" else "\t",
                quote_char=False if text else '"',
                double_quote=not text,
                newlines_in_values=not text,
                ignore_empty_lines=len(schema) > 1,
            ),
            convert_options=csv.ConvertOptions(
                column_types=read_as,
                null_values=[""],
                strings_can_be_null=not text,
                quoted_strings_can_be_null=False,
            ),
        )
        for batch in reader:
            columns = list(batch.columns)
            for i in nested:
                columns[i] = _from_json(columns[i], schema.field(i).type)
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{path}: the result cannot be read back: {error}", cure="run the job again"
        ) from None


def _json_batches(path: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    import msgspec
    import pyarrow as pa

    decode = msgspec.json.Decoder().decode
    with open(path, "rb") as file:
        while lines := file.readlines(_READ_BYTES):
            rows = [decode(line) for line in lines]
            columns = [_json_column([row.get(f.name) for row in rows], f.type) for f in schema]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _from_json(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    import msgspec

    decode = msgspec.json.Decoder().decode
    return _json_column([None if text is None else decode(text) for text in texts.to_pylist()], kind)


def _json_column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """JSON has no dates, decimals or bytes: their text is cast to the column's type. Nor has it tuples:
    an array in a column of structs is one."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        inner = [
            _json_column([_item(value, i, kind.field(i).name) for value in values], kind.field(i).type)
            for i in range(kind.num_fields)
        ]
        nulls = pa.array([value is None for value in values], pa.bool_())
        if not inner:
            return pa.array([None if value is None else {} for value in values], kind)
        return pa.StructArray.from_arrays(inner, fields=list(kind), mask=nulls)
    if pa.types.is_string(kind):
        values = [v if v is None or isinstance(v, str) else _json_text(v) for v in values]
    elif any(isinstance(value, str) for value in values):
        return pa.array(values, pa.string()).cast(kind)
    return pa.array(values, kind)


def _json_text(value: Any) -> str:
    import msgspec

    return msgspec.json.encode(value).decode()


def _item(value: Any, position: int, name: str) -> Any:
    if value is None:
        return None
    return value[position] if isinstance(value, list) else value.get(name)

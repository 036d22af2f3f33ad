"""Columns without a value: their type is null until one shows itself, and then it is that value's.

The type of a null column is never chosen by how many rows were looked at. A file that has such columns is
written again when their type is known (`Writer.widen`); parts that do not agree otherwise are an error.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.types as pt

from cortex.errors import ColumnError


def wider_schema(first: pa.Schema, second: pa.Schema) -> pa.Schema:
    """The schema of rows of both. Raises ColumnError for other columns, or types other than null."""
    fields = [_wider_field(a, b) for a, b in zip(first, second)]
    if first.names != second.names or any(field is None for field in fields):
        raise ColumnError(
            f"output batches of different columns: first ({_columns(first)}), then ({_columns(second)})",
            cure="return batches of one schema, for example by casting the columns",
        )
    return pa.schema(fields)


def _wider_field(first: pa.Field, second: pa.Field) -> pa.Field | None:
    """The field that has a type, also within structs: Python tuples are such."""
    if first.type == second.type or pt.is_null(second.type):
        return first
    if pt.is_null(first.type):
        return second
    if not (pt.is_struct(first.type) and pt.is_struct(second.type)):
        return None
    inner = [_wider_field(a, b) for a, b in zip(first.type, second.type)]
    if first.type.names != second.type.names or any(field is None for field in inner):
        return None
    return first.with_type(pa.struct(inner))


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def widened(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch under a schema that `wider_schema` gave."""
    columns = [_widened(column, field.type) for column, field in zip(batch.columns, schema)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _widened(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    if pt.is_null(column.type):
        return pa.nulls(len(column), kind)
    inner = [_widened(child, field.type) for child, field in zip(column.flatten(), kind)]
    nulls = column.is_null() if column.null_count else None
    return pa.StructArray.from_arrays(inner, fields=list(kind), mask=nulls)


def reread(path: str, format_: str) -> Iterator[pa.RecordBatch]:
    """The batches of a finished parquet or arrow file."""
    if format_ == "parquet":
        import pyarrow.parquet as pq  # 20 ms: see `columnar_writers`

        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(use_threads=False)
        return
    with pa.OSFile(path) as file, pa.ipc.open_file(file) as reader:
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)

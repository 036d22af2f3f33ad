"""Columns without a value: their type is null until one shows itself, and then it is that value's.

Also within structs, which Python's tuples are. Types that differ otherwise do not go together.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.types as pt

from cortex.errors import ColumnError


def wider_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """The type of a column of rows of both; None if there is none."""
    field = _wider_field(pa.field("", first), pa.field("", second))
    return None if field is None else field.type


def _wider_field(first: pa.Field, second: pa.Field) -> pa.Field | None:
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


def wider_schema(first: pa.Schema, second: pa.Schema) -> pa.Schema:
    """The schema of rows of both. Raises ColumnError for other columns, or types other than null."""
    fields = [_wider_field(a, b) for a, b in zip(first, second)]
    if first.names != second.names or any(field is None for field in fields):
        raise ColumnError(
            f"output batches of different columns: first ({_columns(first)}), then ({_columns(second)})",
            cure="return batches of one schema, for example by casting the columns",
        )
    return pa.schema(fields)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def widened_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch under a schema that `wider_schema` gave."""
    columns = [widened(column, field.type) for column, field in zip(batch.columns, schema)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def widened(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column under a type that `wider_type` gave."""
    if column.type == kind:
        return column
    if pt.is_null(column.type):
        return pa.nulls(len(column), kind)
    inner = [widened(child, field.type) for child, field in zip(column.flatten(), kind)]
    nulls = column.is_null() if column.null_count else None
    return pa.StructArray.from_arrays(inner, fields=list(kind), mask=nulls)

"""A batch's rows as the `Row` objects that ``map`` gets, and which of its values has no Python form."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from cortex.errors import InputError
from cortex.job.row import row_maker
from cortex.job.types import columns_line
from cortex.shuffle.keys import to_python


def rows_of(batch: pa.RecordBatch) -> list[Any]:
    """Raises pa.ArrowInvalid for a value that has no Python form: see `not_python`."""
    make = row_maker(tuple(batch.schema.names))
    return list(map(make, zip(*[to_python(column) for column in batch.columns])))


def not_python(batch: pa.RecordBatch) -> tuple[int, InputError]:
    """(row, what is wrong with it) of a batch that `rows_of` refuses."""
    for name, column in zip(batch.schema.names, batch.columns):
        for row in range(len(column)):
            try:
                to_python(column.slice(row, 1))
            except pa.ArrowInvalid as error:
                return row, InputError(
                    f"column {name!r} has no Python value: {error}", cure=_cure(name, column.type)
                )
    raise AssertionError("every value has a Python form")


def _cure(name: str, kind: pa.DataType) -> str:
    if pa.types.is_nested(kind):
        return "write map_batch or a declared job: they take Arrow's values as they are"
    number = "int32" if kind.bit_width == 32 else "int64"
    return f"{columns_line(name, 'string')}, or {number} in a Parquet or Arrow file"

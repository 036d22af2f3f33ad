"""Columns as text: what CSV, TSV, text and JSON Lines output write for each value, a column at a time.

A null stays null (the formats write it their own way). Floats are the shortest text that reads back to
the same value, always recognisable as floats (``1.0``, ``1e+20``, ``-0.0``, ``nan``, ``inf``); bool is
``true`` or ``false``; dates and times are ISO 8601 with a ``T`` (and a zone where the type has one), an
error where they lie beyond its years; bytes must be UTF-8; decimals are exact; durations are counts of
their unit; lists, structs and maps are JSON, a Python tuple a JSON array.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cortex.errors import ValueTypeError
from cortex.job.protocol import FIELD_KIND, KIND_TUPLE
from cortex.job.types import type_name
from cortex.kernels.casts import moment_text, python_list

_is = pa.types
_EXPONENT_FROM: Final = 1e6  # smaller whole numbers have no exponent in Arrow's text


def field_text(field: pa.Field, column: pa.Array) -> pa.Array:
    """`text_of`, for a column whose field may say that its structs are Python tuples."""
    if (field.metadata or {}).get(FIELD_KIND) != KIND_TUPLE:
        return text_of(field.name, column)
    return _json_cells(field.name, column, tuples=True)


def _tuple(value: Any) -> Any:
    """Within a tuple every struct is one."""
    return [_tuple(item) for item in value.values()] if isinstance(value, dict) else value


def text_of(name: str, column: pa.Array) -> pa.Array:
    """The column as pa.string(); `name` is for errors."""
    kind = column.type
    if _is.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if _is.is_string(kind):
        return column
    if _is.is_binary(kind) or _is.is_large_binary(kind) or _is.is_fixed_size_binary(kind):
        return _utf8(name, column)
    if _is.is_nested(kind):
        return _json_cells(name, column)
    try:
        return _plain_text(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _unwritable(name, kind, error) from error


def _plain_text(column: pa.Array) -> pa.Array:
    kind = column.type
    if _is.is_floating(kind):
        return _float_text(column)
    if _is.is_timestamp(kind):
        return pc.replace_substring(moment_text(column), " ", "T", max_replacements=1)
    if _is.is_date(kind) or _is.is_time(kind):
        return moment_text(column)
    if _is.is_duration(kind):
        return column.cast(pa.int64()).cast(pa.string())
    return column.cast(pa.string())


def _unwritable(name: str, kind: pa.DataType, error: pa.ArrowException) -> ValueTypeError:
    return ValueTypeError(
        f"column {name!r}: {type_name(kind)} cannot be written as text: {error}",
        cure="use the format parquet or arrow",
    )


def _float_text(column: pa.Array) -> pa.Array:
    if _is.is_float16(column.type):
        column = column.cast(pa.float32())
    text = column.cast(pa.string())
    # Arrow writes 1.0 as 1 and -0.0 as -0: a reader would take the column for integers. A whole number is
    # written as digits alone, or with an exponent.
    values = column.to_numpy(zero_copy_only=False)  # null is NaN there, which is not whole
    whole = np.isfinite(values) & (values == np.trunc(values))
    if not whole.any():
        return text
    if np.abs(values[whole]).max() >= _EXPONENT_FROM:
        whole &= ~pc.match_substring(text, "e").to_numpy(zero_copy_only=False).astype(bool)
    return pc.if_else(pa.array(whole), pc.binary_join_element_wise(text, ".0", ""), text)


def _utf8(name: str, column: pa.Array) -> pa.Array:
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise ValueTypeError(
            f"column {name!r} has bytes that are not UTF-8: a text format cannot hold them",
            cure="use the format parquet or arrow, or return text (bytes.hex(), base64)",
        ) from error


def _json_cells(name: str, column: pa.Array, *, tuples: bool = False) -> pa.Array:
    try:
        values = python_list(column)
    except pa.ArrowInvalid as error:
        raise _unwritable(name, column.type, error) from error
    if tuples:
        values = [_tuple(value) for value in values]
    return pa.array([None if v is None else json_text(name, v) for v in values], pa.string())


def json_text(name: str, value: Any) -> str:
    """One Python value as JSON. NaN and infinities, which JSON has not, are null."""
    try:
        return msgspec.json.encode(_plain(value)).decode()
    except (TypeError, UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ValueTypeError(
            f"column {name!r}: {value!r:.200} cannot be written as JSON: {error}",
            cure="use the format parquet or arrow",
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

"""Python values as one Arrow column and back.

A chunk of values of one exact type (None allowed beside it) keeps an Arrow type; anything else, and
ints beyond 64 bits, is pickled cell by cell. Unlike keys, values are never changed on the way: a NaN
or -0.0 comes back as it went. The tag that says how a column was made travels in its field's metadata.
"""

from __future__ import annotations

import datetime as dt
import pickle
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from cortex.errors import ValueTypeError
from cortex.shuffle.keys import to_python

PICKLE = "pickle"
NONE = "none"
_NONE_TYPE = type(None)
_ARROW: dict[type, tuple[str, pa.DataType]] = {
    bool: ("bool", pa.bool_()),
    int: ("int", pa.int64()),
    float: ("float", pa.float64()),
    str: ("str", pa.string()),
    bytes: ("bytes", pa.binary()),
    dt.date: ("date", pa.date32()),
}
ARROW_TYPES: dict[str, pa.DataType] = dict(_ARROW.values()) | {
    NONE: pa.null(),
    PICKLE: pa.binary(),
    "datetime": pa.timestamp("us"),
}


def encode_values(values: Sequence[Any]) -> tuple[str, pa.Array]:
    """(tag, column). Raises ValueTypeError for a value that cannot be pickled."""
    kinds = set(map(type, values)) - {_NONE_TYPE}
    if not kinds:
        return NONE, pa.nulls(len(values))
    if len(kinds) == 1:
        kind = next(iter(kinds))
        if kind in _ARROW:
            tag, arrow = _ARROW[kind]
            try:
                return tag, pa.array(values, type=arrow, from_pandas=False)
            except (OverflowError, pa.ArrowInvalid, UnicodeEncodeError):
                pass  # ints beyond 64 bits, lone surrogates: pickled below, unchanged
        elif kind is dt.datetime and all(v is None or (v.tzinfo is None and not v.fold) for v in values):
            return "datetime", pa.array(values, type=pa.timestamp("us"))
    return PICKLE, _pickled(values)


def _pickled(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array([pickle.dumps(v, protocol=5) for v in values], type=pa.binary())
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        for value in values:
            try:
                pickle.dumps(value, protocol=5)
            except (pickle.PicklingError, TypeError, AttributeError):
                raise ValueTypeError(
                    f"a value of type {type(value).__name__} cannot be sent to a reducer: {error}",
                    cure="yield plain values (numbers, text, tuples, lists, dicts)",
                ) from error
        raise


def decode_values(tag: str, column: pa.Array) -> list[Any]:
    """The values that were encoded with this tag."""
    if tag == PICKLE:
        return [pickle.loads(cell) for cell in to_python(column)]
    return to_python(column)


def common_tag(tags: Sequence[str]) -> str:
    """The tag under which values of all these tags can stand in one column."""
    kinds = set(tags) - {NONE}
    return NONE if not kinds else kinds.pop() if len(kinds) == 1 else PICKLE


def retag(tag: str, column: pa.Array, wanted: str) -> pa.Array:
    """The same values under the tag `wanted`, which `common_tag` gave."""
    if tag == wanted:
        return column
    if tag == NONE and wanted != PICKLE:
        return pa.nulls(len(column), ARROW_TYPES[wanted])
    return _pickled(decode_values(tag, column))


def tag_of(kind: pa.DataType) -> str:
    """The tag of values that have an Arrow type of their own."""
    return next(tag for tag, arrow in ARROW_TYPES.items() if arrow == kind)

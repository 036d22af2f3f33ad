"""Python values of row-form code as one column of output, under the exact-type rule of keys.

Decimals are exact text (their scales differ, and a decimal column has one), aware datetimes are instants in
UTC. What Arrow has no type for (tuples, lists, dicts, sets) is JSON text in a file, and a pickle in a result
that is shown, for the submitting client.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pyarrow as pa

from cortex.errors import ValueTypeError
from cortex.job.protocol import FIELD_KIND, KIND_DECIMAL, KIND_JSON, KIND_PICKLE
from cortex.shuffle.values import PICKLE, encode_values
from cortex.tasks.user_errors import shorten

JSON = "json"
_DECIMAL = "Decimal"
_TEXTS = (_DECIMAL, "time", "UUID")
_OTHER = "other than numbers and text"
_SCALARS: dict[type, str] = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    bytes: "bytes",
    dt.date: "date",
    dt.datetime: "datetime",
    Decimal: _DECIMAL,
    dt.time: "time",
    UUID: "UUID",
}
_ZONED: dict[str, pa.DataType] = {
    "naive datetime": pa.timestamp("us"),
    "aware datetime": pa.timestamp("us", "UTC"),
}


def encode_output(values: Sequence[Any], python_values: bool) -> tuple[str, pa.Array]:
    """(tag, column). `python_values`: of a result that is shown, not stored.

    Raises ValueTypeError for values of different types, or without a form in a file. Decided for each value,
    never for how they came in chunks: the tags of two chunks differ exactly if their types do.
    """
    kind = _one_kind(values)
    if kind in _ZONED:
        return kind, pa.array(values, type=_ZONED[kind])
    if kind == _DECIMAL or (kind in _TEXTS and not python_values):
        return kind, pa.array([None if v is None else str(v) for v in values], type=pa.string())
    if kind == _OTHER and not python_values:
        return JSON, pa.array([None if v is None else _json(v) for v in values], type=pa.string())
    tag, column = encode_values(values)
    if tag == PICKLE and kind in ("int", "str"):
        bad = next(v for v in values if v is not None and encode_values([v])[0] == PICKLE)
        raise ValueTypeError(
            f"the output value {shorten(repr(bad))} has no column type: "
            + ("it does not fit in 64 bits" if kind == "int" else "it is not valid Unicode"),
            cure="yield str(value)" if kind == "int" else "yield bytes",
        )
    return tag, column


def value_metadata(tag: str) -> dict[bytes, bytes] | None:
    """What a field of values with this tag says of them, where its Arrow type does not."""
    kind = {_DECIMAL: KIND_DECIMAL, JSON: KIND_JSON, PICKLE: KIND_PICKLE}.get(tag)
    return None if kind is None else {FIELD_KIND: kind}


def spoken(tag: str) -> str:
    """A tag in an error."""
    return _OTHER if tag in (JSON, PICKLE) else tag


def _one_kind(values: Sequence[Any]) -> str:
    """The kind of all the values but None; "" for None alone."""
    types = set(map(type, values)) - {type(None)}
    kinds = {_SCALARS.get(each, _OTHER) for each in types}
    if kinds == {"datetime"}:
        kinds = {_kind(value) for value in values if value is not None}
    if len(kinds) > 1:
        first = next(v for v in values if v is not None)
        other = next(v for v in values if v is not None and _kind(v) != _kind(first))
        raise ValueTypeError(
            f"output values of different types: {shorten(repr(first))} is {_named(first)}, "
            f"{shorten(repr(other))} is {_named(other)}",
            cure="yield values of one type, for example always "
            + ("aware datetimes" if type(first) is type(other) else f"{type(other).__name__}(value)"),
        )
    return kinds.pop() if kinds else ""


def _kind(value: Any) -> str:
    kind = _SCALARS.get(type(value), _OTHER)
    if kind != "datetime":
        return kind
    return "naive datetime" if value.tzinfo is None else "aware datetime"


def _named(value: Any) -> str:
    kind = _kind(value)
    return kind if kind in _ZONED else type(value).__name__


def _json(value: Any) -> str:
    try:
        return msgspec.json.encode(value, order="deterministic").decode()  # of a set, as of any other value
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueTypeError(
            f"an output value of type {type(value).__name__} cannot be written to a file: {error}",
            cure="yield numbers, text, or lists, tuples and dicts of these",
        ) from None

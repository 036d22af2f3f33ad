"""Python keys as Arrow columns and back, with one exact type for all keys of a job.

A key is None, bool, int, float, str, bytes, date, datetime, Decimal, or a tuple of these. Exact types
are checked before Arrow could coerce (``[1, 2.5]`` would become double, ``True`` would equal ``1``),
and each run carries its key type, so that runs of different maps are checked against each other.

A key type is text (`cortex.job.output_types`). A key of type T occupies one column, a tuple one column for
each leaf.

NumPy's scalars, and instances of subclasses of int, float, Decimal, str and bytes, count as the plain values
they stand for (`cortex.shuffle.scalars`).

Decimals travel as text without trailing zeros, because equal decimals may be written differently;
aware datetimes as UTC, because equal instants are equal keys.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from cortex.errors import KeyTypeError
from cortex.job.output_types import key_parts
from cortex.job.protocol import FIELD_KIND, KIND_DECIMAL, KIND_TUPLE
from cortex.kernels.casts import python_list
from cortex.kernels.columns import canonical_key
from cortex.shuffle.scalars import plain_values
from cortex.units import format_decimal

_NONE = type(None)
_ARROW: dict[str, pa.DataType] = {
    "none": pa.null(),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "str": pa.string(),
    "bytes": pa.binary(),
    "date": pa.date32(),
    "datetime": pa.timestamp("us"),
    "datetime+tz": pa.timestamp("us", "UTC"),
    "Decimal": pa.string(),
}
_NAMES: dict[type, str] = {
    _NONE: "none",
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    bytes: "bytes",
    dt.date: "date",
    dt.datetime: "datetime",
    Decimal: "Decimal",
}
_ALLOWED = "None, bool, int, float, str, bytes, date, datetime, Decimal or a tuple of these"


def encode_keys(keys: Sequence[Any]) -> tuple[str, list[pa.Array]]:
    """The key type and its columns (each as long as `keys`).

    Raises KeyTypeError for a type that cannot be a key and for keys of different types.
    """
    kinds = set(map(type, keys))
    if tuple in kinds:
        return _encode_tuples(keys, kinds)
    kind, column = encode_scalars(keys, kinds)
    return kind, [column]


def _encode_tuples(keys: Sequence[Any], kinds: set[type]) -> tuple[str, list[pa.Array]]:
    if len(kinds) > 1:
        other = next(k for k in keys if type(k) is not tuple)
        raise _mixed(next(k for k in keys if type(k) is tuple), other)
    widths = set(map(len, keys))
    if len(widths) > 1:
        first = keys[0]
        raise _mixed(first, next(k for k in keys if len(k) != len(first)))
    inner: list[str] = []
    columns: list[pa.Array] = []
    for position in zip(*keys) if widths != {0} else ():
        kind, arrays = encode_keys(position)
        inner.append(kind)
        columns.extend(arrays)
    if not columns:  # the empty tuple: one group of all rows
        columns = [pa.nulls(len(keys))]
    return f"tuple({','.join(inner)})", columns


def encode_scalars(keys: Sequence[Any], kinds: set[type]) -> tuple[str, pa.Array]:
    """One column of scalars whose types are `kinds`; None is null."""
    keys, kinds = plain_values(keys, kinds)
    plain = kinds - {_NONE}
    if len(plain) > 1:
        first = next(k for k in keys if k is not None)
        raise _mixed(first, next(k for k in keys if k is not None and type(k) is not type(first)))
    kind = _NAMES.get(next(iter(plain)), "") if plain else "none"
    if not kind:
        bad = next(k for k in keys if k is not None)
        raise KeyTypeError(
            f"a key of type {type(bad).__name__} ({_short(bad)}) cannot be a key",
            cure=f"yield a key that is {_ALLOWED}; convert others, for example with str(key) or tuple(key)",
        )
    if kind == "datetime":
        kind, keys = _datetimes(keys)
    elif kind == "Decimal":
        keys = [None if k is None else canonical_decimal(k) for k in keys]
    try:
        column = pa.array(keys, type=_ARROW[kind], from_pandas=False)
    except (OverflowError, pa.ArrowInvalid) as error:
        if kind == "int":
            bad = next(k for k in keys if k is not None and not -(2**63) <= k < 2**63)
            raise KeyTypeError(
                f"the int key {_short(bad)} does not fit in 64 bits", cure="yield str(key) or Decimal(key)"
            ) from None
        raise KeyTypeError(f"keys cannot be stored: {error}", cure=f"a key is {_ALLOWED}") from None
    except UnicodeEncodeError as error:
        raise KeyTypeError(
            f"the str key {_short(error.object)} holds a lone surrogate and has no UTF-8 form",
            cure="yield bytes, or key.encode('utf-8', 'surrogateescape')",
        ) from None
    return kind, canonical_key(column)


def _datetimes(keys: Sequence[Any]) -> tuple[str, Sequence[Any]]:
    aware = {k.tzinfo is not None for k in keys if k is not None}
    if len(aware) > 1:
        first = next(k for k in keys if k is not None)
        other = next(k for k in keys if k is not None and (k.tzinfo is None) != (first.tzinfo is None))
        raise _mixed(first, other)
    return ("datetime+tz" if True in aware else "datetime"), keys


def canonical_decimal(value: Decimal) -> str:
    """Equal decimals give equal text, whatever the context's precision: 1.0, 1.00 and 1 are ``1``."""
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        return "NaN" if value.is_nan() else str(value)
    kept = list(digits)
    while len(kept) > 1 and kept[-1] == 0:
        kept.pop()
        exponent += 1
    if kept == [0]:
        return "0"
    return format_decimal(Decimal((sign, tuple(kept), exponent)))


def leaf_types(kind: str) -> list[pa.DataType]:
    """Arrow types of the columns of a key type."""
    if not kind.startswith("tuple("):
        return [_ARROW[kind]]
    return [leaf for part in key_parts(kind) for leaf in leaf_types(part)] or [pa.null()]


def decode_keys(kind: str, columns: Sequence[pa.Array]) -> list[Any]:
    """The keys, as Python values of the type they were encoded from."""
    return _decode(kind, iter(columns))


def _decode(kind: str, columns: Iterable[pa.Array]) -> list[Any]:
    source = iter(columns)
    if not kind.startswith("tuple("):
        values = to_python(next(source))
        return [None if v is None else Decimal(v) for v in values] if kind == "Decimal" else values
    parts = key_parts(kind)
    if not parts:
        return [() for _ in range(len(next(source)))]
    return list(zip(*[_decode(part, source) for part in parts]))


def to_python(column: pa.Array) -> list[Any]:
    """`python_list`, several times faster for the common types."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        values: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
    elif column.null_count == 0 and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        values = column.to_numpy(zero_copy_only=True).tolist()
    else:
        values = python_list(column)
    return values


def key_array(kind: str, columns: Sequence[pa.Array]) -> pa.Array:
    """The keys as one column for output: tuples become a struct with fields ``f0``, ``f1`` ..."""
    return _key_array(kind, iter(columns))


def _key_array(kind: str, columns: Iterable[pa.Array]) -> pa.Array:
    source = iter(columns)
    if not kind.startswith("tuple("):
        return next(source)
    parts = key_parts(kind)
    if not parts:
        rows = len(next(source))
        return pa.array([{}] * rows, type=pa.struct([]))
    inner = [_key_array(part, source) for part in parts]
    fields = [
        pa.field(f"f{i}", array.type, metadata=key_metadata(part))
        for i, (part, array) in enumerate(zip(parts, inner))
    ]
    return pa.StructArray.from_arrays(inner, fields=fields)


def key_metadata(kind: str) -> dict[bytes, bytes] | None:
    """What a field says of the Python values in it, where its Arrow type does not."""
    if kind == "Decimal":
        return {FIELD_KIND: KIND_DECIMAL}
    return {FIELD_KIND: KIND_TUPLE} if kind.startswith("tuple(") else None


def _mixed(first: Any, other: Any) -> KeyTypeError:
    return KeyTypeError(
        f"keys of different types in one job: {_short(first)} is {_describe(first)}, "
        f"{_short(other)} is {_describe(other)}",
        cure="yield keys of one type, for example always str(key)",
    )


def _describe(value: Any) -> str:
    if type(value) is tuple:
        return f"tuple({', '.join(_describe(v) for v in value)})"
    if type(value) is dt.datetime:
        return "a naive datetime" if value.tzinfo is None else "an aware datetime"
    return type(value).__name__


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

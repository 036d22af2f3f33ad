"""Values that stand for plain Python ones: NumPy's scalars, and instances of subclasses.

As a key, in output, and as a value under combine = sum, min or max, they count as the plain bool, int, float,
complex, Decimal, str or bytes, and that is what comes out. Between map and reduce no value is changed. (A
column that has one such value must not be another one because of where the input was cut.)
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final

import numpy as np

_PLAIN: Final[dict[type, Callable[[Any], Any]]] = {
    int: int.__int__,
    float: float.__float__,
    complex: complex.__complex__,
    Decimal: Decimal,
    str: str.__str__,
    bytes: bytes.__bytes__,
}
_NUMPY: Final = (
    (np.bool_, bool),
    (np.integer, int),
    (np.floating, float),
    (np.complexfloating, complex),
    (np.str_, str),
    (np.bytes_, bytes),
)
_NOT_PLAIN: Final = (np.timedelta64, np.longdouble, np.clongdouble)  # an int to NumPy; more than a float has


@functools.cache
def plain_kind(kind: type) -> type:
    """The plain type that instances of `kind` stand for, or `kind` itself."""
    if kind is bool or issubclass(kind, _NOT_PLAIN):
        return kind
    if issubclass(kind, np.generic):
        return next((plain for numpy, plain in _NUMPY if issubclass(kind, numpy)), kind)
    return next((plain for plain in _PLAIN if issubclass(kind, plain)), kind)


def is_numpy(kind: type) -> bool:
    return np.generic in kind.__mro__


def plain_values(values: Sequence[Any], kinds: set[type]) -> tuple[Sequence[Any], set[type]]:
    """Values of the types `kinds`, those that stand for plain ones replaced, and their types. The fold of a
    datetime without a zone, which no column holds, is dropped."""
    wanted = set(map(plain_kind, kinds))
    if wanted != kinds or dt.datetime in kinds:
        values = list(map(_plain, values))
    return values, wanted


def _plain(value: Any) -> Any:
    kind: Any = type(value)
    if kind is dt.datetime:
        return value.replace(fold=0) if value.fold and value.tzinfo is None else value
    wanted = plain_kind(kind)
    if wanted is kind:
        return value
    return value.item() if isinstance(value, np.generic) else _PLAIN[wanted](value)


def names_of(values: Sequence[Any], kinds: set[type]) -> set[str]:
    """What the types of these values are called, a subclass as its plain type. Datetimes with a zone and
    without are two, NumPy's scalars are not Python's."""
    names = set()
    for kind in kinds - {dt.datetime}:
        named = kind if is_numpy(kind) else plain_kind(kind)
        module = "" if named.__module__ == "builtins" else f"{named.__module__}."
        names.add(module + named.__name__)
    if dt.datetime in kinds:
        zones = {value.tzinfo is not None for value in values if type(value) is dt.datetime}
        names |= {"aware datetime" if zone else "datetime" for zone in zones}
    return names

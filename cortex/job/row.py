"""Row: one tabular record, a tuple whose fields have names.

``row.temp``, ``row["temp"]`` and ``row[1]`` are the same field; a row unpacks and compares as a tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any


class Row(tuple[Any, ...]):
    """Build one by name (``Row(station="Oslo", temp=1.5)``) to try a map function by hand."""

    __slots__ = ()
    _fields: tuple[str, ...] = ()
    _index: dict[str, int] = {}  # noqa: RUF012 (replaced in each schema's subclass, never changed)

    def __new__(cls, **fields: Any) -> Row:
        made: Row = tuple.__new__(row_class(tuple(fields)), fields.values())
        return made

    def __getitem__(self, which: Any) -> Any:
        if type(which) is str:
            try:
                return tuple.__getitem__(self, self._index[which])
            except KeyError:
                raise KeyError(f"no column {which!r}; the columns are {', '.join(self._fields)}") from None
        return tuple.__getitem__(self, which)

    def __getattr__(self, name: str) -> Any:
        # Only names that are no property: a column called "count" or "index" would hide tuple's method.
        raise AttributeError(f"no column {name!r}; the columns are {', '.join(self._fields)}")

    def __repr__(self) -> str:
        if all(name.isidentifier() for name in self._fields):
            inside = ", ".join(f"{n}={v!r}" for n, v in zip(self._fields, self))
        else:
            inside = "**{" + ", ".join(f"{n!r}: {v!r}" for n, v in zip(self._fields, self)) + "}"
        return f"Row({inside})"

    def __reduce__(self) -> Any:
        return _rebuild, (self._fields, tuple(self))

    def as_dict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self))


def _rebuild(fields: tuple[str, ...], values: tuple[Any, ...]) -> Row:
    return row_maker(fields)(values)


@lru_cache(maxsize=256)
def row_class(fields: tuple[str, ...]) -> type[Row]:
    """The Row subclass for these column names."""
    members: dict[str, Any] = {
        "__slots__": (),
        "_fields": fields,
        "_index": {n: i for i, n in enumerate(fields)},
    }
    for position, name in enumerate(fields):
        if name.isidentifier() and not name.startswith("__") and name not in ("as_dict", "_fields", "_index"):
            members[name] = property(_get(position))
    return type("Row", (Row,), members)


def _get(position: int) -> Callable[[Any], Any]:
    return lambda row: tuple.__getitem__(row, position)


def row_maker(fields: Sequence[str]) -> Callable[[Iterable[Any]], Row]:
    """A function that makes a Row of these columns from its values, in order."""
    cls = row_class(tuple(fields))
    new = tuple.__new__
    return lambda values: new(cls, values)

"""What the rows of a task's output are, as text, and whether they can stand beside those of another task.

A job has one type of key, and where columns come of it one of value, whatever the splits and reducers are.
Each task says what its rows are; the scheduler joins what the maps say, and what the writers of the parts
say, and a job whose tasks do not agree fails, though no two of the rows ever met.

A key type is text: ``str``, ``int``, ``tuple(str,int)`` ...; ``none`` where only None was seen, which agrees
with any other. So is a value type, and a column's (`cortex.job.types.type_name`), where that is ``null``.
"""

from __future__ import annotations

import msgspec

from cortex.errors import ColumnError, KeyTypeError, ValueTypeError
from cortex.job.types import struct_fields

NONE = "none"
_NULL = "null"


class OutputTypes(msgspec.Struct, frozen=True):
    """Of pairs `key` and `value`, of tables `columns`; "" or () where nothing must agree, or no row was."""

    key: str = ""
    value: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    """(name, type), in order."""

    def joined(self, other: OutputTypes) -> OutputTypes:
        """What the rows of both are. Raises KeyTypeError, ValueTypeError or ColumnError."""
        if other == self:
            return self
        return OutputTypes(
            merge_key_types(self.key, other.key) if self.key and other.key else self.key or other.key,
            _one_value_type(self.value, other.value),
            _one_table(self.columns, other.columns),
        )


def _one_value_type(first: str, second: str) -> str:
    if second in ("", NONE, first):
        return first or second
    if first in ("", NONE):
        return second
    raise ValueTypeError(
        f"values of different types in one job: {' and '.join(sorted((first, second)))}",
        cure="give values of one type, for example always float(value); or cast the column",
    )


def _one_table(
    first: tuple[tuple[str, str], ...], second: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, str], ...]:
    if not first or not second:
        return first or second
    cure = "return batches of one schema, for example by casting the columns"
    if [name for name, _ in first] != [name for name, _ in second]:
        names = [", ".join(name for name, _ in columns) for columns in (first, second)]
        raise ColumnError(f"batches of different columns in one job: {names[0]}; and {names[1]}", cure=cure)
    joined = []
    for (name, kind), (_, other) in zip(first, second):
        wider = _wider(kind, other)
        if wider is None:
            raise ColumnError(
                f"column {name!r} is {kind} in one batch and {other} in another of the job", cure=cure
            )
        joined.append((name, wider))
    return tuple(joined)


def _wider(first: str, second: str) -> str | None:
    """As `cortex.kernels.wider` does it with the types themselves."""
    if second in (_NULL, first):
        return first
    if first == _NULL:
        return second
    left, right = struct_fields(first), struct_fields(second)
    if left is None or right is None or [name for name, _ in left] != [name for name, _ in right]:
        return None
    inner = [(name, _wider(kind, other)) for (name, kind), (_, other) in zip(left, right)]
    if any(kind is None for _, kind in inner):
        return None
    return f"struct<{', '.join(f'{name}: {kind}' for name, kind in inner)}>"


def merge_key_types(first: str, second: str) -> str:
    """The key type of rows that have these two. KeyTypeError if they are different."""
    merged = _merge(first, second)
    if merged is None:
        raise KeyTypeError(
            f"keys of different types in one job: {' and '.join(sorted((first, second)))}",
            cure="yield keys of one type from every map call, for example always str(key)",
        )
    return merged


def _merge(first: str, second: str) -> str | None:
    if first == second:
        return first
    if NONE in (first, second):  # None is one column, and a tuple is one for each item
        other = second if first == NONE else first
        return None if other.startswith("tuple(") else other
    if not (first.startswith("tuple(") and second.startswith("tuple(")):
        return None
    left, right = key_parts(first), key_parts(second)
    if len(left) != len(right):
        return None
    merged = [_merge(a, b) for a, b in zip(left, right)]
    return None if None in merged else f"tuple({','.join(m for m in merged if m)})"


def key_parts(kind: str) -> list[str]:
    """The types of a tuple's items."""
    inside, depth, start, parts = kind[len("tuple(") : -1], 0, 0, []
    for position, char in enumerate(inside):
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append(inside[start:position])
            start = position + 1
    return [*parts, inside[start:]] if inside else []

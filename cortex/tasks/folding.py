"""Values folded as they arrive, in a dict, before they go to the collector.

Only where a dict's idea of equal keys is ours: for str and bytes keys. (``1``, ``1.0`` and ``True`` are
one key of a dict, and three types of which only one may occur in a job: those keys go in columns, where
exact types are checked.) A few hundred thousand keys are held, then handed on and forgotten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

Table = dict[Any, Any]
Fold = Callable[[Table, Iterable[Any], Callable[[Any], Any], list[Any]], None]
"""(table, records, map function, where to leave the record in hand when the function raises)."""


def sum_table() -> Table:
    return defaultdict(int)


def fold_sum(table: Table, records: Iterable[Any], map_record: Callable[[Any], Any], at: list[Any]) -> None:
    """`table` is a `sum_table`: the builtin ``sum``, which starts at 0."""
    record = None
    try:
        for record in records:
            for key, value in map_record(record) or ():
                table[key] += value
    except BaseException:
        at.append(record)
        raise


def fold_min(table: Table, records: Iterable[Any], map_record: Callable[[Any], Any], at: list[Any]) -> None:
    record = None
    try:
        for record in records:
            for key, value in map_record(record) or ():
                if key not in table or value < table[key]:
                    table[key] = value
    except BaseException:
        at.append(record)
        raise


def fold_max(table: Table, records: Iterable[Any], map_record: Callable[[Any], Any], at: list[Any]) -> None:
    record = None
    try:
        for record in records:
            for key, value in map_record(record) or ():
                if key not in table or value > table[key]:
                    table[key] = value
    except BaseException:
        at.append(record)
        raise


def fold_binary(function: Callable[[Any, Any], Any]) -> Fold:
    """A user's associative function, the earlier value first."""

    def fold(table: Table, records: Iterable[Any], map_record: Callable[[Any], Any], at: list[Any]) -> None:
        record = None
        try:
            for record in records:
                for key, value in map_record(record) or ():
                    table[key] = function(table[key], value) if key in table else value
        except BaseException:
            at.append(record)
            raise

    return fold


def collect(
    pairs: list[Any], records: Iterable[Any], map_record: Callable[[Any], Any], at: list[Any]
) -> None:
    """No fold: every pair, in order."""
    record = None
    extend = pairs.extend
    try:
        for record in records:
            extend(map_record(record) or ())
    except BaseException:
        at.append(record)
        raise


BUILTIN: dict[str, Fold] = {"sum": fold_sum, "min": fold_min, "max": fold_max}

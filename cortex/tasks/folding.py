"""Values folded as they arrive, in a dict, before they go to the collector.

Only where a dict's idea of equal keys is ours: for str and bytes keys. (``1``, ``1.0`` and ``True`` are
one key of a dict, and three types of which only one may occur in a job: those keys go in columns, where
exact types are checked.) A few hundred thousand keys are held, then handed on and forgotten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Table = dict[Any, Any]
MapRecord = Callable[[Any], Any]
Fold = Callable[[Table, Iterable[Any], MapRecord], None]
"""(table, records, map function)."""


def pairs_of(records: Iterable[Any], map_record: MapRecord) -> Iterator[Any]:
    """Every pair of every record, in order. A record is taken when the pairs before it are used up."""
    for record in records:
        yield from map_record(record) or ()


def sum_table() -> Table:
    return defaultdict(int)


def fold_sum(table: Table, records: Iterable[Any], map_record: MapRecord) -> None:
    """`table` is a `sum_table`: the builtin ``sum``, which starts at 0."""
    for record in records:
        for key, value in map_record(record) or ():
            table[key] += value


def fold_min(table: Table, records: Iterable[Any], map_record: MapRecord) -> None:
    for record in records:
        for key, value in map_record(record) or ():
            if key not in table or value < table[key]:
                table[key] = value


def fold_max(table: Table, records: Iterable[Any], map_record: MapRecord) -> None:
    for record in records:
        for key, value in map_record(record) or ():
            if key not in table or value > table[key]:
                table[key] = value


def fold_binary(function: Callable[[Any, Any], Any]) -> Fold:
    """A user's associative function, the earlier value first."""

    def fold(table: Table, records: Iterable[Any], map_record: MapRecord) -> None:
        for record in records:
            for key, value in map_record(record) or ():
                table[key] = function(table[key], value) if key in table else value

    return fold


BUILTIN: dict[str, Fold] = {"sum": fold_sum, "min": fold_min, "max": fold_max}

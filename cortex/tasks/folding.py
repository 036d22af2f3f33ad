"""Values folded as they arrive, in a dict, before they go to the collector.

Only where a dict's idea of equal keys is ours: for str and bytes keys. (``1``, ``1.0`` and ``True`` are
one key of a dict, and three types of which only one may occur in a job: those keys go in columns, where
exact types are checked.) A few hundred thousand keys are held, then handed on and forgotten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any

from cortex.tasks.combined_values import INT_MAX, INT_MIN
from cortex.tasks.decimal_sums import added, term

Table = dict[Any, Any]
MapRecord = Callable[[Any], Any]
Fold = Callable[[Table, Iterable[Any], MapRecord], None]
"""(table, records, map function)."""


def pairs_of(records: Iterable[Any], map_record: MapRecord) -> Iterator[Any]:
    """Every pair of every record, in order. A record is taken when the pairs before it are used up."""
    for record in records:
        yield from map_record(record) or ()


def fold_binary(function: Callable[[Any, Any], Any]) -> Fold:
    """A user's associative function, the earlier value first."""

    def fold(table: Table, records: Iterable[Any], map_record: MapRecord) -> None:
        for record in records:
            for key, value in map_record(record) or ():
                table[key] = function(table[key], value) if key in table else value

    return fold


def fold_builtin(combine: str, kind: type, plain: Callable[[Any], Any]) -> tuple[Fold, Callable[[], Table]]:
    """Python's own sum, min or max of values of the type `kind`, and what makes an empty table for it.

    `plain` is called with each value of another type, and under min and max with each int beyond 64 bits and
    each text that is not ASCII: it gives the value of the type that it stands for, or raises. Whether a job
    fails must not depend on which values were folded away before anyone looked at them. (A sum of ints cannot
    hide one.)
    """
    if combine == "sum":
        if kind is int:
            return _fold_ints, lambda: defaultdict(int)
        return (_fold_decimals(plain) if kind is Decimal else _fold_sum(kind, plain)), dict
    return (_fold_min if combine == "min" else _fold_max)(kind, plain), dict


def _fold_ints(table: Table, records: Iterable[Any], map_record: MapRecord) -> None:
    for record in records:
        for key, value in map_record(record) or ():
            table[key] += value


def _fold_sum(kind: type, plain: Callable[[Any], Any]) -> Fold:
    """Of other values: these have no zero to begin with."""

    def fold(table: Table, records: Iterable[Any], map_record: MapRecord) -> None:
        for record in records:
            for key, value in map_record(record) or ():
                if type(value) is not kind:
                    value = plain(value)
                table[key] = table[key] + value if key in table else value

    return fold


def _fold_decimals(plain: Callable[[Any], Any]) -> Fold:
    """Exactly: Decimal's own ``+`` rounds to the digits of its context."""

    def fold(table: Table, records: Iterable[Any], map_record: MapRecord) -> None:
        for record in records:
            for key, value in map_record(record) or ():
                value = term(value if type(value) is Decimal else plain(value))
                table[key] = added(table[key], value) if key in table else value

    return fold


def _fold_min(kind: Any, plain: Callable[[Any], Any]) -> Fold:
    ints, texts = kind is int, kind is str

    def fold(table: Table, records: Iterable[Any], map_record: MapRecord) -> None:
        for record in records:
            for key, value in map_record(record) or ():
                if (
                    type(value) is not kind
                    or (ints and not INT_MIN <= value <= INT_MAX)
                    or (texts and not value.isascii())
                ):
                    value = plain(value)
                if key not in table or value < table[key]:
                    table[key] = value

    return fold


def _fold_max(kind: Any, plain: Callable[[Any], Any]) -> Fold:
    ints, texts = kind is int, kind is str

    def fold(table: Table, records: Iterable[Any], map_record: MapRecord) -> None:
        for record in records:
            for key, value in map_record(record) or ():
                if (
                    type(value) is not kind
                    or (ints and not INT_MIN <= value <= INT_MAX)
                    or (texts and not value.isascii())
                ):
                    value = plain(value)
                if key not in table or value > table[key]:
                    table[key] = value

    return fold

"""What can be called by name: one table of functions, one of aggregates. The home that grows.

A row gives a name, its arguments and one line of help. What a function computes is registered under
the same name in `cortex.kernels.functions`, what an aggregate computes in `cortex.kernels.aggregates`;
tests hold the tables to the same names.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Function(NamedTuple):
    """`args_max` -1 means any number."""

    name: str
    args_min: int
    args_max: int
    usage: str
    doc: str


_TABLE: Final = (
    Function("abs", 1, 1, "abs(x)", "the number without its sign"),
    Function("ceil", 1, 1, "ceil(x)", "the next whole number up; a float stays a float"),
    Function("coalesce", 1, -1, "coalesce(a, b, ...)", "the first of them that is not null"),
    Function("contains", 2, 2, "contains(s, 'part')", "true where the text holds the part"),
    Function("day", 1, 1, "day(t)", "day of the month of a date or timestamp, 1 to 31"),
    Function("ends_with", 2, 2, "ends_with(s, 'part')", "true where the text ends with the part"),
    Function("float", 1, 1, "float(x)", "a number, bool or text as float64"),
    Function("floor", 1, 1, "floor(x)", "the next whole number down; a float stays a float"),
    Function("hour", 1, 1, "hour(t)", "hour of a timestamp, 0 to 23, in its own time zone"),
    Function("if_else", 3, 3, "if_else(condition, a, b)", "a where the condition is true, else b (null: b)"),
    Function("int", 1, 1, "int(x)", "a number (cut towards zero), bool or text as int64"),
    Function("length", 1, 1, "length(s)", "characters of a text, bytes of a binary"),
    Function("lower", 1, 1, "lower(s)", "the text in lower case"),
    Function("month", 1, 1, "month(t)", "month of a date or timestamp, 1 to 12"),
    Function(
        "round", 1, 2, "round(x, digits)", "rounded, halves to the even neighbour; a float stays a float"
    ),
    Function("starts_with", 2, 2, "starts_with(s, 'part')", "true where the text starts with the part"),
    Function("string", 1, 1, "string(x)", "any value as text"),
    Function("trim", 1, 1, "trim(s)", "the text without white space at its ends"),
    Function("upper", 1, 1, "upper(s)", "the text in upper case"),
    Function("year", 1, 1, "year(t)", "year of a date or timestamp"),
)

FUNCTIONS: Final[dict[str, Function]] = {f.name: f for f in _TABLE}


class Aggregate(NamedTuple):
    """All ignore nulls (SQL). `result` says which type it gives."""

    name: str
    args_min: int
    args_max: int
    usage: str
    doc: str
    result: str


_AGGREGATES: Final = (
    Aggregate(
        "count",
        0,
        1,
        "count() or count(x)",
        "rows; with an argument, those where it is not null",
        "int64",
    ),
    Aggregate(
        "sum",
        1,
        1,
        "sum(x)",
        "the exact sum; null of no values; an int sum that does not fit is an error",
        "int64 (uint64 of uint64) of ints and bools, float64 of floats, decimal or duration of such",
    ),
    Aggregate("min", 1, 1, "min(x)", "the least value; null of no values", "the argument's type"),
    Aggregate(
        "max",
        1,
        1,
        "max(x)",
        "the greatest value (a nan is greater than any number); null of no values",
        "the argument's type",
    ),
    Aggregate("mean", 1, 1, "mean(x)", "the exact sum over the count; null of no values", "float64"),
)

AGGREGATES: Final[dict[str, Aggregate]] = {a.name: a for a in _AGGREGATES}


def count_of_arguments(function: Function | Aggregate) -> str:
    """``1 argument``, ``1 to 2 arguments``, ``at least 1 argument``."""
    low, high = function.args_min, function.args_max
    if high < 0:
        return f"at least {low} argument{'s' if low != 1 else ''}"
    if low == high:
        return f"{low} argument{'s' if low != 1 else ''}"
    return f"{low} to {high} arguments"

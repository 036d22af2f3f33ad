"""Terms: compiled parts of an expression, and how values of different types meet.

A term has an Arrow type, known when it is compiled, and a function from a record batch to an array or
a scalar. Scalars stay scalars until the expression's end. What depends on types alone is refused here
with a ColumnError that draws a caret; what depends on values raises one of ROW_ERRORS, whose
`batch_row` is the row of the batch.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cortex.errors import ColumnError, ConversionError, CortexError, DivisionByZero, OverflowedSum
from cortex.job.expressions import Column, Literal, Node, problem_at
from cortex.job.types import type_class, type_name

Value = Any
"""A pa.Array of the batch's length, or a pa.Scalar."""
Run = Callable[[pa.RecordBatch], Value]

ROW_ERRORS: Final = (OverflowedSum, DivisionByZero, ConversionError)
"""What a row's values may raise: not raised for rows that `and`, `or`, if_else or coalesce leave out."""

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True)
class Term:
    """`constant` is the value of a term that reads no column."""

    type: pa.DataType
    run: Run
    node: Node
    constant: pa.Scalar | None = None

    @property
    def kind(self) -> str:
        return type_class(self.type)

    @property
    def literal(self) -> Literal | None:
        return self.node if isinstance(self.node, Literal) else None


@dataclass(frozen=True)
class Scope:
    """The text that nodes point into: what errors need to show the place."""

    text: str

    def refuse(self, node: Node, message: str, cure: str = "") -> NoReturn:
        """A type that the operation does not take."""
        raise ColumnError(message, cure=cure, details=problem_at(self.text, node.at, message).details)

    def row_error(
        self, kind: type[CortexError], node: Node, message: str, cure: str, row: int
    ) -> CortexError:
        """One of ROW_ERRORS, about row `row` of the batch."""
        error = kind(message, cure=cure, details=problem_at(self.text, node.at, message).details)
        error.batch_row = row
        return error


def constant_term(value: pa.Scalar, node: Node) -> Term:
    return Term(value.type, lambda batch: value, node, value)


def make_term(result: pa.DataType, run: Run, node: Node, parts: Sequence[Term]) -> Term:
    """A term over others; computed now if they are all constant."""
    if all(part.constant is not None for part in parts):
        try:
            return constant_term(run(None), node)
        except ROW_ERRORS:  # raised when a row needs it, as from a column
            pass
    return Term(result, run, node)


def describe(term: Term) -> str:
    """``column 'x' (string)``, ``3 (int)`` or ``a float64``."""
    if isinstance(term.node, Column):
        return f"column {term.node.name!r} ({type_name(term.type)})"
    if term.literal is not None:
        return f"{term.literal.text} ({'text' if term.literal.kind == 'string' else term.literal.kind})"
    return f"a {type_name(term.type)}"


# --- one type for several terms ------------------------------------------------------------------


def number_type(terms: Sequence[Term]) -> pa.DataType | None:
    """What arithmetic on these numbers is done in; None if one is no number (null adapts)."""
    kinds = {term.kind for term in terms} - {"null"}
    if not kinds <= {"integer", "float", "decimal"}:
        return None
    if "float" in kinds:
        return pa.float64()
    if "decimal" in kinds:
        return decimal_type([decimal_of(term) for term in terms if term.kind != "null"])
    wide = any(term.type == pa.uint64() for term in terms)
    return pa.uint64() if wide and all(_is_unsigned(term) for term in terms) else pa.int64()


def _is_unsigned(term: Term) -> bool:
    if term.constant is not None and term.kind == "integer":
        return term.constant.as_py() is None or term.constant.as_py() >= 0
    return term.kind == "null" or pa.types.is_unsigned_integer(term.type)


def decimal_of(term: Term) -> pa.DataType:
    """The decimal type that holds any value of an integer or decimal term."""
    if term.kind == "decimal":
        return term.type
    if term.constant is not None and term.constant.is_valid:
        return pa.decimal128(max(1, len(str(abs(term.constant.as_py())))), 0)
    return pa.decimal128(20, 0)


def decimal_type(types: Sequence[pa.DataType]) -> pa.DataType | None:
    """The decimal type that holds them all; None if there is none."""
    scale = max(t.scale for t in types)
    digits = scale + max(t.precision - t.scale for t in types)
    if digits > 76:
        return None
    return pa.decimal128(digits, scale) if digits <= 38 else pa.decimal256(digits, scale)


def shared_type(terms: Sequence[Term]) -> pa.DataType | None:
    """The one type these values can all be had in without loss of kind; None if there is none.

    Equal types stay; numbers meet as in arithmetic; a text literal beside a date or time is one.
    """
    named = [term for term in terms if term.kind != "null"]
    if not named:
        return pa.null()
    if all(term.type == named[0].type for term in named):
        return named[0].type
    if (number := number_type(named)) is not None:
        return number
    kinds = {term.kind for term in named}
    moments = [term for term in named if term.kind in ("date", "timestamp", "time", "duration")]
    if moments and all(term in moments or is_text_literal(term) for term in named):
        return _moment_type([term.type for term in moments])
    if kinds == {"string"}:
        return pa.large_string() if any(term.type == pa.large_string() for term in named) else pa.string()
    if kinds <= {"binary", "string"} and all(
        term.kind == "binary" or is_text_literal(term) for term in named
    ):
        return pa.large_binary() if any(term.type == pa.large_binary() for term in named) else pa.binary()
    return None


def is_text_literal(term: Term) -> bool:
    return term.literal is not None and term.literal.kind == "string"


def _moment_type(types: Sequence[pa.DataType]) -> pa.DataType | None:
    kinds = {type_class(t) for t in types}
    if kinds == {"date"}:
        return pa.date32() if all(t == pa.date32() for t in types) else pa.date64()
    stamps = [t for t in types if not pa.types.is_date(t)]
    if kinds - {"date"} != {type_class(stamps[0])} or (
        "date" in kinds and type_class(stamps[0]) != "timestamp"
    ):
        return None
    unit = max((t.unit for t in stamps), key=("s", "ms", "us", "ns").index)
    if pa.types.is_timestamp(stamps[0]):
        zones = [t.tz for t in stamps]
        if any((zone is None) != (zones[0] is None) for zone in zones) or ("date" in kinds and zones[0]):
            return None  # a clock time without a zone is no instant
        return pa.timestamp(unit, zones[0])
    if pa.types.is_duration(stamps[0]):
        return pa.duration(unit)
    return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)


# --- casts ---------------------------------------------------------------------------------------


def as_type(term: Term, target: pa.DataType, scope: Scope) -> Term:
    """The term's values in another type of the same kind (or a text literal as a date or time)."""
    if term.type == target:
        return term
    if is_text_literal(term) and type_class(target) != "string":
        return constant_term(_literal_as(term, target, scope), term.node)

    def run(batch: pa.RecordBatch) -> Value:
        return _cast(term.run(batch), target, term.node, scope)

    return make_term(target, run, term.node, [term])


def _cast(value: Value, target: pa.DataType, node: Node, scope: Scope) -> Value:
    if pa.types.is_floating(target):
        # unchecked: an int beyond 2**53 becomes the nearest float, as in Python
        if pa.types.is_decimal(value.type):
            return pc.cast(value, pa.float64())
        return pc.cast(value, target, safe=False)
    if pa.types.is_decimal(target) and pa.types.is_integer(value.type):
        if isinstance(value, pa.Scalar):  # of as many digits as it has: a cast from int64 wants room for 19
            return pa.scalar(None if not value.is_valid else decimal.Decimal(value.as_py()), target)
        value = pc.cast(value, pa.decimal128(20, 0))
    try:
        return pc.cast(value, target)
    except pa.ArrowInvalid as error:
        if not pa.types.is_integer(target):
            raise
        row, shown = first_row(lambda v: not INT64_MIN <= v <= INT64_MAX, value)
        raise scope.row_error(
            OverflowedSum, node, f"{shown[0]} does not fit in int64", "use float(x)", row
        ) from error


def _literal_as(term: Term, target: pa.DataType, scope: Scope) -> pa.Scalar:
    text = term.constant.as_py() if term.constant is not None else ""
    if pa.types.is_binary(target) or pa.types.is_large_binary(target):
        return pa.scalar(text.encode(), target)
    try:
        if pa.types.is_time(target):
            return pc.cast(pa.scalar(datetime.time.fromisoformat(text), pa.time64("us")), target)
        return pc.cast(pa.scalar(text), target)
    except (pa.ArrowInvalid, ValueError):
        scope.refuse(
            term.node, f"{text!r} is not a {type_name(target)}", f"write it as {_moment_example(target)}"
        )


def _moment_example(target: pa.DataType) -> str:
    if pa.types.is_date(target):
        return "'2026-01-31'"
    if pa.types.is_timestamp(target):
        return "'2026-01-31T12:00:00Z'" if target.tz else "'2026-01-31 12:00:00'"
    return "'12:00:00'" if pa.types.is_time(target) else "a column of that type"


# --- rows ----------------------------------------------------------------------------------------


def first_row(fails: Callable[..., bool], *values: Value) -> tuple[int, tuple[Any, ...]]:
    """The first row whose values (none null) fail, and those values. Python speed: after an error only."""
    arrays = [v for v in values if isinstance(v, pa.Array)]
    for row in range(len(arrays[0]) if arrays else 1):
        found = tuple(v[row].as_py() if isinstance(v, pa.Array) else v.as_py() for v in values)
        if None not in found and fails(*found):
            return row, found
    raise AssertionError("no row fails")


def to_numpy(value: Value, fill: int) -> Any:
    """An integer or float array as NumPy, with `fill` for null; a scalar as a NumPy scalar."""
    if isinstance(value, pa.Scalar):
        return value.type.to_pandas_dtype()(value.as_py())
    return (value.fill_null(fill) if value.null_count else value).to_numpy(zero_copy_only=False)


def from_numpy(result: Any, target: pa.DataType, *operands: Value) -> Value:
    """NumPy's result as Arrow, null where an operand array is."""
    array = pa.array(np.atleast_1d(result), type=target, from_pandas=False)
    holes = [v for v in operands if isinstance(v, pa.Array) and v.null_count]
    for hole in holes:
        array = pc.if_else(hole.is_valid(), array, pa.scalar(None, target))
    return array if any(isinstance(v, pa.Array) for v in operands) else array[0]


def run_where(term: Term, batch: pa.RecordBatch, needed: Callable[[], Value]) -> Value:
    """The term's values; those of rows that are not needed may be null.

    Rows that are not needed cannot fail: only if a row fails are the needed ones computed alone.
    """
    try:
        return term.run(batch)
    except (*ROW_ERRORS, pa.ArrowInvalid):
        mask = needed()
        if isinstance(mask, pa.Scalar):
            if mask.as_py():
                raise
            return pa.scalar(None, term.type)
        rows = np.flatnonzero(mask.to_numpy(zero_copy_only=False))
        if len(rows) == 0:
            return pa.scalar(None, term.type)
        if batch is None or len(rows) == len(mask):
            raise
        try:
            found = term.run(batch.take(pa.array(rows)))
        except ROW_ERRORS as error:
            if error.batch_row is not None:
                error.batch_row = int(rows[error.batch_row])
            raise
        if isinstance(found, pa.Scalar):
            return found
        at = np.zeros(len(mask), np.int64)
        at[rows] = np.arange(len(rows))
        return found.take(pc.if_else(mask, pa.array(at), pa.scalar(None, pa.int64())))


def is_true(value: Value) -> Value:
    """True or false, never null."""
    return pc.fill_null(value, False)

"""Expressions compiled to Arrow kernels for the columns they read.

`compile_expression` checks every type against the schema and returns a `Compiled`: a result type and
a function from a batch to an array. Nothing is looked up or parsed a batch; literals are cast once.
Errors: ColumnError (compiling), and a ROW_ERROR of `cortex.kernels.terms` (evaluating), whose
`batch_row` is the row of the batch. The meaning is in `cortex.job.expressions`.

``and`` and ``or``, ``if_else`` and ``coalesce`` do not fail for a row that they leave out:
``where: n != 0 and total // n > 3`` holds its promise though both sides are computed on whole batches.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from cortex.errors import ColumnError, ConversionError, CortexError
from cortex.job.expressions import (
    Binary,
    Call,
    Column,
    Expression,
    In,
    IsNull,
    Literal,
    Node,
    Unary,
    columns_of,
    quote_name,
)
from cortex.job.types import columns_line
from cortex.kernels.arithmetic import arithmetic, sign
from cortex.kernels.comparisons import comparison, membership
from cortex.kernels.functions import IMPLEMENTATIONS
from cortex.kernels.terms import (
    ROW_ERRORS,
    Run,
    Scope,
    Term,
    Value,
    as_type,
    constant_term,
    describe,
    is_true,
    make_term,
    run_where,
)

__all__ = ["ROW_ERRORS", "Compiled", "compile_expression", "compile_filter"]

_DIGITS = re.compile("precision|rescal", re.IGNORECASE)  # what Arrow says of decimals that do not fit
_DIGITS_CURE: Final = "use float(x), or a type with more digits: " + columns_line("x", "decimal(38,2)")
_ARITHMETIC = frozenset({"+", "-", "*", "/", "//", "%"})


@dataclass(frozen=True)
class Compiled:
    """An expression for batches whose columns have the names and types it was compiled for."""

    type: pa.DataType
    columns: tuple[str, ...]
    text: str
    _run: Run

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """One value a row; never chunked. Raises a ROW_ERROR."""
        if batch.num_rows == 0:  # no row, so none that fails: constants fail only for a row
            return pa.nulls(0, self.type)
        try:
            value = self._run(batch)
        except pa.ArrowInvalid as error:
            raise self._refusal(batch, error) from error
        if isinstance(value, pa.Scalar):
            return pa.repeat(value, batch.num_rows)
        return value

    def _refusal(self, batch: pa.RecordBatch, error: pa.ArrowInvalid) -> CortexError:
        """What Arrow refuses to compute, as an error of the first row for which it does."""
        low, rows = 0, batch.num_rows
        while rows > 1:
            half = rows // 2
            if self._refused(batch.slice(low, half)) is None:
                low += half
                rows -= half
            else:
                rows = half
        found = self._refused(batch.slice(low, rows)) or error
        if isinstance(found, CortexError):
            found.batch_row = low
            return found
        refusal = ConversionError(
            f"the expression has no value for a row: {found}",
            cure=_DIGITS_CURE if _DIGITS.search(str(found)) else "leave such rows out with where",
            details={"expression": self.text},
        )
        refusal.batch_row = low
        return refusal

    def _refused(self, batch: pa.RecordBatch) -> Exception | None:
        try:
            self._run(batch)
        except (*ROW_ERRORS, pa.ArrowInvalid) as error:
            return error
        return None


def compile_expression(expression: Expression, schema: pa.Schema) -> Compiled:
    """Raises ColumnError for an unknown column and for types that do not fit, with the cure."""
    scope = Scope(expression.text)
    try:
        term = _compile(expression.root, schema, scope)
        if pa.types.is_null(term.type):
            scope.refuse(
                expression.root, "the value is always null and has no type", "write int(null) or string(null)"
            )
        if term.constant is None:
            _try_kernels(term, schema)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise ColumnError(
            "the expression has a type that cannot be computed with",
            cure="convert with string(x), int(x) or float(x)",
            details={"expression": expression.text, "cause": str(error)},
        ) from error
    return Compiled(term.type, columns_of(expression), expression.text, term.run)


def compile_filter(expression: Expression, schema: pa.Schema) -> Compiled:
    """As `compile_expression`, for a condition: refuses what is no bool. A row passes if it is true."""
    compiled = compile_expression(expression, schema)
    if not pa.types.is_boolean(compiled.type):
        Scope(expression.text).refuse(
            expression.root,
            f"a condition is true or false, not a {compiled.type}",
            "compare it, such as x != 0",
        )
    return compiled


def _try_kernels(term: Term, schema: pa.Schema) -> None:
    """Run on no rows: that a kernel does not exist shows now, not in the middle of a job."""
    empty = pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)
    with contextlib.suppress(*ROW_ERRORS):  # of a constant part: raised when there is a row
        term.run(empty)


def _compile(node: Node, schema: pa.Schema, scope: Scope) -> Term:
    match node:
        case Literal():
            return constant_term(_scalar(node), node)
        case Column():
            return _column(node, schema, scope)
        case Unary():
            operand = _compile(node.operand, schema, scope)
            return _not(node, operand, scope) if node.op == "not" else sign(node, operand, scope)
        case Binary():
            left, right = _compile(node.left, schema, scope), _compile(node.right, schema, scope)
            if node.op in ("and", "or"):
                return _logic(node, left, right, scope)
            return (arithmetic if node.op in _ARITHMETIC else comparison)(node, left, right, scope)
        case In():
            return membership(node, _compile(node.operand, schema, scope), scope)
        case IsNull():
            return _is_null(node, _compile(node.operand, schema, scope))
        case Call():
            args = [_compile(arg, schema, scope) for arg in node.args]
            return IMPLEMENTATIONS[node.function](node, args, scope)


def _scalar(node: Literal) -> pa.Scalar:
    if node.kind == "int":
        return pa.scalar(node.value, pa.int64() if node.value < 2**63 else pa.uint64())
    kinds = {"null": pa.null(), "bool": pa.bool_(), "float": pa.float64(), "string": pa.string()}
    return pa.scalar(node.value, kinds[node.kind])


def _column(node: Column, schema: pa.Schema, scope: Scope) -> Term:
    found = schema.get_all_field_indices(node.name)
    if len(found) != 1:
        near = difflib.get_close_matches(node.name, schema.names, 1, 0.6)
        scope.refuse(
            node,
            f"there are {len(found)} columns {node.name!r}" if found else f"there is no column {node.name!r}",
            f"did you mean {quote_name(near[0])}?"
            if near and not found
            else "columns are: " + ", ".join(quote_name(name) for name in schema.names),
        )
    index, stored = found[0], schema.field(found[0]).type
    shown = _computed_type(stored)

    def run(batch: pa.RecordBatch) -> Value:
        column = batch.column(index)
        if column.type != stored:
            raise ColumnError(f"column {node.name!r} is {column.type}, planned as {stored}")
        return column if shown == stored else pc.cast(column, shown)

    return Term(shown, run, node)


def _computed_type(stored: pa.DataType) -> pa.DataType:
    """The type that kernels exist for: a dictionary's values, views as plain strings."""
    if pa.types.is_dictionary(stored):
        return _computed_type(stored.value_type)
    if pa.types.is_string_view(stored):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(stored) else stored


def _bool(node: Node, word: str, term: Term, scope: Scope) -> Term:
    if term.kind not in ("bool", "null"):
        scope.refuse(node, f"`{word}` joins conditions, not {describe(term)}", "compare it, such as x != 0")
    return as_type(term, pa.bool_(), scope)


def _not(node: Unary, operand: Term, scope: Scope) -> Term:
    term = _bool(node, "not", operand, scope)
    return make_term(pa.bool_(), lambda batch: pc.invert(term.run(batch)), node, [term])


def _logic(node: Binary, left: Term, right: Term, scope: Scope) -> Term:
    a, b = _bool(node, node.op, left, scope), _bool(node, node.op, right, scope)
    kernel = pc.and_kleene if node.op == "and" else pc.or_kleene

    def run(batch: pa.RecordBatch) -> Value:
        x = a.run(batch)
        # the right side matters where the left does not decide alone
        decided = pc.invert if node.op == "and" else (lambda value: value)
        return kernel(x, run_where(b, batch, lambda: pc.invert(is_true(decided(x)))))

    return make_term(pa.bool_(), run, node, [a, b])


def _is_null(node: IsNull, operand: Term) -> Term:
    kernel = pc.is_valid if node.negated else pc.is_null
    return make_term(pa.bool_(), lambda batch: kernel(operand.run(batch)), node, [operand])

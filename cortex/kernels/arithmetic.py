"""Arithmetic of expressions: ``+ - * / // %`` and signs, with Python's meaning on Arrow arrays.

Ints are computed in int64 (uint64 when all are unsigned and one is uint64) and never wrap: a result
that does not fit raises OverflowedSum with the values. Beside a float they become float64 first, also
under ``/``. Decimals stay exact under ``+ - *``; ``/`` makes them float64. Texts are joined by ``+``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cortex.errors import DivisionByZero, OverflowedSum
from cortex.job.expressions import Binary, Unary
from cortex.kernels.terms import (
    INT64_MIN,
    Scope,
    Term,
    Value,
    as_type,
    decimal_of,
    describe,
    first_row,
    from_numpy,
    make_term,
    number_type,
    shared_type,
    to_numpy,
)

_CHECKED: Final[dict[str, tuple[Callable[..., Value], Callable[..., Value], Callable[[Any, Any], Any]]]] = {
    "+": (pc.add_checked, pc.add, operator.add),
    "-": (pc.subtract_checked, pc.subtract, operator.sub),
    "*": (pc.multiply_checked, pc.multiply, operator.mul),
}
_FITS: Final = "does not fit in 64 bits"
_FLOAT_CURE: Final = "use float(x) if an approximate result will do"


def arithmetic(node: Binary, left: Term, right: Term, scope: Scope) -> Term:
    """``left op right``. Raises ColumnError for types that the operator does not take."""
    kinds = {left.kind, right.kind}
    if node.op == "+" and "string" in kinds and kinds <= {"string", "null"}:
        return _join(node, left, right, scope)
    common = number_type([left, right])
    if common is None:
        _refuse(node, left, right, scope)
    if pa.types.is_null(common):
        common = pa.int64()
    if node.op == "/":
        return _float_operation(node, left, right, scope, pc.divide)
    if pa.types.is_decimal(common):
        return _decimal_operation(node, left, right, scope)
    if pa.types.is_floating(common):
        kernel = {"//": _float_floor, "%": _float_modulo}.get(node.op)
        return _float_operation(node, left, right, scope, kernel or _CHECKED[node.op][1])
    a, b = as_type(left, common, scope), as_type(right, common, scope)
    if node.op in ("//", "%"):
        return make_term(
            common, lambda batch: _int_divide(node, a.run(batch), b.run(batch), scope), node, [a, b]
        )
    kernel, _, exact = _CHECKED[node.op]
    low, high = (0, 2**64 - 1) if common == pa.uint64() else (INT64_MIN, 2**63 - 1)

    def run(batch: pa.RecordBatch) -> Value:
        x, y = a.run(batch), b.run(batch)
        try:
            return kernel(x, y)
        except pa.ArrowInvalid as error:
            row, (p, q) = first_row(lambda p, q: not low <= exact(p, q) <= high, x, y)
            message = f"{p} {node.op} {q} {_FITS} ({common})"
            raise scope.row_error(OverflowedSum, node, message, _FLOAT_CURE, row) from error

    return make_term(common, run, node, [a, b])


def sign(node: Unary, operand: Term, scope: Scope) -> Term:
    """``-x`` and ``+x``."""
    common = number_type([operand])
    if common is None:
        scope.refuse(node, f"{node.op} takes a number, not {describe(operand)}", _number_cure(operand))
    if pa.types.is_decimal(common):
        common = operand.type
    elif not pa.types.is_floating(common):
        common = pa.int64()
    term = as_type(operand, common, scope)
    if node.op == "+":
        return term

    def run(batch: pa.RecordBatch) -> Value:
        value = term.run(batch)
        try:
            return pc.negate_checked(value)
        except pa.ArrowInvalid as error:
            row, (found,) = first_row(lambda v: v == INT64_MIN, value)
            raise scope.row_error(OverflowedSum, node, f"-({found}) {_FITS}", _FLOAT_CURE, row) from error

    return make_term(common, run, node, [term])


def _refuse(node: Binary, left: Term, right: Term, scope: Scope) -> None:
    if left.kind == right.kind == "decimal":
        scope.refuse(node, f"{describe(left)} and {describe(right)} have too many digits", "use float(x)")
    numbers = ("integer", "float", "decimal", "null")
    wrong = left if left.kind not in numbers else right
    other = right if wrong is left else left
    scope.refuse(
        node,
        f"{node.op} takes numbers, not {describe(wrong)}",
        _number_cure(wrong, joins=node.op == "+" and "string" in (wrong.kind, other.kind)),
    )


def _number_cure(term: Term, joins: bool = False) -> str:
    if joins:
        return "to join texts write string(x) around the other; to add, float(x) around the text"
    return {
        "string": "write float(x) or int(x) around it, or give the column a type: columns: {x: float64}",
        "bool": "write int(x) around it",
        "date": "compare dates, or use year(x), month(x), day(x)",
        "timestamp": "compare timestamps, or use year(x), month(x), day(x), hour(x)",
    }.get(term.kind, "use a column of numbers")


def _join(node: Binary, left: Term, right: Term, scope: Scope) -> Term:
    common = shared_type([left, right])
    a, b = as_type(left, common, scope), as_type(right, common, scope)
    empty = pa.scalar("", common)
    return make_term(
        common, lambda batch: pc.binary_join_element_wise(a.run(batch), b.run(batch), empty), node, [a, b]
    )


def _float_operation(
    node: Binary, left: Term, right: Term, scope: Scope, kernel: Callable[..., Value]
) -> Term:
    a, b = as_type(left, pa.float64(), scope), as_type(right, pa.float64(), scope)
    return make_term(pa.float64(), lambda batch: kernel(a.run(batch), b.run(batch)), node, [a, b])


def _decimal_operation(node: Binary, left: Term, right: Term, scope: Scope) -> Term:
    if node.op not in _CHECKED:
        scope.refuse(
            node,
            f"{node.op} takes ints or floats, not {describe(left)} and {describe(right)}",
            "use float(x)",
        )
    a, b = (
        as_type(t, decimal_of(t) if t.kind != "null" else pa.decimal128(1, 0), scope) for t in (left, right)
    )
    kernel = _CHECKED[node.op][0]
    try:
        result = kernel(pa.nulls(0, a.type), pa.nulls(0, b.type)).type
    except pa.ArrowInvalid:
        scope.refuse(
            node,
            f"{describe(left)} {node.op} {describe(right)} needs more digits than a decimal has",
            "use float(x)",
        )
    return make_term(result, lambda batch: kernel(a.run(batch), b.run(batch)), node, [a, b])


def _is_null_scalar(*values: Value) -> bool:
    return any(isinstance(v, pa.Scalar) and not v.is_valid for v in values)


def _float_floor(a: Value, b: Value) -> Value:
    return _numpy_floats(np.floor_divide, a, b)


def _float_modulo(a: Value, b: Value) -> Value:
    return _numpy_floats(np.remainder, a, b)


def _numpy_floats(operation: Any, a: Value, b: Value) -> Value:
    if _is_null_scalar(a, b):
        return pa.scalar(None, pa.float64())
    with np.errstate(all="ignore"):  # inf and nan are the answer, not a warning
        return from_numpy(operation(to_numpy(a, 1), to_numpy(b, 1)), pa.float64(), a, b)


def _int_divide(node: Binary, a: Value, b: Value, scope: Scope) -> Value:
    """``//`` or ``%`` of two values of one integer type."""
    if _is_null_scalar(a, b):
        return pa.scalar(None, a.type)
    x, y = to_numpy(a, 1), to_numpy(b, 1)
    if np.any(y == 0):
        row, found = _first_zero(a, b)
        if row >= 0:
            raise scope.row_error(
                DivisionByZero, node, f"{found} {node.op} 0 is a division by zero",
                "leave such rows out (where: x != 0), or divide floats with /", row,
            )  # fmt: skip
        y = np.where(y == 0, 1, y)  # beside a null: the row is null
    if a.type == pa.int64() and np.any(y == -1):
        if node.op == "//" and np.any((x == INT64_MIN) & (y == -1)):
            row, (p, q) = first_row(lambda p, q: p == INT64_MIN and q == -1, a, b)
            raise scope.row_error(OverflowedSum, node, f"{p} // {q} {_FITS} (int64)", _FLOAT_CURE, row)
        with np.errstate(all="ignore"):  # INT64_MIN % -1 is 0
            return from_numpy(np.floor_divide(x, y) if node.op == "//" else np.remainder(x, y), a.type, a, b)
    return from_numpy(np.floor_divide(x, y) if node.op == "//" else np.remainder(x, y), a.type, a, b)


def _first_zero(a: Value, b: Value) -> tuple[int, Any]:
    """The first row (neither value null) that divides by zero, and its dividend; -1 if there is none."""
    zero = pc.and_(pc.equal(b, 0), pc.is_valid(a))
    if isinstance(zero, pa.Scalar):
        return (0, a.as_py()) if zero.as_py() else (-1, None)
    row = pc.index(zero, True).as_py()
    return row, (a.as_py() if isinstance(a, pa.Scalar) else a[row].as_py()) if row >= 0 else None

"""Comparisons of expressions: ``== != < <= > >=`` and ``in``.

Numbers of different types compare by their exact values: an int64 beside a float64 is never rounded
first, and a decimal beside a literal such as 9.99 means that decimal. (A decimal column beside a
float column is compared as float64.) nan equals nothing; null gives null. A text literal beside a
date, time or timestamp column is read as one.
"""

from __future__ import annotations

import decimal
import math
import operator
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cortex.job.expressions import Binary, In, Literal
from cortex.kernels.terms import (
    Scope,
    Term,
    Value,
    as_type,
    constant_term,
    decimal_type,
    describe,
    from_numpy,
    make_term,
    number_type,
    shared_type,
)

_KERNEL: Final[dict[str, Callable[..., Value]]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_EXACT: Final[dict[str, Callable[..., Any]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FLIPPED: Final = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_EXACT_INT: Final = 2**53  # every int up to it is a float64


def comparison(node: Binary, left: Term, right: Term, scope: Scope) -> Term:
    """``left op right``. Raises ColumnError for values that cannot be compared."""
    left, right = _literal_beside_decimal(left, right), _literal_beside_decimal(right, left)
    if left.kind == "integer" and right.kind == "float":
        return _int_and_float(node, node.op, left, right, scope)
    if left.kind == "float" and right.kind == "integer":
        return _int_and_float(node, _FLIPPED[node.op], right, left, scope)
    unlike = left.kind == right.kind == "integer" and left.type != right.type
    if unlike and pa.uint64() in (left.type, right.type) and number_type([left, right]) != pa.uint64():
        wide = pa.decimal128(20, 0)
        return _plain(node, as_type(left, wide, scope), as_type(right, wide, scope))
    common = shared_type([left, right])
    if common is None or pa.types.is_null(common) or pa.types.is_nested(common):
        scope.refuse(
            node, f"{node.op} cannot compare {describe(left)} with {describe(right)}", _cure(left, right)
        )
    return _plain(node, as_type(left, common, scope), as_type(right, common, scope))


def _plain(node: Binary, left: Term, right: Term) -> Term:
    kernel = _KERNEL[node.op]
    return make_term(pa.bool_(), lambda batch: kernel(left.run(batch), right.run(batch)), node, [left, right])


def _cure(left: Term, right: Term) -> str:
    kinds = {left.kind, right.kind}
    if "string" in kinds and kinds & {"integer", "float", "decimal"}:
        text = left if left.kind == "string" else right
        if text.literal is not None:
            return "write the number without quotes, or string(x) around the column"
        return "write the value in quotes, float(x) around the text, or give its type: columns: {x: float64}"
    if "bool" in kinds and kinds & {"integer", "float"}:
        return "compare with true or false, or write int(x)"
    if "timestamp" in kinds and len(kinds) == 1:
        return "a timestamp with a time zone compares only with one that has one"
    return "compare values of one type; string(x), int(x) and float(x) convert"


def _literal_beside_decimal(term: Term, other: Term) -> Term:
    """``price > 9.99``, price a decimal: the literal is the decimal it spells, not the nearest float."""
    if other.kind != "decimal" or term.literal is None or term.literal.kind != "float":
        return term
    exact = decimal.Decimal(term.literal.text)
    _, digits, exponent = exact.as_tuple()
    if not isinstance(exponent, int) or len(digits) + abs(exponent) > 30:
        return term  # compared as floats: no decimal is that large or that fine
    value = pa.scalar(exact.quantize(decimal.Decimal(1)) if exponent > 0 else exact)
    if decimal_type([value.type, other.type]) is None:
        return term
    return constant_term(value, term.node)


# --- int with float ------------------------------------------------------------------------------


def _int_and_float(node: Binary, op: str, ints: Term, floats: Term, scope: Scope) -> Term:
    """``ints op floats``, exactly."""
    if floats.constant is not None and floats.constant.is_valid and ints.constant is None:
        return _int_with_float_literal(node, op, ints, floats.constant.as_py())
    wide = as_type(floats, pa.float64(), scope)
    if ints.constant is not None and ints.constant.is_valid:
        return _float_with_int_literal(node, _FLIPPED[op], wide, ints.constant.as_py())

    def run(batch: pa.RecordBatch) -> Value:
        return _compare_exactly(op, ints.run(batch), wide.run(batch))

    return make_term(pa.bool_(), run, node, [ints, wide])


def _always(answer: bool, term: Term) -> Callable[[pa.RecordBatch], Value]:
    """`answer`, and null where the term is null."""

    def run(batch: pa.RecordBatch) -> Value:
        valid = pc.is_valid(term.run(batch))
        return pc.if_else(valid, pa.scalar(answer), pa.scalar(None, pa.bool_()))

    return run


def _int_with_float_literal(node: Binary, op: str, ints: Term, number: float) -> Term:
    if math.isnan(number):
        return make_term(pa.bool_(), _always(op == "!=", ints), node, [ints])
    if op in ("==", "!=") and not (math.isfinite(number) and number == math.floor(number)):
        return make_term(pa.bool_(), _always(op == "!=", ints), node, [ints])
    if math.isinf(number):
        return make_term(pa.bool_(), _always((number > 0) == (op in ("<", "<=")), ints), node, [ints])
    bound = math.ceil(number) if op in ("<", ">=") else math.floor(number)
    bits, signed = ints.type.bit_width, pa.types.is_signed_integer(ints.type)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if not low <= bound <= high:
        answer = op in (("!=", "<", "<=") if bound > high else ("!=", ">", ">="))
        return make_term(pa.bool_(), _always(answer, ints), node, [ints])
    scalar = pa.scalar(bound, ints.type)
    kernel = _KERNEL[op]
    return make_term(pa.bool_(), lambda batch: kernel(ints.run(batch), scalar), node, [ints])


def _float_with_int_literal(node: Binary, op: str, floats: Term, number: int) -> Term:
    near = float(number)
    if int(near) != number:  # no float is this int: compare with the floats around it
        if op in ("==", "!="):
            return make_term(pa.bool_(), _always(op == "!=", floats), node, [floats])
        below = near if int(near) < number else math.nextafter(near, -math.inf)
        near, op = (below, "<=") if op in ("<", "<=") else (math.nextafter(below, math.inf), ">=")
    scalar = pa.scalar(near)
    kernel = _KERNEL[op]
    return make_term(pa.bool_(), lambda batch: kernel(floats.run(batch), scalar), node, [floats])


def _compare_exactly(op: str, ints: Value, floats: Value) -> Value:
    bounds = pc.min_max(ints) if isinstance(ints, pa.Array) else {"min": ints, "max": ints}
    low, high = bounds["min"].as_py(), bounds["max"].as_py()
    if low is None or (low >= -_EXACT_INT and high <= _EXACT_INT):
        return _KERNEL[op](pc.cast(ints, pa.float64()), floats)
    if isinstance(floats, pa.Scalar) and not floats.is_valid:
        return pa.scalar(None, pa.bool_())
    x = (
        ints.fill_null(0).to_numpy(zero_copy_only=False)
        if isinstance(ints, pa.Array)
        else np.array([ints.as_py()])
    )
    y = (
        floats.fill_null(0.0).to_numpy(zero_copy_only=False)
        if isinstance(floats, pa.Array)
        else np.array([floats.as_py()])
    )
    x, y = np.broadcast_arrays(x, y)
    # Rounding keeps order: if the rounded int is below (above) the float, so is the int. Where they are
    # equal the float is a whole number near the int, and the two are compared as Python ints.
    rounded = x.astype(np.float64)
    result = _EXACT[op](rounded, y)
    for row in np.flatnonzero(rounded == y):
        result[row] = _EXACT[op](int(x[row]), int(y[row]))
    return from_numpy(result, pa.bool_(), ints, floats)


# --- in ------------------------------------------------------------------------------------------


def membership(node: In, operand: Term, scope: Scope) -> Term:
    """``x in (1, 2)``: equal to one of them. null gives null."""
    if operand.kind == "null":
        scope.refuse(node, "`null in (...)` is never true", "write `x is null`")
    term = as_type(operand, pa.float64(), scope) if operand.kind == "float" else operand
    values = [value for item in node.items for value in _equal_values(item, term, scope)]
    chosen = pa.array(values, term.type)

    def run(batch: pa.RecordBatch) -> Value:
        value = term.run(batch)
        found = pc.is_in(value, value_set=chosen)
        if node.negated:
            found = pc.invert(found)
        if isinstance(value, pa.Scalar):
            return found if value.is_valid else pa.scalar(None, pa.bool_())
        if value.null_count:
            return pc.if_else(value.is_valid(), found, pa.scalar(None, pa.bool_()))
        return found

    return make_term(pa.bool_(), run, node, [term])


def _equal_values(item: Literal, term: Term, scope: Scope) -> list[Any]:
    """The values of the term's type that equal the literal: none if it has no such value (2.5 of ints),
    two for a float zero, whose signs hash apart."""
    wanted = {
        "integer": ("int", "float"),
        "float": ("int", "float"),
        "decimal": ("int", "float"),
        "string": ("string",),
        "bool": ("bool",),
    }.get(term.kind, ("string",))
    if item.kind not in wanted or term.kind == "other":
        scope.refuse(
            item,
            f"{item.text} in the list cannot equal {describe(term)}",
            "write texts in quotes and numbers without; string(x), int(x) and float(x) convert",
        )
    if term.kind in ("string", "bool"):
        return [item.value]
    if term.kind == "float":
        number = float(item.value)
        return [0.0, -0.0] if number == 0 else [number] if number == item.value else []
    if term.kind == "integer":
        whole = int(item.value)
        try:
            return [pa.scalar(whole, term.type).as_py()] if whole == item.value else []
        except (pa.ArrowInvalid, OverflowError):
            return []
    if term.kind == "decimal":
        try:
            return [pa.scalar(decimal.Decimal(item.text), term.type).as_py()]
        except pa.ArrowInvalid:
            return []
    literal = constant_term(pa.scalar(item.value), item)
    constant = as_type(literal, term.type, scope).constant
    return [constant]

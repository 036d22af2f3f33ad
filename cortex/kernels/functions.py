"""What each function of `cortex.job.functions` computes: one builder a name, in IMPLEMENTATIONS.

A builder gets the call and its compiled arguments (their number is checked by the parser), refuses
types it does not take, and returns a term. Null arguments give null, but for `coalesce` and `if_else`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from cortex.errors import ConversionError, OverflowedSum
from cortex.job.expressions import Call
from cortex.job.functions import FUNCTIONS
from cortex.kernels.casts import int_digits, moment_text
from cortex.kernels.terms import (
    INT64_MAX,
    INT64_MIN,
    Scope,
    Term,
    Value,
    as_type,
    describe,
    first_row,
    is_text_literal,
    is_true,
    make_term,
    run_where,
    shared_type,
)

Builder = Callable[[Call, list[Term], Scope], Term]
_NUMBERS: Final = ("integer", "float", "decimal")


def _expect(call: Call, term: Term, scope: Scope, *kinds: str) -> None:
    if term.kind not in (*kinds, "null"):
        _refuse(call, term, scope)


def _refuse(call: Call, term: Term, scope: Scope) -> NoReturn:
    usage = FUNCTIONS[call.function]
    scope.refuse(term.node, f"{call.function} does not take {describe(term)}", f"{usage.usage}: {usage.doc}")


def _map(call: Call, term: Term, result: pa.DataType, kernel: Callable[[Value], Value]) -> Term:
    return make_term(result, lambda batch: kernel(term.run(batch)), call, [term])


# --- numbers -------------------------------------------------------------------------------------


def _number(call: Call, term: Term, scope: Scope) -> Term:
    """The argument as int64 (uint64 stays), float64 or decimal."""
    _expect(call, term, scope, *_NUMBERS)
    if term.kind == "float":
        return as_type(term, pa.float64(), scope)
    if term.kind == "decimal" or term.type == pa.uint64():
        return term
    return as_type(term, pa.int64(), scope)


def _abs(call: Call, args: list[Term], scope: Scope) -> Term:
    term = _number(call, args[0], scope)

    def run(batch: pa.RecordBatch) -> Value:
        value = term.run(batch)
        try:
            return pc.abs_checked(value)
        except pa.ArrowInvalid as error:
            row, (found,) = first_row(lambda v: v == INT64_MIN, value)
            message = f"abs({found}) does not fit in 64 bits"
            raise scope.row_error(OverflowedSum, call, message, "use float(x)", row) from error

    return make_term(term.type, run, call, [term])


def _whole(kernel: Callable[[Value], Value]) -> Builder:
    def build(call: Call, args: list[Term], scope: Scope) -> Term:
        term = _number(call, args[0], scope)
        if term.kind == "decimal":
            return _rounded_decimal(call, term, kernel, scope)
        return term if term.kind == "integer" else _map(call, term, term.type, kernel)

    return build


def _rounded_decimal(call: Call, term: Term, kernel: Callable[[Value], Value], scope: Scope) -> Term:
    """Rounding may need a digit more (99.9 -> 100.0). Arrow's kernel has no room for it and gives 0, unless
    it is the last row's: so it works on a type with that digit, the result's too while there is one."""
    digits, scale = term.type.precision + 1, term.type.scale
    if digits > 76:
        scope.refuse(
            call, f"{call.function} of {describe(term)} may need more digits than there are", "use float(x)"
        )
    wide = pa.decimal128(digits, scale) if digits <= 38 else pa.decimal256(digits, scale)
    narrow = wide if digits <= 38 or pa.types.is_decimal256(term.type) else term.type

    def run(batch: pa.RecordBatch) -> Value:
        return pc.cast(kernel(pc.cast(term.run(batch), wide)), narrow)

    return make_term(narrow, run, call, [term])


def _round(call: Call, args: list[Term], scope: Scope) -> Term:
    term, digits = _number(call, args[0], scope), 0
    if len(args) == 2:
        constant = args[1].constant
        if args[1].kind != "integer" or constant is None or not -30 <= constant.as_py() <= 30:
            scope.refuse(
                args[1].node, "the digits of round are an int literal from -30 to 30", "write round(x, 2)"
            )
        digits = constant.as_py()
    if term.kind == "integer":
        if digits >= 0:
            return term
        scope.refuse(
            args[1].node, "an int has no digits to round away behind the point", "write x // 100 * 100"
        )
    if term.kind == "decimal" and digits >= term.type.scale:
        return term
    if term.kind == "decimal" and -digits > term.type.precision - term.type.scale:
        scope.refuse(
            args[1].node, f"round takes every digit of {describe(args[0])} away", "write fewer, or float(x)"
        )
    half_even = partial(pc.round, ndigits=digits, round_mode="half_to_even")
    if term.kind == "decimal":
        return _rounded_decimal(call, term, half_even, scope)
    return _map(call, term, term.type, half_even if digits < 0 else partial(_round_fraction, half_even))


def _round_fraction(half_even: Callable[[Value], Value], value: Value) -> Value:
    """A float from 2**52 on has no fraction; Arrow's way to round it, by powers of ten, may overflow."""
    whole = pc.greater_equal(pc.abs(value), 2.0**52)
    return pc.if_else(whole, value, half_even(pc.if_else(whole, 0.0, value)))


def _int(call: Call, args: list[Term], scope: Scope) -> Term:
    term = args[0]
    _expect(call, term, scope, *_NUMBERS, "bool", "string")
    if term.kind in ("integer", "null", "bool"):
        return (
            as_type(term, pa.int64(), scope)
            if term.kind != "bool"
            else _map(call, term, pa.int64(), lambda v: pc.cast(v, pa.int64()))
        )
    if term.kind == "string":
        return _from_text(call, term, pa.int64(), _trimmed_int, scope)

    def run(batch: pa.RecordBatch) -> Value:
        value = term.run(batch)
        if term.kind == "float":
            value = pc.trunc(pc.cast(value, pa.float64()))
        else:
            value = pc.round(value, ndigits=0, round_mode="towards_zero")
        try:
            return pc.cast(value, pa.int64())
        except pa.ArrowInvalid:
            return _large_floats(value) if term.kind == "float" else fail(value)

    def _large_floats(value: Value) -> Value:
        # Arrow refuses a float beyond 2**53, though it is a whole number that int64 holds
        inside = pc.and_(pc.greater_equal(value, float(INT64_MIN)), pc.less(value, float(2**63)))
        if pc.all(pa.array([inside.as_py()]) if isinstance(inside, pa.Scalar) else inside).as_py() is False:
            return fail(value)
        return pc.cast(value, pa.int64(), safe=False)

    def fail(value: Value) -> NoReturn:
        row, (found,) = first_row(lambda v: not INT64_MIN <= v <= INT64_MAX, value)
        message = f"int({found}) does not fit in 64 bits" if found == found else "int(nan) has no value"
        raise scope.row_error(ConversionError, call, message, "leave such rows out with where", row)

    return make_term(pa.int64(), run, call, [term])


def _trimmed_int(value: Value) -> Value:
    return pc.cast(int_digits(pc.utf8_trim_whitespace(value)), pa.int64())


def _trimmed_float(value: Value) -> Value:
    return pc.cast(pc.utf8_trim_whitespace(value), pa.float64())


def _from_text(
    call: Call, term: Term, target: pa.DataType, convert: Callable[[Value], Value], scope: Scope
) -> Term:
    text = term if term.type == pa.string() else as_type(term, pa.large_string(), scope)

    def run(batch: pa.RecordBatch) -> Value:
        value = text.run(batch)
        try:
            return convert(value)
        except pa.ArrowInvalid as error:
            row, (found,) = first_row(lambda v: not _converts(convert, v), value)
            message = f"{call.function}({found!r}): the text is not a number of type {target}"
            cure = "leave such rows out with where, or replace them: if_else(x == '...', null, x)"
            raise scope.row_error(ConversionError, call, message, cure, row) from error

    return make_term(target, run, call, [text])


def _converts(convert: Callable[[Value], Value], text: str) -> bool:
    try:
        convert(pa.scalar(text))
    except pa.ArrowInvalid:
        return False
    return True


def _float(call: Call, args: list[Term], scope: Scope) -> Term:
    term = args[0]
    _expect(call, term, scope, *_NUMBERS, "bool", "string")
    if term.kind == "string":
        return _from_text(call, term, pa.float64(), _trimmed_float, scope)
    if term.kind == "bool":
        return _map(call, term, pa.float64(), lambda v: pc.cast(v, pa.float64()))
    return as_type(term, pa.float64(), scope)


# --- texts ---------------------------------------------------------------------------------------


def _string(call: Call, args: list[Term], scope: Scope) -> Term:
    term = args[0]
    if term.kind in ("other",):
        _refuse(call, term, scope)
    if term.kind == "string":
        return term
    if term.kind == "float":
        return _map(call, term, pa.string(), _float_text)
    if term.kind == "binary":

        def run(batch: pa.RecordBatch) -> Value:
            value = term.run(batch)
            try:
                return pc.cast(value, pa.string())
            except pa.ArrowInvalid as error:
                row, (found,) = first_row(lambda v: not _is_utf8(v), value)
                message = f"string({found!r}): the bytes are not UTF-8"
                raise scope.row_error(
                    ConversionError, call, message, "leave such rows out with where", row
                ) from error

        return make_term(pa.string(), run, call, [term])
    if term.kind in ("date", "timestamp", "time"):
        return _map(call, term, pa.string(), moment_text)
    return _map(call, term, pa.string(), lambda v: pc.cast(v, pa.string()))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _float_text(value: Value) -> Value:
    """The fewest digits that read back as the same float; a whole number keeps its ``.0``, as in Python."""
    text = pc.cast(value, pa.string())
    whole = pc.match_substring_regex(text, pattern=r"^-?[0-9]+$")
    return pc.if_else(whole, pc.binary_join_element_wise(text, pa.scalar(".0"), pa.scalar("")), text)


def _text(kernel: Callable[[Value], Value], result: pa.DataType | None = None) -> Builder:
    def build(call: Call, args: list[Term], scope: Scope) -> Term:
        _expect(call, args[0], scope, "string")
        term = args[0] if args[0].kind == "string" else as_type(args[0], pa.string(), scope)
        return _map(call, term, result or term.type, kernel)

    return build


def _length(call: Call, args: list[Term], scope: Scope) -> Term:
    _expect(call, args[0], scope, "string", "binary")
    term = args[0] if args[0].kind != "null" else as_type(args[0], pa.string(), scope)
    kernel = pc.binary_length if term.kind == "binary" else pc.utf8_length
    return _map(call, term, pa.int64(), lambda v: pc.cast(kernel(v), pa.int64()))


def _search(kernel: Callable[..., Value]) -> Builder:
    def build(call: Call, args: list[Term], scope: Scope) -> Term:
        _expect(call, args[0], scope, "string")
        if not is_text_literal(args[1]):
            scope.refuse(
                args[1].node,
                f"the part that {call.function} looks for is a text literal, not {describe(args[1])}",
                f"write {FUNCTIONS[call.function].usage}",
            )
        part = args[1].literal.value if args[1].literal else ""
        term = args[0] if args[0].kind == "string" else as_type(args[0], pa.string(), scope)
        return _map(call, term, pa.bool_(), lambda v: kernel(v, pattern=part))

    return build


# --- dates and times -----------------------------------------------------------------------------


def _date_part(kernel: Callable[[Value], Value], *kinds: str) -> Builder:
    def build(call: Call, args: list[Term], scope: Scope) -> Term:
        _expect(call, args[0], scope, *kinds)
        term = args[0] if args[0].kind != "null" else as_type(args[0], pa.timestamp("us"), scope)
        return _map(call, term, pa.int64(), kernel)

    return build


# --- choices -------------------------------------------------------------------------------------


def _one_type(call: Call, terms: list[Term], scope: Scope) -> list[Term]:
    common = shared_type(terms)
    if common is None:
        odd = next((term for term in terms if shared_type([terms[0], term]) is None), terms[-1])
        scope.refuse(
            odd.node,
            f"{call.function} gives one type, not {describe(terms[0])} and {describe(odd)}",
            "convert with string(x), int(x) or float(x)",
        )
    return [as_type(term, common, scope) for term in terms]


def _if_else(call: Call, args: list[Term], scope: Scope) -> Term:
    if args[0].kind not in ("bool", "null"):
        scope.refuse(
            args[0].node, f"the condition of if_else is a bool, not {describe(args[0])}", "write x != 0"
        )
    condition = as_type(args[0], pa.bool_(), scope)
    yes, no = _one_type(call, args[1:], scope)

    def run(batch: pa.RecordBatch) -> Value:
        chosen = is_true(condition.run(batch))
        a = run_where(yes, batch, lambda: chosen)
        b = run_where(no, batch, lambda: pc.invert(chosen))
        return pc.if_else(chosen, a, b)

    return make_term(yes.type, run, call, [condition, yes, no])


def _coalesce(call: Call, args: list[Term], scope: Scope) -> Term:
    terms = _one_type(call, args, scope)

    def run(batch: pa.RecordBatch) -> Value:
        found = terms[0].run(batch)
        for term in terms[1:]:
            if found.is_valid if isinstance(found, pa.Scalar) else found.null_count == 0:
                return found
            found = pc.coalesce(found, run_where(term, batch, partial(pc.is_null, found)))
        return found

    return make_term(terms[0].type, run, call, terms)


IMPLEMENTATIONS: Final[dict[str, Builder]] = {
    "abs": _abs,
    "ceil": _whole(pc.ceil),
    "coalesce": _coalesce,
    "contains": _search(pc.match_substring),
    "day": _date_part(pc.day, "date", "timestamp"),
    "ends_with": _search(pc.ends_with),
    "float": _float,
    "floor": _whole(pc.floor),
    "hour": _date_part(pc.hour, "timestamp"),
    "if_else": _if_else,
    "int": _int,
    "length": _length,
    "lower": _text(pc.utf8_lower),
    "month": _date_part(pc.month, "date", "timestamp"),
    "round": _round,
    "starts_with": _search(pc.starts_with),
    "string": _string,
    "trim": _text(pc.utf8_trim_whitespace),
    "upper": _text(pc.utf8_upper),
    "year": _date_part(pc.year, "date", "timestamp"),
}

"""Compiled expressions against a plain Python interpreter of the same tree, row by row.

Column names and literals are generated with their type, so that most trees are well typed; the oracle
implements the documented meaning (Kleene logic, floor division, exact comparison) with Python's own ints
and floats.
"""

from __future__ import annotations

import functools
import math
import operator
import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.errors import ConversionError, DivisionByZero, ExpressionError, OverflowedSum
from cortex.job.expressions import Binary, Call, Column, In, IsNull, Literal, Node, Unary, parse_expression
from cortex.kernels.expressions import compile_expression, compile_filter

SCHEMA = pa.schema(
    {
        "i": pa.int64(),
        "small": pa.int8(),
        "u": pa.uint64(),
        "f": pa.float64(),
        "b": pa.bool_(),
        "s": pa.string(),
    }
)


class Fails(Exception):
    """The documented errors, as the oracle raises them."""


# --- the oracle ----------------------------------------------------------------------------------


def evaluate(node: Node, row: dict[str, Any]) -> Any:
    match node:
        case Literal():
            return node.value
        case Column():
            return row[node.name]
        case Unary():
            value = evaluate(node.operand, row)
            if value is None:
                return None
            return (not value) if node.op == "not" else fit(-value if node.op == "-" else value)
        case IsNull():
            return (evaluate(node.operand, row) is None) != node.negated
        case In():
            value = evaluate(node.operand, row)
            return None if value is None else any(value == item.value for item in node.items) != node.negated
        case Call():
            return call(node, row)
        case Binary():
            return binary(node, row)


def call(node: Call, row: dict[str, Any]) -> Any:
    if node.function == "if_else":
        return evaluate(node.args[1] if evaluate(node.args[0], row) is True else node.args[2], row)
    if node.function == "coalesce":
        values = (evaluate(arg, row) for arg in node.args)
        return next((v for v in values if v is not None), None)
    value = evaluate(node.args[0], row)
    if value is None:
        return None
    if node.function == "abs":
        return fit(abs(value))
    functions: dict[str, Callable[[Any], Any]] = {"length": len, "lower": str.lower, "float": float}
    return functions[node.function](value)


def binary(node: Binary, row: dict[str, Any]) -> Any:
    a = evaluate(node.left, row)
    if node.op in ("and", "or"):
        decides = node.op == "or"
        if a is decides:
            return decides
        b = evaluate(node.right, row)
        return decides if b is decides else None if None in (a, b) else not decides
    b = evaluate(node.right, row)
    if a is None or b is None:
        return None
    compare = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}.get(node.op)
    if compare:
        return getattr(operator, compare)(a, b)
    if isinstance(a, str):
        return a + b
    if node.op == "/" or isinstance(a, float) or isinstance(b, float):
        return floats(node.op, float(a), float(b))
    if node.op in ("//", "%"):
        if b == 0:
            raise Fails
        return fit(a // b if node.op == "//" else a % b)
    return fit(PYTHON[node.op](a, b))


PYTHON: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}


def floats(op: str, a: float, b: float) -> float:
    if b == 0 and op in ("/", "//"):
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)
    if b == 0 and op == "%":
        return math.nan
    return float(PYTHON[op](a, b))


def fit(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        raise Fails
    return value


# --- generated expressions -----------------------------------------------------------------------

INTS = st.one_of(
    st.integers(-5, 5),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([2**53, 2**53 + 1, -(2**63), 2**63 - 1]),
)
FLOATS = st.one_of(
    st.floats(), st.sampled_from([0.0, -0.0, 2.0**53, 2.0**63, -(2.0**63), 0.5, math.nan, math.inf])
)
TEXTS = st.sampled_from(["", "a", "b", "Ab", "ü", "a'b", 'x"y', "\\", "\n"])


def quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def finite(value: float) -> str:
    return repr(value) if math.isfinite(value) else "1.5"


Texts = st.SearchStrategy[str]


def joined(pattern: str, *parts: Texts) -> Texts:
    return st.tuples(*parts).map(lambda found: pattern.format(*found))


KINDS = ("int", "float", "text", "bool")


def lower_trees(depth: int, kind: str) -> Texts:
    return st.deferred(lambda: trees(depth - 1)[kind])


@functools.cache
def trees(depth: int) -> dict[str, Texts]:
    """Expressions of each kind, at most `depth` operations high."""
    leaves: dict[str, Texts] = {
        "int": st.one_of(st.sampled_from(["i", "small"]), INTS.map(str)),
        "float": st.one_of(st.just("f"), FLOATS.map(finite)),
        "text": st.one_of(st.just("s"), TEXTS.map(quoted)),
        "bool": st.sampled_from(["b", "true", "false"]),
    }
    if depth == 0:
        return leaves
    whole, real, text, truth = (lower_trees(depth, kind) for kind in KINDS)
    number = st.one_of(whole, real)
    op = st.sampled_from(["+", "-", "*", "/", "//", "%"])
    int_op = st.sampled_from(["+", "-", "*", "//", "%"])
    compare = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
    literals = st.lists(st.one_of(INTS.map(str), FLOATS.map(finite)), min_size=1, max_size=3).map(", ".join)
    return {
        "int": st.one_of(
            leaves["int"],
            joined("({} {} {})", whole, int_op, whole),
            joined("-({})", whole),
            joined("if_else({}, {}, {})", truth, whole, whole),
            joined("coalesce({}, {})", whole, whole),
            joined("abs({})", whole),
            joined("length({})", text),
        ),
        "float": st.one_of(
            leaves["float"],
            joined("({} {} {})", number, op, real),
            joined("({} / {})", whole, whole),
            joined("float({})", whole),
            joined("-({})", real),
        ),
        "text": st.one_of(leaves["text"], joined("({} + {})", text, text), joined("lower({})", text)),
        "bool": st.one_of(
            leaves["bool"],
            joined("({} {} {})", number, compare, number),
            joined("({} {} {})", text, compare, text),
            joined("({} and {})", truth, truth),
            joined("({} or {})", truth, truth),
            joined("(not {})", truth),
            joined("({} is null)", number),
            joined("({} in ({}))", number, literals),
            joined("({} not in [{}])", number, literals),
        ),
    }


EXPRESSIONS = st.one_of(*trees(3).values())
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "i": st.none() | INTS,
            "small": st.none() | st.integers(-128, 127),
            "u": st.none() | st.integers(0, 2**64 - 1),
            "f": st.none() | FLOATS,
            "b": st.none() | st.booleans(),
            "s": st.none() | TEXTS,
        }
    ),
    max_size=6,
)


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit: of the same type, nan like nan, and zeros of one sign."""
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or struct.pack("d", a) == struct.pack("d", b)
    return type(a) is type(b) and bool(a == b)


@settings(max_examples=600, deadline=None)
@given(EXPRESSIONS, ROWS)
def test_as_plain_python(text: str, rows: list[dict[str, Any]]) -> None:
    parsed = parse_expression(text)
    batch = pa.RecordBatch.from_pylist([{}, *rows, {}], schema=SCHEMA).slice(1, len(rows))
    compiled = compile_expression(parsed, SCHEMA)
    expected: list[Any] = []
    failing = None
    for number, row in enumerate(rows):
        try:
            expected.append(evaluate(parsed.root, row))
        except Fails:
            failing = number
            break
    if failing is not None:
        with pytest.raises((OverflowedSum, DivisionByZero)):
            compiled.evaluate(batch)
        return
    if not rows:
        assert len(compiled.evaluate(batch)) == 0
        return
    found = compiled.evaluate(batch)
    assert isinstance(found, pa.Array)
    assert found.type == compiled.type
    for got, wanted in zip(found.to_pylist(), expected, strict=True):
        assert same(got, wanted), (text, got, wanted)


NUMBERS = {"i": INTS, "small": st.integers(-128, 127), "u": st.integers(0, 2**64 - 1), "f": FLOATS}


@settings(max_examples=200, deadline=None)
@given(
    st.data(),
    st.sampled_from(sorted(NUMBERS)),
    st.sampled_from(sorted(NUMBERS)),
    st.sampled_from(["==", "<", ">="]),
)
def test_numbers_of_any_two_types_compare_exactly(data: Any, left: str, right: str, op: str) -> None:
    pairs = data.draw(st.lists(st.tuples(NUMBERS[left], NUMBERS[right]), min_size=1, max_size=5))
    schema = pa.schema({"x": SCHEMA.field(left).type, "y": SCHEMA.field(right).type})
    batch = pa.RecordBatch.from_pylist([{"x": x, "y": y} for x, y in pairs], schema=schema)
    compare = {"==": operator.eq, "<": operator.lt, ">=": operator.ge}[op]
    found = compile_filter(parse_expression(f"x {op} y"), schema).evaluate(batch).to_pylist()
    assert found == [compare(x, y) for x, y in pairs]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab1.0'\"`()[],+-*/%=<>! \\\n#andorti", max_size=30) | st.text(max_size=12))
def test_any_text_parses_or_is_refused_with_its_place(text: str) -> None:
    refused = None
    try:
        parse_expression(text)
    except ExpressionError as error:
        refused = error
    if refused is not None:
        assert 0 <= refused.position <= len(text)
        assert "^" in refused.details["expression"]


@settings(max_examples=200, deadline=None)
@given(EXPRESSIONS)
def test_spaces_do_not_matter(text: str) -> None:
    assert (
        parse_expression("  " + text.replace("(", "( ").replace(")", " )") + "\n") == parse_expression(text)
        or "'" in text
    )


def computed(text: str, column: pa.Array) -> list[Any]:
    batch = pa.RecordBatch.from_arrays([column], ["x"])
    return list(compile_expression(parse_expression(text), batch.schema).evaluate(batch).to_pylist())


@settings(max_examples=200, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=5))
def test_floats_as_text_read_back_bit_for_bit(values: list[float]) -> None:
    texts = computed("string(x)", pa.array(values))
    assert all(same(float(text), value) for text, value in zip(texts, values, strict=True))
    for value, text in zip(values, texts, strict=True):
        if value.is_integer():
            assert text.endswith(".0") or "e+" in text  # it does not read as an int
        else:
            assert not text.endswith(".0")
    assert all(
        same(a, b) for a, b in zip(computed("float(string(x))", pa.array(values)), values, strict=True)
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=5))
def test_int_cuts_towards_zero_or_refuses(values: list[float]) -> None:
    outside = [not math.isfinite(v) or not -(2**63) <= int(v) < 2**63 for v in values]
    if any(outside):
        with pytest.raises(ConversionError) as caught:
            computed("int(x)", pa.array(values))
        assert caught.value.batch_row == outside.index(True)
    else:
        assert computed("int(x)", pa.array(values)) == [int(v) for v in values]

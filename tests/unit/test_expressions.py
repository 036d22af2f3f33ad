"""The expression language: what parses to what, what is refused and where, and what it computes."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from cortex.errors import (
    ColumnError,
    ConversionError,
    CortexError,
    DivisionByZero,
    ExpressionError,
    OverflowedSum,
)
from cortex.job.aggregates import parse_aggregate
from cortex.job.expressions import Binary, Column, Literal, Unary, columns_of, parse_expression, quote_name
from cortex.job.functions import AGGREGATES, FUNCTIONS
from cortex.kernels.aggregates import FUNCTIONS as AGGREGATE_KERNELS
from cortex.kernels.aggregates import result_type
from cortex.kernels.expressions import compile_expression, compile_filter
from cortex.kernels.functions import IMPLEMENTATIONS

ROW: dict[str, Any] = {
    "station": "Oslo", "temp": 1.5, "n": 7, "u": 2**64 - 1, "small": 5, "day": dt.date(2024, 2, 3),
    "at": dt.datetime(2024, 2, 3, 4, 5, 6), "zoned": dt.datetime(2024, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
    "price": Decimal("9.99"), "ok": True, "raw": b"ab", "clock": dt.time(1, 2), "my col": 3,
}  # fmt: skip
SCHEMA = pa.schema(
    {
        "station": pa.string(), "temp": pa.float64(), "n": pa.int64(), "u": pa.uint64(), "small": pa.int8(),
        "day": pa.date32(), "at": pa.timestamp("us"), "zoned": pa.timestamp("us", "UTC"),
        "price": pa.decimal128(12, 2), "ok": pa.bool_(), "raw": pa.binary(), "clock": pa.time64("us"),
        "my col": pa.int64(),
    }
)  # fmt: skip
BATCH = pa.RecordBatch.from_pylist([ROW, dict.fromkeys(ROW)], schema=SCHEMA)


def value(text: str) -> Any:
    """What the expression gives for ROW."""
    return compile_expression(parse_expression(text), SCHEMA).evaluate(BATCH.slice(0, 1)).to_pylist()[0]


def of_null(text: str) -> Any:
    """What it gives for a row of nulls."""
    return compile_expression(parse_expression(text), SCHEMA).evaluate(BATCH).to_pylist()[1]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a + b * c", "a + (b * c)"),
        ("a - b - c", "(a - b) - c"),
        ("a / b * c", "(a / b) * c"),
        ("-a * b", "(-a) * b"),
        ("not a == b", "not (a == b)"),
        ("a and b or c and d", "(a and b) or (c and d)"),
        ("not a and b", "(not a) and b"),
        ("a + 1 < b * 2", "(a + 1) < (b * 2)"),
        ("a is not null and b", "(a is not null) and b"),
        ("a in (1, 2,) or b", "(a in [1, 2]) or b"),
        ("a AND NOT b", "a and not b"),
        ("a == TRUE", "a == true"),
        ("`a` + ABS(b)", "a + abs(b)"),
        ("-3", "- 3"),
    ],
)
def test_precedence_is_pythons(text: str, same: str) -> None:
    assert parse_expression(text) == parse_expression(same)


def test_different_literals_are_not_the_same_expression() -> None:
    assert (
        len({parse_expression(t) for t in ("x + 1", "x + 1.0", "x + true", "x + '1'", "x - 1", "y + 1")}) == 6
    )


def test_literals() -> None:
    def literal(text: str) -> Any:
        root = parse_expression(text).root
        assert isinstance(root, Literal)
        return root.value

    assert literal("1_000") == 1000
    assert literal("-9223372036854775808") == -(2**63)
    assert literal("18446744073709551615") == 2**64 - 1
    assert literal(".5e1") == 5.0
    assert literal(r"'a\'b\n\x41\u00fc\\'") == "a'b\nAü\\"
    assert literal('"it\'s"') == "it's"
    assert literal("None") is None


def test_names() -> None:
    assert columns_of(parse_expression("a + `b c` * Ü_1 - a - `x``y`")) == ("a", "b c", "Ü_1", "x`y")
    for name in ("a", "b c", "and", "x`y", "1st", "Null", "ü", "a.b"):
        assert parse_expression(quote_name(name)).root == Column(name, 0)
    root = parse_expression("-x").root
    assert isinstance(root, Unary)
    assert isinstance(parse_expression("x - -1").root, Binary)


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("", 1, "empty"),
        ("temp >", 7, "the expression ends"),
        ("temp = 3", 6, "write =="),
        ("temp <> 3", 6, "write !="),
        ("a && b", 3, "write `and`"),
        ("a < b < c", 7, "chained"),
        ("a in 3", 6, "list"),
        ("a in (b)", 7, "literals"),
        ("a in ()", 7, "empty"),
        ("a in (null)", 7, "is null"),
        ("a == null", 6, "is null"),
        ("a is 3", 6, "null"),
        ("(a", 3, "')'"),
        ("a)", 2, "closes nothing"),
        ("a b", 3, "operator"),
        ("'abc", 1, "never closed"),
        ("a $ b", 3, "no meaning"),
        ("a ** 2", 3, "no power"),
        ("a.b", 2, "backquotes"),
        ("lowr(a)", 1, "lower"),
        ("mean(a)", 1, "aggregate"),
        ("round()", 1, "1 to 2 arguments, not 0"),
        ("007", 1, "'007'"),
        ("1e999", 1, "too large"),
        ("99999999999999999999", 1, "64 bits"),
        ("-9223372036854775809", 1, "64 bits"),
        ("5abc", 1, "not a number"),
        (r"'a\qb'", 3, "escape"),
        ("a and", 6, "ends"),
        ("a + and", 5, "backquotes"),
        ("a\n  + $", 7, "no meaning"),
        ("``", 1, "empty"),
        ("__import__('os')", 1, "no function"),
    ],
)
def test_refused_at_its_place(text: str, column: int, said: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_expression(text)
    assert caught.value.details["column"] == str(column)
    assert said in str(caught.value)
    assert caught.value.position == column - 1


def test_caret_stands_under_the_place() -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_expression("x + " * 60 + "$ + y")
    line, caret = caught.value.details["expression"].split("\n")
    assert line[caret.index("^")] == "$"
    assert len(line) < 120


def test_depth_is_bounded_without_a_python_recursion_error() -> None:
    for text in (
        "(" * 500 + "a",
        "-" * 500 + "a",
        "abs(" * 500 + "a",
        " or ".join(["a"] * 500),
        "not " * 500 + "a",
    ):
        with pytest.raises(ExpressionError, match="nested"):
            parse_expression(text)
    chain = parse_expression(" or ".join(["n == 1"] * 190) + " or n == 7")
    assert compile_filter(chain, SCHEMA).evaluate(BATCH).to_pylist() == [True, None]
    assert value("(" * 70 + "n" + ")" * 70) == 7


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("temp > -90 and station != 'test'", True),
        ("temp * 9 / 5 + 32", 34.7),
        ("n / 2", 3.5),
        ("-n // 2", -4),
        ("-n % 4", 1),
        ("small * 100", 500),
        ("n / 0", float("inf")),
        ("temp // 0", float("inf")),
        ("u // 2", 2**63 - 1),
        ("u == 18446744073709551615", True),
        ("u > n", True),
        ("n == 7.0", True),
        ("n < 7.5", True),
        ("price == 9.99", True),
        ("price in (9.99, 3)", True),
        ("price > 9", True),
        ("price * 2", Decimal("19.98")),
        ("price + n", Decimal("16.99")),
        ("price / 3", 3.33),
        ("-price", Decimal("-9.99")),
        ("station + '-' + 'x'", "Oslo-x"),
        ("day >= '2024-02-03'", True),
        ("day in ('2024-02-03', '2024-02-04')", True),
        ("at < '2024-02-03 04:05:07'", True),
        ("zoned == '2024-02-03T05:05:06+01:00'", True),
        ("clock > '01:00:00'", True),
        ("day < at", True),
        ("raw == 'ab'", True),
        ("ok == true", True),
        ("not ok or n is not null", True),
        ("n not in (1, 2.5)", True),
        ("`my col` + 1", 4),
        ("null is null", True),
        ("1", 1),
        ("int(null)", None),
        ("abs(-n)", 7),
        ("round(2.5)", 2.0),
        ("round(1.25, 1)", 1.2),
        ("round(1.1e308, 2)", 1.1e308),
        ("round(temp * 3002399751580331.0, 2)", 4503599627370496.5 // 1),
        ("round(1e300, -2)", 1e300),
        ("floor(-temp)", -2.0),
        ("ceil(temp)", 2.0),
        ("lower(upper(station))", "oslo"),
        ("trim('  a ')", "a"),
        ("length('über')", 4),
        ("length(raw)", 2),
        ("coalesce(null, n, 1 // 0)", 7),
        ("if_else(n > 3, 'big', 'small')", "big"),
        ("if_else(n == 0, 0, 100 // n)", 14),
        ("int('  +12 ')", 12),
        ("int(-2.9)", -2),
        ("int(9007199254740994.0)", 9007199254740994),
        ("int(price)", 9),
        ("int(ok)", 1),
        ("float('1e3')", 1000.0),
        ("float(small)", 5.0),
        ("string(2.0)", "2.0"),
        ("string(0.1)", "0.1"),
        ("string(n)", "7"),
        ("string(ok)", "true"),
        ("string(day)", "2024-02-03"),
        ("string(price)", "9.99"),
        ("string(raw)", "ab"),
        ("year(day) * 10000 + month(at) * 100 + day(zoned)", 20240203),
        ("hour(at)", 4),
        ("contains(station, 'sl')", True),
        ("starts_with(station, 'O') and ends_with(station, 'lo')", True),
    ],
)
def test_values(text: str, wanted: Any) -> None:
    found = value(text)
    assert found == wanted
    assert type(found) is type(wanted)


def test_null_is_unknown() -> None:
    assert of_null("n + 1") is None
    assert of_null("n > 1") is None
    assert of_null("n in (1, 2)") is None
    assert of_null("n not in (1, 2)") is None
    assert of_null("n > 1 and false") is False
    assert of_null("n > 1 or true") is True
    assert of_null("not ok") is None
    assert of_null("if_else(ok, 1, 2)") == 2
    assert of_null("coalesce(n, 0)") == 0
    assert of_null("100 // n") is None


def test_and_or_if_else_leave_rows_out() -> None:
    batch = pa.RecordBatch.from_pydict({"n": [0, 5, None, 2], "s": ["x", "3", "4", None]})
    for text, wanted in (
        ("n != 0 and 10 // n > 2", [False, False, None, True]),
        ("n == 0 or 10 // n > 2", [True, False, None, True]),
        ("if_else(n == 0, -1, 10 // n)", [-1, 2, None, 5]),
        ("if_else(s == 'x', 0, int(s))", [0, 3, 4, None]),
        ("n != 0 and (n != 5 and 10 // n + 10 // (n - 5) > 2)", [False, False, None, False]),
    ):
        assert compile_expression(parse_expression(text), batch.schema).evaluate(batch).to_pylist() == wanted
    high = pa.RecordBatch.from_arrays([pa.array([Decimal("9" * 38), Decimal(1)])], ["d"])
    rounded = compile_expression(parse_expression("if_else(d > 1, d, round(d, -1))"), high.schema)
    assert rounded.evaluate(high).to_pylist() == [Decimal("9" * 38), Decimal(0)]
    with pytest.raises(ConversionError, match="does not fit"):
        compile_expression(parse_expression("round(d, -1)"), high.schema).evaluate(high)
    with pytest.raises(DivisionByZero) as caught:
        compile_expression(parse_expression("n != 5 and 10 // n > 2"), batch.schema).evaluate(batch)
    assert caught.value.batch_row == 0


@pytest.mark.parametrize(
    ("text", "kind", "row", "said"),
    [
        ("n + 9223372036854775807", OverflowedSum, 2, "1 + 9223372036854775807"),
        ("n * n", OverflowedSum, 4, "-9223372036854775808 * -9223372036854775808"),
        ("n - 1", OverflowedSum, 4, "64 bits"),
        ("-n", OverflowedSum, 4, "64 bits"),
        ("abs(n)", OverflowedSum, 4, "64 bits"),
        ("n // -1", OverflowedSum, 4, "64 bits"),
        ("5 // n", DivisionByZero, 1, "5 // 0"),
        ("n % n", DivisionByZero, 1, "0 % 0"),
        ("int(s)", ConversionError, 3, "'x'"),
        ("int(hex)", ConversionError, 2, "'0x10'"),
        ("int(if_else(n == 1, '+0Xff', null))", ConversionError, 2, "'+0Xff'"),
        ("float(s)", ConversionError, 3, "'x'"),
        ("int(f)", ConversionError, 1, "nan"),
        ("u + n", OverflowedSum, 2, "18446744073709551615"),
    ],
)
def test_errors_of_rows_name_the_row(text: str, kind: type[CortexError], row: int, said: str) -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "n": pa.array([None, 0, 1, None, -(2**63)]),
            "s": pa.array(["1", None, "2", "x", "y"]),
            "f": pa.array([1.0, float("nan"), None, 1e300, 2.0]),
            "u": pa.array([1, 2, 2**64 - 1, None, 4], pa.uint64()),
            "hex": pa.array(["1", None, "0x10", "+2", "0xFF"]),
        }
    )
    compiled = compile_expression(parse_expression(text), batch.schema)
    with pytest.raises(kind) as caught:
        compiled.evaluate(batch)
    assert caught.value.batch_row == row
    assert said in caught.value.message
    assert "^" in caught.value.details["expression"]


@pytest.mark.parametrize(
    ("text", "row", "said", "cure"),
    [
        ("string(day)", 4, "1073741824", "where"),
        ("string(at)", 3, "36028797018963968", "where"),
        ("string(zoned) == ''", 2, "-36028797018963968", "where"),
        ("if_else(n == 2, '', string(clock))", 2, "-1", "where"),
        ("round(high, -1)", 1, "precision 38", "'decimal(38,2)'"),
        ("round(high, -1) > 0 or 10 // n > 0", 0, "10 // 0", "where"),
    ],
)
def test_what_arrow_refuses_names_the_row(text: str, row: int, said: str, cure: str) -> None:
    far = 2**55
    batch = pa.RecordBatch.from_pydict(
        {
            "n": [0, 2, 3, 4, 5, 6],
            "day": pa.array([None, 1, -1, 11_248_736, 2**30, 0], pa.int32()).view(pa.date32()),
            "at": pa.array([None, 1, 2, far, -far, 0], pa.timestamp("s")),
            "zoned": pa.array([None, 1, -far, far, 0, 0], pa.timestamp("ms", "Europe/Berlin")),
            "clock": pa.array([None, -2, -1, 86_400, 86_399, 0], pa.int32()).view(pa.time32("s")),
            "high": [None, Decimal("9" * 38), Decimal(1), Decimal("9" * 38), None, None],
        }
    )
    compiled = compile_expression(parse_expression(text), batch.schema)
    with pytest.raises((ConversionError, DivisionByZero)) as caught:
        compiled.evaluate(batch)
    assert caught.value.batch_row == row
    assert said in caught.value.message
    assert cure in caught.value.cure
    kept = compiled.evaluate(batch.take(pa.array([5])))
    assert len(kept) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stattion == 'x'", "did you mean station?"),
        ("nothing == 1", "columns are: station"),
        ("station > 3", "column 'station' (string) with 3 (int)"),
        ("n == '3'", "without quotes"),
        ("station + n", "string(x)"),
        ("ok + 1", "int(x)"),
        ("day + 1", "year(x)"),
        ("ok and n", "`and` joins conditions"),
        ("not n", "`not`"),
        ("n in ('a')", "cannot equal column 'n' (int64)"),
        ("station in (1)", "in quotes"),
        ("zoned == '2024-02-03'", "T12:00:00Z"),
        ("day == 'x'", "'x' is not a date32"),
        ("at < zoned", "time zone"),
        ("ok == 1", "true or false"),
        ("null", "int(null)"),
        ("null + null == null or ok", ""),
        ("lower(n)", "does not take column 'n' (int64)"),
        ("hour(day)", "hour(t)"),
        ("contains(station, station)", "text literal"),
        ("if_else(n, 1, 2)", "condition"),
        ("if_else(ok, 1, 'a')", "one type"),
        ("price // 2", "float(x)"),
        ("raw + raw", "takes numbers"),
        ("round(temp, n)", "literal"),
        ("round(price, -25)", "float(x)"),
    ],
)
def test_types_are_checked_before_any_row(text: str, said: str) -> None:
    with pytest.raises(CortexError) as caught:
        compile_expression(parse_expression(text), SCHEMA)
    assert isinstance(caught.value, (ColumnError, ExpressionError))
    assert said in str(caught.value)


def test_filter_is_a_condition() -> None:
    with pytest.raises(ColumnError, match="true or false"):
        compile_filter(parse_expression("n + 1"), SCHEMA)


def test_rounded_decimals_have_room_for_the_digit_they_gain() -> None:
    batch = pa.RecordBatch.from_arrays(
        [pa.array([Decimal("99.99"), Decimal("-99.99"), None, Decimal("1.25")])], ["p"]
    )
    for text, wanted in (
        ("round(p)", ["100", "-100", None, "1"]),
        ("round(p, 1)", ["100", "-100", None, "1.2"]),
        ("ceil(p)", ["100", "-99", None, "2"]),
        ("round(p, -2)", ["100", "-100", None, "0"]),
        ("floor(p)", ["99", "-100", None, "1"]),
    ):
        found = compile_expression(parse_expression(text), batch.schema).evaluate(batch).to_pylist()
        assert found == [None if w is None else Decimal(w) for w in wanted], text


def test_result_types() -> None:
    def kind(text: str) -> pa.DataType:
        return compile_expression(parse_expression(text), SCHEMA).type

    assert kind("small") == pa.int8()
    assert kind("small + 1") == pa.int64()
    assert kind("u + 1") == pa.uint64()
    assert kind("u + n") == pa.int64()
    assert kind("n / 1") == pa.float64()
    assert kind("price * price") == pa.decimal128(25, 4)
    assert kind("coalesce(small, small)") == pa.int8()


def test_arrays_are_whole_typed_and_as_long_as_the_batch() -> None:
    for text in ("1", "'x'", "1 + 2 == 3", "n", "if_else(true, 1, 2)", "int(null)", "station in ('a')"):
        compiled = compile_expression(parse_expression(text), SCHEMA)
        for rows in (0, 1, 2):
            found = compiled.evaluate(BATCH.slice(0, rows))
            assert isinstance(found, pa.Array)
            assert len(found) == rows
            assert found.type == compiled.type


def test_dictionary_and_view_columns_are_computed_as_their_values() -> None:
    words = pa.array(["a", None, "b"])
    for column in (words.dictionary_encode(), words.cast(pa.string_view()), words.cast(pa.large_string())):
        batch = pa.RecordBatch.from_arrays([column], ["w"])
        for text, wanted in (("w + 'x'", ["ax", None, "bx"]), ("w in ('a')", [True, None, False])):
            assert (
                compile_expression(parse_expression(text), batch.schema).evaluate(batch).to_pylist() == wanted
            )


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(ColumnError, match="2 columns"):
        compile_expression(parse_expression("x"), pa.schema([("x", pa.int64()), ("x", pa.int64())]))


def test_every_function_has_an_implementation_and_works_as_its_usage_says() -> None:
    assert set(FUNCTIONS) == set(IMPLEMENTATIONS)
    arguments = {
        "x": "n",
        "s": "station",
        "t": "at",
        "a": "n",
        "b": "n",
        "condition": "ok",
        "digits": "1",
        "...": "n",
    }
    for function in FUNCTIONS.values():
        usage = function.usage
        inside = [part.strip() for part in usage[usage.index("(") + 1 : -1].split(",")]
        text = f"{function.name}({', '.join(arguments.get(part, part) for part in inside)})"
        assert of_null(text) in (None, False), text
        assert value(text) is not None, text


def test_aggregate_calls() -> None:
    assert parse_aggregate("mean(temp * 9 / 5 + 32)").argument == parse_expression("temp*9/5+32")
    assert parse_aggregate(" COUNT( * ) ") == parse_aggregate("count()")
    assert parse_aggregate("count(x)").argument == parse_expression("x")
    assert set(AGGREGATES) == {"count", "sum", "min", "max", "mean"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("avg(x)", "did you mean mean?"),
        ("coutn(x)", "did you mean count?"),
        ("lower(x)", "max(lower(s))"),
        ("x", "min(x)"),
        ("sum", "write sum(x)"),
        ("sum()", "takes 1 argument, not 0"),
        ("sum(*)", "expected a value"),
        ("sum(x) / 2", "alone"),
        ("min(max(x))", "max is an aggregate"),
        ("3", "such as mean(x)"),
        ("mean(x", "close the call"),
    ],
)
def test_bad_aggregates(text: str, said: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_aggregate(text)
    assert said in str(caught.value)


def test_long_lists() -> None:
    items = ", ".join(map(str, range(10_000)))
    assert value(f"n in ({items})") is True
    assert value(f"n + 10000 in ({items})") is False


TYPES = {
    "integer": pa.int32(), "float": pa.float64(), "decimal": pa.decimal128(9, 2), "bool": pa.bool_(),
    "string": pa.string(), "binary": pa.binary(), "date": pa.date32(), "timestamp": pa.timestamp("us"),
    "time": pa.time64("us"), "duration": pa.duration("us"),
}  # fmt: skip


SUMMABLE = {"integer", "float", "decimal", "bool"}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("count", set(TYPES)), ("min", set(TYPES)), ("max", set(TYPES)),
        ("sum", SUMMABLE | {"duration"}), ("mean", SUMMABLE),
    ],
)  # fmt: skip
def test_aggregates_refuse_the_types_they_do_not_take(name: str, kinds: set[str]) -> None:
    for kind, arrow in TYPES.items():
        if kind in kinds:
            result_type(name, arrow)
        else:
            with pytest.raises(ColumnError):
                result_type(name, arrow)


def test_every_aggregate_has_a_kernel() -> None:
    assert set(AGGREGATES) == set(AGGREGATE_KERNELS)

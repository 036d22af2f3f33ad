"""Keys: exact types in, the same keys out; anything else is a KeyTypeError that names it."""

from __future__ import annotations

import datetime as dt
import enum
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from cortex.errors import KeyTypeError
from cortex.job.output_types import merge_key_types
from cortex.shuffle.keys import canonical_decimal, decode_keys, encode_keys, key_array

UTC = dt.UTC
CASES: list[tuple[str, list[Any]]] = [
    ("str", ["", "a", None, "Ωß\n", "a"]),
    ("bytes", [b"", b"\xff\x00", None]),
    ("int", [0, -(2**63), 2**63 - 1, None]),
    ("bool", [True, False, None]),
    ("float", [1.5, -math.inf, None, 0.1]),
    ("date", [dt.date(1, 1, 1), dt.date(9999, 12, 31), None]),
    ("datetime", [dt.datetime(2026, 1, 2, 3, 4, 5, 678901), None]),
    ("datetime+tz", [dt.datetime(2026, 1, 2, tzinfo=UTC), None]),
    ("Decimal", [Decimal("1.5"), Decimal("-1E+40"), None]),
    ("none", [None, None]),
    ("tuple(str,int)", [("a", 1), ("a", 2), (None, 1)]),
    ("tuple(str,tuple(int,float))", [("a", (1, 1.0)), ("b", (2, None))]),
    ("tuple()", [(), ()]),
    ("tuple(none,int)", [(None, 3)]),
]


@pytest.mark.parametrize(("kind", "keys"), CASES, ids=[kind for kind, _ in CASES])
def test_keys_come_back_as_they_went(kind: str, keys: list[Any]) -> None:
    found, columns = encode_keys(keys)
    assert found == kind
    assert all(len(column) == len(keys) for column in columns)
    back = decode_keys(found, columns)
    assert back == keys
    assert [type(key) for key in back] == [type(key) for key in keys]


def test_equal_keys_are_made_identical() -> None:
    _, (column,) = encode_keys([0.0, -0.0, math.nan, -math.nan, float("nan")])
    words = np.frombuffer(column.buffers()[1], np.uint64)
    assert words[0] == words[1]
    assert words[2] == words[3] == words[4]
    paris = dt.timezone(dt.timedelta(hours=1))
    noon = dt.datetime(2026, 1, 1, 12, tzinfo=UTC)
    _, (column,) = encode_keys([noon, noon.astimezone(paris)])
    assert column[0] == column[1]
    assert canonical_decimal(Decimal("1.0")) == canonical_decimal(Decimal("1.00")) == "1"
    assert canonical_decimal(Decimal("1.01E+3")) == canonical_decimal(Decimal("1010.0")) == "1010"
    assert canonical_decimal(Decimal("-0.00")) == canonical_decimal(Decimal(0)) == "0"
    long = Decimal("1234567890123456789012345678901234567890.5")
    assert Decimal(canonical_decimal(long)) == long  # not rounded to the context's 28 digits


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([1, 2.5], "1 is int, 2.5 is float"),
        ([1, True], "1 is int, True is bool"),
        (["a", b"b"], "'a' is str, b'b' is bytes"),
        (["a", ("a",)], "('a',) is tuple(str)"),
        ([("a", 1), ("a",)], "different types"),
        ([("a", 1), ("b", 2.0)], "1 is int, 2.0 is float"),
        ([[1]], "type list ([1]) cannot be a key"),
        ([np.datetime64("2026-01-01")], "type datetime64"),
        ([np.int64(3), 2.5], "3 is int, 2.5 is float"),
        ([2**63], "does not fit in 64 bits"),
        (["\ud800"], "lone surrogate"),
        ([dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, tzinfo=UTC)], "a naive datetime"),
    ],
)
def test_what_cannot_be_a_key_is_named(keys: list[Any], said: str) -> None:
    with pytest.raises(KeyTypeError) as caught:
        encode_keys(keys)
    assert said in str(caught.value)
    assert caught.value.cure


def test_key_types_of_different_maps_agree_or_are_an_error() -> None:
    assert merge_key_types("none", "str") == "str"
    assert merge_key_types("tuple(none,int)", "tuple(str,none)") == "tuple(str,int)"
    assert merge_key_types("tuple(str,tuple(none))", "tuple(str,tuple(int))") == "tuple(str,tuple(int))"
    for first, second in [
        ("str", "int"),
        ("tuple(str)", "str"),
        ("tuple(str)", "tuple(str,int)"),
        ("none", "tuple(str)"),
    ]:
        with pytest.raises(KeyTypeError):
            merge_key_types(first, second)


def test_tuples_are_a_struct_in_output() -> None:
    kind, columns = encode_keys([("a", (1, None)), ("b", (2, 0.5))])
    assert key_array(kind, columns).to_pylist() == [
        {"f0": "a", "f1": {"f0": 1, "f1": None}},
        {"f0": "b", "f1": {"f0": 2, "f1": 0.5}},
    ]


class Colour(enum.IntEnum):
    RED = 3


class Name(str):
    def __str__(self) -> str:
        return "shown"


@pytest.mark.parametrize(
    ("keys", "plain"),
    [
        ([np.int64(3), 3, np.uint8(4), None], [3, 3, 4, None]),
        ([np.bool_(True), False], [True, False]),
        ([np.float32(0.5), 0.25, np.float64(1)], [0.5, 0.25, 1.0]),
        ([np.str_("a"), "a", Name("b")], ["a", "a", "b"]),
        ([np.bytes_(b"a"), b"a"], [b"a", b"a"]),
        ([Colour.RED, 3], [3, 3]),
        ([(np.int64(1), Name("x")), (1, "x")], [(1, "x"), (1, "x")]),
    ],
)
def test_what_stands_for_a_plain_value_is_that_key(keys: list[Any], plain: list[Any]) -> None:
    kind, columns = encode_keys(keys)
    assert (kind, columns) == encode_keys(plain)
    decoded = decode_keys(kind, columns)
    assert decoded == plain
    assert list(map(type, decoded)) == list(map(type, plain))

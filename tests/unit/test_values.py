"""Values: one exact type keeps an Arrow type, all else is pickled; nothing is changed on the way."""

from __future__ import annotations

import datetime as dt
import struct
from decimal import Decimal
from typing import Any

import pytest

from cortex.errors import ValueTypeError
from cortex.shuffle.values import common_tag, decode_values, encode_values, retag


@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("int", [1, None, -(2**63)]),
        ("float", [1.0, -0.0, float("inf"), None]),
        ("bool", [True, None]),
        ("str", ["a", "", None]),
        ("bytes", [b"\xff", None]),
        ("date", [dt.date(2026, 1, 1)]),
        ("datetime", [dt.datetime(2026, 1, 1, 1, 1, 1, 1)]),
        ("none", [None]),
        ("pickle", [1, 2.5]),
        ("pickle", [2**63]),
        ("pickle", ["\ud800"]),
        ("pickle", [(1, "a"), [2], {"k": {3}}, None]),
        ("pickle", [Decimal("1.10")]),
        ("pickle", [dt.datetime(2026, 1, 1, tzinfo=dt.UTC)]),
    ],
)
def test_values_come_back_as_they_went(tag: str, values: list[Any]) -> None:
    found, column = encode_values(values)
    assert found == tag
    back = decode_values(found, column)
    assert back == values
    assert [type(value) for value in back] == [type(value) for value in values]


def test_the_bits_of_floats_are_kept() -> None:
    odd_nan = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000123))[0]
    _, column = encode_values([-0.0, odd_nan])
    back = decode_values("float", column)
    assert struct.pack("<d", back[0]) == struct.pack("<d", -0.0)
    assert struct.pack("<d", back[1]) == struct.pack("<d", odd_nan)


def test_columns_of_different_tags_can_be_joined() -> None:
    ints, nones, mixed = encode_values([1, 2]), encode_values([None]), encode_values([1, "a"])
    assert common_tag([ints[0], nones[0]]) == "int"
    assert decode_values("int", retag(*nones, "int")) == [None]
    assert common_tag([ints[0], mixed[0]]) == "pickle"
    assert decode_values("pickle", retag(*ints, "pickle")) == [1, 2]


def test_what_cannot_be_pickled_is_named() -> None:
    with pytest.raises(ValueTypeError, match="generator"):
        encode_values([(i for i in ())])

"""Sizes, counts, decimals and durations, read and written."""

from __future__ import annotations

from decimal import Decimal

import pytest

from cortex.errors import UsageError
from cortex.job.overrides import parse_reducers, parse_slots
from cortex.units import format_bytes, format_count, format_decimal, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512MB", 512 * 2**20),
        ("512mib", 512 * 2**20),
        ("1.5 k", 1536),
        ("2G", 2**31),
        ("7", 7),
        (7, 7),
        ("1TB", 2**40),
        ("3b", 3),
        ("1048576TB", 2**60),
    ],
)
def test_sizes(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text",
    ["", "MB", "-1", "0", "0.5", "1e3", "1 2MB", "1PB", True, "inf", "١MB", "99999999TB", "9" * 400, 2**63],
)
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(UsageError, match="--memory"):
        parse_bytes(text, "--memory")


def test_written() -> None:
    assert [format_bytes(n) for n in (0, 999, 1024, 512 * 2**20, 1.5 * 2**30, 2**60)] == [
        "0 B", "999 B", "1 KB", "512 MB", "1.5 GB", "1048576 TB",
    ]  # fmt: skip
    assert format_count(1234567) == "1,234,567"
    assert [format_seconds(s) for s in (0.42, 12.34, 75, 3700)] == ["0.42 s", "12.3 s", "1 m 15 s", "1 h 1 m"]
    assert [format_seconds(s * 3600) for s in (24, 47.5, 48, 719)] == [
        "24 h 0 m",
        "47 h 30 m",
        "2 d 0 h",
        "29 d 23 h",
    ]


def test_decimals_are_exact_and_in_plain_digits_where_these_are_few() -> None:
    texts = ["1010", "0.0000001", "-2.50", "0", "1E+31", "1E-31", "NaN", "-Infinity", "0." + "1" * 50]
    assert [format_decimal(Decimal(text)) for text in texts] == texts
    assert format_decimal(Decimal("1.01E+3")) == "1010"
    assert format_decimal(Decimal("1E+999999")) == "1E+999999"


@pytest.mark.parametrize("count", [1, 1023, 1024, 10_000, 2**20, 999 * 2**20, 123 * 2**30])
def test_what_is_written_reads_back_to_three_digits(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.005)


def test_reducers_and_slots() -> None:
    assert [parse_reducers(t) for t in ("auto", "AUTO", "0", 4096)] == [-1, -1, 0, 4096]
    assert parse_slots(" 3 ") == 3
    for text in ("-1", "4097", "1.5", "", "none", True, "٣", 10**12):
        with pytest.raises(UsageError, match="--reducers"):
            parse_reducers(text, "--reducers")
    for text in ("0", "-1", "two", "", False, 99999):
        with pytest.raises(UsageError, match="--slots"):
            parse_slots(text, "--slots")

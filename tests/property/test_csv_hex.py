"""Hexadecimal numbers in CSV: refused in columns of integers, and found cheaply wherever else ``0x`` is."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.errors import InputError
from cortex.formats import csv_numbers
from cortex.formats.csv_parse import BlockParser
from cortex.job.spec import CsvDialect

NAMES = ["a", "s", "b", "t"]
TYPES = {"a": pa.int64(), "s": pa.string(), "b": pa.int16(), "t": pa.binary()}
INTEGERS = {"1": 1, "-7 ": -7, '"12"': 12, " 30": 30, "": None}
HEX = ("0x1F", "0X2", " 0x3", '"0x4"', '"\t0x5"', '""0x6')
TEXTS = ("0xff", "a0x1", '"0x,\n0x,0x"', '""', '"a""0x"', " 0x", "0x", 'b"0x', '"0xA\r\n"', "", "12", '""0x7')
CELLS = {name: st.sampled_from((*INTEGERS, "5", "6") if name in "ab" else TEXTS) for name in NAMES}
ROWS = st.lists(st.tuples(*CELLS.values()), min_size=1, max_size=30)


def parsed(rows: Sequence[Sequence[str]], wanted: Sequence[str], dialect: CsvDialect) -> pa.Table:
    data = "".join(",".join(row) + "\n" for row in rows).encode()
    parser = BlockParser("f", dialect, NAMES, {name: TYPES[name] for name in wanted})
    return parser.parse(data, 0, len(data), position=0)


@settings(deadline=None, max_examples=150)
@given(
    ROWS,
    st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    st.sampled_from([0, 8, 1000]),
    st.booleans(),
    st.none() | st.tuples(st.integers(0, 29), st.sampled_from("ab"), st.sampled_from(HEX)),
)
def test_an_integer_is_never_hexadecimal(
    rows: list[tuple[str, ...]],
    wanted: list[str],
    few: int,
    escapes: bool,
    hidden: tuple[int, str, str] | None,
) -> None:
    dialect = CsvDialect(delimiter=",", escape="\\" if escapes else "")
    if hidden is not None:
        at, name, text = hidden[0] % len(rows), hidden[1], hidden[2]
        row = list(rows[at])
        row[NAMES.index(name)] = text
        rows = [*rows[:at], tuple(row), *rows[at + 1 :]]
    with patch.object(csv_numbers, "_STARTS_FEW", few):
        if hidden is not None and hidden[1] in wanted:
            with pytest.raises(InputError, match=r"0[xX]") as caught:
                parsed(rows, wanted, dialect)
            assert f"column {hidden[1]!r}" in caught.value.message
            return
        table = parsed(rows, wanted, dialect)
    for name in {"a", "b"}.intersection(wanted):
        texts = [row[NAMES.index(name)] for row in rows]
        assert table.column(name).to_pylist() == [{"5": 5, "6": 6, **INTEGERS}[text] for text in texts]


@pytest.mark.parametrize(
    ("text", "many", "wanted"),
    [
        ("0x12ab", True, "asbt"),
        ('"0x,12ab"', True, "asbt"),
        ("ab 0-0x12ab", True, "ab"),
        ("0x12ab", False, "ab"),
        ('"0x\n0x"', False, "bs"),
    ],
)
def test_integers_are_not_read_twice_for_what_stands_in_texts(
    monkeypatch: pytest.MonkeyPatch, text: str, many: bool, wanted: str
) -> None:
    read: list[str] = []
    monkeypatch.setattr(BlockParser, "_texts", lambda self, view, names: read.extend(names))
    rows = [("1", text if many or n in (20, 8_500) else "", "2", text if many else "") for n in range(9_000)]
    assert parsed(rows, wanted, CsvDialect(delimiter=",")).num_rows == 9_000
    assert read == []


def test_only_the_columns_with_a_suspect_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    texts = BlockParser._texts

    def noted(self: BlockParser, view: memoryview, names: Sequence[str]) -> pa.Table:
        read.extend(names)
        return texts(self, view, names)

    monkeypatch.setattr(BlockParser, "_texts", noted)
    rows = [("1", "0xab", "2" if n else "0x2", "") for n in range(5)]
    with pytest.raises(InputError, match="'0x2' is not int16"):
        parsed(rows, NAMES, CsvDialect(delimiter=","))
    assert set(read) == {"b"}

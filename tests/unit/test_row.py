from __future__ import annotations

import pickle

import pytest

from cortex.job.row import Row, row_maker


def test_a_row_is_a_tuple_with_names() -> None:
    row = row_maker(("station", "temp", "with space", "count"))(("Oslo", 1.5, 3, 4))
    assert row == ("Oslo", 1.5, 3, 4)
    assert row.station == row["station"] == row[0] == "Oslo"
    assert row["with space"] == 3
    assert row.count == 4  # a column hides the tuple's method
    station, *rest = row
    assert station == "Oslo"
    assert rest == [1.5, 3, 4]
    assert row.as_dict() == {"station": "Oslo", "temp": 1.5, "with space": 3, "count": 4}


def test_a_missing_column_names_those_there_are() -> None:
    row = Row(station="Oslo", temp=1.5)
    with pytest.raises(AttributeError, match="no column 'tmp'; the columns are station, temp"):
        _ = row.tmp
    with pytest.raises(KeyError, match="no column 'tmp'"):
        row["tmp"]


def test_a_row_can_be_written_down_and_sent() -> None:
    row = Row(station="Oslo", temp=1.5)
    assert repr(row) == "Row(station='Oslo', temp=1.5)"
    assert eval(repr(row), {"Row": Row}) == row
    odd = row_maker(("a b",))((1,))
    assert eval(repr(odd), {"Row": Row}) == odd
    back = pickle.loads(pickle.dumps(row))
    assert back == row
    assert back.station == "Oslo"

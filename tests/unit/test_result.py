"""A result's rows as Python values, Arrow and tables, from part files made by hand."""

from __future__ import annotations

import gc
import os
import pickle
import random
import shutil
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cortex.errors import InputError, ValueTypeError
from cortex.job.protocol import FIELD_KIND
from cortex.job.spec import InputSpec, JobSpec, OutputSpec
from cortex.result import Result, display
from cortex.wire.messages import JobReport, OutputPart


def make(
    folder: Path,
    tables: list[pa.Table],
    *,
    map_form: Any = "rows",
    reduce_form: Any = "rows",
    group_by: tuple[str, ...] = (),
    batch_rows: int = 3,
) -> Result:
    """A temporary result whose parts hold `tables`, in batches of `batch_rows`."""
    folder.mkdir(exist_ok=True)
    parts = []
    for number, table in enumerate(tables):
        path = folder / f"attempt-{number}"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, batch_rows)
        columns = tuple((field.name, str(field.type)) for field in table.schema)
        parts.append(
            OutputPart(f"part-{number:05}.arrow", path.name, table.num_rows, path.stat().st_size, columns)
        )
    spec = JobSpec(
        "test",
        InputSpec(("in",)),
        OutputSpec(format="arrow"),
        map_form=map_form,
        reduce_form=reduce_form,
        group_by=group_by,
    )
    report = JobReport("j000000000000", "test", 1.5, counters={"g": {"n": 2}})
    return Result(spec, report, parts, str(folder), partial(shutil.rmtree, folder))


def kind(name: str, arrow: pa.DataType, how: bytes) -> pa.Field:
    return pa.field(name, arrow, metadata={FIELD_KIND: how})


def test_a_time_that_python_has_not_is_a_typed_error(tmp_path: Path) -> None:
    result = make(
        tmp_path / "r", [pa.table({"t": pa.array([2**55], pa.timestamp("ms"))})], map_form="declared"
    )
    with pytest.raises(ValueTypeError, match="'t' has no Python value") as caught:
        list(result)
    assert "to_arrow" in caught.value.cure
    assert result.to_arrow().num_rows == 1


def test_pairs_come_in_part_order(tmp_path: Path) -> None:
    first = pa.table({"key": ["b", "a", "z", "y"], "value": [1, 2, 3, 4]})
    second = pa.table({"key": ["c"], "value": [5]})
    result = make(tmp_path / "r", [first, second])
    assert list(result) == [("b", 1), ("a", 2), ("z", 3), ("y", 4), ("c", 5)]
    assert len(result) == 5
    assert result.columns == ("key", "value")
    assert result.path is None
    assert result.counters == {"g": {"n": 2}}
    assert result.to_arrow().equals(pa.concat_tables([first, second]))
    assert pa.table(result).equals(result.to_arrow())
    assert list(result.to_pandas()["value"]) == [1, 2, 3, 4, 5]
    assert "5 rows (key, value)" in repr(result)


def test_python_values(tmp_path: Path) -> None:
    key = pa.StructArray.from_arrays(
        [pa.array(["a", None]), pa.array(["1.5", "2"])],
        fields=[pa.field("f0", pa.string()), kind("f1", pa.string(), b"decimal")],
    )
    values = [{"a": {1, 2}}, None]
    value = pa.array([pickle.dumps(values[0]), None], pa.binary())
    schema = pa.schema([kind("key", key.type, b"tuple"), kind("value", pa.binary(), b"pickle")])
    result = make(tmp_path / "r", [pa.Table.from_arrays([key, value], schema=schema)])
    expected = [(("a", Decimal("1.5")), {"a": {1, 2}}), ((None, Decimal(2)), None)]
    assert list(result) == expected
    assert list(result.to_pandas()["value"]) == values
    assert result.first_rows(1) == ([expected[0]], 1)


def test_a_part_without_values_takes_the_others_type(tmp_path: Path) -> None:
    nulls = pa.table({"key": ["a"], "value": pa.nulls(1)})
    ints = pa.table({"key": ["b"], "value": [2**53 + 1]})
    result = make(tmp_path / "r", [nulls, ints])
    assert result.schema.field("value").type == pa.int64()
    assert list(result) == [("a", None), ("b", 2**53 + 1)]
    keys = [
        pa.array([{"f0": "a", "f1": f1}], pa.struct([("f0", pa.string()), ("f1", t)]))
        for f1, t in ((None, pa.null()), (3, pa.int64()))
    ]
    tuples = [
        pa.Table.from_arrays([key], schema=pa.schema([kind("key", key.type, b"tuple")])) for key in keys
    ]
    result = make(tmp_path / "t", tuples)
    assert list(result) == [(("a", None),), (("a", 3),)]
    assert result.to_arrow().schema.field("key").type == keys[1].type


def test_first_rows_are_those_by_key(tmp_path: Path) -> None:
    rows = [(k, n) for n, k in enumerate(["d", None, "a", "c", "a", "b", "e", None, "a"])]
    random.Random(3).shuffle(rows)
    tables = [
        pa.table({"key": [k for k, _ in part], "value": [v for _, v in part]})
        for part in (rows[:4], rows[4:])
    ]
    result = make(tmp_path / "r", tables, batch_rows=2)
    in_order = sorted(rows, key=lambda row: (row[0] is None, row[0] or ""))
    for count in range(1, 11):
        shown, more = result.first_rows(count)
        assert shown == in_order[:count]
        assert more == max(0, 9 - count)


@pytest.mark.parametrize(
    "keys",
    [
        [3.5, float("nan"), None, -1.0, 2.0, float("-inf")],
        [True, False, None, True, False, False],
        [b"b", b"a", b"", b"z", None, b"a"],
        [None, None, None, None, None, None],
    ],
)
def test_first_rows_of_other_keys(tmp_path: Path, keys: list[Any]) -> None:
    result = make(tmp_path / "r", [pa.table({"key": keys, "value": range(6)})], batch_rows=2)

    def rank(row: tuple[Any, Any]) -> Any:
        key = row[0]
        return (2,) if key is None else (1,) if key != key else (0, key)

    expected = [n for _, n in sorted(zip(keys, range(6)), key=rank)]
    assert [value for _, value in result.first_rows(4)[0]] == expected[:4]


DECIMALS = ["10", "9", "-1", None, "NaN", "1010", "1E+40", "-Infinity", "0.1", "0.10000000000000000000001"]


@pytest.mark.parametrize("in_tuple", [False, True])
def test_first_rows_by_decimal_key_are_in_order_of_number(tmp_path: Path, in_tuple: bool) -> None:
    field = kind("key", pa.string(), b"decimal")
    key = pa.array(DECIMALS)
    if in_tuple:
        key = pa.StructArray.from_arrays([key], fields=[field.with_name("f0")])
        field = kind("key", key.type, b"tuple")
    table = pa.Table.from_arrays([key], schema=pa.schema([field]))
    result = make(tmp_path / "r", [table], batch_rows=3)
    shown = [row[0][0] if in_tuple else row[0] for row in result.first_rows(8)[0]]
    assert [display(cell) for cell in shown] == [
        "-Infinity", "-1", "0.1", "0.10000000000000000000001", "9", "10", "1010", "1E+40",
    ]  # fmt: skip


def test_first_rows_by_tuple_key_and_by_group_columns(tmp_path: Path) -> None:
    pairs = [(2, "a"), (1, "b"), (1, "a"), (2, None)]
    key = pa.array([{"f0": a, "f1": b} for a, b in pairs])
    table = pa.Table.from_arrays(
        [key, pa.array(range(4))], schema=pa.schema([kind("key", key.type, b"tuple"), ("value", pa.int64())])
    )
    result = make(tmp_path / "r", [table], batch_rows=1)
    assert [k for k, _ in result.first_rows(3)[0]] == [(1, "a"), (1, "b"), (2, "a")]
    grouped = pa.table({"n": [1, 2, 3], "x": ["b", "a", "a"], "y": [0, 9, 1]})
    result = make(
        tmp_path / "g", [grouped], map_form="declared", reduce_form="aggregate", group_by=("x", "y")
    )
    assert result.key_columns == ("x", "y")
    assert result.first_rows(2) == ([(3, "a", 1), (2, "a", 9)], 1)


def test_map_only_rows_stay_in_order(tmp_path: Path) -> None:
    tables = [pa.table({"line": ["z", "b"]}), pa.table({"line": ["a"]})]
    result = make(tmp_path / "r", tables, map_form="declared", reduce_form="none")
    assert result.first_rows(2) == ([("z",), ("b",)], 1)
    assert result.first_rows(9) == ([("z",), ("b",), ("a",)], 0)


def test_no_parts_and_empty_parts(tmp_path: Path) -> None:
    empty = make(tmp_path / "r", [])
    assert list(empty) == []
    assert empty.first_rows() == ([], 0)
    assert empty.to_arrow().num_rows == 0
    result = make(
        tmp_path / "e", [pa.table({"key": pa.array([], pa.string()), "value": pa.array([], pa.int64())})]
    )
    assert list(result) == []
    assert result.first_rows() == ([], 0)


def test_temporary_files_go_with_the_result(tmp_path: Path) -> None:
    table = pa.table({"key": ["a"], "value": [1]})
    result = make(tmp_path / "r", [table])
    rows = iter(result)
    del result
    gc.collect()
    assert list(rows) == [("a", 1)]  # the iterator keeps what it reads
    del rows
    gc.collect()
    assert not os.path.exists(tmp_path / "r")
    with make(tmp_path / "w", [table]) as closed:
        assert os.path.exists(tmp_path / "w")
    assert not os.path.exists(tmp_path / "w")
    with pytest.raises(InputError, match="gone") as caught:
        list(closed)
    assert "close()" in caught.value.cure


def test_html_escapes_and_counts(tmp_path: Path) -> None:
    table = pa.table({"key": [f"<{i:03}>" for i in range(50)], "value": [None] * 50})
    html = make(tmp_path / "r", [table])._repr_html_()
    assert "&lt;000&gt;" in html
    assert "<000>" not in html
    assert html.count("<tr>") == 41
    assert "and 10 more rows" in html
    assert display(None) == "null"
    assert display(True) == "true"

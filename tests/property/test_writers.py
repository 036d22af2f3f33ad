"""Writers: what is written reads back the same, and the bytes do not depend on the batches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortex.formats import columnar_writers
from cortex.formats.planning import plan_inputs
from cortex.formats.readers import open_reader
from cortex.formats.writers import open_writer
from cortex.job.spec import InputSpec

_relaxed = settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

_SCHEMA = pa.schema(
    [
        ("s", pa.string()),
        ("f", pa.float64()),
        ("i", pa.int64()),
        ("b", pa.bool_()),
        ("t", pa.timestamp("us")),
        ("z", pa.timestamp("ms", "UTC")),
        ("d", pa.date32()),
        ("m", pa.decimal128(12, 3)),
        ("y", pa.binary()),
    ]
)
_texts = st.text(alphabet='x,\t"\n\r é\ufeff', max_size=5)
_row = st.tuples(
    st.none() | _texts,
    st.none() | st.floats() | st.sampled_from([1.0, -0.0, 1e15, 1e16, 1e22, 123456789.0, 5e-324]),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.booleans(),
    st.none() | st.integers(-(10**15), 10**15),
    st.none() | st.integers(-(10**12), 10**12),
    st.none() | st.integers(-10000, 50000),
    st.none() | st.decimals(-100000, 100000, places=3),
    st.none() | st.text(max_size=3).map(str.encode),
)


def _table(rows: list[tuple[Any, ...]]) -> pa.Table:
    columns = list(zip(*rows)) if rows else [()] * len(_SCHEMA)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, _SCHEMA)], schema=_SCHEMA)


def _write(path: Path, format_: str, table: pa.Table, sizes: list[int]) -> bytes:
    writer = open_writer(str(path), format_, table.schema)
    at = 0
    for size in [*sizes, table.num_rows]:
        for batch in table.slice(at, size).to_batches():
            writer.write(batch)
        at += size
    rows, size_bytes = writer.close()
    data = path.read_bytes()
    assert (rows, size_bytes) == (table.num_rows, len(data))
    return data


@pytest.mark.parametrize("format_", ["csv", "tsv"])
@_relaxed
@given(rows=st.lists(_row, max_size=6), split=st.integers(1, 1000))
def test_csv_reads_back_as_it_was(tmp_path: Path, format_: str, rows: list[Any], split: int) -> None:
    table = _table(rows)
    path = tmp_path / f"f.{format_}"
    _write(path, format_, table, [2])
    types = {f.name: t for f, t in zip(_SCHEMA, _NAMES_OF_TYPES)}
    plan = plan_inputs(InputSpec(paths=(str(path),), columns=types), used_columns=None)
    got: list[Any] = []
    for one in plan.splits:
        with open_reader(plan.files[0], one, plan.columns, block_bytes=split) as reader:
            for batch in reader:
                assert batch.schema == _SCHEMA
                got += batch.to_pylist()
    assert repr(got) == repr(table.to_pylist())  # repr: NaN equals itself, -0.0 is not 0.0


_NAMES_OF_TYPES = [
    "string", "float64", "int64", "bool", "timestamp[us]", "timestamp[ms, tz=UTC]", "date32",
    "decimal128(12, 3)", "binary",
]  # fmt: skip


@_relaxed
@given(st.lists(st.none() | _texts, max_size=8))
def test_one_column_csv_keeps_nulls_and_empty_strings(tmp_path: Path, values: list[str | None]) -> None:
    path = tmp_path / "f.csv"
    _write(path, "csv", pa.table({"s": pa.array(values, pa.string())}), [])
    plan = plan_inputs(InputSpec(paths=(str(path),), columns={"s": "string"}), used_columns=None)
    got: list[Any] = []
    for split in plan.splits:
        with open_reader(plan.files[0], split, plan.columns, block_bytes=3) as reader:
            for batch in reader:
                got += batch.column(0).to_pylist()
    assert got == values


@_relaxed
@given(rows=st.lists(_row, max_size=6))
def test_json_lines_is_what_pythons_json_reads(tmp_path: Path, rows: list[Any]) -> None:
    table = _table(rows)
    lines = _write(tmp_path / "f.jsonl", "jsonl", table, [1]).decode().split("\n")[:-1]
    assert len(lines) == table.num_rows
    for line, row in zip(lines, table.to_pylist()):
        got = json.loads(line)
        assert list(got) == _SCHEMA.names
        assert got["s"] == row["s"]
        assert (got["i"], got["b"]) == (row["i"], row["b"])
        number = row["f"] if row["f"] is not None and math.isfinite(row["f"]) else None
        assert repr(got["f"]) == repr(number)
        assert got["y"] == (None if row["y"] is None else row["y"].decode())


def _dirty(table: pa.Table) -> pa.Table:
    """The same rows, with other bytes where nulls are and bitmaps that say nothing."""
    columns = []
    for column in table.columns:
        array = pa.concat_arrays([*column.chunks, pa.array(column.to_pylist(), column.type)])
        half = array.slice(len(array) // 2)
        columns.append(half)
    return pa.table(columns, schema=table.schema)


@pytest.mark.parametrize("format_", ["csv", "tsv", "jsonl", "text", "parquet", "arrow"])
@_relaxed
@given(rows=st.lists(_row, min_size=1, max_size=30), sizes=st.lists(st.integers(1, 9), max_size=6))
def test_bytes_depend_on_the_rows_alone(
    tmp_path: Path, format_: str, rows: list[Any], sizes: list[int]
) -> None:
    table = _table(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar_writers, "_GROUP_ROWS", 8)
        patch.setattr(columnar_writers, "_GROUP_BYTES", 400)
        whole = _write(tmp_path / "one", format_, table, [])
        parts = _write(tmp_path / "two", format_, _dirty(table), sizes)
    assert whole == parts


@pytest.mark.parametrize("format_", ["parquet", "arrow"])
def test_garbage_under_nulls_is_not_written(tmp_path: Path, format_: str) -> None:
    bitmap = pa.py_buffer(bytes([0b11111101]))
    clean = pa.Array.from_buffers(pa.int64(), 3, [bitmap, pa.py_buffer(bytes(24))])
    garbage = pa.py_buffer(bytes(8) + b"x" * 8 + bytes(8))
    dirty = pa.Array.from_buffers(pa.int64(), 3, [bitmap, garbage])
    written = [
        _write(tmp_path / name, format_, pa.table({"x": array}), [])
        for name, array in (("clean", clean), ("dirty", dirty))
    ]
    assert written[0] == written[1]
    reread = (
        pq.read_table(tmp_path / "dirty")
        if format_ == "parquet"
        else pa.ipc.open_file(pa.BufferReader(written[1])).read_all()
    )
    assert reread.column(0).to_pylist() == [0, None, 0]


def test_what_follows_a_group_in_memory_is_not_written(tmp_path: Path) -> None:
    table = pa.table({"s": ["a", "bcd", "ef", "g"] * 3, "i": pa.array(range(12), pa.int8())})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar_writers, "_GROUP_ROWS", 3)
        written = [_write(tmp_path / "x", "arrow", table, sizes) for sizes in ([], [1] * 12, [5, 5])]
    assert written[0] == written[1] == written[2]

"""Text, Parquet and Arrow: all splits together give each record once, in order."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cortex.formats.planning import plan_inputs
from cortex.formats.readers import open_reader
from cortex.job.plan import InputPlan
from cortex.job.spec import InputSpec

_relaxed = settings(
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _lines(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    last = lines.pop()
    lines = [line.removesuffix(b"\r") for line in lines]
    return [*lines, last] if last else lines


def _read(plan: InputPlan, block_bytes: int, as_lines: bool) -> list[object]:
    rows: list[object] = []
    assert sorted(i for task in plan.tasks for i in task) == [split.index for split in plan.splits]
    for split in plan.splits:
        file = plan.files[split.file]
        with open_reader(file, split, plan.columns, block_bytes=block_bytes, as_lines=as_lines) as reader:
            for part in reader:
                rows += part if as_lines else part.column(0).to_pylist()
    return rows


@_relaxed
@given(
    st.lists(st.sampled_from([b"a", b"\xc3\xa9", b"\n", b"\r\n", b"\r", b" ", b"\xe2\x80\xa8"]), max_size=40),
    st.integers(1, 30),
    st.sampled_from([1, 2, 5, 4096]),
    st.booleans(),
    st.sampled_from(["utf-8", "bytes"]),
    st.booleans(),
)
@example([b"a", b"\r", b"\r\n", b"\n", b"\r"], 1, 1, True, "utf-8", False)
def test_text_lines_of_any_split(
    tmp_path: Path, parts: list[bytes], size: int, block: int, as_lines: bool, encoding: str, packed: bool
) -> None:
    data = b"".join(parts)
    path = tmp_path / ("t.txt.gz" if packed else "t.txt")
    path.write_bytes(gzip.compress(data) if packed else data)
    spec = InputSpec(paths=(str(path),), encoding=encoding)
    plan = plan_inputs(spec, used_columns=None, split_bytes=size)
    assert all(split.length <= size * 1.1 for split in plan.splits) or packed or size < 10
    want: list[object] = list(_lines(data))
    if encoding == "utf-8":
        want = [line.decode() for line in _lines(data)]
    assert _read(plan, block, as_lines) == want
    os.unlink(path)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"\xef\xbb\xbfa\nb\n")
    for size in (1, 2, 100):
        plan = plan_inputs(InputSpec(paths=(str(path),)), used_columns=None, split_bytes=size)
        assert _read(plan, 4, True) == ["a", "b"]


@pytest.mark.parametrize("format_", ["parquet", "arrow"])
@_relaxed
@given(
    rows=st.lists(st.one_of(st.none(), st.integers(-5, 5)), max_size=60),
    group=st.integers(1, 20),
    size=st.sampled_from([1, 200, 1000, 10**6]),
    block=st.sampled_from([1, 64, 4096]),
)
def test_columnar_splits_give_every_row_once(
    tmp_path: Path, format_: str, rows: list[int | None], group: int, size: int, block: int
) -> None:
    path = tmp_path / f"f.{format_}"
    unused = pa.array([str(row) for row in rows], pa.string())
    table = pa.table({"x": pa.array(rows, pa.int64()), "unused": unused})
    if format_ == "parquet":
        pq.write_table(table, path, row_group_size=group)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
    plan = plan_inputs(InputSpec(paths=(str(path),)), used_columns=["x"], split_bytes=size)
    assert sum(split.rows for split in plan.splits) == len(rows)
    assert _read(plan, block, False) == rows

"""Aggregation of a CSV file held against DuckDB on the same file; floats against `math.fsum`."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from datasets.randomness import below, random_bits

ROOT = Path(__file__).parents[2]
ROWS = 20_000
JOB = """
name: held
input: {path: in.csv, columns: {k: string, n: int64, x: float64, d: date, b: bool}}
map:
  where: n is null or n % 11 != 0
  select: {k: k, even: n % 2 == 0, n: n, x: x, y: x * 3 - n, d: d, b: b, far: "k in ('far', 'naïve', '')"}
reduce:
  group_by: [k, even]
  aggregate: {rows: count(), ns: count(n), total: sum(n), low: min(n), high: max(n), average: mean(n),
    xs: count(x), xsum: sum(x), xlow: min(x), xhigh: max(x), xmean: mean(x), ysum: sum(y),
    first: min(d), last: max(d), bs: count(b), any_far: max(far), smallest: min(k)}
output: {path: out, format: parquet}
"""
SQL = """
with rows as (
  select k, n % 2 = 0 as even, n, x, x * 3 - n as y, d, b, k in ('far', 'naïve', '') as far
  from read_csv('{path}', header = true, nullstr = '', allow_quoted_nulls = false, strict_mode = true,
    columns = {{'k': 'varchar', 'n': 'bigint', 'x': 'double', 'd': 'date', 'b': 'boolean'}})
  where n is null or n % 11 != 0
)
select k, even, count(*) as rows, count(n) as ns, sum(n)::bigint as total, min(n) as low, max(n) as high,
  avg(n) as average, count(x) as xs, list(x) filter (x is not null) as xsum, min(x) as xlow, max(x) as xhigh,
  null as xmean, list(y) filter (y is not null) as ysum, min(d) as first, max(d) as last, count(b) as bs,
  max(far) as any_far, min(k) as smallest
from rows group by k, even
"""
KEYS = ["", '""', "far", "naïve", '"two\nlines"', '"a, b"', '"say ""hi"""', "NULL", "NA", " "]


def write(path: Path) -> None:
    """Nulls in every column, empty texts beside them, numbers of very different magnitude."""

    def pick(stream: int, limit: int) -> list[int]:
        found: list[int] = below(random_bits(7, stream, 0, ROWS), limit).tolist()
        return found

    lines = ["k,n,x,d,b"]
    for key, n, x, scale, day, b in zip(
        pick(0, len(KEYS)), pick(1, 2060), pick(2, 10**6), pick(3, 8), pick(4, 400), pick(5, 3)
    ):
        number = "" if n >= 2000 else str((n - 1000) * (10**12 if n % 9 == 0 else 1))
        real = "" if x % 17 == 0 else repr((x - 5 * 10**5) / 7 * 10.0 ** (scale * 5 - 20))
        date = "" if day >= 360 else f"{2000 + day % 30}-{1 + day % 12:02d}-{1 + day % 28:02d}"
        lines.append(f"{KEYS[key]},{number},{real},{date},{('', 'true', 'false')[b]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("split_size", ["64MB", "20KB"])
def test_all_aggregates_over_groups_with_nulls(tmp_path: Path, split_size: str) -> None:
    write(tmp_path / "in.csv")
    (tmp_path / "job.yaml").write_text(JOB, encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    done = subprocess.run(
        [sys.executable, "-m", "cortex", "mapreduce", "job.yaml", "--quiet", "--split-size", split_size],
        cwd=tmp_path,
        env=kept | {"CORTEX_HOME": str(tmp_path / "state"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[Any, dict[str, Any]] = {}
    for path in (tmp_path / "out").glob("part-*.parquet"):
        for row in pq.read_table(path).to_pylist():
            found[row["k"], row["even"]] = row
    table = duckdb.sql(SQL.format(path=tmp_path / "in.csv"))
    wanted = {row[:2]: dict(zip(table.columns, row)) for row in table.fetchall()}
    assert len(wanted) == 3 * len(KEYS)
    assert set(found) == set(wanted)
    different = defaultdict(list)
    for key, want in wanted.items():
        xs = want["xsum"]
        want["xmean"] = math.fsum(xs) / len(xs)
        want["xsum"] = math.fsum(xs)
        want["ysum"] = math.fsum(want["ysum"]) if want["ysum"] is not None else None
        if want["ns"]:
            want["average"] = want["total"] / want["ns"]
        for name, value in want.items():
            if found[key][name] != value or type(found[key][name]) is not type(value):
                different[name].append((key, found[key][name], value))
    assert different == {}

"""Whole jobs (plan, scan, map, shuffle, reduce, write) against plain Python, for any split size, memory
budget and number of reducers: the same bytes whatever they are, and the right ones."""

from __future__ import annotations

import csv
import io
import json
import math
import pickle
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortex import MapReduceJob
from cortex.class_spec import build_spec
from cortex.errors import ColumnError, CortexError, KeyTypeError, OverflowedSum, ValueTypeError
from cortex.formats import columnar_writers
from cortex.job.spec import CsvDialect, InputSpec, JobSpec, OutputSpec, Resources
from cortex.tasks import pair_buffer
from cortex.tasks.budget import Budget
from tests.one_process import Outcome, run_tasks

SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SPLITS = st.sampled_from([1, 2, 3, 7, 20, 100, 10_000])
REDUCERS = st.integers(1, 4)
TIGHT = Budget(500, 300, 400, 500)
BUDGETS = st.sampled_from([Budget(64, 64, 1, 1), TIGHT, Budget(1 << 20, 1 << 20, 1 << 22, 1 << 22)])


def spec_for(folder: Path, name: str, data: bytes, split: int, reducers: int, **rest: Any) -> JobSpec:
    path = folder / name
    path.write_bytes(data)
    more = {"dialect": None, "columns": {}, **rest.pop("input", {})}
    return JobSpec(
        "test",
        InputSpec((str(path),), **more),
        OutputSpec(str(folder / "out"), rest.pop("output_format", "csv")),
        Resources(split_bytes=split, reducers=reducers),
        **rest,
    )


def rows_of(outcome: Outcome) -> list[dict[str, str]]:
    return [row for data in outcome.files for row in csv.DictReader(io.StringIO(data.decode(), newline=""))]


class Code:
    """A row-form job as an executor sees it."""

    combine_function: Any = None

    def __init__(self, map: Callable[[Any], Any], reduce: Any = None, combine: Any = None) -> None:
        self.map, self.reduce = map, reduce
        if combine is not None:
            self.combine_function = self.combine = combine

    def setup(self) -> None: ...
    def cleanup(self) -> None: ...
    def _take_counters(self) -> dict[str, dict[str, int]]:
        return {}


WORDS = st.sampled_from(["a", "b", "the", "Ω", "ß" * 5, "x" * 70, "0", "-"])
LINES = st.lists(st.lists(WORDS, max_size=6).map(" ".join), max_size=25)
ENDS = st.sampled_from(["\n", "\r\n"])


@SLOW
@given(LINES, ENDS, st.booleans(), SPLITS, REDUCERS, BUDGETS)
def test_word_count_three_ways(
    lines: list[str], end: str, final: bool, split: int, reducers: int, budget: Budget
) -> None:
    data = (end.join(lines) + (end if final and lines else "")).encode()
    expected = Counter(word for line in lines for word in line.split())

    def words(line: str) -> Iterator[tuple[str, int]]:
        for word in line.split():
            yield word, 1

    def total(key: str, values: Iterator[int]) -> Iterator[tuple[str, int]]:
        yield key, sum(values)

    ways: list[tuple[dict[str, Any], Code]] = [
        ({"reduce_form": "fold", "combine": "sum"}, Code(words)),
        ({"reduce_form": "fold", "combine": "binary"}, Code(words, combine=lambda a, b: a + b)),
        ({"reduce_form": "rows"}, Code(words, total)),
        ({"reduce_form": "rows", "combine": "sum"}, Code(words, total)),
        ({"reduce_form": "rows", "combine": "method"}, Code(words, total, combine=total)),
    ]
    outputs = set()
    with tempfile.TemporaryDirectory() as folder:
        for form, code in ways:
            spec = spec_for(Path(folder), "in.txt", data, split, reducers, map_form="rows", **form)
            outcome = run_tasks(spec, code, budget=budget)
            assert {row["key"]: int(row["value"]) for row in rows_of(outcome)} == expected
            outputs.add(b"".join(d.partition(b"\n")[2] for d in outcome.files))
            whole = msgspec_replace(spec, reducers=1, split=1 << 30)
            assert b"".join(d.partition(b"\n")[2] for d in run_tasks(whole, code).files) in outputs
    assert len(outputs) == 1  # the same rows in the same order, whichever way and however split


def msgspec_replace(spec: JobSpec, *, reducers: int, split: int) -> JobSpec:
    import msgspec

    return msgspec.structs.replace(spec, resources=Resources(split_bytes=split, reducers=reducers))


FIELD = st.one_of(
    st.sampled_from(["", "a", "b", 'q"q', "two\nlines", "c,d", "Ω", "r\r\nn", " s ", '"']),
    st.text(alphabet='ab",\n\r', max_size=5),
)
NUMBER = st.one_of(
    st.sampled_from([0.1, 0.2, 0.3, 1e16, -1e16, 1.0, 1e-300, 123.456, 0.0]),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.none(),
)
RECORDS = st.lists(st.tuples(FIELD, NUMBER, st.integers(-(10**6), 10**6) | st.none()), max_size=25)


def as_csv(records: list[tuple[str, float | None, int | None]], end: str, bom: bool) -> bytes:
    lines = ["k,x,n"]
    for key, x, n in records:
        quoted = any(c in key for c in '",\r\n')
        shown = '"' + key.replace('"', '""') + '"' if quoted else key
        lines.append(f"{shown},{'' if x is None else repr(x)},{'' if n is None else n}")
    text = "".join(line + end for line in lines)
    return (b"\xef\xbb\xbf" if bom else b"") + text.encode()


@SLOW
@given(RECORDS, ENDS, st.booleans(), SPLITS, REDUCERS, BUDGETS)
def test_an_aggregation_over_csv_is_exact(
    records: list[tuple[str, float | None, int | None]],
    end: str,
    bom: bool,
    split: int,
    reducers: int,
    budget: Budget,
) -> None:
    groups: dict[str, list[tuple[float | None, int | None]]] = defaultdict(list)
    for key, x, n in records:
        groups[key].append((x, n))
    aggregate = {
        "rows": "count()",
        "some": "count(x)",
        "total": "sum(x)",
        "mean": "mean(x)",
        "lo": "min(x)",
        "hi": "max(x)",
        "isum": "sum(n)",
    }
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_for(
            Path(folder),
            "in.csv",
            as_csv(records, end, bom),
            split,
            reducers,
            input={"columns": {"k": "string", "x": "float64", "n": "int64"}},
            reduce_form="aggregate",
            group_by=("k",),
            aggregate=aggregate,
        )
        outcome = run_tasks(spec, budget=budget)
        whole = run_tasks(msgspec_replace(spec, reducers=1, split=1 << 30))
        body = b"".join(d.partition(b"\n")[2] for d in outcome.files)
        assert body == b"".join(d.partition(b"\n")[2] for d in whole.files)
    found = {row["k"]: row for row in rows_of(outcome)}
    assert set(found) == set(groups)
    for key, values in groups.items():
        row = found[key]
        xs = [x for x, _ in values if x is not None]
        ns = [n for _, n in values if n is not None]
        assert int(row["rows"]) == len(values)
        assert int(row["some"]) == len(xs)
        if not xs:
            assert row["total"] == row["mean"] == row["lo"] == row["hi"] == ""
        else:
            assert float(row["total"]) == math.fsum(xs)
            assert float(row["mean"]) == math.fsum(xs) / len(xs)
            assert float(row["lo"]) == min(xs)
            assert float(row["hi"]) == max(xs)
        assert row["isum"] == ("" if not ns else str(sum(ns)))


@settings(SLOW, max_examples=10)
@given(
    RECORDS,
    SPLITS,
    REDUCERS,
    BUDGETS,
    st.sampled_from(["csv", "jsonl", "parquet", "arrow"]),
    st.sampled_from(["aggregate", "rows"]),
)
def test_the_same_job_writes_the_same_files(
    records: list[tuple[str, float | None, int | None]],
    split: int,
    reducers: int,
    budget: Budget,
    format_: str,
    form: str,
) -> None:
    """Each file by itself, whatever the memory and the splits are."""

    def pairs(row: Any) -> Iterator[tuple[str, Any]]:
        yield row.k, (row.x, row.n)

    def listed(key: str, values: Iterator[Any]) -> Iterator[tuple[str, str]]:
        yield key, repr(list(values))

    if form == "aggregate":
        how: dict[str, Any] = {"group_by": ("k",), "aggregate": {"x": "mean(x)", "n": "sum(n)"}}
        code = None
    else:
        how, code = {"map_form": "rows"}, Code(pairs, listed)
    columns = {"k": "string", "x": "float64", "n": "int64"}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar_writers, "_GROUP_BYTES", 100)  # so that files have more than one group
        spec = spec_for(
            Path(folder),
            "in.csv",
            as_csv(records, "\n", False),
            split,
            reducers,
            input={"columns": columns},
            output_format=format_,
            reduce_form=form,
            **how,
        )
        small = run_tasks(spec, code, budget=budget)
        large = run_tasks(msgspec_replace(spec, reducers=reducers, split=1 << 30), code)
    assert len(small.files) <= reducers  # without a row, a row-form job has no columns and writes none
    assert [part.name for part in small.parts] == [part.name for part in large.parts]
    assert small.files == large.files


@SLOW
@given(RECORDS, SPLITS, REDUCERS, BUDGETS)
def test_declared_batch_and_row_forms_agree(
    records: list[tuple[str, float | None, int | None]], split: int, reducers: int, budget: Budget
) -> None:
    columns = {"k": "string", "x": "float64", "n": "int64"}

    class Batch(MapReduceJob):
        key = ("k",)
        aggregate = {"total": "sum(y)", "rows": "count()"}  # noqa: RUF012

        def map_batch(self, batch: pa.RecordBatch) -> Any:
            table = batch.to_pylist()
            kept = [r for r in table if r["n"] is not None and r["n"] > 0 and r["x"] is not None]
            return pa.RecordBatch.from_pydict(
                {
                    "k": pa.array([r["k"] for r in kept], pa.string()),
                    "y": pa.array([r["x"] * 2 for r in kept], pa.float64()),
                }
            )

    class Rows(MapReduceJob):
        combine = sum

        def map(self, record: Any) -> Iterator[tuple[str, float]]:
            if record.n is not None and record.n > 0 and record.x is not None:
                yield record.k, record.x * 2

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        data = as_csv(records, "\n", False)
        declared = spec_for(
            path,
            "in.csv",
            data,
            split,
            reducers,
            input={"columns": columns},
            where="n > 0 and x is not null",
            select={"k": "k", "y": "x * 2"},
            reduce_form="aggregate",
            group_by=("k",),
            aggregate={"total": "sum(y)", "rows": "count()"},
        )
        one = {r["k"]: float(r["total"]) for r in rows_of(run_tasks(declared, budget=budget))}
        two, three = {}, {}
        for job, into, names in ((Batch, two, ("k", "total")), (Rows, three, ("key", "value"))):
            made = job(
                input=str(path / "in.csv"),
                output=str(path / "out"),
                columns=columns,
                reducers=reducers,
                split_size=split,
            )
            outcome = run_tasks(build_spec(made), made, budget=budget)
            into.update({r[names[0]]: float(r[names[1]]) for r in rows_of(outcome)})
        assert one == two == three


@SLOW
@given(st.lists(st.integers(-5, 5) | st.none(), max_size=60), st.integers(1, 20), SPLITS, REDUCERS, BUDGETS)
def test_parquet_by_row_groups(
    numbers: list[int | None], group: int, split: int, reducers: int, budget: Budget
) -> None:
    import pyarrow.parquet as pq

    table = pa.table({"n": pa.array(numbers, pa.int64()), "unused": pa.array(["x"] * len(numbers))})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=group)
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_for(
            Path(folder),
            "in.parquet",
            buffer.getvalue(),
            split,
            reducers,
            where="n is null or n != 5",
            reduce_form="aggregate",
            group_by=("n",),
            aggregate={"rows": "count()"},
        )
        outcome = run_tasks(spec, budget=budget)
    assert [name for name, _ in outcome.plan.columns] == ["n"]
    expected = Counter("" if n is None else str(n) for n in numbers if n != 5)
    assert {r["n"]: int(r["rows"]) for r in rows_of(outcome)} == expected


@SLOW
@given(LINES, SPLITS, REDUCERS, BUDGETS, st.integers(0, 3))
def test_values_come_in_input_order(
    lines: list[str], split: int, reducers: int, budget: Budget, keys: int
) -> None:
    def numbered(line: str) -> Iterator[tuple[int, tuple[str]]]:
        yield len(line) % (keys + 1), (line,)

    def joined(key: int, values: Iterator[tuple[str]]) -> Iterator[tuple[int, str]]:
        yield key, "|".join(value for (value,) in values)

    expected: dict[int, list[str]] = defaultdict(list)
    for line in lines:
        expected[len(line) % (keys + 1)].append(line)
    with tempfile.TemporaryDirectory() as folder:
        data = "".join(line + "\n" for line in lines).encode()
        spec = spec_for(
            Path(folder),
            "in.txt",
            data,
            split,
            reducers,
            map_form="rows",
            reduce_form="rows",
            output_format="jsonl",
        )
        outcome = run_tasks(spec, Code(numbered, joined), budget=budget)
    import json

    rows = [json.loads(line) for data in outcome.files for line in data.decode().split("\n") if line]
    assert {row["key"]: row["value"] for row in rows} == {k: "|".join(v) for k, v in expected.items()}


def test_what_is_merged_early_counts_as_spilled(tmp_path: Path) -> None:
    def pairs(line: str) -> Iterator[tuple[str, int]]:
        yield line, 1

    data = b"".join(b"line %d\n" % n for n in range(40))
    for split, merged in ((1, True), (1 << 30, False)):
        spec = spec_for(tmp_path, "in.txt", data, split, 1, map_form="rows", reduce_form="rows")
        outcome = run_tasks(spec, Code(pairs, lambda key, values: [(key, sum(values))]), budget=TIGHT)
        (stats,) = [result.stats for result in outcome.reduces]
        assert (stats.spilled_bytes > 0) == merged
        assert stats.shuffled_bytes > 0


@SLOW
@given(RECORDS, SPLITS, BUDGETS)
def test_a_map_only_job_keeps_the_order_of_its_input(
    records: list[tuple[str, float | None, int | None]], split: int, budget: Budget
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_for(
            Path(folder),
            "in.csv",
            as_csv(records, "\n", False),
            split,
            0,
            input={"columns": {"k": "string", "x": "float64", "n": "int64"}, "dialect": CsvDialect()},
            where="n >= 0",
            select={"k": "k", "m": "n + 1"},
        )
        outcome = run_tasks(spec, budget=budget)
    expected = [(key, str(n + 1)) for key, _, n in records if n is not None and n >= 0]
    assert [(row["k"], row["m"]) for row in rows_of(outcome)] == expected
    assert outcome.files  # an empty result has its header all the same


class BatchTotals(MapReduceJob):
    group_by = ()
    aggregate = {"n": "count()", "s": "sum(x)", "lo": "min(x)", "n2": "count()"}  # noqa: RUF012

    def map_batch(self, batch: pa.RecordBatch) -> Any:
        return batch


class DeclaredTotals(MapReduceJob):
    group_by = ()
    aggregate = BatchTotals.aggregate


@pytest.mark.parametrize("job", [BatchTotals, DeclaredTotals])
@pytest.mark.parametrize("reducers", ["auto", 1, 2, 64])
@pytest.mark.parametrize("numbers", [[], [1, 2, 3, 4]])
def test_without_group_by_there_is_one_row(
    tmp_path: Path, job: type[MapReduceJob], reducers: Any, numbers: list[int]
) -> None:
    (tmp_path / "in.csv").write_text("x\n" + "".join(f"{n}\n" for n in numbers))
    made = job(
        input=str(tmp_path / "in.csv"),
        output=str(tmp_path / "out"),
        columns={"x": "int64"},
        reducers=reducers,
        split_size=4,
    )
    outcome = run_tasks(build_spec(made), made)
    assert [part.rows for part in outcome.parts] == [1]
    (row,) = rows_of(outcome)
    assert row == (
        {"n": "4", "s": "10", "lo": "1", "n2": "4"} if numbers else {"n": "0", "s": "", "lo": "", "n2": "0"}
    )


class LateValue(MapReduceJob):
    """`late` of its records have a value (or a key, or half a key)."""

    where_to: str = "value"
    late = 0

    def map(self, line: str) -> Iterator[Any]:
        some = line if int(line) >= self.late else None
        key = {"value": line, "key": some, "half": (some, line)}[self.where_to]
        yield key, some and int(some) if self.where_to == "value" else line


class LateReduced(LateValue):
    def reduce(self, key: Any, values: Iterator[Any]) -> Iterator[Any]:
        yield key, next(values)


class LateBatch(LateValue):
    """The same in tables, of which those before `late` have a column of nulls."""

    map: Any = MapReduceJob.map

    def map_batch(self, batch: pa.RecordBatch) -> Any:
        for line in batch.column(0).to_pylist():
            value = pa.array([int(line)]) if int(line) >= self.late else pa.nulls(1)
            yield pa.record_batch({"key": [line], "value": value})


@pytest.mark.parametrize("format_", ["csv", "tsv", "jsonl", "parquet", "arrow"])
@pytest.mark.parametrize("where_to", ["value", "key", "half"])
@pytest.mark.parametrize("job", [LateValue, LateReduced, LateBatch])
def test_a_first_value_may_come_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: type[LateValue], where_to: str, format_: str
) -> None:
    monkeypatch.setattr(pair_buffer, "PAIRS_AT_ONCE", 7)
    (tmp_path / "in.txt").write_text("".join(f"{n}\n" for n in range(100)))
    files = []
    for late in (0, 1, 50, 99):
        made = job(input=str(tmp_path / "in.txt"), output=str(tmp_path / "out"), output_format=format_)
        made.reducers = 1 if job is LateReduced else 0
        made.where_to, made.late = where_to, late
        outcome = run_tasks(build_spec(made), made)
        if job is not LateReduced or where_to != "key":
            assert [part.rows for part in outcome.parts] == [100]
        files.append([part.columns for part in outcome.parts])
    assert all(columns == files[0] for columns in files)


class Name(str):
    """Stands for the text it is."""


class Summed(MapReduceJob):
    """`made` makes a pair of a line."""

    combine: Any = sum
    made: Any = None

    def map(self, line: str) -> Iterator[Any]:
        yield self.made(line)


class SummedThenReduced(Summed):
    def reduce(self, key: Any, values: Iterator[Any]) -> Iterator[Any]:
        (value,) = values
        yield key, value


def outcomes_of(
    job: type[Summed], folder: Path, lines: list[str], made: Any, combine: Any = sum
) -> list[Any]:
    """What the job gives, rows or the type of its error, for several splits, reducers and kinds of keys."""
    (folder / "in.txt").write_text("".join(line + "\n" for line in lines))
    found: list[Any] = []
    for split in (1, 30, 1 << 20):
        for reducers in (1, 3):
            for key in (str, int):

                def pair(line: str, key: Any = key) -> Any:
                    number, value = made(line)
                    return key(number), value

                instance = job(input=str(folder / "in.txt"), output=str(folder / "out"))
                instance.output_format, instance.split_size, instance.reducers = "jsonl", split, reducers
                instance.combine, instance.made = combine, pair
                try:
                    outcome = run_tasks(build_spec(instance), instance)
                    rows = [json.loads(row) for data in outcome.files for row in data.splitlines()]
                    found.append(sorted((int(row["key"]), row["value"]) for row in rows))
                except CortexError as error:
                    found.append(type(error))
    assert all(outcome == found[0] for outcome in found), found
    return found[0]


LARGE = 2**62
FLOATS = [0.1, 1e16, -1e16, 0.7, 1e-300, 123.456, -0.1]


@pytest.mark.parametrize("job", [Summed, SummedThenReduced])
@pytest.mark.parametrize(
    ("lines", "value", "total"),
    [
        (FLOATS, float, math.fsum(FLOATS)),
        (FLOATS, np.float64, math.fsum(FLOATS)),
        ([0.1, 0.2, 0.3], np.float32, math.fsum(map(float, np.array([0.1, 0.2, 0.3], np.float32)))),
        (FLOATS, type("Money", (float,), {}), math.fsum(FLOATS)),
        ([LARGE] * 3 + [-LARGE] * 3 + [5], int, 5),
        ([LARGE] * 3 + [-LARGE] * 3 + [5], np.int64, 5),
        ([-LARGE] * 7 + [LARGE] * 7, int, 0),
        ([LARGE] * 3, int, OverflowedSum),
        ([2**64, 1, -(2**64)], int, 1),
        ([2**200, 1], int, OverflowedSum),
        ([1] * 50, lambda text: text == "1", 50),
        ([1, 2, 3, 1], lambda text: True if text == "1" else int(text), 7),
        ([1, 2, 3, 1], lambda text: np.bool_(text == "1"), 2),
        ([1, 2, 3, 1], lambda text: np.uint16(text) if text == "1" else int(text), ValueTypeError),
        ([1, 2, 3, 1], lambda text: int(text) if text == "1" else np.uint16(text), ValueTypeError),
        ([1, 2, 3, 1], lambda text: np.bool_(True) if text == "1" else int(text), ValueTypeError),
        ([1, 2, 3, 1], lambda text: HTTPStatus.OK if text == "1" else int(text), 405),
        ([1, 2, 3], lambda text: Decimal(text) if text == "1" else int(text), ValueTypeError),
        ([1, 2, 3], lambda text: int(text) if text == "1" else Decimal(text), ValueTypeError),
        ([1, 2, 3], lambda text: float(text) if text == "3" else int(text), ValueTypeError),
        ([1, 2, 3], lambda text: None if text == "3" else int(text), ValueTypeError),
        ([1, 2, 3], lambda text: "x" if text == "3" else int(text), ValueTypeError),
        ([1, 2, 3], lambda text: np.float64(text) if text == "3" else int(text), ValueTypeError),
    ],
)
def test_sums_do_not_depend_on_the_cut(
    tmp_path: Path, job: type[Summed], lines: list[Any], value: Any, total: Any
) -> None:
    found = outcomes_of(job, tmp_path, list(map(str, lines)), lambda line: (7, value(line)))
    assert found == (total if isinstance(total, type) else [(7, total)])


DECIMALS = ["1E+30", "0.1", "-1E+30", "2.50", "1E-40", "-0.0", "7"]


@pytest.mark.parametrize(
    ("lines", "value", "total"),
    [
        (DECIMALS, Decimal, "9.6000000000000000000000000000000000000001"),
        (DECIMALS, type("Price", (Decimal,), {}), "9.6000000000000000000000000000000000000001"),
        (["1.50", "1.5", "-3"], Decimal, "0.00"),
        (["1E+5", "1E+5"], Decimal, "2E+5"),
        (["9E+10000"] * 12 + ["1E-10000"], Decimal, "108" + "0" * 10_000 + "." + "0" * 9_999 + "1"),
        (["NaN7", "Infinity", "1", "NaN8"], Decimal, "NaN"),
        (["Infinity", "1", "-Infinity", "NaN8"], Decimal, "NaN"),
        (["sNaN", "1", "2"], Decimal, "NaN"),
        (["Infinity", "1", "2"], Decimal, "Infinity"),
        (["1", "1E+10001", "-1E+10001", "3"], Decimal, OverflowedSum),
        (["1", "2", "1E-10001"], Decimal, OverflowedSum),
        (["1", "2", "0E+10001"], Decimal, OverflowedSum),
    ],
)
def test_sums_of_decimals_are_exact(tmp_path: Path, lines: list[str], value: Any, total: Any) -> None:
    found = {
        repr(outcomes_of(Summed, tmp_path, some, lambda line: (7, value(line)))) for some in turned(lines)
    }
    assert found == {repr(total if isinstance(total, type) else [(7, total)])}


def turned(lines: list[str]) -> Iterator[list[str]]:
    yield lines
    yield lines[::-1]
    yield sorted(lines)


class SummedText(Summed):
    def reduce(self, key: Any, values: Iterator[Any]) -> Iterator[Any]:
        (value,) = values
        yield key, f"{type(value).__name__} {value}"


@pytest.mark.parametrize(
    ("value", "total"),
    [
        (lambda x: complex(x, -x), complex(math.fsum(FLOATS), -math.fsum(FLOATS))),
        (lambda x: np.complex128(x, -x), complex(math.fsum(FLOATS), -math.fsum(FLOATS))),
        (type("Phase", (complex,), {}), complex(math.fsum(FLOATS))),
        (lambda x: complex(x * 1e300 * 1e300, x), "(nan+" + str(math.fsum(FLOATS)) + "j)"),
        (lambda x: complex(x, 0) if x == 0.7 else x, ValueTypeError),
    ],
)
def test_sums_of_complex_numbers_are_exact(tmp_path: Path, value: Any, total: Any) -> None:
    found = {
        repr(outcomes_of(SummedText, tmp_path, some, lambda line: (7, value(float(line)))))
        for some in turned(list(map(str, FLOATS)))
    }
    assert found == {repr(total if isinstance(total, type) else [(7, f"complex {total}")])}


def test_complex_sums_without_a_reduce_are_shown_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("1\n2\n")
    job = Summed(input=str(tmp_path / "in.txt"))
    job.made = lambda line: ("key", complex(0.1, float(line)))
    shown = pa.ipc.open_file(run_tasks(build_spec(job), job).data).read_all()
    assert [pickle.loads(cell) for cell in shown["value"].to_pylist()] == [0.2 + 3j]
    job.output = str(tmp_path / "out")
    with pytest.raises(ValueTypeError, match="type complex cannot be written"):
        run_tasks(build_spec(job), job)


@pytest.mark.parametrize(
    ("lines", "value", "least"),
    [
        ([3, 1, 2], int, 1),
        ([3, 1, 2], np.int32, 1),
        ([3, 1, 2], lambda text: HTTPStatus.OK if text == "1" else int(text), 2),
        ([3, 1, 2], lambda text: np.int64(text) if text == "1" else int(text), ValueTypeError),
        ([3, 1, 2], lambda text: np.int64(text) if text == "3" else int(text), ValueTypeError),
        ([3.5, 1.5, 2], np.float64, 1.5),
        ([3, 1, 2], np.str_, "1"),
        ([3, 1, 2], lambda text: True if text == "3" else int(text), ValueTypeError),
        ([3, 1, 2], lambda text: 3.0 if text == "3" else int(text), ValueTypeError),
        ([3, 1, 2], lambda text: None if text == "3" else int(text), ValueTypeError),
        ([2**70, 1, 2], int, OverflowedSum),
        ([3, 1, 2], lambda text: {"1": "é", "2": "\uffff", "3": "\U00010000"}[text], "é"),
        ([3, 1, 2], lambda text: "\ud800" if text == "3" else text, ValueTypeError),
        ([3, 1, 2], lambda text: np.str_("a\udcff") if text == "3" else np.str_(text), ValueTypeError),
        ([3, 1, 2], lambda text: Name("\udcff") if text == "3" else text, ValueTypeError),
    ],
)
def test_the_least_value_does_not_depend_on_the_cut(
    tmp_path: Path, lines: list[Any], value: Any, least: Any
) -> None:
    found = outcomes_of(Summed, tmp_path, list(map(str, lines)), lambda line: (7, value(line)), min)
    assert found == (least if isinstance(least, type) else [(7, least)])


@pytest.mark.parametrize(
    ("values", "type_", "written"),
    [
        ([np.float64(0.1), 2.0, np.float32(0.5)], "float64", "0.1 2.0 0.5"),
        ([np.int8(1), HTTPStatus.OK, 3], "int64", "1 200 3"),
        ([np.bool_(True), False, None], "bool", "true false "),
        ([np.str_("a"), "b", type("Name", (str,), {})("c")], "string", "a b c"),
    ],
)
def test_scalars_are_written_as_the_values_they_stand_for(
    tmp_path: Path, values: list[Any], type_: str, written: str
) -> None:
    (tmp_path / "in.txt").write_text("0\n1\n2\n")

    class Scalars(MapReduceJob):
        reducers = 0

        def map(self, line: str) -> Iterator[Any]:
            yield np.str_(line), values[int(line)]

    job = Scalars(input=str(tmp_path / "in.txt"), output=str(tmp_path / "out"))
    outcome = run_tasks(build_spec(job), job)
    assert [row["value"] for row in rows_of(outcome)] == written.split(" ")
    assert outcome.parts[0].columns == (("key", "string"), ("value", type_))


class Narrowed(MapReduceJob):
    """Its map gives other columns from the seventh row on, `late` says which."""

    key = "k"
    late: Any = None

    def map_batch(self, batch: pa.RecordBatch) -> Any:
        for row in range(batch.num_rows):
            one = batch.slice(row, 1)
            yield self.late(one) if one.column("v")[0].as_py() >= 6 else one


class NarrowedTotals(Narrowed):
    aggregate = {"n": "count()", "s": "sum(v)"}  # noqa: RUF012


@pytest.mark.parametrize("split", [9, 1000])
@pytest.mark.parametrize("reducers", [1, 4])
@pytest.mark.parametrize(
    ("job", "late", "kind"),
    [
        (Narrowed, lambda b: b.set_column(0, "k", b["k"].cast("int32")), ColumnError),
        (Narrowed, lambda b: b.set_column(0, "k", b["k"].cast("float64")), ColumnError),
        (Narrowed, lambda b: b.set_column(1, "v", b["v"].cast("string")), ColumnError),
        (Narrowed, lambda b: b.select(["k"]), ColumnError),
        (Narrowed, lambda b: b.append_column("more", b["v"]), ColumnError),
        (NarrowedTotals, lambda b: b.set_column(0, "k", b["k"].cast("int32")), ColumnError),
        (NarrowedTotals, lambda b: b.set_column(1, "v", b["v"].cast("float64")), ValueTypeError),
    ],
)
def test_batches_of_other_columns_are_an_error_however_the_job_is_cut(
    tmp_path: Path, split: int, reducers: int, job: type[Narrowed], late: Any, kind: type[CortexError]
) -> None:
    (tmp_path / "in.csv").write_text("k,v\n" + "".join(f"{v % 4},{v}\n" for v in range(12)))
    made = job(input=str(tmp_path / "in.csv"), output=str(tmp_path / "out"))
    made.split_size, made.reducers, made.late = split, reducers, late
    with pytest.raises(kind):
        run_tasks(build_spec(made), made)


@pytest.mark.parametrize("reducers", [1, 4])
@pytest.mark.parametrize("split", [9, 1000])
def test_what_the_aggregates_do_not_use_may_differ(tmp_path: Path, split: int, reducers: int) -> None:
    (tmp_path / "in.csv").write_text("k,v\n" + "".join(f"{v % 4},{v}\n" for v in range(12)))
    job = NarrowedTotals(input=str(tmp_path / "in.csv"), output=str(tmp_path / "out"))
    job.split_size, job.reducers = split, reducers
    job.late = lambda b: b.append_column("more", b["v"]).set_column(0, "k", pa.nulls(1))
    rows = {row["k"]: (int(row["n"]), int(row["s"])) for row in rows_of(run_tasks(build_spec(job), job))}
    assert rows == {"": (6, 51), "0": (2, 4), "1": (2, 6), "2": (1, 2), "3": (1, 3)}


class Mixed(MapReduceJob):
    """`made` makes a pair of a line."""

    made: Any = None

    def map(self, line: str) -> Iterator[Any]:
        yield self.made(int(line))


class MixedMapOnly(Mixed):
    reducers = 0


class MixedReduced(Mixed):
    def reduce(self, key: Any, values: Iterator[Any]) -> Iterator[Any]:
        yield self.made(key)

    def map(self, line: str) -> Iterator[Any]:
        yield int(line), 1


class MixedCombined(Mixed):
    combine: Any = staticmethod(lambda first, second: first)


class MixedAdded(Mixed):
    combine = sum


class MixedColumns(Mixed):
    def reduce_batch(self, batches: Any) -> Any:
        yield from batches


EVERY = (Mixed, MixedMapOnly, MixedReduced, MixedCombined, MixedAdded, MixedColumns)
AWARE = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("jobs", "made", "kind"),
    [
        (EVERY, lambda n: (n if n else "a", 1), KeyTypeError),
        (EVERY, lambda n: ((n, "x") if n else ("a", "x"), 1), KeyTypeError),
        (EVERY, lambda n: ((n, "x") if n else None, 1), KeyTypeError),
        (EVERY, lambda n: (n, 1 if n else 2.5), ValueTypeError),
        (EVERY, lambda n: (n, Decimal(n) if n else 1), ValueTypeError),
        ((MixedMapOnly, MixedReduced), lambda n: (n, [n] if n else 1), ValueTypeError),
        ((MixedMapOnly, MixedReduced), lambda n: (n, [n] if n else "a"), ValueTypeError),
        (
            (MixedMapOnly, MixedReduced),
            lambda n: (n, AWARE if n else AWARE.replace(tzinfo=None)),
            ValueTypeError,
        ),
        (EVERY, lambda n: (n if n else None, 1), None),
        (EVERY, lambda n: ((n, "x") if n else (None, "x"), 1), None),
        ((Mixed, MixedMapOnly, MixedReduced, MixedColumns), lambda n: (n, 1 if n else None), None),
        ((MixedMapOnly, MixedReduced), lambda n: (n, [n] if n else None), None),
        ((MixedMapOnly, MixedReduced), lambda n: (n, AWARE.replace(tzinfo=None, fold=n % 2)), None),
    ],
)
@pytest.mark.parametrize("format_", ["csv", "parquet"])
def test_types_are_those_of_the_job_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: Any, made: Any, kind: Any, format_: str
) -> None:
    monkeypatch.setattr(pair_buffer, "PAIRS_AT_ONCE", 3)
    (tmp_path / "in.txt").write_text("1\n2\n3\n4\n5\n6\n0\n7\n")
    for job in jobs:
        found = set()
        for split in (2, 8, 100):
            for reducers in (1, 2, 5):
                instance = job(input=str(tmp_path / "in.txt"), output=str(tmp_path / "out"))
                instance.output_format, instance.split_size, instance.made = format_, split, made
                instance.reducers = 0 if job is MixedMapOnly else reducers
                try:
                    run_tasks(build_spec(instance), instance)
                    found.add(None)
                except CortexError as error:
                    found.add(type(error))
        assert found == {kind}, job


@pytest.mark.parametrize("split", [2, 100])
def test_in_text_either_all_lines_have_a_key_or_none(tmp_path: Path, split: int) -> None:
    (tmp_path / "in.txt").write_text("1\n2\n3\n0\n")
    some: Any = lambda n: (n or None, n)  # noqa: E731
    none: Any = lambda n: (None, n)  # noqa: E731
    for made in (some, none):
        job = MixedMapOnly(input=str(tmp_path / "in.txt"), output=str(tmp_path / "out"))
        job.output_format, job.split_size, job.made = "text", split, made
        if made is none:
            assert run_tasks(build_spec(job), job).data == b"1\n2\n3\n0\n"
            continue
        with pytest.raises(KeyTypeError, match="None and int"):
            run_tasks(build_spec(job), job)

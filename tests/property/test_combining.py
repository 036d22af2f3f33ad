"""Map outputs combined at their node, in any groups, against the same job without: the same bytes, and
every row and byte of the maps accounted for (`run_tasks` compares them).

Values are of the kinds where order could show: zeros and NaNs of both signs, ties that look different, sums
that round.
"""

from __future__ import annotations

import math
import random
import struct
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortex.job.spec import InputSpec, JobSpec, OutputSpec, Resources
from cortex.tasks.budget import Budget
from tests.one_process import run_tasks
from tests.property.test_jobs import Code

SLOW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
OTHER_NAN = struct.unpack("<d", struct.pack("<Q", 0xFFF8_0000_0000_0001))[0]
FLOATS = st.sampled_from(
    [0.0, -0.0, math.nan, OTHER_NAN, math.inf, -math.inf, 0.1, 1e16, -1e16, 1e-300, 1e300, -1e300, 5e-324]
)
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "ab", "", None]),
        st.integers(0, 2),
        st.none() | FLOATS,
        st.none() | st.integers(-(2**62), 2**62),
        st.none() | st.decimals(-1000, 1000, places=2),
        st.none() | st.sampled_from(["x", "y", "Ω", ""]),
    ),
    max_size=40,
)
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("number", pa.int64()),
        ("f", pa.float64()),
        ("i", pa.int64()),
        ("d", pa.decimal128(12, 2)),
        ("s", pa.string()),
        ("t", pa.timestamp("us", tz="UTC")),
    ]
)
AGGREGATE = {
    "rows": "count()",
    "some": "count(f)",
    "fsum": "sum(f)",
    "fmean": "mean(f)",
    "fmin": "min(f)",
    "fmax": "max(f)",
    "imean": "mean(i)",
    "imin": "min(i)",
    "imax": "max(i)",
    "dsum": "sum(d)",
    "dmean": "mean(d)",
    "dmin": "min(d)",
    "smin": "min(s)",
    "smax": "max(s)",
    "tmin": "min(t)",
    "tmax": "max(t)",
}
BUDGETS = st.sampled_from([Budget(500, 300, 400, 500), Budget(1 << 20, 1 << 20, 1 << 22, 1 << 22)])


def outputs(spec: JobSpec, code: Any, budget: Budget, seed: int) -> tuple[list[bytes], list[bytes]]:
    plain = run_tasks(spec, code, budget=budget)
    return plain.files, run_tasks(spec, code, budget=budget, combined=random.Random(seed)).files


@SLOW
@given(
    rows=ROWS,
    group_by=st.sampled_from([("text",), ("number",), ("text", "number"), ("f",), ("d", "t"), ()]),
    per_map=st.integers(1, 5),
    reducers=st.integers(1, 3),
    budget=BUDGETS,
    seed=st.integers(0, 2**32),
)
def test_declared_aggregates(
    rows: list[tuple[Any, ...]],
    group_by: tuple[str, ...],
    per_map: int,
    reducers: int,
    budget: Budget,
    seed: int,
) -> None:
    columns = list(zip(*rows)) if rows else [()] * 6
    times = [EPOCH + timedelta(microseconds=number) for number in columns[1]]
    table = pa.table([*map(list, columns), times], schema=SCHEMA)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/in.parquet"
        pq.write_table(table, path, row_group_size=per_map)
        spec = JobSpec(
            "test",
            InputSpec((path,)),
            OutputSpec(f"{folder}/out", "parquet"),
            Resources(split_bytes=1, reducers=reducers),
            reduce_form="aggregate",
            group_by=group_by,
            aggregate=AGGREGATE,
        )
        plain, combined = outputs(spec, None, budget, seed)
        assert combined == plain


VALUES: dict[str, Any] = {
    "float": FLOATS,
    "int": st.integers(-(2**61), 2**61),
    "decimal": st.sampled_from(
        [Decimal("1.0"), Decimal("1.00"), Decimal("-0"), Decimal("0.0"), Decimal("1e5")]
    ),
    "complex": st.builds(
        complex, st.sampled_from([0.0, -0.0, 0.1, 1e16, -1e16]), st.sampled_from([0.0, 1e-9])
    ),
    "text": st.sampled_from(["a", "b", "Ω", ""]),
}


@pytest.mark.parametrize(
    ("kind", "combine"),
    [
        (kind, combine)
        for kind in VALUES
        for combine in ("sum", "min", "max")
        if (kind, combine) not in (("text", "sum"), ("complex", "min"), ("complex", "max"))
    ],
)
@settings(SLOW, max_examples=15)
@given(data=st.data(), seed=st.integers(0, 2**32), budget=BUDGETS, keys=st.sampled_from(["text", "float"]))
def test_built_in_combiners(
    kind: str, combine: str, data: st.DataObject, seed: int, budget: Budget, keys: str
) -> None:
    values = data.draw(st.lists(VALUES[kind], min_size=1, max_size=30))
    key_of: list[Any] = ["k", "", "key"] if keys == "text" else [0.0, -0.0, math.nan, OTHER_NAN]

    def pairs(line: str) -> Iterator[tuple[Any, Any]]:
        number = int(line)
        yield key_of[number % len(key_of)], values[number]

    plain, combined = folded(pairs, None, len(values), combine, budget, seed)
    assert combined == plain


@SLOW
@given(count=st.integers(0, 30), seed=st.integers(0, 2**32), budget=BUDGETS, method=st.booleans())
def test_a_users_combiner_is_given_values_in_their_order(
    count: int, seed: int, budget: Budget, method: bool
) -> None:
    """Joining texts is associative, and shows every change of order."""

    def pairs(line: str) -> Iterator[tuple[str, str]]:
        for key in ("a", "b")[int(line) % 3 :]:
            yield key, f"{line} "

    def joined(key: str, values: Iterator[str]) -> Iterator[tuple[str, str]]:
        yield key, "".join(values)

    combine: Any = joined if method else lambda a, b: a + b
    plain, combined = folded(pairs, combine, count, "method" if method else "binary", budget, seed)
    assert combined == plain


def folded(
    pairs: Any, function: Any, lines: int, combine: str, budget: Budget, seed: int
) -> tuple[list[bytes], list[bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.txt"
        path.write_text("".join(f"{number}\n" for number in range(lines)))
        spec = JobSpec(
            "test",
            InputSpec((str(path),)),
            OutputSpec(),
            Resources(split_bytes=4, reducers=2),
            map_form="rows",
            reduce_form="fold",
            combine=combine,  # type: ignore[arg-type]
        )
        return outputs(spec, Code(pairs, combine=function), budget, seed)

"""Aggregates through collector and merge: the table of few groups and the sort of many give the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cortex.errors import OverflowedSum
from cortex.job.aggregates import parse_aggregate
from cortex.shuffle.aggregation import AggregateCollector, Aggregation
from cortex.shuffle.collector import RunSink
from cortex.shuffle.merge import GiantGroup, merge_rounds
from cortex.shuffle.partitioner import Partitioner
from cortex.shuffle.run_schema import Layout
from cortex.shuffle.segments import sources_of
from cortex.storage.map_output_store import MapOutputStore
from cortex.tasks.table_emitters import TableToAggregates
from tests.memory_filesystem import MemoryFilesystem

ATTEMPT = "j0123456789ab-m000000.0"
CALLS: list[tuple[str, int | None]] = [("count", None), ("sum", 0), ("min", 0), ("mean", 0)]


def aggregate(
    keys: list[pa.Array], values: pa.Array, *, few_groups: bool, chunk: int, budget: int = 1 << 20
) -> tuple[list[tuple[Any, ...]], int]:
    """(rows of key columns and results, in output order; number of runs written)."""
    store = MapOutputStore(MemoryFilesystem(), "/job")
    writer = store.create(ATTEMPT)
    aggregation = Aggregation(CALLS, [values.type])
    collector = AggregateCollector(
        RunSink(writer, Partitioner(1)), budget, aggregation, few_groups=few_groups
    )
    for begin in range(0, len(values), chunk):
        collector.add("", [k.slice(begin, chunk) for k in keys], [values.slice(begin, chunk)])
    collector.flush()
    summary = store.commit(writer, ATTEMPT)
    rows: list[tuple[Any, ...]] = []
    for item in merge_rounds(sources_of(store.open(ATTEMPT), 0), 1 << 24):
        assert not isinstance(item, GiantGroup)
        states = aggregation.new(len(item.starts))
        aggregation.merge(states, item.starts, item.batch, item.layout)
        firsts = item.batch.take(pa.array(item.starts)).columns[1 : 1 + item.layout.keys]
        finished = aggregation.finish(states, "", firsts)
        rows += zip(*[column.cast(pa.string()).to_pylist() for column in [*firsts, *finished]])
    return rows, summary.runs


@pytest.mark.parametrize(
    "keys",
    [
        [pa.array(["a", None, "b", "a"] * 50)],
        [pa.array([float("nan"), 0.0, -0.0, None] * 50)],
        [pa.array([1, 2, 3, 2**63 - 1] * 50), pa.array(["x", "y"] * 100)],
        [pa.array([10**18 + 1, 10**18 + 2] * 100, pa.timestamp("ns"))],
        [pa.array([True, None] * 100), pa.array([1, 2, 3, 4] * 50, pa.date32())],
        [],
    ],
    ids=["string", "float", "int and string", "nanoseconds", "bool and date", "none"],
)
def test_a_table_of_groups_and_a_sort_give_the_same(keys: list[pa.Array]) -> None:
    random = np.random.default_rng(1)
    values = pa.array(random.normal(size=200) * 10.0 ** random.integers(-20, 20, 200))
    ways = [
        aggregate(keys, values, few_groups=few, chunk=chunk, budget=budget)[0]
        for few in (True, False)
        for chunk, budget in ((200, 1 << 20), (7, 1 << 20), (7, 1))
    ]
    assert all(way == ways[0] for way in ways)
    distinct = {tuple(str(k[i].as_py()).replace("-0.0", "0.0") for k in keys) for i in range(200)}
    assert len(ways[0]) == len(distinct)


def test_many_groups_leave_the_table() -> None:
    keys = [pa.array(range(5000))]
    values = pa.array([1.0] * 5000)
    rows, runs = aggregate(keys, values, few_groups=True, chunk=100)
    assert len(rows) == 5000
    assert runs == 1  # not one table flushed for each block


def test_an_overflow_names_the_group() -> None:
    keys = [pa.array(["fine", "big", "big"])]
    with pytest.raises(OverflowedSum) as caught:
        aggregate(keys, pa.array([1, 2**62, 2**62]), few_groups=True, chunk=10)
    assert "big" in str(caught.value)


def test_states_that_need_more_columns_do_not_start_a_run_each() -> None:
    keys = [pa.array([f"k{i % 4000}" for i in range(20_000)])]
    values = pa.array([1e300 if i % 7 == 0 else 1e-300 if i % 5 == 0 else 0.1 for i in range(20_000)])
    rows, runs = aggregate(keys, values, few_groups=False, chunk=1000, budget=200_000)
    assert len(rows) == 4000
    assert runs < 30


class Sink:
    """Notes what comes; nothing is written."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.rows = 0

    def append(self, layout: Layout, batch: pa.RecordBatch) -> None:
        self.sizes.append(batch.nbytes)
        self.rows += batch.num_rows

    def end(self) -> None:
        pass


@pytest.mark.parametrize("few_groups", [True, False])
def test_many_states_a_group_are_copied_a_few_groups_at_once(few_groups: bool) -> None:
    sink: Any = Sink()
    aggregation = Aggregation([("mean", index) for index in range(100)], [pa.float64()] * 100)
    collector = AggregateCollector(sink, 1 << 30, aggregation, few_groups=few_groups)
    groups = 8000 if few_groups else 32_000
    keys = pa.array(np.arange(32_000) % groups)
    values = pa.array(np.arange(32_000) / 7)
    collector.add("", [keys], [values] * 100)
    collector.flush()
    assert sink.rows == groups
    assert sum(sink.sizes) > 2400 * groups
    assert max(sink.sizes) < 5 << 20


def test_many_arguments_are_made_of_few_rows_at_once() -> None:
    sink: Any = Sink()
    calls = [parse_aggregate(f"sum(a + {number})") for number in range(100)]
    emitter = TableToAggregates(sink, 8 << 20, ["k"], calls)
    added: list[int] = []

    def add(self: Any, key_type: str, keys: Any, arguments: Any, rows: int | None = None) -> None:
        added.append(sum(argument.nbytes for argument in arguments))
        assert len(keys[0]) == rows

    numbers = np.arange(100_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AggregateCollector, "add", add)
        emitter.batch(pa.record_batch({"k": numbers, "a": numbers}))
    assert sum(added) == 100_000 * 800
    assert max(added) <= 2 << 20
    assert emitter.rows_out == 100_000


def test_rows_without_columns_are_counted() -> None:
    sink: Any = Sink()
    emitter = TableToAggregates(sink, 1000, [], [parse_aggregate("count()")])
    emitter.batch(pa.record_batch({"a": np.arange(5000)}).select([]))
    emitter.flush()
    assert (emitter.rows_out, sink.rows) == (5000, 1)

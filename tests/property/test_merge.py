"""Collector, run file and merge against a sort in plain Python, with tiny budgets and colliding hashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.errors import ColumnError, RowsLost, ValueTypeError
from cortex.kernels.hashing import hash_columns
from cortex.shuffle import collector, merge, pieces
from cortex.shuffle.collector import RowCollector, RunSink
from cortex.shuffle.keys import decode_keys, encode_keys
from cortex.shuffle.merge import GiantGroup, RunSource, common_layout, merge_rounds
from cortex.shuffle.partitioner import Partitioner
from cortex.shuffle.run_schema import Layout
from cortex.shuffle.segments import EarlyMerges, reduce_fan_in, sources_of
from cortex.shuffle.values import ARROW_TYPES, decode_values, encode_values
from cortex.storage.map_output_store import MapOutputStore
from cortex.tasks.pair_emitters import folded_pairs
from tests.arrow_memory import arrow_peak
from tests.memory_filesystem import MemoryFilesystem

Pairs = list[tuple[Any, Any]]
KEYS = st.one_of(
    st.lists(st.sampled_from(["", "a", "b", "ab", "x" * 40, None, "ß"]), max_size=60),
    st.lists(st.integers(-3, 3) | st.none(), max_size=60),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 1)), max_size=60),
)


def collect(
    store: MapOutputStore, attempt: str, pairs: Pairs, partitions: int, budget: int, place: Any, chunk: int
) -> None:
    writer = store.create(attempt)
    collector = RowCollector(RunSink(writer, Partitioner(partitions)), budget, place=place)
    for begin in range(0, len(pairs), chunk):
        keys, values = zip(*pairs[begin : begin + chunk])
        kind, columns = encode_keys(keys)
        tag, column = encode_values(values)
        layout = Layout(
            kind,
            tuple(c.type for c in columns),
            f"values:{tag}",
            (("value", ARROW_TYPES[tag]),),
            place is not None,
        )
        collector.add(layout, columns, [column])
    collector.flush()
    store.commit(writer, attempt)


def groups(items: Iterator[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """(key, values) in the order the merge gives them; giant groups read twice, as they may be."""
    for item in items:
        layout = item.layout
        if isinstance(item, GiantGroup):
            (key,) = decode_keys(layout.key_type, item.keys)
            twice = [
                [
                    v
                    for b in item.batches()
                    for v in decode_values(layout.value_tag, b.column(1 + layout.keys))
                ]
                for _ in range(2)
            ]
            assert twice[0] == twice[1]
            yield key, twice[0]
            continue
        keys = decode_keys(layout.key_type, item.batch.columns[1 : 1 + layout.keys])
        values = decode_values(layout.value_tag, item.batch.column(1 + layout.keys))
        bounds = [*item.starts.tolist(), len(values)]
        for begin, end in pairwise(bounds):
            assert len({repr(k) for k in keys[begin:end]}) == 1
            yield keys[begin], values[begin:end]


@settings(max_examples=150, deadline=None)
@given(
    keys=KEYS,
    maps=st.integers(1, 4),
    partitions=st.integers(1, 5),
    spill=st.sampled_from([1, 200, 1 << 20]),
    budget=st.sampled_from([1, 300, 1 << 20]),
    runs_max=st.sampled_from([2, 3, 100]),
    hashes=st.sampled_from(["xxh64", "one", "two"]),
    mixed=st.booleans(),
)
def test_every_row_comes_once_in_order_with_its_group(
    keys: list[Any],
    maps: int,
    partitions: int,
    spill: int,
    budget: int,
    runs_max: int,
    hashes: str,
    mixed: bool,
) -> None:
    pairs: Pairs = [(key, str(i) if mixed and i % 3 == 0 else i) for i, key in enumerate(keys)]

    def place(layout: Layout, columns: Sequence[pa.Array], found: np.ndarray) -> np.ndarray:
        return found * np.uint64(0) if hashes == "one" else found >> np.uint64(63)

    store = MapOutputStore(MemoryFilesystem(), "/job")
    size = max(1, -(-len(pairs) // maps))
    attempts = []
    for index, begin in enumerate(range(0, len(pairs), size)):
        attempt = f"j0123456789ab-m{index:06d}.0"
        collect(
            store,
            attempt,
            pairs[begin : begin + size],
            partitions,
            spill,
            None if hashes == "xxh64" else place,
            7,
        )
        attempts.append(attempt)

    found: list[tuple[Any, list[Any]]] = []
    for partition in range(partitions):
        sources = [s for a in attempts for s in sources_of(store.open(a, partition), partition)]
        files = EarlyMerges(store, "j0123456789ab-r000000.0", lambda: None)
        level, _ = reduce_fan_in(sources, runs_max, budget, files, None)
        assert len(level) <= max(runs_max, len({s.layout for s in level}) * runs_max)
        found += groups(merge_rounds(level, budget))
        files.close()
        assert store.committed() == attempts

    expected: dict[str, list[Any]] = {}
    for key, value in pairs:
        expected.setdefault(repr(key), []).append(value)
    assert {repr(key): values for key, values in found} == expected
    assert len(found) == len(expected)

    # The sequence of keys over all partitions is that of (hash, key), whatever the partitions.
    if hashes == "xxh64" and found:
        _, columns = encode_keys([key for key, _ in found])
        order = hash_columns(columns).tolist()
        assert order == sorted(order)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 256, 4096])
def test_partitions_are_contiguous_and_cover_every_hash(count: int) -> None:
    partitioner = Partitioner(count)
    random = np.random.default_rng(count)
    hashes = np.sort(random.integers(0, 2**64, 5000, dtype=np.uint64))
    expected = [((int(h) >> 32) * count) >> 32 for h in hashes]
    cuts = partitioner.cuts(hashes)
    got = np.repeat(np.arange(count), np.diff(cuts)).tolist()
    assert got == expected
    edges = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert partitioner.cuts(edges)[0] == 0
    assert partitioner.cuts(edges)[-1] == 2


@given(st.integers(1, 100), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50), st.data())
def test_rows_placed_by_the_user_land_in_their_partition(count: int, found: list[int], data: Any) -> None:
    chosen = data.draw(st.lists(st.integers(0, count - 1), min_size=len(found), max_size=len(found)))
    partitioner = Partitioner(count)
    moved = partitioner.place(np.array(found, dtype=np.uint64), np.array(chosen, dtype=np.int64))
    assert [((int(h) >> 32) * count) >> 32 for h in moved] == chosen


def test_early_merges_end_whatever_combine_gives() -> None:
    """A combine that gives another type for every slice begins a run with each: a level then may have as
    many runs as the one before."""
    store, attempts = MapOutputStore(MemoryFilesystem(), "/job"), []
    pairs: Pairs = [(f"key{i}", "x" if i % 3 else None) for i in range(4000)]
    for index in range(20):
        attempts.append(f"j0123456789ab-m{index:06d}.0")
        collect(store, attempts[-1], pairs[index::20], 1, 4000, None, 7)
    sources = [s for a in attempts for s in sources_of(store.open(a, 0), 0)]
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        assert steps < 20_000

    calls = 0

    def combine(layout: Layout, batch: pa.RecordBatch, starts: Any) -> tuple[Layout, pa.RecordBatch]:
        nonlocal calls
        calls += 1
        rows = starts.tolist()
        return folded_pairs(layout, batch, np.array(rows), [None if calls % 2 else "x" for _ in rows])

    files = EarlyMerges(store, "j0123456789ab-r000000.0", step)
    level, written = reduce_fan_in(sources, 2, 1, files, combine)
    assert len(level) <= 2
    assert steps > 0
    assert written > 0
    kept = [name for name in store.committed() if name not in attempts]
    assert len(kept) <= len(level)  # files of earlier levels are gone
    keys = [key for key, _ in groups(merge_rounds(level, 1))]
    assert sorted(keys) == sorted(f"key{i}" for i in range(4000))
    files.close()
    assert store.committed() == attempts


def many_rows(monkeypatch: pytest.MonkeyPatch) -> list[RunSource]:
    """The sources, of many small batches, of 4000 rows with one key and of as many with others."""
    monkeypatch.setattr(collector, "RUN_BATCH_BYTES", 1000)
    store = MapOutputStore(MemoryFilesystem(), "/job")
    for index in range(2):
        pairs: Pairs = [("a", n) if n % 2 else (f"k{n}", n) for n in range(4000)]
        collect(store, f"j0123456789ab-m{index:06d}.0", pairs, 1, 20_000, None, 500)
    return [s for i in range(2) for s in sources_of(store.open(f"j0123456789ab-m{i:06d}.0", 0), 0)]


@pytest.mark.parametrize("budget", [1, 1 << 24])
def test_a_giant_group_says_how_many_rows_it_has(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    items = merge_rounds(many_rows(monkeypatch), budget)
    giants = [
        (item.rows, sum(b.num_rows for b in item.batches())) for item in items if isinstance(item, GiantGroup)
    ]
    assert all(said == read for said, read in giants)
    assert max(giants, default=(0, 0))[0] == (4000 if budget == 1 else 0)


def test_a_group_of_long_values_in_many_runs_holds_few_of_them() -> None:
    store, value = MapOutputStore(MemoryFilesystem(), "/job"), "x" * 1_000_000
    collect(store, "j0123456789ab-m000000.0", [("a", value)] * 80, 1, 1_500_000, None, 1)
    sources = sources_of(store.open("j0123456789ab-m000000.0", 0), 0)
    assert len(sources) > 30
    rows = 0
    with arrow_peak() as peak:
        for item in merge_rounds(sources, 1 << 20):
            assert isinstance(item, GiantGroup)
            rows += sum(batch.num_rows for batch in item.batches())
    assert rows == 80
    assert peak.bytes < 10 << 20


@pytest.mark.parametrize("budget", [1 << 10, 1 << 24])
def test_keys_of_one_hash_and_long_values_are_told_apart(budget: int) -> None:
    def place(layout: Layout, columns: Sequence[pa.Array], found: np.ndarray) -> np.ndarray:
        return found * np.uint64(0)

    store = MapOutputStore(MemoryFilesystem(), "/job")
    pairs: Pairs = [(f"key{n % 3}", f"{n}" + "x" * 100_000) for n in range(90)]
    collect(store, "j0123456789ab-m000000.0", pairs, 1, 1_000_000, place, 5)
    with arrow_peak() as peak:
        found = list(groups(merge_rounds(sources_of(store.open("j0123456789ab-m000000.0", 0), 0), budget)))
    assert found == [(f"key{k}", [v for key, v in pairs if key == f"key{k}"]) for k in range(3)]
    assert budget > 1 << 20 or peak.bytes < 3 << 20


def test_a_value_larger_than_the_buffer_is_copied_only_to_be_written() -> None:
    store, size = MapOutputStore(MemoryFilesystem(), "/job"), 20_000_000
    values = ["x" * 100_000] * 30 + ["y" * size]
    with arrow_peak() as peak:
        collect(store, "j0123456789ab-m000000.0", [(n, v) for n, v in enumerate(values)], 1, 8 << 20, None, 1)
    assert peak.bytes < 3.3 * size  # the column, its block, and that compressed
    sources = sources_of(store.open("j0123456789ab-m000000.0", 0), 0)
    found = {key: value for key, (value,) in groups(merge_rounds(sources, 8 << 20))}
    assert [found[n] for n in range(31)] == values


def test_what_many_columns_take_as_objects_is_counted() -> None:
    layout = Layout("", (pa.int64(),), "rows", tuple((f"c{n}", pa.int64()) for n in range(300)))
    read: list[int] = []

    def batch(index: int) -> pa.RecordBatch:
        read.append(index)
        one = pa.array([index])
        return layout.batch(np.array([index], np.uint64), [one], [one] * 300)

    numbers = np.arange(200, dtype=np.int64)
    hashes = numbers.astype(np.uint64)
    source = RunSource(layout, hashes, hashes, np.full(200, 302 * 8), np.ones(200, np.int64), batch)
    counts = [len(read) for _ in merge_rounds([source], 2 << 20)]
    assert max(np.diff([0, *counts])) <= 10  # of 200 KB, whose numbers are 2 KB
    assert read == numbers.tolist()


def _loses(function: Any) -> Any:
    """The same function without its first result."""
    return lambda *arguments: (made for n, made in enumerate(function(*arguments)) if n)


@pytest.mark.parametrize(
    ("where", "name", "budget"),
    [
        (merge._Cursor, "rows_below", 1 << 24),
        (merge._Cursor, "batches_equal", 1),
        (merge, "_sorted_groups", 1 << 24),
    ],
)
def test_rows_that_a_merge_loses_are_missed(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, budget: int
) -> None:
    sources = many_rows(monkeypatch)
    monkeypatch.setattr(pieces, "FOLD_ROWS", 1000)
    monkeypatch.setattr(where, name, _loses(getattr(where, name)))
    with pytest.raises(RowsLost, match="fewer"):
        list(groups(merge_rounds(sources, budget)))


def rows_layout(key: pa.DataType, **payload: pa.DataType) -> Layout:
    return Layout("", (key,), "rows", tuple(payload.items()))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (rows_layout(pa.int64()), rows_layout(pa.int32()), "key column 1 is int64"),
        (rows_layout(pa.int64()), rows_layout(pa.float64()), "and double in another"),
        (rows_layout(pa.int64(), a=pa.string()), rows_layout(pa.int64()), "different columns: a; then none"),
        (rows_layout(pa.int64()), rows_layout(pa.int64(), a=pa.string()), "different columns: none"),
        (rows_layout(pa.int64(), a=pa.int8()), rows_layout(pa.int64(), a=pa.int16()), "'a' is int8"),
    ],
)
def test_rows_of_other_columns_are_not_merged(first: Layout, second: Layout, message: str) -> None:
    null = rows_layout(pa.null(), **dict(first.payload_fields))
    for layouts in ([first, second], [first, first, second], [null, first, second]):
        with pytest.raises(ColumnError, match=message):
            common_layout(layouts)


def test_a_column_without_a_value_takes_the_others_type() -> None:
    null = rows_layout(pa.null(), a=pa.null(), b=pa.int8())
    typed = rows_layout(pa.int64(), a=pa.string(), b=pa.int8())
    assert common_layout([null, typed]) == common_layout([typed, null]) == typed
    assert common_layout([null, null]) == null


def test_states_of_one_type_may_need_other_columns_and_none_are_merged_with_values() -> None:
    few = Layout("int", (pa.int64(),), "states:float64", (("0.n", pa.int64()),))
    more = Layout("int", (pa.int64(),), "states:float64", (("0.n", pa.int64()), ("0.s-3", pa.int64())))
    assert common_layout([few, more]) == common_layout([more, few]) == more
    values = Layout("int", (pa.int64(),), "values:pickle", (("value", pa.binary()),))
    ints = Layout("int", (pa.int64(),), "states:int64", (("0.n", pa.int64()),))
    for other in (values, ints):
        for layouts in ([few, other], [other, few]):
            with pytest.raises(ValueTypeError, match="different types"):
                common_layout(layouts)

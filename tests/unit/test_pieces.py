"""Sorted rows are cut by bytes, however uneven they are; a few rows of a large array do not keep it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa

from cortex.kernels.columns import row_bytes
from cortex.kernels.hashing import hash_columns
from cortex.kernels.ordering import order_by_hash
from cortex.limits import FOLD_BYTES, FOLD_ROWS, RUN_BATCH_BYTES
from cortex.shuffle.aggregation import AggregateCollector, Aggregation
from cortex.shuffle.collector import RunSink, SortBuffer
from cortex.shuffle.partitioner import Partitioner
from cortex.shuffle.pieces import Pieces, slices
from cortex.shuffle.run_schema import Layout
from cortex.storage.map_output_store import MapOutputStore
from tests.arrow_memory import arrow_peak
from tests.memory_filesystem import MemoryFilesystem

ATTEMPT = "j0123456789ab-m000000.0"


def cuts(pieces: Pieces, rows: int) -> list[int]:
    ends = [0]
    while ends[-1] < rows:
        ends.append(pieces.end(ends[-1], rows))
    return ends


def test_even_rows_are_cut_by_their_number() -> None:
    column = pa.array(["x" * 100] * 1000)
    assert cuts(Pieces.of([column], 1000, 100_000, 10_000, 5000), 1000) == list(range(0, 1001, 100))
    assert cuts(Pieces.of([column], 1000, 100_000, 10_000, 30), 1000)[:3] == [0, 30, 60]


def test_uneven_rows_are_cut_by_their_own_sizes() -> None:
    lengths = [1] * 5000 + [3_000_000] * 3 + [1] * 5000
    column = pa.array(["x" * n for n in lengths])
    ends = cuts(Pieces.of([column], len(lengths), column.nbytes, 4 << 20, 4000), len(lengths))
    sizes = np.array(lengths)
    for begin, end in pairwise(ends):
        assert end - begin == 1 or sizes[begin:end].sum() <= 4 << 20
        assert end - begin <= 4000
    assert ends[-1] == len(lengths)


def test_rows_are_weighed_in_the_order_they_are_taken() -> None:
    column = pa.array(["x" * (3_000_000 if i % 2000 == 0 else 1) for i in range(10_000)]).slice(1, 9999)
    keys = [pa.array(np.arange(9999))]
    ordering = order_by_hash(hash_columns(keys), keys)
    total = 0
    for rows, starts in slices(ordering, [*keys, column], column.nbytes):
        taken = column.take(pa.array(ordering.permutation[rows]))
        assert taken.nbytes < FOLD_BYTES + 100_000
        assert 0 < len(taken) <= FOLD_ROWS
        assert starts[0] == 0
        total += len(taken)
    assert total == 9999


def test_small_rows_among_large_ones_reserve_little_when_they_are_taken() -> None:
    column = pa.array(["x" * (1_000_000 if i % 1000 == 0 else 10) for i in range(30_000)])
    keys = [pa.array(np.arange(30_000))]
    ordering = order_by_hash(hash_columns(keys), keys)
    with arrow_peak() as peak:
        for rows, _ in slices(ordering, [*keys, column], column.nbytes):
            column.take(pa.array(ordering.permutation[rows]))
    assert peak.bytes < 4 * FOLD_BYTES


def test_row_bytes_of_slices_nulls_and_wide_offsets() -> None:
    text = pa.array(["", "abc", None, "de"]).slice(1)
    wide = pa.array([b"1", b"22", b"333"], pa.large_binary())
    sizes = row_bytes([text, wide, pa.array([1, 2, 3])])
    assert sizes is not None
    assert sizes.tolist() == [4, 2, 5]
    assert row_bytes([pa.array([1, 2])]) is None


def test_a_block_of_a_run_is_small_where_one_row_is_not() -> None:
    store = MapOutputStore(MemoryFilesystem(), "/job", compression=None)
    writer = store.create(ATTEMPT)
    keys = [pa.array(np.arange(3000))]
    values = pa.array(["x" * (500_000 if i % 1000 == 0 else 10) for i in range(3000)])
    layout = Layout("", (pa.int64(),), "", (("v", pa.string()),))
    hashes = np.sort(hash_columns(keys))
    sink = RunSink(writer, Partitioner(1))
    sink.append(layout, layout.batch(hashes, keys, [values]))
    sink.end()
    store.commit(writer, ATTEMPT)
    (run,) = store.open(ATTEMPT).runs
    sizes = run.all_entries["raw_bytes"].tolist()
    assert sum(run.all_entries["rows"].tolist()) == 3000
    assert all(size < RUN_BATCH_BYTES + 20_000 or size < 520_000 for size in sizes)
    assert sum(size > 2 * RUN_BATCH_BYTES for size in sizes) == 3


def test_a_few_rows_of_a_large_array_do_not_keep_it() -> None:
    parent = pa.array(["x" * 1000] * 10_000)
    buffer = SortBuffer(Layout("", (pa.string(),), "", ()))
    for i in range(20):
        part = parent.slice(i, 1)
        buffer.add(hash_columns([part]), [part], [])
    kept = sum(array.get_total_buffer_size() for column in buffer._columns for array in column)
    assert kept < 100_000
    assert buffer.take_all()[1][0].to_pylist() == ["x" * 1000] * 20


def test_a_table_of_wide_states_is_written_before_it_is_large() -> None:
    store = MapOutputStore(MemoryFilesystem(), "/job")
    writer = store.create(ATTEMPT)
    columns = 40
    aggregation = Aggregation([("mean", i) for i in range(columns)], [pa.float64()] * columns)
    collector = AggregateCollector(RunSink(writer, Partitioner(1)), 4 << 20, aggregation)
    largest = 0
    for block in range(20):  # 1,000 new groups a block: few of its rows, many in all
        keys = pa.array(np.arange(8000) // 8 + 1000 * block)
        numbers = pa.array(np.arange(8000) * 0.1)
        collector.add("", [keys], [numbers] * columns)
        assert collector._table is not None
        largest = max(largest, collector._table.nbytes)
    collector.flush()
    store.commit(writer, ATTEMPT)
    reader = store.open(ATTEMPT)
    assert largest < 3 << 20
    assert reader.rows() == 20_000
    assert len(reader.runs) > 1

"""Pairs and batches are written before they are many bytes, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from cortex.limits import MIB
from cortex.tasks.pair_emitters import PairsToPart
from cortex.tasks.part_output import PairWriter
from cortex.tasks.table_emitters import TableToPart, batches_from
from tests.arrow_memory import arrow_peak

LONG = "x" * 500_000


class Part:
    """In place of a `PartWriter`."""

    def __init__(self) -> None:
        self.batches: list[pa.RecordBatch] = []

    def write(self, batch: pa.RecordBatch) -> None:
        self.batches.append(batch)

    @property
    def rows(self) -> int:
        return sum(batch.num_rows for batch in self.batches)


def written(pairs: Iterator[Any]) -> Part:
    part = Part()
    PairWriter(part, "csv", False).write_all(pairs, "reduce()")
    return part


@pytest.mark.parametrize(
    "pair",
    [(1, LONG), (LONG, 1), (("k", LONG), 2), (1, [LONG, 2]), (1, {"a": LONG})],
    ids=["value", "key", "tuple", "list", "dict"],
)
def test_large_pairs_are_written_as_they_come(pair: Any) -> None:
    taken = 0

    class Watched(Part):
        def write(self, batch: pa.RecordBatch) -> None:
            super().write(batch)
            waiting.append(taken - (self.rows - batch.num_rows))

    def pairs() -> Iterator[Any]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield pair

    part, waiting = Watched(), []
    PairWriter(part, "csv", False).write_all(pairs(), "reduce()")
    assert part.rows == 100
    assert max(waiting) <= 17


def test_large_pairs_after_small_ones_or_between_them_are_few_at_once() -> None:
    part = written(pair for i in range(600) for pair in ((i, LONG if i > 500 else ""),))
    assert max(batch.nbytes for batch in part.batches) < 40 * MIB
    part = written((i, LONG if i % 2 else "") for i in range(600))
    assert max(batch.nbytes for batch in part.batches) < 20 * MIB


def test_small_pairs_are_many_at_once() -> None:
    part = written((i, 1) for i in range(50_000))
    assert len(part.batches) < 5
    assert [key for batch in part.batches for key in batch.column(0).to_pylist()] == list(range(50_000))


def test_large_keys_do_not_wait_for_a_value_other_than_none() -> None:
    part = Part()
    writer = PairWriter(part, "csv", False)
    writer.write_all(((f"{i}{LONG}", None) for i in range(100)), "reduce()")
    assert part.rows == 100


@pytest.mark.parametrize("repeat", [1, 100])
def test_a_map_only_job_writes_large_pairs_as_they_come(repeat: int) -> None:
    """Of many records, or of one."""
    part = Part()
    emitter = PairsToPart(PairWriter(part, "csv", False))
    emitter.records(iter(range(100 // repeat)), lambda record: ((record, LONG) for _ in range(repeat)))
    assert emitter.rows_out == part.rows == 100
    assert max(batch.nbytes for batch in part.batches) < 10 * MIB


@pytest.mark.parametrize("make", [pa.record_batch, pa.table, dict], ids=["batch", "table", "dict"])
def test_a_batch_of_long_texts_in_a_dictionary_is_decoded_piece_by_piece(make: Any) -> None:
    rows = 20_000
    texts = pa.DictionaryArray.from_arrays([n % 10 for n in range(rows)], [f"{n}-" * 5000 for n in range(10)])
    result = make({"text": texts})

    class Counted(Part):
        def write(self, batch: pa.RecordBatch) -> None:
            counts.append(batch.num_rows)
            assert batch.nbytes < 10 * MIB

    counts: list[int] = []
    with arrow_peak() as peak:
        emitter = TableToPart(Counted())
        for batch in batches_from(result, "map_batch()"):
            emitter.batch(batch)
    assert sum(counts) == emitter.rows_out == rows
    assert peak.bytes < 40 * MIB


def test_an_empty_batch_says_what_the_columns_are() -> None:
    (batch,) = batches_from(pa.record_batch({"x": pa.array([], pa.int8())}), "map_batch()")
    assert batch.schema == pa.schema([("x", pa.int8())])

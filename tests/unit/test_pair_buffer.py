"""How many pairs are held as Python objects: by what they weigh, whatever a record gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cortex.limits import FOLD_KEYS_MAX
from cortex.storage.map_output_store import MapOutputStore
from cortex.tasks.folding import pairs_of
from cortex.tasks.pair_buffer import PAIRS_AT_ONCE, PairBuffer
from cortex.tasks.pair_emitters import FoldedPairs
from cortex.tasks.shuffle_output import ShuffleOutput
from tests.memory_filesystem import MemoryFilesystem

MB = 1 << 20


def sent_by(records: list[Any], map_record: Any, bytes_max: int) -> list[list[Any]]:
    sent: list[list[Any]] = []
    buffer = PairBuffer(bytes_max, sent.append)
    buffer.take(pairs_of(records, map_record))
    buffer.send()
    return sent


def test_small_pairs_are_many_at_once_and_in_order() -> None:
    sent = sent_by(list(range(200_000)), lambda n: ((n, 1),), 100 * MB)
    assert [len(pairs) for pairs in sent] == [PAIRS_AT_ONCE] * 3 + [200_000 - 3 * PAIRS_AT_ONCE]
    assert [key for pairs in sent for key, _ in pairs] == list(range(200_000))


def test_large_pairs_are_few_at_once() -> None:
    sent = sent_by(list(range(500)), lambda n: ((n, "x" * 200_000),), 4 * MB)
    assert max(map(len, sent)) <= 16
    assert sum(map(len, sent)) == 500


def test_one_huge_pair_is_sent_alone() -> None:
    sent = sent_by([1, 2, 3], lambda n: ((n, "x" * 5_000_000),), 4 * MB)
    assert [len(pairs) for pairs in sent] == [1, 1, 1]


def test_large_pairs_after_small_ones_are_noticed_within_a_look() -> None:
    sent = sent_by(list(range(20_000)), lambda n: ((n, "x" * (10 if n < 10_000 else 20_000)),), 4 * MB)
    assert max(sum(len(value) for _, value in pairs) for pairs in sent) < 4 * MB
    assert sum(map(len, sent)) == 20_000


def held_at_most(records: list[Any], map_record: Any, size_of: Any, bytes_max: int) -> tuple[int, int]:
    """The most bytes that were held, and that were sent at once, as `size_of(value)` counts them."""
    held = most_held = most_sent = 0

    def send(pairs: list[Any]) -> None:
        nonlocal held, most_sent
        size = sum(size_of(value) for _, value in pairs)
        held, most_sent = held - size, max(most_sent, size)

    def counted(record: Any) -> Iterator[Any]:
        nonlocal held, most_held
        for key, value in map_record(record):
            held += size_of(value)
            most_held = max(most_held, held)
            yield key, value

    buffer = PairBuffer(bytes_max, send)
    buffer.take(pairs_of(records, counted))
    buffer.send()
    assert held == 0
    return most_held, most_sent


@pytest.mark.parametrize("size", [50_000, 200_000, 1_000_000])
def test_pairs_of_one_size_are_never_more_than_fit(size: int) -> None:
    value = "x" * size
    held, sent = held_at_most(list(range(300)), lambda n: ((n, value),), len, 12 * MB)
    assert 4 * MB < sent <= held < 7 * MB  # twice that in objects and columns


def test_a_large_pair_among_a_thousand_small_ones_is_weighed() -> None:
    value = "x" * 1_000_000
    held, _ = held_at_most(
        list(range(60_000)), lambda n: ((n, value if n % 1000 == 77 else "v"),), len, 12 * MB
    )
    assert held < 8 * MB


def test_a_burst_of_large_pairs_is_sent_in_parts() -> None:
    value = "x" * 1_000_000
    held, sent = held_at_most(list(range(9_000)), lambda n: ((n, value if n > 8_000 else "v"),), len, 12 * MB)
    assert held <= 33 * MB
    assert sent < 8 * MB


@pytest.mark.parametrize(
    "value",
    [
        "x" * 300_000 + "\N{GRINNING FACE}",  # four bytes a character
        (1, b"x" * 300_000),
        {"a": ["x" * 300_000]},
        list(range(40_000)),
    ],
)
def test_what_texts_and_containers_take_is_known(value: Any) -> None:
    sent = sent_by(list(range(200)), lambda n: ((n, value),), 12 * MB)
    assert 1 < max(map(len, sent)) <= 20
    assert sum(map(len, sent)) == 200


def test_containers_that_hold_themselves_can_be_weighed() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert sum(map(len, sent_by([1, 2], lambda n: ((n, loop),), MB))) == 2


def test_a_record_may_give_more_pairs_than_are_held() -> None:
    def many(n: int) -> Iterator[tuple[int, int]]:
        for i in range(300_000):
            yield i, n

    sent = sent_by([1, 2], many, 100 * MB)
    assert max(map(len, sent)) <= PAIRS_AT_ONCE
    assert [pair for pairs in sent for pair in pairs] == [(i, n) for n in (1, 2) for i in range(300_000)]


def test_a_table_of_long_keys_is_sent_before_it_is_large() -> None:
    output = ShuffleOutput(MapOutputStore(MemoryFilesystem(), "/job"), "j0123456789ab-m000000.0", 1)
    folded = FoldedPairs(output, 8 * MB, "sum", None, None)
    largest = 0

    def map_record(n: int) -> Iterator[tuple[str, int]]:
        nonlocal largest
        largest = max(largest, len(folded._table))
        yield f"{n:01000}", 1

    folded.records(iter(list(range(30_000))), map_record)
    folded.flush()
    assert 1000 < largest < 8000  # of 1 KB, in 8 MB
    assert folded.rows_out == 30_000
    assert largest < FOLD_KEYS_MAX


def test_one_record_with_very_many_keys_does_not_fill_the_table() -> None:
    output = ShuffleOutput(MapOutputStore(MemoryFilesystem(), "/job"), "j0123456789ab-m000000.0", 1)
    folded = FoldedPairs(output, 4 * MB, "sum", None, None)
    largest = 0

    def map_record(record: int) -> Iterator[tuple[str, int]]:
        nonlocal largest
        for i in range(50_000 if record > 100 else 1):
            largest = max(largest, len(folded._table))
            yield f"{record}-{i:0100}", 1

    folded.records(iter([*range(101)]), map_record)
    folded.records(iter([*range(101, 110)]), map_record)
    folded.flush()
    assert largest < 4 * 50_000  # three records until each is looked at by itself; 450,000 in all
    largest = 0
    folded.records(iter([200]), map_record)
    assert folded.rows_out + len(folded._table) == 101 + 10 * 50_000

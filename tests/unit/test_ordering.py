"""Order by (hash, key, row) and groups of keys, against plain Python sorting."""

import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from cortex.kernels.groups import Groups, groups_of
from cortex.kernels.hashing import NULL_HASH, hash_columns
from cortex.kernels.ordering import order_by_hash


def canonical(value):
    """A key's place among keys: null first, NaN last, one zero."""
    if value is None:
        return (0, 0)
    if isinstance(value, float) and math.isnan(value):
        return (2, 0)
    return (1, value.encode() if isinstance(value, str) else value)


def check(hashes, keys, **options):
    rows = len(hashes)
    values = [key.to_pylist() for key in keys]
    place = [(int(hashes[i]), *(canonical(column[i]) for column in values)) for i in range(rows)]
    expected = sorted(range(rows), key=lambda i: (place[i], i))
    starts = [p for p in range(rows) if p == 0 or place[expected[p]] != place[expected[p - 1]]]
    ordering = order_by_hash(np.asarray(hashes, np.uint64), keys, **options)
    assert ordering.permutation.tolist() == expected
    assert ordering.starts.tolist() == starts


rng = np.random.default_rng(7)
words = [
    None,
    "",
    "a",
    "ab",
    "abcdefgh",
    "Abcdefgh",
    "abcdefghi",
    "x" * 63,
    "x" * 64,
    "x" * 65,
    "y" + "x" * 199,
    "z" + "x" * 199,
    "é",
    "abcdefgz",
]
columns = {
    "int64": pa.array([int(v) if v else None for v in rng.integers(-5, 5, 500)]),
    "uint64": pa.array(rng.integers(0, 4, 500).astype(np.uint64) << np.uint64(62)),
    "float64": pa.array(rng.choice([0.0, -0.0, 1.5, -2.5, np.nan, np.inf], 500)),
    "string": pa.array(rng.choice(np.array(words, object), 500)),
    "string_view": pa.array(rng.choice(np.array(words, object), 500), pa.string_view()),
    "sliced": pa.array(rng.choice(np.array(words, object), 600))[73:573],
    "dictionary": pa.array(rng.choice(np.array(words, object), 500)).dictionary_encode(),
    "binary": pa.array([bytes([v]) * 3 for v in rng.integers(0, 9, 500)], pa.binary(3)),
    "decimal": pa.array([Decimal(int(v)) / 10 for v in rng.integers(-9, 9, 500)], pa.decimal128(5, 1)),
    "bool": pa.array(rng.choice(np.array([True, False, None], object), 500)),
    "null": pa.nulls(500),
}


@pytest.mark.parametrize("name", columns)
def test_real_hashes(name):
    key = columns[name]
    check(hash_columns([key]), [key])


@pytest.mark.parametrize("name", columns)
@pytest.mark.parametrize("distinct", [1, 3])
def test_colliding_hashes_are_ordered_by_value(name, distinct):
    hashes = rng.choice(np.array([5, 2**63 + 9, 2**64 - 1], np.uint64)[:distinct], 500)
    check(hashes, [columns[name]], other_hash=True)


def test_hashes_that_differ_only_in_their_low_bits():
    hashes = (np.uint64(77) << np.uint64(40)) + rng.integers(0, 50, 500).astype(np.uint64)
    check(hashes, [pa.array(hashes)], other_hash=True)
    check(hashes, [columns["string"]], other_hash=True)


@pytest.mark.parametrize("distinct", [0, 1, 3])
def test_several_key_columns(distinct):
    keys = [columns["string"], columns["int64"], columns["float64"], columns["sliced"]]
    hashes = rng.integers(0, distinct, 500).astype(np.uint64) if distinct else hash_columns(keys)
    check(hashes, keys, other_hash=bool(distinct))


def _inverse_xxh64_of_null() -> int:
    """The integer whose XXH64 is NULL_HASH, by undoing the hash step by step."""
    mask = 2**64 - 1
    p1, p2, p3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
    p4, p5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5

    def inverse(p):
        return pow(p, -1, 2**64)

    def unshift(h, bits):
        out = h
        while True:
            again = h ^ (out >> bits)
            if again == out:
                return out
            out = again

    def right(h, bits):
        return (h >> bits | h << (64 - bits)) & mask

    h = unshift(NULL_HASH, 32) * inverse(p3) & mask
    h = unshift(h, 29) * inverse(p2) & mask
    h = unshift(h, 33)
    h = right((h - p4) * inverse(p1) & mask, 27) ^ ((p5 + 8) & mask)
    return right(h * inverse(p1) & mask, 31) * inverse(p2) & mask


def test_the_integer_that_hashes_like_null_is_not_null():
    twin = _inverse_xxh64_of_null()
    key = pa.array([twin, None, 5, twin, None, twin], pa.uint64())
    assert hash_columns([key]).tolist().count(NULL_HASH) == 5
    check(hash_columns([key]), [key])
    check(hash_columns([key[:1]]), [key[:1]])


def test_long_values_are_compared_in_bounded_parts(monkeypatch):
    monkeypatch.setattr("cortex.kernels.ordering._TAKEN_BYTES", 1000)
    for name in ("string", "sliced", "binary", "decimal"):
        check(hash_columns([columns[name]]), [columns[name]])
        check(np.zeros(500, np.uint64), [columns[name]], other_hash=True)


def test_no_rows_and_no_keys():
    empty = order_by_hash(np.zeros(0, np.uint64), [pa.array([], pa.int64())])
    assert (len(empty.permutation), len(empty.starts)) == (0, 0)
    check(hash_columns([], 4), [])
    check(hash_columns([pa.array([3])]), [pa.array([3])])


def groups_by_dict(keys):
    seen = {}
    values = [key.to_pylist() for key in keys]
    return [seen.setdefault(tuple(map(canonical, row)), i) for i, row in enumerate(zip(*values))]


@pytest.mark.parametrize(
    "names",
    [[n] for n in columns] + [["string", "int64"], ["dictionary", "null", "bool", "decimal", "float64"]],
)
def test_groups_of_keys(names):
    keys = [columns[name] for name in names]
    codes, representatives = groups_of(keys)
    assert representatives[codes].tolist() == groups_by_dict(keys)
    assert sorted(set(codes.tolist())) == list(range(len(representatives)))


def test_groups_of_many_wide_columns_do_not_overflow():
    keys = [pa.array(rng.permutation(70_000)) for _ in range(5)]
    codes, representatives = groups_of(keys)
    assert len(representatives) == 70_000
    assert representatives[codes].tolist() == list(range(70_000))


def test_groups_of_odd_dictionaries():
    repeated = pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 2, None, 3]), pa.array(["a", "b", "a", None, "unused"])
    )
    codes, representatives = groups_of([repeated])
    assert representatives[codes].tolist() == [0, 1, 0, 3, 3]


def test_groups_without_keys():
    codes, representatives = groups_of([], 3)
    assert (codes.tolist(), representatives.tolist()) == ([0, 0, 0], [0])
    codes, representatives = groups_of([], 0)
    assert (codes.tolist(), representatives.tolist()) == ([], [])
    codes, representatives = groups_of([pa.array([], pa.string()), pa.array([], pa.int8())])
    assert (codes.tolist(), representatives.tolist()) == ([], [])


def test_sizes_pieces_and_selection_agree_between_forms():
    sizes = [1, 40_000, 3, 1, 20_000, 16_384]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    by_start = Groups.from_starts(starts, sum(sizes))
    by_code = Groups.from_codes(np.repeat(np.arange(6), sizes).astype(np.int32), 6)
    assert by_start.sizes().tolist() == by_code.sizes().tolist() == sizes
    ones = np.ones(sum(sizes), np.int64)
    for groups in (by_start, by_code):
        totals = np.zeros(6, np.int64)
        for piece in groups.pieces():
            if piece.codes is not None:
                np.add.at(totals, piece.groups(), ones[piece.first : piece.last])
            else:
                totals[piece.groups()] += np.add.reduceat(ones[piece.first : piece.last], piece.starts)
        assert totals.tolist() == sizes
        kept = groups.where(np.arange(sum(sizes)) % 2 == 0)
        assert kept.sizes().sum() == kept.rows == sum(sizes) // 2 + 1

"""XXH64 of columns against the xxhash package, value by value."""

import datetime
import struct
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from cortex.errors import KeyTypeError
from cortex.kernels.hashing import NULL_HASH, hash_columns

digest = xxhash.xxh64_intdigest


@pytest.mark.parametrize(
    "data_type",
    [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()],
)
def test_every_integer_width_hashes_as_eight_bytes(data_type):
    column = pa.array([0, 1, 100, None, 127], data_type)
    expected = [digest(struct.pack("<q", v)) if v is not None else NULL_HASH for v in column.to_pylist()]
    assert hash_columns([column]).tolist() == expected


def test_negative_and_extreme_integers():
    values = [-1, -(2**63), 2**63 - 1]
    assert hash_columns([pa.array(values, pa.int64())]).tolist() == [
        digest(struct.pack("<q", v)) for v in values
    ]
    assert hash_columns([pa.array([-1], pa.int8())]).tolist() == [digest(b"\xff" * 8)]
    assert hash_columns([pa.array([2**64 - 1], pa.uint64())]).tolist() == [digest(b"\xff" * 8)]


def test_floats_have_one_zero_and_one_nan():
    other_nan = np.array([0xFFF8000000000001], np.uint64).view(np.float64)[0]
    hashes = hash_columns([pa.array(np.array([0.0, -0.0, np.nan, other_nan, 1.5]))]).tolist()
    assert hashes[0] == hashes[1] == digest(struct.pack("<d", 0.0))
    assert hashes[2] == hashes[3] == digest(struct.pack("<Q", 0x7FF8000000000000))
    assert hashes[4] == digest(struct.pack("<d", 1.5))
    for narrow in (pa.float32(), pa.float16()):
        column = pa.array(np.array([-0.0, 1.5, np.nan]).astype(narrow.to_pandas_dtype()), narrow)
        assert hash_columns([column]).tolist() == [hashes[0], hashes[4], hashes[2]]


def test_bools_temporals_binary_and_decimals():
    assert hash_columns([pa.array([True, None, False])]).tolist() == [
        digest(struct.pack("<q", 1)),
        NULL_HASH,
        digest(struct.pack("<q", 0)),
    ]
    assert hash_columns([pa.array([datetime.date(1970, 1, 3)])]).tolist() == [digest(struct.pack("<q", 2))]
    for unit in ("s", "us"):
        stamps = pa.array([77], pa.timestamp(unit))
        assert hash_columns([stamps]).tolist() == [digest(struct.pack("<q", 77))]
    for data_type in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3)):
        column = pa.array([b"abc", None, b"xyz"], data_type)
        assert hash_columns([column]).tolist() == [digest(b"abc"), NULL_HASH, digest(b"xyz")], data_type
    expected = [digest((-1234).to_bytes(16, "little", signed=True)), NULL_HASH]
    values = [Decimal("-12.34"), None]
    for decimals in (pa.decimal32(9, 2), pa.decimal64(18, 2), pa.decimal128(38, 2)):
        assert hash_columns([pa.array(values, decimals)]).tolist() == expected
    wide = hash_columns([pa.array([Decimal("-12.34")], pa.decimal256(50, 2))]).tolist()
    assert wide == [digest((-1234).to_bytes(32, "little", signed=True))]


def test_slices_of_bools_read_the_right_bits():
    values = [i % 3 == 0 if i % 5 else None for i in range(100)]
    column = pa.array(values)
    whole = hash_columns([column]).tolist()
    for offset in (1, 7, 8, 9, 33):
        assert hash_columns([column[offset : offset + 40]]).tolist() == whole[offset : offset + 40]


def test_every_length_of_string_at_every_place_in_the_buffer():
    text = bytes(range(1, 128)) * 2
    for lead in range(10):
        values = [b"!" * lead, *(text[n : 2 * n] for n in range(100)), b"", b"x"]
        assert hash_columns([pa.array(values, pa.binary())]).tolist() == [digest(v) for v in values]


def test_empty_columns_and_empty_strings():
    for data_type in (pa.string(), pa.int64(), pa.bool_(), pa.null(), pa.decimal128(5, 1), pa.binary(2)):
        assert hash_columns([pa.array([], data_type)]).tolist() == []
    assert hash_columns([pa.array(["", None, ""])]).tolist() == [digest(b""), NULL_HASH, digest(b"")]
    assert hash_columns([pa.nulls(3)]).tolist() == [NULL_HASH] * 3
    assert hash_columns([pa.nulls(2, pa.string())]).tolist() == [NULL_HASH] * 2


def test_no_column_is_the_hash_of_nothing():
    assert hash_columns([], 3).tolist() == [digest(b"")] * 3


@pytest.mark.parametrize("columns", [2, 3, 4, 5, 8, 9, 12])
def test_several_columns_hash_their_hashes(columns):
    rng = np.random.default_rng(columns)
    table = [pa.array(rng.integers(-(2**63), 2**63 - 1, 50)) for _ in range(columns - 1)]
    table.append(pa.array([str(i) if i % 7 else None for i in range(50)]))
    single = [hash_columns([column]).tolist() for column in table]
    expected = [digest(b"".join(struct.pack("<Q", h) for h in row)) for row in zip(*single)]
    assert hash_columns(table).tolist() == expected


def test_dictionaries_hash_as_their_values():
    values = ["a", "b", None, "a", "longer than eight bytes"] * 20
    plain = hash_columns([pa.array(values)]).tolist()
    encoded = pa.array(values).dictionary_encode()
    assert hash_columns([encoded]).tolist() == plain
    assert hash_columns([encoded[3:30]]).tolist() == plain[3:30]
    assert hash_columns([encoded[3:5]]).tolist() == plain[3:5]
    null_inside = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, None]), pa.array([None, "a"]))
    assert hash_columns([null_inside]).tolist() == [NULL_HASH, digest(b"a"), NULL_HASH, NULL_HASH]


def test_more_rows_than_a_chunk():
    values = [f"{i:x}" for i in range(70_000)]
    assert hash_columns([pa.array(values)]).tolist() == [digest(v.encode()) for v in values]
    numbers = np.arange(40_000)
    assert hash_columns([pa.array(numbers)]).tolist() == [digest(struct.pack("<q", i)) for i in range(40_000)]


def test_a_list_is_no_key():
    with pytest.raises(KeyTypeError, match="list"):
        hash_columns([pa.array([[1]])])

"""XXH64 (seed 0) of key columns, a row at a time in meaning and a column at a time in work.

`hash_columns` gives the same 64 bits on every machine, for the same value in whatever layout: sliced,
dictionary-encoded, large or view types. It is what keys are partitioned and ordered by, so it never
changes.

* One column: XXH64 of the value's canonical bytes (see `cortex.kernels.columns`); null is NULL_HASH.
* Several columns: XXH64 over the concatenation of the columns' hashes, eight little-endian bytes each.
* No column: every row is XXH64 of nothing.

Raises KeyTypeError for a type that cannot be a key. Temporary memory is a few MB whatever the column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
import xxhash
from numpy.typing import NDArray

from cortex.kernels.columns import byte_ranges, fixed_words, is_fixed, plain, unaligned_words, valid_mask

NULL_HASH: Final = 0x9AE16A3B2F90404F
"""What null hashes to. One integer, and some strings, hash to it too: hashes alone never prove a null."""

_P1: Final = np.uint64(0x9E3779B185EBCA87)
_P2: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_P3: Final = np.uint64(0x165667B19E3779F9)
_P4: Final = np.uint64(0x85EBCA77C2B2AE63)
_P5: Final = np.uint64(0x27D4EB2F165667C5)

_FIXED_ROWS: Final = 16_384  # a chunk's few arrays of 128 KB stay in the second-level cache
_BYTES_ROWS: Final = 65_536  # 33 lengths share the calls: half as many rows cost 1.5 times as much a row
_PACKAGE_BYTES: Final = 32  # from here on a call of the package a row is as fast as NumPy's stripes

Words = NDArray[np.uint64]


def _shift(bits: int) -> np.uint64:
    return np.uint64(bits)


def _rotate(x: Words, bits: int) -> Words:
    high = x << _shift(bits)
    high |= x >> _shift(64 - bits)
    return high


def _word_step(h: Words, word: Words) -> Words:
    """One lane of eight bytes."""
    lane = word * _P2
    lane = _rotate(lane, 31)
    lane *= _P1
    lane ^= h
    lane = _rotate(lane, 27)
    lane *= _P1
    lane += _P4
    return lane


def _avalanche(h: Words) -> Words:
    h ^= h >> _shift(33)
    h *= _P2
    h ^= h >> _shift(29)
    h *= _P3
    h ^= h >> _shift(32)
    return h


def _start(length: int) -> np.uint64:
    return np.uint64((int(_P5) + length) & 0xFFFFFFFFFFFFFFFF)


def hash_words(words: Words) -> Words:
    """XXH64 of each word's eight little-endian bytes."""
    out = np.empty(len(words), np.uint64)
    for first in range(0, len(words), _FIXED_ROWS):
        part = words[first : first + _FIXED_ROWS]
        out[first : first + _FIXED_ROWS] = _avalanche(_word_step(np.full(len(part), _start(8)), part))
    return out


def _hash_short(words_at: Words, ends: NDArray[np.int64], length: int) -> Words:
    """XXH64 of equally long byte ranges of less than 32 bytes, each with eight bytes before its end."""
    h = np.full(len(ends), _start(length))
    tail_bytes = length & 7
    for back in range(length, tail_bytes, -8):
        h = _word_step(h, words_at[ends - back])
    if tail_bytes:
        # The tail is read as the last bytes of the word that ends with it, so nothing past the end is.
        tail = words_at[ends - 8] >> _shift(64 - 8 * tail_bytes)
        if tail_bytes & 4:
            h ^= (tail & _shift(0xFFFFFFFF)) * _P1
            h = _rotate(h, 23)
            h *= _P2
            h += _P3
            tail >>= _shift(32)
        for _ in range(tail_bytes & 3):
            h ^= (tail & _shift(0xFF)) * _P5
            h = _rotate(h, 11)
            h *= _P1
            tail >>= _shift(8)
    return _avalanche(h)


def _hash_by_package(data: NDArray[np.uint8], starts: list[int], ends: list[int]) -> Words:
    bytes_at = data.data
    digest = xxhash.xxh64_intdigest
    hashes = [digest(bytes_at[start:end]) for start, end in zip(starts, ends)]
    return np.array(hashes, np.uint64)


def _hash_ranges(
    data: NDArray[np.uint8], words_at: Words, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> Words:
    """XXH64 of data[start:end] for each row; rows are gathered by length so that no step needs a mask."""
    lengths = np.minimum(ends - starts, _PACKAGE_BYTES).astype(np.uint8)
    rows_of = np.bincount(lengths, minlength=_PACKAGE_BYTES + 1)
    one_length = bool(rows_of.max(initial=0) == len(lengths))
    if not one_length:
        order = np.argsort(lengths, kind="stable")  # a radix sort for one byte
        starts, ends = starts[order], ends[order]
    sorted_hashes = np.empty(len(lengths), np.uint64)
    first = 0
    for length in np.flatnonzero(rows_of).tolist():
        last = first + int(rows_of[length])
        part_ends = ends[first:last]
        # Rows whose word would begin before the buffer: at most seven that are not empty.
        early = int(np.searchsorted(part_ends, 8)) if length else 0
        by_package = last if length == _PACKAGE_BYTES else first + early
        if by_package > first:
            sorted_hashes[first:by_package] = _hash_by_package(
                data, starts[first:by_package].tolist(), ends[first:by_package].tolist()
            )
        if by_package < last:
            sorted_hashes[by_package:last] = _hash_short(words_at, part_ends[by_package - first :], length)
        first = last
    if one_length:
        return sorted_hashes
    hashes = np.empty(len(lengths), np.uint64)
    hashes[order] = sorted_hashes
    return hashes


def _hash_bytes(column: pa.Array) -> Words:
    out = np.empty(len(column), np.uint64)
    for first in range(0, len(column), _BYTES_ROWS):
        last = min(first + _BYTES_ROWS, len(column))
        data, starts, ends = byte_ranges(column, first, last)
        out[first:last] = _hash_ranges(data, unaligned_words(data), starts, ends)
    return out


def hash_column(column: pa.Array) -> Words:
    """The 64-bit hash of each row of one column."""
    if pt.is_dictionary(column.type):
        if len(column) < len(column.dictionary):  # a slice: decoding is less work than its dictionary
            return hash_column(column.dictionary_decode())
        words = hash_column(column.dictionary)
        mask = valid_mask(column)
        indices = column.indices
        if mask is None:
            return words[fixed_words(indices).view(np.int64)]
        hashes = np.full(len(column), NULL_HASH, np.uint64)
        hashes[mask] = words[fixed_words(indices).view(np.int64)[mask]]
        return hashes
    column = plain(column)
    if pt.is_null(column.type):
        return np.full(len(column), NULL_HASH, np.uint64)
    hashes = hash_words(fixed_words(column)) if is_fixed(column.type) else _hash_bytes(column)
    mask = valid_mask(column)
    if mask is not None:
        hashes[~mask] = NULL_HASH
    return hashes


def hash_columns(columns: Sequence[pa.Array], rows: int | None = None) -> Words:
    """The 64-bit hash of each row's key. `rows` is needed only when there are no columns."""
    if len(columns) == 0:
        return _avalanche(np.full(rows or 0, _start(0)))
    if len(columns) == 1:
        return hash_column(columns[0])
    hashes = [hash_column(column) for column in columns]
    out = np.empty(len(hashes[0]), np.uint64)
    for first in range(0, len(out), _FIXED_ROWS):
        part = slice(first, first + _FIXED_ROWS)
        out[part] = _hash_concatenated([h[part] for h in hashes])
    return out


def _hash_concatenated(lanes: list[Words]) -> Words:
    """XXH64 of the concatenation of eight-byte lanes, row by row."""
    length = 8 * len(lanes)
    stripes = len(lanes) // 4
    if stripes:
        seeds = (int(_P1) + int(_P2), int(_P2), 0, -int(_P1))
        accumulators = [np.full(len(lanes[0]), np.uint64(s & 0xFFFFFFFFFFFFFFFF)) for s in seeds]
        for i in range(4 * stripes):
            accumulators[i % 4] = _round(accumulators[i % 4], lanes[i])
        h = _rotate(accumulators[0], 1)
        for accumulator, bits in zip(accumulators[1:], (7, 12, 18)):
            h += _rotate(accumulator, bits)
        for accumulator in accumulators:
            h ^= _round(np.zeros_like(h), accumulator)
            h *= _P1
            h += _P4
        h += _shift(length)
    else:
        h = np.full(len(lanes[0]), _start(length))
    for lane in lanes[4 * stripes :]:
        h = _word_step(h, lane)
    return _avalanche(h)


def _round(accumulator: Words, lane: Words) -> Words:
    mixed = lane * _P2
    mixed += accumulator
    mixed = _rotate(mixed, 31)
    mixed *= _P1
    return mixed

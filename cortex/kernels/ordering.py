"""Rows in (hash, key, row number) order, and where each key begins.

The order is a total order on values, so that the same rows give the same sequence of keys however they
were split: keys whose hashes differ are ordered by the hash, keys with the same hash by their value
(column by column: null first, then ascending, NaN last), equal keys by row number.

One sort does nearly all of it: the hash's high bits with the row number in the low bits, as one uint64.
Where high bits tie and hashes differ, and where hashes are equal and keys differ, only those rows are
sorted again.

Equal keys are found exactly, never by the hash alone. One case needs no look at the keys: in a single
column of eight-byte values, XXH64 is a bijection (each step - a multiplication by an odd number, a
rotation, an addition, an exclusive or with a constant or with the value's own higher bits - can be
undone), so equal hashes mean equal values; only null's constant hash coincides with that of one value,
and rows with it are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from cortex.kernels.columns import (
    byte_ranges_at,
    canonical_floats,
    fixed_words,
    is_fixed,
    native_values,
    plain,
    valid_mask,
)
from cortex.kernels.hashing import NULL_HASH
from cortex.limits import MIB

_PAIRS: Final = 16_384  # pairs compared at once: their arrays stay in the second-level cache
_TAKEN_BYTES: Final = 8 * MIB  # copied at once to compare long values (or two values, if those are longer)

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Ordering:
    """`permutation[i]` is the row that comes i-th; `starts` are the i where a new key begins."""

    permutation: NDArray[np.int64]
    starts: NDArray[np.int64]


def order_by_hash(
    hashes: NDArray[np.uint64], keys: Sequence[pa.Array], *, other_hash: bool = False
) -> Ordering:
    """The rows in (hash, key, row number) order. Null equals null, NaN equals NaN, -0.0 equals 0.0.

    `hashes` are those of `cortex.kernels.hashing.hash_columns` for `keys`; `other_hash` says that they
    are not, so that even values of eight bytes are compared. Needs about 24 bytes a row beyond its input.
    """
    rows = len(hashes)
    if rows == 0:
        return Ordering(np.zeros(0, np.int64), np.zeros(0, np.int64))
    row_bits = max(1, (rows - 1).bit_length())
    row_mask = np.uint64((1 << row_bits) - 1)
    packed = hashes & ~row_mask
    packed |= np.arange(rows, dtype=np.uint64)
    packed.sort()
    # Each tie is a position whose row shares its high bits with the row after it.
    ties = np.flatnonzero((packed[1:] ^ packed[:-1]) <= row_mask)
    packed &= row_mask
    permutation = packed.view(np.int64)

    differ = _hashes_differ(hashes, permutation, ties)
    if differ.any():
        positions = _linked(ties, differ)
        tied = permutation[positions]
        permutation[positions] = tied[np.argsort(hashes[tied], kind="stable")]
        differ = _hashes_differ(hashes, permutation, ties)
    ties = ties[~differ]

    columns = [_KeyColumn(key) for key in keys]
    suspects = ties
    if len(columns) == 1 and columns[0].fixed and not other_hash:
        has_nulls = columns[0].valid is not None
        suspects = ties[hashes[permutation[ties]] == np.uint64(NULL_HASH)] if has_nulls else ties[:0]
    differ = _keys_differ(columns, permutation, suspects)
    if differ.any():
        positions = _linked(suspects, differ)
        permutation[positions] = _by_key(hashes, keys, permutation[positions])
        differ = _keys_differ(columns, permutation, suspects)
    begins = np.ones(rows, np.bool_)
    begins[ties + 1] = False
    begins[suspects[differ] + 1] = True
    return Ordering(permutation, np.flatnonzero(begins))


def _linked(ties: Rows, differ: Flags) -> Rows:
    """Positions of every chain of ties in which some neighbours differ, ascending."""
    chain = np.zeros(len(ties), np.int64)
    np.cumsum(ties[1:] != ties[:-1] + 1, out=chain[1:])
    bad = np.zeros(int(chain[-1]) + 1, np.bool_)
    bad[chain[differ]] = True
    chosen = ties[bad[chain]]
    return np.union1d(chosen, chosen + 1)


def _hashes_differ(hashes: NDArray[np.uint64], permutation: Rows, ties: Rows) -> Flags:
    out = np.empty(len(ties), np.bool_)
    for first in range(0, len(ties), _PAIRS):
        at = ties[first : first + _PAIRS]
        np.not_equal(hashes[permutation[at]], hashes[permutation[at + 1]], out=out[first : first + _PAIRS])
    return out


def _keys_differ(columns: list[_KeyColumn], permutation: Rows, ties: Rows) -> Flags:
    """For each tie: whether the keys of its row and of the next differ."""
    out = np.zeros(len(ties), np.bool_)
    for first in range(0, len(ties), _PAIRS):
        at = ties[first : first + _PAIRS]
        for column in columns:
            out[first : first + _PAIRS] |= column.differs(permutation, at)
    return out


class _KeyColumn:
    """One key column and how neighbours in an order compare."""

    def __init__(self, column: pa.Array) -> None:
        self.column = plain(column)
        self.valid = valid_mask(self.column)
        self.null = pt.is_null(self.column.type)
        self.fixed = is_fixed(self.column.type)
        self.words = fixed_words(self.column) if self.fixed else None

    def differs(self, permutation: Rows, ties: Rows) -> Flags:
        if self.null or len(ties) == 0:
            return np.zeros(len(ties), np.bool_)
        # Chains of ties share rows: each row is gathered once, and a tie is a pair of neighbours in them.
        index = np.arange(len(ties))
        index[1:] += np.cumsum(ties[1:] != ties[:-1] + 1)
        rows = np.empty(int(index[-1]) + 2, np.int64)
        rows[index] = permutation[ties]
        rows[index + 1] = permutation[ties + 1]
        if self.words is not None:
            words = self.words[rows]
            unequal = words[1:] != words[:-1]
        else:
            if len(ties) > 1 and self._bytes_of(rows) > _TAKEN_BYTES:
                half = len(ties) // 2
                halves = [self.differs(permutation, part) for part in (ties[:half], ties[half:])]
                return np.concatenate(halves)
            taken = self.column.take(pa.array(rows))
            unequal = native_values(pc.not_equal(taken[1:], taken[:-1])).view(np.bool_)
        if self.valid is not None:
            valid = self.valid[rows]
            unequal = (unequal & valid[1:] & valid[:-1]) | (valid[1:] != valid[:-1])
        result: Flags = unequal[index]
        return result

    def _bytes_of(self, rows: Rows) -> int:
        if self.column.nbytes <= _TAKEN_BYTES:
            return 0
        _, starts, ends = byte_ranges_at(self.column, rows)
        return int((ends - starts).sum())


def _by_key(hashes: NDArray[np.uint64], keys: Sequence[pa.Array], rows: Rows) -> Rows:
    """The rows sorted by (hash, key), keeping the order of equal ones."""
    sort_keys: list[NDArray[np.generic]] = []
    indices = pa.array(rows)
    for key in keys:
        column = plain(key).take(indices)
        mask = valid_mask(column)
        if mask is not None:
            sort_keys.append(mask)
        if not pt.is_null(column.type):
            values = _ranks(column)
            sort_keys.append(values if mask is None else np.where(mask, values, 0))
    sort_keys.insert(0, hashes[rows])
    return rows[np.lexsort(sort_keys[::-1])]


def _ranks(column: pa.Array) -> NDArray[np.generic]:
    """Numbers in the order of the values (those under nulls are arbitrary)."""
    if is_fixed(column.type):
        values = native_values(column)
        return canonical_floats(values) if values.dtype.kind == "f" else values
    encoded = pc.dictionary_encode(column)
    order = pc.sort_indices(encoded.dictionary)
    if len(order) == 0:
        return np.zeros(len(column), np.int64)
    ranks = np.empty(len(order), np.int64)
    ranks[fixed_words(order)] = np.arange(len(order))
    codes = fixed_words(encoded.indices).view(np.int64)
    mask = valid_mask(encoded)
    return ranks[codes] if mask is None else ranks[np.where(mask, codes, 0)]

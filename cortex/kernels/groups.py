"""Groups: which group each row of a block belongs to, in one of two forms.

* *codes*: rows in any order, ``codes[row]`` is the group. For few groups, and for merging states.
* *starts*: rows in group order, group g is rows ``starts[g]:starts[g + 1]`` (the last one ends with the
  block). No group is empty. For sorted blocks, whatever the number of groups.

Groups are numbered 0 to ``count - 1``. `groups_of` makes codes from key columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from cortex.kernels.columns import canonical_key, fixed_words, plain, valid_mask

_CHUNK_ROWS: Final = 16_384  # a chunk's arrays of 128 KB stay in the second-level cache
_RADIX_MIN: Final = 65_536  # a table of this many codes costs less than a sort, however few the rows


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a block. Exactly one of `codes` and `starts` is set.

    ``starts`` count from the piece's first row and belong to groups first_group, first_group + 1 ...;
    the first and last of them may go on in the neighbouring pieces.
    """

    first: int
    last: int
    codes: NDArray[np.int64] | None
    starts: NDArray[np.int64] | None
    first_group: int

    def groups(self) -> NDArray[np.int64] | slice:
        """Index into per-group arrays: one entry a row (codes) or a group (starts)."""
        if self.codes is not None:
            return self.codes
        assert self.starts is not None
        return slice(self.first_group, self.first_group + len(self.starts))

    def groups_at(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The groups of some of the piece's rows, counted from its first."""
        if self.codes is not None:
            return self.codes[rows]
        assert self.starts is not None
        return np.searchsorted(self.starts, rows, "right") - 1 + self.first_group


@dataclass(frozen=True)
class Groups:
    """`rows` rows in `count` groups; exactly one of `codes` (int64) and `starts` (int64) is set."""

    count: int
    rows: int
    codes: NDArray[np.int64] | None = None
    starts: NDArray[np.int64] | None = None
    _sizes: list[NDArray[np.int64]] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def from_codes(cls, codes: NDArray[np.integer], count: int) -> Groups:
        return cls(count, len(codes), codes=codes.astype(np.int64, copy=False))

    @classmethod
    def from_starts(cls, starts: NDArray[np.integer], rows: int) -> Groups:
        return cls(len(starts), rows, starts=starts.astype(np.int64, copy=False))

    def sizes(self) -> NDArray[np.int64]:
        """Rows of each group; computed once. Not to be written to."""
        if not self._sizes:
            if self.codes is not None:
                sizes = np.bincount(self.codes, minlength=self.count)
            else:
                assert self.starts is not None
                sizes = np.diff(self.starts, append=self.rows)
            self._sizes.append(sizes.astype(np.int64, copy=False))
        return self._sizes[0]

    def row_codes(self) -> NDArray[np.int64]:
        """The group of each row, in either form."""
        if self.codes is not None:
            return self.codes
        return np.repeat(np.arange(self.count, dtype=np.int64), self.sizes())

    def pieces(self) -> Iterator[Piece]:
        """The block in pieces small enough for the cache."""
        for first in range(0, self.rows, _CHUNK_ROWS):
            last = min(first + _CHUNK_ROWS, self.rows)
            if self.codes is not None:
                yield Piece(first, last, self.codes[first:last], None, 0)
                continue
            assert self.starts is not None
            low = int(np.searchsorted(self.starts, first, "right")) - 1
            high = int(np.searchsorted(self.starts, last, "left"))
            yield Piece(first, last, None, np.maximum(self.starts[low:high] - first, 0), low)

    def where(self, kept: NDArray[np.bool_]) -> Groups:
        """The groups of the rows where `kept` holds, as codes with the same numbers."""
        return Groups(self.count, int(np.count_nonzero(kept)), codes=self.row_codes()[kept])


def groups_of(
    keys: Sequence[pa.Array], rows: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(codes, representatives): the group of each row by equal keys, and the first row of each group.

    Null equals null, NaN equals NaN and -0.0 equals 0.0. The numbering is the same for the same input.
    `rows` is needed only when there are no keys: all rows are then one group. Without rows there is no
    group.
    """
    if len(keys) == 0:
        codes, count = np.zeros(rows or 0, np.int64), 1 if rows else 0
    else:
        codes, count = _column_codes(keys[0])
        for key in keys[1:]:
            more, radix = _column_codes(key)
            if count * radix > 1 << 62:
                codes, count = _compact(codes, count)
            codes = codes * radix + more
            count *= radix
            if count > max(4 * len(codes), _RADIX_MIN):
                codes, count = _compact(codes, count)
        if len(keys) > 1:
            codes, count = _compact(codes, count)
    representatives = np.full(count, -1, np.int64)
    missing = count
    for first in range(0, len(codes), _CHUNK_ROWS):
        # Few groups have all been seen after a chunk or two: the rest of the block is not looked at.
        if not missing:
            break
        chunk = codes[first : first + _CHUNK_ROWS]
        fresh = np.flatnonzero(representatives[chunk] < 0)
        # Of several rows of one group NumPy keeps the one assigned last: the first row, going backwards.
        representatives[chunk[fresh][::-1]] = fresh[::-1] + first
        missing = int(np.count_nonzero(representatives < 0))
    return codes, representatives


def _column_codes(column: pa.Array) -> tuple[NDArray[np.int64], int]:
    """(codes, count) of one column, every code in use."""
    if pt.is_dictionary(column.type):
        # A dictionary may repeat a value, hold null, or hold values that no row has.
        inner, count = _column_codes(column.dictionary)
        null_value = column.dictionary.null_count > 0
        null_code = int(inner[np.flatnonzero(~_valid(column.dictionary))[0]]) if null_value else count
        mask = valid_mask(column)
        indices = fixed_words(column.indices).view(np.int64)
        if mask is None:
            return _compact(inner[indices], count)
        codes = np.full(len(column), null_code, np.int64)
        codes[mask] = inner[indices[mask]]
        return _compact(codes, max(count, null_code + 1))
    encoded = pc.dictionary_encode(canonical_key(plain(column)), null_encoding="encode")
    return fixed_words(encoded.indices).view(np.int64), len(encoded.dictionary)


def _valid(column: pa.Array) -> NDArray[np.bool_]:
    mask = valid_mask(column)
    return np.ones(len(column), np.bool_) if mask is None else mask


def _compact(codes: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], int]:
    """The same grouping with codes 0 to n - 1, all in use."""
    if count <= max(4 * len(codes), _RADIX_MIN):
        used = np.zeros(count, np.int64)
        used[codes] = 1
        number = np.cumsum(used)
        number -= 1
        return number[codes], int(number[-1]) + 1 if count else 0
    distinct, inverse = np.unique(codes, return_inverse=True)
    return inverse.astype(np.int64, copy=False), len(distinct)

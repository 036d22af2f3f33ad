"""Where sorted rows are cut, so that a piece has a bounded size however uneven the rows are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cortex.kernels.columns import row_bytes
from cortex.kernels.ordering import Ordering
from cortex.limits import FOLD_BYTES, FOLD_ROWS

_UNEVEN_ROWS: Final = 16  # where fewer rows than this can fill a piece, they are cut by their own sizes
_RESERVED: Final = 2  # times what a piece has: rows of about one size are cut by their bytes first


class Pieces:
    """Where rows in some order are cut so that a piece has about `bytes_max`, and `rows_max` rows at most.

    Rows of about one size are cut by their number; where some are far larger than most, their own sizes
    are added up. A row larger than `bytes_max` is a piece of its own.
    """

    def __init__(self, step: int, ends: NDArray[np.int64] | None, bytes_max: int) -> None:
        self._step = step
        self._ends = ends
        self._bytes_max = bytes_max

    @classmethod
    def of(
        cls,
        columns: Sequence[pa.Array],
        rows: int,
        size_bytes: int,
        bytes_max: int,
        rows_max: int,
        order: NDArray[np.int64] | None = None,
    ) -> Pieces:
        """For rows of `columns`, `size_bytes` together, taken in `order` (None: as they stand)."""
        per_row = size_bytes / max(1, rows)
        step = max(1, min(rows_max, int(bytes_max / max(per_row, 1.0))))
        sizes = row_bytes(columns) if size_bytes > bytes_max else None
        if sizes is None or int(sizes.max()) * _UNEVEN_ROWS <= bytes_max:
            return cls(step, None, bytes_max)
        fixed = max(0, size_bytes - int(sizes.sum())) // max(1, rows)
        return cls(rows_max, np.cumsum((sizes if order is None else sizes[order]) + fixed), bytes_max)

    def end(self, begin: int, last: int) -> int:
        """Where the piece ends that begins at row `begin`; not behind `last`."""
        end = min(begin + self._step, last)
        if self._ends is None:
            return end
        before = int(self._ends[begin - 1]) if begin else 0
        return min(end, max(begin + 1, int(np.searchsorted(self._ends, before + self._bytes_max, "right"))))


def taken_pieces(columns: Sequence[pa.Array], rows: int, size_bytes: int, order: NDArray[np.int64]) -> Pieces:
    """Pieces that are gathered with `take`, `size_bytes` all rows together.

    Arrow reserves for each row taken what one has on average, so that many small rows among a few large
    ones would reserve as much as all rows have.
    """
    rows_max = min(FOLD_ROWS, max(_UNEVEN_ROWS, _RESERVED * FOLD_BYTES * rows // max(1, size_bytes)))
    return Pieces.of(columns, rows, size_bytes, FOLD_BYTES, rows_max, order)


def gathered(rows: Any, which: NDArray[np.int64]) -> Any:
    """These rows of an array or a batch; one row, which may be very long, without a copy."""
    return rows.slice(int(which[0]), 1) if len(which) == 1 else rows.take(pa.array(which))


def slices(
    ordering: Ordering, columns: Sequence[pa.Array], size_bytes: int
) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Sorted rows of `columns`, `size_bytes` together, in slices of bounded size, and where groups begin
    in each.

    A group may go on in the next slice: what folds a slice's groups is associative, and two rows of
    one key in a run are merged like those of two runs.
    """
    starts, order = ordering.starts, ordering.permutation
    rows = len(order)
    pieces = taken_pieces(columns, rows, size_bytes, order)
    begin = 0
    while begin < rows:
        end = pieces.end(begin, rows)
        low, high = np.searchsorted(starts, [begin, end])
        inside = starts[low:high] - begin
        if not len(inside) or inside[0] != 0:
            inside = np.concatenate((np.zeros(1, np.int64), inside))
        yield slice(begin, end), inside
        begin = end

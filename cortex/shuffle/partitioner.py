"""Which partition a row belongs to: contiguous ranges of its hash's upper 32 bits.

Partition p of n owns the hashes h with ``(h >> 32) * n >> 32 == p``. Rows are sorted by hash, so the
rows of a partition stand together, and the sequence of rows over all partitions is the same for any n.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Partitioner:
    """`count` partitions, from 1 to `limits.PARTITIONS_MAX`."""

    def __init__(self, count: int) -> None:
        self.count = count
        uppers = [-(-(p << 32) // count) for p in range(count)]  # smallest upper half of each partition
        self._uppers = np.array(uppers, dtype=np.uint64)
        self._widths: NDArray[np.uint64] = np.diff(np.append(self._uppers, np.uint64(1 << 32))).astype(
            np.uint64
        )

    def cuts(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """For sorted hashes: count + 1 row offsets; partition p is rows cuts[p]:cuts[p + 1]."""
        inner = np.searchsorted(hashes, self._uppers[1:] << np.uint64(32))
        return np.concatenate(([0], inner, [len(hashes)])).astype(np.int64)

    def place(self, hashes: NDArray[np.uint64], partitions: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Hashes moved into the ranges of the partitions a user's own function chose.

        Equal hashes with equal partitions stay equal, so everything after works on ranges as always.
        """
        upper = hashes >> np.uint64(32)
        moved: NDArray[np.uint64] = self._uppers[partitions] + upper % self._widths[partitions]
        return (moved << np.uint64(32)) | (hashes & np.uint64(0xFFFFFFFF))

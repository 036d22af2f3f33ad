"""Counts for many partitions in one integer, 64 bits each, side by side: a thousand are added in one step.

Every map brings a count for every partition, and the scheduler adds them up. Number by number that would
be most of what its decisions cost.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

from cortex.errors import InternalError

COUNT_MAX = (1 << 44) - 1  # of one map for one partition: the sum of a million such fits in 64 bits
_ALL = (1 << 64) - 1
_TOP = 1 << 63


class PackedCounts:
    """How `size` counts are packed. Packed counts add up to packed sums, with + and -."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._excess = _join(array("Q", [_ALL ^ COUNT_MAX]) * size)
        self._below_top = _join(array("Q", [_TOP - 1]) * size)
        self._top = _join(array("Q", [_TOP]) * size)

    def pack(self, counts: Sequence[int]) -> int:
        """Raises InternalError if these are not `size` counts from 0 to COUNT_MAX."""
        try:
            packed = _join(array("Q", counts))
        except OverflowError:
            packed = self._excess
        if len(counts) != self.size or packed & self._excess:
            raise InternalError(f"{len(counts)} counts came instead of {self.size}, or such as cannot be")
        return packed

    def unpack(self, packed: int) -> array[int]:
        """Counts or sums, one by one."""
        numbers = array("Q", packed.to_bytes(8 * self.size, "little"))
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers

    def positive(self, packed: int) -> bytes:
        """A byte for each count: 1 where it is not 0."""
        tops = (packed + self._below_top) & self._top  # a carry into the top bit from any number but 0
        return (tops >> 63).to_bytes(8 * self.size, "little")[::8]


def _join(numbers: array[int]) -> int:
    if sys.byteorder == "big":
        numbers.byteswap()
    return int.from_bytes(numbers.tobytes(), "little")

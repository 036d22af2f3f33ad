"""Exact sums, a group at a time in meaning: the same bits in whatever order and batches values came.

A group's sum is an integer held in *bins*: bin j is an int64 and counts in units of ``2**(40 * j)``.
Sums of integers use bins 0 and up. Sums of floats count in units of ``2**-20``: bin j is then worth
``2**(40 * j - 20)``, so that ordinary numbers need two bins (0 and -1), and every float64 is a sum of
whole numbers in some bins between -27 and 26.

Bins are added when a value needs them. A bound on each bin's absolute value is kept, and bins are
carried upwards before one could pass ``2**62``: nothing ever wraps. `floats` rounds once, to nearest
and ties to even, so it equals `math.fsum` bit for bit (a zero sum is +0.0; a sum beyond the largest
float is infinite, where fsum raises). Infinities and NaN are the caller's matter.

Raises nothing. Owns its arrays: `bins` are read by the caller, never written.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cortex.kernels.groups import Piece

BIN_BITS: Final = 40
FLOAT_UNIT: Final = -20
"""Sums of floats count in units of 2**FLOAT_UNIT."""

_LOW: Final = (1 << BIN_BITS) - 1
_HALF: Final = 1 << (BIN_BITS - 1)
_ROOM: Final = 1 << 62  # bins are carried before their absolute value can pass this
_SCALE_MAX: Final = 1000  # beyond it, powers of two are applied by ldexp: 2.0**1100 is not a float
_ROUND_GROUPS: Final = 32_768  # groups rounded at once: about a dozen arrays of 256 KB

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def _scaled(values: Floats, exponent: int) -> Floats:
    """values * 2**exponent."""
    if abs(exponent) <= _SCALE_MAX:
        return values * math.ldexp(1.0, exponent)
    result: Floats = np.ldexp(values, exponent)
    return result


class ExactSums:
    """One exact integer sum a group, for `size` groups; all start at 0."""

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.bins: dict[int, Ints] = {}
        self._bounds: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in self.bins.values())

    def resize(self, size: int) -> None:
        """More groups, with sums of 0."""
        for index, values in self.bins.items():
            grown = np.zeros(size, np.int64)
            grown[: self.size] = values
            self.bins[index] = grown
        self.size = size

    def add(self, index: int, piece: Piece, values: Ints, largest: int) -> None:
        """Add each row's value, in units of bin `index`; no absolute value is above `largest`."""
        growth = largest * len(values)
        if growth > _ROOM // 2:
            self.add(index + 1, piece, values >> BIN_BITS, (largest >> BIN_BITS) + 1)
            self.add(index, piece, values & _LOW, _LOW)
            return
        if self._bounds.get(index, 0) + growth > _ROOM:
            self.carry()
        bin_values = self._bin(index)
        self._bounds[index] += growth
        if piece.codes is not None:
            np.add.at(bin_values, piece.codes, values)
        else:
            assert piece.starts is not None
            bin_values[piece.groups()] += np.add.reduceat(values, piece.starts)

    def add_unsigned(self, piece: Piece, values: NDArray[np.uint64]) -> None:
        """Add each row's value to bin 0."""
        largest = int(values.max(initial=0))
        if largest < _ROOM:
            self.add(0, piece, values.view(np.int64), largest)
        else:
            self.add(0, piece, (values & np.uint64(_LOW)).view(np.int64), _LOW)
            high = values >> np.uint64(BIN_BITS)
            self.add(1, piece, high.view(np.int64), largest >> BIN_BITS)

    def add_signed(self, piece: Piece, values: Ints) -> None:
        """Add each row's value to bin 0."""
        self.add(0, piece, values, max(int(values.max(initial=0)), -int(values.min(initial=0))))

    def add_wide(self, piece: Piece, low: NDArray[np.uint64], high: Ints) -> None:
        """Add each row's 128-bit integer, given by its low and high halves."""
        narrow = low.view(np.int64)
        if bool(((narrow >> 63) == high).all()):
            self.add_signed(piece, narrow)
            return
        self.add(0, piece, (low & np.uint64(_LOW)).view(np.int64), _LOW)
        middle = (low >> np.uint64(BIN_BITS)).view(np.int64) | ((high & 0xFFFF) << 24)
        self.add(1, piece, middle, _LOW)
        self.add(2, piece, (high >> 16) & _LOW, _LOW)
        self.add(3, piece, high >> 56, 128)

    def add_floats(self, piece: Piece, values: Floats, largest: float) -> None:
        """Add each row's finite value, in units of 2**FLOAT_UNIT; `largest` is the largest absolute one.

        From the highest bin down: the whole units of the value go there, the rest - less than a unit,
        and exact - goes on. Cut towards zero: rounded, the largest floats would become 2**1024, which is
        none. Products with powers of two are exact, or so small that they are cut to 0 in this bin. Bin
        -27 counts in less than the smallest float, so nothing is left after it.
        """
        if largest == 0:
            return
        index = -((FLOAT_UNIT + BIN_BITS - math.frexp(largest)[1]) // BIN_BITS)
        rest = values
        while True:
            exponent = BIN_BITS * index + FLOAT_UNIT
            whole = np.trunc(_scaled(rest, -exponent))
            self.add(index, piece, whole.astype(np.int64), 1 << BIN_BITS)
            taken = _scaled(whole, exponent)
            if bool((taken == rest).all()):
                return
            rest = rest - taken
            index -= 1

    def carry(self) -> None:
        """Bring every bin to at most 2**39, carrying upwards. Sums do not change."""
        if not self.bins:
            return
        index = min(self.bins)
        while index <= max(self.bins):
            if index in self.bins and self._bounds[index] > _HALF:
                values = self.bins[index]
                over = (values + _HALF) >> BIN_BITS
                if over.any():
                    self._bin(index + 1)
                    self.bins[index + 1] += over
                    self._bounds[index + 1] += (self._bounds[index] >> BIN_BITS) + 1
                    values -= over << BIN_BITS
                self._bounds[index] = _HALF
            index += 1

    def floats(self, unit: int) -> Floats:
        """The sums times 2**unit, each correctly rounded."""
        self.carry()
        out = np.zeros(self.size, np.float64)
        if self.bins:
            for first in range(0, self.size, _ROUND_GROUPS):
                part = slice(first, first + _ROUND_GROUPS)
                out[part] = self._round(part, unit)
        return out

    def _round(self, part: slice, unit: int) -> Floats:
        """Sums of carried bins, rounded once.

        Digits from the highest bin down fill `head` until it has 12 bits or more; the two digits after
        it are `middle` and `low`, and of what follows only the `sign` matters. In units of the bin
        after the head's, the sum is ``head * 2**40 + tail``: the first is exact as a float (52 bits),
        and so is `tail`, which has 13 bits below the point (52 bits too): those of `low` that fit, then
        half of the last place in the direction of the rest. The real tail lies between the same two
        multiples of 2**-12, while numbers at which rounding changes are multiples of 2**-2 (the sum is
        above 2**51). So one addition of floats rounds as the real sum would.
        """
        highest, lowest = max(self.bins), min(self.bins)
        count = len(range(*part.indices(self.size)))
        head, middle, low, sign, exponent = (np.zeros(count, np.int64) for _ in range(5))
        nothing = np.zeros(count, np.int64)
        for index in range(highest, lowest - 1, -1):
            bin_values = self.bins.get(index)
            digit = nothing if bin_values is None else bin_values[part]
            filling = np.abs(head) < 1 << 12
            behind = exponent - index
            middle = np.where(~filling & (behind == 1), digit, middle)
            low = np.where(~filling & (behind == 2), digit, low)
            sign = np.where(~filling & (behind > 2) & (sign == 0), np.sign(digit), sign)
            head = np.where(filling, (head << BIN_BITS) + digit, head)
            exponent = np.where(filling, index, exponent)
        cut = low & ((1 << 28) - 1)
        sign = np.where(cut > 0, 1, sign)
        tail = middle.astype(np.float64) + (low >> 28) * 2.0**-12 + sign * 2.0**-13
        total = head.astype(np.float64) * 2.0**BIN_BITS + tail
        places = BIN_BITS * (exponent - 1) + unit
        with np.errstate(over="ignore"):
            result: Floats = np.ldexp(total, places)
        # An integer head of 0 has no sign, nor has its float: a zero sum is +0.0.
        return result

    def ints(self) -> tuple[Ints, dict[int, int]]:
        """(sums, beyond): the sums as int64, and those that do not fit, by group, as Python ints."""
        self.carry()
        nothing = np.zeros(self.size, np.int64)
        first = self.bins.get(1, nothing)
        wide = np.abs(first) >= 1 << 22
        for index, values in self.bins.items():
            if index > 1:
                wide |= values != 0
        sums = self.bins.get(0, nothing) + np.where(wide, 0, first << BIN_BITS)
        beyond: dict[int, int] = {}
        for group in np.flatnonzero(wide).tolist():
            exact = self.exact(group)
            if -(1 << 63) <= exact < 1 << 63:
                sums[group] = exact
            else:
                beyond[group] = exact
        return sums, beyond

    def exact(self, group: int) -> int:
        """One group's sum of whole units; for sums of integers."""
        return sum(int(values[group]) << (BIN_BITS * index) for index, values in self.bins.items())

    def columns(self, prefix: str, always: tuple[int, ...]) -> dict[str, Ints]:
        """Name -> bin, for the bins of `always` and those that some group needs."""
        self.carry()
        return {
            f"{prefix}{index}": self._bin(index)
            for index in sorted({*self.bins, *always})
            if index in always or self.bins[index].any()
        }

    def _bin(self, index: int) -> Ints:
        if index not in self.bins:
            self.bins[index] = np.zeros(self.size, np.int64)
            self._bounds[index] = 0
        return self.bins[index]


def merge_columns(sums: ExactSums, piece: Piece, prefix: str, columns: dict[str, Any]) -> None:
    """Add rows of `ExactSums.columns`; only names that are the prefix and a number count."""
    for name, values in columns.items():
        digits = name.removeprefix(prefix)
        if name.startswith(prefix) and digits.removeprefix("-").isdigit():
            part = values[piece.first : piece.last]
            largest = max(int(part.max(initial=0)), -int(part.min(initial=0)))
            sums.add(int(digits), piece, part, largest)

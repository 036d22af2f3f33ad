"""Random numbers by row number: splitmix64's output function over a counter, in NumPy.

The number of row r does not depend on how the rows are cut into blocks, nor on NumPy's version.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1

UInts = NDArray[np.uint64]


def mix(x: UInts) -> UInts:
    """A bijection of 64-bit integers that leaves no pattern to be seen."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_bits(seed: int, stream: int, first: int, count: int) -> UInts:
    """64 random bits for each of the rows [first, first + count); streams are independent."""
    return random_bits_at(seed, stream, np.arange(first, first + count, dtype=np.uint64))


def random_bits_at(seed: int, stream: int, rows: UInts) -> UInts:
    """The same for any rows."""
    key = int(mix(np.array([(seed * 1_000_003 + stream + 1) * _GOLDEN & _MASK], np.uint64))[0])
    return mix(rows * np.uint64(_GOLDEN) + np.uint64(key))


def below(bits: UInts, limit: int) -> NDArray[np.int64]:
    """Uniform integers in [0, limit) from the upper 32 bits; limit below 2**31."""
    return ((bits >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32)).astype(np.int64)


def bell(bits: UInts) -> NDArray[np.int64]:
    """Integers around 0 like a bell curve (four 16-bit numbers added): standard deviation 37,837."""
    low = np.uint64(0xFFFF)
    total = bits & low
    for shift in (16, 32, 48):
        total = total + (bits >> np.uint64(shift) & low)
    return total.astype(np.int64) - 2 * 65535


def zipf_ranks(octave_bits: UInts, place_bits: UInts, octaves: int) -> NDArray[np.int64]:
    """Ranks in [0, 2**octaves - 1), the r-th about as frequent as 1 / (r + 1).

    Every octave [2**o, 2**(o + 1)) is equally likely and ranks inside one are: Zipf's law with
    exponent 1, in steps, by integers alone.
    """
    octave = below(octave_bits, octaves)
    size = np.int64(1) << octave
    return size - 1 + (place_bits >> np.uint64(1)).astype(np.int64) % size

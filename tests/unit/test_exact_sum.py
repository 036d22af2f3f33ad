"""Exact sums against math.fsum and Python's ints."""

import math
import random
import struct
from fractions import Fraction

import numpy as np
import pytest

from cortex.kernels.exact_sum import FLOAT_UNIT, ExactSums, merge_columns
from cortex.kernels.groups import Groups


def float_sums(values, codes, count):
    sums = ExactSums(count)
    for piece in Groups.from_codes(codes, count).pieces():
        part = values[piece.first : piece.last]
        sums.add_floats(piece, part, float(np.abs(part).max()))
    return sums


def rounded(values):
    """The exact sum, rounded once."""
    total = sum(map(Fraction, values), Fraction(0))
    try:
        return float(total)
    except OverflowError:
        return math.inf if total > 0 else -math.inf


def hard_float(rng):
    kind = rng.random()
    if kind < 0.3:
        return round(rng.uniform(-1000, 1000), 2)
    if kind < 0.5:
        return math.ldexp(rng.gauss(0, 1), rng.randint(-1070, 1020))
    if kind < 0.6:
        return rng.choice([5e-324, -5e-324, 2.2e-308, 1.7e308, -1.7e308, 2.0**53, -1.0, 2.0**-53, 2.0**-54])
    if kind < 0.8:
        return rng.choice([1, -1]) * 2.0 ** rng.randint(-120, 120)
    value = struct.unpack("<d", struct.pack("<Q", rng.getrandbits(64)))[0]
    return value if math.isfinite(value) else 1.0


def near_a_tie(rng, exponent):
    """A power of two that lands on, or next to, a place where rounding changes."""
    place = exponent + rng.choice([0, 1, -53, -54, 52, 53, -106, -107, rng.randint(-200, 20)])
    return rng.choice([1, -1]) * 2.0 ** max(-1074, min(1000, place))


@pytest.mark.parametrize("batch", range(12))
def test_extreme_magnitudes_are_rounded_once(batch):
    for seed in range(50 * batch, 50 * batch + 50):
        rng = random.Random(seed)
        count, rows = rng.randint(1, 4), rng.randint(1, 30)
        if seed % 2:
            values = [hard_float(rng) for _ in range(rows)]
        else:
            exponent = rng.randint(-1000, 1000)
            values = [near_a_tie(rng, exponent) for _ in range(rows)]
        codes = np.array([rng.randrange(count) for _ in range(rows)])
        found = float_sums(np.array(values), codes, count).floats(FLOAT_UNIT).tolist()
        assert found == [rounded(v for v, c in zip(values, codes) if c == g) for g in range(count)], seed


def test_many_rows_equal_fsum_in_every_group():
    rng = np.random.default_rng(1)
    values = np.round(rng.normal(12, 10, 100_000), 1)
    codes = rng.integers(0, 413, 100_000)
    found = float_sums(values, codes, 413).floats(FLOAT_UNIT).tolist()
    assert found == [math.fsum(values[codes == g]) for g in range(413)]


def test_the_largest_and_smallest_floats_beside_each_other():
    largest, smallest = 1.7976931348623157e308, 5e-324
    for values in ([largest, smallest], [largest, smallest, -largest], [-largest, 2.2e-308], [largest] * 2):
        found = float_sums(np.array(values), np.zeros(len(values), np.int64), 1).floats(FLOAT_UNIT).tolist()
        assert found == [rounded(values)]


def test_every_exponent_beside_the_smallest_floats():
    for exponent in (*range(-1074, 1024, 11), 1023):
        for value in (2.0**exponent, -1.9999999999999998 * 2.0**exponent):
            values = [value, 5e-324, 1e-310]
            found = float_sums(np.array(values), np.array([0, 0, 1]), 2).floats(FLOAT_UNIT).tolist()
            assert found == [rounded(values[:2]), 1e-310]


def test_cancellation_leaves_the_small_rest():
    values = np.array([1e300, 1.0, -1e300, 1e-300, 1e16, -1e16])
    assert float_sums(values, np.zeros(6, np.int64), 1).floats(FLOAT_UNIT).tolist() == [1.0]
    assert float_sums(np.array([-0.0, -0.0]), np.zeros(2, np.int64), 1).floats(0).view(np.int64).tolist() == [
        0
    ]


def test_bins_are_carried_before_they_could_wrap():
    sums = ExactSums(1)
    rows = 16_384
    piece = next(iter(Groups.from_codes(np.zeros(rows, np.int64), 1).pieces()))
    values = np.full(rows, 2**53 - 1, np.int64)
    for _ in range(3000):
        sums.add(0, piece, values, 2**53 - 1)
        assert all(abs(int(values[0])) <= 2**62 for values in sums.bins.values())
    exact = (2**53 - 1) * rows * 3000
    assert exact > 2**63
    assert sums.exact(0) == exact
    assert sums.ints()[1] == {0: exact}
    assert sums.floats(0).tolist() == [float(exact)]


def test_ints_beyond_64_bits_come_back_exact():
    sums = ExactSums(3)
    values = np.array([2**63 - 1, -(2**63), 2**63 - 1, -(2**63), 5], np.int64)
    for piece in Groups.from_codes(np.array([0, 1, 0, 1, 2]), 3).pieces():
        sums.add_signed(piece, values)
    fitting, beyond = sums.ints()
    assert beyond == {0: 2**64 - 2, 1: -(2**64)}
    assert fitting[2] == 5


def test_wide_integers():
    rng = random.Random(4)
    exact = [rng.randint(-(2**127), 2**127 - 1) for _ in range(40)] + [-1, 0, 1, 2**63, -(2**63), -(2**64)]
    data = b"".join(v.to_bytes(16, "little", signed=True) for v in exact)
    halves = np.frombuffer(data, np.uint64).reshape(-1, 2)
    sums = ExactSums(1)
    piece = next(iter(Groups.from_codes(np.zeros(len(exact), np.int64), 1).pieces()))
    sums.add_wide(piece, halves[:, 0].copy(), halves[:, 1].copy().view(np.int64))
    assert sums.exact(0) == sum(exact)


def test_merging_columns_in_any_order_gives_the_same_bits():
    rng = random.Random(9)
    values = np.array([hard_float(rng) for _ in range(300)])
    codes = np.array([rng.randrange(5) for _ in range(300)])
    whole = float_sums(values, codes, 5).floats(FLOAT_UNIT).tolist()
    for _ in range(20):
        cuts = sorted(rng.sample(range(301), 4))
        parts = [
            float_sums(values[a:b], codes[a:b], 5).columns("s", (-1, 0))
            for a, b in zip([0, *cuts], [*cuts, 300])
            if b > a
        ]
        rng.shuffle(parts)
        merged = ExactSums(5)
        for part in parts:
            for piece in Groups.from_codes(np.arange(5), 5).pieces():
                merge_columns(merged, piece, "s", part)
        assert merged.floats(FLOAT_UNIT).tolist() == whole


def test_ordinary_numbers_need_two_bins():
    sums = float_sums(np.array([12.3, -4.5]), np.array([0, 1]), 2)
    assert list(sums.columns("s", (-1, 0))) == ["s-1", "s0"]

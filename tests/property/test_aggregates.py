"""Generated rows, in any groups, cut and merged anyhow: the same bits as plain Python."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.kernels.aggregates import AggregateSet
from cortex.kernels.groups import Groups

GROUPS = 3
CALLS = [("sum", 0), ("mean", 0), ("min", 0), ("max", 0), ("count", 0), ("count", None)]

decimals = st.integers(-(10**6), 10**6).map(lambda v: v / 100)
floats = st.one_of(decimals, st.floats(allow_nan=False, allow_infinity=False))
powers = st.builds(lambda s, e: s * 2.0**e, st.sampled_from([1.0, -1.0]), st.integers(-1074, 1023))


def rows_of(values):
    return st.lists(st.tuples(st.integers(0, GROUPS - 1), st.none() | values), max_size=40)


def rounded(values):
    total = sum(map(Fraction, values), Fraction(0))
    try:
        return float(total)
    except OverflowError:
        return math.inf if total > 0 else -math.inf


def by_merging(rows, data_type, order, cuts):
    """Results of states over the parts between `cuts`, merged in the order of `order`."""
    edges = [0, *sorted(cut % (len(rows) + 1) for cut in cuts), len(rows)]
    parts = [rows[a:b] for a, b in itertools.pairwise(edges)]
    merged = AggregateSet(CALLS, [data_type])
    merged.resize(GROUPS)
    for _, index in sorted((order[i % len(order)], i) for i in range(len(parts))):
        part = AggregateSet(CALLS, [data_type])
        codes = np.array([g for g, _ in parts[index]], np.int64)
        part.update(Groups.from_codes(codes, GROUPS), [pa.array([v for _, v in parts[index]], data_type)])
        merged.merge(Groups.from_codes(np.arange(GROUPS), GROUPS), part.columns())
    return [result.to_pylist() for result in merged.finish()]


def in_group(rows, group):
    return [v for g, v in rows if g == group and v is not None]


@settings(deadline=None, max_examples=200)
@given(
    st.one_of(rows_of(floats), rows_of(powers), rows_of(st.one_of(floats, powers))),
    st.lists(st.integers(), min_size=1, max_size=5),
    st.lists(st.integers(0, 40), max_size=4),
)
def test_floats(rows, order, cuts):
    sums, means, least, greatest, counts, all_rows = by_merging(rows, pa.float64(), order, cuts)
    for group in range(GROUPS):
        values = in_group(rows, group)
        total = rounded(values) if values else None
        assert sums[group] == total
        assert means[group] == (total / len(values) if values else None)
        assert counts[group] == len(values)
        assert all_rows[group] == sum(g == group for g, _ in rows)
        key = lambda v: (v, math.copysign(1, v))  # noqa: E731
        assert repr(least[group]) == repr(min(values, key=key, default=None))
        assert repr(greatest[group]) == repr(max(values, key=key, default=None))


@settings(deadline=None, max_examples=150)
@given(
    rows_of(st.one_of(st.integers(-(2**57), 2**57), st.integers(-50, 50))),
    st.lists(st.integers(), min_size=1, max_size=5),
    st.lists(st.integers(0, 40), max_size=4),
)
def test_ints(rows, order, cuts):
    sums, means, least, greatest, counts, _ = by_merging(rows, pa.int64(), order, cuts)
    for group in range(GROUPS):
        values = in_group(rows, group)
        assert sums[group] == (sum(values) if values else None)
        assert means[group] == (float(sum(values)) / len(values) if values else None)
        assert (least[group], greatest[group]) == (min(values, default=None), max(values, default=None))
        assert counts[group] == len(values)

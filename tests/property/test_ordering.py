"""Generated keys and hashes, however they collide, in the order of plain Python's sort."""

import math

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.kernels.groups import groups_of
from cortex.kernels.hashing import hash_columns
from cortex.kernels.ordering import order_by_hash

texts = st.lists(st.none() | st.text(st.sampled_from("aéz"), max_size=18), min_size=1, max_size=40)
floats = st.lists(
    st.none() | st.sampled_from([0.0, -0.0, 1.0, -1.0, math.nan, math.inf]), min_size=1, max_size=40
)
ints = st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), min_size=1, max_size=40)
typed = st.one_of(
    st.tuples(texts, st.sampled_from([pa.string(), pa.large_string(), pa.string_view()])),
    st.tuples(floats, st.just(pa.float64())),
    st.tuples(ints, st.just(pa.int64())),
)


def canonical(value):
    if value is None:
        return (0, 0)
    if isinstance(value, float) and math.isnan(value):
        return (2, 0)
    return (1, value.encode() if isinstance(value, str) else value)


@settings(deadline=None, max_examples=200)
@given(st.lists(typed, min_size=1, max_size=3), st.sampled_from([0, 1, 2, 5]), st.integers(0, 3))
def test_order_by_hash(drawn, distinct_hashes, offset):
    rows = min(len(values) for values, _ in drawn)
    lists = [values[:rows][offset:] for values, _ in drawn]
    keys = [pa.array(values[:rows], kind)[offset:] for values, kind in drawn]
    rows = len(keys[0])
    hashes = hash_columns(keys)
    if distinct_hashes:
        hashes = hashes % np.uint64(distinct_hashes)
    place = [(int(hashes[i]), *(canonical(values[i]) for values in lists)) for i in range(rows)]
    expected = sorted(range(rows), key=lambda i: (place[i], i))
    starts = [p for p in range(rows) if p == 0 or place[expected[p]] != place[expected[p - 1]]]
    ordering = order_by_hash(hashes, keys, other_hash=bool(distinct_hashes))
    assert ordering.permutation.tolist() == expected
    assert ordering.starts.tolist() == starts

    codes, representatives = groups_of(keys)
    first_of = {}
    assert representatives[codes].tolist() == [first_of.setdefault(p[1:], i) for i, p in enumerate(place)]

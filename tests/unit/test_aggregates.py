"""Aggregates over both forms of groups, split and merged in every way, against plain Python."""

import datetime
import math
import random
from decimal import Context, Decimal
from fractions import Fraction

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from cortex.errors import ColumnError, OverflowedSum
from cortex.kernels.aggregates import AggregateSet, new_state, result_type
from cortex.kernels.groups import Groups

COUNT = 7
WIDE = Context(prec=60)
FUNCTIONS = ("count", "sum", "mean", "min", "max")


def column(kind, rng, rows):
    def some(make):
        return [None if rng.random() < 0.2 else make() for _ in range(rows)]

    epoch = datetime.datetime(2020, 1, 1)
    makers = {
        pa.int8(): lambda: rng.randint(-128, 127),
        pa.int64(): lambda: rng.choice([rng.randint(-100, 100), 2**63 - 1, -(2**63)]),
        pa.uint16(): lambda: rng.randint(0, 2**16 - 1),
        pa.uint64(): lambda: rng.choice([0, 2**64 - 1, 2**63, rng.randint(0, 99)]),
        pa.float32(): lambda: rng.choice([0.5, -1.25, 3e38, -0.0, 0.0]),
        pa.float64(): lambda: rng.choice([rng.gauss(0, 1), round(rng.uniform(0, 99), 1), 1e300, -1e-300]),
        pa.bool_(): lambda: rng.random() < 0.5,
        pa.date32(): lambda: datetime.date(2020, 1, 1) + datetime.timedelta(rng.randint(0, 99)),
        pa.timestamp("us"): lambda: epoch + datetime.timedelta(microseconds=rng.randint(0, 10**15)),
        pa.time64("us"): lambda: datetime.time(rng.randint(0, 23), 5),
        pa.duration("s"): lambda: datetime.timedelta(seconds=rng.randint(-99, 99)),
        pa.decimal128(10, 2): lambda: Decimal(rng.randint(-9999, 9999)) / 100,
        pa.decimal128(30, 4): lambda: Decimal(rng.randint(-(10**29), 10**29)).scaleb(-4, WIDE),
        pa.string(): lambda: rng.choice(["", "a", "B", "é", "aa", "zz" * 20]),
        pa.large_string(): lambda: rng.choice(["x", "xy"]),
        pa.string_view(): lambda: rng.choice(["x", "xy", "a string longer than twelve bytes"]),
        pa.binary(): lambda: rng.randbytes(3),
        pa.binary(2): lambda: rng.randbytes(2),
    }
    return pa.array(some(makers[kind]), kind)


TYPES = [
    pa.int8(), pa.int64(), pa.uint16(), pa.uint64(), pa.float32(), pa.float64(), pa.bool_(), pa.date32(),
    pa.timestamp("us"), pa.time64("us"), pa.duration("s"), pa.decimal128(10, 2), pa.decimal128(30, 4),
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary(2),
]  # fmt: skip


def expected(function, values):
    """One group by plain Python; an overflowing sum is the exact int."""
    present = [v for v in values if v is not None]
    if function == "count":
        return len(present)
    if not present:
        return None
    if function in ("min", "max"):
        pick = min if function == "min" else max
        if isinstance(present[0], str):
            return pick(present, key=str.encode)
        if isinstance(present[0], float):
            return pick(present, key=lambda v: (math.isnan(v), v, math.copysign(1, v)))
        return pick(present)
    if isinstance(present[0], datetime.timedelta):
        return sum(present, datetime.timedelta(0))
    if isinstance(present[0], float):
        total = math.fsum(present)
    elif isinstance(present[0], Decimal):
        exact = sum(map(Fraction, present), Fraction(0))
        scale = max(-v.as_tuple().exponent for v in present)
        total = float(exact) if function == "mean" else Decimal(int(exact * 10**scale)).scaleb(-scale, WIDE)
    else:
        total = sum(present)
    return float(total) / len(present) if function == "mean" else total


def supported(data_type):
    names = []
    for function in FUNCTIONS:
        try:
            result_type(function, data_type)
        except ColumnError:
            continue
        names.append(function)
    return names


def by_start(codes):
    """(row order, groups in that order, group numbers) of a block in group order."""
    order = np.argsort(codes, kind="stable")
    present, starts = np.unique(codes[order], return_index=True)
    return order, Groups.from_starts(starts, len(codes)), present


def finish_or_error(state, function):
    try:
        result = state.finish(function)
    except OverflowedSum as error:
        return "overflow", error.details["group"], error.details["sum"]
    result.validate(full=True)
    assert result.type == result_type(function, result_of[id(state)])
    return [(repr(v), str(type(v))) for v in result.to_pylist()]


result_of: dict[int, pa.DataType] = {}


@pytest.mark.parametrize("data_type", TYPES, ids=str)
def test_every_function_by_both_paths_and_any_merge(data_type):
    rng = random.Random(str(data_type))
    rows = 400
    values = column(data_type, rng, rows)
    codes = np.array([rng.choice([0, 1, 2, 3, 5]) for _ in range(rows)])
    groups = [[v for v, c in zip(values.to_pylist(), codes) if c == g] for g in range(COUNT)]
    groups[6] = []
    for function in supported(data_type):
        state = new_state(function, data_type)
        result_of[id(state)] = data_type
        state.resize(COUNT)
        state.update(Groups.from_codes(codes, COUNT), values)
        whole = finish_or_error(state, function)
        want = [expected(function, group) for group in groups]
        low, high = (0, 2**64) if pa.types.is_unsigned_integer(data_type) else (-(2**63), 2**63)
        lost = [g for g, v in enumerate(want) if type(v) is int and not low <= v < high]
        if lost:
            assert whole == ("overflow", str(lost[0]), str(want[lost[0]]))
        else:
            assert whole == [(repr(v), str(type(v))) for v in want]

        for attempt in range(6):
            merged = new_state(function, data_type)
            result_of[id(merged)] = data_type
            cuts = sorted(rng.sample(range(1, rows), 3))
            parts = list(zip([0, *cuts], [*cuts, rows]))
            rng.shuffle(parts)
            for first, last in parts:
                part = new_state(function, data_type)
                if attempt % 2:
                    order, starts, present = by_start(codes[first:last])
                    part.update(starts, pa.array([values[first + i].as_py() for i in order], data_type))
                else:
                    present = np.arange(COUNT)
                    part.update(Groups.from_codes(codes[first:last], COUNT), values[first:last])
                assert set(part.always) <= set(part.columns())
                for name, state_column in part.columns().items():
                    state_column.validate(full=True)
                    assert state_column.type == part.column_type(name)
                merged.resize(COUNT)
                merged.merge(Groups.from_codes(present, COUNT), part.columns())
            assert finish_or_error(merged, function) == whole, (function, attempt)


def test_merging_sorted_states_by_starts():
    one, two = new_state("mean", pa.float64()), new_state("mean", pa.float64())
    one.update(Groups.from_codes(np.array([0, 1]), 2), pa.array([0.1, 1e-9]))
    two.update(Groups.from_codes(np.array([0, 1]), 2), pa.array([0.2, math.inf]))
    columns = {}
    for name in {*one.columns(), *two.columns()}:
        parts = [s.columns().get(name, pa.nulls(2, s.column_type(name))) for s in (one, two)]
        columns[name] = pa.concat_arrays(parts).take(pa.array([0, 2, 1, 3]))
    merged = new_state("mean", pa.float64())
    merged.merge(Groups.from_starts(np.array([0, 2]), 4), columns)
    assert merged.finish().to_pylist() == [math.fsum([0.1, 0.2]) / 2, math.inf]


def test_infinities_and_nan():
    inf, nan = math.inf, math.nan
    values = pa.array([inf, 1.0, -inf, 2.0, inf, -inf, nan, 5.0, 1e308, 1e308, 1.0])
    codes = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5])
    for form in range(2):
        groups = (
            Groups.from_codes(codes, 6)
            if form
            else Groups.from_starts(np.unique(codes, return_index=True)[1], 11)
        )
        found = {}
        for function in FUNCTIONS:
            state = new_state(function, pa.float64())
            state.update(groups, values)
            copy = new_state(function, pa.float64())
            copy.merge(Groups.from_codes(np.arange(6), 6), state.columns())
            found[function] = [str(v) for v in copy.finish().to_pylist()]
        assert found["sum"] == ["inf", "-inf", "nan", "nan", "inf", "1.0"]
        assert found["mean"] == ["inf", "-inf", "nan", "nan", "inf", "1.0"]
        assert found["min"] == ["1.0", "-inf", "-inf", "5.0", "1e+308", "1.0"]
        assert found["max"] == ["inf", "2.0", "inf", "nan", "1e+308", "1.0"]
        assert found["count"] == ["2", "2", "2", "2", "2", "1"]


def test_negative_zero_is_less_than_zero_and_nans_become_one():
    other_nan = np.array([0xFFF8000000000001], np.uint64).view(np.float64)[0]
    for values in ([0.0, -0.0], [-0.0, 0.0]):
        assert [str(extreme(f, pa.array(values))) for f in ("min", "max")] == ["-0.0", "0.0"]
    assert extreme("min", pa.array([other_nan, 1.0])) == 1.0
    found = extreme("max", pa.array([other_nan, 1.0]), raw=True)
    assert found.view(np.uint64)[0] == 0x7FF8000000000000


def extreme(function, values, raw=False):
    state = new_state(function, values.type)
    state.update(Groups.from_codes(np.zeros(len(values), np.int64), 1), values)
    return state.finish().to_numpy() if raw else state.finish()[0].as_py()


def test_extreme_64_bit_values_are_told_from_empty_groups():
    for data_type, least, greatest in ((pa.int64(), -(2**63), 2**63 - 1), (pa.uint64(), 0, 2**64 - 1)):
        for function, value in (("min", greatest), ("max", least)):
            state = new_state(function, data_type)
            state.resize(3)
            state.update(Groups.from_codes(np.array([1, 1, 2]), 3), pa.array([value, value, None], data_type))
            assert state.finish().to_pylist() == [None, value, None]


def test_integer_sums_do_not_wrap_on_the_way():
    big = 2**63 - 1
    state = new_state("sum", pa.int64())
    state.update(Groups.from_codes(np.zeros(4, np.int64), 1), pa.array([big, big, -big, -5]))
    assert state.finish().to_pylist() == [big - 5]
    mean = new_state("mean", pa.int64())
    mean.update(Groups.from_codes(np.zeros(2, np.int64), 1), pa.array([big, big]))
    assert mean.finish().to_pylist() == [float(2 * big) / 2]


def test_overflow_names_group_and_exact_sum():
    state = new_state("sum", pa.int64())
    state.update(Groups.from_codes(np.array([0, 1, 1]), 2), pa.array([1, 2**63 - 1, 1]))
    with pytest.raises(OverflowedSum, match=str(2**63)) as caught:
        state.finish()
    assert caught.value.details["group"] == "1"
    decimals = new_state("sum", pa.decimal128(38, 0))
    nines = pa.array([Decimal("9" * 38)] * 2, pa.decimal128(38, 0))
    decimals.update(Groups.from_codes(np.zeros(2, np.int64), 1), nines)
    with pytest.raises(OverflowedSum):
        decimals.finish()


def test_sliced_and_dictionary_values():
    words = pa.array(["b", None, "a", "c"] * 9)[2:20]
    groups = Groups.from_codes(np.arange(18) % 2, 2)
    for values in (words, words.dictionary_encode()):
        state = new_state("max", values.type)
        state.update(groups, values)
        assert state.finish().to_pylist() == ["b", "c"]
        count = new_state("count", values.type)
        count.update(groups, values)
        assert count.finish().to_pylist() == [9, 5]
    numbers = pa.array([None, 5, 6, None, 7] * 8)[3:33]
    state = new_state("sum", pa.int64())
    state.update(Groups.from_codes(np.zeros(30, np.int64), 1), numbers)
    assert state.finish().to_pylist() == [sum(v or 0 for v in numbers.to_pylist())]


def test_only_nulls_and_no_rows():
    for data_type in (pa.null(), pa.float64(), pa.string(), pa.decimal128(5, 1)):
        for function in supported(data_type):
            state = new_state(function, data_type)
            state.resize(2)
            state.update(Groups.from_codes(np.zeros(0, np.int64), 2), pa.array([], data_type))
            state.update(Groups.from_codes(np.array([1, 1]), 2), pa.nulls(2, data_type))
            state.merge(Groups.from_codes(np.array([0]), 2), {})
            assert state.finish().to_pylist() == ([0, 0] if function == "count" else [None, None])
            assert state.finish().type == result_type(function, data_type)


def test_types_that_aggregates_do_not_take():
    for function, data_type in (
        ("sum", pa.string()), ("mean", pa.timestamp("s")), ("mean", pa.duration("s")), ("sum", None),
        ("min", pa.list_(pa.int8())), ("sum", pa.decimal256(50, 2)), ("median", pa.int64()),
    ):  # fmt: skip
        with pytest.raises(ColumnError):
            new_state(function, data_type)


def test_a_set_shares_states_and_numbers_them_alike():
    calls = [("sum", 0), ("mean", 0), ("count", 0), ("count", None), ("min", 1), ("max", 1), ("count", 1)]
    types = [pa.float64(), pa.string()]
    whole = AggregateSet(calls, types)
    assert whole.always == ("0.n", "0.s-1", "0.s0", "1.n", "2.v", "3.v", "4.n")
    assert [whole.column_type(name) for name in whole.always][:5] == [pa.int64()] * 4 + [pa.string()]
    rng = random.Random(2)
    numbers, words = column(pa.float64(), rng, 90), column(pa.string(), rng, 90)
    codes = np.arange(90) % 4
    whole.update(Groups.from_codes(codes, 4), [numbers, words])
    assert whole.size == 4
    assert whole.nbytes > 0
    merged = AggregateSet(calls, types)
    for first in (60, 0, 30):
        part = AggregateSet(calls, types)
        rows = slice(first, first + 30)
        part.update(Groups.from_codes(codes[rows], 4), [numbers[rows], words[rows]])
        merged.merge(
            Groups.from_codes(np.array([3, 2, 1, 0]), 4), {n: c[::-1] for n, c in part.columns().items()}
        )
    rows_in = pa.table({"g": codes, "f": numbers, "w": words})  # noqa: F841 (DuckDB finds it by name)
    rows = duckdb.sql(
        "select count(f), count(*), min(w), max(w), count(w) from rows_in group by g order by g"
    ).fetchall()
    for results in (whole.finish(), merged.finish()):
        assert [r.type for r in results] == list(whole.result_types)
        columns = [r.to_pylist() for r in results]
        assert columns[2:] == [list(c) for c in zip(*rows)]
        assert columns == [r.to_pylist() for r in whole.finish()]


def test_blocks_beyond_a_piece_and_growing_groups():
    rng = np.random.default_rng(3)
    values = np.round(rng.normal(0, 100, 50_000), 2)
    codes = np.sort(rng.integers(0, 30, 50_000))
    codes[20_000:45_000] = codes[20_000]
    codes.sort()
    present, starts = np.unique(codes, return_index=True)
    states = {}
    for form in ("codes", "starts", "split"):
        states[form] = AggregateSet([("sum", 0), ("min", 0), ("max", 0), ("count", None)], [pa.float64()])
    states["codes"].update(
        Groups.from_codes(np.searchsorted(present, codes), len(present)), [pa.array(values)]
    )
    states["starts"].update(Groups.from_starts(starts, 50_000), [pa.array(values)])
    for first in range(0, 50_000, 777):
        part = np.searchsorted(present, codes[first : first + 777])
        groups = Groups.from_codes(part, int(part.max()) + 1)
        states["split"].update(groups, [pa.array(values[first : first + 777])])
    results = {form: [r.to_pylist() for r in state.finish()] for form, state in states.items()}
    assert results["codes"] == results["starts"] == results["split"]
    assert results["codes"][0] == [math.fsum(values[codes == g]) for g in present]


def test_extremes_of_text_are_reduced_as_they_pile_up(monkeypatch):
    monkeypatch.setattr("cortex.kernels.extremes._PENDING_ROWS_MIN", 10)
    state = new_state("min", pa.string())
    for i in range(50):
        state.update(Groups.from_codes(np.array([0, 1, 2]), 3), pa.array([f"{99 - i}", f"b{i % 7}", None]))
        assert state.nbytes < 1000
    assert state.finish().to_pylist() == ["50", "b0", None]

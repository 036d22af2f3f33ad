"""Partial states of aggregates, one entry a group: what all share, counts and sums.

A state takes rows (`update`) and rows of other states of its kind (`merge`), in any order and in any
batches: `finish` gives the same bits. Nulls are ignored; a group without a value has count 0 and is
null otherwise. New groups start empty.

A partial state travels as `columns`: named Arrow arrays of one row a group. Some names are always there
(`always`), others only when a group needs them; one that is missing, or null, adds nothing.

    n      rows that count (int64)
    s0 ..  bins of an exact sum, see `cortex.kernels.exact_sum` (int64; s-1, s-2 ... for floats)
    x      not finite: 1 for +inf, 2 for -inf, 4 for NaN, added up (uint8)
    v      least or greatest value, null without one (the value's own type)

Sums of ints are exact; beyond 64 bits `finish` raises OverflowedSum. Sums of floats are the correctly
rounded value of the exact sum (`math.fsum`, bit for bit): infinite beyond the largest float; NaN if any
value is, or if both infinities occur. A mean is the sum, rounded to float64, divided by the count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from cortex.errors import OverflowedSum
from cortex.kernels.columns import native_values, plain, plain_type, valid_mask
from cortex.kernels.exact_sum import FLOAT_UNIT, ExactSums, merge_columns
from cortex.kernels.groups import Groups, Piece

PLUS_INF, MINUS_INF, NOT_A_NUMBER = 1, 2, 4
_DECIMAL_DIGITS = 38
_EXACT_POWER_OF_TEN = 22  # 10**22 is the largest that is exact as a float
_EXACT_INT = 1 << 53


class AggregateState(ABC):
    """The partial state of one aggregate for `size` groups. Updating with more groups grows it."""

    always: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.size = 0

    @abstractmethod
    def resize(self, groups: int) -> None:
        """Add empty groups until there are `groups`; never fewer than now."""

    @abstractmethod
    def update(self, groups: Groups, values: pa.Array | None) -> None:
        """Take the rows of a block. `values` is None only for a count of rows."""

    @abstractmethod
    def merge(self, groups: Groups, columns: Mapping[str, pa.Array]) -> None:
        """Take rows of partial states, as `columns` gave them; missing names count as empty."""

    @abstractmethod
    def columns(self) -> dict[str, pa.Array]:
        """The partial state, one row a group."""

    @abstractmethod
    def column_type(self, name: str) -> pa.DataType:
        """The type of a column of the partial state."""

    @abstractmethod
    def finish(self, function: str = "") -> pa.Array:
        """The result, one row a group; `function` chooses among those that share the state."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory held."""

    def _grow_for(self, groups: Groups) -> None:
        if groups.count > self.size:
            self.resize(groups.count)


def grown(values: NDArray[Any], size: int, fill: int = 0) -> NDArray[Any]:
    """A longer copy, the new entries `fill`."""
    longer = np.full(size, fill, values.dtype)
    longer[: len(values)] = values
    return longer


def fixed_array(data_type: pa.DataType, values: NDArray[Any], valid: NDArray[np.bool_] | None) -> pa.Array:
    """An Arrow array over `values`, which have the type's width (bools: any width), null where not valid."""
    validity = None if valid is None or bool(valid.all()) else packed_bits(valid)
    if pt.is_boolean(data_type):
        data = packed_bits(values.astype(np.bool_))
    else:
        data = pa.py_buffer(np.ascontiguousarray(values))
    rows = len(values) if values.ndim == 1 else values.shape[0]
    return pa.Array.from_buffers(data_type, rows, [validity, data])


def packed_bits(flags: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def state_numbers(column: pa.Array) -> NDArray[Any]:
    """A number column of a partial state; null (as batches without the column are filled) is 0."""
    return native_values(column.fill_null(0) if column.null_count else column)


def add_counts(total: NDArray[np.int64], groups: Groups, counts: pa.Array) -> None:
    values = state_numbers(counts)
    for piece in groups.pieces():
        part = values[piece.first : piece.last]
        if piece.codes is not None:
            np.add.at(total, piece.codes, part)
        else:
            assert piece.starts is not None
            total[piece.groups()] += np.add.reduceat(part, piece.starts)


class CountState(AggregateState):
    """Rows, or rows with a value."""

    always = ("n",)

    def __init__(self) -> None:
        super().__init__()
        self._n = np.zeros(0, np.int64)

    def resize(self, groups: int) -> None:
        self._n = grown(self._n, groups)
        self.size = groups

    def update(self, groups: Groups, values: pa.Array | None) -> None:
        self._grow_for(groups)
        mask = None if values is None else valid_mask(_without_null_entries(values))
        self._n[: groups.count] += (groups if mask is None else groups.where(mask)).sizes()

    def merge(self, groups: Groups, columns: Mapping[str, pa.Array]) -> None:
        self._grow_for(groups)
        if "n" in columns:
            add_counts(self._n, groups, columns["n"])

    def columns(self) -> dict[str, pa.Array]:
        return {"n": fixed_array(pa.int64(), self._n.copy(), None)}

    def column_type(self, name: str) -> pa.DataType:
        return pa.int64()

    def finish(self, function: str = "") -> pa.Array:
        return fixed_array(pa.int64(), self._n.copy(), None)

    @property
    def nbytes(self) -> int:
        return self._n.nbytes


def _without_null_entries(values: pa.Array) -> pa.Array:
    """A dictionary array whose dictionary holds null is decoded: its own bitmap does not say it all."""
    return values.dictionary_decode() if pt.is_dictionary(values.type) else values


class SumState(AggregateState):
    """Exact sum and count of the values: serves sum, mean and count of one column."""

    def __init__(self, value_type: pa.DataType, function: str = "sum") -> None:
        super().__init__()
        self.type = plain_type(value_type)
        self._function = function
        self._is_float = pt.is_floating(self.type)
        self._bins_always = (-1, 0) if self._is_float else (0,)
        self._n = np.zeros(0, np.int64)
        self._sums = ExactSums()
        self._flags: NDArray[np.uint8] | None = None

    @property
    def nbytes(self) -> int:
        return self._n.nbytes + self._sums.nbytes + (0 if self._flags is None else self._flags.nbytes)

    def resize(self, groups: int) -> None:
        self._n = grown(self._n, groups)
        self._sums.resize(groups)
        if self._flags is not None:
            self._flags = grown(self._flags, groups)
        self.size = groups

    def update(self, groups: Groups, values: pa.Array | None) -> None:
        assert values is not None
        self._grow_for(groups)
        column = plain(values)
        mask = valid_mask(column)
        if mask is not None:
            groups = groups.where(mask)
        self._n[: groups.count] += groups.sizes()
        if pt.is_null(self.type) or groups.rows == 0:
            return
        if pt.is_decimal(self.type):
            self._add_decimals(groups, column, mask)
            return
        numbers = native_values(column)
        if mask is not None:
            numbers = numbers[mask]
        for piece in groups.pieces():
            part = numbers[piece.first : piece.last]
            if self._is_float:
                self._add_floats(piece, part.astype(np.float64, copy=False))
            elif part.dtype == np.uint64:
                self._sums.add_unsigned(piece, part)
            else:
                self._sums.add_signed(piece, part.astype(np.int64, copy=False))

    def _add_floats(self, piece: Piece, part: NDArray[np.float64]) -> None:
        largest = float(np.abs(part).max())
        if not largest < np.inf:
            finite = np.isfinite(part)
            rows = np.flatnonzero(~finite)
            odd = part[rows]
            kinds = np.where(np.isnan(odd), NOT_A_NUMBER, np.where(odd > 0, PLUS_INF, MINUS_INF))
            np.bitwise_or.at(self._flagged(), piece.groups_at(rows), kinds.astype(np.uint8))
            part = np.where(finite, part, 0.0)
            largest = float(np.abs(part).max())
        self._sums.add_floats(piece, part, largest)

    def _flagged(self) -> NDArray[np.uint8]:
        if self._flags is None:
            self._flags = np.zeros(self.size, np.uint8)
        return self._flags

    def _add_decimals(self, groups: Groups, column: pa.Array, mask: NDArray[np.bool_] | None) -> None:
        halves = np.frombuffer(column.buffers()[1], np.uint64, 2 * len(column), 16 * column.offset)
        pairs = halves.reshape(-1, 2)
        if mask is not None:
            pairs = pairs[mask]
        for piece in groups.pieces():
            low, high = np.ascontiguousarray(pairs[piece.first : piece.last].T)
            self._sums.add_wide(piece, low, high.view(np.int64))

    def merge(self, groups: Groups, columns: Mapping[str, pa.Array]) -> None:
        self._grow_for(groups)
        if "n" in columns:
            add_counts(self._n, groups, columns["n"])
        bins = {name: state_numbers(column) for name, column in columns.items() if name.startswith("s")}
        flags = state_numbers(columns["x"]) if "x" in columns else None
        for piece in groups.pieces():
            merge_columns(self._sums, piece, "s", bins)
            if flags is not None:
                part = flags[piece.first : piece.last]
                rows = np.flatnonzero(part)
                np.bitwise_or.at(self._flagged(), piece.groups_at(rows), part[rows])

    def columns(self) -> dict[str, pa.Array]:
        result = {"n": fixed_array(pa.int64(), self._n.copy(), None)}
        for name, values in self._sums.columns("s", self._bins_always).items():
            result[name] = fixed_array(pa.int64(), values.copy(), None)
        if self._flags is not None and self._flags.any():
            result["x"] = fixed_array(pa.uint8(), self._flags.copy(), None)
        return result

    def column_type(self, name: str) -> pa.DataType:
        return pa.uint8() if name == "x" else pa.int64()

    @property
    def always(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("n", *(f"s{index}" for index in self._bins_always))

    def finish(self, function: str = "") -> pa.Array:
        function = function or self._function
        valid = self._n > 0
        if function == "count":
            return fixed_array(pa.int64(), self._n.copy(), None)
        if function == "mean":
            sums = self._rounded_sums()
            return fixed_array(pa.float64(), np.divide(sums, self._n, out=sums, where=valid), valid)
        if self._is_float:
            return fixed_array(pa.float64(), self._rounded_sums(), valid)
        if pt.is_decimal(self.type):
            return self._decimal_sums(valid)
        return self._integer_sums(valid)

    def _rounded_sums(self) -> NDArray[np.float64]:
        if pt.is_decimal(self.type):
            return self._rounded_decimals()
        sums = self._sums.floats(FLOAT_UNIT if self._is_float else 0)
        if self._flags is not None:
            flags = self._flags
            sums[flags == PLUS_INF] = np.inf
            sums[flags == MINUS_INF] = -np.inf
            sums[flags >= PLUS_INF | MINUS_INF] = np.nan
        return sums

    def _rounded_decimals(self) -> NDArray[np.float64]:
        """Sums of decimals as floats; each is one division, correctly rounded."""
        units, beyond = self._sums.ints()
        power = 10**self.type.scale if self.type.scale >= 0 else 1
        factor = 10**-self.type.scale if self.type.scale < 0 else 1
        simple = abs(self.type.scale) <= _EXACT_POWER_OF_TEN
        sums: NDArray[np.float64] = units.astype(np.float64) * float(factor) / float(power)
        hard = np.flatnonzero(np.abs(units) > _EXACT_INT).tolist() if simple else range(self.size)
        for group in hard:
            sums[group] = int(units[group]) * factor / power
        for group, exact in beyond.items():
            sums[group] = exact * factor / power
        return sums

    def _decimal_sums(self, valid: NDArray[np.bool_]) -> pa.Array:
        result = pa.decimal128(_DECIMAL_DIGITS, self.type.scale)
        units, beyond = self._sums.ints()
        halves = np.stack([units, units >> 63], axis=1)
        for group, exact in beyond.items():
            if abs(exact) >= 10**_DECIMAL_DIGITS:
                raise _overflowed(group, exact, result)
            halves[group] = np.frombuffer(exact.to_bytes(16, "little", signed=True), np.int64)
        return fixed_array(result, halves, valid)

    def _integer_sums(self, valid: NDArray[np.bool_]) -> pa.Array:
        units, beyond = self._sums.ints()
        unsigned = pt.is_unsigned_integer(self.type)
        result = pa.uint64() if unsigned else self.type if pt.is_duration(self.type) else pa.int64()
        for group, exact in beyond.items():
            if not unsigned or exact >= 1 << 64:
                raise _overflowed(group, exact, result)
            units[group] = exact - (1 << 64)
        return fixed_array(result, units, valid)


def _overflowed(group: int, exact: int, result: pa.DataType) -> OverflowedSum:
    return OverflowedSum(
        f"a sum is {exact}, which does not fit in {result}",
        cure="sum float(x) instead, or take the mean",
        details={"group": group, "sum": exact},
    )

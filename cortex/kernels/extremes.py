"""Least and greatest value of each group.

Order: numbers as numbers, -0.0 before 0.0 and NaN after everything (as DuckDB and PostgreSQL have it;
every NaN becomes the same one); false before true; text by its UTF-8 bytes. A total order, so the result
does not depend on how the rows were spread.

Values of up to eight bytes are mapped to int64 in the same order. Text, bytes and decimals go through
Acero's group-by on group numbers, block by block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from cortex.kernels.aggregate_states import AggregateState, fixed_array, grown
from cortex.kernels.columns import CANONICAL_NAN_BITS, native_values, plain, plain_type, valid_mask
from cortex.kernels.groups import Groups

_LEAST: Final = -(1 << 63)
_GREATEST: Final = (1 << 63) - 1
_PENDING_ROWS_MIN: Final = 65_536  # results of blocks are reduced again when there are this many, or twice
#                                    as many as groups: each value is then reduced a few times in all

Ints = NDArray[np.int64]


def to_ordered(values: NDArray[Any]) -> Ints:
    """Numbers as int64 in the same order."""
    if values.dtype.kind == "f":
        wide = values.astype(np.float64, copy=False)
        bits = wide.view(np.int64)
        # Negative floats order backwards by their bits: flip all but the sign.
        ordered: Ints = bits ^ ((bits >> 63) & _GREATEST)
        lost = np.isnan(wide)
        if lost.any():
            ordered[lost] = CANONICAL_NAN_BITS
        return ordered
    if values.dtype == np.uint64:
        return values.view(np.int64) ^ _LEAST
    return values.astype(np.int64, copy=False)


def from_ordered(ordered: Ints, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The numbers `to_ordered` was given, all NaNs being one."""
    if dtype.kind == "f":
        bits = ordered ^ ((ordered >> 63) & _GREATEST)
        return bits.view(np.float64).astype(dtype)
    if dtype == np.uint64:
        return (ordered ^ _LEAST).view(np.uint64)
    return ordered.astype(dtype)


class FixedExtremes(AggregateState):
    """min or max of numbers, bools and temporal values; the result has the values' own type."""

    always = ("v",)

    def __init__(self, value_type: pa.DataType, function: str) -> None:
        super().__init__()
        self.type = plain_type(value_type)
        self._pick = np.minimum if function == "min" else np.maximum
        self._empty = _GREATEST if function == "min" else _LEAST
        # Only a 64-bit integer can be mapped to what an empty group holds: such groups are noted.
        self._can_be_empty = self.type.bit_width == 64 and not pt.is_floating(self.type)
        self._best = np.zeros(0, np.int64)
        self._full: NDArray[np.bool_] | None = None

    @property
    def nbytes(self) -> int:
        return self._best.nbytes + (0 if self._full is None else self._full.nbytes)

    def resize(self, groups: int) -> None:
        self._best = grown(self._best, groups, self._empty)
        if self._full is not None:
            self._full = grown(self._full, groups)
        self.size = groups

    def update(self, groups: Groups, values: pa.Array | None) -> None:
        assert values is not None
        self._grow_for(groups)
        column = plain(values)
        mask = valid_mask(column)
        numbers = native_values(column)
        if mask is not None:
            groups, numbers = groups.where(mask), numbers[mask]
        for piece in groups.pieces():
            part = to_ordered(numbers[piece.first : piece.last])
            if piece.codes is not None:
                self._pick.at(self._best, piece.codes, part)
            else:
                assert piece.starts is not None
                best = self._best[piece.groups()]
                self._pick(best, self._pick.reduceat(part, piece.starts), out=best)
            if self._can_be_empty:
                rows = np.flatnonzero(part == self._empty)
                if len(rows):
                    if self._full is None:
                        self._full = np.zeros(self.size, np.bool_)
                    self._full[piece.groups_at(rows)] = True

    def merge(self, groups: Groups, columns: Mapping[str, pa.Array]) -> None:
        self._grow_for(groups)
        if "v" in columns:
            self.update(groups, columns["v"])

    def columns(self) -> dict[str, pa.Array]:
        return {"v": self.finish()}

    def column_type(self, name: str) -> pa.DataType:
        return self.type

    def finish(self, function: str = "") -> pa.Array:
        valid = self._best != self._empty
        if self._full is not None:
            valid |= self._full
        best = np.where(valid, self._best, 0)
        return fixed_array(self.type, from_ordered(best, _dtype(self.type)), valid)


def _dtype(data_type: pa.DataType) -> np.dtype[Any]:
    return native_values(pa.array([], data_type)).dtype


class OtherExtremes(AggregateState):
    """min or max of text, bytes and decimals (and of nothing but nulls)."""

    always = ("v",)

    def __init__(self, value_type: pa.DataType, function: str) -> None:
        super().__init__()
        self.type = value_type.value_type if pt.is_dictionary(value_type) else value_type
        self._plain = plain_type(value_type)
        self._function = function
        self._pending: list[pa.Table] = []
        self._pending_rows = 0

    @property
    def nbytes(self) -> int:
        return sum(table.nbytes for table in self._pending)

    def resize(self, groups: int) -> None:
        self.size = groups

    def update(self, groups: Groups, values: pa.Array | None) -> None:
        assert values is not None
        self._grow_for(groups)
        if pt.is_null(self._plain) or groups.rows == 0:
            return
        column = plain(values)
        block = pa.table({"g": pa.array(groups.row_codes()), "v": column})
        self._pending.append(self._reduced(block.filter(column.is_valid())))
        self._pending_rows += len(self._pending[-1])
        if self._pending_rows > max(2 * self.size, _PENDING_ROWS_MIN):
            self._compact()

    def _reduced(self, table: pa.Table) -> pa.Table:
        grouped = table.group_by("g", use_threads=False).aggregate([("v", self._function)])
        return grouped.select(["g", f"v_{self._function}"]).rename_columns(["g", "v"])

    def _compact(self) -> None:
        if len(self._pending) > 1:
            self._pending = [self._reduced(pa.concat_tables(self._pending))]
            self._pending_rows = len(self._pending[0])

    def merge(self, groups: Groups, columns: Mapping[str, pa.Array]) -> None:
        self._grow_for(groups)
        if "v" in columns:
            self.update(groups, columns["v"])

    def columns(self) -> dict[str, pa.Array]:
        return {"v": self.finish()}

    def column_type(self, name: str) -> pa.DataType:
        return self.type

    def finish(self, function: str = "") -> pa.Array:
        self._compact()
        if not self._pending or len(self._pending[0]) == 0:
            return pa.nulls(self.size, self.type)
        groups, values = self._pending[0].combine_chunks().columns
        index = np.full(self.size, -1, np.int64)
        index[groups.to_numpy()] = np.arange(len(groups))
        taken = values.chunk(0).take(pa.array(index, mask=index < 0))
        return taken if taken.type == self.type else taken.cast(self.type)


def new_extremes(function: str, value_type: pa.DataType) -> AggregateState:
    """The state of ``min`` or ``max``."""
    simple = plain_type(value_type)
    if pt.is_decimal(simple) or pt.is_null(simple) or not (pt.is_primitive(simple) or pt.is_boolean(simple)):
        return OtherExtremes(value_type, function)
    return FixedExtremes(value_type, function)

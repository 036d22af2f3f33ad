"""Aggregates: which there are, what they give, and a set of them computed together.

`FUNCTIONS` is the one table; a new aggregate is a row in it, and a kind of state if none serves.
`AggregateSet` computes several calls over the same groups and keeps each state once: sum, mean and
count of one column share theirs. Rules on nulls, exactness and order: `cortex.kernels.aggregate_states`
and `cortex.kernels.extremes`.

Raises ColumnError for a type that an aggregate does not take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.types as pt

from cortex.errors import ColumnError, OverflowedSum
from cortex.kernels.aggregate_states import AggregateState, CountState, SumState
from cortex.kernels.columns import is_bytes, is_fixed, plain_type
from cortex.kernels.extremes import new_extremes
from cortex.kernels.groups import Groups

__all__ = ["FUNCTIONS", "AggregateSet", "AggregateState", "new_state", "result_type"]


@dataclass(frozen=True)
class _Function:
    state: str
    """Functions with the same kind of state and the same argument share it."""
    result: Callable[[str, pa.DataType], pa.DataType]


def _count_type(function: str, value_type: pa.DataType) -> pa.DataType:
    return pa.int64()


def _sum_type(function: str, value_type: pa.DataType) -> pa.DataType:
    simple = plain_type(value_type)
    if pt.is_floating(simple):
        return pa.float64()
    if pt.is_unsigned_integer(simple):
        return pa.uint64()
    if pt.is_integer(simple) or pt.is_boolean(simple) or pt.is_null(simple):
        return pa.int64()
    if pt.is_decimal128(simple):
        return pa.decimal128(38, simple.scale)
    if pt.is_duration(simple):
        return simple
    raise _refused(function, value_type, "numbers")


def _mean_type(function: str, value_type: pa.DataType) -> pa.DataType:
    if pt.is_duration(plain_type(value_type)):
        raise _refused(function, value_type, "numbers")
    _sum_type(function, value_type)
    return pa.float64()


def _extreme_type(function: str, value_type: pa.DataType) -> pa.DataType:
    simple = plain_type(value_type)
    if is_fixed(simple):
        return simple
    if is_bytes(simple) or pt.is_null(simple):
        return value_type.value_type if pt.is_dictionary(value_type) else value_type
    raise _refused(function, value_type, "numbers, text, bytes, dates, times, bools and decimals")


def _refused(function: str, value_type: pa.DataType, taken: str) -> ColumnError:
    return ColumnError(
        f"{function} does not take values of type {value_type}",
        cure=f"{function} takes {taken}: convert the column first",
    )


FUNCTIONS: Final[dict[str, _Function]] = {
    "count": _Function("count", _count_type),
    "sum": _Function("sum", _sum_type),
    "mean": _Function("sum", _mean_type),
    "min": _Function("min", _extreme_type),
    "max": _Function("max", _extreme_type),
}


def _function(name: str) -> _Function:
    function = FUNCTIONS.get(name)
    if function is None:
        raise ColumnError(f"there is no aggregate {name!r}", cure=f"there are: {', '.join(FUNCTIONS)}")
    return function


def result_type(function: str, value_type: pa.DataType | None) -> pa.DataType:
    """The type of the aggregate's result for values of a type (None: a count of rows)."""
    found = _function(function)
    if value_type is None:
        if function != "count":
            raise ColumnError(f"{function} needs a column", cure=f"write {function}(x)")
        return pa.int64()
    return found.result(function, value_type)


def new_state(function: str, value_type: pa.DataType | None) -> AggregateState:
    """An empty state of one aggregate."""
    result_type(function, value_type)
    kind = _function(function).state
    if kind == "count" or value_type is None:
        return CountState()
    return SumState(value_type, function) if kind == "sum" else new_extremes(function, value_type)


class AggregateSet:
    """The states of several aggregate calls over the same groups.

    A call is (function, index of its argument), the index None for ``count()``. In `columns` and
    `merge` a state's column is named ``<state>.<column>``, such as ``0.n`` or ``2.s-1``; the same calls
    and types number the states alike everywhere.
    """

    def __init__(
        self, calls: Sequence[tuple[str, int | None]], argument_types: Sequence[pa.DataType]
    ) -> None:
        self.calls = tuple(calls)
        self.size = 0
        self._states: list[AggregateState] = []
        self._arguments: list[int | None] = []
        self._state_of: list[int] = []
        types = [None if argument is None else argument_types[argument] for _, argument in self.calls]
        self.result_types = tuple(result_type(name, kind) for (name, _), kind in zip(self.calls, types))
        shared: dict[tuple[str, int | None], int] = {}
        summed = {argument for name, argument in self.calls if FUNCTIONS[name].state == "sum"}
        for (name, argument), value_type in zip(self.calls, types):
            kind = FUNCTIONS[name].state
            if kind == "count" and argument is not None and argument in summed:
                kind = "sum"
            if (kind, argument) not in shared:
                shared[kind, argument] = len(self._states)
                self._states.append(new_state(kind, value_type))
                self._arguments.append(argument)
            self._state_of.append(shared[kind, argument])

    @property
    def nbytes(self) -> int:
        return sum(state.nbytes for state in self._states)

    def resize(self, groups: int) -> None:
        """Add empty groups until there are `groups`."""
        if groups > self.size:
            for state in self._states:
                state.resize(groups)
            self.size = groups

    def update(self, groups: Groups, arguments: Sequence[pa.Array]) -> None:
        """Take the rows of a block; `arguments[i]` are the values of argument i."""
        self.resize(groups.count)
        for state, argument in zip(self._states, self._arguments):
            state.update(groups, None if argument is None else arguments[argument])

    def merge(self, groups: Groups, columns: Mapping[str, pa.Array]) -> None:
        """Take rows of partial states, as `columns` gave them; other names are ignored."""
        self.resize(groups.count)
        own: dict[str, dict[str, pa.Array]] = {}
        for name, column in columns.items():
            index, _, rest = name.partition(".")
            own.setdefault(index, {})[rest] = column
        for number, state in enumerate(self._states):
            state.merge(groups, own.get(str(number), {}))

    def columns(self) -> dict[str, pa.Array]:
        """The partial states, one row a group. Columns beyond `always` are there only if needed."""
        return {
            f"{index}.{name}": column
            for index, state in enumerate(self._states)
            for name, column in state.columns().items()
        }

    @property
    def always(self) -> tuple[str, ...]:
        """The columns that are there whatever the values."""
        return tuple(f"{index}.{name}" for index, state in enumerate(self._states) for name in state.always)

    def column_type(self, name: str) -> pa.DataType:
        """The type of a column of the partial states, there or not."""
        index, _, column = name.partition(".")
        return self._states[int(index)].column_type(column)

    def finish(self) -> list[pa.Array]:
        """The result of each call, one row a group. Raises OverflowedSum with the call's number."""
        results = []
        for call, ((name, _), index) in enumerate(zip(self.calls, self._state_of)):
            try:
                results.append(self._states[index].finish(name))
            except OverflowedSum as error:
                error.details["call"] = str(call)
                raise
        return results

"""Aggregates on the way through the shuffle: rows become partial states, states are merged, finished.

On the map side there are two ways, chosen by what the keys look like. While groups are few, their states
stay in a table and each block is added to it (`_GroupTable`). When they are many, rows wait in a buffer
and each full buffer is sorted and folded at once. Both write runs of states, one row a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cortex.errors import OverflowedSum
from cortex.job.types import type_name
from cortex.kernels.aggregates import AggregateSet
from cortex.kernels.columns import fixed_words, is_fixed, valid_mask
from cortex.kernels.groups import Groups, groups_of
from cortex.kernels.hashing import hash_columns
from cortex.limits import FOLD_BYTES, FOLD_ROWS, GROUP_TABLE_KEYS_MAX
from cortex.shuffle.collector import Place, RunSink, SortBuffer
from cortex.shuffle.keys import decode_keys
from cortex.shuffle.pieces import slices
from cortex.shuffle.run_schema import STATES, Layout

_TABLE_FRACTION = 0.5  # of the budget: flushing takes the states once more
_KEY_BYTES = 250  # of a group's key in a dict and in a column
_NEW_GROUPS_OF_BLOCK_MAX = 0.25  # of a block's rows: with more, a table saves little over sorting


class Aggregation:
    """The job's aggregate calls over arguments of known types; calls as `AggregateSet` has them."""

    def __init__(self, calls: Sequence[tuple[str, int | None]], types: Sequence[pa.DataType]) -> None:
        self.calls = tuple(calls)
        self.types = tuple(types)
        self.argument_types = ";".join(type_name(kind) for kind in types)
        self.payload = f"{STATES}:{self.argument_types}"
        self.group_bytes = 8 * len(AggregateSet(self.calls, self.types).always)
        """About what the states of a group take, where no value needs more of them."""

    def new(self, groups: int) -> AggregateSet:
        """Empty states of this many groups."""
        states = AggregateSet(self.calls, self.types)
        states.resize(groups)
        return states

    def layout(self, key_type: str, keys: Sequence[pa.Array], columns: Sequence[str], placed: bool) -> Layout:
        """Of a run with these columns of states."""
        states = AggregateSet(self.calls, self.types)
        fields = tuple((name, states.column_type(name)) for name in columns)
        return Layout(key_type, tuple(k.type for k in keys), self.payload, fields, placed)

    def merge(
        self, states: AggregateSet, starts: NDArray[np.int64], batch: pa.RecordBatch, layout: Layout
    ) -> None:
        """Add the sorted states of `batch`, whose group g begins at row starts[g]."""
        columns = {
            name: batch.column(1 + layout.keys + i) for i, (name, _) in enumerate(layout.payload_fields)
        }
        states.merge(Groups.from_starts(starts, batch.num_rows), columns)

    def combine(
        self, layout: Layout, batch: pa.RecordBatch, starts: NDArray[np.int64]
    ) -> tuple[Layout, pa.RecordBatch]:
        """One row of states for each group of a sorted batch of states."""
        if len(starts) == batch.num_rows:
            return layout, batch
        states = self.new(len(starts))
        self.merge(states, starts, batch, layout)
        firsts = batch.select(list(range(1 + layout.keys))).take(pa.array(starts))
        keys = firsts.columns[1:]
        columns = states.columns()
        made = self.layout(layout.key_type, keys, list(columns), layout.placed)
        arrays = [firsts.column(0), *keys, *columns.values()]
        return made, pa.RecordBatch.from_arrays(arrays, schema=made.schema())

    def finish(
        self, states: AggregateSet, key_type: str, keys: Sequence[pa.Array], names: Sequence[str] = ()
    ) -> list[pa.Array]:
        """The result of each call, a row a group. Raises OverflowedSum naming the group's key, and the
        call if there are `names` of the calls."""
        try:
            return states.finish()
        except OverflowedSum as error:
            call = error.details.pop("call", None)
            if names and call is not None:
                error.details = {"column": names[int(call)], **error.details}
            group = error.details.get("group")
            if group is not None and keys:
                row = [key.slice(int(group), 1) for key in keys]
                shown = decode_keys(key_type, row)[0] if key_type else [k[0].as_py() for k in row]
                error.details["group"] = repr(shown)
            raise


class AggregateCollector:
    """Takes rows (key columns and the aggregates' arguments), writes runs of partial states.

    `few_groups` False skips the table: for rows that were folded already. Owned by one map task.
    """

    def __init__(
        self,
        sink: RunSink,
        budget_bytes: int,
        aggregation: Aggregation,
        *,
        place: Place | None = None,
        few_groups: bool = True,
    ) -> None:
        self.sink = sink
        self.budget_bytes = budget_bytes
        self.aggregation = aggregation
        self.place = place
        self._table: _GroupTable | None = _GroupTable(aggregation) if few_groups else None
        self._buffer: SortBuffer | None = None
        self._columns: dict[str, None] = {}

    def add(
        self, key_type: str, keys: Sequence[pa.Array], arguments: Sequence[pa.Array], rows: int | None = None
    ) -> None:
        """`rows` is needed where there is neither key nor argument."""
        count = rows if rows is not None else len((*keys, *arguments)[0])
        if self._table is not None:
            if self._table.add(keys, arguments, count):
                if self._table.nbytes > self.budget_bytes * _TABLE_FRACTION:
                    self._flush_table(key_type)
                return
            self._flush_table(key_type)
            self._table = None  # too many groups: from here on rows are sorted
        layout = Layout(
            key_type,
            tuple(k.type for k in keys),
            self.aggregation.payload,
            tuple((f"a{i}", kind) for i, kind in enumerate(self.aggregation.types)),
            self.place is not None,
        )
        if self._buffer is not None and self._buffer.layout != layout:
            self._flush_buffer()
        if self._buffer is None:
            self._buffer = SortBuffer(layout)
        hashes = hash_columns(keys, count)
        if self.place is not None:
            hashes = self.place(layout, keys, hashes)
        self._buffer.add(hashes, keys, arguments)
        if self._buffer.cost_bytes >= self.budget_bytes:
            self._flush_buffer()

    def flush(self) -> None:
        """Write what is held."""
        if self._table is not None:
            self._flush_table("")
        self._flush_buffer()

    def _flush_table(self, key_type: str) -> None:
        assert self._table is not None
        keys, states, groups = self._table.take_all()
        if not groups:
            return
        hashes = hash_columns(keys, groups)
        layout = Layout(key_type, tuple(k.type for k in keys), self.aggregation.payload, ())
        order = layout.order(hashes, keys).permutation
        at_once = max(1, min(FOLD_ROWS, FOLD_BYTES * groups // max(1, states.nbytes)))
        columns = states.columns()
        for begin in range(0, groups, at_once):  # many states a group: they are not copied at once
            rows = order[begin : begin + at_once]
            taken = pa.array(rows)
            some = {name: column.take(taken) for name, column in columns.items()}
            self._write(key_type, [key.take(taken) for key in keys], hashes[rows], some)
        self.sink.end()

    def _flush_buffer(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is None or not buffer.rows:
            return
        # Each row of a slice may be a group, whose states may be far larger than the row.
        layout, size_bytes = buffer.layout, max(buffer.nbytes, buffer.rows * self.aggregation.group_bytes)
        hashes, keys, arguments = buffer.take_all()
        ordering = layout.order(hashes, keys)
        for rows, starts in slices(ordering, [*keys, *arguments], size_bytes):
            order = ordering.permutation[rows]
            taken = pa.array(order)
            states = self.aggregation.new(len(starts))
            groups = Groups.from_starts(starts, len(order))
            states.update(groups, [argument.take(taken) for argument in arguments])
            firsts = order[starts]
            picked = [key.take(pa.array(firsts)) for key in keys]
            self._write(layout.key_type, picked, hashes[firsts], states.columns())
        self.sink.end()

    def _write(
        self,
        key_type: str,
        keys: Sequence[pa.Array],
        hashes: NDArray[np.uint64],
        columns: dict[str, pa.Array],
    ) -> None:
        """Append sorted states to the run. A column that no state before needed starts a new run, so that
        a run has one schema."""
        self._columns.update(dict.fromkeys(columns))
        layout = self.aggregation.layout(key_type, keys, list(self._columns), self.place is not None)
        payload = [
            columns[name] if name in columns else pa.array(np.zeros(len(hashes), np.int64)).cast(kind)
            for name, kind in layout.payload_fields
        ]
        self.sink.append(layout, layout.batch(hashes, keys, payload))


class _GroupTable:
    """States of the groups seen so far, by key. Small enough to stay in the caches."""

    def __init__(self, aggregation: Aggregation) -> None:
        self._aggregation = aggregation
        self._codes: dict[Any, int] = {}
        self._keys: list[list[pa.Array]] = []
        self._states = aggregation.new(0)

    @property
    def nbytes(self) -> int:
        """About: the states, and the keys as Python objects and in columns."""
        return self._states.nbytes + len(self._codes) * _KEY_BYTES

    def add(self, keys: Sequence[pa.Array], arguments: Sequence[pa.Array], rows: int) -> bool:
        """Add a block. False, with nothing changed, if its groups are too many for a table."""
        codes, firsts = groups_of(keys, rows)
        limit = max(64, int(rows * _NEW_GROUPS_OF_BLOCK_MAX))
        if len(firsts) > limit or len(self._codes) + len(firsts) > GROUP_TABLE_KEYS_MAX:
            return False
        taken = [key.take(pa.array(firsts)) for key in keys]
        known = self._codes
        numbers = np.empty(len(firsts), np.int64)
        new: list[int] = []
        for position, key in enumerate(zip(*[_cells(column) for column in taken]) if keys else ((),)):
            number = known.get(key)
            if number is None:
                number = known[key] = len(known)
                new.append(position)
            numbers[position] = number
        if new:
            picked = pa.array(new)
            self._keys.append([column.take(picked) for column in taken])
        self._states.resize(len(known))
        self._states.update(Groups.from_codes(numbers[codes], len(known)), arguments)
        return True

    def take_all(self) -> tuple[list[pa.Array], AggregateSet, int]:
        """(key columns, states, groups); the table is empty afterwards."""
        groups, states = len(self._codes), self._states
        keys = [pa.concat_arrays(list(parts)) for parts in zip(*self._keys)]
        self._codes, self._keys, self._states = {}, [], self._aggregation.new(0)
        return keys, states, groups


def _cells(column: pa.Array) -> list[Any]:
    """The column's values as Python objects that are equal just when the keys are (NaN too)."""
    if not is_fixed(column.type):
        cells: list[Any] = column.to_pylist()
        return cells
    words = fixed_words(column).tolist()
    valid = valid_mask(column)
    return words if valid is None else [w if v else None for w, v in zip(words, valid.tolist())]

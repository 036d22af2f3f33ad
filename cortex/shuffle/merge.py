"""Merge of sorted runs in rounds of bounded memory.

A run's index tells the first hash of every batch on disk, so each round is planned before it is read:
the largest hash bound T such that every batch that begins below T fits the budget. The rows below T of
all runs are joined and sorted at once (faster in NumPy than any row-by-row heap), and because a bound
never splits equal hashes, a round holds complete groups. They are handed out slice by slice. What a run
has left of a batch stays for the next round: at most one batch a run, which is why `fan_in` bounds the
runs merged at once.

A group larger than a slice comes as a `GiantGroup`; one larger than the budget is streamed from disk.

Rows are conserved: what is handed out is counted, batch by batch, against what the index has.

Order: rows of one key come in the order of the sources given, then in their order in the run. Sources
are given in map order and only neighbours are ever merged early, so this is input order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cortex.errors import ColumnError, RowsLost, ValueTypeError
from cortex.job.output_types import merge_key_types
from cortex.kernels.wider import widened, wider_type
from cortex.limits import MERGE_FAN_IN_MIN, ORDER_BYTES_PER_ROW, RUN_BATCH_BYTES
from cortex.shuffle.pieces import gathered, taken_pieces
from cortex.shuffle.run_schema import STATES, VALUES, Layout, hashes_of
from cortex.shuffle.values import ARROW_TYPES, common_tag, retag

_COLUMN_BYTES: Final = 640  # of an array as an object and of its slice: more than 50 rows of numbers have

Counts = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class RunSource:
    """The batches of one run that belong to one partition, in hash order.

    `read(i)` reads batch i; `first_hashes`, `last_hashes`, `sizes_bytes` (in memory) and `rows` have an item
    a batch.
    """

    layout: Layout
    first_hashes: Hashes
    last_hashes: Hashes
    sizes_bytes: Counts
    rows: Counts
    read: Callable[[int], pa.RecordBatch]


@dataclass(frozen=True)
class SortedGroups:
    """Complete groups, sorted, of bounded size. Group g is rows starts[g]:starts[g + 1] of `batch`."""

    layout: Layout
    batch: pa.RecordBatch
    starts: NDArray[np.int64]


@dataclass(frozen=True)
class GiantGroup:
    """One key with more rows than a slice. `batches()` gives them anew at each call, in order."""

    layout: Layout
    keys: tuple[pa.Array, ...]
    """Key columns of one row."""
    rows: int
    batches: Callable[[], Iterator[pa.RecordBatch]]


def fan_in(budget_bytes: int, columns: int) -> int:
    """How many runs of so many columns may be merged at once: a quarter of the budget for what they leave
    between rounds."""
    return max(MERGE_FAN_IN_MIN, budget_bytes // 4 // (RUN_BATCH_BYTES + columns * _COLUMN_BYTES))


def merge_rounds(sources: Sequence[RunSource], budget_bytes: int) -> Iterator[SortedGroups | GiantGroup]:
    """Every row of `sources`, in (hash, key, source, row) order. `budget_bytes` is for the rows of a round
    and their sort; what is yielded is much smaller.

    The sources' layouts are made one first (`common_layout`). A GiantGroup must be used before the next
    item is asked for. Reading raises CorruptRun; RowsLost means a bug.
    """
    left = sum(int(source.rows.sum()) for source in sources)
    for item in _rounds(sources, budget_bytes):
        if isinstance(item, GiantGroup):
            left -= item.rows
            yield replace(item, batches=partial(_counted, item))
        else:
            left -= item.batch.num_rows
            yield item
    if left:
        raise _lost(left)


def _counted(group: GiantGroup) -> Iterator[pa.RecordBatch]:
    left = group.rows
    for batch in group.batches():
        left -= batch.num_rows
        yield batch
    if left:
        raise _lost(left)


def _lost(rows: int) -> RowsLost:
    return RowsLost(
        f"a merge handed out {abs(rows)} rows {'fewer' if rows > 0 else 'more'} than its runs have",
        cure="this is a bug in cortex; please report it with the job",
    )


def _rounds(sources: Sequence[RunSource], budget_bytes: int) -> Iterator[SortedGroups | GiantGroup]:
    if not sources:
        return
    layout = common_layout([source.layout for source in sources])
    cursors = [_Cursor(source, layout) for source in sources]
    first = np.concatenate([source.first_hashes for source in sources])
    objects = layout.columns * _COLUMN_BYTES
    sizes = np.concatenate([2 * s.sizes_bytes + ORDER_BYTES_PER_ROW * s.rows + objects for s in sources])
    order = np.argsort(first, kind="stable")
    first = first[order]
    total = np.concatenate(([0], np.cumsum(sizes[order])))
    position, end = 0, len(first)
    while position < end or any(cursor.rest is not None for cursor in cursors):
        held = sum(cursor.rest.nbytes + objects for cursor in cursors if cursor.rest is not None)
        room = total[position] + max(budget_bytes - held, 0)
        fits = max(int(np.searchsorted(total, room, side="right")) - 1, min(position + 1, end))
        if fits >= end:
            bound, reach = None, end
        else:
            bound = int(first[fits])
            reach = int(np.searchsorted(first, first[fits], side="left"))
        parts = [part for cursor in cursors for part in cursor.rows_below(bound)]
        position = max(position, reach)
        if parts:
            yield from _sorted_groups(layout, parts)
        elif bound is not None:
            yield from _giant_groups(layout, cursors, bound)
            position = max(position, int(np.searchsorted(first, np.uint64(bound), side="right")))


def common_layout(layouts: Sequence[Layout]) -> Layout:
    """One layout that all rows can have: values are pickled where tags differ, a state column that only
    some runs needed is absent (identity) in the others, and a column without a value has the others' type.

    Raises KeyTypeError, ValueTypeError or ColumnError for rows that cannot stand beside each other.
    """
    first = layouts[0]
    key_type, key_types, tags = first.key_type, list(first.key_types), [first.payload]
    states = first.payload.startswith(STATES)
    fields: dict[str, pa.DataType] = dict(first.payload_fields)
    for other in layouts[1:]:
        if other == first:
            continue
        if key_type or other.key_type:
            key_type = merge_key_types(key_type, other.key_type)
        if other.payload != first.payload and (states or other.payload.startswith(STATES)):
            raise _different_values(first, other)
        key_types = [
            _common_type(f"key column {number}", a, b)
            for number, (a, b) in enumerate(zip(key_types, other.key_types), 1)
        ]
        tags.append(other.payload)
        if not states and fields.keys() != dict(other.payload_fields).keys():
            raise ColumnError(
                f"batches of map output with different columns: {_names(fields)}; "
                f"then {_names(dict(other.payload_fields))}",
                cure="return batches with the same columns from map_batch",
            )
        for name, kind in other.payload_fields:
            if not first.payload.startswith(VALUES):
                fields[name] = _common_type(f"column {name!r}", fields.get(name, kind), kind)
    payload = first.payload
    if payload.startswith(VALUES):
        tag = common_tag([t.partition(":")[2] for t in tags])
        payload = f"{VALUES}:{tag}"
        fields["value"] = ARROW_TYPES[tag]
    return Layout(key_type, tuple(key_types), payload, tuple(fields.items()), first.placed)


def _common_type(what: str, first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """The type of a column that has these in different runs."""
    common = wider_type(first, second)
    if common is None:
        raise ColumnError(
            f"{what} is {first} in one batch of map output and {second} in another",
            cure="return batches of one schema from map_batch, for example by casting the column",
        )
    return common


def _different_values(first: Layout, other: Layout) -> ValueTypeError:
    kinds = sorted(layout.payload.partition(":")[2] for layout in (first, other))
    return ValueTypeError(
        f"values of different types in different parts of the input: {', '.join(kinds)}",
        cure="make the map give one type, for example always float(value)",
    )


def _names(fields: dict[str, pa.DataType]) -> str:
    return ", ".join(fields) or "none beside the key"


class _Cursor:
    """Where the merge stands in one run: the next batch to read, and what is left of the last one."""

    def __init__(self, source: RunSource, layout: Layout) -> None:
        self.source = source
        self.layout = layout
        self.next = 0
        self.rest: pa.RecordBatch | None = None

    def read(self, index: int) -> pa.RecordBatch:
        return conform(self.source.read(index), self.source.layout, self.layout)

    def rows_below(self, bound: int | None) -> Iterator[pa.RecordBatch]:
        """The rows with hashes below `bound` (None: all), in order; the cursor moves past them."""
        if self.rest is not None:
            batch, self.rest = self.rest, None
            yield from self._cut(batch, bound)
        firsts = self.source.first_hashes
        while (
            self.next < len(firsts)
            and self.rest is None
            and (bound is None or int(firsts[self.next]) < bound)
        ):
            self.next += 1
            yield from self._cut(self.read(self.next - 1), bound)

    def _cut(self, batch: pa.RecordBatch, bound: int | None) -> Iterator[pa.RecordBatch]:
        rows = batch.num_rows
        below = rows if bound is None else int(np.searchsorted(hashes_of(batch), np.uint64(bound)))
        if below == rows:
            yield batch
            return
        self.rest = batch.slice(below)
        if below:
            yield batch.slice(0, below)

    def batches_equal(self, value: int) -> Iterator[pa.RecordBatch]:
        """The rows whose hash is `value`, the smallest left; the cursor stays where it is."""
        if self.rest is not None:
            part = _equal_head(self.rest, value)
            if part.num_rows:
                yield part
            if part.num_rows < self.rest.num_rows:
                return
        for index in range(self.next, self._end_of(value)):
            part = _equal_head(self.read(index), value)
            if part.num_rows:
                yield part

    def ends_equal(self, value: int) -> list[pa.RecordBatch]:
        """Hash and key of the first and the last row whose hash is `value`, as batches of one row."""
        ends: list[pa.RecordBatch] = []
        head = _equal_head(self.rest, value) if self.rest is not None else None
        if head is not None and head.num_rows:
            ends = [self._key_at(head, 0), self._key_at(head, head.num_rows - 1)]
            if self.rest is not None and head.num_rows < self.rest.num_rows:
                return ends
        stop = self._end_of(value)
        if stop > self.next:
            if not ends:
                ends = [self._key_at(self.read(self.next), 0)]
            tail = _equal_head(self.read(stop - 1), value)
            ends = [ends[0], self._key_at(tail, tail.num_rows - 1)]
        return ends

    def _key_at(self, batch: pa.RecordBatch, row: int) -> pa.RecordBatch:
        return _keys_at(self.layout, batch, np.array([row]))

    def rows_equal(self, value: int) -> int:
        """How many rows have the hash `value`, by the index but for the first and the last batch."""
        rows: int = 0
        if self.rest is not None:
            rows = int(_equal_head(self.rest, value).num_rows)
            if rows < self.rest.num_rows:
                return rows
        stop = self._end_of(value)
        if stop > self.next:
            rows += int(self.source.rows[self.next : stop - 1].sum())
            rows += _equal_head(self.read(stop - 1), value).num_rows
        return rows

    def skip_equal(self, value: int) -> None:
        """Move past the rows whose hash is `value`."""
        if self.rest is not None:
            head = _equal_head(self.rest, value).num_rows
            if head < self.rest.num_rows:
                self.rest = self.rest.slice(head)
                return
            self.rest = None
        stop = self._end_of(value)
        if stop > self.next:
            batch = self.read(stop - 1)
            head = _equal_head(batch, value).num_rows
            self.rest = batch.slice(head) if head < batch.num_rows else None
            self.next = stop

    def _end_of(self, value: int) -> int:
        """Index after the last batch that begins with `value`."""
        return int(np.searchsorted(self.source.first_hashes, np.uint64(value), side="right"))


def _keys_at(layout: Layout, batch: pa.RecordBatch, rows: NDArray[np.int64]) -> pa.RecordBatch:
    """Hash and key of some rows: copied, as one row of a block would keep all of it, with long values."""
    return batch.select(list(range(1 + layout.keys))).take(pa.array(rows))


def _equal_head(batch: pa.RecordBatch, value: int) -> pa.RecordBatch:
    return batch.slice(0, int(np.searchsorted(hashes_of(batch), np.uint64(value), side="right")))


def conform(batch: pa.RecordBatch, have: Layout, want: Layout) -> pa.RecordBatch:
    """`batch` with the columns of `want`, which `common_layout` gave: values under one tag."""
    if have == want:
        return batch
    columns = list(batch.columns[: 1 + have.keys])
    for index, kind in enumerate(want.key_types):
        columns[1 + index] = widened(columns[1 + index], kind)
    present = {name: batch.column(1 + have.keys + i) for i, (name, _) in enumerate(have.payload_fields)}
    for name, kind in want.payload_fields:
        column = present.get(name)
        if name == "value" and want.payload.startswith(VALUES) and have.payload != want.payload:
            assert column is not None
            column = retag(have.value_tag, column, want.value_tag)
        if column is None:  # states that these rows did not need: nothing to add
            column = pa.array(np.zeros(batch.num_rows, np.int64)).cast(kind)
        columns.append(widened(column, kind))
    return pa.RecordBatch.from_arrays(columns, schema=want.schema())


def _sorted_groups(layout: Layout, parts: list[pa.RecordBatch]) -> Iterator[SortedGroups | GiantGroup]:
    """A round's groups, gathered slice by slice, so that the round is never copied whole. A group that
    is more than a slice comes as a GiantGroup."""
    batch = parts[0] if len(parts) == 1 else pa.concat_batches(parts)
    parts.clear()
    ordering = layout.order_batch(batch)
    order, rows = ordering.permutation, batch.num_rows
    pieces = taken_pieces(batch.columns, rows, batch.nbytes, order)
    bounds = np.append(ordering.starts, rows)
    first = 0
    while first < len(bounds) - 1:
        last = int(np.searchsorted(bounds, pieces.end(int(bounds[first]), rows), side="right")) - 1
        if last > first:
            begin, end = int(bounds[first]), int(bounds[last])
            taken = gathered(batch, order[begin:end])
            yield SortedGroups(layout, taken, ordering.starts[first:last] - begin)
            first = last
            continue
        begin, end = int(bounds[first]), int(bounds[first + 1])
        key = batch.slice(int(order[begin]), 1).columns[1 : 1 + layout.keys]

        def batches(begin: int = begin, end: int = end) -> Iterator[pa.RecordBatch]:
            while begin < end:
                after = pieces.end(begin, end)
                yield gathered(batch, order[begin:after])
                begin = after

        yield GiantGroup(layout, tuple(key), end - begin, batches)
        first += 1


def _giant_groups(layout: Layout, cursors: Sequence[_Cursor], value: int) -> Iterator[GiantGroup]:
    """The keys whose hash is `value`: one, unless different keys collide in all 64 bits."""
    ends = [end for cursor in cursors for end in cursor.ends_equal(value)]
    candidates = pa.concat_batches(ends)
    ordering = layout.order_batch(candidates)
    # A run is sorted by key within a hash: if its first and last row have one key, so have all between.
    alone = len(ordering.starts) == 1
    if not alone:
        candidates = _distinct_keys(layout, cursors, value)
        ordering = layout.order_batch(candidates)
    for start in ordering.starts:
        row = candidates.slice(int(ordering.permutation[start]), 1)

        def batches(row: pa.RecordBatch = row) -> Iterator[pa.RecordBatch]:
            for cursor in cursors:
                for batch in cursor.batches_equal(value):
                    part = batch if alone else _rows_with_key(layout, batch, row)
                    if part.num_rows:
                        yield part

        rows = sum(cursor.rows_equal(value) for cursor in cursors) if alone else _rows_of(batches())
        yield GiantGroup(layout, tuple(row.columns[1:]), rows, batches)
    for cursor in cursors:
        cursor.skip_equal(value)


def _rows_of(batches: Iterator[pa.RecordBatch]) -> int:
    return sum(batch.num_rows for batch in batches)


def _distinct_keys(layout: Layout, cursors: Sequence[_Cursor], value: int) -> pa.RecordBatch:
    """Hash and key of each, as a batch."""
    found: pa.RecordBatch | None = None
    for cursor in cursors:
        for batch in cursor.batches_equal(value):
            both = batch.select(list(range(1 + layout.keys)))
            both = both if found is None else pa.concat_batches([found, both])
            ordering = layout.order_batch(both)
            found = _keys_at(layout, both, ordering.permutation[ordering.starts])
    assert found is not None
    return found


def _rows_with_key(layout: Layout, batch: pa.RecordBatch, row: pa.RecordBatch) -> pa.RecordBatch:
    """The rows of `batch` with the key of `row`, which is hash and key."""
    both = pa.concat_batches([row, batch.select(list(range(1 + layout.keys)))])
    ordering = layout.order_batch(both)
    group = np.searchsorted(ordering.starts, np.flatnonzero(ordering.permutation == 0), side="right")[0] - 1
    bounds = [*ordering.starts.tolist(), both.num_rows]
    members = ordering.permutation[bounds[group] : bounds[group + 1]]
    return batch.take(pa.array(np.sort(members[members != 0]) - 1))

"""The map side's buffer: rows wait here until it is full, then become one sorted run.

One packed sort of (hash, row number) orders, partitions and groups the buffer at once; rows are then
gathered slice by slice as they are written, so the buffer is never copied whole. The budget is for the
rows and their sort together; a slice comes on top.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cortex.kernels.hashing import hash_columns
from cortex.limits import BATCH_ROWS_MAX, KIB, ORDER_BYTES_PER_ROW, RUN_BATCH_BYTES
from cortex.shuffle.partitioner import Partitioner
from cortex.shuffle.pieces import Pieces, gathered, slices
from cortex.shuffle.run_schema import Layout, hashes_of

_PARENT_MAX: Final = 16  # slices of one block are at most so many, and share it

Hashes = NDArray[np.uint64]
Place = Callable[[Layout, Sequence[pa.Array], Hashes], Hashes]
"""Moves the hashes of rows with these key columns into the partitions a user's function chose."""

Combiner = Callable[[Layout, pa.RecordBatch, NDArray[np.int64]], tuple[Layout, pa.RecordBatch]]
"""Folds complete groups: (layout, sorted batch, group starts) to the layout and batch that replace it."""


class RunWriter(Protocol):
    """What a run goes to: `cortex.storage.run_writer.RunFileWriter`."""

    def begin_run(self, schema: pa.Schema) -> None: ...
    def append(self, partition: int, batch: pa.RecordBatch, first_hash: int, last_hash: int) -> None: ...
    def end_run(self) -> None: ...


class RunSink:
    """Cuts sorted rows at partition bounds into batches of about RUN_BATCH_BYTES.

    `append` opens a run when none is open, and another when the layout changes; `end` closes it.
    """

    def __init__(self, writer: RunWriter, partitioner: Partitioner) -> None:
        self.writer = writer
        self.partitioner = partitioner
        self._layout: Layout | None = None

    def append(self, layout: Layout, batch: pa.RecordBatch) -> None:
        """Sorted rows, behind what the run holds."""
        if layout != self._layout:
            self.end()
            self.writer.begin_run(layout.schema())
            self._layout = layout
        hashes = hashes_of(batch)
        pieces = Pieces.of(batch.columns, batch.num_rows, batch.nbytes, RUN_BATCH_BYTES, BATCH_ROWS_MAX)
        cuts = self.partitioner.cuts(hashes)
        for partition in np.flatnonzero(np.diff(cuts)):
            begin, last = int(cuts[partition]), int(cuts[partition + 1])
            while begin < last:
                end = pieces.end(begin, last)
                part = batch.slice(begin, end - begin)
                self.writer.append(int(partition), part, int(hashes[begin]), int(hashes[end - 1]))
                begin = end

    def end(self) -> None:
        """Close the run; the next rows begin another."""
        if self._layout is not None:
            self.writer.end_run()
            self._layout = None


class SortBuffer:
    """Rows of one layout, kept column by column so that joining them needs one column twice at most."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.rows = 0
        self.nbytes = 0
        """Of the rows alone."""
        self._hashes: list[Hashes] = []
        self._columns: list[list[pa.Array]] = [
            [] for _ in range(len(layout.key_types) + len(layout.payload_fields))
        ]

        self._column_bytes = [0] * len(self._columns)

    def add(self, hashes: Hashes, keys: Sequence[pa.Array], payload: Sequence[pa.Array]) -> None:
        self.rows += len(hashes)
        self.nbytes += hashes.nbytes
        self._hashes.append(hashes)
        for index, array in enumerate((*keys, *payload)):
            size_bytes = array.nbytes
            if array.get_total_buffer_size() > _PARENT_MAX * size_bytes + KIB:
                # A few rows of a large array (a slice) would keep all of it.
                array = array.take(pa.array(np.arange(len(array))))
            self._columns[index].append(array)
            self._column_bytes[index] += size_bytes
            self.nbytes += size_bytes

    @property
    def cost_bytes(self) -> int:
        """What the rows and their sort will take together: for narrow rows mostly the sort, for wide
        ones the largest column's second copy while it is joined."""
        return self.nbytes + max(self._column_bytes, default=0) + self.rows * ORDER_BYTES_PER_ROW

    def take_all(self) -> tuple[Hashes, list[pa.Array], list[pa.Array]]:
        """(hashes, key columns, payload columns), each in one piece; the buffer is empty afterwards."""
        hashes = self._hashes[0] if len(self._hashes) == 1 else np.concatenate(self._hashes)
        self._hashes.clear()
        joined: list[pa.Array] = []
        for column in self._columns:
            joined.append(column[0] if len(column) == 1 else pa.concat_arrays(column))
            column.clear()
        self.rows = self.nbytes = 0
        return hashes, joined[: self.layout.keys], joined[self.layout.keys :]


class RowCollector:
    """Collects rows as they are. `combine`, when given, folds each sorted run before it is written.

    Raises SpillFull when the disk is full. Not thread-safe; owned by one map task.
    """

    def __init__(
        self,
        sink: RunSink,
        budget_bytes: int,
        *,
        place: Place | None = None,
        combine: Callable[[Layout, pa.RecordBatch, NDArray[np.int64]], tuple[Layout, pa.RecordBatch]]
        | None = None,
    ) -> None:
        self.sink = sink
        self.budget_bytes = budget_bytes
        self.place = place
        self.combine = combine
        self.rows_added = 0
        self._buffer: SortBuffer | None = None

    def add(self, layout: Layout, keys: Sequence[pa.Array], payload: Sequence[pa.Array]) -> None:
        hashes = hash_columns(keys)
        if self.place is not None:
            hashes = self.place(layout, keys, hashes)
        large = sum(column.nbytes for column in (*keys, *payload)) >= self.budget_bytes // 2
        if self._buffer is not None and (large or self._buffer.layout != layout):
            self.flush()  # what is large is not copied to stand beside what is held
        if self._buffer is None:
            self._buffer = SortBuffer(layout)
        self._buffer.add(hashes, keys, payload)
        self.rows_added += len(hashes)
        if self._buffer.cost_bytes >= self.budget_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered as one run."""
        buffer, self._buffer = self._buffer, None
        if buffer is None or not buffer.rows:
            return
        layout, size_bytes = buffer.layout, buffer.nbytes
        hashes, keys, payload = buffer.take_all()
        ordering = layout.order(hashes, keys)
        # Gathered slice by slice, so that the buffer is never copied whole.
        for rows, starts in slices(ordering, [*keys, *payload], size_bytes):
            order = ordering.permutation[rows]
            columns = [gathered(column, order) for column in (*keys, *payload)]
            batch = layout.batch(hashes[order], columns[: layout.keys], columns[layout.keys :])
            if self.combine is None:
                self.sink.append(layout, batch)
            else:
                self.sink.append(*self.combine(layout, batch, starts))
        self.sink.end()

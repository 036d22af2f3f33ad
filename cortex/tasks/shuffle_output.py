"""A map attempt's run file: private while the task runs, committed with its counts at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cortex.errors import ValueTypeError
from cortex.shuffle.collector import Place, RunSink
from cortex.shuffle.keys import decode_keys
from cortex.shuffle.partitioner import Partitioner
from cortex.shuffle.run_schema import Layout
from cortex.storage.map_output_store import MapOutputStore


class Committed(NamedTuple):
    written_bytes: int
    raw_bytes: int
    """Of its batches, before compression: what all reduces together must have read of it."""
    partition_rows: tuple[int, ...]
    checksum: int


class ShuffleOutput:
    """`sink` is where collectors write runs; `commit` gives the file its name."""

    def __init__(self, store: MapOutputStore, attempt: str, partitions: int) -> None:
        self.partitioner = Partitioner(partitions)
        self._store = store
        self._attempt = attempt
        self._writer = store.create(attempt)
        self.sink = RunSink(self._writer, self.partitioner)

    @property
    def bytes_written(self) -> int:
        return self._writer.bytes_written

    def commit(self) -> Committed:
        checksum = self._writer.content_checksum
        summary = self._store.commit(self._writer, self._attempt)
        rows = [*summary.partition_rows] + [0] * (self.partitioner.count - len(summary.partition_rows))
        return Committed(summary.bytes, summary.raw_bytes, tuple(rows), checksum)

    def abort(self) -> None:
        self._writer.abort()


def user_placement(partitioner: Partitioner, choose: Callable[[Any, int], int]) -> Place:
    """A `Place` that asks a user's ``partition(key, n)``, once for each row."""

    def place(layout: Layout, keys: Sequence[pa.Array], hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        n = partitioner.count
        chosen = []
        for key in decode_keys(layout.key_type, keys):
            number = choose(key, n)
            if type(number) is not int or not 0 <= number < n:
                raise ValueTypeError(
                    f"partition({key!r}, {n}) gave {number!r}, which is no reducer",
                    cure=f"return an int from 0 to {n - 1}, for example modulo n",
                )
            chosen.append(number)
        return partitioner.place(hashes, np.array(chosen, dtype=np.int64))

    return place

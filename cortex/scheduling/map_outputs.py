"""Which attempt of each map made its output, where it is, and how many rows it has for each partition.

Rows are conserved: the rows that all maps say they wrote for a partition are what its reduce must
say it read. Reads follow map order, so the list of a partition's inputs is the same however the maps
were spread over nodes.
"""

from __future__ import annotations

from array import array

from cortex.errors import InternalError
from cortex.ids import JobId, attempt_id, task_id
from cortex.wire.messages import MapOutputRef, MapResult


class MapOutputs:
    """Outputs of the maps 0 .. maps-1 for the partitions 0 .. partitions-1."""

    def __init__(self, job: JobId, maps: int, partitions: int) -> None:
        self._job = job
        self._partitions = partitions
        self._numbers = array("H", bytes(2 * maps))
        self._nodes: list[str | None] = [None] * maps
        self._rows: list[array[int] | None] = [None] * maps
        self._checksums = array("Q", bytes(8 * maps))
        self._totals = [0] * partitions
        self._writers = [array("L") for _ in range(partitions)]
        """For each partition, the maps that wrote rows for it, as they came."""
        self._in_order = [True] * partitions

    def accept(self, result: MapResult, number: int, node: str) -> bool:
        """Take a map's output. False when it is a redo that differs from the output it replaces.

        Raises InternalError when the result does not have one row count for each partition.
        """
        index = result.map_index
        if len(result.partition_rows) != self._partitions or min(result.partition_rows, default=0) < 0:
            raise InternalError(
                f"map {index} counted rows for {len(result.partition_rows)} partitions,"
                f" not {self._partitions}, or fewer than none"
            )
        rows = array("Q", result.partition_rows)
        old = self._rows[index]
        same = old is None or (old == rows and self._checksums[index] == result.row_checksum)
        if old is None:
            self._add(index, rows)
        elif old != rows:
            self._remove(index, old)
            self._add(index, rows)
        self._rows[index] = rows
        self._checksums[index] = result.row_checksum
        self._numbers[index] = number
        self._nodes[index] = node
        return same

    def _add(self, index: int, rows: array[int]) -> None:
        for partition, count in enumerate(rows):
            if count:
                self._totals[partition] += count
                writers = self._writers[partition]
                if writers and writers[-1] > index:
                    self._in_order[partition] = False
                writers.append(index)

    def _remove(self, index: int, rows: array[int]) -> None:
        for partition, count in enumerate(rows):
            if count:
                self._totals[partition] -= count
                self._writers[partition].remove(index)

    def lose(self, index: int) -> None:
        """The output is gone. Its counts stay, to compare its redo with."""
        self._nodes[index] = None

    def is_current(self, index: int, number: int) -> bool:
        """Does this attempt's output exist and count?"""
        return self._nodes[index] is not None and self._numbers[index] == number

    def lost_with(self, node: str) -> list[int]:
        """The maps whose output is on `node`. Looks at every map: nodes are lost seldom."""
        return [i for i, holder in enumerate(self._nodes) if holder == node]

    def expected_rows(self, partition: int) -> int:
        return self._totals[partition]

    def all_rows(self) -> int:
        return sum(self._totals)

    def refs(self, partition: int) -> tuple[MapOutputRef, ...]:
        """The inputs of a reduce, in map order."""
        writers = self._writers[partition]
        if not self._in_order[partition]:
            writers = self._writers[partition] = array("L", sorted(writers))
            self._in_order[partition] = True
        job, numbers = self._job, self._numbers
        return tuple([MapOutputRef(i, attempt_id(task_id(job, "m", i), numbers[i])) for i in writers])

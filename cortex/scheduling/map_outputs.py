"""Which attempt of each map made its output, where it is, and how many rows there are for each partition.

Rows are conserved: the rows that all maps say they wrote for a partition are what its reduce must
say it read. For that the sums are kept, and of each map a hash of its counts, to compare its redo with:
a table of counts, a million maps times a thousand partitions, would be gigabytes. Only jobs that are
small enough keep it, so that a redo with other counts can take the place of what it replaces.

Maps are looked at in blocks of neighbours, `limits.MAP_BLOCKS_MAX` at most: for a block is known which
partitions *may* have rows from it, and, once all its maps are done, the message that says where its
outputs are. Reads follow map order, however the maps were spread over nodes.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterable

from cortex.errors import InternalError
from cortex.limits import MAP_BLOCKS_MAX, MAP_ROWS_KEPT_MAX
from cortex.scheduling.columns import zeros
from cortex.scheduling.packed_counts import PackedCounts
from cortex.wire.messages import MapBlock, MapLocations, MapResult, OutputNode

_NONE = -1  # in place of a node's number: the map has no output


class Redo(enum.Enum):
    """How an output compares with the one it replaces."""

    SAME = "the same"  # or there was none
    OTHER = "other"  # other rows; the counts are now those of the new one
    UNCOUNTED = "uncounted"  # other counts, and the old ones are not known: the sums are wrong now


class MapOutputs:
    """Outputs of the maps 0 .. maps-1 for the partitions 0 .. partitions-1, of one job."""

    def __init__(self, job: str, maps: int, partitions: int) -> None:
        self._job = job
        self._maps = maps
        self._partitions = partitions
        self._packed = PackedCounts(partitions)
        self._numbers = zeros("H", maps)
        self._node_of = array("i", [_NONE]) * maps
        self._made = bytearray(maps)
        """1: the map has had an output; the hashes of the last one follow."""
        self._row_hashes = zeros("q", maps)
        self._checksums = zeros("Q", maps)
        self._rows: dict[int, int] | None = {} if maps * partitions <= MAP_ROWS_KEPT_MAX else None
        self._sums = 0
        self._totals: tuple[array[int], bool] | None = None
        """The sums one by one, and whether every block may have rows for every partition; None: not made."""
        self._block_maps = max(1, -(-maps // MAP_BLOCKS_MAX))
        blocks = -(-maps // self._block_maps)
        self._full = bytes([1]) * partitions
        self._wrote = bytearray(blocks * partitions)
        """Block after block, a byte for each partition: 1 if it may have rows from a map of the block."""
        self._missing = array("I", (len(self._maps_of(block)) for block in range(blocks)))
        """Of each block, the maps without output."""
        self._blocks: list[MapBlock | None] = [None] * blocks
        self._block_versions = zeros("I", blocks)
        self.version = 0
        """Goes up whenever a block is complete (again)."""
        self._news: dict[tuple[int, int], MapLocations] = {}
        self._nodes: list[OutputNode] = []
        self._node_numbers: dict[str, int] = {}
        self._made_by: list[array[int]] = []
        """Of each node, the maps whose output it made; some of them may have been made anew elsewhere."""
        self._lost: dict[tuple[int, int], int] = {}
        """(map, attempt number) of an output that was lost -> version at that time."""

    # --- outputs come and go ---

    def accept(self, result: MapResult, number: int, node: OutputNode) -> Redo:
        """Take a map's output.

        Raises InternalError when the result does not have one row count for each partition.
        """
        index, rows, row_hash = result.map_index, self._rows_of(result), hash(result.partition_rows)
        redo = Redo.SAME
        if not self._made[index]:
            self._count(index, rows)
        elif self._row_hashes[index] != row_hash:
            redo = self._recount(index, rows)
        elif self._checksums[index] != result.row_checksum:
            redo = Redo.OTHER
        self._made[index] = 1
        self._row_hashes[index] = row_hash
        self._checksums[index] = result.row_checksum
        self._numbers[index] = number
        node_number = self._number_of(node)
        self._node_of[index] = node_number
        self._made_by[node_number].append(index)
        self._there(index)
        return redo

    def _rows_of(self, result: MapResult) -> int:
        try:
            return self._packed.pack(result.partition_rows)
        except InternalError as error:
            error.message = f"map {result.map_index} counted rows for partitions: {error.message}"
            raise

    def _count(self, index: int, rows: int) -> None:
        if self._rows is not None:
            self._rows[index] = rows
        self._sums += rows
        self._totals = None
        self._note(index // self._block_maps, rows)

    def _recount(self, index: int, rows: int) -> Redo:
        """Take these counts in place of those of the output before, if those are known."""
        if self._rows is None:
            return Redo.UNCOUNTED
        self._sums -= self._rows.pop(index)
        block = index // self._block_maps
        self._wrote[self._row_of(block)] = bytes(self._partitions)
        for other in self._maps_of(block):
            if other in self._rows:
                self._note(block, self._rows[other])
        self._count(index, rows)
        return Redo.OTHER

    def _note(self, block: int, rows: int) -> None:
        """Partitions that may have rows from the block."""
        place = self._row_of(block)
        before = self._wrote[place]
        if before != self._full:
            wrote = self._packed.positive(rows)
            either = int.from_bytes(before, "little") | int.from_bytes(wrote, "little")
            self._wrote[place] = either.to_bytes(self._partitions, "little")

    def lose(self, indices: Iterable[int]) -> None:
        """These outputs are gone. Their counts stay, to compare their redos with."""
        numbers, version, block_maps = self._numbers, self.version, self._block_maps
        for index in indices:
            self._lost[index, numbers[index]] = version
            self._node_of[index] = _NONE
            self._missing[index // block_maps] += 1
            self._blocks[index // block_maps] = None

    def lost_with(self, node: str) -> list[int]:
        """The maps whose output is on `node`, in order. It has none from now on."""
        number = self._node_numbers.pop(node, None)
        if number is None:
            return []
        made, self._made_by[number] = self._made_by[number], array("I")
        return sorted({index for index in made if self._node_of[index] == number})

    # --- questions ---

    def are_on(self, node: str) -> bool:
        """Is there an output on `node`?"""
        number = self._node_numbers.get(node)
        return number is not None and any(self._node_of[i] == number for i in self._made_by[number])

    def is_current(self, index: int, number: int) -> bool:
        """Does this attempt's output exist and count?"""
        return self._node_of[index] != _NONE and self._numbers[index] == number

    def was_input(self, index: int, number: int, version: int) -> bool:
        """Could a reduce that was leased at `version` have read this attempt's output?"""
        if not 0 <= index < self._maps:
            return False
        return self.is_current(index, number) or self._lost.get((index, number), -1) >= version

    def expected_rows(self, partition: int) -> int:
        return self._summed()[0][partition]

    def all_rows(self) -> int:
        return sum(self._summed()[0])

    def _summed(self) -> tuple[array[int], bool]:
        """Made once for all reduces that are leased with the same outputs."""
        if self._totals is None:
            self._totals = self._packed.unpack(self._sums), self._wrote.find(0) < 0
        return self._totals

    def spans(self, partition: int) -> tuple[int, ...]:
        """The inputs of a reduce (see `ReduceTask`): maps of all blocks that may have rows for it."""
        if self._summed()[1]:
            return (0, self._maps) if self._maps else ()
        spans: list[int] = []
        wrote = self._wrote[partition :: self._partitions]
        start = wrote.find(1)
        while start >= 0:
            end = wrote.find(0, start)
            end = len(wrote) if end < 0 else end
            spans += start * self._block_maps, min(end * self._block_maps, self._maps)
            start = wrote.find(1, end)
        return tuple(spans)

    def news(self, version: int, nodes: int, partial: bool = False) -> MapLocations | None:
        """What a node must be told that knows this version and so many nodes; None if nothing.

        Only while every map has its output, unless it may be `partial`. The same message for all nodes
        that know as much.
        """
        if version == self.version:
            return None
        news = self._news.get((version, nodes))
        if news is None:
            blocks = [b for b, at in zip(self._blocks, self._block_versions) if at > version]
            if None in blocks and not partial:
                raise InternalError("a reduce was leased while a map had no output")
            whole: tuple[MapBlock, ...] = tuple(b for b in blocks if b is not None)
            news = MapLocations(self._job, nodes, tuple(self._nodes[nodes:]), whole)
            self._news[version, nodes] = news
        return news

    @property
    def blocks(self) -> int:
        return len(self._blocks)

    @property
    def nodes(self) -> int:
        return len(self._nodes)

    # --- inside ---

    def _maps_of(self, block: int) -> range:
        return range(block * self._block_maps, min((block + 1) * self._block_maps, self._maps))

    def _row_of(self, block: int) -> slice:
        return slice(block * self._partitions, (block + 1) * self._partitions)

    def _number_of(self, node: OutputNode) -> int:
        number = self._node_numbers.get(node.node)
        if number is None:
            number = self._node_numbers[node.node] = len(self._nodes)
            self._nodes.append(node)
            self._made_by.append(array("I"))
        return number

    def _there(self, index: int) -> None:
        """A map has an output: if it was the last of its block, the block can be told of."""
        block = index // self._block_maps
        self._missing[block] -= 1
        if not self._missing[block]:
            self.version += 1
            self._news.clear()
            self._block_versions[block] = self.version
            self._blocks[block] = self._told(self._maps_of(block))

    def _told(self, maps: range) -> MapBlock:
        runs: list[int] = []
        redone = {}
        for index in maps:
            node, number = self._node_of[index], self._numbers[index]
            if runs and runs[-1] == node:
                runs[-2] += 1
            else:
                runs += 1, node
            if number:
                redone[index] = number
        return MapBlock(maps.start, tuple(runs), redone)

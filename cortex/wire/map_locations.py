"""What a node knows of where map outputs are, and which of them a reduce reads. Pure.

A job of a million maps has one table, sent to a node in blocks and only where it changed; a reduce
names ranges of maps. So neither the server's messages nor its decisions grow with maps times reduces.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from cortex.errors import ProtocolError
from cortex.ids import AttemptId, JobId, attempt_id, map_attempt, task_id
from cortex.wire.messages import MapBlock, MapLocations, OutputNode, ReduceTask


class MapOutput(NamedTuple):
    """The committed run file of one map."""

    map_index: int
    attempt: AttemptId
    node: int
    """The number of the node that has it."""


def map_outputs(blocks: Iterable[MapBlock], job: JobId) -> Iterator[MapOutput]:
    """The outputs that blocks name, in map order."""
    for block in blocks:
        first = block.first
        for count, node in pairs(block.runs):
            for index in range(first, first + count):
                number = block.redone.get(index, 0)
                yield MapOutput(index, attempt_id(task_id(job, "m", index), number), node)
            first += count


def names(blocks: Sequence[MapBlock], attempt: str) -> bool:
    """Is the output of this map attempt among those that blocks, in map order, name?"""
    found = map_attempt(attempt)
    if found is None:
        return False
    _, index, number = found
    place = bisect.bisect_right(blocks, index, key=lambda block: block.first) - 1
    if place < 0:
        return False
    block = blocks[place]
    return index < block.first + sum(block.runs[::2]) and block.redone.get(index, 0) == number


def pairs(flat: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(a, b), (c, d) of a, b, c, d."""
    return zip(flat[::2], flat[1::2])


class LocationTable:
    """One job's map outputs, as far as this node was told."""

    def __init__(self) -> None:
        self.nodes: list[OutputNode] = []
        """By number."""
        self._blocks: list[MapBlock] = []
        self._bounds: list[tuple[int, int]] = []
        """Of each block: its first map, and the one behind its last."""

    def update(self, message: MapLocations) -> None:
        """Raises ProtocolError for a message that does not follow those before it."""
        if message.first_node != len(self.nodes):
            raise ProtocolError(f"nodes from number {message.first_node} on came after {len(self.nodes)}")
        self.nodes.extend(message.nodes)
        blocks = {block.first: block for block in self._blocks}
        for block in message.blocks:
            if len(block.runs) % 2 or min(block.runs, default=0) < 0:
                raise ProtocolError(f"the outputs from map {block.first} on are not in pairs")
            if max(block.runs[1::2], default=-1) >= len(self.nodes):
                raise ProtocolError(f"a map output from map {block.first} on is at a node never named")
            blocks[block.first] = block
        self._blocks = [blocks[first] for first in sorted(blocks)]
        self._bounds = [(block.first, block.first + sum(block.runs[::2])) for block in self._blocks]

    def fill(self, task: ReduceTask) -> ReduceTask:
        """The task with its inputs. Raises ProtocolError if the table lacks some of them."""
        inputs: list[MapBlock] = []
        for start, end in pairs(task.spans):
            place = bisect.bisect_left(self._bounds, (start, start))
            at = start
            while at < end and place < len(self._bounds) and self._bounds[place][0] == at:
                inputs.append(self._blocks[place])
                at, place = self._bounds[place][1], place + 1
            if at != end:
                raise ProtocolError(
                    f"partition {task.partition} reads the outputs of maps {start} to {end - 1},"
                    f" and this node was not told where that of map {at} is"
                )
        return msgspec.structs.replace(task, inputs=tuple(inputs))

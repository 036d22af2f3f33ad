"""Which reduces a node will likely run, so that it fetches their inputs while maps still run. Pure.

The first reduces of a job, as many as all slots, are promised to nodes by their slots when the first maps
are done. A promise is a preference: a reduce goes to its node if that has room, and to any other when
there is nothing else to give. What a node is told of map outputs meanwhile comes in a few portions.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable

from cortex.limits import PREFETCH_PORTIONS


class Prefetch:
    """Of one job with so many reduces and blocks of map outputs."""

    def __init__(self, reduces: int, blocks: int) -> None:
        self._reduces = reduces
        self._portion = max(1, blocks // PREFETCH_PORTIONS)
        self._due_at = self._portion
        self._promised: dict[str, deque[int]] = {}
        self._ahead: dict[str, tuple[int, ...]] = {}
        self._owner: dict[int, str] = {}
        self._made = False
        self._free = 0
        """None before it is promised to nobody and ready, but for those that became free or ready again."""

    def due(self, blocks_told: int) -> bool:
        """Is it time for the next portion, now that so many blocks were completed (counting redone ones)?"""
        if blocks_told < self._due_at:
            return False
        self._due_at = blocks_told + self._portion
        return True

    def promise(self, nodes: Iterable[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
        """Give the first reduces to these nodes, (name, slots) each, once; later calls give nothing.

        One reduce a slot, in turns, so that each has its share when there are few.
        """
        if self._made:
            return {}
        self._made = True
        left = [(-slots, order, name) for order, (name, slots) in enumerate(nodes)]
        heapq.heapify(left)
        for index in range(min(self._reduces, -sum(slots for slots, _, _ in left))):
            slots, order, name = left[0]
            heapq.heapreplace(left, (slots + 1, order, name))
            self._promised.setdefault(name, deque()).append(index)
            self._owner[index] = name
        self._free = len(self._owner)
        self._ahead = {name: tuple(indices) for name, indices in self._promised.items()}
        return self._ahead

    def promised(self, node: str) -> tuple[int, ...]:
        """The reduces that it is to fetch the inputs of: also those that have begun by now."""
        return self._ahead.get(node, ())

    def choose(self, node: str, first: int, ready: Callable[[int], bool], size: int) -> int:
        """The reduce that `node` is to run next: its own, else the first that is promised to nobody, else
        `first`, the first of all. `ready` tells whether a reduce, of `size`, can be leased."""
        own = self._promised.get(node)
        while own:
            index = own.popleft()
            if self._owner.pop(index, None) is not None and ready(index):
                return index
        if first in self._owner:
            while self._free < size and not ready(self._free):
                self._free += 1
            if self._free < size:
                return self._free
            del self._owner[first]
        return first

    def forget(self, node: str) -> None:
        """The node is lost, or drained: what it was promised is anybody's."""
        self._ahead.pop(node, None)
        for index in self._promised.pop(node, ()):
            self._owner.pop(index, None)

"""Where a task stands, read from outside it: so that slow user code is told from code that hangs.

A task reports progress between blocks, and a user's function may take minutes over each of a block's
thousands of records. The loops over records therefore run over list iterators that are left here, and
the executor's pulse looks at how much is left of them: no cost to the loop, and exact to the record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import length_hint
from typing import Any


class Position:
    """Written by the task's thread, read by the pulse's."""

    def __init__(self) -> None:
        self._turn = 0
        self._source: Iterator[Any] = iter(())

    def over(self, items: Sequence[Any]) -> Iterator[Any]:
        """An iterator over `items`, followed from now on."""
        source = iter(items)
        self._source = source
        self._turn += 1
        return source

    def step(self) -> None:
        """A step that no iterator shows."""
        self._turn += 1

    def __call__(self) -> tuple[int, int]:
        """Changes whenever the task goes on."""
        return self._turn, length_hint(self._source, 0)

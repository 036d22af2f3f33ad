"""Results of calls that lie at the nodes that made them, until those who submitted the calls have them.

Small ones are kept there because their message may be lost on its way; of large ones (`Attached`) the message
is not all there is. Pure bookkeeping.
"""

from __future__ import annotations

from collections import Counter

from cortex.wire.messages import Cell, CellDone, Piece

_Key = tuple[str, int, int]
"""Source and number of a cell, and the first call of the result."""


class ResultsLeft:
    def __init__(self) -> None:
        self._results: dict[_Key, tuple[str, Cell, CellDone]] = {}
        """-> the node, the cell, to run it again, and the result."""
        self._attached: dict[str, _Key] = {}
        """By the names of their files."""
        self._attached_at: Counter[str] = Counter()
        """Node -> how many of them."""

    def __contains__(self, done: CellDone) -> bool:
        return (done.source, done.cell, done.start) in self._results

    def add(self, node: str, cell: Cell, done: CellDone) -> None:
        key = done.source, done.cell, done.start
        self._results[key] = node, cell, done
        if done.attached is not None:
            self._attached[done.attached.name] = key
            self._attached_at[node] += 1

    def taken(self, piece: Piece) -> str:
        """It need not be kept any more; gives the node that has, "" if none does."""
        return self._remove((piece.source, piece.cell, piece.start))[0]

    def lost(self, name: str) -> tuple[Cell, CellDone] | None:
        """The file of this name cannot be read: the calls of this result are to be made again."""
        key = self._attached.get(name)
        if key is None:
            return None
        _, cell, done = self._results[key]
        self._remove(key)
        return cell, done

    def lost_with(self, node: str) -> list[tuple[Cell, CellDone]]:
        """The same for all that lay at a node; small results were in their messages."""
        gone = [(key, each) for key, each in self._results.items() if each[0] == node]
        for key, _ in gone:
            self._remove(key)
        return [(cell, done) for _, (_, cell, done) in gone if done.attached is not None]

    def node_of(self, name: str) -> str | None:
        """Where the file of this name lies."""
        key = self._attached.get(name)
        return None if key is None else self._results[key][0]

    def files_at(self, node: str) -> int:
        return self._attached_at[node]

    def _remove(self, key: _Key) -> tuple[str, CellDone | None]:
        node, _, done = self._results.pop(key, ("", None, None))
        if done is not None and done.attached is not None:
            self._attached_at[node] -= 1
            del self._attached[done.attached.name]
        return node, done

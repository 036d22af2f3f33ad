"""The parts of a job's result: which task made which, and where they lie. Pure.

A part is of one task: a reduce, or a map of a job without reduces. It lies on the node that made it, unless
the client gave a folder that all write to. What is lost is taken out, until its task has run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from cortex.errors import ErrorReport, ResultsLost
from cortex.units import format_count
from cortex.wire.messages import OutputPart

_LOST_SHOWN = 10  # parts that an error names


class ResultParts:
    """`on_nodes`: each lies on the node that made it."""

    def __init__(self, on_nodes: bool) -> None:
        self._on_nodes = on_nodes
        self._of: dict[int, tuple[OutputPart, ...]] = {}
        self._made_at: dict[str, list[int]] = {}
        """Node -> tasks whose parts it made; some may have been made anew elsewhere."""

    def take(self, task: int, node: str, parts: tuple[OutputPart, ...]) -> None:
        """In place of those that the task had made before."""
        if self._on_nodes:
            parts = tuple(msgspec.structs.replace(part, node=node) for part in parts)
            self._made_at.setdefault(node, []).append(task)
        self._of[task] = parts

    def take_out(self, tasks: Iterable[int]) -> None:
        for task in tasks:
            del self._of[task]

    def in_order(self) -> tuple[OutputPart, ...]:
        """By task."""
        return tuple(part for task in sorted(self._of) for part in self._of[task])

    @property
    def tasks(self) -> int:
        """That have theirs."""
        return len(self._of)

    def lost_with(self, node: str) -> list[int]:
        """The tasks with parts on `node`, in order. It has none from now on."""
        made = sorted(set(self._made_at.pop(node, ())))
        return [task for task in made if self._is_on(node, task)]

    def are_on(self, node: str) -> bool:
        return any(self._is_on(node, task) for task in self._made_at.get(node, ()))

    def _is_on(self, node: str, task: int) -> bool:
        return any(part.node == node for part in self._of.get(task, ()))

    def made_by(self, staged_as: str) -> list[int]:
        """The tasks with the part of this name: none where it is not of the result (any more)."""
        return [
            task for task, parts in self._of.items() if any(part.staged_as == staged_as for part in parts)
        ]

    def lost_for_good(self, tasks: Sequence[int]) -> ErrorReport:
        """The parts of these tasks cannot be made anew."""
        lost = [part for task in tasks for part in self._of[task]]
        names = ", ".join(part.name for part in lost[:_LOST_SHOWN])
        return ResultsLost(
            f"{format_count(len(lost))} of {format_count(len(self.in_order()))} parts of the result were lost"
            " with the node that kept them, and the map outputs to make them from are not kept any more",
            cure="run the job again; fetch a result soon, or write it to a path that all nodes share:"
            " --output-on nodes",
            details={"node": lost[0].node, "parts": names + (", ..." if len(lost) > _LOST_SHOWN else "")},
        ).report()

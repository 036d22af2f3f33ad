"""Which of a job's ready tasks a node gets: those whose input it has first, others' after a short delay.
Pure.

Tasks that read from the same nodes make a *set*; neighbours of one set are a segment, so that a million tasks
need no entry each. A node with room takes the first ready task of its sets, or one that any node is as good
for. If there is none it is passed over for LOCALITY_DELAY_S, each node for itself (delay scheduling), and
then takes tasks of the set with the most that wait, until it finds some of its own again. So a holder that is
slow, or stuck, keeps what it holds only while it keeps up.
"""

from __future__ import annotations

import bisect
import heapq
import re
from array import array
from collections.abc import Sequence
from itertools import islice

from cortex.limits import LOCALITY_DELAY_S
from cortex.scheduling.task_state import TaskState, TaskTable

LOST, ANY = 0, 1
"""Sets without nodes: of tasks that nobody can run now, and that anybody can."""
_READY = re.compile(bytes([TaskState.READY]) + b"+")
_COMPARED = 64  # sets that are looked at for the one with the most tasks: they may be thousands


class Placement:
    """Of the tasks of `table`, which tells of each that becomes ready or is leased. Segment i is of the tasks
    from `starts[i]` to before `starts[i + 1]`, and in set `set_of[i]`; `sets[n]` are the nodes of set n."""

    def __init__(
        self, table: TaskTable, sets: Sequence[tuple[str, ...]], starts: array[int], set_of: array[int]
    ) -> None:
        self._table = table
        self._sets = sets
        self._starts = starts
        self._set_of = set_of
        self._count = [0] * len(sets)
        """Ready tasks of each set."""
        self._waiting: dict[int, None] = {}
        """Sets that have some and that any node may read from, as far as is known."""
        self._own: dict[str, dict[int, None]] = {}
        """Node -> its sets that have some, as far as is known."""
        self._heaps: dict[int, list[tuple[int, int]]] = {}
        self._in_vain: dict[str, float] = {}
        """Node -> since when it finds nothing of its own."""
        self._watch()

    def _watch(self) -> None:
        self._table.watcher = self
        for run in _READY.finditer(self._table.states):
            self.ready(*run.span())

    # --- what the table tells ---

    def ready(self, start: int, end: int) -> None:
        """These tasks can be leased."""
        segment = bisect.bisect_right(self._starts, start) - 1
        while start < end:
            after = self._starts[segment + 1] if segment + 1 < len(self._starts) else end
            stop, number = min(end, after), self._set_of[segment]
            heapq.heappush(self._heaps.setdefault(number, []), (start, stop))
            if not self._count[number]:
                self._open(number)
            self._count[number] += stop - start
            start, segment = stop, segment + 1

    def leased(self, index: int) -> None:
        """This task is not ready any more."""
        self._count[self._set_of[bisect.bisect_right(self._starts, index) - 1]] -= 1

    def _open(self, number: int) -> None:
        if number != LOST:
            self._waiting[number] = None
        for node in self._sets[number]:
            self._own.setdefault(node, {})[number] = None

    # --- choosing ---

    def choose(self, node: str, now: float) -> int | None:
        """The task that `node` gets now; None: nothing, for now."""
        own = self._own.get(node, {})
        while own:
            number = next(iter(own))
            found = self._first(number)
            if found is not None:
                self._in_vain.pop(node, None)
                return found
            del own[number]
        found = self._first(ANY)
        if found is not None:
            return found
        since = self._in_vain.get(node)
        if since is not None and now - since < LOCALITY_DELAY_S:
            return None
        others = self._largest()
        if others is None:
            return None
        if since is None:
            self._in_vain[node] = now
            return None
        return self._first(others)

    @property
    def lost_count(self) -> int:
        """Tasks that wait for a node that is lost."""
        return self._count[LOST]

    @property
    def lost(self) -> int | None:
        """The first task that waits for a node that is lost."""
        return self._first(LOST)

    def _largest(self) -> int | None:
        best = None
        for number in list(islice(self._waiting, _COMPARED)):
            if not self._count[number]:
                del self._waiting[number]
            elif best is None or self._count[number] > self._count[best]:
                best = number
        if best is None and self._waiting:
            return self._largest()  # these were all used up
        return best

    def _first(self, number: int) -> int | None:
        """The set's ready task with the lowest number."""
        heap, states = self._heaps.get(number, []), self._table.states
        while heap and self._count[number]:
            start, end = heap[0]
            at = states.find(TaskState.READY, start, end)
            if at == start:
                return start
            if at < 0:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (at, end))
        return None

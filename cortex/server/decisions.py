"""The server's scheduler: what happens is told to it here, and what it decides is carried out.

The one place that has the scheduler, so that one that breaks (a bug) can be replaced: each of its jobs then
fails by name, rather than hang, and the nodes stay. All others look at it through `scheduler`, each time
anew.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping

from twisted.logger import Logger

from cortex.errors import ErrorReport, InternalError
from cortex.metric_text import Histogram
from cortex.scheduling.events import Event, Instruction, NodeJoined
from cortex.scheduling.run import Run
from cortex.scheduling.scheduler import Scheduler
from cortex.scheduling.tally import Tally
from cortex.wire.messages import NodeHello

_log = Logger()
DECISION_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5)
"""Seconds: a decision is promised to take 10 ms at most."""


class Decisions:
    """`make(tally)` makes a scheduler without jobs, which counts on in the tally. `carry_out` obeys one
    instruction. `broken(runs, error)`: these jobs, under way or kept, have ended with the scheduler that had
    them. `nodes()`: those that are here."""

    def __init__(
        self,
        clock: Callable[[], float],
        make: Callable[[Tally | None], Scheduler],
        carry_out: Callable[[Instruction], None],
        broken: Callable[[Mapping[str, Run], ErrorReport], None],
        nodes: Callable[[], Iterable[NodeHello]],
    ) -> None:
        self._clock = clock
        self._make = make
        self._carry_out = carry_out
        self._broken = broken
        self._nodes = nodes
        self._scheduler = make(None)
        self.seconds = Histogram(DECISION_BOUNDS)

    @property
    def scheduler(self) -> Scheduler:
        """To look at."""
        return self._scheduler

    def handle(self, event: Event) -> None:
        began_at = self._clock()
        try:
            instructions = self._scheduler.handle(event, began_at)
        except Exception:
            self._start_over(traceback.format_exc())
            return
        self.seconds.add(self._clock() - began_at)
        for instruction in instructions:
            self._carry_out(instruction)

    def _start_over(self, cause: str) -> None:
        _log.critical("the scheduler failed: {cause}", cause=cause)
        error = InternalError("the scheduler failed", details={"traceback": cause}).report()
        before = self._scheduler
        self._scheduler = self._make(before.tally)
        self._broken({**before.jobs, **before.kept}, error)
        for hello in self._nodes():
            self._scheduler.handle(NodeJoined(hello), self._clock())

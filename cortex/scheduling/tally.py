"""What the scheduler has counted since the server began, for its metrics. Only ever goes up. Pure.

Attempts of every job count, also those of jobs that failed later; what an earlier life of the server did does
not. Causes of failures come from nodes: codes that cortex has not are counted as "other", so that nobody can
make labels.
"""

from __future__ import annotations

from collections import Counter

from cortex.errors import ERROR_CODES, ErrorReport
from cortex.scheduling.progress import FIELDS, stats_tuple
from cortex.wire.messages import MapResult, ReduceResult, TaskFinished


class Tally:
    def __init__(self) -> None:
        self.jobs_submitted = 0
        self.jobs_ended: Counter[str] = Counter()
        """done, failed, cancelled."""
        self.finished: Counter[str] = Counter()
        """Attempts accepted, by stage."""
        self.failed: Counter[tuple[str, str]] = Counter()
        """Attempts that failed, by stage and cause."""
        self.abandoned: Counter[str] = Counter()
        """Attempts that were lost with their node, by stage."""
        self.task_seconds: dict[str, float] = {}
        self.sums: dict[str, list[int]] = {}
        """Of finished attempts, by stage: in the order of `progress.FIELDS`."""
        self.calls = self.calls_failed = 0
        """Of compute jobs that have ended: calls whose result was delivered; those of them that failed."""
        self.heartbeats = 0
        self.nodes_lost = 0

    def task_finished(self, stage: str, done: TaskFinished) -> None:
        self.finished[stage] += 1
        self.task_seconds[stage] = self.task_seconds.get(stage, 0.0) + done.seconds
        if isinstance(done.result, MapResult | ReduceResult):
            sums = self.sums.setdefault(stage, [0] * len(FIELDS))
            self.sums[stage] = [a + b for a, b in zip(sums, stats_tuple(done.result.stats))]

    def task_failed(self, stage: str, error: ErrorReport) -> None:
        self.failed[stage, error.code if error.code in ERROR_CODES else "other"] += 1

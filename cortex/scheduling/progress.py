"""What a job has done so far: sums by stage, counters, the slowest task; and the messages that tell it.

Only accepted attempts count, and a redo replaces what the lost map had added. What attempts have
done since their last heartbeat is added to progress, never to the report.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from operator import add, attrgetter, sub
from typing import Protocol

import msgspec

from cortex.scheduling.columns import zeros
from cortex.scheduling.leases import CALLS, COMMIT, MAP, PLAN, REDUCE, SCAN, Running
from cortex.wire.messages import Counters, InputOrigin, Locality, StageProgress, TaskStats, TaskSummary

FIELDS = ("rows_in", "bytes_in", "rows_out", "bytes_out", "spilled_bytes", "shuffled_bytes", "groups")
_in_order = attrgetter(*FIELDS)
_NO_COUNTERS = msgspec.msgpack.encode({})
ROWS_IN, BYTES_IN, ROWS_OUT, BYTES_OUT, SPILLED, SHUFFLED, GROUPS = range(7)


def stats_tuple(stats: TaskStats) -> tuple[int, ...]:
    return _in_order(stats)


def with_one_more(sums: Locality, origin: InputOrigin) -> Locality:
    """Where the input of a job's maps came from, with that of one more map."""
    return Locality(
        sums.local_maps + (not origin.node_bytes and not origin.client_bytes),
        sums.local_bytes + origin.local_bytes,
        sums.streamed_maps + (origin.node_bytes > 0 and not origin.client_bytes),
        sums.streamed_bytes + origin.node_bytes,
        sums.client_maps + (origin.client_bytes > 0),
        sums.client_bytes + origin.client_bytes,
    )


class Counts(Protocol):
    """Of the tasks of a stage, or of calls: a `TaskTable` is one."""

    @property
    def total(self) -> int: ...
    @property
    def done(self) -> int: ...
    @property
    def leased(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def finished(self) -> bool: ...
    @property
    def open_ended(self) -> bool: ...


class StageTotals:
    """The sums of one stage. `bytes_total` is 0 while unknown."""

    def __init__(self, stage: str, table: Counts) -> None:
        self.stage = stage
        self.table = table
        self.bytes_total = 0
        self.bytes_done = 0
        self.rows_total = 0
        """Rows that the reduces will read; 0 until all maps are done."""
        self.sums = [0] * len(FIELDS)
        self.live = [0] * len(FIELDS)
        """Of running attempts, as of their last heartbeats."""
        self.began_at: float | None = None
        self.ended_at: float | None = None

    def add(self, stats: Iterable[int], sign: int = 1) -> None:
        """`sign` -1: what was added is taken back."""
        self.sums = list(map(add if sign == 1 else sub, self.sums, stats))

    def change_live(self, running: Running, stats: TaskStats) -> None:
        if stats == running.stats:
            return
        change = zip(self.live, stats_tuple(stats), stats_tuple(running.stats))
        self.live = [live + now - before for live, now, before in change]
        running.stats = stats

    def seconds(self, now: float) -> float:
        if self.began_at is None:
            return 0.0
        return (now if self.ended_at is None else self.ended_at) - self.began_at

    def progress(self, now: float) -> StageProgress:
        """A stage's bytes never pass its total: a bar over 100 % would be a lie about the end."""
        if self.stage == REDUCE:
            # Bytes merged are not bytes written by the maps; rows are the same on both sides.
            rows = self.sums[ROWS_IN] + self.live[ROWS_IN]
            bytes_done = self.bytes_total * rows // self.rows_total if self.rows_total else 0
        else:
            bytes_done = self.bytes_done + self.live[BYTES_IN]
        if self.table.finished and self.table.total:
            bytes_done = self.bytes_total
        return StageProgress(
            self.stage,
            self.table.done,
            self.table.total,
            self.table.leased,
            min(bytes_done, self.bytes_total),
            self.bytes_total,
            self.sums[ROWS_IN] + self.live[ROWS_IN],
            self.sums[ROWS_OUT] + self.live[ROWS_OUT],
            self.seconds(now),
            self.table.open_ended,
        )


class AddedStats:
    """What each accepted task of a stage added, kept so that its redo can replace it: 57 bytes a task.

    A lost map still counts until then: reduces may have read it, and the job may end before its redo.
    """

    def __init__(self, tasks: int) -> None:
        self._values = zeros("q", len(FIELDS) * tasks)
        self._there = bytearray(tasks)
        self._counters: dict[int, bytes] = {}
        """Encoded, which takes a fifth of the memory."""

    def replace(
        self, index: int, stats: tuple[int, ...], counters: Counters
    ) -> tuple[tuple[int, ...], Counters] | None:
        """Keep what task `index` added; gives what it had added before, if it had."""
        width = len(FIELDS)
        place = slice(index * width, (index + 1) * width)
        old = None
        if self._there[index]:
            old = tuple(self._values[place]), self._decode(self._counters.pop(index, _NO_COUNTERS))
        self._there[index] = 1
        self._values[place] = array("q", stats)
        if counters:
            self._counters[index] = msgspec.msgpack.encode(counters)
        return old

    @staticmethod
    def _decode(encoded: bytes) -> Counters:
        return msgspec.msgpack.decode(encoded, type=Counters)


class Progress:
    """All stages of a job, its counters and its slowest task."""

    def __init__(self) -> None:
        self.stages: dict[str, StageTotals] = {}
        self.counters: Counters = {}
        self.failed_attempts = 0
        self.slowest: TaskSummary | None = None

    def open_stage(self, stage: str, table: Counts, bytes_total: int = 0) -> StageTotals:
        totals = self.stages[stage] = StageTotals(stage, table)
        totals.bytes_total = bytes_total
        return totals

    def merge_counters(self, counters: Counters, sign: int = 1) -> None:
        for group, names in counters.items():
            into = self.counters.setdefault(group, {})
            for name, count in names.items():
                into[name] = into.get(name, 0) + sign * count

    def is_slowest(self, seconds: float) -> bool:
        return self.slowest is None or seconds > self.slowest.seconds

    def stage_messages(self, now: float) -> tuple[StageProgress, ...]:
        order = (PLAN, SCAN, MAP, REDUCE, COMMIT, CALLS)
        return tuple(self.stages[s].progress(now) for s in order if s in self.stages)

    def total(self, field: int, live: bool = False) -> int:
        return sum(s.sums[field] + (s.live[field] if live else 0) for s in self.stages.values())

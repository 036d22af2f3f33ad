"""Which scan of a job's files is next, and how far scans may be ahead of the maps that wait for them. Pure.

Files of the same nodes make a *lane* and are scanned one after the other; those of others beside them. The
scans of a file are cut in order (`scan_chain`), the next one when the one before has begun, so that one scan
a lane waits to be leased. Splits that are scanned, and whose maps have not begun, are counted: there are
about SCAN_AHEAD_PER_SLOT of them a slot, so that maps find their input still in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from cortex.job.plan import InputPlan, Split
from cortex.limits import SCAN_AHEAD_PER_SLOT, SCAN_SPLITS_PER_TASK
from cortex.scheduling.scan_chain import Chain, ScanPlan
from cortex.scheduling.task_state import TaskEvent, TaskState, TaskTable
from cortex.wire.messages import ScanResult, ScanTask


class ScanTurns:
    """Of a plan; `first_number`: see `TaskTable`. `open` before anything is leased."""

    def __init__(self, plan: InputPlan, first_number: int) -> None:
        self._plan = plan
        self._scans = ScanPlan(plan)
        tasks = self._scans.tasks
        self.table = TaskTable(len(plan.splits) if tasks else 0, tasks, first_number)
        self._lanes: dict[int, deque[int]] = {}
        """Files whose first scan was not cut, by who has them: a scan of each lane is ready."""
        self._lane_of: Mapping[int, int] = {}
        self.ahead = 0
        """Splits of scans that have begun, and of maps that have not."""
        self._maps_begun = bytearray(len(plan.tasks))

    @property
    def chains(self) -> dict[int, Chain]:
        """By file."""
        return self._scans.chains

    @property
    def bytes_total(self) -> int:
        return self._scans.bytes_total

    # --- lanes ---

    def open(self, lane_of: Mapping[int, int]) -> list[range]:
        """Begin with these lanes, file -> lane; all others are in lane 0. Gives maps that need no scan."""
        self._lane_of = lane_of
        for file in self._scans.chains:
            self._lanes.setdefault(lane_of.get(file, 0), deque()).append(file)
        for lane in self._lanes:
            self._open_chain(lane)
        return [self.maps_of(splits) for splits in self._scans.unscanned]

    def _open_chain(self, lane: int) -> None:
        """The first scan of a lane's next file is there to be leased."""
        files = self._lanes.get(lane, ())
        while files:
            file = files.popleft()
            if file not in self._scans.last_cut and self._cut(file):
                return

    def _cut(self, file: int) -> bool:
        """The next scan of a file is there to be leased; False if there is none."""
        index = self._scans.cut_next(file)
        if index is not None:
            self.table.apply(index, TaskEvent.NEEDS_MET)
        return index is not None

    # --- how far ahead ---

    def may_be_leased(self, slots: int) -> int:
        """About how many scans."""
        splits = max(0, SCAN_AHEAD_PER_SLOT * slots - self.ahead)
        return min(splits // SCAN_SPLITS_PER_TASK, self.table.waiting)

    def is_due(self, slots: int, maps_wait: bool) -> bool:
        """Is the first scan that is ready to be leased, before the maps that are ready?"""
        scan = self.table.first_ready()
        return scan is not None and (
            self.ahead < SCAN_AHEAD_PER_SLOT * slots
            or not self._scans.chunks[scan].fresh
            # One map may need more splits than the distance: nothing else would move then.
            or (not maps_wait and not self.table.leased)
        )

    # --- tasks ---

    def issue(self, index: int) -> ScanTask:
        """A scan is leased."""
        if self._scans.chunks[index].fresh:
            self._begin(index)
        return self._scans.issue(index)

    def _begin(self, index: int) -> None:
        chunk = self._scans.chunks[index]
        chunk.fresh = False
        self.ahead += chunk.count
        if not self._cut(chunk.chain.file):
            self._open_chain(self._lane_of.get(chunk.chain.file, 0))

    def catch_up(self, index: int) -> None:
        """An earlier life of the server has leased this scan. Those of a file are cut and begun in order: the
        ones before it have been as well."""
        file = self._plan.splits.file_of(index)
        if file not in self._scans.chains:
            return
        if file not in self._scans.last_cut:
            self._cut(file)
        while (cut := self._scans.last_cut[file]) <= index:
            chunk = self._scans.chunks.get(cut)
            if chunk is None or not chunk.fresh:
                return
            self._begin(cut)

    def finish(self, index: int, task: ScanTask, result: ScanResult) -> tuple[range, int]:
        """Take a result. Gives the splits that are known now, and the bytes that are scanned for good: fewer
        where some have to be scanned again, with the state that is known by now.

        Raises InternalError when the result does not fit the task.
        """
        known, again = self._scans.finish(index, task, result)
        scanned = task.boundaries[-1] - task.boundaries[0]
        if again is not None:
            scanned -= self._scans.bytes_of(again)
            if self.table.state(again) is TaskState.DONE:
                self.table.apply(again, TaskEvent.LOSE)
            else:
                self.table.total += 1
                self.table.apply(again, TaskEvent.NEEDS_MET)
        return known, scanned

    # --- maps ---

    def maps_of(self, splits: range) -> range:
        """The maps that become ready with these, as they needed no others. A map at either end may need
        others as well."""
        tasks = self._plan.tasks
        first, last = tasks.group_of(splits.start), tasks.group_of(splits.stop - 1)
        if not all(map(self._scans.is_known, tasks[first])):
            first += 1
        if last >= first and not all(map(self._scans.is_known, tasks[last])):
            last -= 1
        return range(first, max(first, last + 1))

    def begin_map(self, index: int) -> None:
        """A map is leased: its splits are not ahead any more."""
        if not self._maps_begun[index]:
            self._maps_begun[index] = 1
            if self._scans.chains:
                self.ahead -= sum(map(self._scans.is_scanned, self._splits_of(index)))

    def splits_for(self, index: int) -> tuple[Split, ...]:
        """What a map reads, with the states that its splits begin and end in."""
        return tuple(map(self._scans.fill, self._splits_of(index)))

    def _splits_of(self, index: int) -> Iterable[Split]:
        splits = self._plan.tasks[index]
        return self._plan.splits[splits.start : splits.stop]

"""What the maps and reduces of a job have made, and that nothing of it is lost or counted twice. Pure.

Of every task the last accepted result counts, in place of the one before. Rows are conserved: a reduce reads
as many as all maps wrote for its partition, and all reduces as many bytes as all maps. The rows of all tasks
of a stage are of one kind, also of tasks whose rows never meet. Where that is not so, the job fails by name:
what is raised is its error.

Maps whose output is lost are made again. Which they are is decided here (`to_redo`); the job does it.
"""

from __future__ import annotations

import msgspec

from cortex.errors import CortexError, ErrorReport, RowsLost
from cortex.ids import map_attempt
from cortex.job.output_types import OutputTypes
from cortex.job.plan import InputPlan
from cortex.limits import LOST_REDOS_MAX
from cortex.scheduling.leases import MAP, REDUCE, Running
from cortex.scheduling.map_outputs import MapOutputs, Redo
from cortex.scheduling.progress import BYTES_IN, BYTES_OUT, AddedStats, Progress, stats_tuple
from cortex.scheduling.result_parts import ResultParts
from cortex.scheduling.task_words import task_words
from cortex.units import format_count
from cortex.wire.messages import Counters, MapResult, ReduceResult


class JobAccounts:
    """Of a job with this plan. What is counted goes into `progress`, what parts there are into `parts`."""

    def __init__(
        self, job: str, plan: InputPlan, map_only: bool, progress: Progress, parts: ResultParts
    ) -> None:
        self._job = job
        self._plan = plan
        self._map_only = map_only
        self._progress = progress
        self._parts = parts
        maps = len(plan.tasks)
        self.outputs = MapOutputs(job, 0 if map_only else maps, plan.reducers)
        self._map_stats = AddedStats(maps)
        self._reduce_stats = AddedStats(0 if map_only else plan.reducers)
        self._types = {MAP: OutputTypes(), REDUCE: OutputTypes()}
        self._redos: dict[int, int] = {}

    # --- results ---

    def accept_map(self, running: Running, result: MapResult) -> Redo:
        """Where its output lies from now on, and how that compares with the one it replaces. `count_map`
        afterwards, unless the job fails by the difference."""
        self._join_types(running, result.types)
        if not self._map_only:
            return self.outputs.accept(result, running.number, running.output_node)
        self._parts.take(running.index, running.node, result.parts)
        return Redo.SAME

    def count_map(self, index: int, result: MapResult) -> None:
        length = self._plan.splits.bytes_of(self._plan.tasks[index])
        stats = stats_tuple(result.stats)
        replaced = self._map_stats.replace(index, stats, result.counters)
        if replaced is not None:
            self._add_map(length, *replaced, -1)
        self._add_map(length, stats, result.counters, 1)

    def _add_map(self, length: int, stats: tuple[int, ...], counters: Counters, sign: int) -> None:
        self._progress.merge_counters(counters, sign)
        totals = self._progress.stages[MAP]
        totals.add(stats, sign)
        totals.bytes_done += sign * length
        if not self._map_only:
            reduce_totals = self._progress.stages[REDUCE]
            reduce_totals.bytes_total += sign * stats[BYTES_OUT]

    def accept_reduce(self, running: Running, result: ReduceResult) -> None:
        if result.stats.rows_in != running.expected_rows:
            raise RowsLost(
                f"partition {running.index}: the maps wrote {format_count(running.expected_rows)} rows for it"
                f" and its reduce read {format_count(result.stats.rows_in)}",
                cure="this is a bug in cortex; please report it with the job",
                details={"attempt": running.attempt},
            )
        self._join_types(running, result.types)
        self._parts.take(running.index, running.node, result.parts)
        totals, stats = self._progress.stages[REDUCE], stats_tuple(result.stats)
        replaced = self._reduce_stats.replace(running.index, stats, result.counters)
        if replaced is not None:
            totals.add(replaced[0], -1)
            self._progress.merge_counters(replaced[1], -1)
        totals.add(stats)
        self._progress.merge_counters(result.counters)

    def _join_types(self, running: Running, types: OutputTypes) -> None:
        try:
            self._types[running.stage] = self._types[running.stage].joined(types)
        except CortexError as error:
            error.details = {"found in": task_words(self._plan, running), **error.details}
            raise

    def check_bytes(self) -> None:
        """As many bytes as all maps wrote have reached reduces. Rows were compared partition by partition."""
        if self._map_only:
            return
        stages = self._progress.stages
        wrote, read = stages[MAP].sums[BYTES_OUT], stages[REDUCE].sums[BYTES_IN]
        if wrote != read:
            raise RowsLost(
                f"the maps wrote {format_count(wrote)} bytes and the reduces read {format_count(read)}",
                cure="this is a bug in cortex; please report it with the job",
            )

    # --- map outputs that are lost ---

    def lost_input(self, running: Running, error: ErrorReport) -> tuple[int, int] | None:
        """The map attempt whose output a reduce misses, as (map, number), if it may have been an input."""
        named = map_attempt(error.details.get("attempt", ""))
        if named is None or named[0] != self._job:
            return None
        _, index, number = named
        return (index, number) if self.outputs.was_input(index, number, running.outputs_version) else None

    def to_redo(self, lost: tuple[int, int], error: ErrorReport) -> list[int] | ErrorReport:
        """The maps to be made again: this one, with all that its node has, if a reduce can get nothing from
        there. None if that is known already, and is under way or done. Or the error that ends the job, as it
        was lost too often."""
        index, number = lost
        if not self.outputs.is_current(index, number):
            return []
        indices = [index]
        if error.details.get("unreachable"):
            indices = sorted({index, *self.outputs.lost_with(error.details.get("holder", ""))})
        for each in indices:
            self._redos[each] = self._redos.get(each, 0) + 1
        if self._redos[index] > LOST_REDOS_MAX:
            details = {**error.details, "redone": f"{LOST_REDOS_MAX} times"}
            return msgspec.structs.replace(error, details=details)
        return indices

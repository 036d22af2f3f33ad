"""One job on its way: plan -> (scan) -> map -> reduce, and what to do when something fails.

`JobRun` decides which task is next and what a result means. It never speaks to a node: the Scheduler
asks `next_task` when a node has room, hands over what nodes report, and looks at `state` and
`take_revoked` afterwards. Every method is O(1) in the number of tasks, but for the start of a stage,
for a lost node, and for the list of inputs that a reduce is sent.
"""

from __future__ import annotations

import os
import traceback

import msgspec

from cortex.errors import CortexError, ErrorReport, Fault, InternalError, MapChanged, ProtocolError, RowsLost
from cortex.ids import AttemptId, JobId, attempt_id, task_id
from cortex.job.plan import InputPlan, Split, SplitGroups
from cortex.limits import LOST_REDOS_MAX, SCAN_AHEAD_PER_SLOT
from cortex.scheduling.job_state import ENDED, JobEvent, JobState, next_job_state
from cortex.scheduling.leases import MAP, NO_STATS, PLAN, REDUCE, SCAN, Node, Running
from cortex.scheduling.map_outputs import MapOutputs
from cortex.scheduling.progress import BYTES_OUT, MapStats, Progress, stats_tuple
from cortex.scheduling.scan_chain import ScanPlan
from cortex.scheduling.task_state import TaskEvent, TaskState, TaskTable
from cortex.units import format_bytes, format_count
from cortex.wire.messages import (
    Counters,
    MapResult,
    MapTask,
    OutputPart,
    PlanResult,
    PlanTask,
    ReduceResult,
    ReduceTask,
    ScanResult,
    ScanTask,
    SubmitJob,
    Task,
    TaskFailed,
    TaskFinished,
    TaskProgress,
    TaskSummary,
)

_LETTERS = {PLAN: "plan", SCAN: "s", MAP: "m", REDUCE: "r"}


class JobRun:
    """`state` tells how far it is; once FAILED or CANCELLED, `error` says why."""

    def __init__(self, job: JobId, request: SubmitJob, now: float) -> None:
        self.job = job
        self.request = request
        self.began_at = now
        self.state = JobState.PLANNING
        self.error: ErrorReport | None = None
        self.progress = Progress()
        self.memory_peak_bytes = 0
        self.plan: InputPlan | None = None
        self.bare_plan: InputPlan | None = None
        """The plan without splits and tasks, as nodes are sent it."""
        self.map_only = request.spec.reduce_form == "none"
        self.running: dict[AttemptId, Running] = {}
        self._tables: dict[str, TaskTable] = {}
        self._parts: dict[int, tuple[OutputPart, ...]] = {}
        self._revoked: list[Running] = []
        self._redos: dict[int, int] = {}
        self._scan_ahead = 0
        self._map_needs: dict[int, int] = {}
        self._open_stage(PLAN, TaskTable(1))
        self._tables[PLAN].all_needs_met()

    # --- what to do next ---

    def next_task(self, node: Node, slots: int, now: float) -> Running | None:
        """Lease the next task to `node`, if one can run now; `slots` is how many all nodes have."""
        stage = self._next_stage(slots)
        if stage is None:
            return None
        table = self._tables[stage]
        index, number = table.lease_first()
        attempt = attempt_id(task_id(self.job, _LETTERS[stage], None if stage == PLAN else index), number)
        task = self._task(stage, index, number)
        running = Running(attempt, self.job, stage, index, number, node.name, task)
        if stage == REDUCE:
            running.expected_rows = self._outputs.expected_rows(index)
        self.running[attempt] = running
        totals = self.progress.stages[stage]
        if totals.began_at is None:
            totals.began_at = now
        return running

    def _next_stage(self, slots: int) -> str | None:
        """The stage whose first ready task is next: scans, as far ahead as they may be, then maps."""
        tables = self._tables
        if self.state is JobState.PLANNING:
            return PLAN if tables[PLAN].first_ready() is not None else None
        if self.state is JobState.REDUCING:
            return REDUCE if tables[REDUCE].first_ready() is not None else None
        if self.state is not JobState.MAPPING:
            return None
        scan = tables[SCAN].first_ready()
        maps_wait = tables[MAP].first_ready() is not None
        if scan is not None and (
            self._scan_ahead < SCAN_AHEAD_PER_SLOT * slots
            or not self._scans.chunks[scan].fresh
            # One map may need more splits than the distance: nothing else would move then.
            or (not maps_wait and not tables[SCAN].leased)
        ):
            return SCAN
        return MAP if maps_wait else None

    def _task(self, stage: str, index: int, number: int) -> Task:
        if stage == PLAN:
            return PlanTask()
        if stage == SCAN:
            chunk = self._scans.chunks[index]
            if chunk.fresh:
                self._scan_ahead += chunk.count
            return self._scans.issue(index)
        if stage == MAP:
            splits = self._splits_of(index)
            if number == 0:
                self._scan_ahead -= sum(map(self._scans.is_scanned, splits))
            return MapTask(index, tuple(self._scans.fill(s) for s in splits))
        return ReduceTask(index, self._outputs.refs(index))

    # --- what came back ---

    def finished(self, running: Running, done: TaskFinished, now: float) -> None:
        """An attempt has ended well. Its result is accepted, or the job fails by name."""
        self._forget(running)
        try:
            self._accept(running, done, now)
        except CortexError as error:
            self.fail(error.report())
        except Exception as error:
            # A result that nobody foresaw: the job ends with its cause, rather than hang.
            self.fail(
                InternalError(
                    f"the result of attempt {running.attempt} could not be used: {error}",
                    details={"traceback": traceback.format_exc()},
                ).report()
            )

    def _accept(self, running: Running, done: TaskFinished, now: float) -> None:
        result = done.result
        table = self._tables[running.stage]
        fits = {
            PLAN: isinstance(result, PlanResult),
            SCAN: isinstance(result, ScanResult),
            MAP: isinstance(result, MapResult) and result.map_index == running.index,
            REDUCE: isinstance(result, ReduceResult) and result.partition == running.index,
        }
        if not fits[running.stage]:
            raise ProtocolError(f"attempt {running.attempt} gave another task's {type(result).__name__}")
        table.apply(running.index, TaskEvent.FINISH)
        if self.progress.is_slowest(done.seconds):
            self.progress.slowest = TaskSummary(running.attempt, done.seconds, self.what(running))
        if isinstance(result, PlanResult):
            self._planned(result.plan)
        elif isinstance(result, ScanResult):
            self._scanned(running, result)
        elif isinstance(result, MapResult):
            self._mapped(running, result)
        else:
            self._reduced(running, result)
        if table.finished:
            self.progress.stages[running.stage].ended_at = now
        self._advance()

    def _planned(self, plan: InputPlan) -> None:
        if self.map_only and not plan.tasks:
            # one map without input writes the empty part
            plan = msgspec.structs.replace(plan, tasks=SplitGroups.of([()]))
        if not self.map_only and plan.reducers < 1:
            raise InternalError(f"the plan has {plan.reducers} reducers for a job that reduces")
        self.plan = plan
        self.bare_plan = plan.bare()
        self._scans = ScanPlan(plan)
        maps = TaskTable(len(plan.tasks))
        self._outputs = MapOutputs(self.job, len(plan.tasks), 0 if self.map_only else plan.reducers)
        self._map_stats = MapStats(len(plan.tasks))
        scans = TaskTable(len(plan.splits) if self._scans.chunks else 0, total=len(self._scans.chunks))
        self._tables[SCAN] = scans
        for index in self._scans.chunks:
            scans.apply(index, TaskEvent.NEEDS_MET)
        if self._scans.chunks:
            self._open_stage(SCAN, scans, self._scans.bytes_total)
            self._map_of_split: dict[int, int] = {}
            for i, splits in enumerate(plan.tasks):
                unknown = [s for s in splits if not self._scans.is_known(plan.splits[s])]
                self._map_of_split.update(dict.fromkeys(unknown, i))
                if unknown:
                    self._map_needs[i] = len(unknown)
                else:
                    maps.apply(i, TaskEvent.NEEDS_MET)
        else:
            maps.all_needs_met()
        self._open_stage(MAP, maps, plan.total_bytes)
        if not self.map_only:
            self._open_stage(REDUCE, TaskTable(plan.reducers))
        self._step(JobEvent.PLANNED)

    def _scanned(self, running: Running, result: ScanResult) -> None:
        assert isinstance(running.task, ScanTask)
        known, again = self._scans.finish(running.index, running.task, result)
        totals = self.progress.stages[SCAN]
        totals.bytes_done += running.task.boundaries[-1] - running.task.boundaries[0]
        table = self._tables[SCAN]
        if again is not None:
            chunk = self._scans.chunks[again]
            offsets = chunk.chain.offsets
            totals.bytes_done -= offsets[chunk.k + chunk.count] - offsets[chunk.k]
            if table.state(again) is TaskState.DONE:
                table.apply(again, TaskEvent.LOSE)
            else:
                table.total += 1
                table.apply(again, TaskEvent.NEEDS_MET)
        for split in known:
            index = self._map_of_split.pop(split, None)
            if index is None:
                continue
            self._map_needs[index] -= 1
            if not self._map_needs[index]:
                del self._map_needs[index]
                self._tables[MAP].apply(index, TaskEvent.NEEDS_MET)

    def _mapped(self, running: Running, result: MapResult) -> None:
        index = running.index
        if self.map_only:
            self._parts[index] = result.parts
        elif not self._outputs.accept(result, running.number, running.node):
            self._map_changed(running)
        stats = stats_tuple(result.stats)
        replaced = self._map_stats.replace(index, stats, result.counters)
        if replaced is not None:
            self._count_map(index, *replaced, -1)
        self._count_map(index, stats, result.counters, 1)

    def _map_changed(self, running: Running) -> None:
        """A redo wrote other rows than the output it replaces: nothing may be made of both."""
        reduces = self._tables[REDUCE]
        if reduces.done:
            raise MapChanged(
                f"{self.what(running)} gave other rows when it ran again after its output was lost, and"
                f" {format_count(reduces.done)} of {format_count(reduces.total)} reduces had read the first",
                cure="make the map give the same rows for the same input (no random numbers, clocks or sets"
                " of objects ordered by address)",
                details={"attempt": running.attempt},
            )
        for other in [r for r in self.running.values() if r.stage == REDUCE]:
            self.abandoned(other)
            self._revoked.append(other)

    def _count_map(self, index: int, stats: tuple[int, ...], counters: Counters, sign: int) -> None:
        self.progress.merge_counters(counters, sign)
        totals = self.progress.stages[MAP]
        totals.add(stats, sign)
        totals.bytes_done += sign * sum(s.length for s in self._splits_of(index))
        if not self.map_only:
            reduce_totals = self.progress.stages[REDUCE]
            reduce_totals.bytes_total += sign * stats[BYTES_OUT]

    def _reduced(self, running: Running, result: ReduceResult) -> None:
        if result.stats.rows_in != running.expected_rows:
            raise RowsLost(
                f"partition {running.index}: the maps wrote {format_count(running.expected_rows)} rows for it"
                f" and its reduce read {format_count(result.stats.rows_in)}",
                cure="this is a bug in cortex; please report it with the job",
                details={"attempt": running.attempt},
            )
        self._parts[running.index] = result.parts
        self.progress.stages[REDUCE].add(stats_tuple(result.stats))
        self.progress.merge_counters(result.counters)

    def failed(self, running: Running, failed: TaskFailed, now: float) -> None:
        """An attempt has ended badly: retry it, redo what it lacked, or end the job."""
        self._forget(running)
        self.progress.failed_attempts += 1
        error = self._with_file(running, failed.error)
        table = self._tables[running.stage]
        table.apply(running.index, TaskEvent.RETRY)
        if error.fault == Fault.FATAL.value:
            self.fail(error)
            return
        if error.fault == Fault.LOST.value:
            lost = self._lost_input(running, error)
            if lost is not None:
                self._redo(lost, error)
                return
        final = table.record_failure(running.index, error)
        if final is not None:
            self.fail(final)

    def _lost_input(self, running: Running, error: ErrorReport) -> tuple[int, int] | None:
        """The map attempt whose output a reduce misses, as (map, number), if it was one of its inputs."""
        if isinstance(running.task, ReduceTask):
            for ref in running.task.inputs:
                if ref.attempt == error.details.get("attempt"):
                    return ref.map_index, int(ref.attempt.rpartition(".")[2])
        return None

    def _redo(self, lost: tuple[int, int], error: ErrorReport) -> None:
        index, number = lost
        if not self._outputs.is_current(index, number):
            return  # known already: its redo is under way or done
        redos = self._redos[index] = self._redos.get(index, 0) + 1
        if redos > LOST_REDOS_MAX:
            details = {**error.details, "redone": f"{LOST_REDOS_MAX} times"}
            self.fail(msgspec.structs.replace(error, details=details))
            return
        self._lose_map(index)

    def _lose_map(self, index: int) -> None:
        self._outputs.lose(index)
        self.progress.stages[MAP].ended_at = None
        self._tables[MAP].apply(index, TaskEvent.LOSE)
        self._step(JobEvent.MAP_LOST)

    def abandoned(self, running: Running) -> None:
        """The attempt is over through no fault of its own (its node is lost): it costs no attempt."""
        self._forget(running)
        self._tables[running.stage].apply(running.index, TaskEvent.RETRY)

    def node_lost(self, node: str) -> None:
        """Map outputs on `node` are gone. Parts are not: they lie on the output's filesystem."""
        if self.state in (JobState.MAPPING, JobState.REDUCING) and not self.map_only:
            for index in self._outputs.lost_with(node):
                self._lose_map(index)

    def heard(self, running: Running, progress: TaskProgress) -> None:
        self.progress.stages[running.stage].change_live(running, progress.stats)

    # --- how it ends ---

    def fail(self, error: ErrorReport) -> None:
        self.error = error
        self._step(JobEvent.FAIL)

    def cancel(self, error: ErrorReport) -> None:
        self.error = error
        self._step(JobEvent.CANCEL)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def take_revoked(self) -> list[Running]:
        """Attempts to stop at their nodes."""
        revoked, self._revoked = self._revoked, []
        return revoked

    def parts(self) -> tuple[OutputPart, ...]:
        """In output order: by partition, or by map in a map-only job."""
        return tuple(part for index in sorted(self._parts) for part in self._parts[index])

    # --- inside ---

    def _advance(self) -> None:
        """Go on when a stage is complete."""
        if self.state in ENDED or self.plan is None:
            return
        final = self._tables[MAP if self.map_only else REDUCE]
        if self.state is JobState.MAPPING and not self.map_only and self._tables[MAP].finished:
            self.progress.stages[REDUCE].rows_total = self._outputs.all_rows()
            if final.state(0) is TaskState.BLOCKED:
                final.all_needs_met()
            self._step(JobEvent.MAPPED)
        if final.finished:
            self._step(JobEvent.OUTPUT_DONE)

    def _step(self, event: JobEvent) -> None:
        self.state = next_job_state(self.state, event)

    def _open_stage(self, stage: str, table: TaskTable, bytes_total: int = 0) -> None:
        self._tables[stage] = table
        self.progress.open_stage(stage, table, bytes_total)

    def _forget(self, running: Running) -> None:
        del self.running[running.attempt]
        self.progress.stages[running.stage].change_live(running, NO_STATS)

    def _splits_of(self, index: int) -> list[Split]:
        assert self.plan is not None
        return [self.plan.splits[s] for s in self.plan.tasks[index]]

    def what(self, running: Running) -> str:
        """What an attempt works on, for people."""
        task = running.task
        if isinstance(task, PlanTask) or self.plan is None:
            return "the plan of the inputs"
        if isinstance(task, ReduceTask):
            return f"partition {task.partition} of {self.plan.reducers}"
        if isinstance(task, ScanTask):
            first_byte, end_byte = task.boundaries[0], task.boundaries[-1]
            return f"quotes of {self._file_name(task.file)} from byte {first_byte} to {end_byte}"
        if not task.splits:
            return "a map without input"
        first = task.splits[0]
        more = f" and {len(task.splits) - 1} more splits" if len(task.splits) > 1 else ""
        return f"{self._file_name(first.file)} from byte {first.offset}, {format_bytes(first.length)}{more}"

    def _with_file(self, running: Running, error: ErrorReport) -> ErrorReport:
        """A node knows files by number alone: an error that tells its task gets the path as well."""
        task = running.task
        if isinstance(task, MapTask) and task.splits:
            file = task.splits[0].file
        elif isinstance(task, ScanTask):
            file = task.file
        else:
            return error
        if "task" not in error.details or "file" in error.details or self.plan is None:
            return error
        return msgspec.structs.replace(error, details={"file": self.plan.files[file].path, **error.details})

    def _file_name(self, file: int) -> str:
        assert self.plan is not None
        return os.path.basename(self.plan.files[file].path)

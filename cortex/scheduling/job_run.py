"""One job on its way: plan -> (scan) -> map -> reduce (-> commit), and what to do when something fails.

`JobRun` decides which task is next and what a result means. It never speaks to a node: the Scheduler
asks `next_task` when a node has room, hands over what nodes report, and looks at `state` and
`take_revoked` afterwards. Every method is O(1) in the number of tasks, but for a lost node, which costs
what it held.
"""

from __future__ import annotations

import os
import struct
import traceback
from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cortex.errors import (
    CortexError,
    ErrorReport,
    Fault,
    InputLost,
    InternalError,
    MapChanged,
    OutputFailed,
    OutputUnseen,
    ProtocolError,
    ResultsLost,
    RowsLost,
)
from cortex.ids import AttemptId, JobId, attempt_id, map_attempt, parse_attempt, task_id
from cortex.job.output_types import OutputTypes
from cortex.job.plan import UNKNOWN, InputFile, InputPlan, Split, SplitGroups
from cortex.limits import (
    COMMIT_TASKS_MAX,
    HOLDER_RETURN_S,
    LOST_REDOS_MAX,
    SCAN_AHEAD_PER_SLOT,
    SCAN_SPLITS_PER_TASK,
)
from cortex.scheduling.input_homes import InputHomes
from cortex.scheduling.job_state import ENDED, JobEvent, JobState
from cortex.scheduling.leases import COMMIT, MAP, NO_STATS, PLAN, REDUCE, SCAN, Node, Running
from cortex.scheduling.map_outputs import MapOutputs, Redo
from cortex.scheduling.placement import ANY, Placement
from cortex.scheduling.prefetch import Prefetch
from cortex.scheduling.progress import BYTES_IN, BYTES_OUT, AddedStats, stats_tuple
from cortex.scheduling.records import JobRecord, MapsDropped, NodeGone, PartGone
from cortex.scheduling.run import Run
from cortex.scheduling.scan_chain import ScanPlan
from cortex.scheduling.task_state import TaskEvent, TaskState, TaskTable
from cortex.units import format_bytes, format_count
from cortex.wire.messages import (
    CommitResult,
    CommitTask,
    Counters,
    DataListed,
    FetchAhead,
    FindInput,
    InputFound,
    InputHolders,
    InputOrigin,
    JobPlanned,
    ListData,
    Locality,
    MapLocations,
    MapResult,
    MapTask,
    OutputNode,
    OutputPart,
    PlanMade,
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


def _counted(sums: Locality, origin: InputOrigin) -> Locality:
    """With one more map."""
    return Locality(
        sums.local_maps + (not origin.node_bytes and not origin.client_bytes),
        sums.local_bytes + origin.local_bytes,
        sums.streamed_maps + (origin.node_bytes > 0 and not origin.client_bytes),
        sums.streamed_bytes + origin.node_bytes,
        sums.client_maps + (origin.client_bytes > 0),
        sums.client_bytes + origin.client_bytes,
    )


_LOST_SHOWN = 10  # parts that an error names
_LETTERS = {PLAN: "plan", SCAN: "s", MAP: "m", REDUCE: "r", COMMIT: "commit"}
_RESULTS = {
    PLAN: PlanResult,
    SCAN: ScanResult,
    MAP: MapResult,
    REDUCE: ReduceResult,
    COMMIT: CommitResult,
}
_STAGES = {letter: stage for stage, letter in _LETTERS.items()}


class JobRun(Run):
    """A MapReduce job; see `Run` for its arguments."""

    def __init__(self, job: JobId, request: SubmitJob, now: float, lives: int = 0) -> None:
        super().__init__(job, request, now, JobState.PLANNING, lives)
        self.map_only = request.spec.reduce_form == "none"
        self._tables: dict[str, TaskTable] = {}
        self._parts: dict[int, tuple[OutputPart, ...]] = {}
        self._parts_at: dict[str, list[int]] = {}
        """Node -> tasks whose parts it made; some may have been made anew elsewhere."""
        self._types = {MAP: OutputTypes(), REDUCE: OutputTypes()}
        self._redos: dict[int, int] = {}
        self._input_holders: tuple[int, InputHolders] | None = None
        """As of which version, one object for all nodes."""
        self._placements: dict[str, Placement] = {}
        """Of stages whose tasks read input that some nodes have at hand."""
        self._scan_lanes: dict[int, deque[int]] = {}
        """Files to be scanned whose first scan was not cut, by who has them: a scan of each is ready."""
        self._lane_of: dict[int, int] = {}
        self._inputs_lost: dict[tuple[str, int], int] = {}
        """How often a task found nobody who had its input."""
        self._holder_lost_at: float | None = None
        """Since when a map waits for a node that is lost."""
        self._ahead: dict[str, FetchAhead] = {}
        """Node -> the reduces that it fetches the inputs of while maps run."""
        self._scan_ahead = 0
        self._maps_begun = bytearray()
        self._open_stage(PLAN, TaskTable(1, None, self._first_number))
        self._tables[PLAN].needs_met(0, 1)

    # --- who has its input ---

    def ask(self, node: str) -> ListData | FindInput | None:
        """What a node with data roots is to be asked now."""
        return None if self.ended else self.survey.question(node)

    def listed(self, answer: DataListed) -> None:
        """A node has said what its data names stand for."""
        try:
            self.survey.listed(answer)
        except CortexError as error:
            self.fail(error.report())

    def look_for_data(self, here: Iterable[str], absent: Sequence[Node]) -> bool:
        """True when it has become known which files there are, and there is more to ask. `here`: the nodes
        that were asked; `absent`: others that may have some."""
        if self.ended or self.held_back or self.survey.data_files is not None:
            return False
        silent = [node.name for node in absent if node.silent]
        if absent and not silent:
            return False
        try:
            if silent:
                raise self.survey.not_listed(silent[0])
            if not self.survey.settle(here):
                return False
        except CortexError as error:
            self.fail(error.report())
            return False
        return True

    def found(self, answer: InputFound) -> None:
        under_way = self.plan is not None and not self.held_back
        if self.survey.found(answer) and (under_way or self.survey.settled):  # else there are more to come
            self.place()

    def look_for_answers(self, now: float) -> bool:
        """Nodes that are asked what they have, and do not say, are not waited for for ever. True when that
        changed something."""
        waited = not self.survey.settled
        try:
            self.survey.overdue(now)
        except CortexError as error:
            self.fail(error.report())
            return False
        if waited and self.survey.settled:
            self.place()
            return True
        return False

    def holder_lost(self, node: str) -> None:
        """The node cannot be read from any more."""
        try:
            had_some = self.survey.lost(node)
            if had_some or (self.plan is None and self.survey.settled):  # it was the last that was waited for
                self.place()
        except CortexError as error:
            if not self.ended:
                self.fail(error.report())

    def place(self) -> None:
        """Say anew which tasks are whose, when that is known or has changed."""
        if self.ended or not self.survey.matters:
            return
        if self.plan is None:
            nodes = self.survey.who_has_most()
            sets = [(), (), nodes]
            table = self._tables[PLAN]
            self._placements[PLAN] = Placement(
                table, sets, array("I", [0]), array("I", [2 if nodes else ANY])
            )
            return
        homes = InputHomes(self.plan, self.survey)
        self._placements[MAP] = Placement(self._tables[MAP], homes.sets, *homes.maps())
        if self._scans.chains:
            starts, set_of = homes.scans(self._scans)
            self._placements[SCAN] = Placement(self._tables[SCAN], homes.sets, starts, set_of)
            if not self._scan_lanes:  # files keep the lanes that they were given first
                self._lane_of = dict(zip(self._scans.chains, set_of))

    def input_holders(self, version: int, nodes: Mapping[str, Node]) -> InputHolders | None:
        """What a node is to be told that reads input from afar, and knows the state of this version."""
        survey = self.survey
        if version == survey.version:
            return None
        if self._input_holders is not None and self._input_holders[0] == survey.version:
            return self._input_holders[1]
        members, set_of = survey.sets()
        numbers = {name: number for number, name in enumerate(sorted({n for each in members for n in each}))}
        holders = tuple(nodes[name].output_node for name in numbers if name in nodes)
        place = {each.node: number for number, each in enumerate(holders)}
        sets = tuple(tuple(place[name] for name in each if name in place) for each in members)
        packed = struct.pack(f"<{len(set_of)}I", *set_of)
        no_client = self.request.detached and self.plan is not None
        message = InputHolders(self.job, holders, sets, packed, 0 if no_client else survey.client_files)
        self._input_holders = survey.version, message
        return message

    def plan_made(self) -> PlanMade:
        """The plan, for who asked for no more."""
        assert self.plan is not None
        members, set_of = self.survey.sets()
        ids = [file.client_file for file in self.plan.files]
        places = [set_of[number] if 0 <= number < len(set_of) else 0 for number in ids]
        client = "".join("1" if 0 <= number < self.survey.client_files else "0" for number in ids)
        return PlanMade(self.job, self.plan, tuple(members), tuple(places), client)

    def may_read_from_afar(self, running: Running) -> bool:
        """Also one that is at home: a plan looks at every file, and a map may have several."""
        return running.stage != REDUCE and self.survey.matters

    def look_for_holders(self, now: float) -> None:
        """Fail if a map, or a scan before it, has waited too long for the only node with its input."""
        files = self._files_lost() if self.state is JobState.MAPPING else []
        if not files:
            self._holder_lost_at = None
            return
        if self._holder_lost_at is None:
            self._holder_lost_at = now
        if now - self._holder_lost_at >= HOLDER_RETURN_S:
            self.fail(self._input_lost(files).report())

    def _files_lost(self) -> list[InputFile]:
        """Those of a task that waits for a node that is lost, the node's among them; none if no task does."""
        assert self.plan is not None
        maps, scans = self._placements.get(MAP), self._placements.get(SCAN)
        if maps is not None and maps.lost is not None:
            return [self.plan.files[split.file] for split in self._splits_of(maps.lost)]
        if scans is not None and scans.lost is not None:
            return [self.plan.files[self.plan.splits.file_of(scans.lost)]]
        return []

    def _input_lost(self, files: list[InputFile]) -> InputLost:
        members, set_of = self.survey.sets()
        gone = next((f for f in files if f.client_file >= 0 and not members[set_of[f.client_file]]), files[0])
        node = self.survey.lost_with(gone.client_file)
        return InputLost(
            f"{gone.path} lies on node {node or 'none that is here'}, which is lost",
            details={"file": gone.path, "waited": f"{HOLDER_RETURN_S:g} s"},
            cure="start that node again with its data (cortex node --data DIR), or put a copy below the"
            " data root of another one; then run the job again",
        )

    @property
    def openings(self) -> int:
        """Changes when there is something new to lease."""
        return sum(table.became_ready for table in self._tables.values()) + self.survey.version

    # --- what to do next ---

    def next_task(self, node: Node, slots: int, now: float) -> Running | None:
        """Lease the next task to `node`, if one can run now; `slots` is how many all nodes have."""
        able = node.name not in self.unfit and node.works_for(self.job)
        stage = self._next_stage(slots) if able and not self.held_back else None
        if stage is None:
            return None
        chosen = self._choose(stage, node.name, now)
        if chosen is None and stage == SCAN and self._has_ready(MAP):
            stage = MAP
            chosen = self._choose(stage, node.name, now)
        if chosen is None:
            return None
        index, number = self._tables[stage].lease(chosen)
        attempt = attempt_id(
            task_id(self.job, _LETTERS[stage], None if stage in (PLAN, COMMIT) else index), number
        )
        task = self._task(stage, index)
        return self._leased(Running(attempt, self.job, stage, index, number, node.output_node, task), now)

    def _choose(self, stage: str, node: str, now: float) -> int | None:
        """The ready task of a stage that this node gets; None: there is one, but not for this node yet."""
        table, placement = self._tables[stage], self._placements.get(stage)
        if placement is not None:
            return placement.choose(node, now)
        first = table.first_ready()
        if stage != REDUCE:
            return first
        assert first is not None
        return self._prefetch.choose(node, first, lambda i: table.state(i) is TaskState.READY, table.total)

    def resume(
        self,
        attempt: str,
        node: OutputNode,
        version: int | None,
        now: float,
        scan: ScanTask | None = None,
        ended: bool = False,
    ) -> Running | None:
        """An earlier life of the server has leased this attempt to `node`: it is leased still.

        None if its task is not ready, or it is a reduce of other map outputs than there are now (`version`):
        it may have read what nobody wrote down. `scan`: its task, if what it was told is known. `ended`: how
        is told next.
        """
        parsed = parse_attempt(attempt)
        if parsed is None or parsed[0] != self.job:
            return None
        stage, index, number = _STAGES[parsed[1]], parsed[2], parsed[3]
        table = self._tables.get(stage)
        if table is None or index >= len(table.states):
            return None
        if stage == SCAN:
            self._begin_scans(index)
        if table.state(index) is not TaskState.READY:
            return None
        if stage == REDUCE and version not in (None, self._outputs.version):
            return None
        table.resume(index, number)
        task: Task
        if ended and stage == MAP:  # nobody reads its task any more, and there may be a million
            self._begin_map(index)
            task = MapTask(index, ())
        else:
            task = scan or self._task(stage, index)
            if isinstance(task, ScanTask) and scan is None:
                task = msgspec.structs.replace(task, start_state=UNKNOWN)  # it may not have been told it
        return self._leased(Running(AttemptId(attempt), self.job, stage, index, number, node, task), now)

    def replay(self, record: JobRecord) -> None:
        """What an earlier life wrote down, in its order. Raises InternalError for what does not follow."""
        if isinstance(record, NodeGone):
            self.node_lost(record.node)
            return
        if isinstance(record, PartGone):
            self.part_lost(record.staged_as)
            return
        if isinstance(record, MapsDropped):
            self.drop_maps()
            return
        end, now = record.end, self.began_at + record.at_s
        running = self.resume(end.attempt, record.node, None, now - end.seconds, record.scan, ended=True)
        if running is None:
            raise InternalError(f"attempt {end.attempt} ended in the journal, and could not have been leased")
        running.outputs_version = record.outputs_version
        if isinstance(end, TaskFinished):
            self.finished(running, end, now)
        else:
            self.failed(running, end, now)

    def _leased(self, running: Running, now: float) -> Running:
        stage, index = running.stage, running.index
        if stage == REDUCE:
            running.expected_rows = self._outputs.expected_rows(index)
            running.outputs_version = self._outputs.version
        self.running[running.attempt] = running
        totals = self.progress.stages[stage]
        if totals.began_at is None:
            totals.began_at = now
        return running

    def ready_tasks(self, slots: int) -> int:
        """About how many tasks could be leased now."""
        if self.held_back:
            return 0
        if self.state is JobState.PLANNING:
            return self._tables[PLAN].ready
        if self.state is JobState.REDUCING:
            return self._tables[REDUCE].ready
        if self.state is JobState.COMMITTING:
            return self._tables[COMMIT].ready
        if self.state is not JobState.MAPPING:
            return 0
        scans_ahead = max(0, SCAN_AHEAD_PER_SLOT * slots - self._scan_ahead) // SCAN_SPLITS_PER_TASK
        placement = self._placements.get(MAP)
        lost = 0 if placement is None else placement.lost_count
        return self._tables[MAP].ready - lost + min(scans_ahead, self._tables[SCAN].waiting)

    def _has_ready(self, stage: str) -> bool:
        """But for tasks that wait for a node that is lost."""
        placement = self._placements.get(stage)
        return self._tables[stage].ready > (0 if placement is None else placement.lost_count)

    def has_ready(self, slots: int) -> bool:
        """Is there a task that some node could be given now?"""
        return not self.held_back and self._next_stage(slots) is not None

    @property
    def tasks_waiting(self) -> int:
        """Of the stages known so far, neither leased nor done."""
        return sum(table.waiting for table in self._tables.values())

    def locations(self, version: int, nodes: int) -> MapLocations | None:
        """What a node that is sent a reduce must be told of map outputs, knowing this much."""
        return self._outputs.news(version, nodes)

    def prefetch(self, nodes: Sequence[Node]) -> list[tuple[Node, FetchAhead, MapLocations]]:
        """While maps run: the nodes that are to fetch the inputs of reduces they will likely run, and what
        they must be told. Nothing where one node has everything."""
        if self.state is not JobState.MAPPING or self.map_only or self.held_back or len(nodes) < 2:
            return []
        if not self._prefetch.due(self._outputs.version):
            return []
        promised = self._prefetch.promise((node.name, node.hello.slots) for node in nodes)
        self._ahead.update((name, FetchAhead(self.job, parts)) for name, parts in promised.items())
        told = []
        for node in nodes:
            ahead, known = self._ahead.get(node.name), node.told.get(self.job)
            news = self._outputs.news(*(known.locations if known else (0, 0)), partial=True)
            if ahead is not None and news is not None:
                told.append((node, ahead, news))
        return told

    def locations_known(self) -> tuple[int, int]:
        """(version, nodes) as a node knows them that was told all."""
        return self._outputs.version, self._outputs.nodes

    def _next_stage(self, slots: int) -> str | None:
        """The stage whose first ready task is next: scans, as far ahead as they may be, then maps."""
        tables = self._tables
        if self.state is JobState.PLANNING:
            return PLAN if self.survey.settled and tables[PLAN].first_ready() is not None else None
        if self.state is JobState.REDUCING:
            return REDUCE if tables[REDUCE].first_ready() is not None else None
        if self.state is JobState.COMMITTING:
            return COMMIT if tables[COMMIT].first_ready() is not None else None
        if self.state is not JobState.MAPPING:
            return None
        scan = tables[SCAN].first_ready() if self._has_ready(SCAN) else None
        maps_wait = self._has_ready(MAP)
        if scan is not None and (
            self._scan_ahead < SCAN_AHEAD_PER_SLOT * slots
            or not self._scans.chunks[scan].fresh
            # One map may need more splits than the distance: nothing else would move then.
            or (not maps_wait and not tables[SCAN].leased)
        ):
            return SCAN
        return MAP if maps_wait else None

    def _task(self, stage: str, index: int) -> Task:
        if stage == PLAN:
            return PlanTask(self.request.client_files, self.survey.data_files or (), self.request.detached)
        if stage == SCAN:
            if self._scans.chunks[index].fresh:
                self._begin_scan(index)
            return self._scans.issue(index)
        if stage == COMMIT:
            return CommitTask(self.parts())
        if stage == MAP:
            self._begin_map(index)
            return MapTask(index, tuple(self._scans.fill(s) for s in self._splits_of(index)))
        return ReduceTask(index, self._outputs.spans(index), version=self._outputs.version)

    def _begin_map(self, index: int) -> None:
        if not self._maps_begun[index]:
            self._maps_begun[index] = 1
            if self._scans.chains:
                self._scan_ahead -= sum(map(self._scans.is_scanned, self._splits_of(index)))

    def _begin_scan(self, index: int) -> None:
        chunk = self._scans.chunks[index]
        chunk.fresh = False
        self._scan_ahead += chunk.count
        if not self._cut_scan(chunk.chain.file):
            self._open_chain(self._lane_of.get(chunk.chain.file, 0))

    def _begin_scans(self, index: int) -> None:
        """Scans of a file are cut and begun in order: those before this one have been as well."""
        assert self.plan is not None
        file = self.plan.splits.file_of(index)
        if file not in self._scans.chains:
            return
        if file not in self._scans.last_cut:
            self._cut_scan(file)
        while (cut := self._scans.last_cut[file]) <= index:
            chunk = self._scans.chunks.get(cut)
            if chunk is None or not chunk.fresh:
                return
            self._begin_scan(cut)

    def _open_lanes(self) -> None:
        """Files of the same nodes are scanned one after the other; those of others beside them."""
        for file in self._scans.chains:
            self._scan_lanes.setdefault(self._lane_of.get(file, 0), deque()).append(file)
        for lane in self._scan_lanes:
            self._open_chain(lane)

    def _open_chain(self, lane: int) -> None:
        """The first scan of a lane's next file is there to be leased."""
        files = self._scan_lanes.get(lane, ())
        while files:
            file = files.popleft()
            if file not in self._scans.last_cut and self._cut_scan(file):
                return

    def _cut_scan(self, file: int) -> bool:
        """The next scan of a file is there to be leased; False if there is none."""
        index = self._scans.cut_next(file)
        if index is not None:
            self._tables[SCAN].apply(index, TaskEvent.NEEDS_MET)
        return index is not None

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
        fits = isinstance(result, _RESULTS[running.stage])
        if isinstance(result, MapResult):
            fits = fits and result.map_index == running.index
        elif isinstance(result, ReduceResult):
            fits = fits and result.partition == running.index
        if not fits:
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
        elif isinstance(result, ReduceResult):
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
        self.planned_message = JobPlanned(self.job, plan.bare())
        count = len(plan.tasks)
        self._scans = ScanPlan(plan)
        self._outputs = MapOutputs(self.job, 0 if self.map_only else count, plan.reducers)
        self._map_stats = AddedStats(count)
        self._reduce_stats = AddedStats(0 if self.map_only else plan.reducers)
        self._prefetch = Prefetch(plan.reducers, self._outputs.blocks)
        self._maps_begun = bytearray(count)
        first = self._first_number
        self.survey.planned(plan)
        scanned = self._scans.tasks > 0
        scans = self._tables[SCAN] = TaskTable(len(plan.splits) if scanned else 0, self._scans.tasks, first)
        if scanned:
            self._open_stage(SCAN, scans, self._scans.bytes_total)
        self._open_stage(MAP, TaskTable(count, None, first), plan.total_bytes)
        self.place()
        self._open_lanes()
        if scanned:
            for splits in self._scans.unscanned:
                self._splits_known(splits)
        else:
            self._tables[MAP].needs_met(0, count)
        if not self.map_only:
            self._open_stage(REDUCE, TaskTable(plan.reducers, None, first))
        if self.commits:
            self._open_stage(COMMIT, TaskTable(1, None, first))
        if self.request.detached:  # from now on files that the client has as well are had of nodes alone
            self.survey.version += 1
        self._step(JobEvent.OUTPUT_DONE if self.request.plan_only else JobEvent.PLANNED)

    def _scanned(self, running: Running, result: ScanResult) -> None:
        assert isinstance(running.task, ScanTask)
        known, again = self._scans.finish(running.index, running.task, result)
        totals = self.progress.stages[SCAN]
        totals.bytes_done += running.task.boundaries[-1] - running.task.boundaries[0]
        table = self._tables[SCAN]
        if again is not None:
            totals.bytes_done -= self._scans.bytes_of(again)
            if table.state(again) is TaskState.DONE:
                table.apply(again, TaskEvent.LOSE)
            else:
                table.total += 1
                table.apply(again, TaskEvent.NEEDS_MET)
        if known:
            self._splits_known(known)

    def _splits_known(self, splits: range) -> None:
        """Maps become ready that needed only these. A map at either end may need others as well."""
        assert self.plan is not None
        tasks = self.plan.tasks
        first, last = tasks.group_of(splits.start), tasks.group_of(splits.stop - 1)
        if not all(map(self._scans.is_known, tasks[first])):
            first += 1
        if last >= first and not all(map(self._scans.is_known, tasks[last])):
            last -= 1
        if first <= last:
            self._tables[MAP].needs_met(first, last + 1)

    def _mapped(self, running: Running, result: MapResult) -> None:
        index = running.index
        self._join_types(running, result.types)
        if self.map_only:
            self._take_parts(running, result.parts)
        else:
            redo = self._outputs.accept(result, running.number, running.output_node)
            if redo is not Redo.SAME:
                self._map_changed(running, redo)
        assert self.plan is not None
        length = self.plan.splits.bytes_of(self.plan.tasks[index])
        stats = stats_tuple(result.stats)
        replaced = self._map_stats.replace(index, stats, result.counters)
        if replaced is not None:
            self._count_map(length, *replaced, -1)
        self._count_map(length, stats, result.counters, 1)
        if not self.request.staging_dir:  # on one machine all is at hand
            self.locality = _counted(self.locality, result.origin)

    def _join_types(self, running: Running, types: OutputTypes) -> None:
        """Rows of all tasks of a stage must be alike, also of tasks whose rows never meet."""
        try:
            self._types[running.stage] = self._types[running.stage].joined(types)
        except CortexError as error:
            error.details = {"found in": self.what(running), **error.details}
            raise

    def _map_changed(self, running: Running, redo: Redo) -> None:
        """A redo wrote other rows than the output it replaces: nothing may be made of both."""
        reduces = self._tables[REDUCE]
        if reduces.done or redo is Redo.UNCOUNTED:
            read = f"{format_count(reduces.done)} of {format_count(reduces.total)} reduces had read the first"
            large = "the job is too large to keep every map's count of rows for every partition"
            raise MapChanged(
                f"{self.what(running)} gave other rows when it ran again after its output was lost, and"
                f" {read if reduces.done else large}",
                cure="make the map give the same rows for the same input (no random numbers, clocks or sets"
                " of objects ordered by address)",
                details={"attempt": running.attempt},
            )
        for other in [r for r in self.running.values() if r.stage == REDUCE]:
            self.abandoned(other)
            self._revoked.append(other)

    def _count_map(self, length: int, stats: tuple[int, ...], counters: Counters, sign: int) -> None:
        self.progress.merge_counters(counters, sign)
        totals = self.progress.stages[MAP]
        totals.add(stats, sign)
        totals.bytes_done += sign * length
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
        self._join_types(running, result.types)
        self._take_parts(running, result.parts)
        stats = stats_tuple(result.stats)
        replaced = self._reduce_stats.replace(running.index, stats, result.counters)
        if replaced is not None:
            self.progress.stages[REDUCE].add(replaced[0], -1)
            self.progress.merge_counters(replaced[1], -1)
        self.progress.stages[REDUCE].add(stats)
        self.progress.merge_counters(result.counters)

    def _take_parts(self, running: Running, parts: tuple[OutputPart, ...]) -> None:
        """Parts lie on their node, unless the client gave a folder for them."""
        if not self.request.staging_dir:
            node = running.node
            parts = tuple(msgspec.structs.replace(part, node=node) for part in parts)
            self._parts_at.setdefault(node, []).append(running.index)
        self._parts[running.index] = parts

    def failed(self, running: Running, failed: TaskFailed, now: float) -> None:
        """An attempt has ended badly: retry it, redo what it lacked, or end the job."""
        self._forget(running)
        self.progress.failed_attempts += 1
        error = self._with_file(running, failed.error)
        table = self._tables[running.stage]
        table.apply(running.index, TaskEvent.RETRY)
        if (
            running.stage == COMMIT and error.code == OutputUnseen.code
        ):  # it has run nothing of the job before
            self.cannot_run_on(running.node, error)
            return
        if error.fault == Fault.FATAL.value:
            self.fail(error)
            return
        if error.fault == Fault.LOST.value:
            lost = self._lost_input(running, error)
            if lost is not None:
                self._redo(lost, error)
                return
        if error.code == InputLost.code:  # its holder is lost, as we may not know yet, or cut off from there
            key = running.stage, running.index
            self._inputs_lost[key] = self._inputs_lost.get(key, 0) + 1
            if self._inputs_lost[key] > LOST_REDOS_MAX:
                self.fail(error)
            return
        final = table.record_failure(running.index, error)
        if final is not None:
            self.fail(final)

    def _lost_input(self, running: Running, error: ErrorReport) -> tuple[int, int] | None:
        """The map attempt whose output a reduce misses, as (map, number), if it may have been an input."""
        named = map_attempt(error.details.get("attempt", ""))
        if not isinstance(running.task, ReduceTask) or named is None or named[0] != self.job:
            return None
        _, index, number = named
        return (index, number) if self._outputs.was_input(index, number, running.outputs_version) else None

    def _redo(self, lost: tuple[int, int], error: ErrorReport) -> None:
        """Make a map again; with it all that its node has, if a reduce can get nothing from there."""
        index, number = lost
        if not self._outputs.is_current(index, number):
            return  # known already: its redo is under way or done
        indices = [index]
        if error.details.get("unreachable"):
            indices = sorted({index, *self._outputs.lost_with(error.details.get("holder", ""))})
        for each in indices:
            self._redos[each] = self._redos.get(each, 0) + 1
        if self._redos[index] > LOST_REDOS_MAX:
            details = {**error.details, "redone": f"{LOST_REDOS_MAX} times"}
            self.fail(msgspec.structs.replace(error, details=details))
            return
        self._lose_maps(indices)

    def _lose_maps(self, indices: list[int]) -> None:
        self._outputs.lose(indices)
        self._tables[MAP].lose(indices)
        self.progress.stages[MAP].ended_at = None
        self._step(JobEvent.MAP_LOST)

    def abandoned(self, running: Running) -> None:
        """The attempt is over through no fault of its own (its node is lost): it costs no attempt."""
        self._forget(running)
        self._tables[running.stage].apply(running.index, TaskEvent.RETRY)

    def node_lost(self, node: str) -> None:
        """What lies on `node` is gone: parts of the output that the client does not have, also of a job that
        is done (it goes on then), and map outputs, which are made anew while a reduce may need them."""
        super().node_lost(node)
        if self.state not in (JobState.MAPPING, JobState.REDUCING, JobState.DONE):
            return
        self._ahead.pop(node, None)
        self._prefetch.forget(node)
        made = sorted(set(self._parts_at.pop(node, ())))
        self._lose_parts([i for i in made if any(part.node == node for part in self._parts.get(i, ()))])
        if self.map_only or self.maps_dropped:
            return
        lost = self._outputs.lost_with(node)
        if lost:
            self._outputs.lose(lost)
            self._tables[MAP].lose(lost)
        if self.state is not JobState.DONE and not self._tables[MAP].finished:
            self.progress.stages[MAP].ended_at = None
            self._step(JobEvent.MAP_LOST)

    def needs_of(self, node: str) -> str:
        """What of this job lies on `node` alone and may still be needed; "" for nothing."""
        made = self._parts_at.get(node, ())
        if any(part.node == node for index in made for part in self._parts.get(index, ())):
            return "parts of the result"
        if self.state in (JobState.PLANNING, JobState.MAPPING) and self.survey.has_alone(node):
            return "input"
        under_way = self.state in (JobState.MAPPING, JobState.REDUCING) and not self.map_only
        return "map outputs" if under_way and self._outputs.are_on(node) else ""

    def leave_node(self, node: str) -> None:
        """What it was to fetch ahead is anybody's."""
        if self._ahead.pop(node, None) is not None:
            self._prefetch.forget(node)

    def part_lost(self, staged_as: str) -> None:
        """A part cannot be read at its node. One that is not of the output (any more) changes nothing."""
        found = [i for i, parts in self._parts.items() if any(part.staged_as == staged_as for part in parts)]
        self._lose_parts(found)
        if found and not (self.map_only or self.maps_dropped or self._tables[MAP].finished):
            self._step(JobEvent.MAP_LOST)

    def _lose_parts(self, indices: list[int]) -> None:
        """The parts of these tasks are made anew."""
        if not indices:
            return
        stage = MAP if self.map_only else REDUCE
        if self.maps_dropped:
            if self.state is JobState.DONE:
                self.fail(self._results_lost(indices))
            return
        for index in indices:
            del self._parts[index]
        self._tables[stage].lose(indices)
        self.progress.stages[stage].ended_at = None
        self._step(JobEvent.MAP_LOST if self.map_only else JobEvent.PART_LOST)

    def drop_maps(self) -> None:
        """The job is done: its map outputs are not kept any longer. A map-only job has none, and makes its
        parts anew from its input."""
        if self.map_only or self.plan is None or self.state is not JobState.DONE:
            return
        self.maps_dropped = True
        # what only maps and reduces need is the most of a job's memory, and results are kept for days
        self.request = msgspec.structs.replace(self.request, code=b"", client_files=())
        self._start_message = None
        plan = self.plan = self.plan.bare()
        self._scans = ScanPlan(plan)
        self._outputs = MapOutputs(self.job, 0, plan.reducers)
        self._map_stats = AddedStats(0)

    def _results_lost(self, indices: list[int]) -> ErrorReport:
        lost = [part for index in indices for part in self._parts[index]]
        names = ", ".join(part.name for part in lost[:_LOST_SHOWN])
        return ResultsLost(
            f"{format_count(len(lost))} of {format_count(len(self.parts()))} parts of the result were lost"
            " with the node that kept them, and the map outputs to make them from are not kept any more",
            cure="run the job again; fetch a result soon, or write it to a path that all nodes share:"
            " --output-on nodes",
            details={"node": lost[0].node, "parts": names + (", ..." if len(lost) > _LOST_SHOWN else "")},
        ).report()

    def heard(self, running: Running, progress: TaskProgress) -> None:
        self.progress.stages[running.stage].change_live(running, progress.stats)

    # --- nodes that cannot run it ---

    def parts(self) -> tuple[OutputPart, ...]:
        """In output order: by partition, or by map in a map-only job."""
        return tuple(part for index in sorted(self._parts) for part in self._parts[index])

    def totals(self) -> tuple[list[int], list[int]]:
        stages = self.progress.stages
        source = stages.get(MAP, stages[PLAN])
        final = stages.get(MAP if self.map_only else REDUCE) or stages[PLAN]
        return source.sums, final.sums

    # --- inside ---

    def _advance(self) -> None:
        """Go on when a stage is complete."""
        if self.state in ENDED or self.plan is None:
            return
        final = self._tables[MAP if self.map_only else REDUCE]
        if self.state is JobState.MAPPING and not self.map_only and self._tables[MAP].finished:
            self.progress.stages[REDUCE].rows_total = self._outputs.all_rows()
            if final.state(0) is TaskState.BLOCKED:
                final.needs_met(0, final.total)
            self._step(JobEvent.MAPPED)
        if self.state is JobState.COMMITTING:
            if self._tables[COMMIT].finished:
                self._step(JobEvent.OUTPUT_DONE)
        elif final.finished:
            self._check_bytes()
            if self.commits:
                self._commit()
            else:
                self._step(JobEvent.OUTPUT_DONE)

    def _commit(self) -> None:
        """All parts are where they are to be committed. What runs still, no reduce needs."""
        for running in list(self.running.values()):
            self.abandoned(running)
            self._revoked.append(running)
        if len(self._parts) > COMMIT_TASKS_MAX:
            self.fail(
                OutputFailed(
                    f"{format_count(len(self._parts))} files are more than a node commits at once",
                    cure="take larger splits (--split-size), or let the client commit: leave --output-on out",
                ).report()
            )
            return
        self._tables[COMMIT].needs_met(0, 1)
        self._step(JobEvent.OUTPUT_STAGED)

    def _check_bytes(self) -> None:
        """As many bytes as all maps wrote have reached reduces. Rows were compared partition by partition."""
        if self.map_only:
            return
        wrote, read = (self.progress.stages[MAP].sums[BYTES_OUT], self.progress.stages[REDUCE].sums[BYTES_IN])
        if wrote != read:
            raise RowsLost(
                f"the maps wrote {format_count(wrote)} bytes and the reduces read {format_count(read)}",
                cure="this is a bug in cortex; please report it with the job",
            )

    def _open_stage(self, stage: str, table: TaskTable, bytes_total: int = 0) -> None:
        self._tables[stage] = table
        self.progress.open_stage(stage, table, bytes_total)

    def _forget(self, running: Running) -> None:
        del self.running[running.attempt]
        self.progress.stages[running.stage].change_live(running, NO_STATS)

    def _splits_of(self, index: int) -> list[Split]:
        assert self.plan is not None
        splits = self.plan.tasks[index]
        return self.plan.splits[splits.start : splits.stop]

    def what(self, running: Running) -> str:
        """What an attempt works on, for people."""
        task = running.task
        if isinstance(task, PlanTask) or self.plan is None:
            return "the plan of the inputs"
        if isinstance(task, CommitTask):
            return "the commit of the output"
        if isinstance(task, ReduceTask):
            return f"partition {task.partition} of {self.plan.reducers}"
        if isinstance(task, ScanTask):
            first_byte, end_byte = task.boundaries[0], task.boundaries[-1]
            return f"quotes of {self._file_name(task.file)} from byte {first_byte} to {end_byte}"
        splits = self._splits_of(running.index)
        if not splits:
            return "a map without input"
        first = splits[0]
        more = f" and {len(splits) - 1} more splits" if len(splits) > 1 else ""
        return f"{self._file_name(first.file)} from byte {first.offset}, {format_bytes(first.length)}{more}"

    def _with_file(self, running: Running, error: ErrorReport) -> ErrorReport:
        """A node knows files by number alone: an error that tells its task gets the path as well."""
        task = running.task
        if isinstance(task, MapTask) and self.plan is not None and self.plan.tasks[task.map_index]:
            file = self.plan.splits.file_of(self.plan.tasks[task.map_index].start)
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

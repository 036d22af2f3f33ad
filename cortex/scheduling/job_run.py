"""One job on its way: plan -> (scan) -> map -> reduce (-> commit), and what to do when something fails.

`JobRun` decides which stage and task is next, and what follows of an attempt's end. It never speaks to a
node: `next_task` is asked when a node has room, what nodes report is handed over, and `state` and
`take_revoked` are looked at afterwards. Every method is O(1) in the number of tasks, but for a lost node,
which costs what it held.

Each of its objects knows a part, and none of them the job: who has the input (`JobInput`), which scan is next
(`ScanTurns`), what was made and counted (`JobAccounts`, `ResultParts`), who is to fetch ahead (`Prefetch`).
What they raise, the job fails by.
"""

from __future__ import annotations

import traceback
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
)
from cortex.ids import AttemptId, JobId, attempt_id, parse_attempt, task_id
from cortex.job.plan import UNKNOWN, InputPlan, SplitGroups
from cortex.limits import (
    COMMIT_TASKS_MAX,
)
from cortex.scheduling.job_accounts import JobAccounts
from cortex.scheduling.job_input import JobInput
from cortex.scheduling.job_state import ENDED, JobEvent, JobState
from cortex.scheduling.leases import COMMIT, MAP, NO_STATS, PLAN, REDUCE, SCAN, Node, Running
from cortex.scheduling.map_outputs import Redo
from cortex.scheduling.prefetch import Prefetch
from cortex.scheduling.progress import with_one_more
from cortex.scheduling.records import JobRecord, MapsDropped, NodeGone, PartGone
from cortex.scheduling.result_parts import ResultParts
from cortex.scheduling.run import Run
from cortex.scheduling.scan_turns import ScanTurns
from cortex.scheduling.task_state import TaskEvent, TaskState, TaskTable
from cortex.scheduling.task_words import task_words, with_file
from cortex.units import format_count
from cortex.wire.messages import (
    CommitResult,
    CommitTask,
    DataListed,
    FetchAhead,
    FindInput,
    InputFound,
    InputHolders,
    JobPlanned,
    ListData,
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
        self._parts = ResultParts(on_nodes=not request.staging_dir)
        self._open_stage(PLAN, TaskTable(1, None, self._first_number))
        self._input = JobInput(job, self.survey, self._tables[PLAN], request.detached)
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
        if self.ended or self.held_back:
            return False
        try:
            return self._input.look_for_files(here, absent)
        except CortexError as error:
            self.fail(error.report())
            return False

    def found(self, answer: InputFound) -> None:
        under_way = self.plan is not None and not self.held_back
        if self._input.found(answer, under_way):
            self.place()

    def look_for_answers(self, now: float) -> bool:
        """Nodes that are asked what they have, and do not say, are not waited for for ever. True when that
        changed something."""
        try:
            changed = self._input.look_for_answers(now)
        except CortexError as error:
            self.fail(error.report())
            return False
        if changed:
            self.place()
        return changed

    def holder_lost(self, node: str) -> None:
        """The node cannot be read from any more."""
        try:
            if self._input.holder_lost(node):
                self.place()
        except CortexError as error:
            if not self.ended:
                self.fail(error.report())

    def place(self) -> None:
        """Say anew which tasks are whose, when that is known or has changed."""
        if not self.ended:
            self._input.place()

    def input_holders(self, version: int, nodes: Mapping[str, Node]) -> InputHolders | None:
        """What a node is to be told that reads input from afar, and knows the state of this version."""
        return self._input.holders(version, nodes)

    def plan_made(self) -> PlanMade:
        """The plan, for who asked for no more."""
        return self._input.plan_made()

    def may_read_from_afar(self, running: Running) -> bool:
        """Also one that is at home: a plan looks at every file, and a map may have several."""
        return running.stage != REDUCE and self.survey.matters

    def look_for_holders(self, now: float) -> None:
        """Fail if a map, or a scan before it, has waited too long for the only node with its input."""
        try:
            self._input.look_for_holders(self.state is JobState.MAPPING, now)
        except CortexError as error:
            self.fail(error.report())

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
        table, placement = self._tables[stage], self._input.placement(stage)
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
            self._scans.catch_up(index)
        if table.state(index) is not TaskState.READY:
            return None
        if stage == REDUCE and version not in (None, self._accounts.outputs.version):
            return None
        table.resume(index, number)
        task: Task
        if ended and stage == MAP:  # nobody reads its task any more, and there may be a million
            self._scans.begin_map(index)
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
            running.expected_rows = self._accounts.outputs.expected_rows(index)
            running.outputs_version = self._accounts.outputs.version
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
        maps = self._tables[MAP].ready - self._input.waits_for_lost(MAP)
        return maps + self._scans.may_be_leased(slots)

    def _has_ready(self, stage: str) -> bool:
        """But for tasks that wait for a node that is lost."""
        return self._tables[stage].ready > self._input.waits_for_lost(stage)

    def has_ready(self, slots: int) -> bool:
        """Is there a task that some node could be given now?"""
        return not self.held_back and self._next_stage(slots) is not None

    @property
    def tasks_waiting(self) -> int:
        """Of the stages known so far, neither leased nor done."""
        return sum(table.waiting for table in self._tables.values())

    def locations(self, version: int, nodes: int) -> MapLocations | None:
        """What a node that is sent a reduce must be told of map outputs, knowing this much."""
        return self._accounts.outputs.news(version, nodes)

    def prefetch(self, nodes: Sequence[Node]) -> list[tuple[Node, FetchAhead, MapLocations]]:
        """While maps run: the nodes that are to fetch the inputs of reduces they will likely run, and what
        they must be told. Nothing where one node has everything."""
        if self.state is not JobState.MAPPING or self.map_only or self.held_back or len(nodes) < 2:
            return []
        if not self._prefetch.due(self._accounts.outputs.version):
            return []
        self._prefetch.promise((node.name, node.hello.slots) for node in nodes)
        told = []
        for node in nodes:
            reduces, known = self._prefetch.promised(node.name), node.told.get(self.job)
            news = self._accounts.outputs.news(*(known.locations if known else (0, 0)), partial=True)
            if reduces and news is not None:
                told.append((node, FetchAhead(self.job, reduces), news))
        return told

    def locations_known(self) -> tuple[int, int]:
        """(version, nodes) as a node knows them that was told all."""
        return self._accounts.outputs.version, self._accounts.outputs.nodes

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
        maps_wait = self._has_ready(MAP)
        if self._has_ready(SCAN) and self._scans.is_due(slots, maps_wait):
            return SCAN
        return MAP if maps_wait else None

    def _task(self, stage: str, index: int) -> Task:
        if stage == PLAN:
            return PlanTask(self.request.client_files, self.survey.data_files or (), self.request.detached)
        if stage == SCAN:
            return self._scans.issue(index)
        if stage == COMMIT:
            return CommitTask(self.parts())
        if stage == MAP:
            self._scans.begin_map(index)
            return MapTask(index, self._scans.splits_for(index))
        return ReduceTask(index, self._accounts.outputs.spans(index), version=self._accounts.outputs.version)

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
            self.progress.slowest = TaskSummary(running.attempt, done.seconds, task_words(self.plan, running))
        if isinstance(result, PlanResult):
            self._planned(result.plan)
        elif isinstance(result, ScanResult):
            self._scanned(running, result)
        elif isinstance(result, MapResult):
            self._mapped(running, result)
        elif isinstance(result, ReduceResult):
            self._accounts.accept_reduce(running, result)
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
        first = self._first_number
        self._scans = ScanTurns(plan, first)
        self._accounts = JobAccounts(self.job, plan, self.map_only, self.progress, self._parts)
        self._prefetch = Prefetch(plan.reducers, self._accounts.outputs.blocks)
        scans, maps = self._scans.table, TaskTable(count, None, first)
        if scans.total:
            self._open_stage(SCAN, scans, self._scans.bytes_total)
        else:
            self._tables[SCAN] = scans
        self._open_stage(MAP, maps, plan.total_bytes)
        lanes = self._input.planned(plan, maps, scans, self._scans.chains)
        for ready in self._scans.open(lanes) if scans.total else [range(count)]:
            maps.needs_met(ready.start, ready.stop)
        if not self.map_only:
            self._open_stage(REDUCE, TaskTable(plan.reducers, None, first))
        if self.commits:
            self._open_stage(COMMIT, TaskTable(1, None, first))
        self._step(JobEvent.OUTPUT_DONE if self.request.plan_only else JobEvent.PLANNED)

    def _scanned(self, running: Running, result: ScanResult) -> None:
        assert isinstance(running.task, ScanTask)
        known, scanned_bytes = self._scans.finish(running.index, running.task, result)
        self.progress.stages[SCAN].bytes_done += scanned_bytes
        if known:
            ready = self._scans.maps_of(known)
            self._tables[MAP].needs_met(ready.start, ready.stop)

    def _mapped(self, running: Running, result: MapResult) -> None:
        redo = self._accounts.accept_map(running, result)
        if redo is not Redo.SAME:
            self._map_changed(running, redo)
        self._accounts.count_map(running.index, result)
        if not self.request.staging_dir:  # on one machine all is at hand
            self.locality = with_one_more(self.locality, result.origin)

    def _map_changed(self, running: Running, redo: Redo) -> None:
        """A redo wrote other rows than the output it replaces: nothing may be made of both."""
        reduces = self._tables[REDUCE]
        if reduces.done or redo is Redo.UNCOUNTED:
            read = f"{format_count(reduces.done)} of {format_count(reduces.total)} reduces had read the first"
            large = "the job is too large to keep every map's count of rows for every partition"
            raise MapChanged(
                f"{task_words(self.plan, running)} gave other rows when it ran again after its output was"
                f" lost, and {read if reduces.done else large}",
                cure="make the map give the same rows for the same input (no random numbers, clocks or sets"
                " of objects ordered by address)",
                details={"attempt": running.attempt},
            )
        for other in [r for r in self.running.values() if r.stage == REDUCE]:
            self.abandoned(other)
            self._revoked.append(other)

    def failed(self, running: Running, failed: TaskFailed, now: float) -> None:
        """An attempt has ended badly: retry it, redo what it lacked, or end the job."""
        self._forget(running)
        self.progress.failed_attempts += 1
        error = with_file(self.plan, running, failed.error)
        table = self._tables[running.stage]
        table.apply(running.index, TaskEvent.RETRY)
        if running.stage == COMMIT and error.code == OutputUnseen.code:  # it has run nothing else of the job
            self.cannot_run_on(running.node, error)
            return
        if error.fault == Fault.FATAL.value:
            self.fail(error)
            return
        if error.fault == Fault.LOST.value and running.stage == REDUCE:
            lost = self._accounts.lost_input(running, error)
            if lost is not None:
                self._redo(lost, error)
                return
        if error.code == InputLost.code:
            if not self._input.may_try_again(running.stage, running.index):
                self.fail(error)
            return
        final = table.record_failure(running.index, error)
        if final is not None:
            self.fail(final)

    def _redo(self, lost: tuple[int, int], error: ErrorReport) -> None:
        maps = self._accounts.to_redo(lost, error)
        if isinstance(maps, ErrorReport):
            self.fail(maps)
        elif maps:
            self._lose_maps(maps)

    def _lose_maps(self, indices: list[int]) -> None:
        self._accounts.outputs.lose(indices)
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
        self._prefetch.forget(node)
        self._lose_parts(self._parts.lost_with(node))
        if self.map_only or self.maps_dropped:
            return
        lost = self._accounts.outputs.lost_with(node)
        if lost:
            self._accounts.outputs.lose(lost)
            self._tables[MAP].lose(lost)
        if self.state is not JobState.DONE and not self._tables[MAP].finished:
            self.progress.stages[MAP].ended_at = None
            self._step(JobEvent.MAP_LOST)

    def needs_of(self, node: str) -> str:
        """What of this job lies on `node` alone and may still be needed; "" for nothing."""
        if self._parts.are_on(node):
            return "parts of the result"
        if self.state in (JobState.PLANNING, JobState.MAPPING) and self.survey.has_alone(node):
            return "input"
        under_way = self.state in (JobState.MAPPING, JobState.REDUCING) and not self.map_only
        return "map outputs" if under_way and self._accounts.outputs.are_on(node) else ""

    def leave_node(self, node: str) -> None:
        """What it was to fetch ahead is anybody's."""
        if self.plan is not None:
            self._prefetch.forget(node)

    def part_lost(self, staged_as: str) -> None:
        """A part cannot be read at its node. One that is not of the output (any more) changes nothing."""
        found = self._parts.made_by(staged_as)
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
                self.fail(self._parts.lost_for_good(indices))
            return
        self._parts.take_out(indices)
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
        self._input.let_go(plan)
        self._scans = ScanTurns(plan, self._first_number)
        self._accounts = JobAccounts(self.job, plan, self.map_only, self.progress, self._parts)

    def heard(self, running: Running, progress: TaskProgress) -> None:
        self.progress.stages[running.stage].change_live(running, progress.stats)

    # --- what it has made ---

    def parts(self) -> tuple[OutputPart, ...]:
        """In output order: by partition, or by map in a map-only job."""
        return self._parts.in_order()

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
            self.progress.stages[REDUCE].rows_total = self._accounts.outputs.all_rows()
            if final.state(0) is TaskState.BLOCKED:
                final.needs_met(0, final.total)
            self._step(JobEvent.MAPPED)
        if self.state is JobState.COMMITTING:
            if self._tables[COMMIT].finished:
                self._step(JobEvent.OUTPUT_DONE)
        elif final.finished:
            self._accounts.check_bytes()
            if self.commits:
                self._commit()
            else:
                self._step(JobEvent.OUTPUT_DONE)

    def _commit(self) -> None:
        """All parts are where they are to be committed. What runs still, no reduce needs."""
        for running in list(self.running.values()):
            self.abandoned(running)
            self._revoked.append(running)
        if self._parts.tasks > COMMIT_TASKS_MAX:
            self.fail(
                OutputFailed(
                    f"{format_count(self._parts.tasks)} files are more than a node commits at once",
                    cure="take larger splits (--split-size), or let the client commit: leave --output-on out",
                ).report()
            )
            return
        self._tables[COMMIT].needs_met(0, 1)
        self._step(JobEvent.OUTPUT_STAGED)

    def _open_stage(self, stage: str, table: TaskTable, bytes_total: int = 0) -> None:
        self._tables[stage] = table
        self.progress.open_stage(stage, table, bytes_total)

    def _forget(self, running: Running) -> None:
        del self.running[running.attempt]
        self.progress.stages[running.stage].change_live(running, NO_STATS)

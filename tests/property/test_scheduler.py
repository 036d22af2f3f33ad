"""Random faults against the scheduler: every job ends, and a job that is done is done right.

The world is a seeded simulation: fake nodes that run leases in any order, lose run files, fail
attempts, fall silent, die and come back, and repeat old messages; and clients that take their time to
fetch the output, which lies in a folder of theirs or on the nodes that made it. The faults are a finite
budget, so that liveness can be asked for: after the last one the jobs must end. Splits, quote states and rows
are invented first, so that the right answer is known without the scheduler.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cortex.errors import ErrorReport
from cortex.ids import JobId, is_attempt_id, new_job_id
from cortex.job.plan import OUT, UNKNOWN, ClientFile, InputFile, InputPlan, Split, SplitGroups, Splits
from cortex.job.spec import InputSpec, JobSpec, OutputSpec
from cortex.limits import (
    LEASE_S,
    LEASES_AHEAD_PER_SLOT,
    PROGRESS_S,
    SCAN_AHEAD_PER_SLOT,
    SCAN_SPLITS_PER_TASK,
)
from cortex.scheduling import events
from cortex.scheduling.scheduler import Scheduler
from cortex.wire import messages as m
from cortex.wire.map_locations import LocationTable, map_outputs

STEPS_MAX = 20_000


class World:
    """The truth about one job's input: its plan, the quote state at every boundary, and its rows."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.map_only = rng.random() < 0.25
        self.reducers = 1 if self.map_only else rng.randint(1, 4)
        files, splits, self.truth = [], [], {}
        for file in range(rng.choice([0, 1, 1, 2, 4])):
            scan, count, offset = rng.random() < 0.6, rng.choice([1, 2, 3, 7, 20]), 0
            files.append(InputFile(file, f"/data/f{file}.csv", "csv", 0, 0, file, needs_scan=scan))
            state = OUT
            for k in range(count):
                self.truth[len(splits)] = state
                unknown = UNKNOWN if scan and k else OUT
                length = rng.randint(1, 9)
                splits.append(Split(len(splits), file, offset, length, start_state=unknown))
                offset += length
                state = rng.choice([0, 1, 2]) if scan else OUT
        # who has the files: nobody is nearer than others, or the client and some nodes, or nodes alone
        self.where = rng.choice(["nowhere", "client", "data"]) if files else "nowhere"
        if self.where != "nowhere":
            files = [msgspec.structs.replace(file, client_file=file.index) for file in files]
        self.salt = rng.random()
        tasks, i = [], 0
        while i < len(splits):
            n = rng.choice([1, 1, 1, 2, 30])
            tasks.append(tuple(range(i, min(i + n, len(splits)))))
            i += n
        total_bytes = sum(s.length for s in splits)
        self.plan = InputPlan(
            tuple(files), Splits.of(splits), SplitGroups.of(tasks), (), total_bytes, self.reducers
        )
        self.maps = max(1, len(tasks)) if self.map_only else len(tasks)
        self.rows = [[rng.choice([0, 0, 3, 5]) for _ in range(self.reducers)] for _ in range(self.maps)]
        self.moody = rng.random() < 0.1  # its maps give other rows each time
        self.fickle_scans = rng.random() < 0.7

    def held_by(self, node: str) -> list[int]:
        """The files below this node's data roots. Each has a node."""
        chance = random.Random(f"{self.salt} {node}")
        return [file.index for file in self.plan.files if chance.random() < 0.5 or node == "n0"]

    def listed(self, files: Iterable[int]) -> tuple[ClientFile, ...]:
        return tuple(ClientFile(f"data:f{file}", 1, 0, b"same") for file in files)

    def scan(self, task: m.ScanTask) -> m.ScanResult:
        first = next(
            s.index for s in self.plan.splits if s.file == task.file and s.offset == task.boundaries[0]
        )
        ends = []
        for i in range(len(task.boundaries) - 1):
            row = [self.rng.choice([0, 1, 2]) for _ in range(3)]
            row[self.truth[first + i]] = self.truth[first + i + 1]
            for state in range(3):
                known = task.start_state != UNKNOWN and state == self.truth[first + i]
                if not known and self.fickle_scans and self.rng.random() < 0.3:
                    row[state] = UNKNOWN
            ends.append(tuple(row))
        if task.start_state != UNKNOWN:
            assert task.start_state == self.truth[first], "a scan was given a wrong start state"
        return m.ScanResult(tuple(ends))

    def check_map(self, task: m.MapTask) -> None:
        wanted = self.plan.tasks[task.map_index] if len(self.plan.tasks) else ()
        assert [s.index for s in task.splits] == list(wanted)
        for split in task.splits:
            after = self.plan.splits[split.index + 1 :][:1]
            last = not after or after[0].file != split.file
            assert split.start_state == self.truth[split.index]
            assert last or split.end_state == self.truth[split.index + 1]

    def map_rows(self, index: int, attempt: str) -> tuple[int, ...]:
        rows = self.rows[index]
        if self.moody:
            rows = [r + random.Random(attempt).randint(0, 1) for r in rows]
        return tuple(rows)


class FakeNode:
    def __init__(self, name: str, slots: int, life: int) -> None:
        self.name, self.slots = name, slots
        self.incarnation = f"{name}-{life}"
        self.jobs: set[str] = set()
        self.planned: set[str] = set()
        self.tables: dict[str, LocationTable] = {}
        self.queue: list[m.RunTask] = []
        self.runs: dict[str, tuple[int, ...]] = {}
        self.unfit: dict[str, bool] = {}
        """Jobs it cannot run; True: it has yet to say so."""
        self.silent_until = -1.0
        self.questions: list[m.ListData | m.FindInput] = []
        self.idle_said = 0
        """Slots that it said stand idle: so many attempts more it may be leased."""

    def hello(self) -> events.NodeJoined:
        address = f"{self.incarnation}:8787"
        return events.NodeJoined(
            m.NodeHello(self.name, self.incarnation, self.slots, 1 << 30, {}, address, data_roots=1)
        )


def address_of(node: FakeNode) -> str:
    return node.hello().hello.data_address


class Simulation:
    def __init__(self, seed: int, jobs: int, nodes: int, faults: int) -> None:
        self.rng = rng = random.Random(seed)
        self.scheduler = self.make_scheduler()
        self.now = 100.0
        self.faults = faults
        self.worlds: dict[str, World] = {}
        self.ends: dict[str, m.JobDone | m.JobFailed] = {}
        self.done: dict[str, m.JobDone] = {}
        """Not fetched yet."""
        self.leased: set[str] = set()
        self.made_by: dict[str, m.OutputNode] = {}
        self.accepted: dict[str, list[str]] = {}
        self.unfit_said: set[str] = set()
        self.not_kept: set[str] = set()
        """Jobs whose map outputs were not kept any more when they were done."""
        self.old: list[events.Event] = []
        self.given_back: list[tuple[FakeNode, m.GivenBack]] = []
        """Answers to recalls that are on their way."""
        self.recalled = 0
        self.lives = 0
        self.slots_max = 0
        self.nodes: dict[str, FakeNode] = {}
        for i in range(nodes):
            self.join(f"n{i}")
        for _ in range(jobs):
            job = new_job_id(rng.randbytes(6))
            world = self.worlds[job] = World(rng)
            form: Any = "none" if world.map_only else "aggregate"
            path = "data:*" if world.where == "data" else "/data/*.csv"
            staging = rng.choice(["/staging", ""])
            output = OutputSpec("/out", at="nodes" if staging and rng.random() < 0.5 else "client")
            spec = JobSpec("sim", InputSpec((path,)), output, reduce_form=form)
            listed = world.listed(file.index for file in world.plan.files)
            theirs = {"client": (listed,), "data": (None,), "nowhere": ()}[world.where]
            self.submit(job, m.SubmitJob(spec, b"", (), staging, client_files=theirs))

    def make_scheduler(self) -> Scheduler:
        return Scheduler()

    def submit(self, job: str, request: m.SubmitJob) -> None:
        self.tell(events.JobSubmitted(job, request))

    def join(self, name: str) -> None:
        self.lives += 1
        node = self.nodes[name] = FakeNode(name, self.rng.randint(1, 3), self.lives)
        self.tell(node.hello())

    def tell(self, event: events.Event) -> None:
        if isinstance(event, m.AttemptFinished | m.AttemptFailed):
            self.old.append(event)
        instructions = self.scheduler.handle(event, self.now)
        self.slots_max = max(self.slots_max, self.scheduler.leases.slots)
        for instruction in instructions:
            if isinstance(instruction, events.SendToClient):
                self.client(instruction.job, instruction.message)
            elif instruction.node in self.nodes:
                self.node(self.nodes[instruction.node], instruction.message)

    def client(self, job: str, message: Any) -> None:
        assert job not in self.ends, "a job that has ended was told of again"
        if isinstance(message, m.JobFailed):
            self.ends[job] = message
            self.done.pop(job, None)
            self.tell(m.JobReceived(job))
        elif isinstance(message, m.JobDone):
            self.done[job] = message
        else:
            assert isinstance(message, m.JobProgress)
            for stage in message.stages:
                assert 0 <= stage.tasks_done + stage.tasks_running <= stage.tasks_total
                assert 0 <= stage.bytes_done <= stage.bytes_total

    def fetch(self, job: str) -> None:
        """The client has every part, or one cannot be had: then another JobDone follows."""
        done = self.done[job]
        for part in done.parts:
            node = self.nodes.get(part.node)
            here = node is not None and self.made_by[part.staged_as].data_address == address_of(node)
            if part.node and not here:
                return
            if part.node and self.fault(0.05):
                self.tell(events.PartUnreadable(job, part.staged_as))
                return
        del self.done[job]
        self.ends[job] = done
        self.tell(m.JobReceived(job))

    def node(self, node: FakeNode, message: Any) -> None:
        if isinstance(message, m.StartJob):
            assert message.job not in node.jobs
            node.jobs.add(message.job)
            if self.fault(0.2):
                node.unfit[message.job] = True
        elif isinstance(message, m.JobPlanned):
            assert message.job in node.jobs
            assert len(message.plan.splits) == len(message.plan.tasks) == 0
            node.planned.add(message.job)
        elif isinstance(message, m.MapLocations):
            assert message.job in node.planned
            for output in map_outputs(message.blocks, JobId(message.job)):
                assert output.attempt in self.made_by
            node.tables.setdefault(message.job, LocationTable()).update(message)
        elif isinstance(message, m.FetchAhead):
            assert message.job in node.planned
            assert 0 < len(message.partitions) <= node.slots
        elif isinstance(message, m.InputHolders):
            assert message.job in node.jobs
        elif isinstance(message, m.ListData | m.FindInput):
            assert message.job in node.jobs
            node.questions.append(message)
        elif isinstance(message, m.Recall):
            self.recall(node, message)
        elif isinstance(message, m.Revoke):
            node.queue = [r for r in node.queue if r.attempt not in message.attempts]
        elif isinstance(message, m.DropMapOutputs):
            assert message.job in node.jobs
        elif isinstance(message, m.EndJob):
            assert message.job in node.jobs
            node.jobs.discard(message.job)
            node.unfit.pop(message.job, None)
            node.planned.discard(message.job)
            node.tables.pop(message.job, None)
            node.queue = [r for r in node.queue if not r.attempt.startswith(message.job)]
        else:
            assert isinstance(message, m.Lease)
            for run in message.tasks:
                job = run.attempt.partition("-")[0]
                assert is_attempt_id(run.attempt)
                assert run.attempt not in self.leased, "an attempt id was used twice"
                self.leased.add(run.attempt)
                assert job in node.jobs
                assert isinstance(run.task, m.PlanTask) or job in node.planned
                if isinstance(run.task, m.MapTask):
                    self.worlds[job].check_map(run.task)
                if isinstance(run.task, m.ReduceTask):
                    table = node.tables.setdefault(job, LocationTable())
                    self.check_inputs(self.worlds[job], job, table, run.task)
                    run = m.RunTask(run.attempt, table.fill(run.task))
                if job in node.unfit:
                    node.unfit[job] = True
                else:
                    node.queue.append(run)
            held = [r for r in node.queue if r.attempt in self.believed(node)]
            assert len(held) <= node.slots * (1 + LEASES_AHEAD_PER_SLOT) + node.idle_said

    def recall(self, node: FakeNode, message: m.Recall) -> None:
        """Those that are not among the first, as many as there are slots, have not begun."""
        assert message.job in node.jobs
        waiting = [r.attempt for r in node.queue[node.slots :] if r.attempt.startswith(message.job)]
        given_back = tuple(reversed(waiting[-message.attempts :]))
        node.queue = [r for r in node.queue if r.attempt not in given_back]
        self.recalled += len(given_back)
        answer = m.GivenBack(node.name, node.incarnation, given_back)
        self.given_back.append((node, answer))

    def answers(self, node: FakeNode) -> bool:
        """Does what it says arrive?"""
        return self.nodes.get(node.name) is node

    def check_inputs(self, world: World, job: str, table: LocationTable, task: m.ReduceTask) -> None:
        """In map order, at the node that made it, and every map with rows for the partition is there."""
        outputs = list(map_outputs(table.fill(task).inputs, JobId(job)))
        order = [output.map_index for output in outputs]
        assert order == sorted(set(order))
        assert world.moody or {i for i, rows in enumerate(world.rows) if rows[task.partition]} == set(order)
        for output in outputs:
            assert self.made_by[output.attempt] == table.nodes[output.node]

    def believed(self, node: FakeNode) -> Any:
        return self.scheduler.leases.nodes[node.name].held

    # --- what nodes do ---

    def answer(self, node: FakeNode) -> None:
        question = node.questions.pop(0)
        held = self.worlds[question.job].held_by(node.name)
        if isinstance(question, m.ListData):
            found = self.worlds[question.job].listed(held)
            self.tell(m.DataListed(node.name, question.job, (found,)))
        else:
            bits = sum(1 << file for file in held).to_bytes((len(question.files) + 7) // 8, "little")
            self.tell(m.InputFound(node.name, question.job, bits))

    def run_one(self, node: FakeNode) -> None:
        run = node.queue.pop(self.rng.randrange(min(len(node.queue), node.slots)))
        job = run.attempt.partition("-")[0]
        world, task = self.worlds[job], run.task
        if self.fault(0.15):
            fault = self.rng.choice(["task", "task", "task", "lost", "fatal"] + ["task"] * 20)
            signature = self.rng.choice(["", "", self.rng.choice("abcdefghijklmnop")])
            self.failed(node, run, ErrorReport("user-code", "boom", fault=fault, signature=signature))
            return
        result: m.Result
        stats = m.TaskStats(rows_in=1, bytes_in=1, rows_out=1, bytes_out=10, spilled_bytes=1)
        if isinstance(task, m.PlanTask):
            result = m.PlanResult(world.plan)
        elif isinstance(task, m.ScanTask):
            result = world.scan(task)
        elif isinstance(task, m.MapTask):
            rows = world.map_rows(task.map_index, run.attempt)
            part = m.OutputPart(f"part-{task.map_index}", run.attempt, 1, 1, ())
            parts = (part,) if world.map_only else ()
            node.runs[run.attempt] = rows
            stats = msgspec.structs.replace(stats, bytes_out=10 if world.map_only else 10 * sum(rows))
            self.made_by[run.attempt] = m.OutputNode(node.name, address_of(node))
            result = m.MapResult(
                task.map_index, stats, () if world.map_only else rows, hash(rows) % 2**64, parts,
                {"c": {"maps": 1}},
            )  # fmt: skip
        elif isinstance(task, m.CommitTask):
            indices = range(world.maps) if world.map_only else range(world.reducers)
            assert [(part.name, part.node) for part in task.parts] == [(f"part-{i}", "") for i in indices]
            if self.fault(0.2):
                error = ErrorReport("output-unseen", f"{node.name} does not see it", "mount it")
                self.unfit_said.add(job)
                self.failed(node, run, error)
                return
            result = m.CommitResult()
        else:
            total = 0
            for ref in map_outputs(task.inputs, JobId(job)):
                holders = [n for n in self.nodes.values() if ref.attempt in n.runs]
                if holders and self.fault(0.03):
                    del holders[0].runs[ref.attempt]
                    holders = []
                if not holders:
                    error = ErrorReport("corrupt-run", "gone", fault="lost", details={"attempt": ref.attempt})
                    self.failed(node, run, error)
                    return
                total += holders[0].runs[ref.attempt][task.partition]
            part = m.OutputPart(f"part-{task.partition}", run.attempt, 1, 1, ())
            self.made_by[run.attempt] = m.OutputNode(node.name, address_of(node))
            result = m.ReduceResult(
                task.partition,
                msgspec.structs.replace(stats, rows_in=total, bytes_in=10 * total),
                (part,),
                {"c": {"reduces": 1}},
            )
        done = m.TaskFinished(run.attempt, result, self.rng.random(), 1)
        self.report(node, m.AttemptFinished(node.name, node.incarnation, done))

    def report(self, node: FakeNode, event: m.AttemptFinished | m.AttemptFailed) -> None:
        self.tell(event)

    def failed(self, node: FakeNode, run: m.RunTask, error: ErrorReport) -> None:
        failed = m.TaskFailed(run.attempt, error, 0.1, 1)
        self.report(node, m.AttemptFailed(node.name, node.incarnation, failed))

    def fault(self, probability: float) -> bool:
        if self.faults > 0 and self.rng.random() < probability:
            self.faults -= 1
            return True
        return False

    def heartbeat(self, node: FakeNode) -> None:
        running = tuple(
            m.TaskProgress(r.attempt, m.TaskStats(bytes_in=self.rng.randint(0, 20), rows_in=1))
            for r in node.queue[: node.slots]
        )
        reduces = any(isinstance(r.task, m.ReduceTask) for r in node.queue)
        idle = int(reduces and self.rng.random() < 0.2)
        node.idle_said += idle
        self.tell(m.Heartbeat(node.name, node.incarnation, running, 100, 200, idle_slots=idle))

    def step(self) -> None:
        rng = self.rng
        self.now += rng.random() * PROGRESS_S
        if rng.random() < 0.3:
            self.now += PROGRESS_S
            self.tell(events.Tick())
        if self.old and self.fault(0.1):  # a message out of the past
            self.tell(rng.choice(self.old))
        for item in [each for each in self.given_back if each[0].silent_until <= self.now]:
            if rng.random() < 0.5:
                self.given_back.remove(item)
                if self.answers(item[0]):
                    self.tell(item[1])
        awake = [n for n in self.nodes.values() if n.silent_until <= self.now]
        for node in list(awake):
            if rng.random() < 0.3:
                self.heartbeat(node)
        for node in awake:
            for job in [job for job, unsaid in node.unfit.items() if unsaid]:
                node.unfit[job] = False
                error = ErrorReport("package-missing", f"{node.name} lacks it", "install it")
                self.unfit_said.add(job)
                self.tell(m.CannotServe(node.name, node.incarnation, job, error))
        for node in awake:
            if node.questions and rng.random() < 0.5 and self.nodes.get(node.name) is node:
                self.answer(node)
        if awake and self.fault(0.02):
            rng.choice(awake).silent_until = self.now + LEASE_S * rng.choice([0.5, 2.5])
        if self.nodes and self.fault(0.02):
            name = rng.choice(sorted(self.nodes))
            del self.nodes[name]
            if rng.random() < 0.7:
                self.tell(events.NodeLost(name))
            self.join(name)
        if self.done and self.fault(0.1):
            job = rng.choice(sorted(self.done))
            self.not_kept.add(job)
            self.tell(events.MapsNotKept(job))
        if self.done and rng.random() < 0.3:
            self.fetch(rng.choice(sorted(self.done)))
        busy = [n for n in self.nodes.values() if n.silent_until <= self.now and n.queue]
        if busy:
            self.run_one(rng.choice(busy))
        else:
            self.now += 1.0
            for node in self.nodes.values():
                if node.silent_until <= self.now:
                    self.heartbeat(node)

    def run(self) -> None:
        for _ in range(STEPS_MAX):
            if len(self.ends) == len(self.worlds):
                break
            self.step()
            self.check_ahead()
        else:
            raise AssertionError(f"a job hangs: {set(self.worlds) - set(self.ends)}")
        for job, end in self.ends.items():
            self.check_end(self.worlds[job], end, job in self.unfit_said, job in self.not_kept)
        assert not self.scheduler.jobs
        assert not self.scheduler.kept
        assert not any(n.held for n in self.scheduler.leases.nodes.values())

    def check_ahead(self) -> None:
        bound = SCAN_AHEAD_PER_SLOT * self.slots_max + SCAN_SPLITS_PER_TASK
        for job, run in self.scheduler.jobs.items():
            widest = max(map(len, self.worlds[job].plan.tasks), default=0)
            assert run.plan is None or run._scans.ahead <= bound + widest

    def check_end(self, world: World, end: m.JobDone | m.JobFailed, unfit: bool, dropped: bool) -> None:
        if isinstance(end, m.JobFailed):
            # Either a fault that was injected, or maps that are not deterministic, by name.
            codes = {"user-code", "corrupt-run"} | ({"map-changed"} if world.moody else set())
            codes |= {"package-missing", "output-unseen"} if unfit else set()
            codes |= {"results-lost"} if dropped and not world.map_only else set()
            # a node that is not there when the job is submitted has not been asked for its files
            codes |= {"input-lost", "input"} if world.where == "data" else set()
            assert end.error.code in codes, end.error
            return
        indices = range(world.maps) if world.map_only else range(world.reducers)
        assert [p.name for p in end.parts] == [f"part-{i}" for i in indices]
        assert end.report.rows_in == world.maps
        counted = end.report.counters.get("c", {})
        assert counted.get("maps", 0) == world.maps
        assert counted.get("reduces", 0) == (0 if world.map_only else world.reducers)
        assert all(s.tasks_done == s.tasks_total for s in end.report.stages if s.stage != "map")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 3), st.sampled_from([0, 0, 3, 10, 40]))
@example(0, 3, 3, 200)
def test_every_job_ends_and_ends_right(seed: int, jobs: int, nodes: int, faults: int) -> None:
    simulation = Simulation(seed, jobs, nodes, faults)
    simulation.run()
    assert simulation.ends.keys() == simulation.worlds.keys()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_without_faults_every_job_is_done(seed: int, nodes: int) -> None:
    simulation = Simulation(seed, 2, nodes, 0)
    simulation.run()
    assert all(isinstance(end, m.JobDone) for end in simulation.ends.values())
    assert all(end.report.failed_attempts == 0 for end in simulation.ends.values())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_the_same_events_give_the_same_instructions(seed: int) -> None:
    texts = []
    for _ in range(2):
        simulation = Simulation(seed, 2, 2, 10)
        log: list[str] = []
        handle = simulation.scheduler.handle

        def logged(event: events.Event, now: float, log: list[str] = log, handle: Any = handle) -> Any:
            log.append(repr(handle(event, now)))
            return handle.__self__._out

        simulation.scheduler.handle = logged  # type: ignore[method-assign]
        simulation.run()
        texts.append(log)
    assert texts[0] == texts[1]

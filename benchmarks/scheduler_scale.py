"""The scheduler alone under a simulated cluster: its decisions are real, the nodes and the time are not.

`Simulation` plays every node of a cluster that runs one job: nodes join, map and reduce attempts take
simulated seconds, nodes beat, die and come back, a run file is lost. It checks what it is told (no
attempt twice, no node overfull, every input in map order and where it really is) and what comes out
(rows conserved, every partition once). Around each decision it asks `clock`, so that the figures are
of `Scheduler.handle` and nothing else. No sockets, no processes: ``python -m benchmarks scheduler``.
"""

from __future__ import annotations

import argparse
import bisect
import gc
import heapq
import json
import random
import resource
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import msgspec

from cortex.errors import ErrorReport, Fault
from cortex.ids import JobId
from cortex.job.plan import OUT, UNKNOWN, ClientFile, InputFile, InputPlan, Split, SplitGroups, SplitsMade
from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import HEARTBEAT_S, LEASE_S, LEASES_AHEAD_PER_SLOT, MIB, PROGRESS_S
from cortex.scheduling import events
from cortex.scheduling.scheduler import Scheduler
from cortex.wire import messages as m
from cortex.wire.map_locations import LocationTable, MapOutput, map_outputs

JOB = JobId("j0123456789ab")
DECISION_MS_MAX = 10.0
"""The promise about the 99th percentile of all decisions."""
HEARTBEAT_CORE_MAX = 0.05
"""The promise about heartbeats: this part of one core, decoding included."""
_SPLIT_BYTES = 64 * MIB
_ROW_BYTES = 20
_ROW_PATTERNS = 16  # maps write rows in one of so many ways: making a million would be all the work
_SAMPLE = 64  # one in so many events is also encoded and decoded, as the wire would
_AWAY_S = 20.0  # a lost node comes back after this


@dataclass(frozen=True)
class Cluster:
    nodes: int = 1000
    slots: int = 8
    maps: int = 1_000_000
    partitions: int = 1000
    files: int = 1000
    scanned: bool = False
    """The input is CSV: quote states are scanned ahead of the maps."""
    touched: int = 0
    """Partitions a map has rows for, next to each other and moving with its number; 0: all."""
    copies: int = 0
    """Nodes that have each file below their data roots; 0: nobody is nearer to it than others."""
    map_s: float = 4.0
    reduce_s: float = 20.0
    beat_s: float = 0.0
    """How often a node beats while attempts run; 0: as the scheduler asks it to."""
    nodes_lost: int = 5
    nodes_silent: int = 1
    runs_lost: int = 5
    seed: int = 0


@dataclass
class Node:
    name: str
    life: int
    slots: int
    queue: deque[m.RunTask] = field(default_factory=deque)
    running: dict[str, m.RunTask] = field(default_factory=dict)
    made: array[int] = field(default_factory=lambda: array("I"))
    """Maps whose outputs it wrote in this life: numbers, or collecting garbage would go through them all."""
    table: LocationTable = field(default_factory=LocationTable)
    alive: bool = True
    beat_s: float = HEARTBEAT_S
    silent_until: float = 0.0
    held_back: list[events.Event] = field(default_factory=list)

    @property
    def incarnation(self) -> str:
        return str(self.life)

    @property
    def output_node(self) -> m.OutputNode:
        return m.OutputNode(self.name, f"{self.name}:{self.life}")


class _Due(msgspec.Struct, order=True, gc=False):
    """What happens when. The driver's own objects are kept from the garbage collector as the scheduler's
    are, or its pauses would be measured instead."""

    when: float
    serial: int
    what: Callable[[Simulation, _Due], None]
    node: Any = None
    run: Any = None
    took: float = 0.0


class Spent:
    """Nanoseconds of every decision, by what it was about."""

    def __init__(self) -> None:
        self.by_kind: dict[str, array[int]] = {}
        self.longest: list[tuple[int, str]] = []

    def add(self, kind: str, spent_ns: int, describe: Callable[[], str]) -> None:
        self.by_kind.setdefault(kind, array("Q")).append(spent_ns)
        if len(self.longest) < 5 or spent_ns > self.longest[-1][0]:
            self.longest = sorted([*self.longest, (spent_ns, describe())], reverse=True)[:5]

    @staticmethod
    def figures(samples: array[int]) -> dict[str, float]:
        ordered = sorted(samples)
        last = len(ordered) - 1
        found: dict[str, float] = {"count": len(ordered), "total_s": round(sum(ordered) / 1e9, 3)}
        for name, part in (("p50_ms", 0.5), ("p99_ms", 0.99), ("p99.9_ms", 0.999), ("max_ms", 1.0)):
            found[name] = round(ordered[int(last * part)] / 1e6, 4)
        return found

    def report(self) -> dict[str, Any]:
        every = array("Q")
        for samples in self.by_kind.values():
            every.extend(samples)
        return {
            "all": self.figures(every),
            **{kind: self.figures(samples) for kind, samples in sorted(self.by_kind.items())},
            "longest": [f"{spent_ns / 1e6:.2f} ms: {text}" for spent_ns, text in self.longest],
        }


class Simulation:
    """One job on one cluster. `clock` gives nanoseconds; `run` raises AssertionError if anything is off."""

    def __init__(self, cluster: Cluster, clock: Callable[[], int] = lambda: 0) -> None:
        self.cluster = cluster
        self.rng = random.Random(cluster.seed)
        self.clock = clock
        self.scheduler = Scheduler()
        self.now = 0.0
        self.spent = Spent()
        self.decoding = Spent()
        self.instructions: Counter[str] = Counter()
        self.tasks_leased = 0
        self.maps_leased = self.maps_local = 0
        self.held_bytes: dict[str, int] = {}
        self.end: m.JobDone | m.JobFailed | None = None
        self._events: list[_Due] = []
        self._serial = 0
        self._lives = 0
        self._nodes: dict[str, Node] = {}
        self._number_due = {"m": array("H", bytes(2 * cluster.maps)), "r": array("H", bytes(2 * 4096))}
        self._tasks_done = 0
        self._leased_at: dict[str, int] = {}
        self._losses: list[Node] = []
        self._accepted = array("H", bytes(2 * cluster.maps))
        self._made_in = array("I", bytes(4 * cluster.maps))
        self._checked: list[m.MapLocations] = []
        self._milestones: list[tuple[int, Callable[[], None]]] = []
        self._patterns = [self._pattern(i) for i in range(_ROW_PATTERNS)]
        self._totals = self._expected_totals()
        self._runs_to_lose = cluster.runs_lost
        self._collecting_ns = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(m.FromNode)

    # --- the truth ---

    def _pattern(self, number: int) -> tuple[int, ...]:
        rows = [self.rng.choice([0, 3, 200, 1000, 5000, 70_000]) for _ in range(self.cluster.partitions)]
        touched = self.cluster.touched
        if touched:
            first = number * self.cluster.partitions // _ROW_PATTERNS
            rows = [n if first <= p < first + touched else 0 for p, n in enumerate(rows)]
        return tuple(rows)

    def _rows(self, index: int) -> tuple[int, ...]:
        if self.cluster.touched:  # neighbours write to the same partitions, as of sorted input
            return self._patterns[index * _ROW_PATTERNS // self.cluster.maps]
        return self._patterns[index % _ROW_PATTERNS]

    def _expected_totals(self) -> list[int]:
        wrote = Counter(self._patterns.index(self._rows(i)) for i in range(self.cluster.maps))
        return [
            sum(n * self._patterns[k][p] for k, n in wrote.items()) for p in range(self.cluster.partitions)
        ]

    def _plan(self) -> InputPlan:
        count, files, scanned = self.cluster.maps, self.cluster.files, self.cluster.scanned
        splits, input_files = SplitsMade(), []
        for file in range(files):
            mine = count * (file + 1) // files - count * file // files
            kind = "csv" if scanned else "text"
            size = mine * _SPLIT_BYTES
            input_files.append(
                InputFile(
                    file, f"/data/{file}.{kind}", kind, size, 0, file, needs_scan=scanned, client_file=file
                )
            )
            for k in range(mine):
                state = UNKNOWN if scanned and k else OUT
                end = UNKNOWN if scanned else OUT
                splits.add(
                    Split(len(splits), file, k * _SPLIT_BYTES, _SPLIT_BYTES, start_state=state, end_state=end)
                )
        return InputPlan(
            tuple(input_files),
            splits.done(),
            SplitGroups.of(range(i, i + 1) for i in range(count)),
            (("line", "string"),),
            count * _SPLIT_BYTES,
            self.cluster.partitions,
        )

    # --- time ---

    def at(self, when: float, what: Callable[[Simulation, _Due], None], *more: Any) -> None:
        self._serial += 1
        heapq.heappush(self._events, _Due(when, self._serial, what, *more))

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """From the first node to the job's end, or until something is so; a second call goes on."""
        if not self._lives:
            self._begin()
        gc.callbacks.append(self._collected)
        try:
            while self.end is None and not until():
                assert self._events, "nothing happens any more: the job hangs"
                due = heapq.heappop(self._events)
                self.now = due.when
                due.what(self, due)
        finally:
            gc.callbacks.remove(self._collected)
        if self.end is not None:
            self._check_end()

    def _begin(self) -> None:
        cluster = self.cluster
        for number in range(cluster.nodes):
            self._join(f"node-{number:04d}")
        form: Any = "aggregate"
        spec = JobSpec("scale", InputSpec(("/data/*",)), reduce_form=form)
        listed = tuple(ClientFile(f"/data/{file}", 1, 1) for file in range(cluster.files))
        found = (listed,) if cluster.copies else ()
        self.tell(events.JobSubmitted(JOB, m.SubmitJob(spec, b"code", (), "/staging", client_files=found)))
        self.at(PROGRESS_S, Simulation._tick)
        for number in range(cluster.nodes_lost):
            last = number == cluster.nodes_lost - 1
            reduces = cluster.partitions // 2 if last else 0
            self._when_done(cluster.maps * (number + 1) // cluster.nodes_lost + reduces, self._lose_node)
        for number in range(cluster.nodes_silent):
            self._when_done(cluster.maps * (2 * number + 1) // (2 * cluster.nodes_silent), self._silence_node)

    def _collected(self, phase: str, _info: dict[str, int]) -> None:
        self._collecting_ns += self.clock() if phase == "stop" else -self.clock()

    def _when_done(self, tasks: int, what: Callable[[], None]) -> None:
        """When so many tasks are done, for the first time."""
        self._milestones.append((tasks, what))

    def _tick(self, _: _Due) -> None:
        self.at(self.now + PROGRESS_S, Simulation._tick)
        self.tell(events.Tick())

    def _beat(self, due: _Due) -> None:
        node = due.node
        if not node.alive:
            return
        self.at(self.now + (node.beat_s if node.running else HEARTBEAT_S), Simulation._beat, node)
        stats = m.TaskStats(rows_in=int(self.now * 1000), bytes_in=int(self.now * 100_000))
        running = tuple(m.TaskProgress(attempt, stats) for attempt in node.running)
        self.say(node, m.Heartbeat(node.name, node.incarnation, running, 1 << 30, 1 << 30))

    # --- faults ---

    def _join(self, name: str) -> None:
        self._lives += 1
        node = self._nodes[name] = Node(name, self._lives, self.cluster.slots)
        address = node.output_node.data_address
        roots = int(self.cluster.copies > 0)
        hello = m.NodeHello(name, node.incarnation, node.slots, 1 << 33, {}, address, data_roots=roots)
        self.tell(events.NodeJoined(hello))
        self.at(self.now + self.rng.random() * HEARTBEAT_S, Simulation._beat, node)

    def _some_node(self) -> Node:
        return self.rng.choice([n for n in self._nodes.values() if n.alive and n.silent_until <= self.now])

    def _lose_node(self) -> None:
        node = self._some_node()
        node.alive = False
        node.running.clear()
        node.queue.clear()
        self._losses.append(node)
        self.tell(events.NodeLost(node.name))
        self.at(self.now + _AWAY_S, Simulation._come_back, node)

    def _come_back(self, due: _Due) -> None:
        self._join(due.node.name)

    def _silence_node(self) -> None:
        """Its messages come late, after its leases: some of its work is done twice."""
        node = self._some_node()
        node.silent_until = self.now + 1.5 * LEASE_S
        self._losses.append(node)
        self.at(node.silent_until, Simulation._break_silence, node)

    def _break_silence(self, due: _Due) -> None:
        late, due.node.held_back = due.node.held_back, []
        for event in late:
            self.tell(event)

    # --- what nodes do ---

    def say(self, node: Node, event: Any) -> None:
        if node.silent_until > self.now:
            node.held_back.append(event)
        else:
            self.tell(event)

    def _obey(self, node: Node, message: m.ToNode) -> None:
        if isinstance(message, m.StartJob):
            node.beat_s = self.cluster.beat_s or message.progress_s
        elif isinstance(message, m.FindInput):
            self.at(self.now + 0.01, Simulation._find_input, node)
        elif isinstance(message, m.MapLocations):
            node.table.update(message)
            self._check_locations(node, message)
        elif isinstance(message, m.Lease):
            for run in message.tasks:
                node.queue.append(self._check_lease(node, run))
            self.tasks_leased += len(message.tasks)
            assert len(node.queue) + len(node.running) <= node.slots * (1 + LEASES_AHEAD_PER_SLOT)
            self._start(node)
        elif isinstance(message, m.Revoke):
            gone = set(message.attempts)
            node.queue = deque(run for run in node.queue if run.attempt not in gone)
            for attempt in gone:
                node.running.pop(attempt, None)
            self._start(node)

    def _has(self, node: Node, file: int) -> bool:
        """Copies of a file are a few nodes apart, so that no two files are on the same ones."""
        cluster = self.cluster
        return (int(node.name[5:]) - file) % cluster.nodes in {k * (k + 1) for k in range(cluster.copies)}

    def _find_input(self, due: _Due) -> None:
        bits = bytearray((self.cluster.files + 7) // 8)
        for file in range(self.cluster.files):
            bits[file >> 3] |= self._has(due.node, file) << (file & 7)
        if due.node.alive:
            self.say(due.node, m.InputFound(due.node.name, JOB, bytes(bits)))

    def _check_lease(self, node: Node, run: m.RunTask) -> m.RunTask:
        """An attempt's number is the next of its task: none is leased twice."""
        task, _, number = run.attempt.rpartition(".")
        letter = task[14]
        if letter in self._number_due:
            due, index = self._number_due[letter], int(task[15:])
            assert due[index] == int(number), run.attempt
            due[index] += 1
        if isinstance(run.task, m.MapTask):
            self.maps_leased += 1
            self.maps_local += self._has(node, run.task.splits[0].file)
        if isinstance(run.task, m.ReduceTask):
            if "maps done" not in self.held_bytes:
                self.held_bytes["maps done"] = held_bytes(self.scheduler)
            self._leased_at[run.attempt] = len(self._losses)
            run = m.RunTask(run.attempt, node.table.fill(run.task))
        return run

    def _check_locations(self, node: Node, message: m.MapLocations) -> None:
        """Every output is where it was really made, by the attempt that was accepted."""
        if any(message is each for each in self._checked):
            return  # the same for many nodes
        self._checked.append(message)
        for output in map_outputs(message.blocks, JOB):
            assert self._accepted[output.map_index] == number_of(output.attempt), output
            assert self._made_in[output.map_index] == int(node.table.nodes[output.node].data_address[10:]), (
                output
            )

    def _start(self, node: Node) -> None:
        while node.queue and len(node.running) < node.slots:
            run = node.queue.popleft()
            node.running[run.attempt] = run
            took = self._seconds(run.task)
            self.at(self.now + took, Simulation._finish, node, run, took)

    def _seconds(self, task: m.Task) -> float:
        if isinstance(task, m.ReduceTask):
            return self.cluster.reduce_s * self.rng.uniform(0.5, 1.5)
        if isinstance(task, m.MapTask):
            return self.cluster.map_s * self.rng.uniform(0.5, 1.5)
        return 0.5

    def _finish(self, due: _Due) -> None:
        node, run, took = due.node, due.run, due.took
        if node.running.pop(run.attempt, None) is None:
            return  # revoked, or its node is no more
        task = run.task
        result: m.Result
        stats = m.TaskStats(1_000_000, _SPLIT_BYTES, 900_000, 20 * MIB, 0, 0, 1000)
        if isinstance(task, m.PlanTask):
            result = m.PlanResult(self._plan())
        elif isinstance(task, m.ScanTask):
            result = m.ScanResult(((OUT, OUT, OUT),) * (len(task.boundaries) - 1))
        elif isinstance(task, m.MapTask):
            wrote = self._rows(task.map_index)
            stats = msgspec.structs.replace(stats, bytes_out=_ROW_BYTES * sum(wrote))
            result = m.MapResult(task.map_index, stats, wrote, task.map_index)
        else:
            missing = self._missing(node, run)
            if missing:
                error = ErrorReport("corrupt-run", "gone", "", {"attempt": missing}, Fault.LOST.value)
                self.say(
                    node,
                    m.AttemptFailed(node.name, node.incarnation, m.TaskFailed(run.attempt, error, took, 1)),
                )
                self._start(node)
                return
            part = m.OutputPart(f"part-{task.partition}", run.attempt, 1, 1, ())
            read = self._totals[task.partition]
            rows = m.TaskStats(rows_in=read, bytes_in=_ROW_BYTES * read, shuffled_bytes=1)
            result = m.ReduceResult(task.partition, rows, (part,))
        finished = m.TaskFinished(run.attempt, result, took, 1)
        self.say(node, m.AttemptFinished(node.name, node.incarnation, finished))
        self._start(node)
        if isinstance(task, m.MapTask | m.ReduceTask):
            self._tasks_done += 1
            for milestone in [each for each in self._milestones if each[0] <= self._tasks_done]:
                self._milestones.remove(milestone)
                milestone[1]()

    def _missing(self, node: Node, run: m.RunTask) -> str:
        """An input of a reduce that is not there: its node was lost meanwhile, or (a few times) by chance."""
        assert isinstance(run.task, m.ReduceTask)
        inputs = run.task.inputs
        for lost in self._losses[self._leased_at.pop(run.attempt) :]:
            for index in lost.made if not lost.alive else ():
                output = output_of(inputs, index)
                if output is not None and node.table.nodes[output.node] == lost.output_node:
                    return output.attempt
        if inputs and self._runs_to_lose:
            self._runs_to_lose -= 1
            return self.rng.choice(list(map_outputs([self.rng.choice(inputs)], JOB))).attempt
        return ""

    # --- the scheduler ---

    def tell(self, event: Any) -> None:
        kind = kind_of(event)
        stale = self.scheduler.stale_messages
        if (self._serial % _SAMPLE == 0 or kind == "PlanResult") and isinstance(event, m.FromNode):
            self._sample(kind, event)
        collecting_ns = self._collecting_ns
        before = self.clock()
        instructions = self.scheduler.handle(event, self.now)
        spent = self.clock() - before
        collected_ns = self._collecting_ns - collecting_ns
        if kind == "MapResult" and self.scheduler.stale_messages == stale:
            node = self._nodes[event.node]
            node.made.append(event.done.result.map_index)
            self._made_in[event.done.result.map_index] = node.life
            self._accepted[event.done.result.map_index] = number_of(event.done.attempt)
        self.spent.add(kind, spent, lambda: describe(event, instructions, collected_ns))
        for instruction in instructions:
            self.instructions[type(instruction.message).__name__] += 1
            if isinstance(instruction, events.SendToNode):
                node = self._nodes[instruction.node]
                if node.alive:
                    self._obey(node, instruction.message)
            elif isinstance(instruction.message, m.JobDone | m.JobFailed):
                self.end = instruction.message
                self.tell(m.JobReceived(instruction.job))

    def _sample(self, kind: str, event: m.FromNode) -> None:
        data = self._encoder.encode(event)
        before = self.clock()
        self._decoder.decode(data)
        self.decoding.add(kind, self.clock() - before, lambda: f"{len(data)} bytes")

    # --- what came out ---

    @property
    def stale_messages(self) -> int:
        return self.scheduler.stale_messages

    def _check_end(self) -> None:
        end, cluster = self.end, self.cluster
        assert isinstance(end, m.JobDone), end
        assert [part.name for part in end.parts] == [f"part-{p}" for p in range(cluster.partitions)]
        stages = {stage.stage: stage for stage in end.report.stages}
        assert stages["map"].tasks_done == stages["map"].tasks_total == cluster.maps
        assert stages["reduce"].tasks_done == cluster.partitions
        assert end.report.rows_in == cluster.maps * 1_000_000
        assert stages["reduce"].rows_in == sum(self._totals)
        assert not self.scheduler.jobs
        assert not self.scheduler.kept
        assert not any(node.held for node in self.scheduler.leases.nodes.values())

    def figures(self) -> dict[str, Any]:
        """What was measured, as plain data."""
        decoding = {kind: Spent.figures(samples) for kind, samples in self.decoding.by_kind.items()}
        beats = len(self.spent.by_kind["Heartbeat"])
        handled_s = sum(self.spent.by_kind["Heartbeat"]) / 1e9
        decoded_s = (
            sum(self.decoding.by_kind["Heartbeat"]) / 1e9 / len(self.decoding.by_kind["Heartbeat"]) * beats
        )
        return {
            "cluster": asdict(self.cluster),
            "simulated_s": round(self.now, 1),
            "decisions": self.spent.report(),
            "decoding": decoding,
            "heartbeats": {
                "per_s": round(beats / self.now, 1),
                "handled_core": round(handled_s / self.now, 5),
                "with_decoding_core": round((handled_s + decoded_s) / self.now, 5),
            },
            "bytes_held": self.held_bytes,
            "bytes_per_map": round(self.held_bytes["maps done"] / self.cluster.maps, 1),
            "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "locations_bytes": max(len(self._encoder.encode(message)) for message in self._checked),
            "tasks_leased": self.tasks_leased,
            "maps_local": round(self.maps_local / max(1, self.maps_leased), 4)
            if self.cluster.copies
            else None,
            "instructions": dict(self.instructions),
            "stale_messages": self.stale_messages,
        }


def kind_of(event: Any) -> str:
    """What a decision is counted under: the event's type, or that of the result it brings."""
    return type(event.done.result if isinstance(event, m.AttemptFinished) else event).__name__


def output_of(inputs: tuple[m.MapBlock, ...], index: int) -> MapOutput | None:
    """The output of this map, if it is one of a reduce's inputs."""
    place = bisect.bisect_right(inputs, index, key=lambda block: block.first) - 1
    if place < 0:
        return None
    return next((o for o in map_outputs(inputs[place : place + 1], JOB) if o.map_index == index), None)


def number_of(attempt: str) -> int:
    return int(attempt.rpartition(".")[2])


def describe(event: Any, instructions: list[events.Instruction], collected_ns: int) -> str:
    """What a decision was about and what it led to."""
    kinds = Counter(type(instruction.message).__name__ for instruction in instructions)
    tasks = sum(len(i.message.tasks) for i in instructions if isinstance(i.message, m.Lease))
    done = getattr(event, "done", None)
    about = f" of {done.attempt}" if done is not None else ""
    led = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "nothing"
    pause = f", {collected_ns / 1e6:.2f} ms of it collecting garbage" if collected_ns else ""
    return f"{type(event).__name__}{about} -> {led}, {tasks} tasks leased{pause}"


def missed(figures: dict[str, Any]) -> str:
    """The promise that the figures break; "" if none."""
    p99_ms, core = figures["decisions"]["all"]["p99_ms"], figures["heartbeats"]["with_decoding_core"]
    if p99_ms > DECISION_MS_MAX:
        return f"promised are decisions of {DECISION_MS_MAX:.0f} ms at p99"
    if core > HEARTBEAT_CORE_MAX:
        return f"promised are heartbeats in {HEARTBEAT_CORE_MAX:.0%} of a core"
    return ""


def in_short(figures: dict[str, Any]) -> str:
    """The figures that matter, for a person."""
    every, beats = figures["decisions"]["all"], figures["heartbeats"]
    points = ", ".join(f"{every[f'{point}_ms']:.3f} at {point}" for point in ("p50", "p99", "p99.9"))
    core = f"{beats['with_decoding_core']:.2%} of a core with decoding"
    lines = [
        f"{every['count']:,} decisions in {every['total_s']:.1f} s",
        f"each in ms: {points}, {every['max_ms']:.1f} at most",
        f"{beats['per_s']:.0f} heartbeats/s: {core}",
        f"{figures['bytes_per_map']:.0f} bytes a map; where outputs are: {figures['locations_bytes']:,}",
        *figures["decisions"]["longest"],
    ]
    return "\n".join(f"    {line}" for line in lines)


def _referents(thing: object) -> Iterator[object]:
    if isinstance(thing, msgspec.Struct):  # those without cycles do not tell the collector
        yield from (getattr(thing, name) for name in thing.__struct_fields__)
    elif not isinstance(thing, memoryview):
        yield from gc.get_referents(thing)


def held_bytes(root: object) -> int:
    """Bytes of `root` and all that it alone leads to, classes and code excepted."""
    seen: set[int] = set()
    total, todo = 0, [root]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type | ModuleType | FunctionType):
            continue
        seen.add(id(thing))
        total += thing.nbytes if isinstance(thing, memoryview) else sys.getsizeof(thing)
        todo.extend(_referents(thing))
    return total


def main(argv: list[str] | None = None) -> int:
    """Run one simulation and write its figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduler_scale", description=__doc__)
    defaults = Cluster()
    for name, value in ((n, getattr(defaults, n)) for n in Cluster.__dataclass_fields__):
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(value), default=value)
    parser.add_argument("--json", type=Path, help="where to write the figures (default: standard output)")
    options = vars(parser.parse_args(argv))
    path = options.pop("json")
    simulation = Simulation(Cluster(**options), time.thread_time_ns)
    gc.collect()
    gc.freeze()  # as the server does: what is there from the start is looked at no more
    simulation.run()
    text = json.dumps(simulation.figures(), indent=1)
    if path is None:
        print(text)
    else:
        path.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

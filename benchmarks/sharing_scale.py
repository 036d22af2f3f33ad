"""Many jobs of many users on one simulated cluster: what a decision costs, and how slots were shared.

The scheduler is real, nodes and time are not, as in `benchmarks.scheduler_scale`. All slots are busy with the
first job when the others come, all users with equal weights. Maps take simulated seconds and write nothing.
A node obeys as the real one does: successors wait, what has not begun is given back.

    python -m benchmarks.sharing_scale [--nodes 1000] [--jobs 1000] [--users 100] [--map-s 1.0]
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from benchmarks.scheduler_scale import DECISION_MS_MAX, Spent, describe, kind_of
from cortex.ids import new_job_id
from cortex.job.plan import OUT, InputFile, InputPlan, Split, SplitGroups, SplitsMade
from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import HEARTBEAT_S, LEASES_AHEAD_PER_SLOT, PROGRESS_S
from cortex.scheduling import events
from cortex.scheduling.scheduler import Scheduler
from cortex.wire import messages as m

_FIRST_S = 5.0  # the first job has the cluster alone for so long


@dataclass(frozen=True)
class Load:
    nodes: int = 1000
    slots: int = 8
    jobs: int = 1000
    users: int = 100
    maps: int = 400
    """Of each job but the first, which has enough for all."""
    map_s: float = 1.0
    seconds: float = 30.0
    """Simulated, from when the others come."""
    seed: int = 0


class _Node:
    def __init__(self, name: str, slots: int) -> None:
        self.name, self.slots = name, slots
        self.running: dict[str, m.RunTask] = {}
        self.queue: deque[m.RunTask] = deque()


class SharingSimulation:
    """`run` raises AssertionError when a node is overfull or stands idle while others wait."""

    def __init__(self, load: Load, clock: Callable[[], int] = lambda: 0) -> None:
        self.load, self.clock = load, clock
        self.rng = random.Random(load.seed)
        self.scheduler = Scheduler()
        self.now = 0.0
        self.spent = Spent()
        self.user_of: dict[str, str] = {}
        self.came_at: dict[str, float] = {}
        self.waits_s: dict[str, float] = {}
        """Job -> from when it came to when its first task ran."""
        self.instructions: Counter[str] = Counter()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._nodes = {f"n{n:04d}": _Node(f"n{n:04d}", load.slots) for n in range(load.nodes)}
        self._plans: dict[int, InputPlan] = {}

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._due, (when, self._serial, what))

    def run(self) -> None:
        load = self.load
        for node in self._nodes.values():
            hello = m.NodeHello(node.name, "1", load.slots, 1 << 33, {}, f"{node.name}:8787")
            self.tell(events.NodeJoined(hello))
            self.at(self.rng.random() * HEARTBEAT_S, lambda node=node: self._beat(node))  # type: ignore[misc]
        self._submit("u0", load.nodes * load.slots * int(load.seconds / load.map_s + 10))
        self.at(PROGRESS_S, self._tick)
        for number in range(1, load.jobs):
            when = _FIRST_S + self.rng.random()
            user = f"u{number % load.users}"
            self.at(when, lambda user=user: self._submit(user, load.maps))  # type: ignore[misc]
        while self._due and self._due[0][0] < _FIRST_S + 1 + load.seconds:
            self.now, _, what = heapq.heappop(self._due)
            what()

    def _submit(self, user: str, maps: int) -> None:
        job = new_job_id(self.rng.randbytes(6))
        self.user_of[job], self.came_at[job] = user, self.now
        request = m.SubmitJob(JobSpec(str(maps), InputSpec(("/data/*",))), b"code", (), "/staging")
        self.tell(events.JobSubmitted(job, request, user))

    def _tick(self) -> None:
        self.at(self.now + PROGRESS_S, self._tick)
        self.tell(events.Tick())

    def _beat(self, node: _Node) -> None:
        self.at(self.now + HEARTBEAT_S, lambda: self._beat(node))
        running = tuple(m.TaskProgress(attempt, m.TaskStats(rows_in=1)) for attempt in node.running)
        self.tell(m.Heartbeat(node.name, "1", running, 1, 1))

    def _plan(self, maps: int) -> InputPlan:
        plan = self._plans.get(maps)
        if plan is None:
            splits = SplitsMade()
            for k in range(maps):
                splits.add(Split(k, 0, k, 1, start_state=OUT, end_state=OUT))
            groups = SplitGroups.of(range(i, i + 1) for i in range(maps))
            file = InputFile(0, "/data/a", "text", maps, 0, 0)
            plan = self._plans[maps] = InputPlan((file,), splits.done(), groups, (), maps, 0)
        return plan

    def tell(self, event: Any) -> None:
        before = self.clock()
        instructions = self.scheduler.handle(event, self.now)
        self.spent.add(kind_of(event), self.clock() - before, lambda: describe(event, instructions, 0))
        for instruction in instructions:
            self.instructions[type(instruction.message).__name__] += 1
            if isinstance(instruction, events.SendToNode):
                self._obey(self._nodes[instruction.node], instruction.message)
            elif isinstance(instruction.message, m.JobDone):
                self.at(self.now, lambda job=instruction.job: self.tell(m.JobReceived(job)))  # type: ignore[misc]
            else:
                assert isinstance(instruction.message, m.JobProgress), instruction.message

    def _obey(self, node: _Node, message: m.ToNode) -> None:
        if isinstance(message, m.Lease):
            with_slot = len(message.tasks) - message.successors
            node.queue.extendleft(reversed(message.tasks[:with_slot]))
            node.queue.extend(message.tasks[with_slot:])
            assert len(node.queue) + len(node.running) <= node.slots * (1 + LEASES_AHEAD_PER_SLOT)
            self._start(node)
        elif isinstance(message, m.Recall):
            waiting = [run.attempt for run in node.queue if run.attempt.startswith(message.job)]
            back = tuple(reversed(waiting))[: message.attempts]
            node.queue = deque(run for run in node.queue if run.attempt not in back)
            self.at(self.now + 0.001, lambda: self.tell(m.GivenBack(node.name, "1", back)))
        elif isinstance(message, m.Revoke):
            raise AssertionError("nothing that runs is stopped")

    def _start(self, node: _Node) -> None:
        while node.queue and len(node.running) < node.slots:
            run = node.queue.popleft()
            job = run.attempt.partition("-")[0]
            node.running[run.attempt] = run
            self.waits_s.setdefault(job, self.now - self.came_at[job])
            took = 0.05 if isinstance(run.task, m.PlanTask) else self.load.map_s * self.rng.uniform(0.5, 1.5)
            self.at(self.now + took, partial(self._finish, node, run, took))

    def _finish(self, node: _Node, run: m.RunTask, took: float) -> None:
        del node.running[run.attempt]
        job = run.attempt.partition("-")[0]
        own = next((each for each in node.queue if each.attempt.startswith(job)), None)
        if own is not None:  # a slot stays with its job while something of it waits
            node.queue.remove(own)
            node.queue.appendleft(own)
            self._start(node)
        result: m.Result
        if isinstance(run.task, m.PlanTask):
            result = m.PlanResult(self._plan(int(self.scheduler.jobs[job].request.spec.name)))
        else:
            assert isinstance(run.task, m.MapTask)
            part = m.OutputPart(f"part-{run.task.map_index}", run.attempt, 1, 1, ())
            result = m.MapResult(run.task.map_index, m.TaskStats(rows_in=1), (), 0, (part,))
        self.tell(m.AttemptFinished(node.name, "1", m.TaskFinished(run.attempt, result, took, 1)))
        self._start(node)

    # --- what came out ---

    def slots_of_users(self) -> Counter[str]:
        held: Counter[str] = Counter()
        for node in self._nodes.values():
            for attempt in node.running:
                held[self.user_of[attempt.partition("-")[0]]] += 1
        return held

    def figures(self) -> dict[str, Any]:
        waits = sorted(self.waits_s[job] for job in self.came_at if self.came_at[job] and job in self.waits_s)
        users = sorted(self.slots_of_users().values())
        busy = sum(len(node.running) for node in self._nodes.values())
        return {
            "load": asdict(self.load),
            "decisions": self.spent.report(),
            "first_task_after_s": {
                "jobs": len(waits),
                "not_begun": self.load.jobs - 1 - len(waits),
                "p50": round(waits[len(waits) // 2], 3),
                "p99": round(waits[int((len(waits) - 1) * 0.99)], 3),
                "max": round(waits[-1], 3),
            },
            "slots": {
                "all": self.load.nodes * self.load.slots,
                "busy": busy,
                "of_users": [users[0], users[-1]],
            },
            "instructions": dict(self.instructions),
        }


def main(argv: list[str] | None = None) -> int:
    """Run one simulation and print its figures as JSON; 1 if decisions take longer than promised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharing_scale", description=__doc__)
    for name, value in asdict(Load()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    simulation = SharingSimulation(Load(**vars(parser.parse_args(argv))), time.thread_time_ns)
    gc.collect()
    gc.freeze()
    simulation.run()
    figures = simulation.figures()
    print(json.dumps(figures, indent=1))
    return int(figures["decisions"]["all"]["p99_ms"] > DECISION_MS_MAX)


if __name__ == "__main__":
    sys.exit(main())

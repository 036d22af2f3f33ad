"""A stand-in for `cortex.tasks.runner.JobContext`: real processes, tasks that do what their paths say.

The job's input paths are commands, one map each: ``ok``, ``sleep:S``, ``kill:SIGNAL``, ``memory:MB`` ... Each
map appends a line to ``<staging>/log``, so that tests see what ran.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from cortex.errors import InputError
from cortex.job.plan import InputFile, InputPlan, Split, SplitGroups, Splits
from cortex.wire.messages import (
    MapResult,
    MapTask,
    OpenJob,
    OutputPart,
    PlanResult,
    PlanTask,
    Result,
    Task,
    TaskStats,
)

Progress = Callable[[TaskStats], None]


class Context:
    retires = False

    def __init__(self, open_job: OpenJob, _link: object) -> None:
        self.job = open_job
        self.plan: InputPlan | None = None
        self.kept: list[bytes] = []
        if open_job.code == b"broken":
            raise InputError("the job cannot be opened", details={"file": "x.csv"})

    def planned(self, plan: InputPlan) -> None:
        self.plan = plan

    def position(self) -> tuple[int, int]:
        return 0, 0

    def close(self) -> None:
        self.plan = None

    def run(self, attempt: str, task: Task, progress: Progress) -> Result:
        if isinstance(task, PlanTask):
            return PlanResult(plan_of(self.job))
        assert isinstance(task, MapTask)
        assert self.plan is not None
        command = self.plan.files[task.splits[0].file].path.removeprefix("/")
        with open(os.path.join(self.job.staging_dir, "log"), "a") as log:
            log.write(f"{attempt} {command} {os.getpid()}\n")
        with open(os.path.join(self.job.work_dir, attempt), "wb") as run_file:
            run_file.write(b"x" * 1000)
        self._obey(command, attempt, progress)
        name = f"part-{task.map_index:05d}.csv"
        with open(os.path.join(self.job.staging_dir, attempt), "w") as part:
            part.write(command)
        parts = (OutputPart(name, attempt, 1, len(command), (("line", "string"),)),)
        stats = TaskStats(rows_in=1, rows_out=1, spilled_bytes=1000)
        verb, _, what = command.partition(":")
        counters = {"large": {"x" * (int(what) << 20): 1}} if verb == "answer" else {}
        return MapResult(task.map_index, stats, parts=parts, counters=counters)

    def _obey(self, command: str, attempt: str, progress: Progress) -> None:
        verb, _, what = command.partition(":")
        first = attempt.endswith(".0")
        if verb == "sleep":
            end = time.monotonic() + float(what)
            while time.monotonic() < end:
                time.sleep(0.01)
                progress(TaskStats(rows_in=1))
        elif verb == "hang":
            time.sleep(float(what))
        elif verb == "kill" or (verb == "killonce" and first):
            print("last words on stdout")
            print("last words on stderr", file=sys.stderr)
            os.kill(os.getpid(), getattr(signal, what))
            time.sleep(10)
        elif verb == "memory":
            block = bytearray(int(what) << 20)
            block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
        elif verb == "leak":
            self.kept.append(b"x" * (int(what) << 20))
        elif verb == "child":
            child = "x = bytearray(%d << 20); x[::4096] = b'x' * len(x[::4096]); import time; time.sleep(20)"
            children = [subprocess.Popen([sys.executable, "-c", child % int(what)]) for _ in range(3)]
            for each in children:
                each.wait()
        elif verb == "exit":
            sys.exit(int(what))
        elif verb == "stdout":
            if what == "close":
                sys.stdout.close()
            else:
                sys.stdout = None  # type: ignore[assignment]
        elif verb == "osexit":
            os._exit(int(what))
        elif verb == "bug":
            raise ZeroDivisionError("a bug")


def plan_of(job: OpenJob) -> InputPlan:
    commands = [path.removeprefix("/") for path in job.spec.input.paths]
    files = tuple(InputFile(i, command, "text", 100, 0, 0) for i, command in enumerate(commands))
    splits = Splits.of(Split(i, i, 0, 100) for i in range(len(commands)))
    tasks = SplitGroups.of((i,) for i in range(len(commands)))
    return InputPlan(files, splits, tasks, (("line", "string"),), 100 * len(commands), 1)

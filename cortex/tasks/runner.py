"""A job in an executor: opened once, given its plan, then one task at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable

from cortex.errors import InternalError
from cortex.formats.csv_records import scan_states
from cortex.formats.planning import plan_inputs
from cortex.job.plan import InputPlan
from cortex.storage.filesystem import LocalFilesystem
from cortex.storage.map_output_store import MapOutputStore
from cortex.tasks.budget import Budget
from cortex.tasks.job_bundle import enter_bundle
from cortex.tasks.map_task import MapAttempt
from cortex.tasks.program import Program
from cortex.tasks.reduce_task import ReduceAttempt
from cortex.wire.messages import (
    MapTask,
    OpenJob,
    PlanResult,
    PlanTask,
    ReduceTask,
    Result,
    ScanResult,
    ScanTask,
    Task,
    TaskStats,
)


class JobContext:
    """Serves one job in one process, one task at a time.

    Unpickles the user's code, so it exists only in executors. Raises CortexErrors; anything else that
    comes out is a bug.
    """

    def __init__(self, open_job: OpenJob) -> None:
        for folder in reversed(open_job.sys_path):
            if folder not in sys.path:
                sys.path.insert(0, folder)
        enter_bundle(open_job)
        self._store = MapOutputStore(LocalFilesystem(), open_job.work_dir)
        self._program = Program(
            open_job.spec,
            open_job.code,
            self._store,
            open_job.staging_dir,
            Budget.of(open_job.memory_bytes),
        )

    def planned(self, plan: InputPlan) -> None:
        """The input plan; before the first scan, map or reduce."""
        self._program.plan = plan

    def run(self, attempt: str, task: Task, progress: Callable[[TaskStats], None]) -> Result:
        """Do one task. `progress` is called often and from this thread."""
        program = self._program
        if isinstance(task, PlanTask):
            return self._plan()
        if isinstance(task, ScanTask):
            return ScanResult(scan_states(program.plan.files[task.file], task.boundaries))
        if isinstance(task, MapTask):
            return MapAttempt(program, task, attempt, progress).run()
        if isinstance(task, ReduceTask):
            return ReduceAttempt(program, task, attempt, progress).run()
        raise InternalError(f"a task of type {type(task).__name__} reached an executor")

    def _plan(self) -> PlanResult:
        plan = plan_inputs(
            self._program.spec.input,
            used_columns=self._program.used_columns(),
            split_bytes=self._program.spec.resources.split_bytes,
            reducers=self._reducers(),
        )
        self._program.check(plan)
        return PlanResult(plan)

    def _reducers(self) -> int:
        """What the plan is asked for. Without group_by there is one group, whose row one reducer writes."""
        spec = self._program.spec
        if spec.reduce_form == "none":
            return 0
        return 1 if spec.reduce_form == "aggregate" and not spec.group_by else spec.resources.reducers

    def position(self) -> tuple[int, int]:
        """Changes when the task in hand goes on, record by record. May be asked from another thread."""
        return self._program.position()

    def close(self) -> None:
        self._store.close()

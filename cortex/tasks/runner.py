"""A job in an executor: opened once, given its plan, then one task at a time."""

from __future__ import annotations

import os
from collections.abc import Callable

from cortex.errors import InternalError, OutputUnseen
from cortex.formats.csv_records import scan_states
from cortex.formats.input_bytes import at_hand, open_local
from cortex.formats.planning import plan_inputs
from cortex.ids import AttemptId, job_of
from cortex.job.plan import InputPlan
from cortex.limits import FILES_CHECKED_MAX
from cortex.storage.filesystem import LocalFilesystem
from cortex.storage.map_output_store import MapOutputStore
from cortex.storage.shared_output import begin_shared, commit_shared, is_committed, shared_folder
from cortex.storage.spill_quota import SpillQuota
from cortex.tasks.budget import Budget
from cortex.tasks.client_input import ClientInput, Fetched
from cortex.tasks.combine_task import CombineAttempt
from cortex.tasks.job_bundle import enter_bundle, versions_told
from cortex.tasks.map_task import MapAttempt
from cortex.tasks.program import Program
from cortex.tasks.reduce_task import ReduceAttempt
from cortex.version import VERSION
from cortex.wire.messages import (
    CombineTask,
    CommitResult,
    CommitTask,
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

    retires = False

    def __init__(self, open_job: OpenJob) -> None:
        enter_bundle(open_job)
        fs, account = LocalFilesystem(), open_job.spill_account
        self._store = MapOutputStore(
            fs, open_job.work_dir, quota=SpillQuota(fs, open_job.work_dir, account=account)
        )
        self._on_nodes = open_job.spec.output.at == "nodes"
        # a folder of the client's, or one that nodes share: whether there is room is seen when it is written
        spilled = account and not self._on_nodes
        room = SpillQuota(fs, open_job.staging_dir, account=account) if spilled else None
        self._client_input: ClientInput | None = None
        open_input, soon = open_local, at_hand
        if open_job.input_socket:
            self._client_input = ClientInput(
                open_job.input_socket,
                open_job.job,
                self._waiting,
                has_roots=open_job.has_data_roots,
                full=open_job.spec.input.fingerprint == "full",
            )
            open_input, soon = self._client_input.open, self._client_input.soon
        with versions_told(open_job.packages):
            self._program = Program(
                open_job.spec,
                open_job.code,
                self._store,
                open_job.staging_dir,
                Budget.of(open_job.memory_bytes),
                open_input,
                soon,
                room,
                Fetched() if self._client_input is None else self._client_input.fetched,
            )

    def planned(self, plan: InputPlan) -> None:
        """The input plan; before the first scan, map or reduce."""
        self._program.plan = plan

    def run(self, attempt: str, task: Task, progress: Callable[[TaskStats], None]) -> Result:
        """Do one task. `progress` is called often and from this thread."""
        program = self._program
        if self._on_nodes and isinstance(task, MapTask | ReduceTask):
            self._check_output(program.staging_dir)
        if isinstance(task, PlanTask):
            return self._plan(task, attempt)
        if isinstance(task, ScanTask):
            file = program.plan.files[task.file]
            return ScanResult(scan_states(file, task.boundaries, program.open_input))
        if isinstance(task, MapTask):
            return MapAttempt(program, task, attempt, progress).run()
        if isinstance(task, ReduceTask):
            return ReduceAttempt(program, task, attempt, progress).run()
        if isinstance(task, CombineTask):
            return CombineAttempt(program, task, attempt, progress).run()
        if isinstance(task, CommitTask):
            return self._commit(task, attempt)
        raise InternalError(f"a task of type {type(task).__name__} reached an executor")

    def _check_output(self, folder: str) -> None:
        """The folder that the plan's node has made is a probe: does this node see the same path?"""
        if not os.path.isdir(folder):
            cause = "its folder, which another node has made, is not there"
        elif not os.access(folder, os.W_OK | os.X_OK):
            cause = "no right to write there"
        else:
            return
        output = self._program.spec.output.path
        raise OutputUnseen(
            f"node {os.uname().nodename} does not see the output {output}, or may not write it: {cause}",
            cure="mount the same file system there, at the same path, or leave --output-on nodes out",
            details={"looked for": folder},
        )

    def _commit(self, task: CommitTask, attempt: str) -> CommitResult:
        spec = self._program.spec
        output, job = spec.output, job_of(AttemptId(attempt))
        manifest = {"job": spec.name, "format": output.format, "cortex": VERSION}
        fs = LocalFilesystem()
        if not is_committed(fs, output.path, job):
            self._check_output(shared_folder(output.path, job))
        commit_shared(fs, output.path, job, output.overwrite, task.parts, manifest, attempt)
        return CommitResult()

    def _plan(self, task: PlanTask, attempt: str) -> PlanResult:
        if self._on_nodes:
            output = self._program.spec.output
            begin_shared(LocalFilesystem(), output.path, job_of(AttemptId(attempt)), output.overwrite)
        plan = plan_inputs(
            self._program.spec.input,
            used_columns=self._program.used_columns(),
            split_bytes=self._program.spec.resources.split_bytes,
            reducers=self._reducers(),
            client_files=task.client_files,
            data_files=task.data_files,
            open_input=self._program.open_input,
            soon=self._program.soon,
            one_machine=self._client_input is None,
        )
        if task.detached and self._client_input is not None:
            self._client_input.check(plan.files[:FILES_CHECKED_MAX])
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

    def _waiting(self) -> None:
        self._program.position.step()  # a task that waits for the client does not hang

    def close(self) -> None:
        if self._client_input is not None:
            self._client_input.close()
        self._store.close()

"""A compute job on its way: calls of functions, for as long as its client sends some.

Its tasks are *workers*: attempts that hold a slot and run what the `CallDesk` gives them, until another job
is to have the slot, or the job ends. So slots go to jobs by their shares, and calls to workers without asking
whose turn it is. There is nothing to replay in a later life of the server: the client sends again what it has
no result of, and nodes say what they hold.
"""

from __future__ import annotations

import msgspec

from cortex.errors import CortexError, ErrorReport, Fault, ProtocolError
from cortex.ids import AttemptId, JobId, attempt_id, parse_attempt, task_id
from cortex.limits import CALL_DEATHS_MAX
from cortex.scheduling.call_desk import CallDesk
from cortex.scheduling.events import FromSubmitter, Instruction, SendToClient
from cortex.scheduling.job_state import JobEvent, JobState
from cortex.scheduling.leases import CALLS, Node, Running
from cortex.scheduling.progress import ROWS_IN, ROWS_OUT
from cortex.scheduling.records import JobRecord
from cortex.scheduling.run import Run
from cortex.units import counted
from cortex.wire.messages import (
    CallPrinted,
    Cell,
    CellsGivenBack,
    CellsRun,
    CellsTaken,
    ChildCells,
    ChildrenAwaited,
    ChildrenDropped,
    DropCells,
    ForgetFunctions,
    FromWorker,
    FunctionCode,
    OutputNode,
    SendCells,
    ServeTask,
    SubmitJob,
    TaskFailed,
    TaskFinished,
    WorkerHolds,
)


class ComputeRun(Run):
    """See `Run` for its arguments. `take_said` after every call."""

    serves = True

    def __init__(self, job: JobId, request: SubmitJob, now: float, lives: int = 0) -> None:
        super().__init__(job, request, now, JobState.COMPUTING, lives)
        self.desk = CallDesk(job, restored=lives > 0)
        self.progress.open_stage(CALLS, self.desk.counts).began_at = now
        self._next_worker = 0
        self._serving: set[str] = set()
        """Attempts that have said something."""
        self._failed_starts = 0
        """Attempts in a row that ended badly before they said anything."""
        self._ends = False
        """No more calls come."""
        self._openings = 0

    # --- what the client and workers say ---

    def client_said(self, message: FromSubmitter) -> None:
        try:
            if isinstance(message, FunctionCode):
                self.desk.function(message)
            elif isinstance(message, ForgetFunctions):
                self.desk.forget_functions(message.functions)
            elif isinstance(message, SendCells):
                self._submit("", message.cells)
                self.desk.counts.coming = message.coming
            elif isinstance(message, DropCells):
                self.desk.drop("", message.cells)
            elif isinstance(message, CellsTaken):
                self.desk.taken(message.pieces)
            else:
                self._ends = True
        except CortexError as error:
            self.fail(error.report())
        self._look()

    def worker_said(self, node: Node, attempt: str, said: FromWorker) -> None:
        """Also of an attempt that has ended: what it has done counts."""
        if attempt in self.running and attempt not in self._serving:
            self._serving.add(attempt)
            self._failed_starts = 0
        if isinstance(said, CellsRun):
            self.desk.worker_ran(attempt, node.name, bool(node.hello.data_address), said.results)
        elif isinstance(said, CellsGivenBack):
            self.desk.worker_gave_back(attempt, said.pieces)
        elif isinstance(said, CallPrinted):
            self.desk.said.append(SendToClient(self.job, msgspec.structs.replace(said, node=node.name)))
        elif isinstance(said, FunctionCode):
            self.desk.function(said, of_worker=True)
        elif isinstance(said, ChildCells):
            self._submit(attempt, said.cells)
        elif isinstance(said, ChildrenDropped):
            self.desk.drop(attempt, self.desk.children_of(attempt) if said.all else said.cells)
        elif isinstance(said, ChildrenAwaited):
            self.desk.worker_awaits(attempt, said.waiting, said.first)
        else:
            self.desk.taken(said.pieces)
        self._look()

    def worker_holds(self, held: WorkerHolds) -> None:
        if held.attempt in self.running:
            self._serving.add(held.attempt)
        self.desk.worker_holds(held.attempt, held.node, held.pieces, held.functions)
        self._look()

    def take_said(self) -> list[Instruction]:
        """What is to be sent, in order."""
        said, self.desk.said = self.desk.said, []
        return said

    def _submit(self, source: str, cells: tuple[Cell, ...]) -> None:
        for cell in cells:
            if not 0 <= cell.start < cell.end <= cell.count:
                raise ProtocolError(f"cell {cell.cell} has no calls {cell.start} to {cell.end}")
            if not self.desk.has_function(cell.function):
                raise ProtocolError(f"cell {cell.cell} names a function that was not sent")
        self.desk.submit(source, cells)

    # --- workers ---

    @property
    def openings(self) -> int:
        return self._openings

    def next_task(self, node: Node, slots: int, now: float) -> Running | None:
        able = node.name not in self.unfit and node.works_for(self.job)
        if not able or not self.has_ready(slots):
            return None
        index, self._next_worker = self._next_worker, self._next_worker + 1
        attempt = attempt_id(task_id(self.job, "w", index), self._first_number)
        running = Running(attempt, self.job, CALLS, index, self._first_number, node.output_node, ServeTask())
        return self._leased(running)

    def _leased(self, running: Running) -> Running:
        self.running[running.attempt] = running
        self.desk.worker_leased(running.attempt, running.node)
        return running

    def resume(self, attempt: str, node: OutputNode, version: int | None, now: float) -> Running | None:
        parsed = parse_attempt(attempt)
        if parsed is None or parsed[0] != self.job or self.ended or attempt in self.running:
            return None
        index, number = parsed[2], parsed[3]
        self._next_worker = max(self._next_worker, index + 1)
        return self._leased(Running(AttemptId(attempt), self.job, CALLS, index, number, node, ServeTask()))

    def replay(self, record: JobRecord) -> None:
        """Workers end, and nothing of it matters later."""

    def ready_tasks(self, slots: int) -> int:
        return 0 if self.held_back or self.ended else self.desk.wanted

    def has_ready(self, slots: int) -> bool:
        return self.ready_tasks(slots) > 0

    @property
    def tasks_waiting(self) -> int:
        return self.desk.waiting

    def finished(self, running: Running, done: TaskFinished, now: float) -> None:
        self._forget(running, None)

    def failed(self, running: Running, failed: TaskFailed, now: float) -> None:
        """Its executor has died, or never came so far as to serve: that is the job's own fault (what it
        travels with cannot be used), if it is so again and again."""
        self.progress.failed_attempts += 1
        served = running.attempt in self._serving
        self._failed_starts += not served
        self._forget(running, failed.error if served else None)
        if failed.error.fault == Fault.FATAL.value or self._failed_starts >= CALL_DEATHS_MAX:
            self.fail(failed.error)

    def abandoned(self, running: Running) -> None:
        self._forget(running, None)

    def _forget(self, running: Running, died: ErrorReport | None) -> None:
        del self.running[running.attempt]
        self._serving.discard(running.attempt)
        self.desk.worker_gone(running.attempt, died)
        self._look()

    def totals(self) -> tuple[list[int], list[int]]:
        sums = self.progress.stages[CALLS].sums
        return sums, sums

    # --- nodes ---

    def place(self) -> None:
        """It is known what nodes hold."""
        self.desk.resume()
        self._look()

    def hold_back(self) -> None:
        """Until it is known what nodes hold, nothing is given out."""
        self.held_back = self.desk.paused = True

    def node_away(self, node: str) -> None:
        self.desk.node_away(node)

    def node_lost(self, node: str) -> None:
        super().node_lost(node)
        self.desk.node_lost(node)
        self._look()

    def needs_of(self, node: str) -> str:
        results = self.desk.needs_of(node)
        return counted(results, "large result") if results else ""

    def leave_node(self, node: str) -> None:
        self.desk.end_workers(len(self.running), node=node)

    def part_lost(self, staged_as: str) -> None:
        self.desk.result_lost(staged_as)
        self._look()

    # --- how it ends ---

    def _look(self) -> None:
        """After anything that has happened: is there more to lease, or is it over?"""
        self._openings += self.desk.wanted > 0
        counts, stage = self.desk.counts, self.progress.stages[CALLS]
        stage.sums[ROWS_OUT], stage.sums[ROWS_IN] = counts.done, counts.failed
        if not self._ends or self.ended or self.desk.cells or self.held_back:
            return
        if not self.running or self.desk.has_dropped:  # calls in hand that nobody wants are not waited for
            self._step(JobEvent.OUTPUT_DONE)
            return
        self.desk.end_workers(len(self.running))

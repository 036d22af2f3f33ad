"""Compute jobs in the scheduler, by golden lists: workers, shares, drains, and a later life of the server."""

from __future__ import annotations

from typing import Any

import msgspec

from cortex.errors import ExecutorDied, Fault, UserCodeError
from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import CALL_DEATHS_MAX, SLOT_TURN_S
from cortex.scheduling import events
from cortex.scheduling.job_state import JobState
from cortex.scheduling.scheduler import Scheduler
from cortex.scheduling.status import job_statuses
from cortex.wire import messages as m
from tests.unit.test_scheduler import JOB, OTHER, make_plan
from tests.unit.test_scheduler_drain import DrainDriver

F = "f" * 32
SPEC = JobSpec("calls", InputSpec(()), compute=True)


class ComputeDriver(DrainDriver):
    def show(self, instruction: events.Instruction) -> str:
        message = getattr(instruction, "message", None)
        if isinstance(instruction, events.SendToClient) and isinstance(message, m.CellsDone):
            results = ", ".join(
                f"{d.cell}[{d.start}:{d.stop}]{' failed' if d.failed else ''}" for d in message.results
            )
            return f"client {instruction.job[-1]} <- {results}, {message.slots} slots"
        if isinstance(instruction, events.SendToNode):
            if isinstance(message, m.RunCells):
                cells = ", ".join(f"{c.cell}[{c.start}:{c.end}]" for c in message.cells)
                return f"{instruction.node} <- {message.attempt[14:]} runs {cells}"
            if isinstance(message, m.EndServing):
                return f"{instruction.node} <- {message.attempt[14:]} ends"
            if isinstance(message, m.CellsTaken):
                return f"{instruction.node} <- taken {', '.join(str(p.cell) for p in message.pieces)}"
        return super().show(instruction)

    def compute(self, job: str = JOB) -> list[str]:
        self.tell(events.JobSubmitted(job, m.SubmitJob(SPEC, b"", (), "", job=job)))
        return self.tell(m.FunctionCode(job, F, "f", b"code"))

    def send(self, *cells: int, calls: int = 1, job: str = JOB) -> list[str]:
        return self.tell(m.SendCells(job, tuple(m.Cell(n, F, calls, m.CallForm.ONE, b"d") for n in cells)))

    def said(self, worker: str, said: m.FromWorker, node: str = "n", job: str = JOB) -> list[str]:
        return self.tell(m.WorkerSaid(node, "1", f"{job}-{worker}", said))

    def ran(self, worker: str, *cells: int, calls: int = 1, node: str = "n", **more: Any) -> list[str]:
        done = tuple(m.CellDone("", n, 0, calls, b"r", **more) for n in cells)
        return self.said(worker, m.CellsRun(f"{JOB}-{worker}", done), node)

    def ended(self, worker: str, node: str = "n", job: str = JOB) -> list[str]:
        return self.done(f"{job}-{worker}", m.ServeResult(), node=node)

    def died(self, worker: str, node: str = "n") -> list[str]:
        error = ExecutorDied("killed by SIGSEGV", signature="segv").report()
        return self.tell(m.AttemptFailed(node, "1", m.TaskFailed(f"{JOB}-{worker}", error, 1.0, 1)))


W0, W1, W2 = "w000000.0", "w000001.0", "w000002.0"


def test_from_the_first_call_to_the_end() -> None:
    d = ComputeDriver(slots=2)
    d.join()
    assert d.compute() == []  # no slot is taken for nothing
    assert d.send(0) == ["n <- StartJob 1", f"n <- Lease 1-{W0}"]
    assert d.ran(W0) == ["n <- FunctionCode 1", "n <- w000000.0 runs 0[0:1]"]  # its first word: it is there
    assert d.ran(W0, 0, seconds=0.5) == ["client 1 <- 0[0:1], 1 slots"]
    assert d.tell(m.CellsTaken(JOB, (m.Piece("", 0, 0, 1),))) == ["n <- taken 0"]
    assert d.send(1) == ["n <- w000000.0 runs 1[0:1]"]  # no further worker, the function is known
    status = job_statuses(d.scheduler, {}, 1.0)[0]
    stage = status.stages[0]
    assert (status.state, stage.stage, stage.tasks_done, stage.tasks_total, stage.tasks_running) == (
        "computing",
        "calls",
        1,
        2,
        1,
    )
    assert d.tell(m.EndCalls(JOB)) == []  # one is under way
    assert d.ran(W0, 1) == ["client 1 <- 1[0:1], 1 slots", "n <- w000000.0 ends"]
    assert d.ended(W0) == ["client 1 <- JobDone"]
    assert d.scheduler.calls() == (2, 0)
    assert d.tell(m.JobReceived(JOB)) == ["n <- EndJob 1"]
    assert (d.scheduler.jobs, d.scheduler.kept) == ({}, {})


def test_a_result_counts_once_and_a_lost_node_is_no_loss() -> None:
    d = ComputeDriver()
    d.join("a")
    d.join("b")
    d.compute()
    d.send(0)
    node = next(iter(d.scheduler.jobs[JOB].running.values())).node
    other = "b" if node == "a" else "a"
    d.ran(W0, node=node)
    again = d.tell(events.NodeLost(node))
    assert f"{other} <- Lease 1-{W1}" in again
    assert d.ran(W1, node=other) == [f"{other} <- FunctionCode 1", f"{other} <- w000001.0 runs 0[0:1]"]
    assert d.ran(W1, 0, node=other)[0] == "client 1 <- 0[0:1], 1 slots"
    late = d.ran(W0, 0, node=node)
    assert late == []  # of a node that is lost: stale


def test_an_executor_that_dies_of_a_call_is_replaced_and_the_call_fails_at_last() -> None:
    d = ComputeDriver()
    d.join()
    d.compute()
    d.send(0, 1)
    for death in range(CALL_DEATHS_MAX):
        worker = f"w{death:06d}.0"
        runs = d.ran(worker)
        assert f"n <- {worker} runs 0[0:1]" in runs
        lines = d.died(worker)
    assert "client 1 <- 0[0:1] failed, 0 slots" in lines
    assert "n <- w000004.0 runs 1[0:1]" in d.ran("w000004.0")
    assert d.scheduler.jobs[JOB].progress.failed_attempts == CALL_DEATHS_MAX


def test_a_job_whose_executors_cannot_begin_fails_with_the_cause() -> None:
    d = ComputeDriver()
    d.join()
    d.compute()
    d.send(0)
    error = UserCodeError("no module named helpers", signature="x").report()
    for start in range(CALL_DEATHS_MAX):
        lines = d.tell(m.AttemptFailed("n", "1", m.TaskFailed(f"{JOB}-w{start:06d}.0", error, 1.0, 1)))
    assert lines[-1] == "client 1 <- JobFailed user-code"
    fatal = ComputeDriver()
    fatal.join()
    fatal.compute()
    fatal.send(0)
    error = UserCodeError("no such package", signature="x").report()
    error = msgspec.structs.replace(error, fault=Fault.FATAL.value)
    lines = fatal.tell(m.AttemptFailed("n", "1", m.TaskFailed(f"{JOB}-{W0}", error, 1.0, 1)))
    assert lines[-1] == "client 1 <- JobFailed user-code"


def test_cells_that_make_no_sense_fail_their_job_alone() -> None:
    d = ComputeDriver()
    d.join()
    d.compute()
    d.compute(OTHER)
    unknown = m.Cell(0, "e" * 32, 1, m.CallForm.ONE, b"d")
    assert d.tell(m.SendCells(JOB, (unknown,))) == ["client 1 <- JobFailed protocol"]
    backwards = m.Cell(0, F, 3, m.CallForm.ONE, b"d", start=2, stop=1)
    assert d.tell(m.SendCells(OTHER, (backwards,))) == ["client 2 <- JobFailed protocol"]
    assert d.tell(m.SendCells(OTHER, (unknown,))) == []  # it has ended: its client does not know yet


def test_idle_workers_give_their_slots_to_whoever_waits() -> None:
    d = ComputeDriver(slots=2)
    d.join()
    d.compute()
    d.send(0, 1)
    d.ran(W0)
    d.ran(W1)
    d.ran(W0, 0)
    d.ran(W1, 1)
    lines = d.submit(OTHER)
    assert [line for line in lines if "ends" in line] == ["n <- w000000.0 ends", "n <- w000001.0 ends"]
    assert any(line.startswith("n <- Lease") and "plan" in line for line in d.ended(W0))
    assert d.scheduler.jobs[JOB].state is JobState.COMPUTING
    d.ended(W1)
    lines = d.send(2)  # a slot is free, and it takes one again
    assert any("Lease" in line and "w000002" in line for line in lines)


def test_a_job_of_many_calls_gives_way_to_another_and_gets_its_share_back() -> None:
    d = ComputeDriver(slots=2)
    d.join()
    d.compute()
    d.send(*range(20))
    d.ran(W0)
    d.ran(W1)
    d.now = SLOT_TURN_S + 1
    lines = d.submit(OTHER) + d.tick()
    ends = [line for line in lines if line.endswith("ends")]
    assert len(ends) == 1  # half of two slots
    worker = ends[0].split()[2]
    cell = next(p.cell.message.cell for p in d.scheduler.jobs[JOB].desk._workers[f"{JOB}-{worker}"].hand)  # type: ignore[attr-defined]
    d.ran(worker, cell)  # it ends after the call in hand
    assert any("plan" in line for line in d.ended(worker))
    plan = make_plan(splits=1)
    d.done(f"{OTHER}-plan.0", m.PlanResult(plan))
    result = m.MapResult(0, m.TaskStats(bytes_out=40), (4,))
    d.done(f"{OTHER}-m000000.0", result)
    d.done(f"{OTHER}-r000000.0", m.ReduceResult(0, m.TaskStats(rows_in=4, bytes_in=40)))
    running = d.scheduler.jobs[JOB].running
    assert len(running) == 2  # the other is done


def test_a_node_that_drains_ends_its_workers() -> None:
    d = ComputeDriver()
    d.join()
    d.compute()
    d.send(0, 1)
    d.ran(W0)
    assert "n <- w000000.0 ends" in d.drain("n")
    d.ran(W0, 0)
    assert d.ended(W0) == []
    assert d.waits("n") == ()
    d.join("b")
    assert f"{JOB}-{W1}" in d.scheduler.jobs[JOB].running


def test_a_large_result_keeps_its_node_until_it_is_taken() -> None:
    d = ComputeDriver()
    d.join()
    d.compute()
    d.send(0)
    d.ran(W0)
    d.ran(W0, 0, attached=m.Attached("result-1", (5,)))
    assert d.scheduler.attached_at(JOB, "result-1") == "n"
    d.drain("n")
    d.ended(W0)
    assert d.waits("n") == (f"1 large result of {JOB}",)
    lines = d.tell(events.PartUnreadable(JOB, "result-1"))  # it is damaged: made again, elsewhere
    assert d.scheduler.attached_at(JOB, "result-1") is None
    assert lines == []
    assert d.scheduler.jobs[JOB].tasks_waiting == 1


def test_a_later_life_of_the_server_runs_nothing_twice_that_nodes_hold() -> None:
    d = ComputeDriver(slots=2)
    d.scheduler = Scheduler(journalled=True)
    kept = events.JobKept(JOB, m.SubmitJob(SPEC, b"", (), "", job=JOB), 5.0, 1, ())
    d.tell(events.Restored((kept,), {"n": "1"}))
    assert d.tell(m.FunctionCode(JOB, F, "f", b"code")) == []
    assert d.send(0, 1, 2, 3) == []  # the client is back before the node: nothing is given out yet
    hello = m.NodeHello("n", "1", 2, 1000, {}, "n-1:8787", (JOB,), {f"{JOB}-{W0}": 0, f"{JOB}-{W1}": 0})
    d.tell(events.NodeJoined(hello))
    assert d.ran(W0, 0) == ["client 1 <- 0[0:1], 2 slots"]  # a result that the node had kept
    d.tell(m.WorkerHolds("n", "1", f"{JOB}-{W0}", (m.Piece("", 1, 0, 1),), (F,)))
    d.tell(m.WorkerHolds("n", "1", f"{JOB}-{W1}", (), (F,)))
    lines = d.tell(m.Heartbeat("n", "1", (), 1, 1))
    assert lines == ["n <- w000001.0 runs 2[0:1]", "n <- w000000.0 runs 3[0:1]"]  # 1 is in its hand
    assert d.ran(W0, 1) == ["client 1 <- 1[0:1], 2 slots"]
    # what the client has no result of, and comes before the client has sent it again
    other = ComputeDriver(slots=1)
    other.scheduler = Scheduler(journalled=True)
    other.tell(events.Restored((kept,), {"n": "1"}))
    other.tell(events.NodeJoined(m.NodeHello("n", "1", 1, 1000, {}, "n-1:8787", (JOB,), {f"{JOB}-{W0}": 0})))
    other.ran(W0, 7)
    other.tell(m.WorkerHolds("n", "1", f"{JOB}-{W0}", (m.Piece("", 8, 0, 1),), (F,)))
    other.tell(m.Heartbeat("n", "1", (), 1, 1))
    other.tell(m.FunctionCode(JOB, F, "f", b"code"))
    assert other.send(7, 8, 9) == ["client 1 <- 7[0:1], 1 slots", "n <- w000000.0 runs 9[0:1]"]
    assert other.ran(W0, 8) == ["client 1 <- 8[0:1], 1 slots"]


def test_calls_nobody_wants_any_more_do_not_hold_up_the_end() -> None:
    d = ComputeDriver()
    d.join()
    d.compute()
    d.send(0, 1)
    d.ran(W0)
    assert d.tell(m.DropCells(JOB, (0, 1))) == ["n <- DropCells 1"]
    assert d.tell(m.EndCalls(JOB)) == ["n <- Revoke 1-w000000.0", "client 1 <- JobDone"]


def test_functions_that_no_cell_names_are_forgotten_everywhere() -> None:
    d = ComputeDriver()
    d.join()
    d.compute()
    d.send(0)
    d.ran(W0)
    g, own = "9" * 32, "7" * 32
    d.tell(m.FunctionCode(JOB, g, "g", b"other"))
    d.said(W0, m.FunctionCode(JOB, own, "h", b"a call submits it"))
    assert d.tell(m.ForgetFunctions(JOB, (F, g, own))) == []  # F has a cell under way, g was told to nobody
    functions = d.scheduler.jobs[JOB].desk._functions  # type: ignore[attr-defined]
    assert sorted(functions) == sorted((F, own))
    d.ran(W0, 0)
    assert d.tell(m.ForgetFunctions(JOB, (F, own))) == ["n <- ForgetFunctions 1"]
    assert list(functions) == [own]
    assert d.tell(m.FunctionCode(JOB, F, "f", b"code")) == []
    assert d.send(1) == ["n <- FunctionCode 1", f"n <- {W0} runs 1[0:1]"]

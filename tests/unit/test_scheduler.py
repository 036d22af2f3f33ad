"""The scheduler by golden lists: events in, instructions out, as lines of text."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import msgspec
import pytest

from cortex.errors import ErrorReport, Fault, InternalError
from cortex.ids import AttemptId, job_of
from cortex.job.output_types import OutputTypes
from cortex.job.plan import UNKNOWN, InputFile, InputPlan, Split, SplitGroups, Splits
from cortex.job.spec import InputSpec, JobSpec, Resources
from cortex.limits import LEASE_S, LOST_REDOS_MAX, PROGRESS_S, SLOT_TURN_S, TASK_ATTEMPTS_MAX
from cortex.memory_plan import smallest_job_bytes
from cortex.scheduling import events
from cortex.scheduling.job_state import ENDED, JOB_TRANSITIONS, JobEvent, JobState, next_job_state
from cortex.scheduling.scheduler import Scheduler
from cortex.scheduling.task_state import TASK_TRANSITIONS, TaskEvent, TaskState, TaskTable, next_task_state
from cortex.wire import messages as m
from cortex.wire.map_locations import LocationTable, map_outputs

JOB, OTHER = "j000000000001", "j000000000002"


def make_plan(splits: int = 2, reducers: int = 1, scan: bool = False, length: int = 10) -> InputPlan:
    states = [UNKNOWN if scan and i else 0 for i in range(splits)]
    return InputPlan(
        (InputFile(0, "/in/a.csv", "csv", splits * length, 0, 1, needs_scan=scan),) if splits else (),
        Splits.of(Split(i, 0, i * length, length, start_state=states[i]) for i in range(splits)),
        SplitGroups.of((i,) for i in range(splits)),
        (("x", "int64"),),
        splits * length,
        reducers,
        ("a note",),
    )


class Driver:
    """A scheduler with one node of `slots`, and a shorthand for what passes."""

    def __init__(self, slots: int = 1, form: str = "aggregate") -> None:
        self.scheduler, self.now, self.form = Scheduler(), 0.0, form
        self.slots = slots
        self.last: list[events.Instruction] = []
        self.tables: dict[tuple[str, str], LocationTable] = {}

    def tell(self, event: events.Event) -> list[str]:
        """What it leads to. Where map outputs are is shown with the reduces that read them."""
        if isinstance(event, events.NodeJoined):
            self.tables = {key: table for key, table in self.tables.items() if key[0] != event.hello.node}
        self.last = self.scheduler.handle(event, self.now)
        lines = []
        for instruction in self.last:
            message = getattr(instruction, "message", None)
            if isinstance(message, m.MapLocations):
                self.table(instruction.node, message.job).update(message)  # type: ignore[union-attr]
            else:
                lines.append(self.show(instruction))
        return lines

    def table(self, node: str, job: str) -> LocationTable:
        return self.tables.setdefault((node, job), LocationTable())

    def show(self, instruction: events.Instruction) -> str:
        message = instruction.message
        if isinstance(instruction, events.SendToClient):
            error = f" {message.error.code}" if isinstance(message, m.JobFailed) else ""
            return f"client {instruction.job[-1]} <- {type(message).__name__}{error}"
        if isinstance(message, m.Lease):
            tasks = ((r.attempt, self.show_task(instruction.node, r)) for r in message.tasks)
            text = "; ".join(f"{attempt[12:]} {task}".rstrip() for attempt, task in tasks)
        elif isinstance(message, m.Revoke):
            text = ", ".join(a[12:] for a in message.attempts)
        else:
            text = message.job[-1]
        return f"{instruction.node} <- {type(message).__name__} {text}"

    def show_task(self, node: str, run: m.RunTask) -> str:
        task = run.task
        if isinstance(task, m.MapTask):
            splits = (f"{s.offset}+{s.length}:{s.start_state}>{s.end_state}" for s in task.splits)
            return "map " + ",".join(splits)
        if isinstance(task, m.ReduceTask):
            job = job_of(AttemptId(run.attempt))
            inputs = self.table(node, job).fill(task).inputs
            return "reduce " + ",".join(output.attempt[14:] for output in map_outputs(inputs, job))
        if isinstance(task, m.ScanTask):
            return f"scan {','.join(map(str, task.boundaries))} from {task.start_state}"
        return ""

    def start(self, plan: InputPlan | None, job: str = JOB) -> list[str]:
        """A node, a job, and (given one) its plan: what the plan set off."""
        if "n" not in self.scheduler.leases.nodes:
            self.join()
        lines = self.submit(job)
        return lines if plan is None else self.done(f"{job}-plan.0", m.PlanResult(plan))

    def join(self, name: str = "n", life: str = "1") -> list[str]:
        return self.tell(
            events.NodeJoined(m.NodeHello(name, life, self.slots, 1000, {}, f"{name}-{life}:8787"))
        )

    def submit(
        self, job: str = JOB, staging: str = "/staging", priority: int = 0, memory_bytes: int = 0
    ) -> list[str]:
        spec = JobSpec(
            "a job",
            InputSpec(("/in/a.csv",)),
            resources=Resources(memory_bytes),
            reduce_form=self.form,  # type: ignore[arg-type]
            priority=priority,
        )
        return self.tell(events.JobSubmitted(job, m.SubmitJob(spec, b"code", (), staging)))

    def done(self, attempt: str, result: m.Result, seconds: float = 1.0, node: str = "n") -> list[str]:
        finished = m.TaskFinished(attempt, result, seconds, 7)
        return self.tell(m.AttemptFinished(node, "1", finished))

    def gave_back(self, *tasks: str) -> list[str]:
        return self.tell(m.GivenBack("n", "1", tuple(f"{JOB}-{task}" for task in tasks)))

    def mapped(self, index: int, number: int = 0, rows: tuple[int, ...] = (4,), **options: Any) -> list[str]:
        wrote = m.TaskStats(rows_in=5, bytes_in=10, rows_out=4, bytes_out=10 * sum(rows))
        stats = options.pop("stats", wrote)
        seconds, node = options.pop("seconds", 1.0), options.pop("node", "n")
        result = m.MapResult(index, stats, rows, **options)
        return self.done(f"{JOB}-m{index:06d}.{number}", result, seconds, node)

    def reduced(self, partition: int, number: int, rows_in: int, **options: Any) -> list[str]:
        part = m.OutputPart(f"part-{partition}", f"staged-{partition}-{number}", 1, 2, ())
        bytes_in = options.pop("bytes_in", 10 * rows_in)
        stats = m.TaskStats(rows_in, bytes_in, rows_out=2, groups=2, shuffled_bytes=30, spilled_bytes=3)
        return self.done(
            f"{JOB}-r{partition:06d}.{number}", m.ReduceResult(partition, stats, (part,), **options)
        )

    def failed(self, task: str, fault: Fault = Fault.TASK, signature: str = "", **details: str) -> list[str]:
        error = ErrorReport("user-code", "it broke", "", details, fault.value, signature)
        return self.tell(m.AttemptFailed("n", "1", m.TaskFailed(f"{JOB}-{task}", error, 1.0, 7)))

    def end(self) -> m.JobDone | m.JobFailed:
        ends = [i.message for i in self.last if isinstance(i, events.SendToClient)]
        assert len(ends) == 1
        assert isinstance(ends[0], m.JobDone | m.JobFailed)
        return ends[0]


def test_a_job_from_submission_to_its_end() -> None:
    d = Driver(slots=1)
    assert d.submit() == []  # nobody to run it
    assert d.join() == ["n <- StartJob 1", "n <- Lease 1-plan.0"]
    assert d.done(f"{JOB}-plan.0", m.PlanResult(make_plan(3, 2))) == [
        "n <- JobPlanned 1",
        "n <- Lease 1-m000000.0 map 0+10:0>0; 1-m000001.0 map 10+10:0>0",
    ]
    planned = d.last[0].message
    assert isinstance(planned, m.JobPlanned)
    assert (len(planned.plan.splits), len(planned.plan.tasks), planned.plan.reducers) == (0, 0, 2)
    assert d.mapped(1, rows=(4, 0)) == ["n <- Lease 1-m000002.0 map 20+10:0>0"]
    assert d.mapped(2, rows=(1, 1)) == []
    assert d.mapped(0, rows=(0, 6)) == [
        "n <- Lease 1-r000000.0 reduce m000001.0,m000002.0; 1-r000001.0 reduce m000000.0,m000002.0"
    ]
    assert d.reduced(1, 0, 7) == []
    assert d.reduced(0, 0, 5) == ["client 1 <- JobDone"]
    end = d.end()
    assert isinstance(end, m.JobDone)
    assert [p.name for p in end.parts] == ["part-0", "part-1"]
    assert d.tell(m.JobReceived(JOB)) == ["n <- EndJob 1"]  # until then the node keeps what it has
    assert d.tell(m.JobReceived(JOB)) == []
    assert not d.scheduler.jobs


def test_a_map_only_job_has_the_parts_in_map_order() -> None:
    d = Driver(slots=1, form="none")
    d.start(make_plan(2, 0))
    parts = [(m.OutputPart(f"part-{i}", f"staged-{i}", 1, 2, ()),) for i in range(2)]
    assert d.mapped(1, rows=(), parts=parts[1]) == []
    assert d.mapped(0, rows=(), parts=parts[0]) == ["client 1 <- JobDone"]
    end = d.end()
    assert isinstance(end, m.JobDone)
    assert end.parts == parts[0] + parts[1]
    assert end.report.rows_out == 8


def test_a_job_without_input_still_writes_its_empty_result() -> None:
    d = Driver(slots=1)
    assert d.start(make_plan(0, 1))[1:] == ["n <- Lease 1-r000000.0 reduce"]
    assert d.reduced(0, 0, 0)[-1] == "client 1 <- JobDone"
    d = Driver(slots=1, form="none")
    assert d.start(make_plan(0, 0))[1:] == ["n <- Lease 1-m000000.0 map"]
    assert d.mapped(0, rows=())[-1] == "client 1 <- JobDone"


# --- quote scans ---


def scanned(d: Driver, first: int, *ends: tuple[int, int, int], number: int = 0) -> list[str]:
    return d.done(f"{JOB}-s{first:06d}.{number}", m.ScanResult(ends))


def test_maps_wait_for_the_scan_and_get_their_states() -> None:
    d = Driver(slots=2)
    assert d.start(make_plan(5, 1, scan=True))[1:] == [
        (
            "n <- Lease 1-s000000.0 scan 0,10 from 0; 1-s000001.0 scan 10,20,30 from -1;"
            " 1-s000003.0 scan 30,40 from -1"
        )
    ]
    # The middle chunk comes first: nothing is known before it, so nothing runs.
    assert scanned(d, 1, (0, 1, 2), (2, 0, 1)) == []
    # Split 0 ends inside quotes; then 1 ends in state 1, and 2 in state 0.
    assert scanned(d, 0, (1, 0, 0)) == [
        "n <- Lease 1-m000000.0 map 0+10:0>1; 1-m000001.0 map 10+10:1>1; 1-m000002.0 map 20+10:1>0"
    ]
    assert d.mapped(0) == []
    # The last split needs its start only, and is not scanned.
    assert scanned(d, 3, (2, 0, 0)) == ["n <- Lease 1-m000003.0 map 30+10:0>2; 1-m000004.0 map 40+10:2>0"]


def test_a_hypothesis_that_cannot_tell_is_scanned_again_from_there() -> None:
    d = Driver(slots=2)
    d.start(make_plan(5, 1, scan=True))
    scanned(d, 1, (0, 0, 0), (UNKNOWN, 1, 1))
    assert scanned(d, 0, (0, 0, 0)) == [
        "n <- Lease 1-s000002.0 scan 20,30 from 0; 1-m000000.0 map 0+10:0>0; 1-m000001.0 map 10+10:0>0"
    ]
    assert scanned(d, 2, (2, UNKNOWN, UNKNOWN))[-1].endswith("1-m000002.0 map 20+10:0>2")
    # From its first split on it is the same task again, as a further attempt.
    d = Driver(slots=2)
    d.start(make_plan(3, 1, scan=True))
    scanned(d, 1, (UNKNOWN, 0, 0))
    assert scanned(d, 0, (0, 0, 0))[0].startswith("n <- Lease 1-s000001.1 scan 10,20 from 0")
    scanned(d, 1, (1, UNKNOWN, UNKNOWN), number=1)
    progress = {s.stage: s for s in d.scheduler.jobs[JOB].progress.stage_messages(0.0)}["scan"]
    assert (progress.tasks_done, progress.tasks_total, progress.bytes_done, progress.bytes_total) == (
        2,
        2,
        20,
        20,
    )


def test_a_scan_that_cannot_tell_from_a_known_start_ends_the_job() -> None:
    d = Driver()
    d.start(make_plan(2, 1, scan=True))
    assert scanned(d, 0, (UNKNOWN, 0, 0)) == ["n <- EndJob 1", "client 1 <- JobFailed internal"]


def test_scans_stay_a_bounded_distance_ahead_of_maps() -> None:
    d = Driver(slots=1)
    d.start(make_plan(100, 1, scan=True))
    scans, maps = 1 + 2, 0  # splits in the scans leased at the start: chunks of 1 and 2
    held = ["s000000.0", "s000001.0"]
    for _ in range(60):
        attempt = held.pop(0)
        if attempt.startswith("s"):
            first = int(attempt[1:7])
            count = min(4, first + 1, 99 - first)
            lines = scanned(d, first, *[(0, 0, 0)] * count)
        else:
            maps += 1
            lines = d.mapped(int(attempt[1:7]))
        for line in lines:
            for word in line.replace("n <- Lease ", "").split("; "):
                held.append(word.split()[0][2:])
                if word[2] == "s":
                    scans += min(4, int(word[3:9]) + 1, 99 - int(word[3:9]))
        assert scans - maps <= 2 * 1 + 4 + 2
    assert maps > 40


# --- faults ---


def test_a_failed_attempt_is_retried_up_to_its_limit() -> None:
    d = Driver()
    d.start(make_plan(1))
    for number in range(TASK_ATTEMPTS_MAX - 1):
        assert d.failed(f"m000000.{number}") == [f"n <- Lease 1-m000000.{number + 1} map 0+10:0>0"]
    assert d.failed(f"m000000.{TASK_ATTEMPTS_MAX - 1}", file="a.csv") == [
        "n <- EndJob 1",
        "client 1 <- JobFailed user-code",
    ]
    end = d.end()
    assert isinstance(end, m.JobFailed)
    assert end.error.details == {"file": "a.csv", "attempts": "4 of at most 4"}
    assert end.report.failed_attempts == TASK_ATTEMPTS_MAX


def test_the_same_error_twice_ends_the_job() -> None:
    d = Driver()
    d.start(make_plan(1))
    d.failed("m000000.0", signature="ValueError:3")
    d.failed("m000000.1", signature="ValueError:9")
    assert d.failed("m000000.2", signature="ValueError:3")[-1] == "client 1 <- JobFailed user-code"
    end = d.end()
    assert isinstance(end, m.JobFailed)
    assert end.error.details == {"attempts": "3 of at most 4", "the same error": "2 times"}


def test_a_fatal_error_ends_the_job_at_once_and_frees_its_leases() -> None:
    d = Driver()
    d.start(make_plan(4))
    d.submit(OTHER)
    assert d.failed("m000000.0", Fault.FATAL) == [
        "n <- EndJob 1",
        "client 1 <- JobFailed user-code",
        "n <- StartJob 2",
        "n <- Lease 2-plan.0",
    ]
    assert d.mapped(1) == []  # what still comes of it is stale
    assert d.scheduler.stale_messages == 1


def test_a_lost_run_redoes_that_map_alone_and_costs_no_attempt() -> None:
    d = Driver()
    d.start(make_plan(2))
    d.mapped(0)
    d.mapped(1)
    for number in range(TASK_ATTEMPTS_MAX + 1):
        lost = f"{JOB}-m000001.{number}"
        assert d.failed(f"r000000.{number}", Fault.LOST, attempt=lost) == [
            f"n <- Lease 1-m000001.{number + 1} map 10+10:0>0"
        ]
        assert d.mapped(1, number + 1) == [
            f"n <- Lease 1-r000000.{number + 1} reduce m000000.0,m000001.{number + 1}"
        ]
    d.reduced(0, TASK_ATTEMPTS_MAX + 1, 8)
    end = d.end()
    assert isinstance(end, m.JobDone)
    assert end.report.rows_in == 10  # each map counts once


@pytest.mark.parametrize("unreachable", ["yes", ""])
def test_what_lies_on_a_node_that_a_reduce_cannot_reach_is_all_redone_at_once(unreachable: str) -> None:
    d = Driver()
    d.join()
    d.join("n2")
    d.submit()
    d.done(f"{JOB}-plan.0", m.PlanResult(make_plan(4)))
    for index, node in ((0, "n"), (1, "n"), (2, "n2"), (3, "n2")):
        d.mapped(index, node=node)
    lost = f"{JOB}-m000002.0"
    said = " ".join(d.failed("r000000.0", Fault.LOST, attempt=lost, holder="n2", unreachable=unreachable))
    redone = [index for index in range(4) if f"m{index:06d}.1 map" in said]
    assert redone == ([2, 3] if unreachable else [2])  # what is damaged there is one output's fault alone


def test_a_node_that_stays_out_of_reach_ends_the_job() -> None:
    d = Driver()
    d.start(make_plan(2))
    d.mapped(0)
    d.mapped(1)
    for number in range(LOST_REDOS_MAX):
        lost = f"{JOB}-m000001.{number}"
        d.failed(f"r000000.{number}", Fault.LOST, attempt=lost, holder="n", unreachable="yes")
        d.mapped(0, number + 1)
        d.mapped(1, number + 1)
    lost = f"{JOB}-m000001.{LOST_REDOS_MAX}"
    last = d.failed(f"r000000.{LOST_REDOS_MAX}", Fault.LOST, attempt=lost, holder="n", unreachable="yes")
    assert last[-1].startswith("client 1 <- JobFailed")


def test_a_redo_that_no_reduce_needed_is_stopped_when_the_job_is_done() -> None:
    d = Driver()
    d.join()
    d.join("n2")
    d.submit()
    d.done(f"{JOB}-plan.0", m.PlanResult(make_plan(2)))
    d.mapped(0)
    d.mapped(1, node="n2")
    assert d.tell(events.NodeLost("n2")) == ["n <- Lease 1-m000001.1 map 10+10:0>0"]
    assert d.reduced(0, 0, 8) == ["n <- Revoke 1-m000001.1", "client 1 <- JobDone"]


def test_a_map_whose_output_is_lost_again_and_again_ends_the_job() -> None:
    d = Driver()
    d.start(make_plan(1))
    d.mapped(0)
    for number in range(LOST_REDOS_MAX):
        d.failed(f"r000000.{number}", Fault.LOST, attempt=f"{JOB}-m000000.{number}")
        d.mapped(0, number + 1)
    last = f"{JOB}-m000000.{LOST_REDOS_MAX}"
    assert (
        d.failed(f"r000000.{LOST_REDOS_MAX}", Fault.LOST, attempt=last)[-1]
        == "client 1 <- JobFailed user-code"
    )


def test_a_loss_that_names_no_input_uses_up_an_attempt() -> None:
    d = Driver()
    d.start(make_plan(1))
    d.mapped(0)
    for number in range(TASK_ATTEMPTS_MAX):
        lines = d.failed(f"r000000.{number}", Fault.LOST, attempt=f"{JOB}-m000007.0")
    assert lines[-1] == "client 1 <- JobFailed user-code"


def test_two_reduces_that_miss_the_same_run_redo_it_once() -> None:
    d = Driver()
    d.start(make_plan(1, 2))
    d.mapped(0, rows=(2, 2))
    assert len(d.failed("r000000.0", Fault.LOST, attempt=f"{JOB}-m000000.0")) == 1
    assert d.failed("r000001.0", Fault.LOST, attempt=f"{JOB}-m000000.0") == []
    assert d.mapped(0, 1, rows=(2, 2)) == [
        "n <- Lease 1-r000000.1 reduce m000000.1; 1-r000001.1 reduce m000000.1"
    ]
    # And one that read the old run fails late: the new one is there already.
    assert d.failed("r000000.1", Fault.LOST, attempt=f"{JOB}-m000000.1") == [
        "n <- Lease 1-m000000.2 map 0+10:0>0"
    ]
    assert d.mapped(0, 2, rows=(2, 2)) == ["n <- Lease 1-r000000.2 reduce m000000.2"]
    assert d.failed("r000001.1", Fault.LOST, attempt=f"{JOB}-m000000.1") == [
        "n <- Lease 1-r000001.2 reduce m000000.2"
    ]


def test_rows_are_conserved_or_the_job_fails_by_name() -> None:
    d = Driver()
    d.start(make_plan(2))
    d.mapped(0)
    d.mapped(1, rows=(9,))
    assert d.reduced(0, 0, 12)[-1] == "client 1 <- JobFailed rows-lost"
    end = d.end()
    assert isinstance(end, m.JobFailed)
    assert "wrote 13 rows" in end.error.message
    assert "read 12" in end.error.message


def test_bytes_are_conserved_over_all_reduces_or_the_job_fails_by_name() -> None:
    d = Driver()
    d.start(make_plan(2, 2))
    d.mapped(0, rows=(4, 1))
    d.mapped(1, rows=(3, 2))
    assert "client" not in " ".join(d.reduced(0, 0, 7, bytes_in=71))  # one reduce alone says nothing
    assert d.reduced(1, 0, 3)[-1] == "client 1 <- JobFailed rows-lost"
    end = d.end()
    assert isinstance(end, m.JobFailed)
    assert "wrote 100 bytes" in end.error.message
    assert "read 101" in end.error.message


@pytest.mark.parametrize("change", [{"rows": (3, 3)}, {"row_checksum": 1}])
def test_a_redo_with_other_rows_fails_once_a_reduce_has_read_the_first(change: dict[str, Any]) -> None:
    d = Driver()
    d.start(make_plan(1, 2))
    d.mapped(0, rows=(2, 4))
    d.reduced(0, 0, 2)
    d.failed("r000001.0", Fault.LOST, attempt=f"{JOB}-m000000.0")
    assert d.mapped(0, 1, **{"rows": (2, 4), **change})[-1] == "client 1 <- JobFailed map-changed"


def test_a_redo_with_other_rows_restarts_the_reduces_that_run() -> None:
    d = Driver()
    d.start(make_plan(1, 2))
    d.mapped(0, rows=(2, 4))
    d.failed("r000001.0", Fault.LOST, attempt=f"{JOB}-m000000.0")
    assert d.mapped(0, 1, rows=(3, 0)) == [
        "n <- Revoke 1-r000000.0",
        "n <- Lease 1-r000000.1 reduce m000000.1; 1-r000001.1 reduce",
    ]
    assert d.reduced(0, 0, 2) == []  # stale
    d.reduced(0, 1, 3)
    assert d.reduced(1, 1, 0)[-1] == "client 1 <- JobDone"


def test_a_large_job_takes_no_redo_with_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.scheduling.map_outputs.MAP_ROWS_KEPT_MAX", 1)
    d = Driver()
    d.start(make_plan(1, 2))
    d.mapped(0, rows=(2, 4))
    d.failed("r000001.0", Fault.LOST, attempt=f"{JOB}-m000000.0")
    assert d.mapped(0, 1, rows=(2, 4), row_checksum=1)[0] == "n <- Revoke 1-r000000.0"
    d.failed("r000001.1", Fault.LOST, attempt=f"{JOB}-m000000.1")
    assert d.mapped(0, 2, rows=(3, 0))[-1] == "client 1 <- JobFailed map-changed"
    end = d.end()
    assert isinstance(end, m.JobFailed)
    assert "too large to keep every map's count" in end.error.message


def test_a_reduce_knows_the_addresses_of_other_nodes_and_both_lives_of_one() -> None:
    d = Driver()
    d.start(make_plan(3))
    d.join("o")
    d.mapped(2, node="o")
    d.mapped(0)
    d.tell(events.NodeLost("o"))
    d.join("o", "2")
    d.mapped(1)
    assert d.mapped(2, 1) == ["n <- Lease 1-r000000.0 reduce m000000.0,m000001.0,m000002.1"]
    table = d.tables["n", JOB]
    assert table.nodes == [m.OutputNode("o", "o-1:8787"), m.OutputNode("n", "n-1:8787")]
    d.tell(events.NodeLost("n"))
    for index, number in ((0, 1), (1, 1), (2, 2)):
        result = m.MapResult(index, m.TaskStats(), (4,))
        done = m.TaskFinished(f"{JOB}-m{index:06d}.{number}", result, 1.0, 7)
        lines = d.tell(m.AttemptFinished("o", "2", done))
    assert lines == ["o <- Lease 1-r000000.1 reduce m000000.1,m000001.1,m000002.2"]
    assert d.tables["o", JOB].nodes[2:] == [m.OutputNode("o", "o-2:8787")]


INTS, STRINGS = OutputTypes("int", "int"), OutputTypes("str", "int")


def test_maps_with_keys_of_different_types_end_the_job() -> None:
    d = Driver()
    d.start(make_plan(4))
    d.mapped(1, types=OutputTypes("none", "int"))
    d.mapped(0, types=INTS)
    d.mapped(2)  # without a row
    assert d.mapped(3, types=STRINGS)[-1] == "client 1 <- JobFailed key-type"
    end = d.end()
    assert isinstance(end, m.JobFailed)
    assert "int and str" in end.error.message
    assert end.error.details["found in"] == "a.csv from byte 30, 10 B"


def test_parts_of_different_types_end_the_job() -> None:
    d = Driver()
    d.start(make_plan(1, 3))
    d.mapped(0, rows=(1, 1, 1), types=STRINGS)  # the keys of a reduce may be other ones than its maps'
    d.reduced(2, 0, 1, types=OutputTypes("int", "none"))
    d.reduced(0, 0, 1, types=INTS)
    assert d.reduced(1, 0, 1, types=OutputTypes("int", "float"))[-1] == "client 1 <- JobFailed value-type"
    end = d.end()
    assert isinstance(end, m.JobFailed)
    assert end.error.details["found in"] == "partition 1 of 3"


def test_parts_of_a_map_only_job_must_agree() -> None:
    d = Driver(form="none")
    d.start(make_plan(2, 0))
    d.mapped(0, rows=(), types=OutputTypes(columns=(("a", "int64"),)))
    assert d.mapped(1, rows=(), types=OutputTypes(columns=(("a", "string"),)))[-1].endswith("column")


@pytest.mark.parametrize(
    "result",
    [
        m.MapResult(1, m.TaskStats(), (4,)),
        m.MapResult(0, m.TaskStats(), (4, 4)),
        m.MapResult(0, m.TaskStats(), (-1,)),
        m.MapResult(0, m.TaskStats(), (2**65,)),
        m.ScanResult(()),
    ],
)
def test_a_result_that_does_not_fit_ends_the_job_by_name(result: m.Result) -> None:
    d = Driver()
    d.start(make_plan(2))
    assert d.done(f"{JOB}-m000000.0", result)[-1].startswith("client 1 <- JobFailed ")


# --- nodes ---


def test_a_lost_node_costs_no_attempts_and_its_maps_run_again() -> None:
    d = Driver()
    d.start(make_plan(3))
    assert d.join("o") == ["o <- StartJob 1", "o <- JobPlanned 1", "o <- Lease 1-m000002.0 map 20+10:0>0"]
    d.mapped(2, node="o")
    d.mapped(0)
    assert d.tell(events.NodeLost("n")) == ["o <- Lease 1-m000000.1 map 0+10:0>0; 1-m000001.1 map 10+10:0>0"]
    assert d.mapped(1) == []  # from the lost node
    d.mapped(0, 1, node="o")
    assert d.mapped(1, 1, node="o") == ["o <- Lease 1-r000000.0 reduce m000000.1,m000001.1,m000002.0"]
    assert not d.scheduler.jobs[JOB].progress.failed_attempts


def test_parts_of_a_map_only_job_outlive_their_node() -> None:
    d = Driver(form="none")
    d.start(make_plan(2, 0))
    d.mapped(0, rows=())
    d.join("o")
    assert d.tell(events.NodeLost("n")) == [
        "o <- StartJob 1",
        "o <- JobPlanned 1",
        "o <- Lease 1-m000001.1 map 10+10:0>0",
    ]


def test_a_result_that_is_lost_with_its_node_is_made_anew() -> None:
    d = Driver(slots=2)
    d.join()
    d.submit(staging="")
    d.done(f"{JOB}-plan.0", m.PlanResult(make_plan(2, 2)))
    d.mapped(0, rows=(4, 1))
    d.mapped(1, rows=(4, 1))
    d.reduced(0, 0, 8, counters={"g": {"n": 1}})
    d.reduced(1, 0, 2, counters={"g": {"n": 1}})
    assert [part.node for part in d.end().parts] == ["n", "n"]
    first = d.end()
    assert d.join("other") == []
    d.slots = 2
    lines = d.tell(events.NodeLost("n"))  # with the maps' outputs as well
    assert "other <- Lease 1-m000000.1 map 0+10:0>0; 1-m000001.1 map 10+10:0>0" in lines
    d.mapped(0, 1, rows=(4, 1), node="other")
    d.mapped(1, 1, rows=(4, 1), node="other")
    assert d.scheduler.jobs[JOB].state is JobState.REDUCING
    stats = m.TaskStats(rows_in=8, rows_out=2, groups=2, shuffled_bytes=30, spilled_bytes=3)
    for index, rows in enumerate((8, 2)):
        part = m.OutputPart(f"part-{index}", f"staged-{index}-1", 1, 2, ())
        read = msgspec.structs.replace(stats, rows_in=rows, bytes_in=10 * rows)
        result = m.ReduceResult(index, read, (part,), {"g": {"n": 1}})
        d.done(f"{JOB}-r{index:06d}.1", result, node="other")
    again = d.end()
    assert isinstance(first, m.JobDone)
    assert isinstance(again, m.JobDone)
    assert [(part.node, part.staged_as) for part in again.parts] == [
        ("other", "staged-0-1"),
        ("other", "staged-1-1"),
    ]
    assert again.report.counters == first.report.counters == {"g": {"n": 2}}
    assert (again.report.rows_out, again.report.groups) == (first.report.rows_out, first.report.groups)


def test_a_part_that_its_node_cannot_read_is_made_anew_alone() -> None:
    d = Driver()
    d.join()
    d.submit(staging="")
    d.done(f"{JOB}-plan.0", m.PlanResult(make_plan(1, 2)))
    d.mapped(0, rows=(4, 1))
    d.reduced(0, 0, 4)
    d.reduced(1, 0, 1)
    assert d.tell(events.PartUnreadable(JOB, "staged-9-0")) == []
    assert d.tell(events.PartUnreadable(JOB, "staged-1-0")) == ["n <- Lease 1-r000001.1 reduce m000000.0"]
    d.reduced(1, 1, 1)
    assert [part.staged_as for part in d.end().parts] == ["staged-0-0", "staged-1-1"]  # type: ignore[union-attr]
    assert d.tell(m.JobReceived(JOB)) == ["n <- EndJob 1"]


def cannot(d: Driver, node: str, job: str = JOB, life: str = "1") -> list[str]:
    error = ErrorReport(
        "package-missing", f"node {node} lacks the package x", "pip install x", {"node": node}
    )
    return d.tell(m.CannotServe(node, life, job, error))


def test_a_node_that_cannot_run_a_job_costs_no_attempt_and_is_noted() -> None:
    d = Driver()
    d.join("n")
    d.join("o")
    assert d.submit() == ["n <- StartJob 1", "n <- Lease 1-plan.0"]
    assert cannot(d, "n") == ["o <- StartJob 1", "o <- Lease 1-plan.1"]
    assert d.done(f"{JOB}-plan.1", m.PlanResult(make_plan(1)), node="o") == [
        "o <- JobPlanned 1",
        "o <- Lease 1-m000000.0 map 0+10:0>0",
    ]
    d.mapped(0, node="o")
    part = m.OutputPart("part-0", "staged-0-0", 1, 2, ())
    d.done(f"{JOB}-r000000.0", m.ReduceResult(0, m.TaskStats(4, 40), (part,)), node="o")
    report = d.end().report
    assert report.failed_attempts == 0
    assert report.notes == ("a note", "node n lacks the package x: the job went on without it; pip install x")
    assert d.tell(m.JobReceived(JOB)) == ["n <- EndJob 1", "o <- EndJob 1"]


def test_other_jobs_run_where_one_cannot() -> None:
    d = Driver(slots=3)
    d.join("n")
    d.submit()
    d.join("o")
    d.slots = 1
    cannot(d, "n")
    assert d.submit(OTHER) == ["n <- StartJob 2", "n <- Lease 2-plan.0"]
    d.done(f"{JOB}-plan.1", m.PlanResult(make_plan(9)), node="o")
    assert {run.node for run in d.scheduler.jobs[JOB].running.values()} == {"o"}


def test_a_job_that_no_node_can_run_fails_with_all_their_names() -> None:
    d = Driver()
    d.join("n")
    d.join("o")
    d.submit()
    cannot(d, "n")
    assert cannot(d, "o") == ["n <- EndJob 1", "o <- EndJob 1", "client 1 <- JobFailed package-missing"]
    failed = d.end()
    assert isinstance(failed, m.JobFailed)
    assert failed.error.message == "node o lacks the package x"
    assert failed.error.details == {"node": "o", "n": "node n lacks the package x"}
    assert failed.error.cure == "pip install x"
    assert failed.report.failed_attempts == 0


def test_the_last_node_that_can_is_waited_for_a_while() -> None:
    d = Driver()
    d.join("n")
    d.join("o")
    d.submit()
    cannot(d, "n")
    d.tell(events.NodeLost("o"))
    assert keep(d, "n", LEASE_S - 2) == []
    assert d.join("o", "2") == ["o <- StartJob 1", "o <- Lease 1-plan.2"]
    d.tell(events.NodeLost("o"))
    assert keep(d, "n", d.now + LEASE_S + 1) == ["n <- EndJob 1", "client 1 <- JobFailed package-missing"]


def test_a_node_that_could_not_is_asked_again_in_its_next_life() -> None:
    d = Driver()
    d.join("n")
    d.join("o")
    d.submit()
    cannot(d, "n")
    d.tell(events.NodeLost("o"))
    assert cannot(d, "n", life="0") == []  # from an earlier life
    assert d.join("n", "2") == ["n <- StartJob 1", "n <- Lease 1-plan.2"]


def test_a_report_names_ten_nodes_that_could_not() -> None:
    d = Driver()
    names = [f"n{i:02d}" for i in range(12)]
    for name in names:
        d.join(name)
    d.submit()
    for name in names[:-1]:
        cannot(d, name)
    d.tell(events.NodeLost(names[0]))  # what it could not do is told all the same
    d.done(f"{JOB}-plan.11", m.PlanResult(make_plan(1)), node=names[-1])
    d.mapped(0, node=names[-1])
    part = m.OutputPart("part-0", "staged-0-0", 1, 2, ())
    d.done(f"{JOB}-r000000.0", m.ReduceResult(0, m.TaskStats(rows_in=4), (part,)), node=names[-1])
    notes = d.end().report.notes
    assert [note.split()[1] for note in notes[1:11]] == names[:10]
    assert notes[11:] == ("the job went on without 1 more nodes",)


def keep(d: Driver, node: str, until: float) -> list[str]:
    """Time passes, and the node beats."""
    lines = []
    while d.now < until:
        lines += tick(d, min(until, d.now + 2.0))
        d.tell(m.Heartbeat(node, "1", (), 50, 60))
    return lines


def beat(d: Driver, *running: str) -> list[str]:
    stats = m.TaskStats(bytes_in=3, rows_in=2, spilled_bytes=1)
    progress = tuple(m.TaskProgress(f"{JOB}-{a}", stats) for a in running)
    return d.tell(m.Heartbeat("n", "1", progress, 50, 60))


def tick(d: Driver, until: float) -> list[str]:
    lines = []
    while d.now < until:
        d.now += PROGRESS_S
        lines += d.tell(events.Tick())
    return [line for line in lines if not line.endswith("JobProgress")]


def test_a_silent_node_loses_its_leases_and_gets_new_ones_when_it_is_heard_again() -> None:
    d = Driver()
    d.start(make_plan(2))
    assert tick(d, LEASE_S - 1) == []
    assert beat(d, "m000000.0") == []
    assert tick(d, 2 * LEASE_S) == []  # nobody else is there
    assert d.mapped(0) == ["n <- Lease 1-m000000.1 map 0+10:0>0; 1-m000001.1 map 10+10:0>0"]
    assert d.scheduler.stale_messages == 1
    assert beat(d, "m000001.0", "m000000.1") == ["n <- Revoke 1-m000001.0"]


def test_a_node_that_was_silent_when_a_job_ended_is_told_on_its_return() -> None:
    d = Driver()
    d.start(make_plan(2))
    tick(d, LEASE_S + 1)
    assert d.tell(events.CancelRequested(JOB)) == ["client 1 <- JobFailed cancelled"]
    assert beat(d, "m000001.0") == ["n <- EndJob 1"]


def test_what_is_kept_of_a_job_ends_with_its_client() -> None:
    d = Driver(form="none")
    d.start(make_plan(1, 0))
    tick(d, LEASE_S + 1)
    assert d.mapped(0, rows=()) == ["n <- Lease 1-m000000.1 map 0+10:0>0"]
    assert d.done(f"{JOB}-m000000.1", m.MapResult(0, m.TaskStats())) == ["client 1 <- JobDone"]
    assert beat(d, "m000000.0") == ["n <- Revoke 1-m000000.0"]  # of before it was silent
    tick(d, 3 * LEASE_S)
    assert d.tell(events.CancelRequested(JOB)) == ["client 1 <- JobFailed cancelled"]
    assert beat(d) == ["n <- EndJob 1"]


def test_a_server_that_stood_still_blames_no_node() -> None:
    d = Driver()
    d.start(make_plan(2))
    tick(d, 1.0)
    d.now += 10 * LEASE_S
    assert tick(d, d.now + 1) == []
    d.mapped(0)
    assert d.scheduler.stale_messages == 0  # the lease still held


def test_a_message_from_an_earlier_life_of_a_node_is_dropped() -> None:
    d = Driver()
    d.start(make_plan(1))
    assert d.join(life="2") == ["n <- StartJob 1", "n <- JobPlanned 1", "n <- Lease 1-m000000.1 map 0+10:0>0"]
    assert d.mapped(0) == []
    assert d.scheduler.stale_messages == 1


# --- several jobs, and what the client is told ---


# --- several jobs ---


def test_a_new_job_has_the_next_slot_that_a_task_leaves_and_then_half_of_all() -> None:
    d = Driver(slots=2)
    d.start(make_plan(20))
    d.now = SLOT_TURN_S
    assert d.start(None, OTHER) == ["n <- Recall 1"]  # what has not begun is not to delay it
    assert [each.message.attempts for each in d.last] == [2]  # type: ignore[union-attr]
    assert d.gave_back("m000003.0", "m000002.0") == []
    assert d.mapped(0) == ["n <- StartJob 2", "n <- Lease 2-plan.0"]
    d.now += SLOT_TURN_S
    lines = d.done(f"{OTHER}-plan.0", m.PlanResult(make_plan(20)))
    begins, succeed, succeeds = "2-m000000.0 map 0+10", "1-m000002.1 map 20+10", "2-m000001.0 map 10+10"
    assert lines == ["n <- JobPlanned 2", f"n <- Lease {begins}:0>0; {succeed}:0>0; {succeeds}:0>0"]
    assert [each.message.successors for each in d.last[-1:]] == [2]  # type: ignore[union-attr]
    assert d.mapped(1) == ["n <- Lease 1-m000003.1 map 30+10:0>0"]
    shares = d.scheduler.shares
    for index in range(2, 7):
        d.now += SLOT_TURN_S
        d.mapped(index, number=int(index < 4))
        assert (shares.slots_of(JOB), shares.slots_of(OTHER)) == (1, 1)  # each has successors of its own


def test_a_job_that_asks_for_few_slots_has_no_more_of_all_nodes() -> None:
    d = Driver(slots=2)
    d.join("n")
    d.join("o")
    spec = JobSpec("few", InputSpec(("/in/a.csv",)), resources=Resources(slots=3), reduce_form="aggregate")
    d.tell(events.JobSubmitted(JOB, m.SubmitJob(spec, b"code", (), "/staging")))
    job, leases = d.scheduler.jobs[JOB], d.scheduler.leases
    d.done(f"{JOB}-plan.0", m.PlanResult(make_plan(12)), node=next(iter(job.running.values())).node)
    done = 0
    while maps := [each for each in job.running.values() if each.stage == "map"]:
        assert leases.slots_of[JOB] == min(3, 12 - done)
        assert len(maps) == leases.slots_of[JOB]  # none waits at a node for a slot that it may not have
        d.mapped(maps[0].index, node=maps[0].node)
        done += 1
    assert done == 12
    assert [each.stage for each in job.running.values()] == ["reduce"]


def test_a_job_keeps_a_slot_for_a_turn() -> None:
    d = Driver(slots=1)
    d.start(make_plan(20))
    assert d.start(None, OTHER) == []
    d.now = SLOT_TURN_S / 2
    assert d.mapped(0) == ["n <- Lease 1-m000002.0 map 20+10:0>0"]
    d.now = SLOT_TURN_S
    assert "n <- Recall 1" in d.tell(events.Tick())
    assert "n <- Recall 1" not in d.tell(events.Tick())  # it has not answered yet
    d.gave_back("m000002.0")
    assert "n <- Lease 2-plan.0" in d.mapped(1)


def test_what_was_recalled_and_had_begun_runs_on() -> None:
    d = Driver(slots=1)
    d.start(make_plan(3))
    d.now = SLOT_TURN_S
    assert d.start(None, OTHER) == ["n <- Recall 1"]
    assert d.mapped(0) == []
    assert d.gave_back() == []  # it had begun meanwhile
    assert "n <- Lease 2-plan.0" in d.mapped(1)
    assert d.done(f"{OTHER}-plan.0", m.PlanResult(make_plan(0)))[-1].startswith("n <- Lease")


def test_a_job_of_a_higher_priority_overtakes_the_others_of_its_user() -> None:
    d = Driver(slots=4)
    d.start(make_plan(40))
    d.submit(OTHER, priority=1)
    node, begun = d.scheduler.leases.nodes["n"], ["m000000.0", "m000001.0", "m000002.0", "m000003.0"]

    def give_back() -> None:
        if node.recalling:
            ours = [attempt.partition("-")[2] for attempt in node.held if attempt.startswith(JOB)]
            d.gave_back(*(each for each in ours if each not in begun))

    for index in range(3):
        d.now += SLOT_TURN_S
        d.tell(events.Tick())
        give_back()
        begun.pop(0)
        lines = d.mapped(index)
        if index == 0:
            assert any("Lease 2-plan.0" in line for line in lines)
            d.done(f"{OTHER}-plan.0", m.PlanResult(make_plan(40)))
        give_back()
    assert node.slots_of == {JOB: 1, OTHER: 3}
    d.now += SLOT_TURN_S
    d.mapped(3)
    assert node.slots_of == {JOB: 1, OTHER: 3}  # the other one does not starve


def test_slots_that_stand_idle_while_reduces_wait_for_inputs_are_given_to_others() -> None:
    d = Driver(slots=2)
    d.start(make_plan(1, 4))
    assert len(d.mapped(0, rows=(1, 1, 1, 1))[0].split(";")) == 4  # all room is taken
    d.submit(OTHER)
    beat = m.Heartbeat("n", "1", (), 1, 1)
    assert "n <- Lease 2-plan.0" not in d.tell(beat)
    assert "n <- Lease 2-plan.0" in d.tell(msgspec.structs.replace(beat, idle_slots=2))


def test_a_job_with_more_memory_than_a_node_has_runs_on_larger_ones() -> None:
    d = Driver(slots=1)
    d.join()
    d.submit(memory_bytes=2000)
    assert d.last == []
    hello = m.NodeHello("large", "1", 3, 2000, {}, "large:8787")
    assert "large <- Lease 1-plan.0" in d.tell(events.NodeJoined(hello))
    job = d.scheduler.jobs[JOB]
    assert set(job.unfit) == {"n"}
    assert job.unfit["n"].code == "memory-too-small"
    assert job.slots_at(d.scheduler.leases.nodes["large"]) == 1  # its memory is that of one task


def test_a_job_has_as_many_slots_of_a_node_as_its_memory_is_for() -> None:
    d = Driver(slots=4)
    d.tell(events.NodeJoined(m.NodeHello("n", "1", 4, 1 << 40, {}, "n:8787")))
    d.submit(memory_bytes=2 * smallest_job_bytes())
    d.done(f"{JOB}-plan.0", m.PlanResult(make_plan(20)))
    node = d.scheduler.leases.nodes["n"]
    assert (node.slots_of[JOB], node.held_of[JOB], node.free_slots) == (2, 4, 2)
    d.submit(OTHER)
    assert node.slots_of == {JOB: 2, OTHER: 1}
    for index in range(4):
        d.mapped(index)
        assert node.slots_of[JOB] == 2


def test_a_job_is_cancelled_and_forgotten() -> None:
    d = Driver()
    d.start(make_plan(2))
    assert d.tell(events.CancelRequested(JOB)) == ["n <- EndJob 1", "client 1 <- JobFailed cancelled"]
    assert d.tell(events.CancelRequested(JOB)) == []
    assert d.tell(m.JobReceived(JOB)) == []


def test_progress_and_report() -> None:
    d = Driver(slots=1)
    d.start(make_plan(2))
    d.now = 2.0
    stats = m.TaskStats(rows_in=5, bytes_in=10, rows_out=4, bytes_out=40, spilled_bytes=50)
    d.mapped(0, seconds=1.5, counters={"g": {"n": 2}}, stats=stats)
    beat(d, "m000001.0")
    d.now = 3.0
    d.tell(events.Tick())
    progress = d.last[0].message
    assert isinstance(progress, m.JobProgress)
    assert progress.stages == (
        m.StageProgress("plan", 1, 1, 0, 0, 0, 0, 0, 0.0),
        m.StageProgress("map", 1, 2, 1, 13, 20, 7, 4, 3.0),
        m.StageProgress("reduce", 0, 1, 0, 0, 40, 0, 0, 0.0),
    )
    assert progress.spilled_bytes == 51
    assert (progress.memory_bytes, progress.memory_peak_bytes, progress.memory_cap_bytes) == (50, 60, 1000)
    d.mapped(1, seconds=0.5, counters={"g": {"n": 3}, "h": {"k": 1}})
    d.failed("r000000.0")
    d.now = 5.0
    d.reduced(0, 1, 8, counters={"g": {"n": 10}})
    end = d.end()
    assert isinstance(end, m.JobDone)
    assert end.report == m.JobReport(
        job=JOB,
        name="a job",
        seconds=5.0,
        stages=(
            m.StageProgress("plan", 1, 1, 0, 0, 0, 0, 0, 0.0),
            m.StageProgress("map", 2, 2, 0, 20, 20, 10, 8, 3.0),
            m.StageProgress("reduce", 1, 1, 0, 80, 80, 8, 2, 2.0),
        ),
        rows_in=10,
        bytes_in=20,
        rows_out=2,
        bytes_out=0,
        groups=2,
        spilled_bytes=53,
        shuffled_bytes=30,
        memory_peak_bytes=60,
        memory_cap_bytes=1000,
        slots=1,
        failed_attempts=1,
        slowest=m.TaskSummary(f"{JOB}-m000000.0", 1.5, "a.csv from byte 0, 10 B"),
        counters={"g": {"n": 15}, "h": {"k": 1}},
        notes=("a note",),
    )


# --- cost ---


def operations_per_event(maps: int, scan: bool) -> float:
    """Python operations the scheduler needs for one finished map, on average over the middle ones."""
    d = Driver(slots=2)
    d.start(make_plan(maps, 4, scan))
    operations = events_seen = 0

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal operations
        frame.f_trace_opcodes = True
        operations += event == "opcode"
        return count

    held = [a for n in d.scheduler.leases.nodes.values() for a in n.held]
    for i in range(200):
        attempt = held.pop(0)
        running = d.scheduler.leases.nodes["n"].held[attempt]
        result: m.Result
        if isinstance(running.task, m.ScanTask):
            result = m.ScanResult(((0, 0, 0),) * (len(running.task.boundaries) - 1))
        else:
            result = m.MapResult(running.index, m.TaskStats(), (1, 1, 1, 1))
        event = m.AttemptFinished("n", "1", m.TaskFinished(attempt, result, 1.0, 1))
        if i >= 100:
            events_seen += 1
            sys.settrace(count)
        instructions = d.scheduler.handle(event, 0.0)
        sys.settrace(None)
        for instruction in instructions:
            assert isinstance(instruction.message, m.Lease)
            held += [r.attempt for r in instruction.message.tasks]  # type: ignore[misc]
    return operations / events_seen


@pytest.mark.parametrize("scan", [False, True])
def test_a_decision_costs_the_same_whatever_the_number_of_tasks(scan: bool) -> None:
    few, many = operations_per_event(400, scan), operations_per_event(20_000, scan)
    assert few > 100  # it does count
    assert many < few * 1.05


def test_a_task_moves_by_its_table_and_by_nothing_else() -> None:
    for state in TaskState:
        for event in TaskEvent:
            if (state, event) in TASK_TRANSITIONS:
                assert next_task_state(state, event) is TASK_TRANSITIONS[state, event]
            else:
                with pytest.raises(InternalError, match=f"when it is {state.name}"):
                    next_task_state(state, event)
    table = TaskTable(2)
    table.needs_met(0, 2)
    assert table.lease(0) == (0, 0)
    with pytest.raises(InternalError, match="cannot lose when it is LEASED"):
        table.apply(0, TaskEvent.LOSE)
    assert (table.leased, table.done, table.first_ready()) == (1, 0, 1)


def test_a_job_moves_by_its_table_and_its_end_is_final() -> None:
    for state in JobState:
        for event in JobEvent:
            if (state, event) in JOB_TRANSITIONS:
                assert state not in ENDED or (state, event) in {
                    (JobState.DONE, JobEvent.PART_LOST),  # before the client had it
                    (JobState.DONE, JobEvent.MAP_LOST),
                    (JobState.DONE, JobEvent.FAIL),  # and there is nothing to make it anew from
                }
            else:
                with pytest.raises(InternalError, match=f"a job cannot .* when it is {state.value}"):
                    next_job_state(state, event)
    assert all(
        (s, e) in JOB_TRANSITIONS for s in set(JobState) - ENDED for e in (JobEvent.FAIL, JobEvent.CANCEL)
    )

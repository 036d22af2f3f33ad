"""Which jobs are taken, and what is said of one that is not."""

from __future__ import annotations

import pytest

from cortex.errors import ClusterFull, MemoryTooSmall, UsageError
from cortex.job.plan import InputFile, InputPlan, Split, SplitGroups, Splits
from cortex.job.spec import InputSpec, JobSpec, Resources
from cortex.memory_plan import (
    MemoryPlan,
    job_executor_bytes,
    job_slots,
    plan_memory,
    smallest_cap_bytes,
    smallest_job_bytes,
)
from cortex.scheduling import events
from cortex.scheduling.admission import refusal
from cortex.scheduling.scheduler import Scheduler
from cortex.sharing_policy import SharingPolicy, parse_cap, parse_weights
from cortex.wire import messages as m

MIB = 1 << 20


def request(memory_bytes: int = 0) -> m.SubmitJob:
    spec = JobSpec("a job", InputSpec(("/in",)), resources=Resources(memory_bytes))
    return m.SubmitJob(spec, b"", (), "")


def scheduler(maps: int = 5) -> Scheduler:
    """With a node of one slot, and a job of Ann's that has its plan."""
    made = Scheduler()
    made.handle(events.NodeJoined(m.NodeHello("n", "1", 1, 1 << 30, {}, "n:8787")), 0.0)
    made.handle(events.JobSubmitted("j000000000001", request(), "ann"), 0.0)
    plan = InputPlan(
        (InputFile(0, "/in", "text", maps, 0, 0),),
        Splits.of(Split(i, 0, i, 1) for i in range(maps)),
        SplitGroups.of((i,) for i in range(maps)),
        (),
        maps,
        0,
    )
    done = m.TaskFinished("j000000000001-plan.0", m.PlanResult(plan), 1.0, 1)
    made.handle(m.AttemptFinished("n", "1", done), 1.0)
    return made


def test_a_user_has_so_many_jobs_and_others_are_not_concerned() -> None:
    policy = SharingPolicy(jobs_per_user=2)
    assert refusal(request(), "ann", 0, scheduler(), policy) is None
    error = refusal(request(), "ann", 1, scheduler(), policy)  # one of hers is being written down
    assert isinstance(error, ClusterFull)
    assert "2 jobs of user ann" in error.message
    assert "--jobs-per-user" in error.cure
    assert refusal(request(), "bob", 1, scheduler(), policy) is None


def test_no_job_is_taken_while_too_many_tasks_wait() -> None:
    # of 5 maps two are leased
    assert refusal(request(), "bob", 0, scheduler(), SharingPolicy(queued_tasks=4)) is None
    error = refusal(request(), "bob", 0, scheduler(), SharingPolicy(queued_tasks=3))
    assert isinstance(error, ClusterFull)
    assert error.message.startswith("3 tasks wait in the cluster, and with 3 it takes no further job")
    assert "--queued-tasks" in error.cure


def test_a_memory_that_no_node_has_or_no_task_can_run_in_is_refused() -> None:
    policy = SharingPolicy()
    assert refusal(request(1 << 30), "ann", 0, scheduler(), policy) is None
    too_much = refusal(request((1 << 30) + 1), "ann", 0, scheduler(), policy)
    assert isinstance(too_much, MemoryTooSmall)
    assert "the largest, n, has" in too_much.message
    assert refusal(request(1 << 40), "ann", 0, Scheduler(), policy) is None  # a larger one may come
    assert isinstance(refusal(request(20 * MIB), "ann", 0, scheduler(), policy), MemoryTooSmall)


@pytest.mark.parametrize("memory", [smallest_job_bytes(), 200 * MIB, 3 << 30, 100 << 30])
@pytest.mark.parametrize("cap", [smallest_cap_bytes(), 1 << 30, 64 << 30])
def test_all_executors_of_a_job_have_no_more_than_its_memory(cap: int, memory: int) -> None:
    for slots in (1, 2, 8, 64):
        plan = plan_memory(cap, slots)
        mine = job_slots(memory, plan.slots)
        assert 1 <= mine <= plan.slots
        each = job_executor_bytes(plan, memory)
        assert mine * each <= memory
        assert min(smallest_job_bytes(), plan.executor_bytes) <= each <= plan.executor_bytes


def test_a_job_with_room_for_all_has_what_slots_have() -> None:
    plan = MemoryPlan(8 << 30, 8, 900 * MIB)
    assert job_slots(8 << 30, plan.slots) == 8
    assert job_executor_bytes(plan, 8 << 30) == 900 * MIB


def test_weights_and_caps_are_parsed_or_refused_with_a_cure() -> None:
    assert parse_weights(["c0=2", " c1 = 0.5 "], "--user-weight") == {"c0": 2.0, "c1": 0.5}
    for wrong in ("c0", "=2", "c0=", "c0=x", "c0=0", "c0=-1", "c0=nan", "c0=1e9"):
        with pytest.raises(UsageError, match=r"--user-weight: .* is no user and weight") as caught:
            parse_weights([wrong], "--user-weight")
        assert "USER=WEIGHT" in caught.value.cure
    assert parse_cap("20", "--jobs-per-user") == 20
    for wrong in ("0", "-1", "many", ""):
        with pytest.raises(UsageError, match="--jobs-per-user"):
            parse_cap(wrong, "--jobs-per-user")

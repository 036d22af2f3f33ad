"""A node without room for spilled data: left alone for a while, never for good."""

from __future__ import annotations

import pytest

from cortex.errors import ErrorReport, Fault
from cortex.limits import SPILL_REST_S, SPILL_REST_S_MAX, TASK_ATTEMPTS_MAX
from cortex.scheduling import events
from cortex.wire import messages as m
from tests.unit.test_scheduler import JOB, cannot
from tests.unit.test_scheduler_drain import DrainDriver, make_plan


class FullDriver(DrainDriver):
    def full(self, attempt: str, node: str = "n") -> list[str]:
        error = ErrorReport("spill-full", "no space", fault=Fault.TASK.value)
        failed = m.TaskFailed(f"{JOB}-{attempt}", error, 1.0, 1)
        lines = self.tell(m.AttemptFailed(node, "1", failed))
        return [line for line in lines if "Lease" in line or "client" in line]

    def beat(self, node: str, used: int, limit: int = 160) -> None:
        self.tell(m.Heartbeat(node, "1", (), 1, 1, 100, used, limit))

    def pass_time(self, seconds: float) -> list[str]:
        """As ticks do, without new heartbeats."""
        self.now += seconds
        for node in self.scheduler.leases.nodes.values():
            node.renewed_at = self.now
        return [line for line in self.tell(events.Tick()) if "Lease" in line]


def test_what_found_no_room_runs_elsewhere_and_the_full_node_rests_while_another_has_room() -> None:
    d = FullDriver()
    d.join("n")
    d.submit(staging="")
    d.done(f"{JOB}-plan.0", m.PlanResult(make_plan(2, 1)))
    d.join("o")
    d.beat("n", 155)
    d.beat("o", 10)
    assert d.full("m000000.0") == ["o <- Lease 1-m000000.1 map 0+10:0>0"]
    assert d.full("m000001.0") == ["o <- Lease 1-m000001.1 map 10+10:0>0"]
    assert d.pass_time(10 * SPILL_REST_S) == []
    assert d.scheduler.leases.nodes["n"].room == 0
    assert d.states() == {"n": "full", "o": "up"}
    d.beat("n", 10)
    d.pass_time(2 * SPILL_REST_S)
    assert d.scheduler.leases.nodes["n"].room > 0


def test_a_node_that_stays_full_is_tried_again_in_the_end_for_others_may_not_be_fit() -> None:
    d = FullDriver()
    d.join("n")
    d.submit(staging="")
    d.join("o")
    d.beat("n", 160)
    d.beat("o", 10)
    assert d.full("plan.0") == ["o <- Lease 1-plan.1"]
    cannot(d, "o")
    assert d.pass_time(SPILL_REST_S + 1) == []
    assert d.pass_time(SPILL_REST_S_MAX) == ["n <- Lease 1-plan.2"]


def test_the_only_node_is_tried_again_with_growing_rests_until_the_attempts_are_used_up() -> None:
    d = FullDriver()
    d.join("n")
    d.submit(staging="")
    d.done(f"{JOB}-plan.0", m.PlanResult(make_plan(1, 1)))
    d.beat("n", 160)
    rest_s = SPILL_REST_S
    for number in range(TASK_ATTEMPTS_MAX - 1):
        assert d.full(f"m000000.{number}") == []
        assert d.pass_time(0.9 * rest_s) == []
        assert d.pass_time(0.2 * rest_s) == [f"n <- Lease 1-m000000.{number + 1} map 0+10:0>0"]
        rest_s *= 2
    assert d.full(f"m000000.{TASK_ATTEMPTS_MAX - 1}") == ["client 1 <- JobFailed spill-full"]


def test_a_node_that_had_room_again_rests_shortly_the_next_time() -> None:
    d = FullDriver(slots=2)
    d.join("n")
    d.submit(staging="")
    d.done(f"{JOB}-plan.0", m.PlanResult(make_plan(8, 1)))
    node = d.scheduler.leases.nodes["n"]
    for number in range(3):
        d.full(f"m00000{number}.0")
        d.pass_time(SPILL_REST_S_MAX)
    assert node.rest_s == 4 * SPILL_REST_S
    d.mapped(3)
    assert node.rest_s == 0
    assert node.rest_until is None
    d.full("m000004.0")
    assert node.rest_s == pytest.approx(SPILL_REST_S)

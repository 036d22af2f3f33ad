"""A node that is drained, by golden lists; and the tables of a node's states."""

from __future__ import annotations

from typing import Any

import pytest

from cortex.errors import InternalError
from cortex.limits import LEASE_S
from cortex.scheduling import events
from cortex.scheduling.node_state import (
    DUTY_TRANSITIONS,
    PRESENCE_TRANSITIONS,
    UP,
    Duty,
    NodeEvent,
    NodeState,
    Presence,
    next_node_state,
)
from cortex.scheduling.status import expected_statuses, node_statuses
from cortex.wire import messages as m
from tests.unit.test_scheduler import JOB, Driver, cannot, make_plan


class DrainDriver(Driver):
    def show(self, instruction: events.Instruction) -> str:
        if isinstance(instruction, events.GiveUpNode):
            return f"{instruction.node} {'has left' if instruction.drained else 'is given up'}"
        if isinstance(instruction, events.SendToNode) and isinstance(instruction.message, m.Drain):
            return f"{instruction.node} <- Drain {instruction.message.seconds:g}"
        if isinstance(instruction, events.SendToNode) and isinstance(instruction.message, m.ShutDown):
            return f"{instruction.node} <- ShutDown"
        return super().show(instruction)

    def drain(self, node: str, seconds: float = 100.0, undo: bool = False) -> list[str]:
        return self.tell(events.DrainRequested(node, seconds, undo))

    def tick(self, seconds: float = 0.25) -> list[str]:
        """Time passes; without what the client is told."""
        self.now += seconds
        for node in list(self.scheduler.leases.nodes.values()):
            self.tell(m.Heartbeat(node.name, node.hello.incarnation, (), 1, 1))
        return [line for line in self.tell(events.Tick()) if "JobProgress" not in line]

    def states(self) -> dict[str, str]:
        return {each.node: each.state for each in node_statuses(self.scheduler, self.now)}

    def waits(self, node: str) -> tuple[str, ...]:
        return self.scheduler.waits_for(self.scheduler.leases.nodes[node])


def reduce_result(index: int, rows: int, number: int = 0) -> m.ReduceResult:
    part = m.OutputPart(f"part-{index}", f"staged-{index}-{number}", 1, 2, ())
    return m.ReduceResult(index, m.TaskStats(rows_in=rows, bytes_in=10 * rows), (part,))


def two_nodes(splits: int = 4, slots: int = 1) -> DrainDriver:
    d = DrainDriver(slots=slots)
    d.join("n")
    d.submit(staging="")
    d.join("o")
    d.done(f"{JOB}-plan.0", m.PlanResult(make_plan(splits, 1)))
    return d


def test_a_node_that_has_nothing_leaves_at_once() -> None:
    d = DrainDriver()
    d.join("n")
    assert d.drain("n") == ["n <- Drain 100"]
    assert (d.states(), d.scheduler.leases.slots) == ({"n": "draining"}, 0)
    assert d.tick() == ["n <- ShutDown", "n has left"]
    assert d.states() == {}
    assert d.scheduler.tally.nodes_lost == 0
    assert d.drain("n") == []  # it is not there any more


def test_it_finishes_what_runs_gives_back_the_rest_and_is_served_from_until_the_job_ends() -> None:
    d = two_nodes(3)
    held = sorted(d.scheduler.leases.nodes["n"].held)
    assert held == [f"{JOB}-m000000.0", f"{JOB}-m000002.0"]
    assert d.drain("n") == ["n <- Drain 100"]
    back = d.tell(m.GivenBack("n", "1", (f"{JOB}-m000002.0",)))
    assert back == ["o <- Lease 1-m000002.1 map 20+10:0>0"]
    assert d.waits("n") == ("1 task",)
    assert d.mapped(0) == []
    assert d.tick() == []
    assert d.waits("n") == (f"map outputs of {JOB}",)
    d.mapped(1, node="o")
    lines = d.mapped(2, 1, node="o")
    assert lines == ["o <- Lease 1-r000000.0 reduce m000000.0,m000001.0,m000002.1"]
    assert d.tick() == []
    d.done(f"{JOB}-r000000.0", reduce_result(0, 12), node="o")
    assert d.end().report.failed_attempts == 0
    assert d.tick() == ["n <- ShutDown", "n has left"]


def test_when_its_time_is_over_the_rest_is_made_elsewhere() -> None:
    d = two_nodes(3)
    d.mapped(0)
    d.drain("n", 10.0)
    d.tell(m.GivenBack("n", "1", ()))
    assert d.tick(9.0) == []
    lines = d.tick(2.0)
    assert lines[:3] == ["n <- Revoke 1-m000002.0", "n <- ShutDown", "n has left"]
    assert lines[3:] == ["o <- Lease 1-m000000.1 map 0+10:0>0"]
    assert d.mapped(1, node="o") == ["o <- Lease 1-m000002.1 map 20+10:0>0"]
    assert not d.scheduler.jobs[JOB].progress.failed_attempts


def test_a_finished_result_keeps_its_node_beyond_its_time() -> None:
    d = DrainDriver()
    d.join("n")
    d.submit(staging="")
    d.done(f"{JOB}-plan.0", m.PlanResult(make_plan(1, 1)))
    d.mapped(0)
    d.done(f"{JOB}-r000000.0", reduce_result(0, 4))
    d.join("o")
    d.drain("n", 0.0)
    assert d.tick() == []
    assert d.tick(1000.0) == []
    assert (d.states()["n"], d.waits("n")) == ("leaving", (f"parts of the result of {JOB}",))
    assert d.tell(m.JobReceived(JOB)) == ["n <- EndJob 1"]
    assert d.tick() == ["n <- ShutDown", "n has left"]


def test_a_node_that_is_silent_has_nothing_left_and_is_drained_at_once() -> None:
    d = two_nodes(2)
    d.now += LEASE_S + 1
    d.tell(m.Heartbeat("o", "1", (), 1, 1))
    d.tell(events.Tick())
    assert d.states()["n"] == "silent"
    assert d.drain("n") == ["n <- Drain 100"]
    lines = [line for line in d.tell(events.Tick()) if "JobProgress" not in line]
    assert lines == ["n <- ShutDown", "n has left"]


def test_undo_lets_it_work_again_also_when_its_time_is_over() -> None:
    d = two_nodes(8)
    d.drain("n", 0.0)
    d.tell(m.GivenBack("n", "1", tuple(sorted(d.scheduler.leases.nodes["n"].held))))
    assert not d.scheduler.leases.nodes["n"].held
    lines = d.drain("n", undo=True)
    assert lines[0] == "n <- Drain -1"
    assert lines[1].startswith("n <- Lease")
    assert d.states()["n"] == "up"
    assert d.tick() == []


def test_the_only_node_that_can_run_a_job_works_on_for_it() -> None:
    d = DrainDriver()
    d.join("n")
    d.join("o")
    d.submit()
    cannot(d, "n")
    d.drain("o", 0.0)
    d.tell(m.GivenBack("o", "1", tuple(sorted(d.scheduler.leases.nodes["o"].held))))
    assert d.tick() == ["o <- Lease 1-plan.2"]
    assert d.tick(100.0) == []
    assert d.waits("o") == ("1 task", f"it is the only node that can run {JOB}")
    d.done(f"{JOB}-plan.2", m.PlanResult(make_plan(1, 1)), node="o")
    d.mapped(0, node="o")
    d.done(f"{JOB}-r000000.0", reduce_result(0, 4), node="o")
    assert isinstance(d.end(), m.JobDone)
    assert d.tick() == ["o <- ShutDown", "o has left"]


def test_a_node_that_drains_is_told_again_when_its_link_is_back_and_says_so_to_a_later_life() -> None:
    d = two_nodes(4)
    d.drain("n", 50.0)
    d.tell(events.NodeAway("n"))
    assert d.states()["n"] == "away"
    attempts = dict.fromkeys(map(str, d.scheduler.leases.nodes["n"].held), 0)
    hello = m.NodeHello("n", "1", 1, 1000, {}, "n-1:8787", (JOB,), attempts, 40.0)
    assert d.tell(events.NodeJoined(hello)) == ["n <- Drain 50"]
    assert d.states()["n"] == "draining"
    later = DrainDriver()
    assert later.tell(events.NodeJoined(m.NodeHello("n", "1", 1, 1, {}, draining_s=40.0))) == [
        "n <- Drain 40"
    ]
    assert later.states()["n"] == "draining"


def test_nodes_of_an_earlier_life_are_shown_as_expected_until_they_are_back_or_given_up() -> None:
    d = DrainDriver()
    d.tell(events.Restored((), {"n": "1", "o": "1"}))
    shown = expected_statuses(d.scheduler, d.now)
    assert [(each.node, each.state, each.leaves_in_s) for each in shown] == [
        ("n", "expected", 20.0),
        ("o", "expected", 20.0),
    ]
    d.join("n")
    assert [each.node for each in expected_statuses(d.scheduler, d.now)] == ["o"]
    d.tick(30.0)
    assert expected_statuses(d.scheduler, d.now) == ()


@pytest.mark.parametrize("presence", Presence)
@pytest.mark.parametrize("duty", Duty)
@pytest.mark.parametrize("event", NodeEvent)
def test_a_node_moves_by_its_tables_and_by_nothing_else(
    presence: Presence, duty: Duty, event: NodeEvent
) -> None:
    state: Any = NodeState(presence, duty)
    moved = PRESENCE_TRANSITIONS.get((presence, event)), DUTY_TRANSITIONS.get((duty, event))
    assert None in moved  # an event is of one table
    if moved == (None, None):
        with pytest.raises(InternalError, match="a node cannot"):
            next_node_state(state, event)
    else:
        assert next_node_state(state, event) == (moved[0] or presence, moved[1] or duty)
    assert UP.takes_work
    assert state.takes_work == (state == UP)

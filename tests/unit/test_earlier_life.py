"""What an earlier life of the server has left: who is waited for, and what nodes say they hold of it."""

from __future__ import annotations

from cortex.errors import UserCodeError
from cortex.ids import JobId
from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import NODE_RETURN_S
from cortex.scheduling.earlier_life import EarlierLife
from cortex.scheduling.job_run import JobRun
from cortex.scheduling.leases import LeaseBook
from cortex.scheduling.run import Run
from cortex.wire.messages import (
    AttemptFailed,
    AttemptFinished,
    NodeHello,
    PlanResult,
    SubmitJob,
    TaskFailed,
    TaskFinished,
)
from tests.unit.test_scheduler import make_plan

JOB = "j0123456789ab"
PLAN = f"{JOB}-plan.0"
MAP = f"{JOB}-m000000.0"


def hello(name: str) -> NodeHello:
    return NodeHello(name, "1", 2, 1 << 30, "")


def new_job() -> JobRun:
    return JobRun(JobId(JOB), SubmitJob(JobSpec("a", InputSpec(("/in",))), b"", (), "/staging"), 100.0, 1)


def failed(node: str, attempt: str) -> AttemptFailed:
    return AttemptFailed(node, "1", TaskFailed(attempt, UserCodeError("boom").report(), 1.0, 1))


def life(*nodes: str) -> EarlierLife:
    earlier = EarlierLife()
    earlier.begin(dict.fromkeys(nodes, "1"), 100.0)
    return earlier


def test_it_is_over_when_every_node_has_told_all() -> None:
    assert not EarlierLife().is_over  # there was none
    assert life().is_over
    earlier = life("n", "o")
    assert (earlier.joined("n"), earlier.joined("stranger")) == ("1", None)
    earlier.claim("n", {})
    assert earlier.has_told_all("n")
    assert not earlier.is_over
    earlier.joined("o")
    earlier.claim("o", {MAP: 0})
    assert not earlier.is_over  # its reports may be on their way
    assert earlier.has_told_all("o")
    assert earlier.is_over
    assert earlier.end() == [("o", MAP)]
    assert (earlier.matters, earlier.is_over, earlier.is_claimed(MAP)) == (False, False, False)


def test_nodes_that_do_not_come_back_are_given_up() -> None:
    earlier = life("o", "n", "p")
    earlier.joined("p")
    earlier.claim("p", {})
    assert earlier.give_up(100.0 + NODE_RETURN_S - 0.1) == []
    assert not earlier.is_over
    assert earlier.give_up(100.0 + NODE_RETURN_S) == ["n", "o"]
    assert earlier.is_over  # one that is back and silent is not waited for, either


def test_a_node_that_is_lost_again_holds_nothing() -> None:
    earlier = life("n")
    earlier.joined("n")
    earlier.claim("n", {MAP: 0})
    earlier.lose("n")
    assert (earlier.is_over, earlier.is_claimed(MAP)) == (True, False)


def test_a_report_waits_with_its_claim() -> None:
    earlier = life("n")
    earlier.joined("n")
    earlier.claim("n", {MAP: 0, PLAN: 0})
    assert not earlier.keeps(failed("o", MAP), MAP)  # it is not the one that holds it
    assert not earlier.keeps(failed("n", f"{JOB}-m000001.0"), f"{JOB}-m000001.0")
    report = failed("n", PLAN)
    assert earlier.keeps(report, PLAN)
    assert earlier.keeps(failed("n", MAP), MAP)

    leases = LeaseBook()
    node = leases.join(hello("n"), 100.0)
    job = new_job()
    jobs: dict[str, Run] = {JOB: job}
    assert list(earlier.take_up({}, leases, 101.0)) == []  # nobody knows the job
    assert list(earlier.take_up(jobs, leases, 101.0)) == [report]  # there is no map before there is a plan
    assert list(node.held) == [PLAN] == list(job.running)
    assert (earlier.is_claimed(PLAN), earlier.is_claimed(MAP)) == (False, True)
    earlier.given_back(MAP)
    assert not earlier.is_claimed(MAP)


def test_what_one_report_makes_ready_is_taken_up_with_the_next() -> None:
    """The caller takes a report before it asks on."""
    for takes_report in (True, False):
        leases = LeaseBook()
        node = leases.join(hello("n"), 100.0)
        earlier = life("n")
        earlier.joined("n")
        earlier.claim("n", {PLAN: 0, MAP: 0})
        done = TaskFinished(PLAN, PlanResult(make_plan()), 1.0, 1)
        assert earlier.keeps(AttemptFinished("n", "1", done), PLAN)
        job = new_job()
        taken = earlier.take_up({JOB: job}, leases, 101.0)
        assert isinstance(next(taken), AttemptFinished)
        running = leases.take(node, PLAN)
        assert running is not None
        if takes_report:
            job.finished(running, done, 101.0)
        assert list(taken) == ([None] if takes_report else [])
        assert list(job.running) == ([MAP] if takes_report else [PLAN])

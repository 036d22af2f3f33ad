"""Detached jobs at a server with a journal, on a test clock: across lives of it, until they expire."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from cortex.errors import ErrorReport
from cortex.job.plan import ClientFile
from cortex.job.spec import OutputSpec
from cortex.limits import CLIENT_RETURN_S, JOURNAL_S, MAPS_KEPT_S, NODE_RETURN_S, PROGRESS_S
from cortex.wire import messages as m
from tests.unit.test_server_journal import BOB, PLAN, SUBMIT, Life, lives, mapped, run_to_the_end  # noqa: F401

DAY_S = 86_400.0
DETACHED = msgspec.structs.replace(SUBMIT, keep_s=7 * DAY_S)
PART = m.OutputPart("part-0", "staged", 1, 5, ())


def submit(life: Life, request: m.SubmitJob = DETACHED) -> str:
    link, say = life.client()
    (accepted,) = say(request)
    assert isinstance(accepted, m.JobAccepted)
    life.server.client_lost(link, None)  # type: ignore[arg-type]
    return accepted.job


def rest(life: Life, seconds: float) -> None:
    """Time passes, and the node is heard."""
    for _ in range(int(seconds // 5) + 1):
        life.clock.advance(5)
        life.tell(m.Heartbeat("n", "life", (), 10, 10))


def test_it_goes_on_without_its_client_and_whoever_may_fetches_it(lives: Callable[[], Life]) -> None:  # noqa: F811
    life = lives()
    life.join()
    job = submit(life)
    rest(life, CLIENT_RETURN_S)
    run_to_the_end(life, job)
    rest(life, CLIENT_RETURN_S)
    for _ in range(2):
        link, say = life.client()
        followed, done = say(m.FollowJob(job))
        assert followed == m.JobFollowed(job, True, DETACHED.spec)
        assert isinstance(done, m.JobDone)
        assert [part.node for part in done.parts] == ["n"]
        say(m.FetchPart(job, "staged", 100))
        stream = next(each.stream for each in reversed(life.node.heard) if isinstance(each, m.SendPart))
        life.tell(m.PartChunk("n", stream, b"bytes", True))
        assert link.take() == [m.PartBytes(job, "staged", b"bytes", True)]
    link, say = life.client(BOB)
    for message in (m.FollowJob(job), m.ForgetResult(job)):
        (refused,) = say(message)
        assert refused.error.code == "not-allowed"
    assert m.EndJob(job) not in life.node.heard


def test_its_end_is_told_to_all_who_follow_and_its_forgetting_too(lives: Callable[[], Life]) -> None:  # noqa: F811
    life = lives()
    life.join()
    job = submit(life)
    followers = [life.client() for _ in range(2)]
    for _, say in followers:
        assert say(m.FollowJob(job)) == [m.JobFollowed(job, True, DETACHED.spec)]
    (refused,) = followers[0][1](m.ForgetResult(job))
    assert "is under way" in refused.error.message
    run_to_the_end(life, job)
    for link, _ in followers:
        (done,) = link.take()
        assert isinstance(done, m.JobDone)
    assert followers[0][1](m.ForgetResult(job)) == [m.JobForgotten(job), m.JobForgotten(job)]
    assert followers[1][0].take() == [m.JobForgotten(job)]
    assert m.EndJob(job) in life.node.heard
    (refused,) = followers[0][1](m.FollowJob(job))
    assert refused.error.code == "results-lost"
    status = life.client()[1](m.GetStatus())[0].jobs[-1]
    assert (status.job, status.state, status.kept_until) == (job, "done", 0.0)


@pytest.mark.parametrize("restarted", [False, True])
def test_it_expires_also_in_a_later_life(lives: Callable[[], Life], restarted: bool) -> None:  # noqa: F811
    life = lives()
    life.join()
    job = submit(life)
    run_to_the_end(life, job)
    life.clock.advance(1)
    until = life.client()[1](m.GetStatus())[0].jobs[-1].kept_until
    if restarted:
        life.clock.ahead_s += 3 * DAY_S
        life = lives()
        life.join((job,))
    status = life.client()[1](m.GetStatus())[0].jobs[-1]
    assert (status.state, status.kept_until) == ("done", until)
    link, say = life.client()
    assert isinstance(say(m.FollowJob(job))[1], m.JobDone)
    life.clock.ahead_s += until - life.clock.wall_clock() - 1.0
    life.clock.advance(PROGRESS_S)
    assert link.take() == []
    life.clock.ahead_s += 1.0
    life.clock.advance(PROGRESS_S)
    assert link.take() == [m.JobForgotten(job)]
    (refused,) = say(m.FollowJob(job))
    assert refused.error.code == "results-lost"
    life = lives()  # a later life has nothing of it
    assert life.client()[1](m.GetStatus())[0].jobs[-1].kept_until == 0
    assert life.server.scheduler.kept == {}


def test_why_it_failed_is_told_in_a_later_life(lives: Callable[[], Life]) -> None:  # noqa: F811
    life = lives()
    life.join()
    job = submit(life)
    error = ErrorReport("input", "no such file", "look for it")
    life.tell(m.AttemptFailed("n", "life", m.TaskFailed(f"{job}-plan.0", error, 1.0, 1)))
    life.clock.advance(CLIENT_RETURN_S + 1)
    life = lives()
    followed, failed = life.client()[1](m.FollowJob(job))
    assert followed == m.JobFollowed(job, True, None)
    assert failed.error == error
    assert life.client()[1](m.ForgetResult(job)) == [m.JobForgotten(job)]
    (refused,) = life.client()[1](m.FollowJob(job))
    assert refused.error.message == f"{job} has no result: it is failed"
    assert refused.error.details == {"error": "no such file"}


def test_map_outputs_are_dropped_after_an_hour_and_then_a_lost_node_loses_the_result(
    lives: Callable[[], Life],  # noqa: F811
) -> None:
    life = lives()
    life.join()
    job = submit(life)
    run_to_the_end(life, job)
    life.clock.ahead_s += MAPS_KEPT_S - 10
    life.clock.advance(PROGRESS_S)
    assert m.DropMapOutputs(job) not in life.node.heard
    life.clock.ahead_s += 20
    life.clock.advance(PROGRESS_S)
    life.clock.advance(PROGRESS_S)
    assert life.node.heard.count(m.DropMapOutputs(job)) == 1
    run = life.server.scheduler.kept[job]
    assert (run.request.code, len(run.plan.splits)) == (b"", 0)  # which was the most of its memory
    life.clock.advance(JOURNAL_S)
    life = lives()  # which is known in a later life
    life.join((job,))
    assert life.node.heard.count(m.DropMapOutputs(job)) == 1
    link, say = life.client()
    assert isinstance(say(m.FollowJob(job))[1], m.JobDone)
    life.server.detach_node("n", for_good=True)
    life.clock.advance(0)
    (failed,) = link.take()
    assert failed.error.code == "results-lost"
    assert "part-0" in failed.error.details["parts"]
    assert life.client()[1](m.GetStatus())[0].jobs[-1].state == "failed"
    life = lives()
    life.clock.advance(NODE_RETURN_S + 1)
    assert life.client()[1](m.FollowJob(job))[1].error.code == "results-lost"


def test_a_part_that_is_lost_within_the_hour_is_made_anew(lives: Callable[[], Life]) -> None:  # noqa: F811
    life = lives()
    life.join()
    job = submit(life)
    run_to_the_end(life, job)
    link, say = life.client()
    first = say(m.FollowJob(job))[1]
    life.server.detach_node("n", for_good=True)
    life.node.heard.clear()
    life.say = life.server.attach_node(life.node)
    life.tell(m.NodeHello("n", "new", 1, 1000, {}, "n:1"))
    for attempt in (f"{job}-m000000.1", f"{job}-m000001.1", f"{job}-r000000.1"):
        assert attempt in life.leases()
        index = int(attempt[-3])
        result = m.ReduceResult(0, m.TaskStats(rows_in=4), (PART,)) if "-r" in attempt else mapped(index)
        life.tell(m.AttemptFinished("n", "new", m.TaskFinished(attempt, result, 1.0, 1)))
    (again,) = link.take()
    assert isinstance(again, m.JobDone)
    assert again.expires_at == first.expires_at


def test_a_node_that_lacks_a_file_is_told_at_once(lives: Callable[[], Life]) -> None:  # noqa: F811
    life = lives()
    life.join()
    files = ((ClientFile("/in/a", 20, 0),),)
    job = submit(life, msgspec.structs.replace(DETACHED, client_files=files))
    assert life.leases() == [f"{job}-plan.0"]
    life.tell(m.NodeReads("n", m.ReadInput(7, job, 0, 0, 10)))
    (unread,) = [each for each in life.node.heard if isinstance(each, m.InputUnread)]
    assert unread.read == 7
    assert unread.error.details == {"file": "/in/a", "node": "n"}
    assert "leave --detach out" in unread.error.cure


def test_output_on_nodes_is_committed_by_one_and_nothing_of_it_is_kept(lives: Callable[[], Life]) -> None:  # noqa: F811
    life = lives()
    life.join()
    spec = msgspec.structs.replace(DETACHED.spec, output=OutputSpec("/shared/out", at="nodes"))
    job = "j" + "2" * 12
    request = msgspec.structs.replace(DETACHED, spec=spec, job=job)
    for wrong in ("", "/etc", "/shared/.out.j111111111111.shared/attempts"):
        (refused,) = life.client()[1](msgspec.structs.replace(request, staging_dir=wrong))
        assert refused.error.message == "a job names a wrong folder for its parts"
    staging = f"/shared/.out.{job}.shared/attempts"
    assert submit(life, msgspec.structs.replace(request, staging_dir=staging)) == job
    run_to_the_end(life, job)
    assert life.leases()[-1] == f"{job}-commit.0"
    life.clock.advance(JOURNAL_S)
    life = lives()  # between the reduces and the commit
    life.join((job,), {f"{job}-commit.0": 0})
    life.finish(f"{job}-commit.0", m.CommitResult())
    followed, done = life.client()[1](m.FollowJob(job))
    assert followed.spec == spec
    assert [part.node for part in done.parts] == [""]
    life.clock.advance(PROGRESS_S)
    assert m.DropMapOutputs(job) in life.node.heard
    assert life.client()[1](m.GetStatus())[0].jobs[-1].kept_until == 0
    life.server.detach_node("n", for_good=True)
    assert life.client()[1](m.FollowJob(job))[1] == done


def test_a_submission_whose_answer_was_lost_is_taken_once(lives: Callable[[], Life]) -> None:  # noqa: F811
    life = lives()
    life.join()
    request = msgspec.structs.replace(DETACHED, job="j" + "1" * 12)
    assert submit(life, request) == submit(life, request)
    assert life.leases() == [f"{request.job}-plan.0"]
    assert len(PLAN.tasks) == 2
    (refused,) = life.client(BOB)[1](request)
    assert refused.error.code == "not-allowed"
    run_to_the_end(life, request.job)
    accepted, done = life.client()[1](request)
    assert accepted == m.JobAccepted(request.job)
    assert isinstance(done, m.JobDone)

"""Which jobs are detached, until when what is kept of them is kept, and who follows."""

from __future__ import annotations

from cortex.errors import Cancelled, UsageError
from cortex.limits import FAILURES_KEPT_S, MAPS_KEPT_S, RESULTS_KEPT_MAX
from cortex.server.kept_results import KeptResults
from cortex.wire import messages as m

DAY_S = 86_400.0


def done(job: str) -> m.JobDone:
    return m.JobDone(job, m.JobReport(job, "a job", 1.0), ())


def failed(job: str) -> m.JobFailed:
    return m.JobFailed(job, Cancelled("x").report(), m.JobReport(job, "a job", 1.0))


def test_a_result_expires_by_the_clock_of_the_world_from_the_jobs_first_end() -> None:
    kept = KeptResults()
    kept.accepted("j1", 7 * DAY_S)
    assert kept.stamped(done("j2"), 50.0).expires_at == 0  # it has a client
    assert kept.expired(1e12) == []  # under way
    assert kept.stamped(done("j1"), 100.0).expires_at == 100.0 + 7 * DAY_S
    assert kept.stamped(done("j1"), 5000.0).expires_at == 100.0 + 7 * DAY_S  # some was lost and made anew
    assert kept.expired(99.0 + 7 * DAY_S) == []
    assert kept.expired(100.0 + 7 * DAY_S) == ["j1"]
    later = KeptResults()
    later.accepted("j1", 7 * DAY_S, 100.0 + 7 * DAY_S)
    assert later.stamped(done("j1"), 9000.0).expires_at == 100.0 + 7 * DAY_S
    later.forget("j1")
    assert "j1" not in later
    assert later.expired(1e12) == []


def test_map_outputs_are_kept_for_an_hour_after_the_end() -> None:
    kept = KeptResults()
    kept.accepted("j1", 7 * DAY_S)
    kept.stamped(done("j1"), 100.0)
    assert kept.maps_not_kept(["j1", "j2"], 99.0 + MAPS_KEPT_S) == []
    assert kept.maps_not_kept(["j1", "j2"], 100.0 + MAPS_KEPT_S) == ["j1"]


def test_why_a_job_failed_is_kept_for_a_day_and_not_for_too_many() -> None:
    kept = KeptResults()
    for index in range(RESULTS_KEPT_MAX):
        kept.accepted(f"j{index}", 7 * DAY_S)
        assert kept.stamped(failed(f"j{index}"), 10.0 + index).expires_at == 10.0 + index + FAILURES_KEPT_S
    assert kept.no_room() is None  # they hold nothing
    assert kept.expired(5000.0) == []
    kept.accepted("one more", DAY_S)
    assert kept.stamped(failed("one more"), 5000.0).expires_at == 5000.0 + DAY_S
    assert kept.expired(5000.0) == ["j0"]


def test_no_more_detached_jobs_are_taken_than_can_be_looked_after() -> None:
    kept = KeptResults()
    for index in range(RESULTS_KEPT_MAX):
        assert kept.no_room() is None
        kept.accepted(f"j{index}", DAY_S)
    refused = kept.no_room()
    assert isinstance(refused, UsageError)
    assert "cortex forget" in refused.cure
    kept.forget("j5")
    assert kept.no_room() is None


def test_followers_come_and_go() -> None:
    kept = KeptResults()
    kept.follow("j1", "ann")
    kept.follow("j1", "ann")
    kept.follow("j1", "bob")
    kept.follow("j2", "ann")
    assert kept.followers("j1") == ["ann", "bob"]
    assert kept.follows("ann", "j2")
    kept.client_lost("ann")
    assert (kept.followers("j1"), kept.followers("j2")) == (["bob"], [])
    assert kept.unfollow("j1") == ["bob"]
    assert not kept.follows("bob", "j1")

"""A server with a journal, on a test clock: what is written before it is said, who may come back, and a disk
that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from cortex.errors import StateFailed
from cortex.ids import Role
from cortex.job.plan import InputFile, InputPlan, Split, SplitGroups, Splits
from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import (
    CLIENT_RETURN_S,
    JOURNAL_RETRY_S,
    JOURNAL_S,
    NODE_AWAY_S,
    NODE_RETURN_S,
    PROGRESS_S,
)
from cortex.server.journal_desk import JournalDesk
from cortex.server.server import Server
from cortex.storage.journal import Change, Journal
from cortex.wire import messages as m
from cortex.wire.authority import Peer
from cortex.wire.versions import local_versions

ANN, BOB = "c" + "a" * 12, "c" + "b" * 12
SUBMIT = m.SubmitJob(JobSpec("a job", InputSpec(("/in/a",)), reduce_form="aggregate"), b"\x80code", (), "")
PLAN = InputPlan(
    (InputFile(0, "/in/a", "text", 20, 0, 1),),
    Splits.of([Split(0, 0, 0, 10), Split(1, 0, 10, 10)]),
    SplitGroups.of([(0,), (1,)]),
    (),
    20,
    1,
)


class Time(Clock):
    """Threads come back in a turn of the reactor that no test waits for."""

    ahead_s = 0.0
    """The world's clock is ahead by this."""

    def wall_clock(self) -> float:
        return float(self.seconds() + self.ahead_s)

    def callFromThread(self, function: Callable[..., Any], *arguments: Any) -> None: ...


class Disk(Journal):
    """A journal whose disk may fail."""

    fails = False
    written: list[Change]

    def write(self, changes: Any) -> None:
        if self.fails:
            raise StateFailed("the disk is full", cure="make room")
        self.written = [*getattr(self, "written", []), *changes]
        super().write(changes)


class Link:
    """A client's or a node's end, as far as the server sees it."""

    congested = False

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def accept(self) -> None: ...

    def send(self, message: Any) -> None:
        self.heard.append(message)

    def close(self, last: Any = None) -> None:
        self.heard += [] if last is None else [last]

    def take(self) -> list[Any]:
        heard, self.heard = self.heard, []
        return [message for message in heard if not isinstance(message, m.JobProgress | m.ServerHello)]


class Life:
    """One life of a server, with a node of one slot that does as it is told."""

    def __init__(self, folder: Path, clock: Time) -> None:
        self.clock = clock
        self.journal = Disk(str(folder))
        self.blocked: list[Callable[[], None]] = []
        self.holds_back = False
        desk = JournalDesk(clock, self.journal, self.run, clock.seconds)
        self.server = Server(
            clock,
            clock.seconds,
            "k" + "0" * 12,
            desk,
            blob_folder=str(folder / "blobs"),
            wall_clock=clock.wall_clock,
        )
        self.node = Link()
        self.say: Any = None

    def run(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """As the journal's thread; `holds_back` keeps what it does for `go_on`."""
        if not self.holds_back:
            return maybeDeferred(function, *arguments)
        result: Deferred[Any] = Deferred()
        self.blocked.append(lambda: maybeDeferred(function, *arguments).chainDeferred(result))
        return result

    def go_on(self) -> None:
        self.holds_back = False
        blocked, self.blocked = self.blocked, []
        for each in blocked:
            each()

    def end(self) -> None:
        """It is killed: nothing that waits is written."""
        self.server._timer.cancel()
        self.server._blobs.stop()
        for call in self.clock.getDelayedCalls():
            call.cancel()
        self.journal.close()

    def join(self, jobs: tuple[str, ...] = (), attempts: dict[str, int] | None = None) -> None:
        self.say = self.server.attach_node(self.node)
        self.tell(m.NodeHello("n", "life", 1, 1000, local_versions(), "n:1", jobs, attempts or {}))
        self.tell(m.Heartbeat("n", "life", (), 10, 10))

    def tell(self, message: m.FromNode) -> None:
        self.say(message)
        self.clock.advance(0)

    def client(self, name: str = ANN) -> tuple[Link, Callable[[Any], list[Any]]]:
        link = Link()
        peer = Peer(Role.CLIENT, name, "k" + "0" * 12, 1, 1e12)

        def say(message: Any) -> list[Any]:
            self.server.client_said(link, message, peer)  # type: ignore[arg-type]
            self.clock.advance(0)
            return link.take()

        say(m.ClientHello(local_versions()))
        return link, say

    def leases(self) -> list[str]:
        found = [run for each in self.node.heard if isinstance(each, m.Lease) for run in each.tasks]
        return [run.attempt for run in found]

    def finish(self, attempt: str, result: m.Result) -> None:
        self.tell(m.AttemptFinished("n", "life", m.TaskFinished(attempt, result, 1.0, 1)))

    def kinds(self) -> list[str]:
        return [type(change).__name__ for change in self.journal.written]


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Callable[[], Life]]:
    clock, made = Time(), []

    def begin() -> Life:
        if made:
            made[-1].end()
        made.append(Life(tmp_path / "journal", clock))
        return made[-1]

    yield begin
    made[-1].end()


def submit(say: Callable[[Any], list[Any]]) -> str:
    (accepted,) = say(SUBMIT)
    assert isinstance(accepted, m.JobAccepted)
    return accepted.job


def mapped(index: int) -> m.MapResult:
    return m.MapResult(index, m.TaskStats(rows_in=1), (2,), 7)


def run_to_the_end(life: Life, job: str) -> None:
    life.finish(f"{job}-plan.0", m.PlanResult(PLAN))
    for index in (0, 1):
        life.finish(f"{job}-m{index:06d}.0", mapped(index))
    part = m.OutputPart("part-0", "staged", 1, 5, ())
    life.finish(f"{job}-r000000.0", m.ReduceResult(0, m.TaskStats(rows_in=4), (part,)))


def test_a_job_is_accepted_when_it_is_on_the_disk_and_not_before(lives: Callable[[], Life]) -> None:
    life = lives()
    life.join()
    life.holds_back = True
    link, say = life.client()
    assert say(SUBMIT) == []
    assert life.leases() == []
    life.go_on()
    (accepted,) = link.take()
    assert isinstance(accepted, m.JobAccepted)
    assert life.leases() == [f"{accepted.job}-plan.0"]


def test_reports_are_acknowledged_when_they_are_on_the_disk(lives: Callable[[], Life]) -> None:
    life = lives()
    life.join()
    job = submit(life.client()[1])
    life.finish(f"{job}-plan.0", m.PlanResult(PLAN))
    life.finish(f"{job}-m000000.0", mapped(0))
    kept = m.ReportsKept((f"{job}-plan.0", f"{job}-m000000.0"))
    assert kept not in life.node.heard
    life.clock.advance(JOURNAL_S)
    assert kept in life.node.heard
    life.finish(f"{job}-m000000.0", mapped(0))  # told again: it is known
    assert life.node.heard[-1] == m.ReportsKept((f"{job}-m000000.0",))


def test_the_end_is_told_when_it_is_on_the_disk_and_forgotten_when_it_was_taken(
    lives: Callable[[], Life],
) -> None:
    life = lives()
    life.join()
    link, say = life.client()
    job = submit(say)
    life.holds_back = True
    run_to_the_end(life, job)
    assert link.take() == []
    life.go_on()
    life.clock.advance(JOURNAL_S)
    (done,) = link.take()
    assert isinstance(done, m.JobDone)
    assert say(m.JobReceived(job)) == [m.JobForgotten(job)]
    assert life.node.heard[-1] == m.EndJob(job)
    assert life.kinds()[-1] == "JobEnded"
    later = lives()
    (shown,) = later.server.status().jobs
    assert (shown.job, shown.state, shown.owner, shown.name) == (job, "done", ANN, "a job")
    (refused,) = later.client()[1](m.AttachJob(job))  # there is nothing left to come back for
    assert isinstance(refused, m.Refused)


def test_a_later_life_goes_on_and_only_the_owner_may_attach(lives: Callable[[], Life]) -> None:
    life = lives()
    life.join()
    job = submit(life.client()[1])
    life.finish(f"{job}-plan.0", m.PlanResult(PLAN))
    life.finish(f"{job}-m000000.0", mapped(0))
    life.clock.advance(JOURNAL_S)
    later = lives()
    (shown,) = later.server.status().jobs
    assert (shown.job, shown.state, shown.owner) == (job, "mapping", ANN)
    (refused,) = later.client(BOB)[1](m.AttachJob(job))
    assert isinstance(refused, m.Refused)
    assert refused.error.code == "not-allowed"
    link, say = later.client()
    assert say(m.AttachJob(job)) == [m.JobAccepted(job)]
    later.join((job,), {f"{job}-m000001.0": 0})
    assert later.leases() == []  # the node has it already
    later.finish(f"{job}-m000001.0", mapped(1))
    assert later.leases() == [f"{job}-r000000.256"]
    part = m.OutputPart("part-0", "staged", 1, 5, ())
    later.finish(f"{job}-r000000.256", m.ReduceResult(0, m.TaskStats(rows_in=4), (part,)))
    (done,) = link.take()
    assert isinstance(done, m.JobDone)
    assert [each.node for each in done.parts] == ["n"]


def test_the_result_of_an_earlier_life_is_fetched_when_its_node_is_back(lives: Callable[[], Life]) -> None:
    life = lives()
    life.join()
    link, say = life.client()
    job = submit(say)
    run_to_the_end(life, job)
    life.clock.advance(JOURNAL_S)
    (told,) = link.take()
    life.clock.advance(3)
    later = lives()
    _, say = later.client()
    accepted, done = say(m.AttachJob(job))
    assert (accepted, done) == (m.JobAccepted(job), told)  # the report as well
    assert say(m.FetchPart(job, "staged", 100, 2)) == []
    later.join((job,))
    assert later.node.heard[-1] == m.SendPart(1, job, "staged", 100, 2)
    later.tell(m.PartChunk("n", 1, b"abc", True))
    assert say(m.GetStatus())[0] == m.PartBytes(job, "staged", b"abc", True)


def test_a_part_is_made_anew_when_its_node_does_not_come_back(lives: Callable[[], Life]) -> None:
    life = lives()
    life.join()
    job = submit(life.client()[1])
    run_to_the_end(life, job)
    life.clock.advance(JOURNAL_S)
    later = lives()
    link, say = later.client()
    say(m.AttachJob(job))
    say(m.FetchPart(job, "staged", 100))
    later.clock.pump([PROGRESS_S] * int(NODE_RETURN_S / PROGRESS_S + 1))
    (lost,) = link.take()
    assert isinstance(lost, m.PartLost)
    (shown,) = later.server.status().jobs
    assert shown.state == "mapping"


def test_a_link_that_breaks_part_way_is_gone_on_with(lives: Callable[[], Life]) -> None:
    life = lives()
    life.join()
    _, say = life.client()
    job = submit(say)
    run_to_the_end(life, job)
    life.clock.advance(JOURNAL_S)
    say(m.FetchPart(job, "staged", 4))
    life.tell(m.PartChunk("n", 1, b"ab", False))
    life.server.detach_node("n")
    say(m.PartTaken(job, "staged", 2))
    life.join((job,))
    assert life.node.heard[-1] == m.SendPart(1, job, "staged", 4, 2)
    life.server.detach_node("n")
    life.clock.pump([PROGRESS_S] * int(NODE_AWAY_S / PROGRESS_S + 2))
    assert isinstance(say(m.GetStatus())[0], m.PartLost)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_client_that_does_not_come_back_gives_its_job_up(
    lives: Callable[[], Life], restarted: bool
) -> None:
    life = lives()
    life.join()
    link, say = life.client()
    job = submit(say)
    if restarted:
        life = lives()
        life.join((job,), {f"{job}-plan.0": 0})
    else:
        life.server.client_lost(link, None)  # type: ignore[arg-type]
    life.clock.pump([PROGRESS_S] * int((CLIENT_RETURN_S - 1) / PROGRESS_S))
    assert m.EndJob(job) not in life.node.heard
    life.clock.pump([PROGRESS_S] * int(2 / PROGRESS_S))
    assert m.EndJob(job) in life.node.heard
    (shown,) = life.server.status().jobs
    assert shown.state == "cancelled"
    _, say = life.client()
    accepted, failed = say(m.AttachJob(job))  # a little later it may still hear why
    assert "did not come back" in failed.error.message
    assert accepted == m.JobAccepted(job)


def test_a_client_that_attaches_takes_the_job_from_its_dead_connection(lives: Callable[[], Life]) -> None:
    life = lives()
    life.join()
    dead, say = life.client()
    job = submit(say)
    _, again = life.client()
    assert again(m.AttachJob(job)) == [m.JobAccepted(job)]
    life.server.client_lost(dead, None)  # type: ignore[arg-type]
    life.clock.pump([PROGRESS_S] * int(2 * CLIENT_RETURN_S / PROGRESS_S))
    assert [each.state for each in life.server.status().jobs] == ["planning"]


def test_a_full_disk_refuses_new_jobs_and_holds_up_nothing_else(lives: Callable[[], Life]) -> None:
    life = lives()
    life.join()
    link, say = life.client()
    job = submit(say)
    life.journal.fails = True
    (refused,) = life.client(BOB)[1](SUBMIT)
    assert isinstance(refused, m.Refused)
    assert refused.error.message == "the disk is full"
    run_to_the_end(life, job)
    (done,) = link.take()  # not kept waiting
    assert isinstance(done, m.JobDone)
    assert not any(isinstance(message, m.ReportsKept) for message in life.node.heard)
    life.journal.fails = False
    life.clock.advance(JOURNAL_RETRY_S)
    assert sum(len(each.attempts) for each in life.node.heard if isinstance(each, m.ReportsKept)) == 4
    assert submit(life.client(BOB)[1]) != job
    later = lives()
    states = {each.owner: each.state for each in later.server.status().jobs}
    assert states == {ANN: "done", BOB: "planning"}


def test_a_disk_that_stays_full_costs_the_jobs_their_journal_and_no_memory(
    lives: Callable[[], Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex.server.journal_desk.JOURNAL_WAITING_MAX", 2)
    life = lives()
    life.join()
    link, say = life.client()
    job = submit(say)
    life.journal.fails = True
    life.client(BOB)[1](SUBMIT)  # finds out
    run_to_the_end(life, job)
    assert any(isinstance(message, m.ReportsKept) for message in life.node.heard)
    (done,) = link.take()
    assert isinstance(done, m.JobDone)
    life.journal.fails = False
    life.clock.advance(JOURNAL_RETRY_S)
    assert say(m.JobReceived(job)) == [m.JobForgotten(job)]
    later = lives()
    assert later.server.scheduler.jobs == later.server.scheduler.kept == {}


def test_a_record_that_makes_no_sense_fails_its_job_by_name(lives: Callable[[], Life]) -> None:
    life = lives()
    life.join()
    job = submit(life.client()[1])
    life.finish(f"{job}-plan.0", m.PlanResult(PLAN))
    life.clock.advance(JOURNAL_S)
    life.journal._file.db.execute("UPDATE records SET record = x'93'")
    later = lives()
    accepted, failed = later.client()[1](m.AttachJob(job))
    assert accepted == m.JobAccepted(job)
    assert (failed.error.code, "journal.sqlite" in failed.error.message) == ("state", True)
    assert "mv " in failed.error.cure


def test_a_job_that_is_cancelled_before_it_is_accepted_does_not_run(lives: Callable[[], Life]) -> None:
    """Ctrl-C right after the command: nobody would come back for it."""
    life = lives()
    life.join()
    life.holds_back = True
    link, say = life.client()
    job = "j" + "5" * 12
    assert say(msgspec.structs.replace(SUBMIT, job=job)) == []
    (refused,) = life.client(BOB)[1](m.CancelJob(job))
    assert isinstance(refused, m.Refused)
    assert say(m.CancelJob(job)) == []
    life.go_on()
    accepted, failed = link.take()
    assert isinstance(accepted, m.JobAccepted)
    assert isinstance(failed, m.JobFailed)
    assert failed.error.code == "cancelled"
    revoked = [name for each in life.node.heard if isinstance(each, m.Revoke) for name in each.attempts]
    ended = [each.job for each in life.node.heard if isinstance(each, m.EndJob)]
    assert set(life.leases()) <= {*revoked, *(f"{name}-plan.0" for name in ended)}


def test_a_job_that_is_cancelled_by_one_who_is_gone_when_it_is_accepted(lives: Callable[[], Life]) -> None:
    life = lives()
    life.join()
    life.holds_back = True
    link, say = life.client()
    job = "j" + "5" * 12
    say(msgspec.structs.replace(SUBMIT, job=job))
    say(m.CancelJob(job))
    life.server.client_lost(link, None)  # type: ignore[arg-type]
    life.go_on()
    assert [each.state for each in life.server.status().jobs] == ["cancelled"]


def test_a_large_job_that_ended_is_forgotten_bit_by_bit(
    lives: Callable[[], Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex.storage.journal._RECORDS_AT_ONCE", 1)
    life = lives()
    life.join()
    _, say = life.client()
    job = submit(say)
    run_to_the_end(life, job)
    life.clock.advance(JOURNAL_S)
    assert len(list(life.journal.records(job))) == 4
    say(m.JobReceived(job))
    life.clock.advance(JOURNAL_S)
    assert list(life.journal.records(job)) == []
    assert not life.journal.untidy

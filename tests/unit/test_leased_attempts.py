"""In what order a node's attempts begin: free slots, slots kept, inputs on their way, the node's own work."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock

from cortex.limits import SLOT_KEPT_S
from cortex.node.leased_attempts import LeasedAttempts
from cortex.wire import messages as m

A, B = "j" + "a" * 12, "j" + "b" * 12


class Pool:
    """Executors that take what they are given, `free` at once, and end when they are told to."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.runs: dict[str, Any] = {}
        self.bound: set[str] = set()
        """Jobs with an idle executor of their own."""
        self.revoked: list[str] = []
        self.wanted: list[str] = []

    def run(self, job: str, run: m.RunTask, bound: bool) -> bool:
        if self.free == len(self.runs) or (bound and job not in self.bound):
            return False
        self.bound.discard(job)
        self.runs[run.attempt] = SimpleNamespace(run=run)
        return True

    def running(self) -> list[Any]:
        return list(self.runs.values())

    def make_room(self, jobs: Iterable[str], executors: int) -> None:
        self.wanted = list(jobs)

    def revoke(self, attempt: str) -> None:
        self.revoked.append(attempt)
        self.runs.pop(attempt, None)


class Bench:
    def __init__(self, slots: int = 1) -> None:
        self.clock = Clock()
        self.paused = SimpleNamespace(paused=False)
        self.served: list[str] = []
        self.asked: list[tuple[list[str], list[str], bool]] = []
        workers: Any = SimpleNamespace(
            ended=lambda attempt: None, began=lambda job, attempt: self.served.append(attempt)
        )
        self.forgotten: list[str] = []
        shuffle: Any = SimpleNamespace(forget=self.forgotten.append)
        paused: Any = self.paused
        self.attempts = LeasedAttempts(
            self.clock,
            slots,
            paused,
            workers,
            shuffle,
            lambda waiting, running, full: self.asked.append((waiting, list(running), full)),
        )
        self.pool = Pool(slots)
        pool: Any = self.pool
        self.attempts.start(pool)

    def lease(self, *attempts: str, with_slot: bool = False, task: m.Task | None = None) -> None:
        for attempt in attempts:
            job = attempt.partition("-")[0]
            self.attempts.lease(job, attempt, 0, with_slot)
            self.attempts.wait(job, m.RunTask(attempt, task or m.MapTask(0, ())))
        self.attempts.room()

    def end(self, attempt: str) -> None:
        del self.pool.runs[attempt]
        job = attempt.partition("-")[0]
        self.pool.bound.add(job)
        self.attempts.ended(job, attempt)
        self.attempts.room()

    @property
    def running(self) -> list[str]:
        return list(self.pool.runs)


def attempts(job: str, count: int, kind: str = "m") -> list[str]:
    return [f"{job}-{kind}{number:06d}.0" for number in range(count)]


def test_what_was_leased_for_a_free_slot_goes_first_in_the_order_of_leases() -> None:
    bench = Bench()
    (first, *waiting), slotted = attempts(A, 3), attempts(B, 2)
    bench.lease(first, *waiting)
    bench.lease(*slotted, with_slot=True)
    assert bench.running == [first]
    assert bench.attempts.waiting() == [*slotted, *waiting]


def test_a_slot_stays_with_its_job_while_something_of_it_waits() -> None:
    bench = Bench()
    mine, other = attempts(A, 2), attempts(B, 1)
    bench.lease(mine[0], *other, mine[1])
    bench.end(mine[0])
    assert bench.running == [mine[1]]
    assert bench.attempts.waiting() == other


def test_a_slot_that_a_job_leaves_is_kept_until_the_server_has_spoken_or_the_time_is_over() -> None:
    for spoken in (True, False):
        bench = Bench()
        (mine,), other = attempts(A, 1), attempts(B, 1)
        bench.lease(mine, *other)
        bench.end(mine)
        assert bench.running == []
        if spoken:
            bench.attempts.slots_given(1)
            bench.attempts.room()
        else:
            bench.clock.advance(SLOT_KEPT_S)
        assert bench.running == other


def test_nothing_but_the_only_one_begins_above_the_cap() -> None:
    bench = Bench(slots=2)
    bench.paused.paused = True
    first, second = attempts(A, 2)
    bench.lease(first, second)
    assert bench.running == [first]
    bench.paused.paused = False
    bench.attempts.room()
    assert bench.running == [first, second]
    assert [each.attempt for each in bench.attempts.progress()] == [first, second]


def test_inputs_on_their_way_hold_no_slot_and_are_forgotten_with_who_waits_for_them() -> None:
    bench = Bench(slots=2)
    reduces = attempts(A, 3, "r")
    for attempt in reduces:
        bench.attempts.lease(A, attempt, 7, True)
        bench.attempts.bring(A, m.RunTask(attempt, m.ReduceTask(0, (), ())))
    assert (bench.attempts.queued, bench.attempts.running, bench.attempts.idle_slots()) == (3, 0, 2)
    assert bench.attempts.versions() == dict.fromkeys(reduces, 7)
    bench.attempts.inputs_here(reduces[0])
    assert bench.running == [reduces[0]]
    assert bench.attempts.idle_slots() == 1
    assert bench.attempts.inputs_lost(reduces[1]) == A
    assert bench.attempts.inputs_lost(reduces[1]) == ""
    assert bench.attempts.give_back_all() == (reduces[2],)
    assert bench.forgotten == [reduces[2]]
    assert bench.attempts.inputs_lost(reduces[2]) == ""


def test_own_work_goes_before_its_jobs_next_map_and_waits_apart() -> None:
    bench = Bench()
    (first, second), (other,) = attempts(A, 2), attempts(B, 1)
    own = m.RunTask(f"{A}-c000000.0", m.CombineTask((first,), 0.2))
    bench.lease(first, other, second)
    bench.attempts.add_own(A, own)
    assert bench.attempts.waiting() == [other, second]
    assert bench.attempts.own_waiting(A) == [own.attempt]
    assert bench.pool.wanted == [B, A, A]
    assert bench.asked[-1] == ([], [first], True)
    bench.end(first)
    assert bench.running == [own.attempt]
    assert first not in bench.attempts
    assert bench.attempts.progress() == ()  # the server does not know of it
    bench.attempts.drop_own(own.attempt)
    assert bench.pool.revoked == [own.attempt]


def test_reduces_that_wait_and_what_runs_are_told_after_each_round() -> None:
    bench = Bench()
    (first,), (reduce,) = attempts(A, 1), attempts(B, 1, "r")
    bench.lease(first)
    bench.lease(reduce, task=m.ReduceTask(0, (), ()))
    assert bench.asked[-1] == ([B], [first], True)


def test_what_an_executor_did_not_begin_goes_first_unless_nobody_wants_it() -> None:
    bench = Bench()
    first, second = attempts(A, 2)
    bench.lease(first, second)
    run = bench.pool.runs.pop(first).run
    bench.attempts.returned(A, run)
    assert bench.attempts.waiting() == [first, second]
    bench.attempts.revoke((first, second))
    bench.attempts.returned(A, run)
    assert bench.attempts.waiting() == []
    assert bench.pool.revoked == [first, second]


def test_a_worker_is_known_when_it_begins() -> None:
    bench = Bench()
    first, second = attempts(A, 2, "w")
    bench.lease(first, second, task=m.ServeTask())
    assert bench.served == [first]

"""Shares of the slots: as fair as whole slots can be, all of them given out, and nobody left waiting."""

from __future__ import annotations

import random
from collections import Counter, deque

from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.limits import PRIORITY_MAX, PRIORITY_MIN
from cortex.scheduling.fair_share import FairShares, weight_of

WEIGHTS = st.sampled_from([0.25, 1.0, 1.0, 1.0, 2.0, 7.0])
JOBS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(PRIORITY_MIN, PRIORITY_MAX), st.integers(0, 40)),
    min_size=1,
    max_size=12,
)
"""Of each: user, priority, and how many slots it could use."""


class Slots:
    """So many slots, given to the jobs whose turn it is, and jobs that could use so many."""

    def __init__(self, weights: list[float], jobs: list[tuple[int, int, int]]) -> None:
        self.weights = {f"u{n}": weight for n, weight in enumerate(weights)}
        self.shares = FairShares(self.weights)
        self.wanted: dict[str, int] = {}
        self.held: Counter[str] = Counter()
        self.user: dict[str, str] = {}
        self.weight: dict[str, float] = {}
        for user, priority, wanted in jobs:
            self.add(f"u{user}", priority, wanted)

    def add(self, user: str, priority: int, wanted: int) -> str:
        job = f"j{len(self.user):03d}"
        self.user[job], self.weight[job], self.wanted[job] = user, weight_of(priority), wanted
        self.shares.add(job, user, priority)
        self.tell(job)
        return job

    def tell(self, job: str) -> None:
        self.shares.change(job, self.held[job], self.wanted[job] - self.held[job])

    def grant(self) -> str | None:
        job = next(self.shares.in_order(), None)
        if job is not None:
            self.shares.served(job)
            self.held[job] += 1
            self.tell(job)
        return job

    def release(self, job: str) -> None:
        self.held[job] -= 1
        self.tell(job)

    def user_holds(self, user: str) -> int:
        return sum(self.held[job] for job, each in self.user.items() if each == user)

    def unfair(self, turns: int = 0) -> str:
        """Who holds two slots or more, one too many by the weights, while another wants one; "" if nobody.
        `turns`: that the other may owe."""
        wanting = [job for job in self.user if self.held[job] < self.wanted[job]]
        for poor in wanting:
            for rich in self.user:
                mine, theirs = self.user[poor], self.user[rich]
                if mine == theirs:
                    pair = (self.held[poor], self.weight[poor]), (self.held[rich], self.weight[rich])
                else:
                    pair = (
                        (self.user_holds(mine), self.weights[mine]),
                        (self.user_holds(theirs), self.weights[theirs]),
                    )
                (few, light), (many, heavy) = pair
                if many >= 2 and many / heavy > (few + 1 + turns) / light + 1e-9:
                    return f"{rich} of {theirs} holds {many}, {poor} of {mine} {few}"
        return ""


@settings(max_examples=200, deadline=None)
@given(st.lists(WEIGHTS, min_size=4, max_size=4), JOBS, st.integers(1, 60))
def test_slots_are_all_given_out_and_by_weight(
    weights: list[float], jobs: list[tuple[int, int, int]], slots: int
) -> None:
    made = Slots(weights, jobs)
    while sum(made.held.values()) < slots and made.grant() is not None:
        pass
    assert sum(made.held.values()) == min(slots, sum(made.wanted.values()))
    assert made.unfair() == ""


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.lists(WEIGHTS, min_size=4, max_size=4), JOBS, st.integers(1, 30))
def test_slots_stay_shared_while_tasks_end_and_jobs_come_and_go(
    seed: int, weights: list[float], jobs: list[tuple[int, int, int]], slots: int
) -> None:
    """After any history: when every slot is given anew, shares are fair, but for a turn that is owed."""
    rng = random.Random(seed)
    made = Slots(weights, jobs)
    running: deque[str] = deque()

    def fill() -> None:
        while len(running) < slots and (job := made.grant()) is not None:
            running.append(job)

    for _ in range(60):
        fill()
        assert len(running) == min(slots, sum(made.wanted.values()))  # nothing stands idle
        what = rng.random()
        if what < 0.1:
            made.add(f"u{rng.randrange(4)}", rng.randint(-2, 2), rng.randint(0, 40))
        elif what < 0.2:
            job = rng.choice(sorted(made.user))
            made.wanted[job] = max(made.held[job], rng.randint(0, 40))
            made.tell(job)
        elif running:
            running.rotate(rng.randrange(len(running)))
            made.release(running.popleft())
    while running:
        made.release(running.popleft())
    fill()
    assert len(running) == min(slots, sum(made.wanted.values()))
    assert made.unfair(turns=1) == ""


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.integers(PRIORITY_MIN, PRIORITY_MAX), min_size=1, max_size=8),
    st.integers(PRIORITY_MIN, PRIORITY_MAX),
    st.integers(0, 30),
)
def test_nobody_waits_for_ever(slots: int, others: list[int], priority: int, before: int) -> None:
    """A job of any priority is served after so many grants as its weight says, and two for each other job."""
    made = Slots([1.0] * 4, [(0, each, 10**9) for each in others])
    running: deque[str] = deque()

    def grant() -> str | None:
        if len(running) == slots:
            made.release(running.popleft())
        job = made.grant()
        assert job is not None
        running.append(job)
        return job

    for _ in range(before):
        grant()
    mine = made.add("u0", priority, 1)
    weights = sum(map(weight_of, others)) + weight_of(priority)
    patience = int(weights / weight_of(priority)) + 2 * len(others) + slots + 1
    assert mine in {grant() for _ in range(patience)}


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.lists(st.integers(-1, 1), min_size=2, max_size=5))
def test_where_slots_are_few_turns_are_by_weight(slots: int, priorities: list[int]) -> None:
    """Over many tasks of equal length everyone has had the part of the slots that its weight says."""
    made = Slots([1.0] * 4, [(0, each, 10**9) for each in priorities])
    running: deque[str] = deque()
    had: Counter[str] = Counter()
    grants = 4000
    for _ in range(grants):
        if len(running) == slots:
            made.release(running.popleft())
        job = made.grant()
        assert job is not None
        running.append(job)
        had[job] += 1
    total = sum(made.weight.values())
    for job, weight in made.weight.items():
        wanted = weight / total
        if wanted * slots >= 1:  # it is bounded by whole slots
            continue
        assert had[job] / grants > wanted / 2, (had, made.weight)


def test_two_users_have_half_each_whatever_the_number_of_their_jobs() -> None:
    made = Slots([1.0] * 4, [(0, 0, 100)] + [(1, 0, 100)] * 9)
    for _ in range(20):
        made.grant()
    assert (made.user_holds("u0"), made.user_holds("u1")) == (10, 10)


def test_what_a_user_does_not_want_the_others_have() -> None:
    made = Slots([3.0, 1.0, 1.0, 1.0], [(0, 0, 2), (1, 0, 100), (2, 0, 100)])
    for _ in range(20):
        made.grant()
    assert [made.user_holds(f"u{n}") for n in range(3)] == [2, 9, 9]


def test_one_slot_goes_from_hand_to_hand() -> None:
    made = Slots([1.0] * 4, [(0, 0, 100), (1, 0, 100), (2, 0, 100)])
    order = []
    for _ in range(9):
        job = made.grant()
        assert job is not None
        order.append(job)
        made.release(job)
    assert order == [*order[:3]] * 3
    assert len(set(order)) == 3


def test_a_job_gives_up_a_slot_for_another_only_when_that_is_fair() -> None:
    made = Slots([1.0] * 4, [(0, 0, 100)])
    first = "j000"
    for _ in range(4):
        made.grant()
    second = made.add("u1", 0, 100)
    given_up = 0
    while made.shares.holds_too_much(first, second):
        made.release(first)
        assert made.grant() == second
        given_up += 1
    assert given_up == 2
    assert not made.shares.holds_too_much(second, first)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_the_same_history_gives_the_same_turns(seed: int) -> None:
    def play() -> list[str | None]:
        rng = random.Random(seed)
        made = Slots([1.0, 2.0, 0.5, 1.0], [(n % 3, n % 2, 30) for n in range(6)])
        turns: list[str | None] = []
        for _ in range(100):
            turns.append(made.grant())
            if rng.random() < 0.7:
                made.release(rng.choice(sorted(job for job in made.held if made.held[job])))
        return turns

    assert play() == play()

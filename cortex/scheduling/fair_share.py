"""Which job gets the next slot: weighted max-min shares of users, and then of a user's jobs. Pure.

A slot goes to the user, and of that user to the job, that would still hold the fewest slots for its weight
with it. So users with enough to do hold slots as their weights are, jobs of one user as theirs, and what one
does not want the others have.

Where a share is less than one slot, slots are taken in turns. Each grant moves a clock on by its part of all
weights; who holds nothing waits since a time on it, and comes first when its weight has let a whole turn
pass. So everyone that waits is served after a bounded number of grants, however little its weight and
whoever comes. Time without work earns nothing, and no debt is larger than a turn.

What a grant costs grows with the logarithm of the number of jobs.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping

from cortex.limits import PRIORITY_SHARE

_EQUAL = 1e-6  # of keys: they are sums of fractions


def weight_of(priority: int) -> float:
    """Of a job, among those of its user."""
    return float(PRIORITY_SHARE) ** priority


class _Entry:
    """A user, or a job: something with a weight that holds slots and may want more."""

    __slots__ = ("finish", "name", "served_at", "slots", "stamp", "start", "wants", "weight")

    def __init__(self, name: str, weight: float) -> None:
        self.name = name
        self.weight = weight
        self.slots = 0
        self.wants = False
        self.start = 0.0
        """When its turn begins, on the level's clock, while it holds nothing."""
        self.finish = 0.0
        """When its last turn ended."""
        self.served_at = 0
        """Which grant was its last: of those as near to their share, who was served longest ago is first."""
        self.stamp = 0


_Place = tuple[float, int, int, _Entry]
"""(key, served_at, stamp, entry): stamps differ, so entries are never compared."""


class _Level:
    """Those that share something among them."""

    def __init__(self) -> None:
        self._clock = 0.0
        self._weights = 0.0
        """Of those that want a slot."""
        self._grants = 0
        self._stamps = 0
        self._waiting: list[_Place] = []
        """A heap of those that hold nothing: by the end of their turn."""
        self._holding: list[_Place] = []
        """A heap of those that hold something: by what they would hold for their weight."""
        self._places = 0
        """In the heaps that are true."""

    def change(self, entry: _Entry, slots: int, wants: bool) -> None:
        """It holds so many slots now, and wants another one or not."""
        if slots == entry.slots and wants == entry.wants:
            return
        if not slots and entry.slots:
            entry.start = self._next_start(entry)
        if wants and not entry.wants:
            self._weights += entry.weight
            if not slots:
                entry.start = max(entry.start, self._clock)
        elif entry.wants and not wants:
            self._weights -= entry.weight
        entry.slots = slots
        self._take_out(entry)
        entry.wants = wants
        self._put_in(entry)

    def served(self, entry: _Entry) -> None:
        """It, which wants it, is given a task to run."""
        start = entry.start if not entry.slots else self._next_start(entry)
        entry.finish = start + 1 / entry.weight
        self._clock += 1 / self._weights
        self._grants += 1
        entry.served_at = self._grants
        self._take_out(entry)
        entry.start = self._next_start(entry)
        self._put_in(entry)

    def key(self, entry: _Entry) -> tuple[float, int]:
        """The lower, the sooner is its turn."""
        if entry.slots:
            return self._clock + (entry.slots + 1) / entry.weight, entry.served_at
        return entry.start + 1 / entry.weight, entry.served_at

    def key_without_one(self, entry: _Entry) -> tuple[float, int]:
        """Its key if it gave up one of its slots, and wanted it back."""
        if entry.slots > 1:
            return self._clock + entry.slots / entry.weight, entry.served_at
        return self._next_start(entry) + 1 / entry.weight, entry.served_at

    def part(self, entry: _Entry, slots: float) -> float:
        """Of so many slots, that of one that wants some."""
        return slots * entry.weight / max(self._weights, entry.weight)

    def in_order(self) -> Iterator[_Entry]:
        """Those that want a slot, whose turn it is first. Ends when something is changed."""
        self._clean(self._waiting)
        self._clean(self._holding)
        waiting, holding = _ascending(self._waiting), _ascending(self._holding)
        first, second = next(waiting, None), next(holding, None)
        while first is not None or second is not None:
            if second is None or (first is not None and first[:2] <= (second[0] + self._clock, second[1])):
                assert first is not None
                if first[2] == first[3].stamp:
                    yield first[3]
                first = next(waiting, None)
            else:
                if second[2] == second[3].stamp:
                    yield second[3]
                second = next(holding, None)

    def _next_start(self, entry: _Entry) -> float:
        """When its turn begins if it holds nothing: after its last one, but no more than a turn late."""
        return max(self._clock, min(entry.finish, self._clock + 1 / entry.weight))

    def _take_out(self, entry: _Entry) -> None:
        if entry.wants:
            self._places -= 1
        self._stamps += 1
        entry.stamp = self._stamps  # whatever is in the heaps of it is void

    def _put_in(self, entry: _Entry) -> None:
        if not entry.wants:
            return
        self._places += 1
        if entry.slots:
            place = (entry.slots + 1) / entry.weight, entry.served_at, entry.stamp, entry
            heapq.heappush(self._holding, place)
        else:
            place = entry.start + 1 / entry.weight, entry.served_at, entry.stamp, entry
            heapq.heappush(self._waiting, place)
        if len(self._waiting) + len(self._holding) > 4 * self._places + 64:  # mostly void
            for heap in (self._waiting, self._holding):
                heap[:] = [each for each in heap if each[2] == each[3].stamp]
                heapq.heapify(heap)

    @staticmethod
    def _clean(heap: list[_Place]) -> None:
        while heap and heap[0][2] != heap[0][3].stamp:
            heapq.heappop(heap)


def _ascending(heap: list[_Place]) -> Iterator[_Place]:
    """What is in a heap, the smallest first, taking nothing out: little is looked at when little is used."""
    if not heap:
        return
    frontier = [(heap[0], 0)]
    while frontier:
        place, index = heapq.heappop(frontier)
        yield place
        for child in (2 * index + 1, 2 * index + 2):
            if child < len(heap):
                heapq.heappush(frontier, (heap[child], child))


class _User:
    __slots__ = ("entry", "jobs", "level", "wanting")

    def __init__(self, name: str, weight: float) -> None:
        self.entry = _Entry(name, weight)
        self.level = _Level()
        self.jobs = 0
        self.wanting = 0


class _Job:
    __slots__ = ("entry", "ready", "user")

    def __init__(self, name: str, weight: float, user: _User) -> None:
        self.entry = _Entry(name, weight)
        self.user = user
        self.ready = 0


class FairShares:
    """Of the jobs under way. `weights`: of users by name; those not named have 1."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = weights or {}
        self._users: dict[str, _User] = {}
        self._jobs: dict[str, _Job] = {}
        self._level = _Level()
        self.ready = 0
        """Tasks of all jobs that could be leased now."""

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, name: str, user: str, priority: int) -> None:
        """A job, which holds nothing and wants nothing yet."""
        shares = self._users.get(user)
        if shares is None:
            shares = self._users[user] = _User(user, self._weights.get(user, 1.0))
        shares.jobs += 1
        self._jobs[name] = _Job(name, weight_of(priority), shares)

    def remove(self, name: str) -> None:
        """The job has ended; what it held is free."""
        self.change(name, 0, 0)
        user = self._jobs.pop(name).user
        user.jobs -= 1
        if not user.jobs:
            del self._users[user.entry.name]

    def change(self, name: str, slots: int, ready: int) -> bool:
        """The job holds so many slots now, and has so many tasks that could be leased. True if it holds
        nothing, and wants a slot that did not."""
        job = self._jobs[name]
        entry, user = job.entry, job.user
        self.ready += ready - job.ready
        job.ready = ready
        begins = ready > 0 and not entry.wants and not slots
        if slots == entry.slots and (ready > 0) == entry.wants:
            return False
        user.wanting += (ready > 0) - entry.wants
        held = user.entry.slots + slots - entry.slots
        user.level.change(entry, slots, ready > 0)
        self._level.change(user.entry, held, user.wanting > 0)
        return begins

    def served(self, name: str) -> None:
        """A task of the job, which had some, is leased."""
        job = self._jobs[name]
        job.user.level.served(job.entry)
        self._level.served(job.user.entry)

    def slots_of(self, name: str) -> int:
        """That the job holds."""
        return self._jobs[name].entry.slots

    def jobs_of(self, user: str) -> int:
        """Jobs of this user under way."""
        found = self._users.get(user)
        return 0 if found is None else found.jobs

    def ready_of(self, name: str) -> int:
        """Its tasks that could be leased."""
        return self._jobs[name].ready

    def wants(self, name: str) -> bool:
        return self._jobs[name].ready > 0

    def in_order(self) -> Iterator[str]:
        """Jobs that want a slot, whose turn it is first. Ask anew after a change."""
        for user in self._level.in_order():
            for job in self._users[user.name].level.in_order():
                yield job.name

    def in_order_of_user(self, name: str) -> Iterator[str]:
        """Those of them that are this job's user's."""
        return (entry.name for entry in self._jobs[name].user.level.in_order())

    def lacks(self, name: str, slots: int) -> int:
        """How many more of all `slots` the job should hold, by the weights of those that want some; parts of
        a slot do not count."""
        job = self._jobs[name]
        fair = job.user.level.part(job.entry, self._level.part(job.user.entry, slots))
        return max(0, min(job.ready, max(1, int(fair)) - job.entry.slots))

    def has_too_many(self, name: str, slots: int) -> bool:
        """Does the job, or its user, hold more of all `slots` than it should, not counting a part of one?"""
        job = self._jobs[name]
        of_user = self._level.part(job.user.entry, slots)
        return job.user.entry.slots > math.ceil(of_user) or job.entry.slots > math.ceil(
            job.user.level.part(job.entry, of_user)
        )

    def holds_too_much(self, name: str, other: str) -> bool:
        """Would `other`, which waits for a slot, come first if the job gave up one of its slots?"""
        mine, theirs = self._jobs[name], self._jobs[other]
        if mine is theirs or not mine.entry.slots:
            return False
        level, ours, its = self._level, mine.user.entry, theirs.user.entry
        if mine.user is theirs.user:
            level, ours, its = mine.user.level, mine.entry, theirs.entry
        (without, served_at), (key, its_served_at) = level.key_without_one(ours), level.key(its)
        if abs(without - key) < _EQUAL:  # as good: only who has nothing is let in
            return not its.slots and served_at > its_served_at
        return without > key

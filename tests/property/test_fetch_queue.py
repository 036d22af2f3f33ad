"""The fetch queue against peers that fail at random: everything wanted is answered exactly once, in time."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.errors import CorruptRun, ProtocolError, SpillFull
from cortex.transfer.fetch_queue import (
    Ask,
    Close,
    Connect,
    FetchPolicy,
    FetchQueue,
    GiveUp,
    Instruction,
    Wanted,
)

JOBS = ("j000000000001", "j000000000002")


@dataclass
class Peers:
    """Carries out what the queue says, on a clock of its own, with faults."""

    rng: random.Random
    policy: FetchPolicy
    fault: float
    now: float = 0.0
    connecting: list[int] = field(default_factory=list)
    open: dict[int, list[Ask]] = field(default_factory=dict)
    holder: dict[int, str] = field(default_factory=dict)
    landing: list[int] = field(default_factory=list)
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    of_request: dict[int, Wanted] = field(default_factory=dict)
    together: dict[int, list[int]] = field(default_factory=dict)
    """Request -> all requests of its message."""
    ahead: set[int] = field(default_factory=set)
    landing_with: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.queue = FetchQueue(self.rng.random, self.policy)

    def obey(self, instructions: list[Instruction]) -> None:
        for each in instructions:
            if isinstance(each, Connect):
                self.connecting.append(each.connection)
                self.holder[each.connection] = each.holder
            elif isinstance(each, Ask):
                some = list(enumerate((each.wanted, *each.others), each.request))
                assert len({(one.job, one.holder, one.partition) for _, one in some}) == 1
                assert [one.attempt for _, one in some] == sorted(one.attempt for _, one in some)
                assert len(some) <= self.policy.together_max
                assert len(some) == 1 or all(one.combines for _, one in some)
                for request, one in some:
                    assert self.holder[each.connection] == one.holder
                    assert request not in self.of_request
                    self.open[each.connection].append(Ask(each.connection, request, one))
                    self.of_request[request] = one
                    self.together[request] = [number for number, _ in some]
                    if each.ahead:
                        self.ahead.add(request)
            elif isinstance(each, Close):
                self.forget(each.connection)
            else:
                assert isinstance(each, GiveUp)
                self.answered[each.wanted.key] += 1
            assert len(self.holder) <= self.policy.connections_max
            assert (
                max(Counter(self.holder.values()).values(), default=0) <= self.policy.connections_per_holder
            )
            most = self.policy.requests_ahead - 1 + self.policy.together_max
            assert all(len(asks) <= most for asks in self.open.values())

    def forget(self, connection: int) -> None:
        del self.holder[connection]
        self.open.pop(connection, None)
        if connection in self.connecting:
            self.connecting.remove(connection)

    def covered(self, connection: int, ask: Ask) -> list[int]:
        """Some that are still asked for with it, answered by the same segment."""
        left = {each.request for each in self.open[connection]}
        some = [number for number in self.together[ask.request] if number in left]
        chosen = [number for number in some if self.rng.random() < 0.5]
        self.open[connection] = [each for each in self.open[connection] if each.request not in chosen]
        return chosen

    def step(self) -> None:
        faulty = self.rng.random() < self.fault
        queue, now = self.queue, self.now
        choice = self.rng.choice(["connect", "answer", "land", "time", "time" if faulty else "answer"])
        if choice == "connect" and self.connecting:
            connection = self.connecting[self.rng.randrange(len(self.connecting))]
            if faulty:
                self.forget(connection)
                self.obey(queue.disconnected(connection, ProtocolError("refused"), now))
            else:
                self.connecting.remove(connection)
                self.open[connection] = []
                self.obey(queue.connected(connection, now))
        elif choice == "answer" and self.open:
            connection = self.rng.choice(list(self.open))
            if faulty and self.rng.random() < 0.5:
                self.forget(connection)
                self.obey(queue.disconnected(connection, ProtocolError("broke"), now))
            elif self.open[connection]:
                ask = self.open[connection].pop(0)
                if faulty:
                    self.obey(queue.refused(ask.request, CorruptRun("gone"), now))
                elif ask.request in self.ahead and self.rng.random() < 0.5:
                    self.obey(queue.later(ask.request, now))
                else:
                    covers = self.covered(connection, ask)
                    self.landing.append(ask.request)
                    self.landing_with[ask.request] = covers
                    self.obey(queue.received(ask.request, now, covers))
        elif choice == "land" and self.landing:
            request = self.landing.pop(self.rng.randrange(len(self.landing)))
            if faulty and self.rng.random() < 0.3:
                self.obey(queue.not_kept(request, SpillFull("full")))
            elif faulty:
                self.obey(queue.damaged(request, CorruptRun("wrong"), now))
            else:
                queue.landed(request)
                for each in (request, *self.landing_with[request]):
                    self.answered[self.of_request[each].key] += 1
        elif choice == "time":
            self.now += self.rng.choice([0.01, 0.3, 5.0])
            self.obey(queue.tick(self.now))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    fault=st.sampled_from([0.0, 0.1, 0.5, 0.95]),
    holders=st.integers(1, 5),
    count=st.integers(1, 60),
    connections=st.integers(1, 4),
    per_holder=st.integers(1, 2),
    ahead=st.integers(1, 4),
    combines=st.booleans(),
)
def test_everything_is_answered_once(
    seed: int,
    fault: float,
    holders: int,
    count: int,
    connections: int,
    per_holder: int,
    ahead: int,
    combines: bool,
) -> None:
    rng = random.Random(seed)
    together, looked_at = rng.randrange(1, 9), rng.choice([1, 5, 1000])
    policy = FetchPolicy(
        connections, per_holder, ahead, together, looked_at_max=looked_at, tries_max=3, idle_s=20.0
    )
    peers = Peers(rng, policy, fault)
    everything = [
        Wanted(JOBS[0], f"h{i % holders}", f"{JOBS[0]}-m{i:06d}.0", i % 3, rng.choice([0, 1, 1000]), combines)
        for i in range(count)
    ]
    if combines:  # some first ahead, which nobody may count on
        early = [replace(each, ahead=True) for each in everything if rng.random() < 0.5]
        peers.obey(peers.queue.add(early, 0.0))
        for _ in range(rng.randrange(100)):
            peers.step()
        everything = [each for each in everything if not peers.answered[each.key]]
        peers.answered.clear()
    rest = list(everything)
    for _ in range(60_000):
        if rest and rng.random() < 0.2:
            some, rest = rest[: (n := rng.randrange(1, 9))], rest[n:]
            peers.obey(peers.queue.add([each for each in some if not peers.answered[each.key]], peers.now))
        peers.step()
        if not rest and not peers.queue.busy:
            break
    assert peers.answered == Counter(each.key for each in everything)
    assert not peers.queue.busy
    assert not peers.holder
    assert not peers.queue._holders


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), fault=st.sampled_from([0.0, 0.3]), at=st.integers(0, 300))
def test_a_cancelled_job_is_not_heard_of_again(seed: int, fault: float, at: int) -> None:
    rng = random.Random(seed)
    peers = Peers(rng, FetchPolicy(2, 2, 3, tries_max=3, idle_s=20.0), fault)
    everything = [Wanted(job, f"h{i % 3}", f"{job}-m{i:06d}.0", 0, 1) for i in range(20) for job in JOBS]
    peers.obey(peers.queue.add(everything, 0.0))
    for _ in range(at):
        peers.step()
    before = {key: n for key, n in peers.answered.items() if key[0].startswith(JOBS[1])}
    peers.obey(peers.queue.cancel(JOBS[1], peers.now))
    peers.landing = [n for n in peers.landing if peers.of_request[n].job == JOBS[0]]
    assert all(ask.wanted.job == JOBS[0] for asks in peers.open.values() for ask in asks)
    for _ in range(60_000):
        peers.step()
        if not peers.queue.busy:
            break
    assert {key: n for key, n in peers.answered.items() if key[0].startswith(JOBS[1])} == before
    assert {key for key in peers.answered if key[0].startswith(JOBS[0])} == {
        each.key for each in everything if each.job == JOBS[0]
    }
    assert set(peers.answered.values()) <= {1}

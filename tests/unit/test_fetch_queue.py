"""What the fetch queue decides: order, connections, back-off, giving up. No reactor, no clock."""

from __future__ import annotations

import pytest

from cortex.errors import (
    CorruptRun,
    CortexError,
    Fault,
    FetchFailed,
    ProtocolError,
    SpillFull,
    TooManyOpenFiles,
)
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

JOB, OTHER_JOB = "j0123456789ab", "jba9876543210"
BROKEN = ProtocolError("the connection broke")


def wanted(index: int, holder: str = "a", job: str = JOB, size_bytes: int = 10, partition: int = 0) -> Wanted:
    return Wanted(job, holder, f"{job}-m{index:06d}.0", partition, size_bytes)


def queue(**policy: float) -> FetchQueue:
    return FetchQueue(lambda: 0.5, FetchPolicy(**policy))  # type: ignore[arg-type]


def asked(instructions: list[Instruction]) -> list[Wanted]:
    return [each.wanted for each in instructions if isinstance(each, Ask)]


def given_up(instructions: list[Instruction]) -> list[Wanted]:
    return [each.wanted for each in instructions if isinstance(each, GiveUp)]


def connect(fetches: FetchQueue, some: list[Wanted], now: float = 0.0) -> tuple[int, list[Ask]]:
    """Want `some` of one holder; its connection, and what is asked on it."""
    (made,) = fetches.add(some, now)
    assert isinstance(made, Connect)
    asks = fetches.connected(made.connection, now)
    return made.connection, [each for each in asks if isinstance(each, Ask)]


def land(fetches: FetchQueue, ask: Ask, now: float = 0.0) -> list[Instruction]:
    out = fetches.received(ask.request, now)
    fetches.landed(ask.request)
    return out


def test_segments_are_asked_for_in_the_order_they_were_wanted_so_many_at_once() -> None:
    fetches = queue(requests_ahead=3, connections_per_holder=1)
    some = [wanted(i) for i in range(5)]
    connection, asks = connect(fetches, some)
    assert [ask.wanted for ask in asks] == some[:3]
    assert {ask.connection for ask in asks} == {connection}
    assert asked(land(fetches, asks[0])) == [some[3]]
    assert asked(land(fetches, asks[1])) == [some[4]]
    assert fetches.add([wanted(9)], 0.0) == []


def test_what_is_wanted_already_is_not_fetched_twice() -> None:
    fetches = queue()
    _, asks = connect(fetches, [wanted(0), wanted(0)])
    assert len(asks) == 1
    assert fetches.add([wanted(0)], 0.0) == []
    land(fetches, asks[0])
    assert asked(fetches.add([wanted(0)], 0.0)) == [wanted(0)]  # wanted anew after it landed


def test_a_holder_gets_a_second_connection_when_the_first_is_full() -> None:
    fetches = queue(requests_ahead=2)
    some = [wanted(i) for i in range(6)]
    (first,) = fetches.add(some, 0.0)
    assert isinstance(first, Connect)
    *asks, second = fetches.connected(first.connection, 0.0)
    assert asked(asks) == some[:2]
    assert isinstance(second, Connect)
    assert asked(fetches.connected(second.connection, 0.0)) == some[2:4]
    assert isinstance(asks[1], Ask)
    more = land(fetches, asks[1])
    assert asked(more) == [some[4]]
    assert not [each for each in more if isinstance(each, Connect)]  # two a holder, no more


def test_connections_are_few_and_the_holder_with_most_bytes_is_next() -> None:
    fetches = queue(connections_max=2)
    holders = [
        wanted(i, holder, size_bytes=size) for i, (holder, size) in enumerate([("a", 5), ("b", 7), ("c", 9)])
    ]
    made = fetches.add(holders, 0.0)
    assert [each.holder for each in made if isinstance(each, Connect)] == ["c", "b"]
    assert len(made) == 2
    assert isinstance(made[0], Connect)
    (ask,) = fetches.connected(made[0].connection, 0.0)
    assert isinstance(ask, Ask)
    closed, third = land(fetches, ask)  # an idle connection makes room for who waits
    assert closed == Close(made[0].connection)
    assert isinstance(third, Connect)
    assert third.holder == "a"


def test_an_idle_connection_is_kept_a_while() -> None:
    fetches = queue(idle_s=30.0)
    connection, asks = connect(fetches, [wanted(0)])
    land(fetches, asks[0], 10.0)
    assert fetches.tick(39.0) == []
    assert asked(fetches.add([wanted(1)], 39.5)) == [wanted(1)]
    (ask,) = list(fetches._asked)
    fetches.received(ask, 40.0)
    fetches.landed(ask)
    assert fetches.tick(69.0) == []
    assert fetches.busy
    assert fetches.tick(70.0) == [Close(connection)]
    assert not fetches.busy


def test_a_connection_closed_while_idle_is_no_failure() -> None:
    fetches = queue()
    connection, asks = connect(fetches, [wanted(0)])
    land(fetches, asks[0])
    assert fetches.disconnected(connection, BROKEN, 1.0) == []
    assert isinstance(fetches.add([wanted(1)], 1.0)[0], Connect)


def test_a_holder_rests_longer_after_each_failure_and_is_then_given_up_whole() -> None:
    fetches = queue(tries_max=4, backoff_first_s=1.0, backoff_s_max=10.0)
    some = [wanted(i) for i in range(3)]
    (made,) = fetches.add(some, 0.0)
    now = 0.0
    for rest in (1.0, 4.0, 10.0):
        assert isinstance(made, Connect)
        assert fetches.disconnected(made.connection, BROKEN, now) == []
        assert fetches.tick(now + rest - 0.01) == []
        now += rest
        (made,) = fetches.tick(now)
    assert isinstance(made, Connect)
    last = fetches.disconnected(made.connection, BROKEN, now)
    assert given_up(last) == some
    assert not fetches.busy
    error = last[0].error if isinstance(last[0], GiveUp) else None
    assert isinstance(error, FetchFailed)
    assert error.fault is Fault.LOST
    assert error.details["attempt"] == some[0].attempt
    assert error.details["holder"] == "a"
    assert error.details["unreachable"] == "yes"
    assert "8787" in error.cure
    assert "the connection broke" in error.message


def test_what_waited_on_a_broken_connection_is_asked_first_and_what_was_being_sent_last() -> None:
    fetches = queue(requests_ahead=2, connections_per_holder=1)
    some = [wanted(i) for i in range(4)]
    connection, asks = connect(fetches, some)
    fetches.disconnected(connection, BROKEN, 0.0)
    assert fetches.received(asks[0].request, 0.0) == []  # of a connection that is gone
    (made,) = fetches.tick(5.0)
    assert isinstance(made, Connect)
    again = fetches.connected(made.connection, 5.0)
    assert asked(again) == some[1:3]
    assert {ask.request for ask in asks}.isdisjoint(each.request for each in again if isinstance(each, Ask))


def test_a_segment_that_lands_clears_its_holder() -> None:
    fetches = queue(tries_max=2)
    connection, asks = connect(fetches, [wanted(i) for i in range(9)])
    for now in (10.0, 20.0, 30.0, 40.0):
        assert asked(land(fetches, asks[0], now)) == []
        assert given_up(fetches.disconnected(connection, BROKEN, now)) == []
        (made,) = fetches.tick(now + 5)
        assert isinstance(made, Connect)
        connection = made.connection
        asks = [each for each in fetches.connected(connection, now + 5) if isinstance(each, Ask)]
    assert len(asks) == 5


def test_the_segment_that_breaks_every_connection_is_given_up_alone() -> None:
    fetches = queue(tries_max=3, requests_ahead=2, connections_per_holder=1)
    bad, rest = wanted(0), [wanted(i) for i in range(1, 9)]
    connection, _ = connect(fetches, [*rest[:1], bad, *rest[1:]])
    now, lost = 0.0, list[Wanted]()
    while not lost and now < 1000:
        order = [request for request, of in fetches._asked.items() if of.number == connection]
        first = fetches._connections[connection].asked[order[0]].wanted
        if first == bad:
            lost = given_up(fetches.disconnected(connection, BROKEN, now))
            if lost:
                break
            now += 100.0
            (made,) = fetches.tick(now)
            assert isinstance(made, Connect)
            connection = made.connection
            fetches.connected(connection, now)
        else:
            fetches.received(order[0], now)
            fetches.landed(order[0])
    assert lost == [bad]


def test_damaged_segments_are_fetched_again_a_few_times() -> None:
    fetches = queue(tries_max=3)
    _, asks = connect(fetches, [wanted(0), wanted(1)])
    ask, now = asks[0], 0.0
    for _ in range(2):
        fetches.received(ask.request, now)
        assert fetches.damaged(ask.request, CorruptRun("its footer is wrong"), now) == []  # the holder rests
        now += 100.0
        (again,) = fetches.tick(now)
        assert isinstance(again, Ask)
        assert again.wanted == ask.wanted
        ask = again
    fetches.received(ask.request, now)
    assert given_up(fetches.damaged(ask.request, CorruptRun("its footer is wrong"), now)) == [ask.wanted]
    assert fetches.busy  # the other one is still waited for


def test_a_refusal_is_final_and_alone() -> None:
    fetches = queue()
    _, asks = connect(fetches, [wanted(0), wanted(1)])
    cause = CorruptRun("run file x is damaged", details={"file": "x", "attempt": "?"})
    (out,) = fetches.refused(asks[0].request, cause, 0.0)
    assert isinstance(out, GiveUp)
    assert out.error.details == {
        "attempt": asks[0].wanted.attempt,
        "partition": "0",
        "holder": "a",
        "file": "x",
    }
    assert fetches.refused(asks[0].request, cause, 0.0) == []
    assert land(fetches, asks[1]) == []


def test_a_refusal_of_what_is_not_lost_is_asked_for_again_later() -> None:
    fetches = queue(tries_max=3, backoff_first_s=1.0)
    _, (ask,) = connect(fetches, [wanted(0)])
    busy = TooManyOpenFiles("a run file cannot be opened")
    for now in (0.0, 10.0):
        assert fetches.refused(ask.request, busy, now) == []
        assert fetches.tick(now + 0.9) == []
        (ask,) = [each for each in fetches.tick(now + 10.0) if isinstance(each, Ask)]
    assert given_up(fetches.refused(ask.request, busy, 20.0)) == [wanted(0)]


def test_what_this_node_cannot_write_is_no_fault_of_the_holder() -> None:
    fetches = queue()
    _, asks = connect(fetches, [wanted(0)])
    fetches.received(asks[0].request, 0.0)
    full = SpillFull("no space")
    assert fetches.not_kept(asks[0].request, full) == [GiveUp(wanted(0), full)]
    assert fetches.not_kept(asks[0].request, full) == []


def test_cancel_forgets_a_job_and_only_it() -> None:
    fetches = queue(requests_ahead=2, connections_per_holder=1)
    connection, asks = connect(
        fetches, [wanted(0), wanted(1, job=OTHER_JOB), wanted(2), wanted(3, job=OTHER_JOB)]
    )
    fetches.received(asks[0].request, 0.0)
    closed, made = fetches.cancel(OTHER_JOB, 0.0)
    assert closed == Close(connection)
    assert isinstance(made, Connect)
    assert asked(fetches.connected(made.connection, 0.0)) == [wanted(2)]
    assert fetches.cancel(OTHER_JOB, 0.0) == []
    fetches.landed(asks[0].request)
    fetches.cancel(JOB, 0.0)
    assert not fetches.busy


def test_cancel_leaves_connections_of_other_jobs_alone() -> None:
    fetches = queue()
    _, asks = connect(fetches, [wanted(0)])
    fetches.add([wanted(0, "b", OTHER_JOB)], 0.0)
    assert fetches.cancel(OTHER_JOB, 0.0) == []
    assert land(fetches, asks[0]) == []


@pytest.mark.parametrize("event", ["connected", "disconnected", "received", "refused", "damaged"])
def test_what_is_told_of_strangers_is_ignored(event: str) -> None:
    fetches = queue()
    error: tuple[CortexError, ...] = () if event in ("connected", "received") else (BROKEN,)
    assert getattr(fetches, event)(77, *error, 0.0) == []
    fetches.landed(77)
    assert not fetches.busy


def test_a_holder_that_has_moved_does_not_rest_for_what_failed_where_it_was() -> None:
    fetches = queue(tries_max=3)
    (made,) = fetches.add([wanted(0)], 0.0)
    assert isinstance(made, Connect)
    assert fetches.disconnected(made.connection, BROKEN, 0.0) == []
    assert fetches.tick(0.01) == []  # it rests
    assert isinstance(fetches.moved("a", 0.02)[0], Connect)
    assert fetches.moved("b", 0.02) == []


# --- segments that may come combined ---


def combining(index: int, partition: int = 0, ahead: bool = False, holder: str = "a") -> Wanted:
    return Wanted(JOB, holder, f"{JOB}-m{index:06d}.0", partition, 10, combines=True, ahead=ahead)


def test_segments_of_one_partition_are_asked_for_together_in_map_order() -> None:
    fetches = queue(requests_ahead=4, together_max=3, connections_per_holder=1)
    some = [combining(5), combining(1, 1), combining(2), combining(10), wanted(3), combining(7)]
    _, (first, second) = connect(fetches, some)
    assert [first.wanted, *first.others] == [combining(2), combining(5), combining(10)]
    assert [each.wanted for each in (second,)] == [combining(1, 1)]
    assert second.request == first.request + 3
    # what is left of the first message counts, too: there is room when its requests are answered
    out = fetches.received(first.request, 0.0, (first.request + 1, first.request + 2))
    assert asked(out) == [wanted(3), combining(7)]


def test_maps_of_seven_digits_come_after_those_of_six() -> None:
    fetches = queue()
    _, (ask,) = connect(fetches, [combining(1_000_000), combining(999_999)])
    assert [ask.wanted, *ask.others] == [combining(999_999), combining(1_000_000)]


def test_what_one_segment_answers_lands_with_it() -> None:
    fetches = queue()
    _, (ask,) = connect(fetches, [combining(i) for i in range(4)])
    fetches.received(ask.request + 1, 0.0, (ask.request + 2,))
    assert fetches.add([combining(1), combining(2)], 0.0) == []  # on their way
    fetches.landed(ask.request + 1)
    again = fetches.add([combining(1), combining(2)], 0.0)
    assert [(each.wanted, each.others) for each in again if isinstance(each, Ask)] == [
        (combining(1), (combining(2),))
    ]


def test_a_combined_segment_that_is_damaged_is_asked_for_one_by_one() -> None:
    fetches = queue()
    _, (ask,) = connect(fetches, [combining(i) for i in range(3)])
    fetches.received(ask.request, 0.0, (ask.request + 1, ask.request + 2))
    assert fetches.damaged(ask.request, CorruptRun("wrong"), 0.0) == []  # the holder rests
    again = [each for each in fetches.tick(60.0) if isinstance(each, Ask)]
    assert [(each.wanted, each.others) for each in again] == [(combining(i), ()) for i in range(3)]


def test_a_combined_segment_that_cannot_be_kept_is_given_up_whole() -> None:
    fetches = queue()
    _, (ask,) = connect(fetches, [combining(i) for i in range(3)])
    fetches.received(ask.request, 0.0, (ask.request + 2,))
    assert given_up(fetches.not_kept(ask.request, SpillFull("full"))) == [combining(0), combining(2)]


def test_a_connection_that_breaks_within_a_combined_segment_has_brought_none_of_it() -> None:
    fetches = queue()
    connection, (ask,) = connect(fetches, [combining(i) for i in range(3)])
    fetches.disconnected(connection, BROKEN, 0.0)
    (made,) = fetches.tick(60.0)
    assert isinstance(made, Connect)
    (again,) = fetches.connected(made.connection, 60.0)
    assert isinstance(again, Ask)
    assert {again.wanted, *again.others} == {combining(i) for i in range(3)}
    assert again.request > ask.request + 2


def test_what_is_wanted_ahead_may_be_put_off_until_more_of_it_is_wanted() -> None:
    fetches = queue()
    _, (ask,) = connect(fetches, [combining(i, ahead=True) for i in range(2)])
    assert ask.ahead
    assert fetches.later(ask.request, 0.0) == fetches.later(ask.request + 1, 0.0) == []
    assert asked(fetches.tick(1.0)) == []
    assert asked(fetches.add([combining(9, 1, ahead=True)], 1.0)) == [combining(9, 1, ahead=True)]
    (again,) = fetches.add([combining(2, ahead=True)], 1.0)
    assert isinstance(again, Ask)
    assert [again.wanted, *again.others] == [combining(i, ahead=True) for i in range(3)]
    assert again.ahead


def test_what_a_reduce_waits_for_is_put_off_no_longer() -> None:
    fetches = queue()
    _, (ask,) = connect(fetches, [combining(i, ahead=True) for i in range(3)])
    fetches.later(ask.request, 0.0)
    fetches.later(ask.request + 1, 0.0)
    (again,) = fetches.add([combining(i) for i in range(3)], 0.0)  # the third has no answer yet
    assert isinstance(again, Ask)
    assert not again.ahead
    assert [each.attempt for each in (again.wanted, *again.others)] == [
        combining(i).attempt for i in range(2)
    ]
    (third,) = fetches.later(ask.request + 2, 0.0)  # sent before its holder could know
    assert isinstance(third, Ask)
    assert (third.wanted.attempt, third.ahead) == (combining(2).attempt, False)


def test_what_was_put_off_is_given_up_with_its_holder() -> None:
    fetches = queue(tries_max=1)
    connection, (ask,) = connect(fetches, [combining(i, ahead=True) for i in range(2)])
    fetches.later(ask.request, 0.0)
    out = fetches.disconnected(connection, BROKEN, 0.0)
    assert {each.attempt for each in given_up(out)} == {combining(i).attempt for i in range(2)}
    assert not fetches._holders


def test_what_was_put_off_is_forgotten_with_its_job() -> None:
    fetches = queue()
    _, (ask,) = connect(fetches, [combining(0, ahead=True)])
    fetches.later(ask.request, 0.0)
    assert fetches.cancel(JOB, 0.0) == []
    assert not fetches._segments
    assert asked(fetches.add([combining(1, ahead=True)], 0.0)) == [combining(1, ahead=True)]

"""Which node keeps which part of a put, and when parts get their names: decisions alone."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.errors import (
    InputChanged,
    InternalError,
    OutputExistsError,
    PartDamaged,
    ProtocolError,
    PutFailed,
)
from cortex.limits import PUT_OPEN_S_MAX, PUT_PART_TRIES_MAX, PUT_PARTS_AT_ONCE, PUT_STALL_S
from cortex.scheduling.put_run import PutEvent, PutRun, PutState, Room, Say, choose
from cortex.wire import messages as m

PUT = "p0123456789ab"
SHA = "0" * 64
MANY = 1 << 40


def begun(nodes: dict[str, int], copies: int = 1) -> PutRun:
    run = PutRun(PUT, m.BeginPut("big", ".csv", copies=copies), nodes, 0.0)
    assert run.begin() == [(node, m.OpenPut(PUT, "big", False)) for node in sorted(nodes)]
    said: list[Say] = []
    for node, free in nodes.items():
        said += run.opened(m.PutOpened(node, PUT, free))
    assert said == [("", m.PutBegun(PUT, tuple(sorted(nodes))))]
    return run


def offer(run: PutRun, part: int, size: int = 10) -> list[Say]:
    return run.offered(m.OfferPart(part, size, SHA))


def readers(said: list[Say], part: int) -> list[str]:
    return [node for node, each in said if isinstance(each, m.KeepPart) and each.part == part]


def stored(run: PutRun, node: str, part: int) -> list[Say]:
    return run.stored(m.PartStored(node, PUT, part))


def failed(run: PutRun, node: str, part: int, error: PutFailed | InputChanged) -> list[Say]:
    return run.stored(m.PartStored(node, PUT, part, error.report()))


def refused(said: list[Say]) -> str:
    last = [each for node, each in said if not node]
    assert isinstance(last[-1], m.Refused)
    return last[-1].error.code


def test_parts_go_to_who_was_given_least_and_then_to_who_has_most_room() -> None:
    rooms = {"a": Room(100), "b": Room(300), "c": Room(200)}
    assert choose(rooms, 10, ()) == "b"
    rooms["b"].given_bytes = 10
    assert choose(rooms, 10, ()) == "c"
    assert choose(rooms, 10, ("c",)) == "a"
    assert choose(rooms, 150, ("c",)) == "b"
    assert choose(rooms, 400, ()) is None


def test_parts_are_spread_evenly_while_there_is_room() -> None:
    run = begun({"a": MANY, "b": MANY, "small": 25})
    given: Counter[str] = Counter()
    for part in range(12):
        (node,) = readers(offer(run, part), part)
        given[node] += 1
        assert stored(run, node, part) == [("", m.PartKept(part, (node,)))]
    assert given == {"a": 5, "b": 5, "small": 2}
    said = run.finish(m.FinishPut(12))
    assert said == [(node, m.NameParts(PUT, 12, ".csv")) for node in ("a", "b", "small")]
    assert run.named(m.PartsNamed("a", PUT)) == run.named(m.PartsNamed("b", PUT)) == []
    *ends, (client, done) = run.named(m.PartsNamed("small", PUT))
    assert ends == [(node, m.EndPut(PUT, undo=False)) for node in ("a", "b", "small")]
    assert client == ""
    assert isinstance(done, m.PutDone)
    assert sorted(part for parts in done.nodes.values() for part in parts) == list(range(12))
    assert run.state is PutState.DONE


def test_without_a_node_that_takes_parts_it_fails_with_every_nodes_cause() -> None:
    run = PutRun(PUT, m.BeginPut("big", ""), (), 0.0)
    assert refused(run.begin()) == "put"
    run = PutRun(PUT, m.BeginPut("big", ""), ("a", "b"), 0.0)
    run.begin()
    assert run.opened(m.PutOpened("a", PUT, error=PutFailed("it may not write").report())) == []
    assert run.tick(PUT_OPEN_S_MAX - 1, lambda node: False) == []
    said = run.tick(PUT_OPEN_S_MAX, lambda node: False)
    assert refused(said) == "put"
    assert isinstance(said[-1][1], m.Refused)
    assert "it may not write" in said[-1][1].error.details["node a"]
    assert "did not answer" in said[-1][1].error.details["node b"]
    assert ("a", m.EndPut(PUT, undo=True)) in said


def test_a_name_that_is_taken_anywhere_ends_it() -> None:
    run = PutRun(PUT, m.BeginPut("big", ""), ("a", "b"), 0.0)
    run.begin()
    assert run.opened(m.PutOpened("a", PUT, MANY)) == []
    said = run.opened(m.PutOpened("b", PUT, error=OutputExistsError("it is there").report()))
    assert refused(said) == "output-exists"
    assert ("a", m.EndPut(PUT, undo=True)) in said


def test_a_disk_that_fails_gets_no_more_and_its_part_goes_elsewhere() -> None:
    run = begun({"a": MANY, "b": MANY - 1})
    assert readers(offer(run, 0), 0) == ["a"]
    assert readers(failed(run, "a", 0, PutFailed("no space")), 0) == ["b"]
    for part in (1, 2):
        assert readers(offer(run, part), part) == ["b"]
    said = failed(run, "b", 1, PutFailed("no space either"))
    assert refused(said) == "put"
    assert isinstance(said[-1][1], m.Refused)
    assert said[-1][1].error.details == {"node a": "no space", "node b": "no space either"}


def test_a_damaged_part_is_read_again_a_few_times() -> None:
    run = begun({"a": MANY, "b": MANY - 1})
    assert readers(offer(run, 0), 0) == ["a"]
    assert readers(failed(run, "a", 0, PartDamaged("other bytes")), 0) == ["b"]
    assert readers(failed(run, "b", 0, PartDamaged("other bytes")), 0) != []
    said: list[Say] = []
    for _ in range(PUT_PART_TRIES_MAX):
        for node in ("a", "b"):
            said += [] if run.ended else failed(run, node, 0, PartDamaged("other bytes"))
    assert refused(said) == "part-damaged"


def test_a_file_that_changed_ends_it() -> None:
    run = begun({"a": MANY})
    offer(run, 0)
    assert refused(failed(run, "a", 0, InputChanged("it grew"))) == "input-changed"


def test_what_a_lost_node_had_is_asked_for_again() -> None:
    run = begun({"a": MANY, "b": MANY - 1})
    assert readers(offer(run, 0), 0) == ["a"]
    assert readers(offer(run, 1), 1) == ["b"]
    assert readers(offer(run, 2), 2) == ["a"]
    stored(run, "a", 0)
    said = run.node_lost("a")
    assert ("", m.PartGone(0)) in said
    assert readers(said, 2) == ["b"]
    stored(run, "b", 1)
    stored(run, "b", 2)
    assert run.finish(m.FinishPut(3)) == []  # part 0 is missing: the client has heard
    assert readers(offer(run, 0), 0) == ["b"]
    stored(run, "b", 0)
    assert run.finish(m.FinishPut(3)) == [("b", m.NameParts(PUT, 3, ".csv"))]


def test_a_disk_that_takes_nothing_is_done_without() -> None:
    run = begun({"a": MANY, "b": MANY - 1})
    assert readers(offer(run, 0), 0) == ["a"]
    assert readers(offer(run, 1), 1) == ["b"]
    stored(run, "b", 1)
    owed: set[str] = {"a"}
    now = 0.0
    for _ in range(5):  # the client is slow: nobody's disk is blamed
        assert run.tick(now, owed.__contains__) == []
        now += PUT_STALL_S - 1
    owed.clear()
    for _ in range(5):  # the disk is slow: it goes on all the same
        run.reads("a")
        assert run.tick(now, owed.__contains__) == []
        now += PUT_STALL_S - 1
    assert readers(run.tick(now + 1, owed.__contains__), 0) == ["b"]
    assert stored(run, "a", 0) == []  # too late
    assert readers(offer(run, 2), 2) == ["b"]
    assert stored(run, "b", 0) == [("", m.PartKept(0, ("b",)))]
    stored(run, "b", 2)

    run.finish(m.FinishPut(3))
    assert run.tick(now, owed.__contains__) == []
    run.named(m.PartsNamed("a", PUT))
    said = run.tick(now + PUT_STALL_S, owed.__contains__)
    assert refused(said) == "put"
    assert ("a", m.EndPut(PUT, undo=True)) in said
    assert run.tick(now + 2 * PUT_STALL_S, owed.__contains__) == []


def test_a_node_that_is_lost_while_naming_ends_it_if_it_had_parts() -> None:
    for lost, ends in (("a", True), ("b", False)):
        run = begun({"a": MANY, "b": MANY - 1})
        offer(run, 0)
        stored(run, "a", 0)
        run.finish(m.FinishPut(1))
        said = run.node_lost(lost)
        assert run.ended is ends
        if ends:
            assert ("b", m.EndPut(PUT, undo=True)) in said
        else:
            assert isinstance(run.named(m.PartsNamed("a", PUT))[-1][1], m.PutDone)


def test_clients_out_of_turn_are_refused() -> None:
    run = PutRun(PUT, m.BeginPut("big", ""), ("a",), 0.0)
    run.begin()
    with pytest.raises(ProtocolError):
        offer(run, 0)
    run.opened(m.PutOpened("a", PUT, MANY))
    for part in range(PUT_PARTS_AT_ONCE):
        offer(run, part)
    with pytest.raises(ProtocolError):
        offer(run, PUT_PARTS_AT_ONCE)
    with pytest.raises(ProtocolError):
        run.finish(m.FinishPut(PUT_PARTS_AT_ONCE + 1))
    stored(run, "a", 0)
    with pytest.raises(ProtocolError):
        offer(run, 0)
    assert run.give_up() == [("a", m.EndPut(PUT, undo=True))]
    assert run.give_up() == []
    with pytest.raises(InternalError):
        run._move(PutEvent.NAMED)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 5), st.integers(1, 3), st.integers(1, 12))
def test_whatever_happens_it_is_whole_or_undone(seed: int, count: int, copies: int, parts: int) -> None:
    """Nodes and client as they are, with any order of answers, lost nodes and disks that fail."""
    chance = random.Random(seed)
    names = [f"n{number}" for number in range(count)]
    run = PutRun(PUT, m.BeginPut("big", ".csv", copies=copies), names, 0.0)
    here = set(names)
    has: dict[str, set[int]] = {name: set() for name in names}
    todo: list[tuple[str, m.Message]] = []
    offered: set[int] = set()
    waiting = list(range(parts))[::-1]
    client_at: str = "begin"
    undone: set[str] = set()
    result: m.Message | None = None

    def take(said: list[Say]) -> None:
        nonlocal client_at, result
        for node, message in said:
            if node:
                if isinstance(message, m.EndPut):
                    if message.undo:
                        has[node].clear()
                        undone.add(node)
                else:
                    todo.append((node, message))
            elif isinstance(message, m.PutBegun):
                client_at = "offering"
            elif isinstance(message, m.PartKept):
                offered.discard(message.part)
            elif isinstance(message, m.PartGone):
                waiting.append(message.part)
                client_at = "offering"
            else:
                result = message

    take(run.begin())
    while result is None:
        choices = []
        if todo:
            choices += ["node"] * 6
        if client_at == "offering":
            choices += ["client"] * 3
        if len(here) > 1:
            choices += ["lose"]
        if not choices:
            raise AssertionError("nobody has anything to do, and it has not ended")
        what = chance.choice(choices)
        if what == "lose" and chance.random() < 0.1:
            lost = chance.choice(sorted(here))
            here.discard(lost)
            has[lost].clear()
            todo = [each for each in todo if each[0] != lost]
            take(run.node_lost(lost))
        elif what == "client":
            if waiting and len(offered) < PUT_PARTS_AT_ONCE:
                part = waiting.pop()
                offered.add(part)
                take(offer(run, part))
            elif not waiting and not offered:
                client_at = "finished"
                take(run.finish(m.FinishPut(parts)))
        elif what == "node":
            node, message = todo.pop(chance.randrange(len(todo)))
            if isinstance(message, m.OpenPut):
                take(run.opened(m.PutOpened(node, PUT, chance.choice((0, 40, MANY, MANY)))))
            elif isinstance(message, m.NameParts):
                take(run.named(m.PartsNamed(node, PUT)))
            else:
                assert isinstance(message, m.KeepPart)
                if chance.random() < 0.9:
                    has[node].add(message.part)
                    take(stored(run, node, message.part))
                else:
                    kind = chance.choice((PutFailed, PartDamaged))
                    take(failed(run, node, message.part, kind("broken")))
    if isinstance(result, m.PutDone):
        for part in range(parts):
            assert sum(part in each for each in has.values()) >= copies
        assert {node: set(each) for node, each in result.nodes.items()} == {
            node: each for node, each in has.items() if each
        }
    else:
        assert isinstance(result, m.Refused)
        assert undone >= here

"""Which parts a result has, and which of them are lost with a node."""

from __future__ import annotations

from cortex.scheduling.result_parts import ResultParts
from cortex.wire.messages import OutputPart


def part(name: str, attempt: int = 0) -> OutputPart:
    return OutputPart(name, f"{name}.{attempt}", 1, 2, ())


def made() -> ResultParts:
    parts = ResultParts(on_nodes=True)
    parts.take(1, "n", (part("b"),))
    parts.take(0, "n", (part("a"), part("a2")))
    parts.take(2, "o", (part("c"),))
    return parts


def test_parts_are_in_the_order_of_their_tasks_and_know_their_node() -> None:
    parts = made()
    found = [(each.name, each.node) for each in parts.in_order()]
    assert found == [("a", "n"), ("a2", "n"), ("b", "n"), ("c", "o")]
    assert parts.tasks == 3


def test_what_was_made_anew_elsewhere_is_not_lost_with_the_node_that_made_it_first() -> None:
    parts = made()
    parts.take(1, "o", (part("b", 1),))
    assert parts.are_on("n")
    assert parts.lost_with("n") == [0]
    assert parts.lost_with("n") == []
    assert not parts.are_on("n")
    assert parts.lost_with("o") == [1, 2]


def test_where_all_write_to_one_folder_no_part_is_on_a_node() -> None:
    parts = ResultParts(on_nodes=False)
    parts.take(0, "n", (part("a"),))
    assert parts.in_order()[0].node == ""
    assert (parts.are_on("n"), parts.lost_with("n")) == (False, [])


def test_a_part_that_was_replaced_is_of_no_task() -> None:
    parts = made()
    assert parts.made_by("a2.0") == [0]
    parts.take_out([0])
    parts.take(0, "o", (part("a", 1), part("a2", 1)))
    assert (parts.made_by("a2.0"), parts.made_by("a2.1")) == ([], [0])


def test_parts_that_cannot_be_made_anew_are_named() -> None:
    error = made().lost_for_good([0, 2])
    assert error.message.startswith("3 of 4 parts of the result were lost")
    assert error.details == {"node": "n", "parts": "a, a2, c"}
    many = ResultParts(on_nodes=True)
    many.take(0, "n", tuple(part(str(number)) for number in range(11)))
    assert many.lost_for_good([0]).details["parts"].endswith("8, 9, ...")

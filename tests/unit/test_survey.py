"""What nodes answer about a job's input: which files there are, and who has them."""

from __future__ import annotations

import pytest

from cortex.errors import DataConflict, InputError, InputLost
from cortex.job.plan import ClientFile, InputFile, InputPlan, SplitGroups, Splits
from cortex.job.spec import InputSpec
from cortex.scheduling.survey import Survey
from cortex.wire.messages import DataListed, FindInput, InputFound, ListData

JOB = "j0123456789ab"
MINE = ClientFile("/c/x.csv", 5, 1, b"x")


def file(name: str, mark: bytes = b"m", size: int = 3) -> ClientFile:
    return ClientFile(f"data:{name}", size, 0, mark)


def asked(survey: Survey, *answers: tuple[str, tuple[ClientFile, ...]]) -> Survey:
    """Each node lists its files, in this order."""
    for node, _ in answers:
        assert isinstance(survey.question(node), ListData)
    for node, found in answers:
        assert not survey.settle(["any"])
        survey.listed(DataListed(node, JOB, (found,)))
    return survey


def survey() -> Survey:
    return Survey(JOB, InputSpec(("/c/x.csv", "data:*.csv")), ((MINE,), None))


def test_the_order_is_of_names_and_not_of_nodes() -> None:
    a, b = ("n1", (file("b.csv"), file("z.csv"))), ("n2", (file("a.csv"), file("b.csv")))
    orders = []
    for answers in ((a, b), (b, a)):
        found = asked(survey(), *answers)
        assert found.settle(["n1", "n2"])
        question = found.question("n1")
        assert isinstance(question, FindInput)
        orders.append(question.files)
    assert orders[0] == orders[1] == (MINE, file("a.csv"), file("b.csv"), file("z.csv"))


def test_one_name_with_two_contents_names_both_nodes() -> None:
    for other in (file("b.csv", b"other"), file("b.csv", size=4)):
        found = asked(survey(), ("n1", (file("b.csv"),)), ("n2", (other,)))
        with pytest.raises(DataConflict, match="is one file on node n1 and another one on"):
            found.settle(["n1", "n2"])


def test_a_name_that_is_nowhere() -> None:
    with pytest.raises(InputError, match=r"data:\*.csv names no file on any node") as found:
        asked(survey(), ("n1", ())).settle(["n1"])
    assert found.value.details["looked at"] == "n1"
    assert not survey().settle([])  # no node is here yet
    with pytest.raises(InputError, match="no node has data roots"):
        survey().settle(["n1"])


def test_a_node_that_cannot_look_fails_the_job_by_name() -> None:
    found = survey()
    found.question("n1")
    with pytest.raises(InputError, match="folder cannot be read") as error:
        found.listed(DataListed("n1", JOB, error=InputError("folder cannot be read").report()))
    assert error.value.details["node"] == "n1"


def test_a_node_that_is_lost_before_all_is_known() -> None:
    """Without it files might be missing from the answer, and nobody would know."""
    found = survey()
    found.question("n1")
    with pytest.raises(InputLost, match="node n1 is lost"):
        found.lost("n1")
    found = asked(survey(), ("n1", (file("a.csv"),)))
    with pytest.raises(InputLost):
        found.lost("n1")


def holders(found: Survey) -> list[tuple[str, ...]]:
    members, set_of = found.sets()
    return [members[number] for number in set_of]


def test_who_has_what_is_kept_in_sets() -> None:
    found = asked(survey(), ("n1", (file("a.csv"),)), ("n2", (file("b.csv"),)))
    assert found.settle(["n1", "n2"])
    assert not found.settled or found.question("n1") is not None
    for node in ("n1", "n2", "n3"):
        found.question(node)
    assert not found.settled
    assert found.found(InputFound("n1", JOB, bytes([0b011])))
    assert found.found(InputFound("n2", JOB, bytes([0b101])))
    assert found.found(InputFound("n3", JOB, bytes([0b000])))
    assert not found.found(InputFound("n3", JOB, bytes([0b111])))  # nobody asked again
    assert found.settled
    assert found.matters
    assert holders(found) == [("n1", "n2"), ("n1",), ("n2",)]
    assert found.who_has_most() == ("n1", "n2")
    assert found.has_alone("n1")
    assert not found.has_alone("n3")
    version = found.version
    assert found.lost("n2")
    assert found.version > version
    assert holders(found) == [("n1",), ("n1",), ()]
    assert found.lost_with(2) == "n2"
    assert isinstance(found.question("n2"), FindInput)  # it is back


def test_a_node_that_has_not_said_all_may_have_what_nobody_else_has() -> None:
    found = survey()
    assert not found.has_alone("n1")  # not asked
    assert isinstance(found.question("n1"), ListData)
    assert found.has_alone("n1")
    found.listed(DataListed("n1", JOB, ((file("b.csv"),),)))
    assert found.has_alone("n1")  # it has listed a file, and others may not
    assert found.settle(["n1"])
    assert not found.has_alone("n1")
    assert isinstance(found.question("n1"), FindInput)
    assert found.has_alone("n1")
    assert found.found(InputFound("n1", JOB, bytes([0b00])))
    assert not found.has_alone("n1")


def test_an_answer_that_was_lost_with_its_link_is_asked_for_again() -> None:
    found = survey()
    assert found.question("n1") is not None
    assert found.question("n1") is None
    found.is_back("n1")
    assert found.question("n1") is not None


def test_a_plan_of_an_earlier_life_says_which_files_there_are() -> None:
    found = survey()
    files = tuple(
        InputFile(i, path, "csv", 3, 0, 0, client_file=i, fingerprint=b"m")
        for i, path in enumerate(("/c/x.csv", "data:a.csv", "data:b.csv"))
    )
    found.planned(InputPlan(files, Splits(), SplitGroups(), (), 0, 1))
    question = found.question("n1")
    assert isinstance(question, FindInput)
    assert question.files == (MINE, file("a.csv"), file("b.csv"))
    assert found.matters

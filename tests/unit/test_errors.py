"""Errors keep type, words and place across a process boundary."""

from __future__ import annotations

import pickle

import msgspec
import pytest

from cortex import errors
from cortex.errors import CortexError, ErrorReport, Fault, from_report

CLASSES = sorted(
    (c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, CortexError)),
    key=lambda c: c.__name__,
)


def test_codes_are_distinct_and_each_class_has_its_own() -> None:
    assert len({c.__dict__["code"] for c in CLASSES}) == len(CLASSES) > 20


@pytest.mark.parametrize("kind", CLASSES)
def test_a_report_gives_the_same_error_back(kind: type[CortexError]) -> None:
    error = kind(
        "what",
        cure="do",
        signature="ValueError@x.py:3",
        details={"file": "a.csv", "offset": 12, "none": None},
    )
    wire = msgspec.msgpack.encode(error.report())
    for again in (
        from_report(msgspec.msgpack.decode(wire, type=ErrorReport)),
        pickle.loads(pickle.dumps(error)),
    ):
        assert type(again) is kind
        assert again.report() == error.report()
        assert again.fault is kind.fault
        assert str(again) == str(error)


def test_text_shows_details_and_cure_in_order() -> None:
    error = CortexError(
        "what", cure="do", details={"file": "a", "traceback": "line 1\nline 2\n", "empty": ""}
    )
    assert str(error) == "what\n  file: a\n  traceback:\n    line 1\n    line 2\n  cure: do"


def test_an_unknown_code_is_still_an_error() -> None:
    again = from_report(ErrorReport("from-the-future", "what", "do"))
    assert type(again) is CortexError
    assert again.message == "what"


def test_exit_codes_and_faults() -> None:
    assert errors.UsageError("x").exit_code == errors.JobFileError("x").exit_code == 2
    assert errors.Cancelled("x").exit_code == 130
    assert errors.InputError("x").exit_code == 1
    assert errors.CorruptRun("x").fault is Fault.LOST
    assert errors.ExecutorDied("x").fault is Fault.TASK
    assert errors.DivisionByZero("x").fault is Fault.FATAL

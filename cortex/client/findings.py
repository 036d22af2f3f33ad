"""What `cortex doctor` finds: one line a check, with the cure where something is wrong. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from cortex.errors import CortexError


class Verdict(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, and may soon not."""
    PROBLEM = "problem"


class Finding(msgspec.Struct, frozen=True):
    check: str
    subject: str
    """this machine, the server, or a node."""
    verdict: Verdict
    said: str
    cure: str = ""


def ok(check: str, subject: str, said: str) -> Finding:
    return Finding(check, subject, Verdict.OK, said)


def warning(check: str, subject: str, said: str, cure: str) -> Finding:
    return Finding(check, subject, Verdict.WARNING, said, cure)


def problem(check: str, subject: str, said: str, cure: str) -> Finding:
    return Finding(check, subject, Verdict.PROBLEM, said, cure)


def failed(check: str, subject: str, error: CortexError) -> Finding:
    """A problem that has been found already, with its cure."""
    return problem(check, subject, error.message, error.cure or "see the log")


def is_well(findings: Iterable[Finding]) -> bool:
    return all(finding.verdict is not Verdict.PROBLEM for finding in findings)

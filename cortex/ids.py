"""Identifiers: printable, hex or digits only, safe as file names."""

from __future__ import annotations

import os
import re
from typing import NewType

JobId = NewType("JobId", str)
"""``j`` and 12 hex digits."""
TaskId = NewType("TaskId", str)
"""``<job>-plan``, ``<job>-s000012`` (scan), ``<job>-m000012`` (map), ``<job>-r000003`` (reduce)."""
AttemptId = NewType("AttemptId", str)
"""``<task>.<number>``, counted from 0."""

_ATTEMPT = re.compile(r"j[0-9a-f]{12}-(plan|[smr][0-9]{6,9})\.[0-9]{1,7}")


def new_job_id(random_bytes: bytes | None = None) -> JobId:
    return JobId("j" + (random_bytes or os.urandom(6)).hex())


def task_id(job: JobId, kind: str, index: int | None = None) -> TaskId:
    """`kind` is ``plan`` (no index) or one of ``s``, ``m``, ``r``."""
    return TaskId(f"{job}-{kind}" if index is None else f"{job}-{kind}{index:06d}")


def attempt_id(task: TaskId, number: int) -> AttemptId:
    return AttemptId(f"{task}.{number}")


def is_attempt_id(text: str) -> bool:
    """True for exactly the ids made here: what a peer sends is checked before it names a file."""
    return _ATTEMPT.fullmatch(text) is not None


def task_of(attempt: AttemptId) -> TaskId:
    return TaskId(attempt.rpartition(".")[0])

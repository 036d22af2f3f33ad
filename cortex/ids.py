"""Identifiers: printable, hex or digits only, safe as file names."""

from __future__ import annotations

import enum
import os
import re
from typing import NewType

JobId = NewType("JobId", str)
"""``j`` and 12 hex digits."""
TaskId = NewType("TaskId", str)
"""``<job>-plan``, ``<job>-s000012`` (scan), ``<job>-m000012`` (map), ``<job>-r000003`` (reduce),
``<job>-w000001`` (a worker, which runs calls).

``<job>-c000004`` is a node's own: map outputs combined there (`parse_attempt` knows none)."""
AttemptId = NewType("AttemptId", str)
"""``<task>.<number>``, counted from 0."""


class Role(enum.StrEnum):
    """What a process of a cluster is, as its certificate says."""

    SERVER = "server"
    NODE = "node"
    CLIENT = "client"
    ADMIN = "admin"
    MONITOR = "monitor"
    """Looks, and does nothing else."""


def role_named(text: str) -> Role | None:
    return next((role for role in Role if role.value == text), None)


_JOB = re.compile(r"j[0-9a-f]{12}")
JOB_ID_OR_NONE = r"\A(j[0-9a-f]{12})?\Z"
"""A pattern for messages."""
_ATTEMPT = re.compile(r"j[0-9a-f]{12}-(plan|commit|[smrcw][0-9]{6,9})\.[0-9]{1,7}")
_KINDS = re.compile(r"(j[0-9a-f]{12})-(plan|commit|[smrw])([0-9]{6,9})?\.([0-9]{1,7})")
_MAP_ATTEMPT = re.compile(r"(j[0-9a-f]{12})-m([0-9]{6,9})\.([0-9]{1,7})")
_CLUSTER = re.compile(r"k[0-9a-f]{12}")
_PEER = re.compile(r"[sncam][0-9a-f]{12}")
_TOKEN = re.compile(r"t[0-9a-f]{12}")


def new_job_id(random_bytes: bytes | None = None) -> JobId:
    return JobId("j" + (random_bytes or os.urandom(6)).hex())


def is_job_id(text: str) -> bool:
    """True for exactly the ids made here: a folder that is removed for its name must have one in it."""
    return _JOB.fullmatch(text) is not None


PUT_ID = r"\Ap[0-9a-f]{12}\Z"
"""A pattern for messages: of what `cortex put` does once."""


def new_put_id() -> str:
    """``p`` and 12 hex digits."""
    return "p" + os.urandom(6).hex()


def task_id(job: JobId, kind: str, index: int | None = None) -> TaskId:
    """`kind` is ``plan`` or ``commit`` (no index) or one of ``s``, ``m``, ``r``, ``c``, ``w``."""
    return TaskId(f"{job}-{kind}" if index is None else f"{job}-{kind}{index:06d}")


def attempt_id(task: TaskId, number: int) -> AttemptId:
    return AttemptId(f"{task}.{number}")


def is_attempt_id(text: str) -> bool:
    """True for exactly the ids made here: what a peer sends is checked before it names a file."""
    return _ATTEMPT.fullmatch(text) is not None


def task_of(attempt: AttemptId) -> TaskId:
    return TaskId(attempt.rpartition(".")[0])


def job_of(attempt: AttemptId) -> JobId:
    return JobId(attempt.partition("-")[0])


def parse_attempt(text: str) -> tuple[JobId, str, int, int] | None:
    """Job, kind (as in `task_id`), index (0 where it has none) and number of an attempt; None for others."""
    found = _KINDS.fullmatch(text)
    if found is None or (found[2] in ("plan", "commit")) != (found[3] is None):
        return None
    return JobId(found[1]), found[2], int(found[3] or 0), int(found[4])


def map_attempt(text: str) -> tuple[JobId, int, int] | None:
    """Job, map and number of a map's attempt; None if it is none."""
    found = _MAP_ATTEMPT.fullmatch(text)
    return None if found is None else (JobId(found[1]), int(found[2]), int(found[3]))


def new_cluster_id() -> str:
    """``k`` and 12 hex digits."""
    return "k" + os.urandom(6).hex()


def is_cluster_id(text: str) -> bool:
    return _CLUSTER.fullmatch(text) is not None


def new_peer_id(role: Role) -> str:
    """The role's first letter (``s``, ``n``, ``c``, ``a``, ``m``) and 12 hex digits; never given twice."""
    return role.value[0] + os.urandom(6).hex()


def is_peer_id(text: str, role: Role) -> bool:
    return text[:1] == role.value[0] and _PEER.fullmatch(text) is not None


def new_token_id() -> str:
    """``t`` and 12 hex digits."""
    return "t" + os.urandom(6).hex()


def is_token_id(text: str) -> bool:
    return _TOKEN.fullmatch(text) is not None


def server_name(cluster: str) -> str:
    """The DNS name that the server's certificate carries and every peer checks; no resolver knows it."""
    return f"server.{cluster}.cortex"


def peer_name(cluster: str, role: Role, peer: str) -> str:
    """The DNS name that a certificate carries: no two processes of a cluster have the same."""
    return server_name(cluster) if role is Role.SERVER else f"{peer}.{role.value}.{cluster}.cortex"

"""What the scheduler is told, and what it answers. The edge (server.py) makes the first and obeys the second.

Four of a node's messages (`AttemptFinished`, `AttemptFailed`, `Heartbeat`, `CannotServe`) and one of a
client's (`JobReceived`) are events as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from cortex.wire.messages import (
    AttemptFailed,
    AttemptFinished,
    CannotServe,
    FromServer,
    Heartbeat,
    JobReceived,
    NodeHello,
    SubmitJob,
    ToNode,
)


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    job: str
    request: SubmitJob


@dataclass(frozen=True, slots=True)
class NodeJoined:
    hello: NodeHello


@dataclass(frozen=True, slots=True)
class NodeLost:
    node: str


@dataclass(frozen=True, slots=True)
class PartUnreadable:
    """A part of the output of a job cannot be read at its node, which lives."""

    job: str
    staged_as: str


@dataclass(frozen=True, slots=True)
class CancelRequested:
    job: str
    reason: str = "the job was cancelled"


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: sent every `limits.PROGRESS_S`. Leases expire and progress is told on it."""


Event = (
    JobSubmitted
    | NodeJoined
    | NodeLost
    | PartUnreadable
    | AttemptFinished
    | AttemptFailed
    | Heartbeat
    | CannotServe
    | CancelRequested
    | JobReceived
    | Tick
)


@dataclass(frozen=True, slots=True)
class SendToNode:
    node: str
    message: ToNode


@dataclass(frozen=True, slots=True)
class SendToClient:
    """To the client of `job`; dropped when it is gone."""

    job: str
    message: FromServer


Instruction = SendToNode | SendToClient

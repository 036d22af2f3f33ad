"""What the scheduler is told, and what it answers. The edge (server.py) makes the first and obeys the second.

Of a node's messages those that it decides on (`AttemptFinished`, `Heartbeat`, `DataListed` and their like)
and one of a client's (`JobReceived`) are events as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cortex.scheduling.records import JobRecord
from cortex.wire.messages import (
    AttemptFailed,
    AttemptFinished,
    CannotServe,
    CellsTaken,
    DataListed,
    DropCells,
    EndCalls,
    ForgetFunctions,
    FromServer,
    FunctionCode,
    GivenBack,
    Heartbeat,
    InputFound,
    JobReceived,
    NodeHello,
    SendCells,
    SubmitJob,
    ToNode,
    WorkerHolds,
    WorkerSaid,
)

FromSubmitter = FunctionCode | ForgetFunctions | SendCells | DropCells | CellsTaken | EndCalls
"""What the client of a compute job says, as it is."""

CANCELLED = "the job was cancelled"


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """`user`: whose share of the slots it is part of."""

    job: str
    request: SubmitJob
    user: str = ""


@dataclass(frozen=True, slots=True)
class JobKept:
    """A job under way in an earlier life of the server: all that was written down of it."""

    job: str
    request: SubmitJob
    age_s: float
    """Since it was accepted."""
    lives: int
    """Of the server, that have worked at it before this one."""
    records: Iterable[JobRecord]
    user: str = ""


@dataclass(frozen=True, slots=True)
class Restored:
    """Before any other event: what an earlier life of the server knew.

    `nodes`, name -> incarnation, are expected back for NODE_RETURN_S; until they are, or are given up,
    nothing of these jobs is leased. Jobs that were done are among them, until their client has the result.
    """

    jobs: tuple[JobKept, ...]
    nodes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """A node says hello. One that is the same as before (its incarnation), and still expected, keeps its
    leases and outputs: what it says that it holds is compared with them."""

    hello: NodeHello


@dataclass(frozen=True, slots=True)
class NodeAway:
    """Its link has ended: it may come back within NODE_AWAY_S."""

    node: str


@dataclass(frozen=True, slots=True)
class NodeLost:
    node: str


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The node gets no more work, finishes what it has, and is told to end when nothing of it is needed.
    After `seconds` what it still runs, and what it keeps for jobs under way, is made elsewhere. `undo`: it
    works again."""

    node: str
    seconds: float
    undo: bool = False


@dataclass(frozen=True, slots=True)
class PartUnreadable:
    """A part of the output of a job cannot be read at its node, which lives."""

    job: str
    staged_as: str


@dataclass(frozen=True, slots=True)
class MapsNotKept:
    """Of a job that is done only the result is kept from now on."""

    job: str


@dataclass(frozen=True, slots=True)
class CancelRequested:
    job: str
    reason: str = CANCELLED


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: sent every `limits.PROGRESS_S`. Leases expire and progress is told on it."""


Event = (
    JobSubmitted
    | Restored
    | NodeJoined
    | NodeAway
    | NodeLost
    | PartUnreadable
    | AttemptFinished
    | AttemptFailed
    | Heartbeat
    | CannotServe
    | MapsNotKept
    | DataListed
    | InputFound
    | GivenBack
    | DrainRequested
    | CancelRequested
    | FunctionCode
    | ForgetFunctions
    | SendCells
    | DropCells
    | CellsTaken
    | EndCalls
    | WorkerSaid
    | WorkerHolds
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


@dataclass(frozen=True, slots=True)
class WriteDown:
    """Keep this for a later life of the server, after what was to be kept before it."""

    job: str
    record: JobRecord


@dataclass(frozen=True, slots=True)
class GiveUpNode:
    """The node is lost now: it was away, or has been `drained`, and nothing of it is needed."""

    node: str
    drained: bool = False


Instruction = SendToNode | SendToClient | WriteDown | GiveUpNode

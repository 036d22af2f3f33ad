"""Server - node."""

from __future__ import annotations

from typing import Union

import msgspec

from cortex.errors import ErrorReport
from cortex.job.bundle import NO_BUNDLE, Bundle
from cortex.job.plan import ClientFile, DataFiles
from cortex.job.spec import JobSpec
from cortex.limits import PROGRESS_S
from cortex.machine_report import MachineReport
from cortex.wire.messages.base import Message
from cortex.wire.messages.compute import (
    CellsTaken,
    ChildrenDone,
    DropCells,
    EndServing,
    ForgetFunctions,
    FunctionCode,
    RunCells,
    WorkerHolds,
    WorkerSaid,
)
from cortex.wire.messages.executor import JobPlanned, RunTask, TaskFailed, TaskFinished, TaskProgress
from cortex.wire.messages.inputs import InputBytes, InputUnread, ReadInput
from cortex.wire.messages.puts import (
    EndPut,
    KeepPart,
    NameParts,
    OpenPut,
    PartsNamed,
    PartStored,
    PutOpened,
)
from cortex.wire.messages.tasks import MapBlock


class NodeHello(Message, frozen=True):
    """A node's first message on a link. `incarnation` is new at every start: older messages are stale.

    A node whose link to the server has ended, whichever of the two did, dials again and says what it still
    holds. It is told of every job anew before its next task, but for StartJob; what it should hold no more is
    ended or revoked.
    """

    node: str
    incarnation: str
    slots: int
    memory_bytes: int
    versions: dict[str, str]
    data_address: str = ""
    """Where other nodes fetch map outputs from it, ``host:port``; "" for an embedded node."""
    jobs: tuple[str, ...] = ()
    """That it was told of (StartJob) and not told to end."""
    attempts: dict[str, int] = {}
    """That it was leased, and that have not ended or whose end was not acknowledged (ReportsKept); each with
    its ReduceTask's `version`, or 0."""
    draining_s: float = -1.0
    """It was told to drain, and has so many seconds left; -1: it was not."""
    host: str = ""
    """The machine's name, for people."""
    data_roots: int = 0
    """Folders that it may read and serve; 0: none was named."""


class StartJob(Message, frozen=True):
    job: str
    spec: JobSpec
    code: bytes
    sys_path: tuple[str, ...]
    staging_dir: str
    progress_s: float = PROGRESS_S
    """How often the node beats while attempts run, so that their progress is known."""
    bundle: Bundle = NO_BUNDLE
    """To be here, checked, before the first attempt runs."""


class OutputNode(msgspec.Struct, frozen=True, array_like=True):
    """A node that has map outputs, and where others fetch them: its NodeHello's `data_address`."""

    node: str
    data_address: str


class MapLocations(Message, frozen=True):
    """Where the outputs of a job's maps are: once all are done, before a node's first reduce; and in portions
    while maps run, to nodes that fetch ahead.

    Sent again when some were made anew, with what differs from what the node was sent before: blocks
    replace those of the same `first`, nodes are added (`nodes[0]` has the number `first_node`). A node
    that was lost and is back has another number.
    """

    job: str
    first_node: int
    nodes: tuple[OutputNode, ...]
    blocks: tuple[MapBlock, ...]


class FetchAhead(Message, frozen=True):
    """While maps run: fetch the segments of these partitions from the map outputs that MapLocations, from
    now on, say are done. This node will likely reduce them."""

    job: str
    partitions: tuple[int, ...]


class Lease(Message, frozen=True):
    """Work granted to a node, kept by its heartbeats. The last `successors` of the tasks begin when others of
    their jobs end there; those before have slots that are free, and begin before what waits."""

    tasks: tuple[RunTask, ...]
    successors: int = 0


class Revoke(Message, frozen=True):
    """Stop these attempts (kill what runs them) and report nothing more of them."""

    attempts: tuple[str, ...]


class Recall(Message, frozen=True):
    """Give back so many attempts of this job that have not begun, the last leased first: another job is to
    have the slots. Answered with `GivenBack`."""

    job: str
    attempts: int


class ReportsKept(Message, frozen=True):
    """The ends of these attempts are in the server's journal, or not wanted: they need not be told again."""

    attempts: tuple[str, ...]


class EndJob(Message, frozen=True):
    """The job failed, or its client has the result: drop its executors and its run files."""

    job: str
    drop_output: bool = False
    """It was to write to a path that all nodes share, and has not committed: remove what it left there."""


class DropMapOutputs(Message, frozen=True):
    """Of a job that is done and whose result is kept: drop all but its parts of the result."""

    job: str


class AttemptFinished(Message, frozen=True):
    node: str
    incarnation: str
    done: TaskFinished


class AttemptFailed(Message, frozen=True):
    node: str
    incarnation: str
    failed: TaskFailed


class Heartbeat(Message, frozen=True):
    """Renews every lease of the node. Memory is of the whole process tree, client included."""

    node: str
    incarnation: str
    running: tuple[TaskProgress, ...]
    memory_bytes: int
    memory_peak_bytes: int
    disk_free_bytes: int = -1
    """Of the folders for spilled data together; -1 unknown."""
    spill_bytes: int = -1
    """What lies in them, as of a few seconds ago; -1 unknown, as the next is."""
    spill_limit_bytes: int = -1
    """All that may lie there: the node's quota, or less where the disks take less."""
    idle_slots: int = 0
    """That stand idle while reduces wait for their inputs here."""


class Drain(Message, frozen=True):
    """Give back what has not begun (GivenBack); nothing more is leased, and ShutDown follows when nothing of
    this node is needed any more. `seconds`, from now, is when what still runs is given up. -1: work again."""

    seconds: float


class GivenBack(Message, frozen=True):
    """These attempts were leased to the node and have not begun: they run elsewhere. The answer to Recall has
    fewer than were asked for, or none, when the others have begun."""

    node: str
    incarnation: str
    attempts: tuple[str, ...]


class Goodbye(Message, frozen=True):
    """The node ends now, and does not come back as it was."""

    node: str
    incarnation: str


class SendPart(Message, frozen=True):
    """Read a staged part of the output from `offset` on and send it as `PartChunk`s under this stream's
    number, as far as its credit reaches: `credit_bytes` now, and more with each `PartCredit`."""

    stream: int
    job: str
    staged_as: str
    credit_bytes: int
    offset: int = 0


class PartCredit(Message, frozen=True):
    stream: int
    credit_bytes: int


class DropPart(Message, frozen=True):
    """Nobody wants the rest of this stream."""

    stream: int


class PartChunk(Message, frozen=True):
    """The next bytes of a part, in order; `last` with its end."""

    node: str
    stream: int
    data: bytes
    last: bool


class PartUnread(Message, frozen=True):
    """The part cannot be read: the stream ends."""

    node: str
    stream: int
    error: ErrorReport


class CannotServe(Message, frozen=True):
    """The node cannot run this job at all: it lacks a package, or cannot take in its files. What it was
    leased of the job has not begun."""

    node: str
    incarnation: str
    job: str
    error: ErrorReport


class FetchBlob(Message, frozen=True):
    """Send a file of the job's bundle. Answered with `BlobChunk`s in order, as far as the credit reaches."""

    node: str
    job: str
    sha256: str
    credit_bytes: int


class BlobTaken(Message, frozen=True):
    """So many more bytes of the blob may come."""

    node: str
    job: str
    sha256: str
    credit_bytes: int


class BlobChunk(Message, frozen=True):
    job: str
    sha256: str
    data: bytes
    last: bool


class BlobLost(Message, frozen=True):
    """The blob cannot be had: the stream ends."""

    job: str
    sha256: str
    error: ErrorReport


class ListData(Message, frozen=True):
    """Which files do these data names stand for below your data roots? Answered with `DataListed`."""

    job: str
    names: tuple[str, ...]
    full: bool
    """Fingerprints are of whole files."""


class DataListed(Message, frozen=True):
    node: str
    job: str
    found: DataFiles = ()
    """For each name."""
    error: ErrorReport | None = None
    """What kept the node from looking."""


class FindInput(Message, frozen=True):
    """Which of the job's files do you have below your data roots? A file's id is its place. Answered with
    `InputFound`; from then on the node serves them, until the job's end."""

    job: str
    files: tuple[ClientFile, ...]
    full: bool


class InputFound(Message, frozen=True):
    node: str
    job: str
    held: bytes
    """A bit for each file, the first is the lowest of the first byte: this node has the same."""


class InputHolders(Message, frozen=True):
    """Who has the job's files: sent before a task that may read some from afar, and again when it has
    changed.

    `sets` are of numbers in `nodes`; `set_of` has, for each file, the number of its set, in four bytes,
    little-endian.
    """

    job: str
    nodes: tuple[OutputNode, ...]
    sets: tuple[tuple[int, ...], ...]
    set_of: bytes
    client_files: int
    """The first so many are the client's, which has them as well."""


class NodeReads(Message, frozen=True):
    """Ask the job's client for it."""

    node: str
    asked: ReadInput


class SendLogs(Message, frozen=True):
    """Answer with a `NodeLog` of this request."""

    request: int
    job: str


class NodeLog(Message, frozen=True):
    """The end of what a job's code wrote at a node; "" for nothing."""

    node: str
    request: int
    text: str


class Examine(Message, frozen=True):
    """Look at your machine, and try the ports of these nodes. Answered with `Examined`."""

    request: int
    others: tuple[OutputNode, ...]


class PortClosed(msgspec.Struct, frozen=True):
    """A node's port that another could not connect to."""

    node: str
    address: str
    why: str


class Examined(Message, frozen=True):
    node: str
    request: int
    now: float
    """Seconds since 1970, when this was sent."""
    report: MachineReport | None
    closed: tuple[PortClosed, ...]
    error: str = ""
    """Why there is no report."""


class ShutDown(Message, frozen=True):
    """The cluster ends, or the node is drained: kill what runs, remove what was spilled, end."""


ToNode = Union[  # noqa: UP007
    StartJob,
    JobPlanned,
    MapLocations,
    FetchAhead,
    Lease,
    Revoke,
    Recall,
    ReportsKept,
    EndJob,
    DropMapOutputs,
    SendPart,
    PartCredit,
    DropPart,
    BlobChunk,
    BlobLost,
    InputBytes,
    InputUnread,
    ListData,
    FindInput,
    InputHolders,
    SendLogs,
    Drain,
    OpenPut,
    KeepPart,
    NameParts,
    EndPut,
    FunctionCode,
    ForgetFunctions,
    RunCells,
    DropCells,
    ChildrenDone,
    CellsTaken,
    EndServing,
    ShutDown,
]
FromNode = Union[  # noqa: UP007
    NodeHello,
    AttemptFinished,
    AttemptFailed,
    Heartbeat,
    CannotServe,
    GivenBack,
    Goodbye,
    PartChunk,
    PartUnread,
    FetchBlob,
    BlobTaken,
    NodeReads,
    DataListed,
    InputFound,
    NodeLog,
    PutOpened,
    PartStored,
    PartsNamed,
    WorkerSaid,
    WorkerHolds,
]

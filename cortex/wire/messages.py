"""Every message between processes, as msgspec structs: decoding one is checking it.

The links: client - server, server - node, node - executor, node - node. A frame holds one message of
the link's union (see `cortex.wire.framing`; for who may send what to the server, see
`cortex.wire.permissions`). User code and results are opaque bytes on the way.
"""

from __future__ import annotations

from typing import Annotated, Union

import msgspec

from cortex.errors import ErrorReport
from cortex.ids import Role
from cortex.job.bundle import NO_BUNDLE, Bundle, Package
from cortex.job.output_types import OutputTypes
from cortex.job.plan import ClientFiles, InputPlan, Split
from cortex.job.spec import JobSpec
from cortex.limits import INPUT_FIND_BYTES, INPUT_READ_BYTES, PROGRESS_S


class Message(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Base: the class's name is the tag on the wire. Plain data, so the garbage collector need not look for
    cycles through it: a server holds tens of thousands, and would stand still for it."""


Counters = dict[str, dict[str, int]]
"""group -> name -> count."""


# --- tasks: what an executor can be asked to do, and what it answers -----------------------------


class PlanTask(Message, frozen=True):
    """Find the input files, their columns and splits."""

    client_files: ClientFiles = ()
    """What the job's client has found of them."""


class ScanTask(Message, frozen=True):
    """Quote states at the ends of consecutive splits of one file.

    `boundaries` are n + 1 offsets. With `start_state` UNKNOWN only the cheap hypotheses are tried.
    """

    file: int
    boundaries: tuple[int, ...]
    start_state: int


class MapTask(Message, frozen=True):
    map_index: int
    splits: tuple[Split, ...]


class MapBlock(msgspec.Struct, frozen=True, array_like=True, gc=False):  # a table may have thousands
    """Where the outputs of neighbouring maps are, from map `first` on."""

    first: int
    runs: tuple[int, ...]
    """Pairs, in map order: so many maps next to each other, and the number of the node that has their
    outputs (see `MapLocations`)."""
    redone: dict[int, int] = {}
    """Map -> number of the attempt that made its output, where that is not 0."""


class ReduceTask(Message, frozen=True):
    """`spans` are pairs: the first of some neighbouring maps, and the one behind the last.

    They name the inputs in map order: values reach the reducer in it. Every map with rows for the
    partition is among them, and some that have none may be.
    """

    partition: int
    spans: tuple[int, ...] = ()
    inputs: tuple[MapBlock, ...] = ()
    """Empty from the server; filled in by the node, from the job's MapLocations."""
    version: int = 0
    """Of the job's map outputs, as it was leased: a later life of the server asks for it."""


Task = Union[PlanTask, ScanTask, MapTask, ReduceTask]  # noqa: UP007 (msgspec reads it at run time)


class PlanResult(Message, frozen=True):
    plan: InputPlan


class ScanResult(Message, frozen=True):
    """`ends[i][s]`: state at boundaries[i + 1] if the state at boundaries[i] is s (OUT, IN, CLOSED);
    UNKNOWN where only a scan with a known start can tell."""

    ends: tuple[tuple[int, int, int], ...]


PartName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=200)]
"""A node says it, and a client makes a file of it: no way out of a folder."""


class OutputPart(Message, frozen=True):
    """A finished, fsynced file in the job's staging folder, not yet visible to the user."""

    name: PartName
    """File name as it will be in the output folder, such as ``part-00003.csv``."""
    staged_as: PartName
    """File name in the staging folder: the attempt's own."""
    rows: int
    size_bytes: int
    columns: tuple[tuple[str, str], ...]
    """(name, Arrow type name)."""
    node: str = ""
    """The node that has it; "" where it lies in the client's own staging folder."""


class TaskStats(Message, frozen=True):
    rows_in: int = 0
    bytes_in: int = 0
    rows_out: int = 0
    bytes_out: int = 0
    spilled_bytes: int = 0
    shuffled_bytes: int = 0
    groups: int = 0


class MapResult(Message, frozen=True):
    map_index: int
    stats: TaskStats
    partition_rows: tuple[int, ...] = ()
    """Rows in the run file for each partition; () for a map-only job."""
    row_checksum: int = 0
    """Order-independent sum of row hashes, modulo 2**64."""
    parts: tuple[OutputPart, ...] = ()
    counters: Counters = {}
    types: OutputTypes = OutputTypes()
    """Of the rows in the run file, or in the parts."""


class ReduceResult(Message, frozen=True):
    partition: int
    stats: TaskStats
    parts: tuple[OutputPart, ...] = ()
    counters: Counters = {}
    types: OutputTypes = OutputTypes()


Result = Union[PlanResult, ScanResult, MapResult, ReduceResult]  # noqa: UP007


# --- node - executor -----------------------------------------------------------------------------


class OpenJob(Message, frozen=True):
    """First message an executor gets. `code` is a cloudpickle of the user's job object, or empty."""

    job: str
    spec: JobSpec
    code: bytes
    sys_path: tuple[str, ...]
    work_dir: str
    """The job's folder for run files on this node; exists, mode 0700."""
    staging_dir: str
    """Where output parts are written, on the output's filesystem; exists."""
    memory_bytes: int
    """What one executor may use: its whole anonymous memory, base included."""
    bundle_dir: str = ""
    """Where the job's side files and modules are laid out, in folders ``file`` and ``module``."""
    files: tuple[str, ...] = ()
    """Names of side files and of the folders they are in."""
    input_socket: str = ""
    """The node's unix socket for bytes of the client's files; "" on one machine, where all are at hand."""
    packages: tuple[Package, ...] = ()
    """What the code imports, in the versions of the client."""


class JobPlanned(Message, frozen=True):
    """The plan, without splits (each map brings its own): sent before the first scan or map."""

    job: str
    plan: InputPlan


class RunTask(Message, frozen=True):
    attempt: str
    task: Task


class Stop(Message, frozen=True):
    """End after the current task."""


class ExecutorHello(Message, frozen=True):
    executor: int
    pid: int


class Retiring(Message, frozen=True):
    """The executor's last word: it wants to be replaced. A task sent to it meanwhile is not begun."""


class TaskProgress(Message, frozen=True):
    attempt: str
    stats: TaskStats


class TaskFinished(Message, frozen=True):
    attempt: str
    result: Result
    seconds: float
    peak_bytes: int


class TaskFailed(Message, frozen=True):
    attempt: str
    error: ErrorReport
    seconds: float
    peak_bytes: int


ToExecutor = Union[OpenJob, JobPlanned, RunTask, Stop]  # noqa: UP007
FromExecutor = Union[ExecutorHello, Retiring, TaskProgress, TaskFinished, TaskFailed]  # noqa: UP007


# --- executor - node - server - client: bytes of the client's own input files ----------------------


class ReadInput(Message, frozen=True):
    """`length` bytes of a client's file from `offset` on. Answered with `InputBytes` (fewer only where the
    file ends) or `InputUnread`. None: only see that it is still the file that the job began with, and, with
    `find`, how far from `offset` on that byte does not occur, within `find_bytes`.

    A read stands for itself: whoever passes it on numbers it anew, and asks again where the way was cut.
    """

    read: int
    """The asker's number, which the answer repeats."""
    job: str
    file: int
    """The id of a `ClientFile`: nobody is sent a path to open."""
    offset: Annotated[int, msgspec.Meta(ge=0)]
    length: Annotated[int, msgspec.Meta(ge=0, le=INPUT_READ_BYTES)]
    find: Annotated[bytes, msgspec.Meta(max_length=1)] = b""
    find_bytes: Annotated[int, msgspec.Meta(ge=0, le=INPUT_FIND_BYTES)] = 0


class InputBytes(Message, frozen=True):
    read: int
    data: bytes
    without: int = 0
    """Of a read that was to `find` a byte: there is none in so many."""


class InputUnread(Message, frozen=True):
    """Asking again is of no use."""

    read: int
    error: ErrorReport


class InputHello(Message, frozen=True):
    """An executor's first message on the socket for input."""

    job: str


ToInputDoor = Union[InputHello, ReadInput]  # noqa: UP007
FromInputDoor = Union[InputBytes, InputUnread]  # noqa: UP007


# --- server - node -------------------------------------------------------------------------------


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
    """Work granted to a node, kept by its heartbeats."""

    tasks: tuple[RunTask, ...]


class Revoke(Message, frozen=True):
    """Stop these attempts (kill what runs them) and report nothing more of them."""

    attempts: tuple[str, ...]


class ReportsKept(Message, frozen=True):
    """The ends of these attempts are in the server's journal, or not wanted: they need not be told again."""

    attempts: tuple[str, ...]


class EndJob(Message, frozen=True):
    """The job failed, or its client has the result: drop its executors and its run files."""

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


class ShutDown(Message, frozen=True):
    """An admin ends the cluster: kill what runs, remove what was spilled, end."""


ToNode = Union[  # noqa: UP007
    StartJob,
    JobPlanned,
    MapLocations,
    FetchAhead,
    Lease,
    Revoke,
    ReportsKept,
    EndJob,
    SendPart,
    PartCredit,
    DropPart,
    BlobChunk,
    BlobLost,
    InputBytes,
    InputUnread,
    SendLogs,
    ShutDown,
]
FromNode = Union[  # noqa: UP007
    NodeHello,
    AttemptFinished,
    AttemptFailed,
    Heartbeat,
    CannotServe,
    PartChunk,
    PartUnread,
    FetchBlob,
    BlobTaken,
    NodeReads,
    NodeLog,
]


# --- client - server -----------------------------------------------------------------------------


class ClientHello(Message, frozen=True):
    versions: dict[str, str]


class ServerHello(Message, frozen=True):
    versions: dict[str, str]
    slots: int
    memory_bytes: int


class OfferBlobs(Message, frozen=True):
    """Before a job with a bundle: SHA-256 -> bytes of every blob in it. Answered with `BlobsWanted`."""

    blobs: dict[str, int]


class BlobsWanted(Message, frozen=True):
    """Send these, one after the other, as far as the credit reaches; the others are here."""

    blobs: tuple[str, ...]
    credit_bytes: int


class PutBlob(Message, frozen=True):
    """The next bytes of a blob, in order; `last` with its end."""

    sha256: str
    data: bytes
    last: bool


class BlobsTaken(Message, frozen=True):
    """So many more bytes may come; `stored` when every blob that was wanted is here."""

    credit_bytes: int
    stored: bool


class SubmitJob(Message, frozen=True):
    """`staging_dir`: a folder the client made, on the output's filesystem, where parts are written. The
    blobs of `bundle` were stored on this connection."""

    spec: JobSpec
    code: bytes
    sys_path: tuple[str, ...]
    staging_dir: str
    bundle: Bundle = NO_BUNDLE
    client_files: ClientFiles = ()
    """The input files that the client has; it sends what the nodes read of them, until the job's end."""


class JobAccepted(Message, frozen=True):
    job: str


class StageProgress(Message, frozen=True):
    """`stage` is plan, scan, map or reduce; `bytes_total` is 0 while unknown."""

    stage: str
    tasks_done: int
    tasks_total: int
    tasks_running: int
    bytes_done: int
    bytes_total: int
    rows_in: int
    rows_out: int
    seconds: float


class JobProgress(Message, frozen=True):
    job: str
    stages: tuple[StageProgress, ...]
    spilled_bytes: int
    memory_bytes: int
    memory_peak_bytes: int
    memory_cap_bytes: int
    slots: int = -1
    """Of all nodes; 0: there is none that could run anything. -1: not said."""


class TaskSummary(Message, frozen=True):
    attempt: str
    seconds: float
    what: str
    """What it worked on: file and offset, or the partition."""


class JobReport(Message, frozen=True):
    """What a finished (or failed) job did."""

    job: str
    name: str
    seconds: float
    stages: tuple[StageProgress, ...] = ()
    rows_in: int = 0
    bytes_in: int = 0
    rows_out: int = 0
    bytes_out: int = 0
    groups: int = 0
    spilled_bytes: int = 0
    shuffled_bytes: int = 0
    memory_peak_bytes: int = 0
    memory_cap_bytes: int = 0
    slots: int = 0
    failed_attempts: int = 0
    slowest: TaskSummary | None = None
    counters: Counters = {}
    notes: tuple[str, ...] = ()


class JobDone(Message, frozen=True):
    """Every part is staged and fsynced: the client commits them, then says JobReceived. Until then nodes keep
    what they have of the job. Parts are in output order. It comes again when some were lost with a node
    before the client had them, and have been made anew."""

    job: str
    report: JobReport
    parts: tuple[OutputPart, ...]


class JobFailed(Message, frozen=True):
    job: str
    error: ErrorReport
    report: JobReport


class AttachJob(Message, frozen=True):
    """From another connection than the one that submitted it, after a lost link: this client follows its job
    from now on. Answered with JobAccepted, and then with the job's end, if it has ended."""

    job: str


class CancelJob(Message, frozen=True):
    job: str


class GetStatus(Message, frozen=True):
    """What the cluster is doing now."""


class GetLogs(Message, frozen=True):
    """What the code of a job of mine wrote (an admin: of any). Answered with `JobLogs`."""

    job: str


class JobLogs(Message, frozen=True):
    job: str
    logs: tuple[NodeLog, ...]
    """Of nodes where it wrote something."""


class NodeStatus(msgspec.Struct, frozen=True):
    """A node as the server sees it. `silent`: its leases have expired, but its link is still there."""

    node: str
    data_address: str
    slots: int
    running: int
    memory_bytes: int
    memory_cap_bytes: int
    disk_free_bytes: int
    heard_s: float
    """Seconds since it was last heard."""
    silent: bool


class JobStatus(msgspec.Struct, frozen=True):
    """A job under way, or one that has ended (`state` done, failed or cancelled)."""

    job: str
    name: str
    state: str
    owner: str
    """The id of the client that submitted it."""
    seconds: float
    stages: tuple[StageProgress, ...] = ()
    error: str = ""


class ClusterStatus(Message, frozen=True):
    cluster: str
    nodes: tuple[NodeStatus, ...]
    jobs: tuple[JobStatus, ...]


class JobReceived(Message, frozen=True):
    """The client has committed (or given up) the output: server and nodes forget the job. A cluster's server
    answers JobForgotten when it has that in its journal."""

    job: str


class JobForgotten(Message, frozen=True):
    job: str


class FetchPart(Message, frozen=True):
    """Of a job that is done: send this part, which lies on a node, from `offset` on. Answered with
    `PartBytes` in order, as far as the credit reaches, or with `PartLost`."""

    job: str
    staged_as: str
    credit_bytes: int
    offset: int = 0


class PartTaken(Message, frozen=True):
    """So many more bytes of the part may come."""

    job: str
    staged_as: str
    credit_bytes: int


class PartBytes(Message, frozen=True):
    job: str
    staged_as: str
    data: bytes
    last: bool


class PartLost(Message, frozen=True):
    """The part is gone with its node: the job goes on, and another JobDone (or JobFailed) follows."""

    job: str
    staged_as: str
    error: ErrorReport


class Refused(Message, frozen=True):
    """The request cannot be served; the connection is closed after it."""

    error: ErrorReport


ToServer = Union[  # noqa: UP007
    ClientHello,
    OfferBlobs,
    PutBlob,
    SubmitJob,
    AttachJob,
    CancelJob,
    GetLogs,
    JobReceived,
    FetchPart,
    PartTaken,
    GetStatus,
    InputBytes,
    InputUnread,
]
FromServer = Union[  # noqa: UP007
    ServerHello,
    BlobsWanted,
    BlobsTaken,
    JobAccepted,
    JobProgress,
    JobDone,
    JobFailed,
    JobLogs,
    JobForgotten,
    PartBytes,
    PartLost,
    ClusterStatus,
    ReadInput,
    Refused,
]


# --- newcomer - server, and certificates ----------------------------------------------------------


class Join(Message, frozen=True):
    """The only message of a peer without certificate. `csr_der` is a certificate signing request, of
    which only the key is used; `proof` is `cortex.wire.join.make_proof`."""

    token_id: str
    csr_der: bytes
    proof: bytes
    versions: dict[str, str]


class Joined(Message, frozen=True):
    """The newcomer is `id`, in the role of its token. The connection is closed after it."""

    certificate_der: bytes
    ca_der: bytes
    id: str
    cluster: str


class RenewCertificate(Message, frozen=True):
    """Another certificate, please, for the sender and the key of this request."""

    csr_der: bytes


class CertificateRenewed(Message, frozen=True):
    certificate_der: bytes


class PeersRevoked(Message, frozen=True):
    """To a node, after its hello and whenever there is another: it serves none of these. All of them."""

    peers: tuple[str, ...]


ToServerJoin = Join
FromServerJoin = Union[Joined, Refused]  # noqa: UP007


# --- admin - server -------------------------------------------------------------------------------


class CreateToken(Message, frozen=True):
    role: Role
    life_s: float
    uses_max: int


class TokenCreated(Message, frozen=True):
    """`join_line` holds the token's secret: it is shown to the admin, and kept by nobody."""

    token_id: str
    join_line: str


class ListTokens(Message, frozen=True):
    """Tokens that have not ended, and those that have."""


class TokenInfo(Message, frozen=True):
    """A token without its secret. Times are seconds since 1970; `revoked_at` 0: it was not."""

    token_id: str
    role: Role
    created_at: float
    expires_at: float
    uses: int
    uses_max: int
    revoked_at: float


class TokenList(Message, frozen=True):
    tokens: tuple[TokenInfo, ...]


class RevokeToken(Message, frozen=True):
    """Nobody joins with it any more; who has joined stays."""

    token_id: str


class RevokePeer(Message, frozen=True):
    """The process of this id is out: its connections are closed, its certificates count for nothing."""

    peer: str


class KillCluster(Message, frozen=True):
    """End every node, and the server after them."""


class AdminDone(Message, frozen=True):
    """It is done, and durable."""


ToServerAdmin = Union[CreateToken, ListTokens, RevokeToken, RevokePeer, KillCluster]  # noqa: UP007
FromServerAdmin = Union[TokenCreated, TokenList, AdminDone]  # noqa: UP007


# --- node - node: segments of map outputs ----------------------------------------------------------


class FetchSegment(Message, frozen=True):
    """Ask a node for one partition of a map attempt that it ran. Answered in order, one by one."""

    request: int
    """The asker's number, which the answer repeats."""
    job: str
    attempt: str
    partition: int


class SegmentHeader(Message, frozen=True):
    """Behind this frame come exactly `size_bytes` bytes that are no frames: the segment file.

    A sender that finds a damaged block when some are already sent closes the connection instead of
    sending the rest, and refuses the segment when it is asked for again.
    """

    request: int
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    rows: int


class SegmentRefused(Message, frozen=True):
    """With an error of fault LOST the segment is gone or damaged, and asking again is of no use."""

    request: int
    error: ErrorReport


ToSegmentServer = FetchSegment
FromSegmentServer = Union[SegmentHeader, SegmentRefused]  # noqa: UP007


# --- node - template -----------------------------------------------------------------------------


class ForkExecutor(Message, frozen=True):
    """Start executor number `executor` (new for every executor of this template).

    It dials the unix socket at `socket_path`; its standard output and error go to `stderr_path`.
    """

    executor: int
    socket_path: str
    stderr_path: str


class SignalExecutor(Message, frozen=True):
    """Send a signal. Only the template knows for sure that a pid has not been reaped and reused."""

    executor: int
    signal: int


class TemplateReady(Message, frozen=True):
    """The imports are done: fork requests sent before it are served now."""

    pid: int
    single_threaded: bool
    """False: fork is not safe, executors are spawned afresh."""


class ExecutorForked(Message, frozen=True):
    executor: int
    pid: int


class ExecutorExited(Message, frozen=True):
    """`signal` is 0 and `status` the exit status, or `signal` killed it. `max_rss_bytes` is the
    kernel's count and includes file pages."""

    executor: int
    pid: int
    signal: int
    status: int
    max_rss_bytes: int


ToTemplate = Union[ForkExecutor, SignalExecutor]  # noqa: UP007
FromTemplate = Union[TemplateReady, ExecutorForked, ExecutorExited]  # noqa: UP007


# --- client - the child process with server and node ---------------------------------------------


class EmbeddedSetup(Message, frozen=True):
    """What the session is to be: the first and only message on the child's standard input.

    The client names the two folders (which the child makes and removes), so that it can remove them
    wherever in its work the child was killed. 0 `memory_bytes` or `slots`: what the machine has.
    """

    memory_bytes: int
    slots: int
    runtime_dir: str
    work_dir: str
    task_silence_s_max: float


class EmbeddedReady(Message, frozen=True):
    """Server and node answer at `socket_path`."""

    socket_path: str
    runtime_dir: str
    work_dir: str
    slots: int
    memory_bytes: int


FromEmbedded = Union[EmbeddedReady, Refused]  # noqa: UP007

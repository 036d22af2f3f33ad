"""Client - server."""

from __future__ import annotations

from typing import Annotated, Union

import msgspec

from cortex.errors import ErrorReport
from cortex.ids import JOB_ID_OR_NONE
from cortex.job.bundle import NO_BUNDLE, Bundle
from cortex.job.plan import ClientFiles, InputPlan
from cortex.job.spec import JobSpec
from cortex.limits import RESULTS_S_MAX
from cortex.machine_report import MachineReport
from cortex.wire.messages.base import Counters, Message, Refused
from cortex.wire.messages.compute import (
    CallPrinted,
    CellsDone,
    CellsTaken,
    DropCells,
    EndCalls,
    ForgetFunctions,
    FunctionCode,
    SendCells,
)
from cortex.wire.messages.inputs import InputBytes, InputUnread, ReadInput
from cortex.wire.messages.node import NodeLog, PortClosed
from cortex.wire.messages.puts import BeginPut, FinishPut, OfferPart, PartGone, PartKept, PutBegun, PutDone
from cortex.wire.messages.tasks import OutputPart


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
    blobs of `bundle` were stored on this connection.

    A client that chose the job's id may send the same again over another connection when the answer did not
    come: the job is taken once.
    """

    spec: JobSpec
    code: bytes
    sys_path: tuple[str, ...]
    staging_dir: str
    bundle: Bundle = NO_BUNDLE
    client_files: ClientFiles = ()
    """The input files that the client has; it sends what the nodes read of them, until the job's end."""
    job: Annotated[str, msgspec.Meta(pattern=JOB_ID_OR_NONE)] = ""
    """"": the server gives it one."""
    keep_s: Annotated[float, msgspec.Meta(ge=0, le=RESULTS_S_MAX)] = 0.0
    """More than 0: the job is detached. It goes on without its client, who sends none of its files, and its
    result is kept for so long, for whoever may fetch it."""
    plan_only: bool = False
    """The job is done when it is planned: `PlanMade` comes before its JobDone."""

    @property
    def detached(self) -> bool:
        return self.keep_s > 0


class JobAccepted(Message, frozen=True):
    job: str


class StageProgress(Message, frozen=True):
    """`stage` is plan, scan, map, reduce, commit or calls; `bytes_total` is 0 while unknown.

    Of calls, `rows_out` is how many are done, `rows_in` how many of these have failed."""

    stage: str
    tasks_done: int
    tasks_total: int
    tasks_running: int
    bytes_done: int
    bytes_total: int
    rows_in: int
    rows_out: int
    seconds: float
    open_ended: bool = False
    """Of calls: more may come, nobody knows how many."""


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


class Locality(msgspec.Struct, frozen=True):
    """Where the input of finished maps was read from. A map that read of several places is the farthest's."""

    local_maps: int = 0
    """On the node that ran them."""
    local_bytes: int = 0
    streamed_maps: int = 0
    """From another node that has the file."""
    streamed_bytes: int = 0
    client_maps: int = 0
    """From the job's client."""
    client_bytes: int = 0


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
    locality: Locality = Locality()


class JobDone(Message, frozen=True):
    """Every part is staged and fsynced: the client commits them, then says JobReceived. Until then nodes keep
    what they have of the job. Parts are in output order. It comes again when some were lost with a node
    before the client had them, and have been made anew."""

    job: str
    report: JobReport
    parts: tuple[OutputPart, ...]
    expires_at: float = 0.0
    """Of a detached job: until when its result is kept, in seconds since 1970."""


class JobFailed(Message, frozen=True):
    """`expires_at`: of a detached job, until when this answer is kept for whoever asks."""

    job: str
    error: ErrorReport
    report: JobReport
    expires_at: float = 0.0


class PlanMade(Message, frozen=True):
    """The plan of a job that is no more than its plan."""

    job: str
    plan: InputPlan
    sets: tuple[tuple[str, ...], ...]
    """Nodes that have the same files."""
    set_of: tuple[int, ...]
    """For each file of the plan, the number of the set that has it."""
    client_has: str
    """For each file of the plan "1" if the client has it, else "0"."""


class AttachJob(Message, frozen=True):
    """From another connection than the one that submitted it, after a lost link: this client follows its job
    from now on. Answered with JobAccepted, and then with the job's end, if it has ended."""

    job: str


class FollowJob(Message, frozen=True):
    """Tell me of a job of mine (an admin: of any) from now on. Answered with `JobFollowed`, then as its own
    client is: progress, and the end, if it has ended at once. The parts of a detached one may be fetched
    over this connection. Several may follow, and each may leave at any time."""

    job: str


class JobFollowed(Message, frozen=True):
    job: str
    detached: bool
    spec: JobSpec | None
    """None: of a job that has failed only its end is left."""


class ForgetResult(Message, frozen=True):
    """Drop what is kept of a detached job of mine (an admin: of any) that has ended. Answered with
    `JobForgotten`, which whoever is following it hears as well."""

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


class GetDiagnosis(Message, frozen=True):
    """What server and nodes say of their machines and ports, now. Answered with `Diagnosis`."""


class NodeDiagnosis(msgspec.Struct, frozen=True):
    node: str
    data_address: str
    report: MachineReport | None = None
    clock_ahead_s: float = 0.0
    """Of the server's."""
    closed: tuple[PortClosed, ...] = ()
    """Ports of other nodes that it cannot connect to."""
    error: str = ""
    """Why there is no report."""


class Diagnosis(Message, frozen=True):
    now: float
    """Seconds since 1970 at the server."""
    server: MachineReport
    nodes: tuple[NodeDiagnosis, ...]
    ports: tuple[int, ...]
    """Those that the server means to listen on."""


class NodeStatus(msgspec.Struct, frozen=True):
    """A node as the server sees it. `silent`: its leases have expired, but its link is still there.

    `state`: up, full (it had no room to spill, and rests for a while), silent, away (its link has ended a
    moment ago), expected (it was there in an earlier life of the server, which knows no more of it yet),
    draining, or leaving (the time of its drain is over).
    """

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
    state: str = "up"
    host: str = ""
    versions: dict[str, str] = {}
    certificate_expires_at: float = 0.0
    """Seconds since 1970; 0 where there is none, or the node is not connected."""
    spill_bytes: int = -1
    spill_limit_bytes: int = -1
    """See Heartbeat."""
    waits_for: tuple[str, ...] = ()
    """Of a node that is draining: what it is still needed for."""
    leaves_in_s: float = -1.0
    """Of a node that is draining: until what it runs is given up. Of one that is expected: until it is."""
    data_roots: int = 0


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
    locality: Locality = Locality()
    priority: int = 0
    slots: int = 0
    """That it has now."""
    slots_wanted: int = 0
    """That it has or could use now, by its tasks that could run."""
    kept_until: float = 0.0
    """Of a detached job that is done: when its result expires, in seconds since 1970; 0: it has none."""


class ClusterStatus(Message, frozen=True):
    cluster: str
    nodes: tuple[NodeStatus, ...]
    jobs: tuple[JobStatus, ...]
    expected: tuple[NodeStatus, ...] = ()
    """Nodes of an earlier life of the server that are not back yet: little more is known than their names."""


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


ToServer = Union[  # noqa: UP007
    ClientHello,
    OfferBlobs,
    PutBlob,
    SubmitJob,
    AttachJob,
    FollowJob,
    ForgetResult,
    CancelJob,
    GetLogs,
    JobReceived,
    FetchPart,
    PartTaken,
    GetStatus,
    InputBytes,
    InputUnread,
    BeginPut,
    OfferPart,
    FinishPut,
    FunctionCode,
    ForgetFunctions,
    SendCells,
    DropCells,
    CellsTaken,
    EndCalls,
]
FromServer = Union[  # noqa: UP007
    ServerHello,
    BlobsWanted,
    BlobsTaken,
    JobAccepted,
    JobFollowed,
    JobProgress,
    PlanMade,
    JobDone,
    JobFailed,
    JobLogs,
    JobForgotten,
    PartBytes,
    PartLost,
    ClusterStatus,
    ReadInput,
    PutBegun,
    PartKept,
    PartGone,
    PutDone,
    CellsDone,
    CallPrinted,
    Refused,
]

"""Node - executor, and node - template."""

from __future__ import annotations

from typing import Union

from cortex.errors import ErrorReport
from cortex.job.bundle import Package
from cortex.job.plan import InputPlan
from cortex.job.spec import JobSpec
from cortex.wire.messages.base import Message
from cortex.wire.messages.compute import (
    ChildrenDone,
    DropCells,
    EndServing,
    ForgetFunctions,
    FromWorker,
    FunctionCode,
    RunCells,
)
from cortex.wire.messages.tasks import Result, Task, TaskStats


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
    """The node's unix socket for bytes of files that are elsewhere; "" on one machine, where all are at
    hand."""
    packages: tuple[Package, ...] = ()
    """What the code imports, in the versions of the client."""
    spill_account: str = ""
    """Path of the node's account of what may be spilled, parts of results included; "" on one machine."""
    has_data_roots: bool = False
    """The node says of each file whether it has it; else what lies at the client's path may be the same."""


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


ToWorker = Union[  # noqa: UP007
    FunctionCode, ForgetFunctions, RunCells, DropCells, ChildrenDone, EndServing
]
ToExecutor = Union[OpenJob, JobPlanned, RunTask, Stop, ToWorker]  # noqa: UP007
FromExecutor = Union[  # noqa: UP007
    ExecutorHello, Retiring, TaskProgress, TaskFinished, TaskFailed, FromWorker
]


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

"""Every message between processes, as msgspec structs: decoding one is checking it.

Three links: client - server, server - node, node - executor. A frame holds one message of the
link's union (see `cortex.wire.framing`). User code and results are opaque bytes on the way.
"""

from __future__ import annotations

from typing import Union

import msgspec

from cortex.errors import ErrorReport
from cortex.job.plan import InputPlan, Split
from cortex.job.spec import JobSpec


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base: the class's name is the tag on the wire."""


Counters = dict[str, dict[str, int]]
"""group -> name -> count."""


# --- tasks: what an executor can be asked to do, and what it answers -----------------------------


class PlanTask(Message, frozen=True):
    """Find the input files, their columns and splits."""


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


class MapOutputRef(Message, frozen=True):
    """The committed run file of one map, held by the node that made it."""

    map_index: int
    attempt: str


class ReduceTask(Message, frozen=True):
    partition: int
    inputs: tuple[MapOutputRef, ...]
    """In map order: values reach the reducer in it."""


Task = Union[PlanTask, ScanTask, MapTask, ReduceTask]  # noqa: UP007 (msgspec reads it at run time)


class PlanResult(Message, frozen=True):
    plan: InputPlan


class ScanResult(Message, frozen=True):
    """`ends[i][s]`: state at boundaries[i + 1] if the state at boundaries[i] is s (OUT, IN, CLOSED);
    UNKNOWN where only a scan with a known start can tell."""

    ends: tuple[tuple[int, int, int], ...]


class OutputPart(Message, frozen=True):
    """A finished, fsynced file in the job's staging folder, not yet visible to the user."""

    name: str
    """File name as it will be in the output folder, such as ``part-00003.csv``."""
    staged_as: str
    """File name in the staging folder: the attempt's own."""
    rows: int
    size_bytes: int
    columns: tuple[tuple[str, str], ...]
    """(name, Arrow type name)."""


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


class ReduceResult(Message, frozen=True):
    partition: int
    stats: TaskStats
    parts: tuple[OutputPart, ...] = ()
    counters: Counters = {}


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
FromExecutor = Union[ExecutorHello, TaskProgress, TaskFinished, TaskFailed]  # noqa: UP007

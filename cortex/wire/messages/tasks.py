"""What an executor can be asked to do, and what it answers."""

from __future__ import annotations

from typing import Annotated, Union

import msgspec

from cortex.job.output_types import OutputTypes
from cortex.job.plan import ClientFiles, DataFiles, InputPlan, Split
from cortex.wire.messages.base import Counters, Message


class PlanTask(Message, frozen=True):
    """Find the input files, their columns and splits."""

    client_files: ClientFiles = ()
    """What the job's client has found of them."""
    data_files: DataFiles = ()
    """What nodes have found of them."""
    detached: bool = False
    """The client does not stay: a file that only it has is an error."""


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


class CommitTask(Message, frozen=True):
    """Of an output on a path that all nodes share: these parts, which lie there, are it, in this order."""

    parts: tuple[OutputPart, ...]


class CombineTask(Message, frozen=True):
    """A node's own, which no server leases: merge the outputs of these map attempts, which lie here, into one
    file under the attempt's name. In map order."""

    members: tuple[str, ...]
    saving_min: float
    """The part of their bytes that must be saved, or the file is not kept."""


class ServeTask(Message, frozen=True):
    """Of a compute job: run the cells that are sent (`cortex.wire.messages.compute`), until EndServing."""


Task = Union[  # noqa: UP007 (msgspec reads it at run time)
    PlanTask, ScanTask, MapTask, ReduceTask, CommitTask, CombineTask, ServeTask
]


class PlanResult(Message, frozen=True):
    plan: InputPlan


class ScanResult(Message, frozen=True):
    """`ends[i][s]`: state at boundaries[i + 1] if the state at boundaries[i] is s (OUT, IN, CLOSED);
    UNKNOWN where only a scan with a known start can tell."""

    ends: tuple[tuple[int, int, int], ...]


class InputOrigin(Message, frozen=True):
    """Where the bytes of a map's input came from: its own node's disks, another node, the job's client."""

    local_bytes: int = 0
    node_bytes: int = 0
    client_bytes: int = 0


class TaskStats(Message, frozen=True):
    rows_in: int = 0
    bytes_in: int = 0
    """A reduce's: of the batches it read, before compression."""
    rows_out: int = 0
    bytes_out: int = 0
    """Of parts; a map's with reduces behind it: of the batches in its run file, before compression."""
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
    origin: InputOrigin = InputOrigin()


class ReduceResult(Message, frozen=True):
    partition: int
    stats: TaskStats
    parts: tuple[OutputPart, ...] = ()
    counters: Counters = {}
    types: OutputTypes = OutputTypes()


class CombineResult(Message, frozen=True):
    """With `neighbours_only` there is no file: these values may be joined in map order only, and the members
    were not next to each other."""

    bytes_in: int = 0
    """Of the members' files, as they are on the disk."""
    bytes_out: int = 0
    """Of the file made of them."""
    kept: bool = False
    neighbours_only: bool = False


class CommitResult(Message, frozen=True):
    """The output is in place, whole and durable."""


class ServeResult(Message, frozen=True):
    """A worker has ended in order, with nothing in hand."""

    calls: int = 0
    failed_calls: int = 0


Result = Union[  # noqa: UP007
    PlanResult, ScanResult, MapResult, ReduceResult, CommitResult, CombineResult, ServeResult
]

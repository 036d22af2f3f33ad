"""Calls of functions: client - server - node - executor.

A *cell* is a pickle of the arguments of 1 to n calls of one function, and what is retried as a whole or in
slices. Its submitter numbers it: the client, or a call that itself submits (then `source` is the attempt that
runs it). Server and node pass cells and results on, unopened. An executor that is bound to a compute job runs
one long attempt, a `ServeTask`; what is said to and by such an attempt (a *worker*) goes through its node:

    client                     server                      worker
      FunctionCode, SendCells ->   FunctionCode, RunCells ->
                              <-  CellsDone                <-  CellsRun, CellsGivenBack, CallPrinted
      CellsTaken              ->   CellsTaken (to the node, which keeps results until then)
      DropCells               ->   DropCells
      ForgetFunctions         ->   ForgetFunctions
                                  <- FunctionCode, ChildCells, ChildrenAwaited   of calls that submit calls
                                  ChildrenDone ->
      EndCalls                ->   EndServing ->  (TaskFinished)

Whoever submits holds its cells until their results are there, and sends them again to a server that may not
have them: a result may come twice, and counts once.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Union

import msgspec

from cortex.errors import ErrorReport
from cortex.limits import CELL_CALLS_MAX, CELL_INLINE_BYTES_MAX
from cortex.wire.messages.base import Message

FunctionId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
"""The first half of the SHA-256 of its code."""
FileName = Annotated[str, msgspec.Meta(pattern=r"\A([A-Za-z0-9][A-Za-z0-9._-]*)?\Z", max_length=200)]
"""A node says it, and others open and remove a file of it: no way out of a folder. "": none."""


class CallForm(IntEnum):
    """What a cell's pickled list holds for each call."""

    ONE = 0
    """x: f(x)"""
    STAR = 1
    """xs: f(*xs)"""
    FULL = 2
    """(args, kwargs): f(*args, **kwargs)"""


class Attached(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Data too large for a frame: a pickle and its out-of-band buffers, one behind the other, each begun at
    a multiple of ATTACHED_ALIGN_BYTES.

    Of a cell's arguments: on one machine the file `name` in the job's staging folder; on a cluster the
    client's input file of number `number` (`ReadInput`), which is read from the client's memory.
    Of results: the file `name` in the staging folder of the node that made it, which the client of a cluster
    fetches as a part (`FetchPart`). Whoever reads a result removes it (`CellsTaken`).
    """

    name: FileName
    sizes: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    """Bytes: of the pickle, then of each buffer."""
    number: int = -1


class Cell(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Calls [start, stop) of the `count` calls that the pickle is of."""

    cell: int
    """Its submitter's number, never used twice in a job."""
    function: FunctionId
    count: Annotated[int, msgspec.Meta(ge=1, le=CELL_CALLS_MAX)]
    form: CallForm
    data: Annotated[bytes, msgspec.Meta(max_length=CELL_INLINE_BYTES_MAX)]
    """Pickle (protocol 5) of a list of `count` entries; b"" when attached."""
    buffers: tuple[bytes, ...] = ()
    """Its out-of-band buffers, in order."""
    attached: Attached | None = None
    first: int = 0
    """Number of its first call in what it is a part of: for people, and `CallPrinted`."""
    start: int = 0
    stop: int = 0
    """0: `count`."""
    source: str = ""
    """Who submitted it: "" the client, else an attempt. Set by the server."""
    discard: bool = False
    """Results are only counted."""
    timeout_s: float = 0.0
    """Of one call; 0: none. A call that takes longer fails, and its executor is replaced."""

    @property
    def end(self) -> int:
        return self.stop or self.count


class Piece(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Calls [start, stop) of a cell."""

    source: str
    cell: int
    start: int
    stop: int

    def without(self, start: int, stop: int) -> list[Piece]:
        """What is left of it when calls [start, stop) are done or given back."""
        if stop <= self.start or start >= self.stop:
            return [self]
        left = ((self.start, min(start, self.stop)), (max(stop, self.start), self.stop))
        return [Piece(self.source, self.cell, low, high) for low, high in left if low < high]


class CallFailed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`call` is its number in the cell. `pickled` is the exception (cloudpickle), b"" where there is none or
    it cannot be pickled; `error` says the same in words, with the traceback in its details."""

    call: int
    pickled: bytes
    error: ErrorReport


class CellDone(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Results of calls [start, stop) of a cell.

    The pickle is of a list: the values of the calls that are not in `failed`, in order. With
    `Cell.discard`, and where all failed, there is none.
    """

    source: str
    cell: int
    start: int
    stop: int
    data: Annotated[bytes, msgspec.Meta(max_length=CELL_INLINE_BYTES_MAX)] = b""
    buffers: tuple[bytes, ...] = ()
    attached: Attached | None = None
    failed: tuple[CallFailed, ...] = ()
    seconds: float = 0.0
    """In the function, all calls together."""
    node: str = ""
    """Set by the server: whose executor ran it."""


class FunctionCode(Message, frozen=True):
    """A function that cells of the job name: before the first of them, on every link."""

    job: str
    function: FunctionId
    name: str
    """For people."""
    code: bytes
    """A `cortex.tasks.travelling_function.TravellingFunction`."""


class ForgetFunctions(Message, frozen=True):
    """No cell of the client's names these any more; one that does so later comes after its `FunctionCode`,
    sent anew. On every link that they were sent on."""

    job: str
    functions: tuple[FunctionId, ...]


# --- client - server ---


class SendCells(Message, frozen=True):
    """Run these. Those that the server has already it takes once."""

    job: str
    cells: tuple[Cell, ...]
    coming: int = 0
    """Calls that will follow, of all that the client has under way; -1: it does not know."""


class DropCells(Message, frozen=True):
    """The results of these cells are not wanted any more: calls that have not begun are not run. The client's
    own, of `job`; to a worker: of this `source`."""

    job: str
    cells: tuple[int, ...]
    source: str = ""


class CellsTaken(Message, frozen=True):
    """Whoever submitted these has their results: nobody need keep them, nor what is attached to them."""

    job: str
    pieces: tuple[Piece, ...]


class EndCalls(Message, frozen=True):
    """No more calls: the job is done when those under way are. Answered with JobDone."""

    job: str


class CellsDone(Message, frozen=True):
    job: str
    results: tuple[CellDone, ...]
    slots: int
    """Workers that the job has now."""


class CallPrinted(Message, frozen=True):
    """Lines that a call has printed: while it runs, now and then, and before its result."""

    job: str
    function: FunctionId
    call: int
    """`Cell.first` and the number in the cell."""
    nested: bool
    """A call that another call has submitted."""
    text: str
    name: str = ""
    """The function's, for people: the client may not have submitted it."""
    node: str = ""
    """Set by the server."""


# --- server - node - executor ---


class RunCells(Message, frozen=True):
    """For the worker `attempt`, in this order."""

    attempt: str
    cells: tuple[Cell, ...]
    awaited: int = 0
    """To be run in the middle of the call that waits for them, or for calls that they are submitted by:
    `ChildrenAwaited.first` of that wait. In any other call they would wait for what is around them."""


class ChildrenDone(Message, frozen=True):
    """Results of cells that a call of this worker has submitted."""

    attempt: str
    results: tuple[CellDone, ...]


class EndServing(Message, frozen=True):
    """End after the call in hand: give back what has not begun, then TaskFinished."""

    attempt: str


class CellsRun(Message, frozen=True):
    """In the order in which the worker got them. What is left of a cell follows, is given back, or has died
    with the worker. A worker's first word has none: it is there."""

    attempt: str
    results: tuple[CellDone, ...]


class CellsGivenBack(Message, frozen=True):
    """Not begun, and not to be: the call in hand is a long one, or the worker ends."""

    attempt: str
    pieces: tuple[Piece, ...]


class ChildCells(Message, frozen=True):
    """Cells that a call in this worker submits; what they name has been sent as `FunctionCode` before."""

    attempt: str
    cells: tuple[Cell, ...]


class ChildrenDropped(Message, frozen=True):
    """Results of these are not wanted any more; `all`: of none that this worker has submitted."""

    attempt: str
    cells: tuple[int, ...] = ()
    all: bool = False


class ChildrenAwaited(Message, frozen=True):
    """The call in hand waits (or no longer does) for calls it has submitted: this worker takes those of them
    that nobody has begun, and those that have been submitted by them. Said again, now and then."""

    attempt: str
    waiting: bool
    first: int = 0
    """The call's own cells have numbers from here on; those below are of calls around it."""


FromWorker = Union[  # noqa: UP007
    CellsRun,
    CellsGivenBack,
    CallPrinted,
    FunctionCode,
    ChildCells,
    ChildrenDropped,
    ChildrenAwaited,
    CellsTaken,
]
"""(`CellsTaken` of its children's results: its node says it for it.)"""


class WorkerSaid(Message, frozen=True):
    """From a node, which has not opened it."""

    node: str
    incarnation: str
    attempt: str
    said: FromWorker


class WorkerHolds(Message, frozen=True):
    """After a NodeHello, for each worker: what it has in hand, in order. The server may not know of all of
    it, nor the worker of all that the server has sent. Results that were not taken yet are sent again
    before it."""

    node: str
    incarnation: str
    attempt: str
    pieces: tuple[Piece, ...]
    functions: tuple[str, ...] = ()
    """That the node has of the job."""

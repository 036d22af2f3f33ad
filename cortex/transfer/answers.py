"""What one connection is owed, read from disk piece by piece, in reader threads or where none is needed.

Requests are answered in order. To a read of input the answer is one frame; of a segment it is a header and
the segment's bytes, or a refusal; segments are checked block by block as they are read (`SegmentCutter`). One
found damaged is refused if none of it was handed out yet. Else `read` raises: the connection has to end, and
because the job remembers what was found, the segment is refused when it is asked for again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from cortex.errors import CorruptRun, CortexError, FetchFailed, NotAllowed, ProtocolError
from cortex.ids import map_attempt
from cortex.limits import PARTITIONS_MAX, SEGMENT_ANSWER_BYTES_MAX
from cortex.storage.file_names import run_path
from cortex.storage.filesystem import Filesystem
from cortex.storage.segment_file import SegmentCutter, plan_segment
from cortex.wire.framing import encode_frame
from cortex.wire.messages import (
    FetchSegment,
    InputBytes,
    InputUnread,
    ReadInput,
    SegmentHeader,
    SegmentRefused,
)


@dataclass(eq=False)
class ServedJob:
    """A job whose map outputs lie in `folder`."""

    folder: str
    damaged: dict[tuple[str, int], CorruptRun] = field(default_factory=dict)
    """What was found when some of the segment (map attempt, partition) had been sent."""
    ended: bool = False


class InputReads(Protocol):
    """Reads of the input that this node has (`cortex.node.held_inputs.FileReads`), by one thread at a
    time."""

    def answer(self, read: ReadInput) -> InputBytes | InputUnread: ...
    def close(self) -> None: ...


class Answers:
    """`ask` from any thread, `read` and `close` from one at a time. `inputs` None: there is no input here."""

    def __init__(self, fs: Filesystem, inputs: InputReads | None = None) -> None:
        self._fs = fs
        self._inputs = inputs
        self._requests: deque[tuple[FetchSegment | ReadInput, ServedJob | None]] = deque()
        self._cutter: SegmentCutter | None = None
        self._in_hand: tuple[FetchSegment, ServedJob] | None = None
        self._cached = False

    @property
    def cached(self) -> bool:
        """True while it is worth trying `read_cached`."""
        return self._cutter is not None and self._cached

    @property
    def unanswered(self) -> int:
        """Requests not yet begun."""
        return len(self._requests)

    @property
    def owed(self) -> bool:
        return self._cutter is not None or bool(self._requests)

    def ask(self, request: FetchSegment | ReadInput, job: ServedJob | None) -> None:
        """`job` is None where the node does not know it."""
        self._requests.append((request, job))

    def read(self, bytes_max: int) -> list[bytes]:
        """The next pieces, at most about `bytes_max` together; none when nothing is owed.

        Raises CorruptRun for damage in a segment that has been handed out in part.
        """
        pieces: list[bytes] = []
        room = bytes_max
        while room > 0 and self.owed:
            begun_at = len(pieces) if self._cutter is None else -1
            some = [] if self._cutter is not None else [self._begin()]
            if self._cutter is not None:
                try:
                    some += self._cutter.read(room)
                except CorruptRun as error:
                    some = [self._refuse_in_hand(error)]
                    if begun_at < 0:
                        raise
            pieces += some
            room -= sum(map(len, some))
            if self._cutter is not None:
                if not self._cutter.ended:
                    break  # what is left of the room would only cut its next block in two
                self._cutter = None
        return pieces

    def read_cached(self, scratch: memoryview) -> list[bytes]:
        """The next piece if no disk has to be waited for, so on a reactor's thread, too; else nothing, and
        `cached` is False until `read` has come to another segment. Raises as `read` does."""
        assert self._cutter is not None
        try:
            pieces = self._cutter.read_cached(scratch)
        except CorruptRun as error:
            self._refuse_in_hand(error)
            raise
        self._cached = bool(pieces)
        return pieces

    def close(self) -> None:
        """Close what is open; no `read` may follow. May free the space of a large file: not on a reactor."""
        self._requests.clear()
        if self._inputs is not None:
            self._inputs.close()
        if self._cutter is not None:
            self._cutter.close()
            self._cutter = None

    def _begin(self) -> bytes:
        """Take the next request: the header of its segment, or its refusal; of input the whole answer."""
        request, job = self._requests.popleft()
        if isinstance(request, ReadInput):
            return self._read_input(request)
        try:
            path = _path_of(request, job)
            plan = plan_segment(self._fs, path, request.partition)
            self._cutter = SegmentCutter(self._fs, plan)
        except CortexError as error:
            return _refusal(request, error)
        assert job is not None
        self._in_hand = request, job
        self._cached = True
        return encode_frame(SegmentHeader(request.request, plan.size_bytes, plan.rows))

    def _read_input(self, read: ReadInput) -> bytes:
        if self._inputs is None:
            return encode_frame(InputUnread(read.read, NotAllowed("this node has no data roots").report()))
        return encode_frame(self._inputs.answer(read))

    def _refuse_in_hand(self, error: CorruptRun) -> bytes:
        assert self._cutter is not None
        assert self._in_hand is not None
        self._cutter.close()
        self._cutter = None
        request, job = self._in_hand
        job.damaged[request.attempt, request.partition] = error
        return _refusal(request, error)


def _path_of(request: FetchSegment, job: ServedJob | None) -> str:
    """The run file that a request is about. Nothing of it names a file before it was checked here."""
    found = map_attempt(request.attempt)
    if found is None or found[0] != request.job or not 0 <= request.partition < PARTITIONS_MAX:
        raise ProtocolError("the request names no map output of its job")
    if job is None or job.ended:
        raise FetchFailed("this node has no map outputs of that job")
    damaged = job.damaged.get((request.attempt, request.partition))
    if damaged is not None:
        raise damaged
    return run_path(job.folder, request.attempt)


def _refusal(request: FetchSegment, error: CortexError) -> bytes:
    return encode_frame(SegmentRefused(request.request, error.report()), SEGMENT_ANSWER_BYTES_MAX)

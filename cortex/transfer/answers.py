"""What one connection is owed, read from disk piece by piece, in reader threads or where none is needed.

Requests are answered in order. To a read of input the answer is one frame; of a segment it is a header and
the segment's bytes, or a refusal; segments are checked block by block as they are read (`SegmentCutter`). One
found damaged is refused if none of it was handed out yet. Else `read` raises: the connection has to end, and
because the job remembers what was found, the segment is refused when it is asked for again.

Where the node has combined map outputs, the combined segment is given if all outputs with rows in it are
asked for by one message, by the first of them: so that none is had twice. Else each is given by itself, or,
if it is asked for ahead and the node goes on combining, later. A combined file found damaged is forgotten.
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
from cortex.storage.segment_file import SegmentCutter, SegmentPlan, plan_segment
from cortex.wire.framing import encode_frame
from cortex.wire.messages import (
    FetchSegment,
    InputBytes,
    InputUnread,
    ReadInput,
    SegmentHeader,
    SegmentLater,
    SegmentRefused,
)


@dataclass(eq=False)
class ServedJob:
    """A job whose map outputs lie in `folder`."""

    folder: str
    damaged: dict[tuple[str, int], CorruptRun] = field(default_factory=dict)
    """What was found when some of the segment (map attempt, partition) had been sent."""
    combined: dict[str, str] = field(default_factory=dict)
    """Map attempt -> the combined file that has its rows, too."""
    combining: bool = False
    """More will be combined: what is asked for ahead may wait for it."""
    ended: bool = False


@dataclass(eq=False, slots=True)
class _Asked:
    request: int
    job_name: str
    job: ServedJob | None
    attempt: str
    partition: int
    ahead: bool
    together: dict[str, _Asked]
    """Attempts of one message, itself included, that have no answer yet."""


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
        self._requests: deque[_Asked | ReadInput] = deque()
        self._cutter: SegmentCutter | None = None
        self._in_hand: tuple[_Asked, list[_Asked], str] | None = None
        """What is being answered: the first, those that it covers, and the combined file ("": none)."""
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
        if isinstance(request, ReadInput):
            self._requests.append(request)
            return
        together: dict[str, _Asked] = {}
        for number, attempt in enumerate((request.attempt, *request.others), request.request):
            asked = _Asked(number, request.job, job, attempt, request.partition, request.ahead, together)
            together[attempt] = asked
            self._requests.append(asked)

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
                    some = self._give_up_in_hand(error)
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
            self._give_up_in_hand(error)
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
        """Take the next request: the header of its segment, its refusal, or that it is put off; of input the
        whole answer."""
        asked = self._requests.popleft()
        if isinstance(asked, ReadInput):
            return self._read_input(asked)
        asked.together.pop(asked.attempt, None)
        try:
            path = _path_of(asked)
            job = asked.job
            assert job is not None
            found = self._combined(asked, job)
            if found is None:
                if asked.ahead and job.combining:
                    return encode_frame(SegmentLater(asked.request))
                found = plan_segment(self._fs, path, asked.partition), [], ""
            plan, covered, name = found
            self._cutter = SegmentCutter(self._fs, plan)
        except CortexError as error:
            return _refusal(asked, error)
        for each in covered:
            self._requests.remove(each)
            del each.together[each.attempt]
        self._in_hand = asked, covered, name
        self._cached = True
        covers = tuple(each.request for each in covered)
        return encode_frame(SegmentHeader(asked.request, plan.size_bytes, plan.rows, covers))

    def _read_input(self, read: ReadInput) -> bytes:
        if self._inputs is None:
            return encode_frame(InputUnread(read.read, NotAllowed("this node has no data roots").report()))
        return encode_frame(self._inputs.answer(read))

    def _combined(self, asked: _Asked, job: ServedJob) -> tuple[SegmentPlan, list[_Asked], str] | None:
        """The combined segment that this request and others of its message may be answered with."""
        name = job.combined.get(asked.attempt, "")
        if not name or not asked.together:
            return None
        try:
            plan = plan_segment(self._fs, run_path(job.folder, name), asked.partition)
        except CorruptRun:
            _forget(job, name)
            return None
        first, *others = plan.members or ("",)
        if first != asked.attempt or not others or any(each not in asked.together for each in others):
            return None
        return plan, [asked.together[each] for each in others], name

    def _give_up_in_hand(self, error: CorruptRun) -> list[bytes]:
        """The segment in hand is damaged: its refusal, if there is nothing else to give in its place."""
        assert self._cutter is not None
        assert self._in_hand is not None
        self._cutter.close()
        self._cutter = None
        asked, covered, name = self._in_hand
        if not name:
            assert asked.job is not None
            asked.job.damaged[asked.attempt, asked.partition] = error
            return [_refusal(asked, error)]
        assert asked.job is not None
        _forget(asked.job, name)
        for each in reversed((asked, *covered)):  # each by itself
            each.together[each.attempt] = each
            self._requests.appendleft(each)
        return []


def _forget(job: ServedJob, name: str) -> None:
    """Give this combined file no more."""
    for attempt in [attempt for attempt, file in list(job.combined.items()) if file == name]:
        job.combined.pop(attempt, None)


def _path_of(asked: _Asked) -> str:
    """The run file that a request is about. Nothing of it names a file before it was checked here."""
    found = map_attempt(asked.attempt)
    if found is None or found[0] != asked.job_name or not 0 <= asked.partition < PARTITIONS_MAX:
        raise ProtocolError("the request names no map output of its job")
    if asked.job is None or asked.job.ended:
        raise FetchFailed("this node has no map outputs of that job")
    damaged = asked.job.damaged.get((asked.attempt, asked.partition))
    if damaged is not None:
        raise damaged
    return run_path(asked.job.folder, asked.attempt)


def _refusal(asked: _Asked, error: CortexError) -> bytes:
    return encode_frame(SegmentRefused(asked.request, error.report()), SEGMENT_ANSWER_BYTES_MAX)

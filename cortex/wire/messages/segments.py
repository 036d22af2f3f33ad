"""Node - node: segments of map outputs, on a connection that input is read over as well (`inputs`)."""

from __future__ import annotations

from typing import Annotated, Union

import msgspec

from cortex.errors import ErrorReport
from cortex.wire.messages.base import Message
from cortex.wire.messages.inputs import ReadInput


class FetchSegment(Message, frozen=True):
    """Ask a node for one partition of a map attempt that it ran. Answered in order, one by one.

    With `others`, for the same of those attempts, too: their requests have the numbers that follow. What one
    message asks for may be answered by a combined segment, and nothing else may.
    """

    request: int
    """The asker's number, which the answer repeats."""
    job: str
    attempt: str
    partition: int
    others: tuple[str, ...] = ()
    ahead: bool = False
    """No reduce waits for it yet: SegmentLater may be the answer."""


class SegmentHeader(Message, frozen=True):
    """Behind this frame come exactly `size_bytes` bytes that are no frames: the segment file.

    A sender that finds a damaged block when some are already sent closes the connection instead of
    sending the rest, and refuses the segment when it is asked for again.
    """

    request: int
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    rows: int
    covers: tuple[int, ...] = ()
    """Requests of the same message that it answers as well: the segment is of all these map attempts,
    combined. They are in map order, `request` is the first."""


class SegmentRefused(Message, frozen=True):
    """With an error of fault LOST the segment is gone or damaged, and asking again is of no use."""

    request: int
    error: ErrorReport


class SegmentLater(Message, frozen=True):
    """To what was asked for ahead: it may yet be combined with others, so ask again when these are wanted,
    too, or when a reduce waits for it."""

    request: int


ToSegmentServer = Union[FetchSegment, ReadInput]  # noqa: UP007
FromSegmentServer = Union[SegmentHeader, SegmentRefused, SegmentLater]  # noqa: UP007

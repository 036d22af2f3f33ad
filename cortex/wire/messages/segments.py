"""Node - node: segments of map outputs, on a connection that input is read over as well (`inputs`)."""

from __future__ import annotations

from typing import Annotated, Union

import msgspec

from cortex.errors import ErrorReport
from cortex.wire.messages.base import Message
from cortex.wire.messages.inputs import ReadInput


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


ToSegmentServer = Union[FetchSegment, ReadInput]  # noqa: UP007
FromSegmentServer = Union[SegmentHeader, SegmentRefused]  # noqa: UP007

"""What a segment's sender says, taken apart: frames with raw bytes between them. Pure: bytes in, items out.

    stream     = answer*
    answer     = frame(SegmentHeader)  raw bytes, as many as it says  |  frame(SegmentRefused)

Raw bytes are handed on as they come, never gathered: what is held is at most one frame.
"""

from __future__ import annotations

from collections.abc import Iterator

from cortex.limits import SEGMENT_ANSWER_BYTES_MAX
from cortex.wire.framing import FrameDecoder
from cortex.wire.messages import FromSegmentServer, SegmentHeader


class SegmentDecoder:
    """Bytes to answers and pieces of segments; any cutting of the same bytes gives the same segments."""

    def __init__(self, max_bytes: int = SEGMENT_ANSWER_BYTES_MAX) -> None:
        self._frames: FrameDecoder[FromSegmentServer] = FrameDecoder(FromSegmentServer, max_bytes)
        self._raw_left = 0

    @property
    def at_boundary(self) -> bool:
        """True between two answers: the only place where an end is a clean one."""
        return not self._raw_left and self._frames.at_boundary

    def feed(self, data: bytes) -> Iterator[FromSegmentServer | bytes]:
        """What `data` holds, in order; take every item before feeding more.

        Raises ProtocolError for a frame that is no answer, or over its limit; the stream is then of no
        more use.
        """
        at, end = 0, len(data)
        while at < end:
            if self._raw_left:
                piece = data[at : at + self._raw_left] if at or self._raw_left < end else data
                at += len(piece)
                self._raw_left -= len(piece)
                yield piece
                continue
            some = data[at : at + self._frames.missing_bytes]
            at += len(some)
            for message in self._frames.feed(some):
                if isinstance(message, SegmentHeader):
                    self._raw_left = message.size_bytes
                yield message

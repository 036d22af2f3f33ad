"""Blocks of whole records: a split's bytes in pieces of bounded size, each cut at a record end.

Shared by text and CSV, which differ only in what a record's end is (`Cuts`). A record belongs to the split
in which it starts, so the last block of a split reads on past its end. A block grows for a record that
does not fit in it, up to `limits.RECORD_BYTES_MAX`, and then has no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

from cortex.errors import RecordTooLarge
from cortex.limits import KIB, RECORD_BYTES_MAX
from cortex.units import format_bytes

from .sources import Source, line_text

TAIL_BYTES: Final = 64 * KIB  # read past a split's end for its last record; more if that is not enough


class Cuts(Protocol):
    """Record ends in a buffer that begins at a record's start (offsets of the byte after a record)."""

    def first_end(self, low: int) -> int:
        """The smallest record end >= `low`, or -1."""

    def last_end(self) -> int:
        """The largest record end, or 0."""


class Block(NamedTuple):
    """``data[:size]`` are whole records, from `position` in the (decompressed) file."""

    position: int
    data: bytes | bytearray
    size: int
    unfinished: bool
    """True if the last record ended with the file instead of with a line end."""
    cuts: Cuts


def record_blocks(
    source: Source,
    start: int,
    end: int | None,
    block_bytes: int,
    cuts_of: Callable[[bytes | bytearray, int, bool], Cuts],
) -> Iterator[Block]:
    """The records that start in [start, end); `start` is a record's start, `end` None the file's end.

    A block's buffer is the source's: use it before taking the next one.
    """
    block_bytes = min(block_bytes, RECORD_BYTES_MAX)
    position = start
    while end is None or position < end:
        wanted = first_wanted = block_bytes if end is None else min(block_bytes, end - position + TAIL_BYTES)
        while True:
            data, count, final = source.window(position, wanted)
            if not count:
                return
            cuts = cuts_of(data, count, final)
            size = -1
            if wanted > first_wanted:  # a long record: by itself, as what follows may be as much again
                size = cuts.first_end(1)
            elif end is not None and position + count >= end:
                size = cuts.first_end(end - position)
            unfinished = False
            if size <= 0:
                size = cuts.last_end()
                if final and (size < count) and (size <= 0 or end is None or position + size < end):
                    size, unfinished = count, True
            if size > 0:
                break
            if wanted >= RECORD_BYTES_MAX:
                raise RecordTooLarge(
                    f"a record is larger than {format_bytes(RECORD_BYTES_MAX)}",
                    details={
                        "file": source.file.path,
                        "offset": position,
                        "line": line_text(memoryview(data)[:count]),
                    },
                    cure="check for an unclosed quote or a missing line end there; records this large need "
                    "another format, such as Parquet",
                )
            wanted = min(max(wanted, 1) * 2, RECORD_BYTES_MAX)
            del data, cuts  # before there is a larger buffer
        made = [Block(position, data, size, unfinished, cuts)]
        position += size
        del data, cuts  # whoever has the block may drop it, and the source its buffer
        yield made.pop()

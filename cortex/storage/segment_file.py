"""A segment file: one partition's blocks of one map attempt, cut out of its run file; itself a run file.

    segment    = MAGIC  block*  index  directory  trailer          (the grammar of `run_format`)

Its blocks are the source's, byte for byte and in their order; its index is the source's for them, with
offsets of its own; runs without rows of the partition are left out. So whoever reads run files reads
it, and a merge over segments gives the rows of a merge over the files they were cut from. What a
combined file stands for goes with the segment, for its partition.

`plan_segment` says what it will be, from the source's footer alone; `SegmentCutter` reads it piece by
piece, for a sender; `check_segment` is for the receiver. No NumPy and no Arrow: the node does this.
Every fault is CorruptRun, naming the file: the map that wrote it runs again; except TooManyOpenFiles.
"""

from __future__ import annotations

import bisect
import errno
import struct
from dataclasses import dataclass

import xxhash

from cortex.errors import TooManyOpenFiles
from cortex.storage.filesystem import Filesystem, ReadableFile
from cortex.storage.run_format import (
    ENTRY_PACKED,
    MAGIC,
    Footer,
    RunInfo,
    corrupt,
    encode_footer,
    read_footer,
)

_PARTITION = struct.Struct("<I")  # an entry's first field


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """What a segment will be, without its blocks. Holds about a hundred bytes a block."""

    path: str
    """The source file."""
    entries: bytes
    """The source's index entries of the partition, in order: what to copy, and each block's checksum."""
    tail: bytes
    """All that stands behind the blocks."""
    size_bytes: int
    rows: int
    members: tuple[str, ...] = ()
    """The attempts it stands for, in map order, if the source is a combined file and has rows of it."""


def plan_segment(fs: Filesystem, path: str, partition: int) -> SegmentPlan:
    """What the segment of `partition` in the run file at `path` will be. Reads the file's footer only.

    A file without rows of the partition gives a segment without runs.
    """
    file = _open(fs, path)
    try:
        footer = read_footer(_Exactly(file, path).pread, file.size_bytes, path)
    finally:
        file.close()
    source, index, runs = bytearray(), bytearray(), []
    offset, rows = len(MAGIC), 0
    for run, low, high in _of_partition(footer, partition):
        entries = footer.index[low:high]
        for entry in ENTRY_PACKED.iter_unpack(entries):
            _check_inside(entry[2], entry[3], footer, path)
            index += ENTRY_PACKED.pack(entry[0], entry[1], offset, *entry[3:])
            offset += entry[3]
            rows += entry[1]
        source += entries
        runs.append(RunInfo(run.schema, (high - low) // ENTRY_PACKED.size))
    combined = None if footer.combined is None else footer.combined.of(partition)
    tail = encode_footer(index, runs, combined)
    members = () if combined is None else combined.members
    return SegmentPlan(path, bytes(source), tail, offset + len(tail), rows, members)


def check_segment(fs: Filesystem, path: str, partition: int, members: tuple[str, ...] = ()) -> int:
    """The rows of a segment file that was received whole. Raises CorruptRun if it is not what it should be:
    of this partition, and standing for these attempts (none: for one map's output, whose it is).

    Its blocks are not read: who merges them checks them.
    """
    file = _open(fs, path)
    try:
        footer = read_footer(_Exactly(file, path).pread, file.size_bytes, path)
    finally:
        file.close()
    offset, rows = len(MAGIC), 0
    for found, block_rows, at, stored_bytes, *_ in ENTRY_PACKED.iter_unpack(footer.index):
        if found != partition or at != offset:
            raise corrupt(path, f"partition {found} at {at}, not {partition} at {offset}", at)
        offset += stored_bytes
        rows += block_rows
    if offset != footer.blocks_end:
        raise corrupt(path, f"its blocks end at {offset}, its index begins at {footer.blocks_end}", offset)
    found_members = () if footer.combined is None else footer.combined.members
    if found_members != members or (footer.combined and partition not in footer.combined.partitions):
        raise corrupt(path, f"it stands for {len(found_members)} map outputs, and {len(members)} were said")
    return rows


class SegmentCutter:
    """Reads a planned segment from front to end. Owns the open source file until `close`.

    No byte is given before the checksum of its block was found right, except of a block larger than
    what is asked for at once: that one is checked when its last byte is read.
    """

    def __init__(self, fs: Filesystem, plan: SegmentPlan) -> None:
        self._plan = plan
        self._file = _open(fs, plan.path)
        self._exactly = _Exactly(self._file, plan.path)
        self._blocks = [(entry[2], entry[3], entry[7]) for entry in ENTRY_PACKED.iter_unpack(plan.entries)]
        self._blocks.reverse()
        self._begun = False
        self._digest = xxhash.xxh3_64()  # of a block larger than a piece, as far as it was given
        self._given_bytes = 0
        self.ended = False

    def read(self, bytes_max: int) -> list[bytes]:
        """The next pieces, together of about `bytes_max`: more only by what stands around the blocks."""
        pieces = [] if self._begun else [MAGIC]
        self._begun = True
        room = bytes_max
        while self._blocks and room > 0:
            piece = self._next_blocks(room)
            if not piece:
                break
            pieces.append(piece)
            room -= len(piece)
        if not self._blocks and not self.ended:
            pieces.append(self._plan.tail)
            self.ended = True
            self.close()
        elif not pieces:
            pieces.append(self._part_of_block(bytes_max))
        return pieces

    def read_cached(self, scratch: memoryview) -> list[bytes]:
        """The next piece, read by way of `scratch`, if that takes no waiting for the disk. Else nothing, and
        `read` gives it; so too at both ends of the segment, where a file is opened or closed."""
        if not self._begun or self._given_bytes or not self._blocks:
            return []
        count, begin, size = self._that_fit(len(scratch))
        if not count or count == len(self._blocks):
            return []
        view = scratch[:size]
        if not self._file.read_cached(view, begin):
            return []
        self._check_blocks(view, count, begin)
        return [bytes(view)]

    def close(self) -> None:
        self._file.close()

    def _that_fit(self, bytes_max: int) -> tuple[int, int, int]:
        """How many whole blocks lie side by side and fit, where they begin, and their bytes together."""
        begin = end = self._blocks[-1][0]
        count = 0
        while count < len(self._blocks):
            offset, size, _ = self._blocks[-1 - count]
            if offset != end or end + size - begin > bytes_max:
                break
            end += size
            count += 1
        return count, begin, end - begin

    def _next_blocks(self, bytes_max: int) -> bytes:
        """The whole blocks that fit, checked; b"" if not even one does."""
        if self._given_bytes:
            return b""
        count, begin, size = self._that_fit(bytes_max)
        if not count:
            return b""
        data = self._exactly.pread(size, begin)
        self._check_blocks(memoryview(data), count, begin)
        return data

    def _check_blocks(self, view: memoryview, count: int, begin: int) -> None:
        for _ in range(count):
            offset, size, checksum = self._blocks.pop()
            self._check(
                xxhash.xxh3_64_intdigest(view[offset - begin : offset - begin + size]), checksum, offset
            )

    def _part_of_block(self, bytes_max: int) -> bytes:
        offset, size, checksum = self._blocks[-1]
        data = self._exactly.pread(min(bytes_max, size - self._given_bytes), offset + self._given_bytes)
        self._digest.update(data)
        self._given_bytes += len(data)
        if self._given_bytes == size:
            self._check(self._digest.intdigest(), checksum, offset)
            self._blocks.pop()
            self._digest, self._given_bytes = xxhash.xxh3_64(), 0
        return data

    def _check(self, found: int, checksum: int, offset: int) -> None:
        if found != checksum:
            raise corrupt(self._plan.path, "checksum of a block differs", offset)


class _Exactly:
    """`pread` that gives all it is asked for or raises CorruptRun."""

    def __init__(self, file: ReadableFile, path: str) -> None:
        self._file = file
        self._path = path

    def pread(self, length: int, offset: int) -> bytes:
        try:
            data = self._file.pread(length, offset)
        except OSError as error:
            raise corrupt(self._path, str(error), offset) from error
        if len(data) != length:
            raise corrupt(self._path, f"{length - len(data)} of {length} bytes missing", offset)
        return data


def _open(fs: Filesystem, path: str) -> ReadableFile:
    try:
        return fs.open(path)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise TooManyOpenFiles(
                f"a run file cannot be opened: {error.strerror}",
                cure="raise the node's limit of open files: ulimit -n 4096",
                details={"file": path},
            ) from error
        raise corrupt(path, str(error)) from error


def _of_partition(footer: Footer, partition: int) -> list[tuple[RunInfo, int, int]]:
    """Each run with entries of `partition`, and where in the index these begin and end."""
    index, size = footer.index, ENTRY_PACKED.size
    found, begin = [], 0
    for run in footer.runs:
        numbers = range(begin, begin + run.entries)

        def partition_of(number: int) -> int:
            return int(_PARTITION.unpack_from(index, number * size)[0])

        low = begin + bisect.bisect_left(numbers, partition, key=partition_of)
        high = begin + bisect.bisect_right(numbers, partition, key=partition_of)
        if low < high:
            found.append((run, low * size, high * size))
        begin += run.entries
    return found


def _check_inside(offset: int, stored_bytes: int, footer: Footer, path: str) -> None:
    if offset < len(MAGIC) or offset + stored_bytes > footer.blocks_end:
        raise corrupt(path, "an entry points outside the blocks", footer.blocks_end)

"""The run file: one grammar, read by `run_reader` and written by `run_writer`. Nobody else knows it.

A map attempt writes one file. It holds the attempt's spills, each a *run*: record batches of one
schema in order of (partition, 64-bit key hash), a batch never across two partitions. What one
partition has in a run is a *segment*: consecutive blocks. All numbers are little-endian.

    file       = MAGIC  block*  index  directory  trailer
    block      = one Arrow IPC record batch message (encapsulated, without its schema),
                 as it is when stored_bytes = raw_bytes, else as one LZ4 block (``lz4_raw``)
    index      = entry*                    in the order of the blocks, run after run, each `ENTRY`:
                 partition, rows, offset, stored_bytes, raw_bytes, first_hash, last_hash,
                 checksum (XXH3-64 of the stored bytes)
    directory  = msgpack `Directory`: version, for each run its schema (an Arrow IPC schema message)
                 and how many entries are its, and of a combined file what it stands for (`Combined`)
    trailer    = index_bytes u64, directory_bytes u64, XXH3-64 of index + directory u64, MAGIC

Why so:

* The index stands behind the blocks and the trailer at the end: a file cut short has no trailer, so
  what was not finished cannot be read as if it were.
* Blocks are compressed whole, not buffer by buffer as IPC's own option does: for a batch of 128 KiB
  that takes 80 us instead of 280 to write and 25-30 to read, and the reader needs no thread pool.
* A block that LZ4 shortens by less than a fifth is stored as it is.
* A message is read with its run's schema alone: so no dictionary columns (their values would be
  messages of their own), and no view types (a slice of one carries all the bytes of the whole).
* Runs are not fsynced: after a crash of the machine the map runs again.

This module needs neither NumPy nor Arrow: the node cuts segments out of run files and has neither
loaded. What of the grammar is theirs, the index as an array and the schemas, is in `run_arrow`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import msgspec
import xxhash

from cortex.errors import CorruptRun

MAGIC: Final = b"CORTEXR1"
VERSION: Final = 1
TRAILER: Final = struct.Struct("<QQQ8s")
STORE_RAW_BELOW: Final = 1 / 5  # of a block saved by LZ4: less does not repay its CPU on a disk of 0.2 GB/s
RAW_BYTES_MAX: Final = 2**31 - 1  # an LZ4 block's, and Arrow's 32-bit offsets', own limit

ENTRY_PACKED: Final = struct.Struct("<IIQIIQQQ")
"""One entry of the index; its fields in order are those of `entry` above."""


class RunInfo(msgspec.Struct, frozen=True):
    schema: bytes
    entries: int


class StandsFor(msgspec.Struct, frozen=True, array_like=True):
    """What one partition of a combined file was made of: as much as its members' indexes say."""

    rows: int
    raw_bytes: int
    members: int
    """Bit i is set: member i has rows of the partition, and they are in here."""


class Combined(msgspec.Struct, frozen=True):
    """Of a file that was merged from the outputs of several map attempts, whose rows it has, combined."""

    members: tuple[str, ...]
    """The attempts, in map order."""
    partitions: dict[int, StandsFor]
    """Those with rows."""

    def of(self, partition: int) -> Combined | None:
        """The same of a segment: those members alone that have rows of the partition. None: nobody has."""
        made_of = self.partitions.get(partition)
        if made_of is None:
            return None
        members = tuple(each for i, each in enumerate(self.members) if made_of.members >> i & 1)
        whole = StandsFor(made_of.rows, made_of.raw_bytes, (1 << len(members)) - 1)
        return Combined(members, {partition: whole})


class Directory(msgspec.Struct, frozen=True, omit_defaults=True):
    version: int
    runs: tuple[RunInfo, ...]
    combined: Combined | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Directory)


def encode_directory(runs: list[RunInfo], combined: Combined | None = None) -> bytes:
    return _encoder.encode(Directory(VERSION, tuple(runs), combined))


def decode_directory(data: bytes, path: str) -> Directory:
    try:
        directory = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise corrupt(path, f"its directory is no directory: {error}") from error
    if directory.version != VERSION:
        raise corrupt(path, f"it is of version {directory.version}, not {VERSION}")
    return directory


class Footer(msgspec.Struct, frozen=True):
    """What stands behind the blocks, checked: the index as it is on disk, and the directory's runs."""

    index: bytes
    runs: tuple[RunInfo, ...]
    blocks_end: int
    """Offset at which the index begins: every block lies between the first MAGIC and it."""
    combined: Combined | None = None
    """What a combined file stands for; None for the output of one map attempt."""


def read_footer(pread: Callable[[int, int], bytes], size_bytes: int, path: str) -> Footer:
    """The footer of a file of `size_bytes`. `pread(length, offset)` gives exactly `length` bytes or raises.

    Raises CorruptRun for a file cut short, a checksum that differs, or an index that its directory does
    not account for. Whether entries point inside the file is for who reads them.
    """
    trailer_at = size_bytes - TRAILER.size
    if trailer_at < len(MAGIC):
        raise corrupt(path, f"only {size_bytes} bytes", 0)
    index_bytes, directory_bytes, checksum, magic = TRAILER.unpack(pread(TRAILER.size, trailer_at))
    index_at = trailer_at - index_bytes - directory_bytes
    if magic != MAGIC or index_at < len(MAGIC):
        raise corrupt(path, "it has no trailer (cut short?)", trailer_at)
    if index_bytes % ENTRY_PACKED.size:
        raise corrupt(path, f"an index of {index_bytes} bytes", index_at)
    footer = pread(index_bytes + directory_bytes, index_at)
    if xxhash.xxh3_64_intdigest(footer) != checksum:
        raise corrupt(path, "checksum of the index differs", index_at)
    if pread(len(MAGIC), 0) != MAGIC:
        raise corrupt(path, "it does not begin as one", 0)
    index, directory = footer[:index_bytes], decode_directory(footer[index_bytes:], path)
    if sum(run.entries for run in directory.runs) * ENTRY_PACKED.size != index_bytes:
        raise corrupt(path, "directory and index disagree")
    return Footer(index, directory.runs, index_at, directory.combined)


def encode_footer(index: bytes | bytearray, runs: list[RunInfo], combined: Combined | None = None) -> bytes:
    """Index, directory and trailer: all that stands behind the blocks."""
    directory = encode_directory(runs, combined)
    digest = xxhash.xxh3_64(index)
    digest.update(directory)
    trailer = TRAILER.pack(len(index), len(directory), digest.intdigest(), MAGIC)
    return b"".join((index, directory, trailer))


def corrupt(path: str, cause: str, offset: int | None = None) -> CorruptRun:
    return CorruptRun(
        f"run file {path} is damaged: {cause}",
        cure="the map that wrote it runs again by itself; if this repeats, check the disk",
        details={"file": path, "offset": offset, "cause": cause},
    )

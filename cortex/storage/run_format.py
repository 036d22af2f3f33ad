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
    directory  = msgpack `Directory`: version, and for each run its schema (an Arrow IPC schema
                 message) and how many entries are its
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
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cortex.errors import CorruptRun, InternalError

MAGIC: Final = b"CORTEXR1"
VERSION: Final = 1
TRAILER: Final = struct.Struct("<QQQ8s")
STORE_RAW_BELOW: Final = 1 / 5  # of a block saved by LZ4: less does not repay its CPU on a disk of 0.2 GB/s
RAW_BYTES_MAX: Final = 2**31 - 1  # an LZ4 block's, and Arrow's 32-bit offsets', own limit

ENTRY: Final = np.dtype(
    [
        ("partition", "<u4"),
        ("rows", "<u4"),
        ("offset", "<u8"),
        ("stored_bytes", "<u4"),
        ("raw_bytes", "<u4"),
        ("first_hash", "<u8"),
        ("last_hash", "<u8"),
        ("checksum", "<u8"),
    ]
)
ENTRY_PACKED: Final = struct.Struct("<IIQIIQQQ")
"""One row of `ENTRY`: the writer packs them one by one, which NumPy is slow at."""
Entries = NDArray[np.void]
"""Rows of `ENTRY`."""


class RunInfo(msgspec.Struct, frozen=True):
    schema: bytes
    entries: int


class Directory(msgspec.Struct, frozen=True):
    version: int
    runs: tuple[RunInfo, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Directory)


def check_schema(schema: pa.Schema) -> None:
    """Raise InternalError for a type that a block cannot hold: the collector should have cast it."""
    for field in schema:
        _check_type(field.name, field.type)


def _check_type(column: str, kind: pa.DataType) -> None:
    types = pa.types
    if types.is_dictionary(kind) or types.is_string_view(kind) or types.is_binary_view(kind):
        raise InternalError(
            f"column {column!r} of type {kind} cannot be spilled",
            cure="cast it to its plain type before it is collected",
        )
    if isinstance(kind, pa.BaseExtensionType):
        _check_type(column, kind.storage_type)
    for i in range(kind.num_fields):
        _check_type(column, kind.field(i).type)


def encode_directory(runs: list[RunInfo]) -> bytes:
    return _encoder.encode(Directory(VERSION, tuple(runs)))


def decode_directory(data: bytes, path: str) -> tuple[RunInfo, ...]:
    try:
        directory = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise corrupt(path, f"its directory is no directory: {error}") from error
    if directory.version != VERSION:
        raise corrupt(path, f"it is of version {directory.version}, not {VERSION}")
    return directory.runs


def encode_schema(schema: pa.Schema) -> bytes:
    return bytes(schema.serialize())


def decode_schema(data: bytes, path: str) -> pa.Schema:
    try:
        return pa.ipc.read_schema(pa.py_buffer(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise corrupt(path, f"a run's schema cannot be read: {error}") from error


def corrupt(path: str, cause: str, offset: int | None = None) -> CorruptRun:
    return CorruptRun(
        f"run file {path} is damaged: {cause}",
        cure="the map that wrote it runs again by itself; if this repeats, check the disk",
        details={"file": path, "offset": offset, "cause": cause},
    )

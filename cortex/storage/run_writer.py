"""Writes a run file (grammar in `run_format`). Owns the open file until `close` or `abort`.

Raises SpillFull when the disk (or what is left of it above the reserve) is full, and lets any other
OSError through. The memory it holds is one batch's message, one compressed copy of it, at most
`RUN_WRITE_BYTES` of small blocks not yet written, and 48 bytes a block for the index.
"""

from __future__ import annotations

import array
import os
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import xxhash

from cortex.errors import InternalError, RecordTooLarge
from cortex.limits import RUN_WRITE_BYTES
from cortex.storage import run_arrow, run_format
from cortex.storage.filesystem import Filesystem, is_disk_full
from cortex.storage.spill_quota import SpillQuota, spill_full

Compression = Literal["lz4"] | None

_TRIES_APART = 16  # blocks stored unread by LZ4 after one that it did not shorten


@dataclass(frozen=True)
class RunFileSummary:
    """What was written. `partition_rows` has an entry for each partition up to the last with rows;
    `raw_bytes` is the sum of its batches before compression, as the index has them."""

    bytes: int
    raw_bytes: int
    rows: int
    partition_rows: tuple[int, ...]
    runs: int


class RunFileWriter:
    """``begin_run``, ``append`` in order of (partition, hash), ``end_run``; again; then ``close``."""

    def __init__(
        self,
        fs: Filesystem,
        path: str,
        compression: Compression = "lz4",
        quota: SpillQuota | None = None,
    ) -> None:
        self.path = path
        self._fs = fs
        self._folder = os.path.dirname(os.path.abspath(path))
        self._quota = quota or SpillQuota(fs, self._folder)
        self._codec = pa.Codec("lz4_raw") if compression else None
        self._untried = 0
        self._runs: list[run_format.RunInfo] = []
        self._index = bytearray()
        self._schema: pa.Schema | None = None
        self._run_entries = 0
        self._last = (0, 0)
        self._rows = 0
        self._raw_bytes = 0
        self._partition_rows = array.array("Q")
        self._pending = bytearray()
        self._offset = 0
        self._checksum = 0
        try:
            self._file = fs.create(path)
        except OSError as error:
            raise self._full(error, 0) from error
        try:
            self._write(run_format.MAGIC)
        except BaseException:
            self.abort()
            raise

    @property
    def bytes_written(self) -> int:
        return self._offset

    @property
    def content_checksum(self) -> int:
        """Sum of the blocks' checksums modulo 2**64: the same for a map that is run again, with the
        same memory, on the same input."""
        return self._checksum

    def begin_run(self, schema: pa.Schema) -> None:
        if self._schema is not None:
            raise InternalError(f"{self.path}: a run is open")
        run_arrow.check_schema(schema)
        self._schema = schema
        self._run_entries = 0
        self._last = (0, 0)

    def append(self, partition: int, batch: pa.RecordBatch, first_hash: int, last_hash: int) -> None:
        """A batch of one partition, its rows sorted by hash, behind all that the run holds.

        A batch without rows is left out.
        """
        if self._schema is None:
            raise InternalError(f"{self.path}: no run is open")
        if not batch.num_rows:
            return
        if not self._schema.equals(batch.schema):
            raise InternalError(f"{self.path}: a batch of {batch.schema}, the run is of {self._schema}")
        if (partition, first_hash) < self._last or last_hash < first_hash:
            raise InternalError(
                f"{self.path}: blocks out of order: partition {partition}, hashes {first_hash} to "
                f"{last_hash} after {self._last}"
            )
        raw = batch.serialize()
        if raw.size > run_format.RAW_BYTES_MAX:
            raise RecordTooLarge(
                f"a batch of {raw.size} bytes cannot be spilled: a block holds {run_format.RAW_BYTES_MAX}",
                details={"rows": batch.num_rows},
            )
        block = self._compressed(raw)
        entry = run_format.ENTRY_PACKED.pack(
            partition,
            batch.num_rows,
            self._offset,
            block.size,
            raw.size,
            first_hash,
            last_hash,
            xxhash.xxh3_64_intdigest(block),
        )
        self._write(block)
        self._index += entry
        self._run_entries += 1
        self._last = (partition, last_hash)
        self._rows += batch.num_rows
        self._raw_bytes += raw.size
        if partition >= len(self._partition_rows):
            self._partition_rows.extend([0] * (partition + 1 - len(self._partition_rows)))
        self._partition_rows[partition] += batch.num_rows

    def end_run(self) -> None:
        if self._schema is None:
            raise InternalError(f"{self.path}: no run is open")
        self._runs.append(run_format.RunInfo(run_arrow.encode_schema(self._schema), self._run_entries))
        self._schema = None

    def close(self, combined: run_format.Combined | None = None) -> RunFileSummary:
        """Write the index and close the file, which is whole now and still under its private name.
        `combined`: what it stands for, if it was merged from the outputs of several attempts."""
        if self._schema is not None:
            raise InternalError(f"{self.path}: a run is open")
        self._write(run_format.encode_footer(self._index, self._runs, combined))
        self._flush()
        try:
            self._file.close()
        except OSError as error:
            raise self._full(error, 0) from error
        partition_rows = tuple(self._partition_rows)
        return RunFileSummary(self._offset, self._raw_bytes, self._rows, partition_rows, len(self._runs))

    def abort(self) -> None:
        """Close and remove the file; nothing of it is left. Safe to call twice and after a failure."""
        try:
            self._file.close()
        finally:
            if self._fs.exists(self.path):
                self._fs.unlink(self.path)

    def _compressed(self, raw: pa.Buffer) -> pa.Buffer:
        if self._codec is None:
            return raw
        if self._untried:
            self._untried -= 1
            return raw
        block = self._codec.compress(raw)
        if block.size > raw.size * (1 - run_format.STORE_RAW_BELOW):
            self._untried = _TRIES_APART
            return raw
        return block

    def _write(self, data: pa.Buffer | bytes | bytearray) -> None:
        size = data.size if isinstance(data, pa.Buffer) else len(data)
        self._quota.take(size)
        self._offset += size
        if size < RUN_WRITE_BYTES // 4:  # many partitions make small blocks: one call for several
            self._pending += memoryview(data)
            if len(self._pending) >= RUN_WRITE_BYTES:
                self._flush()
            return
        self._flush()
        self._put(data, size)

    def _flush(self) -> None:
        if self._pending:
            pending, self._pending = self._pending, bytearray()
            self._put(pending, len(pending))

    def _put(self, data: pa.Buffer | bytearray | bytes, size: int) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._full(error, size) from error

    def _full(self, error: OSError, size: int) -> Exception:
        """SpillFull when that is what it is, else the error itself."""
        return spill_full(self._folder, size, None, str(error)) if is_disk_full(error) else error

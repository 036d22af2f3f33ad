"""Reads a run file (grammar in `run_format`) with `pread`: a mapped file cut short kills its reader.

Anything that is not exactly what the writer wrote raises CorruptRun naming file and offset: a missing
or short file, a checksum that differs, an entry that points outside, a disk that fails to read.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import xxhash

from cortex.errors import TooManyOpenFiles
from cortex.limits import OPEN_RUN_FILES_MAX
from cortex.storage import run_arrow, run_format
from cortex.storage.filesystem import Filesystem, ReadableFile


class OpenFiles:
    """Descriptors of files read by path, the least recently used closed beyond `files_max`, or beyond what
    the process turns out to be allowed.

    A merge has one run open for each map, which may be thousands; a process may have 1,024 files, or 256.
    """

    def __init__(self, fs: Filesystem, files_max: int = OPEN_RUN_FILES_MAX) -> None:
        self._fs = fs
        self._files_max = files_max
        self._files: OrderedDict[str, ReadableFile] = OrderedDict()

    def get(self, path: str) -> ReadableFile:
        """Raises OSError, but TooManyOpenFiles where other files of the process are to blame."""
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = self._open(path)
            if len(self._files) > self._files_max:
                self._files.popitem(last=False)[1].close()
        else:
            self._files.move_to_end(path)
        return file

    def _open(self, path: str) -> ReadableFile:
        while True:
            try:
                return self._fs.open(path)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                if not self._files:
                    raise TooManyOpenFiles(
                        f"a run file cannot be opened: {error.strerror}",
                        cure="raise the limit of open files: ulimit -n 1024",
                        details={"file": path},
                    ) from error
                self._files_max = max(1, len(self._files) // 2)  # others need some, too
                while len(self._files) >= self._files_max:
                    self._files.popitem(last=False)[1].close()

    def close(self, path: str | None = None) -> None:
        """Close one file, or all."""
        for name in [path] if path is not None else list(self._files):
            file = self._files.pop(name, None)
            if file is not None:
                file.close()

    def __len__(self) -> int:
        return len(self._files)


class Run:
    """One run: its schema and its index entries, in order of (partition, hash)."""

    def __init__(self, reader: RunFileReader, schema: pa.Schema, entries: run_arrow.Entries) -> None:
        self._reader = reader
        self.schema = schema
        self.all_entries = entries

    def entries(self, partition: int) -> run_arrow.Entries:
        """The entries of one segment; a view, in order of hash."""
        low, high = np.searchsorted(self.all_entries["partition"], [partition, partition + 1])
        return self.all_entries[low:high]

    def read(self, entry: np.void) -> pa.RecordBatch:
        """One block, checked. Holds the stored bytes and, if compressed, the raw ones."""
        return self._reader.read(self.schema, entry)

    def batches(self, partition: int) -> Iterator[pa.RecordBatch]:
        for entry in self.entries(partition):
            yield self.read(entry)


class RunFileReader:
    """A whole run file, or with `partition` only that partition's entries of it. `combined`: what a file
    merged from the outputs of several attempts stands for."""

    def __init__(
        self, fs: Filesystem, path: str, files: OpenFiles | None = None, partition: int | None = None
    ) -> None:
        self.path = path
        self._files = files if files is not None else OpenFiles(fs)
        self._codec = pa.Codec("lz4_raw")
        try:
            index, infos, self.combined = self._read_index()
            self.runs: tuple[Run, ...] = tuple(self._make_runs(index, infos, partition))
        except BaseException:
            self.close()  # nobody else could
            raise

    def entries(self, partition: int) -> list[run_arrow.Entries]:
        """Each run's entries of one partition, in the order of `runs`."""
        return [run.entries(partition) for run in self.runs]

    def rows(self, partition: int | None = None) -> int:
        """Of a partition, or of all that was opened."""
        kept = (run.all_entries if partition is None else run.entries(partition) for run in self.runs)
        return sum(int(entries["rows"].sum()) for entries in kept)

    def read(self, schema: pa.Schema, entry: np.void) -> pa.RecordBatch:
        offset, stored_bytes = int(entry["offset"]), int(entry["stored_bytes"])
        raw_bytes = int(entry["raw_bytes"])
        stored = self._pread(stored_bytes, offset)
        if xxhash.xxh3_64_intdigest(stored) != int(entry["checksum"]):
            raise run_format.corrupt(self.path, f"checksum of {stored_bytes} bytes differs", offset)
        block = pa.py_buffer(stored)
        try:
            if stored_bytes != raw_bytes:
                block = self._codec.decompress(block, raw_bytes)
            batch = pa.ipc.read_record_batch(block, schema)
        except (pa.ArrowInvalid, OSError) as error:
            raise run_format.corrupt(self.path, f"block cannot be decoded: {error}", offset) from error
        if batch.num_rows != int(entry["rows"]):
            raise run_format.corrupt(
                self.path, f"{batch.num_rows} rows in a block of {entry['rows']}", offset
            )
        return batch

    def close(self) -> None:
        """Close the descriptor; a later read opens it again."""
        self._files.close(self.path)

    def _pread(self, length: int, offset: int) -> bytes:
        try:
            data = self._files.get(self.path).pread(length, offset)
        except OSError as error:
            raise run_format.corrupt(self.path, str(error), offset) from error
        if len(data) != length:
            raise run_format.corrupt(self.path, f"{length - len(data)} of {length} bytes missing", offset)
        return data

    def _read_index(
        self,
    ) -> tuple[run_arrow.Entries, tuple[run_format.RunInfo, ...], run_format.Combined | None]:
        try:
            size = self._files.get(self.path).size_bytes
        except OSError as error:
            raise run_format.corrupt(self.path, str(error)) from error
        footer = run_format.read_footer(self._pread, size, self.path)
        index = np.frombuffer(footer.index, run_arrow.ENTRY)
        if len(index) and int((index["offset"] + index["stored_bytes"]).max()) > footer.blocks_end:
            raise run_format.corrupt(self.path, "an entry points behind the blocks", footer.blocks_end)
        return index, footer.runs, footer.combined

    def _make_runs(
        self, index: run_arrow.Entries, infos: tuple[run_format.RunInfo, ...], partition: int | None
    ) -> Iterator[Run]:
        at = 0
        schemas: dict[bytes, pa.Schema] = {}
        for info in infos:
            if info.schema not in schemas:
                schemas[info.schema] = run_arrow.decode_schema(info.schema, self.path)
            run = Run(self, schemas[info.schema], index[at : at + info.entries])
            if partition is not None:
                run.all_entries = run.entries(partition).copy()  # a view would keep the whole index
            yield run
            at += info.entries

"""A file cut into parts at record ends, each a file of its own: what ``cortex put`` gives to nodes.

Text and CSV are cut in one pass, exactly: each part begins outside quotes, and a CSV part begins with the
header. A part is then a range of the file. gzip is decompressed; Parquet is cut at row groups and Arrow IPC
at record batches, and each part written anew, with the same schema and codec: such parts are temporary files,
and a row group, or batch, has to fit in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, Protocol

from cortex.errors import InputError, PutFailed, UsageError
from cortex.job.plan import InputFile
from cortex.job.spec import CsvDialect, InputSpec
from cortex.limits import BLOCK_BYTES, PUT_BLOCK_BYTES_MIN, PUT_PARTS_MAX, RECORD_BYTES_MAX
from cortex.units import format_count

from . import arrow_file, parquet_file
from .arrow_metadata import read_batch, read_footer
from .blocks import Cuts, record_blocks
from .columnar import damage_reported, packed
from .csv_records import Grammar, Stretch
from .csv_schema import read_head
from .input_bytes import open_local
from .input_files import describe_file, format_of
from .sources import open_source
from .text_reader import LineCuts

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCKS_A_PART: Final = 16
_ENDINGS: Final = {"csv": ".csv", "tsv": ".tsv", "parquet": ".parquet", "arrow": ".arrow", "text": ".txt"}
_PACKED: Final = (".bz2", ".xz", ".zst", ".lz4", ".br", ".zip", ".7z", ".tar", ".tgz", ".z")
_CODECS: Final = {0: "lz4", 1: "zstd"}  # of Arrow IPC bodies


class Part(NamedTuple):
    """`head`, and behind it `length` bytes of the file `path` from `offset` on."""

    head: bytes
    path: str
    offset: int
    length: int
    sha256: str

    @property
    def size_bytes(self) -> int:
        return len(self.head) + self.length


class FileParts:
    """Iterate once: parts of about `part_bytes` at most (one record, row group or batch may be larger).
    Temporary ones lie in `folder`; whoever has used one removes it. Close it.

    Raises InputError and UsageError for a file that cannot be read or cut; InputChanged for one that is
    another by now, at its end.
    """

    def __init__(self, path: str, spec: InputSpec, part_bytes: int, folder: str) -> None:
        ending = os.path.splitext(path.lower())[1]
        if ending in _PACKED:
            raise UsageError(
                f"{path} cannot be cut at records: {ending} files are not read", cure="decompress it first"
            )
        self.file: InputFile = describe_file(0, path, spec)
        if self.file.dialect is not None and self.file.dialect.escape:
            raise UsageError(
                f"{path} cannot be cut at records: {self.file.unsplittable}", cure="put it without escapes"
            )
        self.ending = _ending(path, self.file.format)
        self._part_bytes = part_bytes
        self._folder = folder
        self._made = 0
        self._groups: list[range] = []
        self._open: _Columnar | None = None

    @property
    def temporary(self) -> bool:
        """Parts are files of their own, and not ranges of this one."""
        return bool(self.file.compression) or self.file.format in ("parquet", "arrow")

    def __iter__(self) -> Iterator[Part]:
        parts = self._columnar() if self.file.format in ("parquet", "arrow") else self._records()
        for count, part in enumerate(parts):
            if count >= PUT_PARTS_MAX:
                raise UsageError(
                    f"{self.file.path} has more than {format_count(PUT_PARTS_MAX)} parts",
                    cure="say a larger --part-size",
                )
            yield part

    def again(self, number: int, part: Part) -> Part:
        """A part that was given before, and removed. Raises InputError where that needs all before it."""
        if self._groups:
            return self._write_units(self._groups[number])
        if self.temporary:
            raise InputError(
                f"a node with a part of {self.file.path} was lost, and gzip is only read from its beginning",
                cure="run cortex put again, or decompress the file first",
            )
        return part

    def close(self) -> None:
        if self._open is not None:
            self._open.close()

    # --- text and CSV ---

    def _records(self) -> Iterator[Part]:
        file = self.file
        source = open_source(file)
        try:
            head, start, cuts = b"", 0, LineCuts
            if file.format in ("csv", "tsv"):
                found = read_head(source, {})
                head, cuts = found.record, _csv_cuts(file.dialect or CsvDialect())
                start = found.data_start
            part, made = _Growing(self, head, start), False
            block_bytes = max(PUT_BLOCK_BYTES_MIN, min(BLOCK_BYTES, self._part_bytes // _BLOCKS_A_PART))
            for block in record_blocks(source, start, None, min(block_bytes, RECORD_BYTES_MAX), cuts):
                if part.length and len(head) + part.length + block.size > self._part_bytes:
                    yield part.done()
                    part, made = _Growing(self, head, block.position), True
                part.add(memoryview(block.data)[: block.size])
            if part.length or (head and not made):  # one with a header alone
                yield part.done()
            elif not made:
                raise InputError(f"{file.path} is empty: there is nothing to put")
            source.finish()
        finally:
            source.close()

    # --- Parquet and Arrow ---

    def _columnar(self) -> Iterator[Part]:
        layout = parquet_file.read_layout if self.file.format == "parquet" else arrow_file.read_layout
        with contextlib.closing(open_local(self.file)) as data:
            _, units = layout(data)
            self._groups = list(packed(units, self._part_bytes)) or [range(0)]
            for group in self._groups:
                yield self._write_units(group)
            data.check()

    def _write_units(self, group: range) -> Part:
        if self._open is None:
            self._open = _Parquet(self.file) if self.file.format == "parquet" else _Arrow(self.file)
        path, file = self._temporary_file()
        with file:
            with damage_reported(self.file.path, self.file.format):
                self._open.write(file, group)
            size = file.tell()
        with open(path, "rb") as written:
            return Part(b"", path, 0, size, hashlib.file_digest(written, "sha256").hexdigest())

    def _temporary_file(self) -> tuple[str, _Scratch]:
        self._made += 1
        path = os.path.join(self._folder, f"part-{self._made}")
        return path, _Scratch(path)


class _Scratch(io.FileIO):
    """A temporary part being written. Its disk's errors are PutFailed, not those of the file that is read."""

    def __init__(self, path: str) -> None:
        try:
            super().__init__(path, "wb")
        except OSError as error:
            raise self._failed(path, error) from error
        self._path = path

    def write(self, data: Any) -> int:
        """All of it."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            raise self._failed(self._path, error) from error
        return size

    @staticmethod
    def _failed(path: str, error: OSError) -> PutFailed:
        return PutFailed(
            f"a temporary part cannot be written in {os.path.dirname(path)}: {error.strerror}",
            cure="free space there (a few parts' worth), or name another folder in TMPDIR",
        )


class _Growing:
    """The part that is being cut: hashed as it grows, and written where it is no range of the file."""

    def __init__(self, parts: FileParts, head: bytes, offset: int) -> None:
        self._head = head
        self._hash = hashlib.sha256(head)
        self._path = parts.file.path
        self._file: _Scratch | None = None
        self.offset = offset
        self.length = 0
        self._temporary = parts.temporary
        if parts.temporary:
            self._path, self._file = parts._temporary_file()

    def add(self, data: memoryview) -> None:
        self._hash.update(data)
        self.length += len(data)
        if self._file is not None:
            self._file.write(data)

    def done(self) -> Part:
        if self._file is not None:
            self._file.close()
        offset = 0 if self._temporary else self.offset
        return Part(self._head, self._path, offset, self.length, self._hash.hexdigest())


class _Columnar(Protocol):
    """A file open for its units to be written into others."""

    def close(self) -> None: ...

    def write(self, to: BinaryIO, group: range) -> None: ...


class _Parquet:
    def __init__(self, file: InputFile) -> None:
        import pyarrow.parquet as pq

        with damage_reported(file.path, "Parquet"):
            self._file = pq.ParquetFile(file.path, memory_map=False, page_checksum_verification=True)

    def close(self) -> None:
        self._file.close()

    def write(self, to: BinaryIO, group: range) -> None:
        import pyarrow.parquet as pq

        metadata = self._file.metadata
        codecs: Any = "snappy"
        if metadata.num_row_groups:
            first = metadata.row_group(0)
            columns = [first.column(i) for i in range(first.num_columns)]
            codecs = {column.path_in_schema: _codec(column.compression) for column in columns}
        with pq.ParquetWriter(to, self._file.schema_arrow, compression=codecs) as writer:
            for unit in group:
                table = self._file.read_row_group(unit, use_threads=False)
                writer.write_table(table, row_group_size=max(1, table.num_rows))


def _codec(name: str) -> str:
    """What a writer may be told: of some files only reading is known (LZO)."""
    return {"UNCOMPRESSED": "none", "GZIP": "gzip", "ZSTD": "zstd", "BROTLI": "brotli"}.get(name, "snappy")


class _Arrow:
    def __init__(self, file: InputFile) -> None:
        import pyarrow as pa

        self._codec: str | None = None
        with contextlib.closing(open_local(file)) as data, damage_reported(file.path, "Arrow IPC"):
            batches = read_footer(data).batches
            if batches:
                codec = read_batch(data, batches[0]).codec
                self._codec = None if codec is None else _CODECS.get(codec)
            self._native: pa.NativeFile = pa.OSFile(file.path)
            self._reader = pa.ipc.open_file(self._native)

    def close(self) -> None:
        self._native.close()

    def write(self, to: BinaryIO, group: range) -> None:
        import pyarrow as pa

        options = pa.ipc.IpcWriteOptions(compression=self._codec)
        with pa.ipc.new_file(to, self._reader.schema, options=options) as writer:
            for unit in group:
                writer.write_batch(self._reader.get_batch(unit))


def _csv_cuts(dialect: CsvDialect) -> Any:
    grammar = Grammar(dialect)

    def cuts(data: bytes | bytearray, count: int, final: bool) -> Cuts:
        return Stretch(grammar, data, count, final=final)

    return cuts


def _ending(path: str, format_: str) -> str:
    """Of the parts: such that a job takes them for what the file was."""
    ending = os.path.splitext(path.lower().removesuffix(".gz"))[1]
    own = ending[1:].isalnum() and ending.isascii() and len(ending) <= 17
    return ending if own and format_of("part" + ending) == (format_, "") else _ENDINGS[format_]

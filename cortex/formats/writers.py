"""`open_writer`: one output file, in any of the output formats.

The file's bytes depend on the rows and the schema alone, not on the batches they came in, and hold no time
and no random id. `close` makes the file durable (fsync) before it returns; `abort` removes it.

Raises OutputFailed when the file cannot be written, ValueTypeError for values the format cannot hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Final

import pyarrow as pa

from cortex.errors import OutputFailed, UsageError, ValueTypeError
from cortex.job.protocol import FIELD_KIND
from cortex.job.spec import OUTPUT_FORMATS
from cortex.kernels.wider import widened_batch
from cortex.limits import MIB

from .columnar_writers import ArrowEncoder, ParquetEncoder, Regrouped, reread
from .text_writers import CsvFormat, JsonLinesFormat, LineFormat, TextFormat

_EXTENSIONS: Final = {
    "csv": ".csv",
    "tsv": ".tsv",
    "jsonl": ".jsonl",
    "parquet": ".parquet",
    "arrow": ".arrow",
    "text": ".txt",
}
_NARROW: Final = ".narrow"  # the file so far, while it is written again by `widen`
_BUFFER_BYTES: Final = 1 * MIB  # small groups of lines are gathered before they are written


def output_extension(format_: str) -> str:
    """The ending of an output file's name, with its dot."""
    try:
        return _EXTENSIONS[format_]
    except KeyError:
        raise UsageError(
            f"unknown output format {format_!r}", cure=f"use one of: {', '.join(OUTPUT_FORMATS)}"
        ) from None


def _line_format(format_: str, schema: pa.Schema) -> LineFormat | None:
    if format_ == "csv":
        return CsvFormat(schema, ",")
    if format_ == "tsv":
        return CsvFormat(schema, "\t")
    if format_ == "jsonl":
        return JsonLinesFormat(schema)
    return TextFormat(schema) if format_ == "text" else None


class Writer:
    """Made by `open_writer`. As a context it is closed at the end, or aborted when an exception leaves it."""

    def __init__(self, path: str, format_: str, schema: pa.Schema) -> None:
        output_extension(format_)
        self._path = path
        self._format = format_
        self._rows = 0
        self._closed = False
        self._encoder: ParquetEncoder | ArrowEncoder | None = None
        self._take_schema(schema)
        with self._failures():
            self._file = open(path, "wb", buffering=_BUFFER_BYTES)  # noqa: SIM115 (held until close)
        try:
            with self._failures():
                self._begin()
        except BaseException:
            self.abort()
            raise

    def _take_schema(self, schema: pa.Schema) -> None:
        self._schema = pa.schema([_written_field(f) for f in schema])
        self._lines = _line_format(self._format, self._schema)
        self._regrouped = Regrouped(self._schema)

    def _begin(self) -> None:
        if self._lines is not None:
            self._file.write(self._lines.header())
        else:
            make = ParquetEncoder if self._format == "parquet" else ArrowEncoder
            self._encoder = make(pa.PythonFile(self._file, mode="w"), self._schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends the rows of `batch`, whose columns are the schema's in order."""
        if batch.schema != self._schema:
            batch = _as_schema(batch, self._schema)
        with self._failures():
            self._append(batch)
        self._rows += batch.num_rows

    def _append(self, batch: pa.RecordBatch) -> None:
        if self._lines is not None:
            for buffer in self._lines.encode(batch):
                self._file.write(buffer)
        elif self._encoder is not None:
            for group in self._regrouped.add(batch):
                self._encoder.write(group)

    def widen(self, schema: pa.Schema) -> None:
        """Go on with a schema (of `wider_schema`) that has types for columns of nulls: the file is as if it
        had been written with it from the start. In a text format it is already; others are written again."""
        if self._lines is not None:
            self._take_schema(schema)
            return
        narrow = self._path + _NARROW
        with self._failures():
            self._finish_encoder()
            self._file.close()
            os.rename(self._path, narrow)
            self._file = open(self._path, "wb", buffering=_BUFFER_BYTES)  # noqa: SIM115
            self._take_schema(schema)
            self._begin()
            for batch in reread(narrow, self._format):
                self._append(widened_batch(batch, self._schema))
            os.unlink(narrow)

    def _finish_encoder(self) -> None:
        if self._encoder is not None:
            for group in self._regrouped.finish():
                self._encoder.write(group)
            self._encoder.close()

    def close(self) -> tuple[int, int]:
        """(rows, size in bytes) of the finished, durable file."""
        with self._failures():
            self._finish_encoder()
            self._file.flush()
            os.fsync(self._file.fileno())
            size = os.fstat(self._file.fileno()).st_size
            self._file.close()
        self._closed = True
        return self._rows, size

    def abort(self) -> None:
        """Removes the file; nothing is left of it. Never raises."""
        if self._closed:
            return
        self._closed = True
        if self._encoder is not None:
            with suppress(OSError, ValueError, pa.ArrowException):
                self._encoder.close()  # or its finalizer would write to the closed file
        with suppress(OSError, ValueError):
            self._file.close()
        for path in (self._path, self._path + _NARROW):
            with suppress(OSError):
                os.unlink(path)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputFailed(
                f"output cannot be written: {error.strerror or error}",
                details={"file": self._path},
                cure="check the space and the permissions of the output folder",
            ) from error
        except pa.ArrowNotImplementedError as error:
            raise ValueTypeError(
                f"the output format cannot hold these values: {error}",
                details={"file": self._path},
                cure="use another output format, such as arrow",
            ) from error


def _written_field(field: pa.Field) -> pa.Field:
    """Of a field's metadata only what says how cells of row-form output become Python values again."""
    kind = (field.metadata or {}).get(FIELD_KIND)
    metadata = {FIELD_KIND: kind} if kind else None
    return pa.field(field.name, _written_type(field.type), metadata=metadata)


def _written_type(data_type: pa.DataType) -> pa.DataType:
    return data_type.value_type if pa.types.is_dictionary(data_type) else data_type


def _as_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def open_writer(path: str, format_: str, schema: pa.Schema) -> Writer:
    """A writer of a new file at `path`, a path of the local filesystem; an older file there is replaced."""
    return Writer(path, format_, schema)

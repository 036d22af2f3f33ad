"""`open_reader`: the records of one split, as batches or as lines, whatever the format.

A reader is iterated once. It raises `InputError` for bad input (with file, offset, record and cause),
`InputChanged` when the file is not the one that was planned, `RecordTooLarge` for a record that does not
fit in memory. `bytes_read` counts input bytes so far; `describe(position)` tells where a record of what
was yielded last stands, for errors in user code. Close it, or use it as a context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from cortex.errors import InternalError
from cortex.job.plan import InputFile, Split

from .arrow_file import ArrowReader
from .csv_reader import CsvReader
from .input_bytes import Opener, open_local
from .parquet_file import ParquetReader
from .text_reader import TextReader


class Reader:
    """One split's records: `pyarrow.RecordBatch`es with exactly the wanted columns, or lists of lines."""

    def __init__(self, inner: TextReader | CsvReader | ParquetReader | ArrowReader) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[Any]:
        return iter(self._inner)

    @property
    def bytes_read(self) -> int:
        return self._inner.bytes_read

    def describe(self, position: int) -> tuple[int, str]:
        """(byte offset, text) of the record at `position` in the batch or list yielded last.

        The offset of a gzip file is in its decompressed data. Parquet and Arrow records have no offset
        (-1) and say which row of the file they are.
        """
        return self._inner.describe(position)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_reader(
    file: InputFile,
    split: Split,
    columns: Sequence[tuple[str, str]],
    *,
    block_bytes: int,
    as_lines: bool = False,
    open_input: Opener = open_local,
) -> Reader:
    """`columns` are (name, Arrow type name), as in `InputPlan.columns`; at least one.

    `as_lines` (text only): lists of str, or of bytes when the file's encoding is ``bytes``. Otherwise
    batches, of at most about `block_bytes` of input and `limits.BATCH_ROWS_MAX` rows.
    `open_input` opens the file: more than once, when `describe` looks at what was read.
    """
    if as_lines and file.format != "text":
        raise InternalError(
            f"a {file.format} file was asked for lines; only text has them", details={"file": file.path}
        )
    if file.format == "text":
        return Reader(
            TextReader(
                file, split, columns, block_bytes=block_bytes, as_lines=as_lines, open_input=open_input
            )
        )
    reader: type[CsvReader | ParquetReader | ArrowReader] = ArrowReader
    if file.format in ("csv", "tsv"):
        reader = CsvReader
    elif file.format == "parquet":
        reader = ParquetReader
    return Reader(reader(file, split, columns, block_bytes=block_bytes, open_input=open_input))

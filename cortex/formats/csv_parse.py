"""One block of whole CSV records to Arrow columns, and the record at fault when that fails.

pyarrow parses and converts a block at once and says little about where it failed. Here a failing block is
halved until one record is left, which is parsed column by column; the `InputError` names the file, the
record's byte offset and text, the cause in plain words and the cure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from cortex.errors import InputError
from cortex.job.spec import CsvDialect

from .csv_misfits import explain_misfit
from .csv_numbers import NumberCheck
from .csv_records import Grammar, Stretch
from .sources import UTF8_BOM, line_text

_REFUSED: Final = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError)
_WHOLE: Final = 2**31 - 1  # more than any block: pyarrow parses it at once, and takes no memory for more
_COUNTS = re.compile(r"Expected (\d+) columns?, got (\d+)")
_BYTES_CHECKED_PER_VALUE: Final = 40
"""pyarrow checks that one value is UTF-8 in the time in which that many bytes are checked at once. Fields end
at ASCII bytes, so those of valid text are valid; a block that is not has its values checked one by one."""
_PERHAPS_A_VALUE = re.compile(r"\d|inf|nan|true|false", re.IGNORECASE)
"""A null word that some type might read as a value."""


class BlockParser:
    """Parses blocks of one dialect. `names` are the file's columns in order; `types` of those wanted, in
    the order wanted (None: every column, types inferred from the block)."""

    def __init__(
        self, path: str, dialect: CsvDialect, names: Sequence[str], types: Mapping[str, pa.DataType] | None
    ) -> None:
        self._path = path
        self._grammar = Grammar(dialect)
        self._dialect = dialect
        self._names = list(names)
        self._read_options = pacsv.ReadOptions(use_threads=False, block_size=_WHOLE, column_names=self._names)
        self._parse_options = pacsv.ParseOptions(
            delimiter=dialect.delimiter,
            quote_char=dialect.quote or False,
            double_quote=bool(dialect.quote),
            escape_char=dialect.escape or False,
            # The option is for cutting blocks, which is done here: a block is parsed whole.
            newlines_in_values=False,
            # In a file of one column a blank line is a row; in wider ones it is none.
            ignore_empty_lines=len(names) != 1,
        )
        self._types = dict(types or {})
        texts = {name: kind for name, kind in self._types.items() if _is_text(kind)}
        others = {name: kind for name, kind in self._types.items() if name not in texts}
        # Quoted, a null word is null but in a text column. pyarrow has one switch for all columns of a parse.
        self._convert = self._conversion(self._types, quoted_nulls=not texts)
        self._convert_checked = self._conversion(self._types, quoted_nulls=not texts, check_utf8=False)
        self._halves = [
            self._conversion(texts, quoted_nulls=False),
            self._conversion(others, quoted_nulls=True),
        ]
        self._mixed = bool(dialect.quote and texts and others)
        self._in_halves = self._mixed and any(map(_PERHAPS_A_VALUE.search, dialect.null_values))
        """Whether blocks with a quote are parsed in halves at once, not only if parsing them whole fails."""
        self._numbers = NumberCheck(self._grammar, self._names, self._types)
        strings = sum(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in texts.values())
        self._row_bytes_checked_max = _BYTES_CHECKED_PER_VALUE * strings
        self._row_bytes = float("inf")  # of the block before

    def _conversion(
        self, types: Mapping[str, pa.DataType], *, quoted_nulls: bool, check_utf8: bool = True
    ) -> pacsv.ConvertOptions:
        return pacsv.ConvertOptions(
            check_utf8=check_utf8,
            column_types=types,
            include_columns=list(types),
            null_values=list(self._dialect.null_values),
            strings_can_be_null=True,
            quoted_strings_can_be_null=quoted_nulls,
        )

    def parse(self, data: bytes | bytearray, low: int, high: int, *, position: int) -> pa.Table:
        """The rows of ``data[low:high]``, which stands at `position` in the file. One chunk a column.

        Raises InputError for the first record that does not fit.
        """
        try:
            checked = self._row_bytes <= self._row_bytes_checked_max and _is_utf8(data, low, high)
            table = self._parse(data, low, high, self._convert_checked if checked else self._convert)
            self._row_bytes = (high - low) / max(1, table.num_rows)
            return table
        except _REFUSED as error:
            raise self._fault(data, low, high, position, error) from None

    def _parse(self, data: bytes | bytearray, low: int, high: int, convert: pacsv.ConvertOptions) -> pa.Table:
        view = memoryview(data)[low:high]
        if data.startswith(UTF8_BOM, low, high):
            # pyarrow drops a byte order mark at the start of what it parses, here the middle of a file.
            view = memoryview(UTF8_BOM + bytes(view))
        if self._in_halves and data.find(self._grammar.quote, low, high) >= 0:
            table = self._parse_halves(view)
        else:
            try:
                table = self._read(view, convert)
            except pa.ArrowInvalid:
                if not self._mixed or data.find(self._grammar.quote, low, high) < 0:
                    raise
                table = self._parse_halves(view)
                self._in_halves = True
        self._numbers.check(table, data, low, high, partial(self._texts, view))
        return table

    def _parse_halves(self, view: memoryview) -> pa.Table:
        """The text columns and the others, each by their own rule for quoted null words."""
        halves = [self._read(view, convert) for convert in self._halves]
        columns = {name: half.column(name) for half in halves for name in half.column_names}
        return pa.table({name: columns[name] for name in self._types})

    def _texts(self, view: memoryview, names: Sequence[str]) -> pa.Table:
        return self._read(view, self._conversion({name: pa.string() for name in names}, quoted_nulls=True))

    def _read(self, view: memoryview, convert: pacsv.ConvertOptions) -> pa.Table:
        return pacsv.read_csv(
            pa.BufferReader(pa.py_buffer(view)),
            read_options=self._read_options,
            parse_options=self._parse_options,
            convert_options=convert,
        )

    def _error_of(self, data: bytes | bytearray, low: int, high: int) -> pa.ArrowException | None:
        try:
            self._parse(data, low, high, self._convert)
        except _REFUSED as error:
            return error
        return None

    def _fault(
        self, data: bytes | bytearray, low: int, high: int, position: int, error: pa.ArrowException
    ) -> InputError:
        block = bytes(memoryview(data)[low:high])
        first, end = self._failing_record(block)
        record = block[first:end]
        cause, cure = self._explain(record, str(self._error_of(record, 0, len(record)) or error))
        return InputError(
            cause,
            details={"file": self._path, "offset": position + first, "line": line_text(record)},
            cure=cure,
        )

    def _failing_record(self, block: bytes) -> tuple[int, int]:
        """(low, high) of the first record of `block` that cannot be parsed; the block if each alone can."""
        stretch = Stretch(self._grammar, block, len(block), final=True)
        bounds = np.concatenate(([0], stretch.record_ends()))
        if bounds[-1] != len(block):
            bounds = np.append(bounds, len(block))
        first, last = 0, len(bounds) - 1
        while last - first > 1:
            middle = (first + last) // 2
            if self._error_of(block, int(bounds[first]), int(bounds[middle])):
                last = middle
            else:
                first = middle
        low, high = int(bounds[first]), int(bounds[last])
        return (low, high) if self._error_of(block, low, high) else (0, len(block))

    def _explain(self, record: bytes, message: str) -> tuple[str, str]:
        """(cause, cure) of one record's failure, in plain words."""
        if match := _COUNTS.search(message):
            expected, got = int(match[1]), int(match[2])
            plural = "column" if expected == 1 else "columns"
            return (
                f"expected {expected} {plural}, got {got}",
                "correct the line, or check that delimiter and quote are those of the file",
            )
        fields = self._conversion({name: pa.binary() for name in self._types}, quoted_nulls=False)
        try:
            values = self._read(memoryview(record), fields)
        except _REFUSED:  # no fields, no field at fault
            return message, ""
        for name, kind in self._types.items():
            alone = BlockParser(self._path, self._dialect, self._names, {name: kind})
            failure = alone._error_of(record, 0, len(record))
            if failure is not None:
                text = (values.column(name)[0].as_py() or b"").decode("utf-8", "backslashreplace")
                return explain_misfit(name, text, kind, str(failure), self._dialect.null_values)
        return message, ""


def _is_text(kind: pa.DataType) -> bool:
    """Whether an empty text is a value of the type."""
    is_ = pa.types
    if is_.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(
        is_.is_string(kind) or is_.is_large_string(kind) or is_.is_binary(kind) or is_.is_large_binary(kind)
    )


def _is_utf8(data: bytes | bytearray, low: int, high: int) -> bool:
    edges = pa.py_buffer(np.array([0, high - low], np.int64))
    whole = pa.py_buffer(memoryview(data)[low:high])
    try:
        pa.Array.from_buffers(pa.large_string(), 1, [None, edges, whole]).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True

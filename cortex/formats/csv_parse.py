"""One block of whole CSV records to Arrow columns, and the record at fault when that fails.

pyarrow parses and converts a block at once and says little about where it failed. Here a failing block is
halved until one record is left, which is parsed column by column; the `InputError` names the file, the
record's byte offset and text, the cause in plain words and the cure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from cortex.errors import InputError
from cortex.job.spec import CsvDialect
from cortex.job.types import type_name

from .csv_records import Grammar, Stretch
from .sources import UTF8_BOM, line_text

_MISSING_WORDS: Final = frozenset(
    ("na", "n/a", "#n/a", "nan", "null", "none", "nil", "-", "--", ".", "?", "\\n")
)
_COUNTS = re.compile(r"Expected (\d+) columns?, got (\d+)")
_DATE_AND_TIME = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,9})?)?)?")
_BYTES_CHECKED_PER_VALUE: Final = 40
"""pyarrow checks that one value is UTF-8 in the time in which that many bytes are checked at once. Fields end
at ASCII bytes, so those of valid text are valid; a block that is not has its values checked one by one."""
_VALUE = re.compile(r"invalid value '(.*)'\s*$", re.DOTALL)


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
        self._types = types
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
        self._convert_options = self._conversion(types)
        self._convert_checked = self._conversion(types, check_utf8=False)
        texts = sum(
            pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in (types or {}).values()
        )
        self._row_bytes_checked_max = _BYTES_CHECKED_PER_VALUE * texts
        self._row_bytes = float("inf")  # of the block before

    def _conversion(
        self, types: Mapping[str, pa.DataType] | None, check_utf8: bool = True
    ) -> pacsv.ConvertOptions:
        return pacsv.ConvertOptions(
            check_utf8=check_utf8,
            column_types=dict(types or {}),
            include_columns=list(types or ()),
            null_values=list(self._dialect.null_values),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )

    def parse(self, data: bytes | bytearray, low: int, high: int, *, position: int) -> pa.Table:
        """The rows of ``data[low:high]``, which stands at `position` in the file. One chunk a column.

        Raises InputError for the first record that does not fit.
        """
        try:
            checked = self._row_bytes <= self._row_bytes_checked_max and _is_utf8(data, low, high)
            table = self._parse(data, low, high, self._convert_checked if checked else self._convert_options)
            self._row_bytes = (high - low) / max(1, table.num_rows)
            return table
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError) as error:
            raise self._fault(data, low, high, position, error) from None

    def _parse(self, data: bytes | bytearray, low: int, high: int, convert: pacsv.ConvertOptions) -> pa.Table:
        view = memoryview(data)[low:high]
        if data.startswith(UTF8_BOM, low, high):
            # pyarrow drops a byte order mark at the start of what it parses, here the middle of a file.
            view = memoryview(UTF8_BOM + bytes(view))
        read = pacsv.ReadOptions(use_threads=False, block_size=len(view) + 1, column_names=self._names)
        return pacsv.read_csv(
            pa.BufferReader(pa.py_buffer(view)),
            read_options=read,
            parse_options=self._parse_options,
            convert_options=convert,
        )

    def _error_of(
        self, data: bytes | bytearray, low: int, high: int, convert: pacsv.ConvertOptions
    ) -> pa.ArrowException | None:
        try:
            self._parse(data, low, high, convert)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError) as error:
            return error
        return None

    def _fault(
        self, data: bytes | bytearray, low: int, high: int, position: int, error: Exception
    ) -> InputError:
        record_low, record_high = self._failing_record(bytes(memoryview(data)[low:high]))
        found: Exception = error
        if record_high:
            alone = self._error_of(data, low + record_low, low + record_high, self._convert_options)
            found = alone or error
        record = memoryview(data)[low + record_low : low + (record_high or (high - low))]
        cause, cure = self._explain(data, low + record_low, low + record_high, str(found))
        return InputError(
            cause,
            details={"file": self._path, "offset": position + record_low, "line": line_text(record)},
            cure=cure,
        )

    def _failing_record(self, block: bytes) -> tuple[int, int]:
        """(low, high) of the first record of `block` that cannot be parsed; (0, 0) if each one alone can."""
        stretch = Stretch(self._grammar, block, len(block), final=True)
        bounds = np.concatenate(([0], stretch.record_ends()))
        if bounds[-1] != len(block):
            bounds = np.append(bounds, len(block))
        first, last = 0, len(bounds) - 1
        while last - first > 1:
            middle = (first + last) // 2
            if self._error_of(block, int(bounds[first]), int(bounds[middle]), self._convert_options):
                last = middle
            else:
                first = middle
        low, high = int(bounds[first]), int(bounds[last])
        return (low, high) if self._error_of(block, low, high, self._convert_options) else (0, 0)

    def _explain(self, data: bytes | bytearray, low: int, high: int, message: str) -> tuple[str, str]:
        """(cause, cure) of one record's failure, in plain words."""
        if match := _COUNTS.search(message):
            expected, got = int(match[1]), int(match[2])
            plural = "column" if expected == 1 else "columns"
            return (
                f"expected {expected} {plural}, got {got}",
                "correct the line, or check that delimiter and quote are those of the file",
            )
        for name, data_type in (self._types or {}).items():
            failure = self._error_of(data, low, high, self._conversion({name: data_type}))
            if failure is not None:
                return self._explain_value(name, data_type, str(failure))
        return message, ""

    def _explain_value(self, name: str, data_type: pa.DataType, message: str) -> tuple[str, str]:
        wanted = type_name(data_type)
        if "invalid UTF8" in message:
            return (
                f"invalid UTF-8 in column {name!r}",
                f"save the file as UTF-8, or read bytes: columns: {{{name}: binary}}",
            )
        match = _VALUE.search(message)
        if match is None:
            reason = message.rpartition("CSV conversion error to ")[2]
            return f"column {name!r} cannot be read as {reason}", f"columns: {{{name}: string}}"
        value = match[1]
        if value.strip().lower() in _MISSING_WORDS:
            nulls = ", ".join(repr(v) for v in (*self._dialect.null_values, value))
            cure = f"if it stands for a missing value: null_values: [{nulls}]"
        else:
            cure = f"columns: {{{name}: {_wider(value, data_type)}}}"
        return f"{value!r} is not {wanted} (column {name!r})", cure


def _is_utf8(data: bytes | bytearray, low: int, high: int) -> bool:
    edges = pa.py_buffer(np.array([0, high - low], np.int64))
    whole = pa.py_buffer(memoryview(data)[low:high])
    try:
        pa.Array.from_buffers(pa.large_string(), 1, [None, edges, whole]).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _wider(value: str, data_type: pa.DataType) -> str:
    """A type that takes `value` and what `data_type` takes."""
    if pa.types.is_integer(data_type):
        try:
            number = int(value)
        except ValueError:
            try:
                float(value)
            except ValueError:
                return "string"
            return "float64"
        if -(2**63) <= number < 2**63:
            return "int64"
        return "uint64" if 0 <= number < 2**64 else "string"
    if pa.types.is_temporal(data_type) and _DATE_AND_TIME.fullmatch(value.strip()):
        return "timestamp[ns]" if len(value.rpartition(".")[2]) > 6 and "." in value else "timestamp[us]"
    return "string"

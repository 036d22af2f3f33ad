"""A CSV file's column names and where its records begin, and column types from a fixed sample.

The sample is the file's first `limits.INFER_BYTES`, cut at a record's end: it depends on nothing but the
file. Integers too large for int64 are read as strings (as numbers they would lose digits), and so are
hexadecimal ones; a column without a value is a string column unless another file says otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from cortex.errors import InputError, RecordTooLarge
from cortex.job.plan import IN, InputFile
from cortex.job.spec import CsvDialect
from cortex.limits import INFER_BYTES, KIB, RECORD_BYTES_MAX

from .csv_numbers import hex_starts, is_hex
from .csv_parse import BlockParser
from .csv_records import Grammar, Stretch
from .sources import UTF8_BOM, Source, line_text

_INTEGER = r"^\s*[+-]?[0-9]+\s*$"


class Head(NamedTuple):
    """`names` is () for a file without a single record."""

    names: tuple[str, ...]
    data_start: int
    record: bytes = b""
    """The header as it stands, with its line end; b"" where there is none."""


def _first_record(source: Source, grammar: Grammar, position: int) -> bytes:
    """The record at `position`, with its line end; b"" at the file's end."""
    wanted = 64 * KIB
    while True:
        data, count, final = source.window(position, wanted)
        stretch = Stretch(grammar, data, count, final=final)
        end = stretch.first_end(1)
        if end < 0 and final:
            end = count
        if end >= 0:
            return bytes(memoryview(data)[:end])
        if wanted >= RECORD_BYTES_MAX:
            raise RecordTooLarge(
                "the first record does not end",
                details={
                    "file": source.file.path,
                    "offset": position,
                    "line": line_text(memoryview(data)[:count]),
                },
                cure="check for an unclosed quote there",
            )
        wanted = min(wanted * 2, RECORD_BYTES_MAX)


def read_head(source: Source, declared: Mapping[str, str]) -> Head:
    """`source` stands at the file's beginning (gzip only moves forward, past the header)."""
    file = source.file
    dialect = file.dialect or CsvDialect()
    grammar = Grammar(dialect)
    data, count, _ = source.window(0, 3)
    start = 3 if count >= 3 and data[:3] == UTF8_BOM else 0
    record = _first_record(source, grammar, start)
    if not dialect.header:
        if not record:
            return Head((), start)
        return Head(tuple(declared) or tuple(_fields(file, dialect, record, header=False)), start)
    while record in (b"\n", b"\r", b"\r\n"):  # blank lines before the header
        start += len(record)
        record = _first_record(source, grammar, start)
    if not record:
        return Head((), start)
    names = _fields(file, dialect, record, header=True)
    doubled = [name for name, times in Counter(names).items() if times > 1]
    if doubled:
        raise InputError(
            f"the header names {', '.join(map(repr, doubled))} more than once",
            details={"file": file.path, "offset": start, "line": line_text(record)},
            cure="give every column its own name, or set header: false and name them under columns:",
        )
    return Head(tuple(names), start + len(record), record)


def _fields(file: InputFile, dialect: CsvDialect, record: bytes, *, header: bool) -> list[str]:
    if Stretch(Grammar(dialect), record, len(record), final=True).end_state() == IN:
        raise InputError(
            "the file ends inside a quoted field of its first line: its quote is never closed",
            details={"file": file.path, "line": line_text(record)},
            cure="close the quote; if quotes in this file mean nothing, set quote: ''",
        )
    if not record.endswith((b"\n", b"\r")):
        record += b"\n"  # pyarrow takes names from whole lines only
    try:
        record.decode()
        table = pacsv.read_csv(
            pa.BufferReader(record),
            read_options=pacsv.ReadOptions(
                use_threads=False, block_size=len(record) + 1, autogenerate_column_names=not header
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=dialect.delimiter,
                quote_char=dialect.quote or False,
                double_quote=bool(dialect.quote),
                escape_char=dialect.escape or False,
                ignore_empty_lines=header,
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise InputError(
            f"the first line cannot be read: {error}",
            details={"file": file.path, "line": line_text(record)},
            cure=_cure_of_first_bytes(record),
        ) from error
    names: list[str] = table.column_names
    return names


_MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip"}


def _cure_of_first_bytes(record: bytes) -> str:
    """The cure for a first line that is no text, by what it looks like."""
    found = next((name for magic, name in _MAGIC.items() if record.startswith(magic)), "")
    if found in ("parquet", "arrow"):
        return f"this is {'an' if found == 'arrow' else 'a'} {found} file: read it with format {found}"
    if found:
        return f"this is a {found} file: " + (
            "give it a name that ends in .gz" if found == "gzip" else "unpack it first"
        )
    if record.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "this looks like UTF-16: save the file as UTF-8 (iconv -f UTF-16 -t UTF-8)"
    return "save the file as UTF-8"


class Sample:
    """The first records of a file, to infer types from."""

    def __init__(self, source: Source, head: Head) -> None:
        self._file = source.file
        self._dialect = source.file.dialect or CsvDialect()
        self._names = head.names
        self._position = head.data_start
        grammar = Grammar(self._dialect)
        data, count, final = source.window(head.data_start, INFER_BYTES)
        if not final or count > INFER_BYTES:
            # A gzip window may hold more than was asked for: the sample does not.
            count, final = min(count, INFER_BYTES), False
            count = Stretch(grammar, data, count, final=False).last_end()
            if not count:
                data = _first_record(source, grammar, head.data_start)
                count = len(data)
        self._data = bytes(memoryview(data)[:count])

    def types(self) -> tuple[dict[str, pa.DataType], list[str]]:
        """(type of each column, columns of integers too large for a number). A column that is no UTF-8 is
        binary, one without a value null."""
        if not self._data:
            return {name: pa.null() for name in self._names}, []
        table = self._parse(None)
        types = dict(zip(table.column_names, table.schema.types))
        too_large = []
        if len(hex_starts(self._data, 0, len(self._data), Grammar(self._dialect))):
            for name, texts in self._texts(table, pa.int64()):
                if is_hex(texts):
                    types[name] = pa.string()
        for name, texts in self._texts(table, pa.float64()):
            if pc.all(pc.match_substring_regex(texts, _INTEGER)).as_py() and _float_loses(texts):
                types[name] = pa.string()
                too_large.append(name)
        return types, too_large

    def _texts(self, table: pa.Table, kind: pa.DataType) -> Iterator[tuple[str, pa.ChunkedArray]]:
        """Each column that was taken for a type, and its values as they are written."""
        names = [field.name for field in table.schema if field.type == kind]
        if names:
            texts = self._parse({name: pa.string() for name in names})
            for name in names:
                yield name, texts.column(name).filter(table.column(name).is_valid())

    def check_utf8(self, name: str) -> None:
        """InputError for the sample's first record whose column `name` is not UTF-8."""
        self._parse({name: pa.string()})

    def _parse(self, types: dict[str, pa.DataType] | None) -> pa.Table:
        parser = BlockParser(self._file.path, self._dialect, self._names, types)
        return parser.parse(self._data, 0, len(self._data), position=self._position)


def _float_loses(integers: pa.ChunkedArray) -> bool:
    """Whether one of these integers, as written, is beyond those that float64 holds exactly."""
    digits = pc.utf8_ltrim(pc.utf8_trim_whitespace(integers), characters="+-0").to_pylist()
    return any(len(text) > 16 or int(text or 0) > 2**53 for text in digits)


def check_types(file: InputFile, names: tuple[str, ...], types: Mapping[str, pa.DataType]) -> None:
    """pa.ArrowNotImplementedError if pyarrow cannot read one of `types` from CSV."""
    pacsv.read_csv(
        pa.BufferReader(b"\n"),
        read_options=pacsv.ReadOptions(use_threads=False, column_names=list(names)),
        convert_options=pacsv.ConvertOptions(column_types=dict(types), include_columns=list(types)),
    )

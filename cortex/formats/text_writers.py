"""CSV, TSV, text and JSON Lines from record batches: one string a row, joined by Arrow, written at once.

Nothing is carried from batch to batch, so the bytes depend on the rows alone.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from cortex.job.protocol import FIELD_KIND, KIND_JSON
from cortex.job.types import type_class
from cortex.limits import MIB

from .cells import field_text, json_text
from .row_sizes import bounded

_ROWS: Final = 16_384  # rows formatted at once: a few MB of strings, of which there are several copies
_BYTES: Final = 4 * MIB  # or fewer, when they are long


class LineFormat(abc.ABC):
    """Turns batches of one schema into the bytes of a text format."""

    def __init__(self, schema: pa.Schema) -> None:
        self._names = schema.names
        self._fields = list(schema)

    def header(self) -> bytes:
        return b""

    def encode(self, batch: pa.RecordBatch) -> Iterator[pa.Buffer]:
        for part in bounded(batch, _ROWS, _BYTES):
            yield _values_buffer(self.lines(part))

    @abc.abstractmethod
    def lines(self, batch: pa.RecordBatch) -> pa.Array:
        """One string a row, with its newline, none null."""


def _values_buffer(strings: pa.Array) -> pa.Buffer:
    """The strings' bytes, one after the other, without a copy."""
    width = 8 if pa.types.is_large_string(strings.type) else 4
    _, offsets, data = strings.buffers()
    ends = memoryview(offsets).cast("q" if width == 8 else "i")
    low, high = ends[strings.offset], ends[strings.offset + len(strings)]
    return data.slice(low, high - low) if data is not None else pa.py_buffer(b"")


def _join(parts: list[pa.Array], separator: str) -> pa.Array:
    """Rows of `parts` joined by `separator`, nulls empty, each ended by a newline."""
    ended = pc.binary_join_element_wise(parts[-1], "\n", "", null_handling="replace", null_replacement="")
    if len(parts) == 1:
        return ended
    return pc.binary_join_element_wise(
        *parts[:-1], ended, separator, null_handling="replace", null_replacement=""
    )


class TextFormat(LineFormat):
    """One column: the line. Several: joined by tabs. Nothing is quoted, null is empty, there is no header."""

    def lines(self, batch: pa.RecordBatch) -> pa.Array:
        return _join([field_text(f, c) for f, c in zip(self._fields, batch.columns)], "\t")


class CsvFormat(LineFormat):
    """A header line, and fields quoted where they must be. Null is empty; an empty string is ``""``."""

    def __init__(self, schema: pa.Schema, delimiter: str) -> None:
        super().__init__(schema)
        self._delimiter = delimiter
        self._special = '["\\r\\n' + ("\\t" if delimiter == "\t" else delimiter) + "]"
        # Only of these can a field hold something to be quoted.
        self._quoted = [type_class(f.type) in ("string", "binary", "other") for f in schema]

    def header(self) -> bytes:
        return (self._delimiter.join(self._header_field(name) for name in self._names) + "\n").encode()

    def _header_field(self, name: str) -> str:
        # A name that begins with U+FEFF would be taken for the file's byte order mark.
        special = name == "" or any(c in name for c in '"\r\n' + self._delimiter) or name[0] == "\ufeff"
        return '"' + name.replace('"', '""') + '"' if special else name

    def lines(self, batch: pa.RecordBatch) -> pa.Array:
        parts = []
        for field, column, quoted in zip(self._fields, batch.columns, self._quoted):
            text = field_text(field, column)
            parts.append(self._quote(text) if quoted else text)
        return _join(parts, self._delimiter)

    def _quote(self, text: pa.Array) -> pa.Array:
        data = _values_buffer(text).to_pybytes()
        special = any(byte in data for byte in (b'"', b"\r", b"\n", self._delimiter.encode()))
        empty = pc.equal(pc.binary_length(text), 0)
        must = pc.or_(pc.match_substring_regex(text, self._special), empty) if special else empty
        if not pc.any(must).as_py():
            return text
        doubled = pc.replace_substring(text, '"', '""') if special else text
        return pc.if_else(must, pc.binary_join_element_wise('"', doubled, '"', ""), text)


class JsonLinesFormat(LineFormat):
    """One JSON object a line. NaN and infinities are null, decimals strings, so that they stay exact."""

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__(schema)
        self._keys = [json_text("", name) + ":" for name in schema.names]

    def lines(self, batch: pa.RecordBatch) -> pa.Array:
        pieces: list[pa.Array | str] = []
        for index, (field, column) in enumerate(zip(self._fields, batch.columns)):
            pieces.append(("," if index else "{") + self._keys[index])
            pieces.append(self._value(field, column))
        pieces.append("}\n")
        return pc.binary_join_element_wise(*pieces, "", null_handling="replace", null_replacement="null")

    def _value(self, field: pa.Field, column: pa.Array) -> pa.Array:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        kind = type_class(column.type)
        if kind == "float":
            column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
        text = field_text(field, column)
        is_json = (field.metadata or {}).get(FIELD_KIND) == KIND_JSON or pa.types.is_nested(column.type)
        if is_json or kind in ("integer", "float", "bool", "null", "duration"):
            return text
        if kind in ("string", "binary"):
            special = pc.match_substring_regex(text, r'[\x00-\x1f"\\]')
            if pc.any(special).as_py():
                escaped = pa.array(
                    [json_text(field.name, v)[1:-1] for v in text.filter(special).to_pylist()], pa.string()
                )
                mask = pc.fill_null(special, False)
                text = pa.concat_arrays([text])  # of a slice the kernel would reserve the whole buffer
                text = pc.replace_with_mask(text, mask, escaped)
        return pc.binary_join_element_wise('"', text, '"', "")

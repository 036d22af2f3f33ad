"""A task's part of the output: a private file in the staging folder, named by its attempt.

`PartWriter` writes batches; `PairWriter` turns the (key, value) pairs of row-form code into batches
of the columns ``key`` and ``value`` first, under the same exact-type rule as keys: ints do not become
floats because some values are floats, that is an error with the cure.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Final

import pyarrow as pa

from cortex.errors import ValueTypeError
from cortex.formats.writers import Writer, open_writer, output_extension
from cortex.job.protocol import KEY_COLUMN, VALUE_COLUMN
from cortex.job.types import type_name
from cortex.limits import MIB
from cortex.shuffle.keys import encode_keys, key_array, key_metadata, merge_key_types
from cortex.shuffle.values import NONE
from cortex.tasks.output_values import encode_output, spoken, value_metadata
from cortex.tasks.pair_buffer import PairBuffer
from cortex.tasks.user_errors import shorten
from cortex.wire.messages import OutputPart

PAIRS_BYTES: Final = 3 * MIB  # written at once: some 16,000 small ones, or one large one
_LOOK_PAIRS: Final = 64  # few: a reduce may yield large pairs after any number of small ones
_UNTYPED_ROWS_MAX: Final = 16_384  # held until a value other than None shows the type of its column
_UNTYPED_BYTES_MAX: Final = 16 * MIB


class PartWriter:
    """One part file. Opened at the first batch, whose schema all others must have.

    `finish` gives the parts written: none if there was no batch. `abort` removes the file.
    """

    def __init__(self, staging_dir: str, attempt: str, index: int, output_format: str) -> None:
        extension = output_extension(output_format)
        self.staged_as = f"{attempt}{extension}"
        self.name = f"part-{index:05d}{extension}"
        self.rows = 0
        self._path = os.path.join(staging_dir, self.staged_as)
        self._format = output_format
        self._writer: Writer | None = None
        self._schema: pa.Schema | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        if self._schema is None or self._writer is None:
            self._schema = batch.schema
            self._writer = open_writer(self._path, self._format, batch.schema)
        elif not batch.schema.equals(self._schema):
            raise ValueTypeError(
                f"output batches of different columns: first ({_columns(self._schema)}), "
                f"then ({_columns(batch.schema)})",
                cure="return batches of one schema, for example by casting the columns",
            )
        self._writer.write(batch)
        self.rows += batch.num_rows

    def finish(self) -> tuple[OutputPart, ...]:
        if self._writer is None or self._schema is None:
            return ()
        rows, size_bytes = self._writer.close()
        columns = tuple((field.name, type_name(field.type)) for field in self._schema)
        return (OutputPart(self.name, self.staged_as, rows, size_bytes, columns),)

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()
            self._writer = None


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


class PairWriter:
    """Row-form output. `python_values`: of a result that is shown, not stored (see `output_values`)."""

    def __init__(self, part: PartWriter, output_format: str, python_values: bool) -> None:
        self.part = part
        self._text = output_format == "text"
        self._python_values = python_values
        self._key_type = ""
        self._value_tag = ""
        self._schema: pa.Schema | None = None
        self._pending: list[pa.RecordBatch] = []

    def write_all(self, pairs: Iterable[Any], function: str) -> None:
        """Write every pair of the iterable, which `function` yields."""
        buffer = PairBuffer(
            PAIRS_BYTES, lambda held: self.write_pairs(held, function), look_pairs=_LOOK_PAIRS
        )
        buffer.take(iter(pairs))
        buffer.send()

    def write_pairs(self, pairs: Sequence[Any], function: str) -> None:
        """Write these pairs, of which there is at least one."""
        check_pairs(pairs, function)
        keys, values = zip(*pairs)
        self.write(keys, values)

    def write(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        key_type, key_columns = encode_keys(keys)
        tag, column = encode_output(values, self._python_values)
        self.write_columns(key_type, key_array(key_type, key_columns), tag, column)

    def write_columns(self, key_type: str, keys: pa.Array, tag: str, values: pa.Array) -> None:
        """Keys as `key_array` gives them, values as `encode_output` does."""
        merged_key = merge_key_types(self._key_type or key_type, key_type)
        merged_tag = self._merge_tag(tag)
        if self._schema is None and ("none" in merged_key or merged_tag == NONE):
            # Only None so far: the column's type shows itself with the first other value.
            self._key_type, self._value_tag = merged_key, merged_tag
            self._pending.append(pa.RecordBatch.from_arrays([keys, values], names=[KEY_COLUMN, VALUE_COLUMN]))
            rows, size = sum(b.num_rows for b in self._pending), sum(b.nbytes for b in self._pending)
            if rows >= _UNTYPED_ROWS_MAX or size >= _UNTYPED_BYTES_MAX:
                self._settle(keys.type, values.type)
            return
        self._key_type, self._value_tag = merged_key, merged_tag
        self._settle(keys.type, values.type)
        self._emit(keys, values)

    def _merge_tag(self, tag: str) -> str:
        have = self._value_tag
        if not have or have in (NONE, tag):
            return tag
        if tag == NONE:
            return have
        raise ValueTypeError(
            f"output values of different types: {spoken(have)}, then {spoken(tag)}",
            cure="yield values of one type, for example always float(value)",
        )

    def _settle(self, key: pa.DataType, value: pa.DataType) -> None:
        if self._schema is None:
            self._schema = pa.schema(
                [
                    pa.field(KEY_COLUMN, key, metadata=key_metadata(self._key_type)),
                    pa.field(VALUE_COLUMN, value, metadata=value_metadata(self._value_tag)),
                ]
            )
        pending, self._pending = self._pending, []
        for batch in pending:
            self._emit(batch.column(0), batch.column(1))

    def _emit(self, keys: pa.Array, values: pa.Array) -> None:
        assert self._schema is not None
        columns = []
        for column, field in zip((keys, values), self._schema):
            if column.type != field.type:  # None where the column's type was not known yet
                column = _typed(column, field)
            columns.append(column)
        if self._text and pa.types.is_null(columns[0].type):  # a line without a key is the value alone
            self.part.write(pa.RecordBatch.from_arrays([columns[1]], names=[VALUE_COLUMN]))
            return
        self.part.write(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def finish(self) -> tuple[OutputPart, ...]:
        if self._pending:
            self._settle(self._pending[0].column(0).type, self._pending[0].column(1).type)
        return self.part.finish()


def check_pairs(chunk: Sequence[Any], function: str) -> None:
    """ValueTypeError unless each item is a (key, value) tuple or list."""
    if set(map(type, chunk)) <= {tuple, list} and set(map(len, chunk)) == {2}:
        return
    bad = next(item for item in chunk if type(item) not in (tuple, list) or len(item) != 2)
    raise ValueTypeError(
        f"{function} yielded {shorten(repr(bad))}, which is no (key, value) pair",
        cure=f"yield pairs from {function}: yield key, value",
    )


def _typed(column: pa.Array, field: pa.Field) -> pa.Array:
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueTypeError(
            f"too many None came before the first {field.name} of another type ({type_name(column.type)})",
            cure=f"yield a {field.name} of one type in place of None, or leave out pairs without one",
        ) from error

"""A task's part of the output: a private file in the staging folder, named by its attempt.

`PartWriter` writes batches; `PairWriter` turns the (key, value) pairs of row-form code into batches
of the columns ``key`` and ``value`` first, under the same exact-type rule as keys: ints do not become
floats because some values are floats, that is an error with the cure.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import pyarrow as pa

from cortex.errors import OutputFailed, ValueTypeError
from cortex.formats.writers import Writer, open_writer, output_extension
from cortex.job.output_types import OutputTypes, merge_key_types
from cortex.job.protocol import KEY_COLUMN, VALUE_COLUMN
from cortex.job.types import type_name
from cortex.kernels.wider import widened_batch, wider_schema
from cortex.limits import MIB
from cortex.shuffle.keys import encode_keys, key_array, key_metadata
from cortex.shuffle.scalars import plain_values
from cortex.storage.filesystem import is_disk_full
from cortex.storage.spill_quota import SpillQuota, spill_full
from cortex.tasks.output_values import encode_output, spoken, value_metadata
from cortex.tasks.pair_buffer import PairBuffer
from cortex.tasks.user_errors import shorten
from cortex.wire.messages import OutputPart

PAIRS_BYTES: Final = 3 * MIB  # written at once: some 16,000 small ones, or one large one


class PartWriter:
    """One part file. Opened at the first batch, whose schema all others must have; a column that had no
    value takes its type from the first that has one.

    `finish` gives the parts written: none if there was no batch. `abort` removes the file. `room` is asked
    before each batch, where parts lie in a node's spill folder: then SpillFull is raised.
    """

    def __init__(
        self,
        staging_dir: str,
        attempt: str,
        index: int,
        output_format: str,
        room: SpillQuota | None = None,
    ) -> None:
        extension = output_extension(output_format)
        self.staged_as = f"{attempt}{extension}"
        self.name = f"part-{index:05d}{extension}"
        self.rows = 0
        self._path = os.path.join(staging_dir, self.staged_as)
        self._room = room
        self._format = output_format
        self._writer: Writer | None = None
        self._schema: pa.Schema | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        if self._room is None:
            self._write(batch)
            return
        self._room.take(batch.nbytes)
        with self._no_space(batch.nbytes):
            self._write(batch)

    @contextlib.contextmanager
    def _no_space(self, size_bytes: int) -> Iterator[None]:
        """Where parts are spilled data, a full disk is what it is for all of it."""
        try:
            yield
        except OutputFailed as error:
            if isinstance(error.__cause__, OSError) and is_disk_full(error.__cause__):
                raise spill_full(os.path.dirname(self._path), size_bytes, None, error.message) from error
            raise

    def _write(self, batch: pa.RecordBatch) -> None:
        if self._schema is None or self._writer is None:
            self._schema = batch.schema
            self._writer = open_writer(self._path, self._format, batch.schema)
        elif not batch.schema.equals(self._schema):
            schema = wider_schema(self._schema, batch.schema)
            if not schema.equals(self._schema):
                self._writer.widen(schema)
                self._schema = schema
            batch = widened_batch(batch, schema)
        self._writer.write(batch)
        self.rows += batch.num_rows

    @property
    def types(self) -> OutputTypes:
        return OutputTypes(columns=tuple((f.name, type_name(f.type)) for f in self._schema or ()))

    def finish(self) -> tuple[OutputPart, ...]:
        if self._writer is None:
            return ()
        with self._no_space(0) if self._room is not None else contextlib.nullcontext():
            rows, size_bytes = self._writer.close()
        return (OutputPart(self.name, self.staged_as, rows, size_bytes, self.types.columns),)

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()
            self._writer = None


class PairWriter:
    """Row-form output. `python_values`: of a result that is shown, not stored (see `output_values`)."""

    def __init__(self, part: PartWriter, output_format: str, python_values: bool) -> None:
        self.part = part
        self._text = output_format == "text"
        self._python_values = python_values
        self.types = OutputTypes()

    def write_all(self, pairs: Iterable[Any], function: str) -> None:
        """Write every pair of the iterable, which `function` yields."""
        buffer = PairBuffer(PAIRS_BYTES, lambda held: self.write_pairs(held, function))
        buffer.take(iter(pairs))
        buffer.send()

    def write_pairs(self, pairs: Sequence[Any], function: str) -> None:
        """Write these pairs, of which there is at least one."""
        check_pairs(pairs, function)
        keys, values = zip(*pairs)
        self.write(keys, values)

    def write(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        key_type, key_columns = encode_keys(keys)
        plain, _ = plain_values(values, set(map(type, values)))
        tag, column = encode_output(plain, self._python_values)
        self.write_columns(key_type, key_array(key_type, key_columns), tag, column)

    def write_columns(self, key_type: str, keys: pa.Array, tag: str, values: pa.Array) -> None:
        """Keys as `key_array` gives them, values as `encode_output` does."""
        self.types = self.types.joined(OutputTypes(self._written_key_type(key_type, keys), spoken(tag)))
        if self._text and pa.types.is_null(keys.type):
            self.part.write(pa.RecordBatch.from_arrays([values], names=[VALUE_COLUMN]))
            return
        key = pa.field(KEY_COLUMN, keys.type, metadata=key_metadata(key_type))
        value = pa.field(VALUE_COLUMN, values.type, metadata=value_metadata(tag))
        self.part.write(pa.RecordBatch.from_arrays([keys, values], schema=pa.schema([key, value])))

    def _written_key_type(self, key_type: str, keys: pa.Array) -> str:
        """In text a line without a key is the value alone: None does not go with other keys there."""
        if not self._text or not keys.null_count:
            return key_type
        return "None" if keys.null_count == len(keys) else merge_key_types(key_type, "None")

    def finish(self) -> tuple[OutputPart, ...]:
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

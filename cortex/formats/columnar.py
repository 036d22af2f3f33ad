"""What the Parquet and Arrow readers share: columns brought to their planned types, typed errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa

from cortex.errors import CortexError, InputError
from cortex.job.types import arrow_type


class Unit(NamedTuple):
    """A row group or a record batch: the smallest part of a file that can be read alone."""

    offset: int
    length: int
    rows: int


@contextmanager
def damage_reported(path: str, kind: str) -> Iterator[None]:
    """Arrow's and the system's errors while reading `path` as an InputError that names it."""
    try:
        yield
    except CortexError:
        raise
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"not a whole {kind} file: {reason}",
            details={"file": path},
            cure="copy or make the file again, or name its real format",
        ) from error


def plain_type(data_type: pa.DataType) -> pa.DataType:
    """The type a column is read as: dictionaries decoded, and one type for each kind of string."""
    if pa.types.is_dictionary(data_type):
        return plain_type(data_type.value_type)
    if pa.types.is_large_string(data_type) or data_type == pa.string_view():
        return pa.string()
    if pa.types.is_large_binary(data_type) or data_type == pa.binary_view():
        return pa.binary()
    return data_type


class Projection:
    """Picks the wanted columns of a batch, in order, with their planned types."""

    def __init__(self, path: str, columns: Sequence[tuple[str, str]]) -> None:
        self._path = path
        self._fields = [(name, arrow_type(type_)) for name, type_ in columns]
        self.names = [name for name, _ in columns]
        self.schema = pa.schema(self._fields)

    def apply(self, batch: pa.RecordBatch, first_row: int) -> pa.RecordBatch:
        """`first_row` is the batch's place in the file, for errors."""
        arrays = []
        for name, wanted in self._fields:
            array = batch.column(name)
            if pa.types.is_dictionary(array.type):
                array = array.dictionary_decode()
            if array.type != wanted:
                try:
                    array = array.cast(wanted)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    raise InputError(
                        f"column {name!r} cannot be read as {wanted}: {error}",
                        details={
                            "file": self._path,
                            "rows": f"{first_row} to {first_row + batch.num_rows - 1}",
                            "type in the file": array.type,
                        },
                        cure=f"leave {name!r} out of columns:, or give it a type that holds its values",
                    ) from error
            arrays.append(array)
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

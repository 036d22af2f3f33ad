"""What the Parquet and Arrow readers share: columns brought to their planned types, typed errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cortex.errors import CortexError, InputError
from cortex.job.types import arrow_type, columns_line, type_name
from cortex.kernels.casts import INFINITE, int_digits, moment_text
from cortex.kernels.columns import byte_ranges_at


class Unit(NamedTuple):
    """A row group or a record batch: the smallest part of a file that can be read alone."""

    offset: int
    length: int
    rows: int


def packed(units: Sequence[Unit], size_bytes: int) -> Iterator[range]:
    """Neighbours put together, in order: as many as fit in `size_bytes`, at least one."""
    first = 0
    while first < len(units):
        last, size = first + 1, units[first].length
        while last < len(units) and size + units[last].length <= size_bytes:
            size += units[last].length
            last += 1
        yield range(first, last)
        first = last


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


def bytes_type(kind: pa.DataType, decimals: bool = False) -> pa.DataType:
    """The type with bytes for text (and decimals), also inside lists and the like: of the same layout, so
    that a column can be viewed as it, but any bytes are a value of it."""
    is_ = pa.types
    if is_.is_string(kind) or is_.is_large_string(kind):
        return pa.binary() if is_.is_string(kind) else pa.large_binary()
    if is_.is_string_view(kind):
        return pa.binary_view()
    if decimals and is_.is_decimal(kind):
        return pa.binary(kind.byte_width)
    if is_.is_dictionary(kind):
        return pa.dictionary(kind.index_type, bytes_type(kind.value_type, decimals), kind.ordered)
    fields = [kind.field(i) for i in range(kind.num_fields)]
    fields = [field.with_type(bytes_type(field.type, decimals)) for field in fields]
    if is_.is_struct(kind):
        return pa.struct(fields)
    if is_.is_fixed_size_list(kind):
        return pa.list_(fields[0], kind.list_size)
    if is_.is_list(kind) or is_.is_large_list(kind):
        return pa.list_(fields[0]) if is_.is_list(kind) else pa.large_list(fields[0])
    return kind


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
            try:
                made = array if array.type == wanted else _cast(array, wanted)
                _check(made)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise self._refusal(name, wanted, array, first_row, error) from error
            arrays.append(made)
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _refusal(
        self, name: str, wanted: pa.DataType, array: pa.Array, first_row: int, error: pa.ArrowException
    ) -> InputError:
        """The error of the first value of `array` that cannot be read as `wanted`."""
        low, rows = 0, len(array)
        while rows > 1:
            half = rows // 2
            if _refused(array.slice(low, half), wanted) is not None:
                rows = half
            else:
                low, rows = low + half, rows - half
        error = _refused(array.slice(low, rows), wanted) or error
        details = {"file": self._path, "row": f"row {first_row + low} of the file"}
        if "UTF8" in str(error):
            return InputError(
                f"invalid UTF-8 in column {name!r}",
                details=details,
                cure="write the file with text in UTF-8, or read bytes: "
                + columns_line(name, type_name(bytes_type(wanted))),
            )
        return InputError(
            f"column {name!r} cannot be read as {type_name(wanted)}: {error}",
            details={**details, "type in the file": array.type},
            cure=f"leave {name!r} out of columns:, or give it a type that holds its values",
        )


def _refused(array: pa.Array, wanted: pa.DataType) -> pa.ArrowException | None:
    try:
        _check(_cast(array, wanted))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        return error
    return None


def _cast(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """As Arrow casts, but for what it would make other values of."""
    is_, kind = pa.types, array.type
    if is_.is_integer(wanted) and _is_string(kind):
        array = int_digits(array)
    elif _is_string(wanted) and (is_.is_date(kind) or is_.is_timestamp(kind) or is_.is_time(kind)):
        array = moment_text(array)
    made = array.cast(wanted)
    if is_.is_floating(wanted):
        infinite = array.filter(pc.is_inf(made))
        if _is_string(kind):
            infinite = infinite.filter(
                pc.invert(pc.match_substring_regex(infinite, INFINITE, ignore_case=True))
            )
        elif is_.is_floating(kind):
            infinite = infinite.filter(pc.is_finite(infinite))
        if len(infinite):
            raise pa.ArrowInvalid(f"{infinite[0].as_py()} is too large for {type_name(wanted)}")
    return made


def _check(array: pa.Array) -> None:
    """ArrowInvalid for text that is not UTF-8 and decimals of too many digits: files may hold them."""
    kind = array.type
    nested = pa.types.is_nested(kind)
    if nested and array.nbytes < array.get_total_buffer_size():
        array = pa.concat_arrays([array])  # a copy of these rows: of a slice all that it is of is looked at
    checked = _is_string(kind) or pa.types.is_decimal(kind) or nested
    if checked and not (_is_string(kind) and _is_ascii(array)):
        array.validate(full=True)


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_ascii(strings: pa.Array) -> bool:
    """Faster by far than to validate them one by one."""
    if not len(strings):
        return True
    data, starts, ends = byte_ranges_at(strings, np.array([0, len(strings) - 1]))
    return int(data[starts[0] : ends[1]].view(np.int8).min(initial=0)) >= 0

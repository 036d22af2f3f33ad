"""Numbers that pyarrow reads from CSV as others than were written, found at next to no cost.

It takes ``0x10`` for 16 (and 0xFF, where an int8 is wanted, for -1), makes infinity of what is too large for
a float, and keeps a decimal of more digits than its type has, to be written as any other number. Each shows
where it is cheap to look: an ``0x`` at a field's start, an infinite value, Arrow's own check of the decimals.
Only then is the column's text read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from cortex.kernels.casts import INFINITE
from cortex.limits import KIB

from .csv_records import Grammar, Positions, Stretch

_STARTS_FEW: Final = 8  # in a block: their fields are looked for one by one
_SCAN_BYTES: Final = 256 * KIB  # compared at once: stays in the processor's second-level cache


def is_hex(texts: pa.ChunkedArray) -> bool:
    """Whether one of the texts is what pyarrow takes for a hexadecimal number."""
    trimmed = pc.ascii_ltrim_whitespace(texts)
    return any(pc.any(pc.starts_with(trimmed, start)).as_py() for start in ("0x", "0X"))


def hex_starts(data: bytes | bytearray, low: int, high: int, grammar: Grammar) -> Positions:
    """Where ``0x`` or ``0X`` is in ``data[low:high]``, behind what may stand before a number: the end of the
    field or record before, a quote, white space. (To find two bytes with `find` is as slow as the parse.)"""
    before = np.zeros(256, np.bool_)
    before[list(grammar.delimiter + grammar.quote + grammar.escape + b"\n\r \t")] = True
    found = [np.zeros(0, np.int64)]
    for letter in b"xX":
        first = data.find(letter, low, high)
        for at in range(max(first - 1, low), high, _SCAN_BYTES) if first >= 0 else ():
            part = np.frombuffer(data, np.uint8, min(_SCAN_BYTES + 1, high - at), at)
            zeros = np.flatnonzero((part[1:] == letter) & (part[:-1] == ord("0"))) + at
            if len(zeros):
                bytes_before = np.frombuffer(data, np.uint8, high)[zeros - 1]
                found.append(zeros[before[bytes_before] | (zeros == low)])
    return np.concatenate(found)


class NumberCheck:
    """Checks tables whose columns have these types, in this order; `names` are all columns of the file."""

    def __init__(self, grammar: Grammar, names: Sequence[str], types: Mapping[str, pa.DataType]) -> None:
        self._grammar = grammar
        self._integers = {names.index(name): name for name, kind in types.items() if pt.is_integer(kind)}
        self._texts = [name for name, kind in types.items() if pt.is_string(kind) or pt.is_binary(kind)]
        self._floats = [
            (index, np.dtype(kind.to_pandas_dtype()))
            for index, kind in enumerate(types.values())
            if pt.is_floating(kind)
        ]
        self._decimals = [name for name, kind in types.items() if pt.is_decimal(kind)]

    def check(
        self,
        table: pa.Table,
        data: bytes | bytearray,
        low: int,
        high: int,
        texts_of: Callable[[Sequence[str]], pa.Table],
    ) -> None:
        """pa.ArrowInvalid for a number in `table` that is not the one written in ``data[low:high]``.

        `texts_of` gives columns of that block as strings.
        """
        suspects = self._perhaps_hex(table, data, low, high) if self._integers else []
        if suspects:
            for name, texts in zip(suspects, texts_of(suspects).columns):
                if is_hex(texts):
                    raise pa.ArrowInvalid(f"column {name}: a hexadecimal number")
        for index, dtype in self._floats if table.num_rows else ():
            # After a parse the caches are cold: these few steps cost as much as reading the values does.
            values = np.frombuffer(table.column(index).chunk(0).buffers()[1], dtype)
            if not (values.max() < np.inf and values.min() > -np.inf) and np.isinf(values).any():
                _check_infinities(
                    table.column(index), texts_of(table.column_names[index : index + 1]).column(0)
                )
        for name in self._decimals:
            table.column(name).validate(full=True)

    def _perhaps_hex(self, table: pa.Table, data: bytes | bytearray, low: int, high: int) -> list[str]:
        """The columns of integers in which there may be hexadecimal ones."""
        starts = hex_starts(data, low, high, self._grammar)
        if len(starts) <= _STARTS_FEW:
            block = Stretch(self._grammar, bytes(memoryview(data)[low:high]), high - low, final=True)
            fields = {block.field_at(at - low) for at in starts.tolist()}
            return [self._integers[field] for field in sorted(fields & self._integers.keys())]
        # Where as many texts begin so, they are what was found. (Escaped, an x may come after a 0 unseen.)
        if not self._grammar.escape and len(starts) == sum(_hexes(table.column(t)) for t in self._texts):
            return []
        return list(self._integers.values())


def _hexes(texts: pa.ChunkedArray) -> int:
    """How many of the texts begin with ``0x`` or ``0X``."""
    return sum(pc.sum(pc.starts_with(texts, start)).as_py() or 0 for start in ("0x", "0X"))


def _check_infinities(values: pa.ChunkedArray, texts: pa.ChunkedArray) -> None:
    infinite = texts.filter(pc.is_inf(values))
    if pc.all(pc.match_substring_regex(infinite, INFINITE, ignore_case=True)).as_py() is False:
        raise pa.ArrowInvalid(f"a number too large for {values.type}")

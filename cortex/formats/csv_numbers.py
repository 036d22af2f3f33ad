"""Numbers that pyarrow reads from CSV as others than were written, found at next to no cost.

It takes ``0x10`` for 16 (and 0xFF, where an int8 is wanted, for -1), makes infinity of what is too large for
a float, and keeps a decimal of more digits than its type has, to be written as any other number. Each shows
where it is cheap to look: an ``x`` in the block, an infinite value, Arrow's own check of the decimals. Only
then is the column's text read.
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

_SCAN_BYTES: Final = 256 * KIB  # compared at once: stays in the processor's second-level cache


def is_hex(texts: pa.ChunkedArray) -> bool:
    """Whether one of the texts is what pyarrow takes for a hexadecimal number."""
    trimmed = pc.ascii_ltrim_whitespace(texts)
    return any(pc.any(pc.starts_with(trimmed, start)).as_py() for start in ("0x", "0X"))


def may_have_hex(data: bytes | bytearray, low: int, high: int) -> bool:
    """Whether ``0x`` or ``0X`` is in ``data[low:high]``. (To find two bytes is as slow as the parse.)"""
    for letter in b"xX":
        first = data.find(letter, low, high)
        for at in range(max(first - 1, low), high, _SCAN_BYTES) if first >= 0 else ():
            part = np.frombuffer(data, np.uint8, min(_SCAN_BYTES + 1, high - at), at)
            if ((part[1:] == letter) & (part[:-1] == ord("0"))).any():
                return True
    return False


class NumberCheck:
    """Checks tables whose columns have these types, in this order."""

    def __init__(self, types: Mapping[str, pa.DataType]) -> None:
        self._integers = [name for name, kind in types.items() if pt.is_integer(kind)]
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
        if self._integers and may_have_hex(data, low, high):
            for name, texts in zip(self._integers, texts_of(self._integers).columns):
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


def _check_infinities(values: pa.ChunkedArray, texts: pa.ChunkedArray) -> None:
    infinite = texts.filter(pc.is_inf(values))
    if pc.all(pc.match_substring_regex(infinite, INFINITE, ignore_case=True)).as_py() is False:
        raise pa.ArrowInvalid(f"a number too large for {values.type}")

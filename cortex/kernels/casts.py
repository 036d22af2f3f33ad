"""Casts from text, to text and to Python where Arrow's own give another value, or say nothing one can use.

As a cast does, these raise ArrowInvalid for a value that has no counterpart.
"""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

INFINITE: Final = r"^\s*[+-]?inf(inity)?\s*$"
"""A text (in any case) that means an infinity. Arrow makes one of any number that is too large as well."""

_FIRST_DAY: Final = -12_687_427
_LAST_DAY: Final = 11_248_736
"""The years -32767 to 32767, which Arrow can write, but for the day that a time zone may shift a time by."""
_PER_DAY: Final = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def int_digits(text: Any) -> Any:
    """Texts (an array or scalar) for a cast to integers: without a plus sign, which Arrow does not know.

    ``0x10``, which it takes for 16 (and 0xFF, where an int8 is wanted, for -1), loses its zero and is none.
    """
    return pc.replace_substring_regex(text, pattern=r"^(?:\+?0([xX])|\+([0-9]))", replacement=r"\1\2")


def moment_text(values: Any) -> Any:
    """Dates, times or timestamps (an array or scalar) in ISO 8601. Beyond its years Arrow writes prose."""
    kind = values.type
    per_day = 1 if pt.is_date32(kind) else _PER_DAY["ms" if pt.is_date64(kind) else kind.unit]
    low, high = (0, 1) if pt.is_time(kind) else (_FIRST_DAY, _LAST_DAY + 1)
    array = pa.repeat(values, 1) if isinstance(values, pa.Scalar) else values
    found = pc.min_max(array.view(pa.int32() if kind.bit_width == 32 else pa.int64())).as_py()
    for number in (found["min"], found["max"]):
        if number is not None and not low * per_day <= number < high * per_day:
            raise pa.ArrowInvalid(f"{number} is out of range ({kind})")
    return pc.cast(values, pa.string())


def python_list(column: pa.Array) -> list[Any]:
    """`to_pylist`, but nanoseconds, which Python's times have not, are never cut off, nor pandas' own types
    made where pandas is imported."""
    kind = column.type
    try:
        if (pt.is_timestamp(kind) or pt.is_time64(kind) or pt.is_duration(kind)) and kind.unit == "ns":
            column = column.cast(_microseconds(kind))
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError) as error:  # of which ArrowInvalid is one
        if "lose data" in str(error) or "Install pandas" in str(error):
            raise pa.ArrowInvalid(f"a {kind} has nanoseconds, which Python's times have not") from error
        if isinstance(error, OverflowError):
            raise pa.ArrowInvalid(f"a {kind} is beyond what Python's dates and times can say") from error
        raise pa.ArrowInvalid(str(error)) from error
    return values


def _microseconds(kind: pa.DataType) -> pa.DataType:
    if pt.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if pt.is_duration(kind) else pa.time64("us")

"""Why a field's text is no value of its column's type, in plain words, and what to say in the job instead."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

import pyarrow as pa
import pyarrow.types as pt

from cortex.job.types import columns_line, type_name

_MISSING_WORDS: Final = frozenset(
    ("na", "n/a", "#n/a", "nan", "null", "none", "nil", "-", "--", ".", "?", "\\n")
)
_TEXT_CHARS_MAX: Final = 100  # of the field; the error has its line as well
_DATE_AND_TIME = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,9})?)?)?(Z|[+-]\d\d(:?\d\d)?)?")
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_INTEGER = re.compile(r"\s*-?\d+\s*", re.ASCII)


def explain_misfit(
    name: str, text: str, wanted: pa.DataType, failure: str, null_values: Sequence[str]
) -> tuple[str, str]:
    """(cause, cure) for a column's field; `failure` is what pyarrow said of it."""
    if "invalid UTF8" in failure:
        return (
            f"invalid UTF-8 in column {name!r}",
            f"save the file as UTF-8, or read bytes: {columns_line(name, 'binary')}",
        )
    shown = text if len(text) <= _TEXT_CHARS_MAX else text[: _TEXT_CHARS_MAX - 1] + "…"
    cause = f"{shown!r} is not {type_name(wanted)} (column {name!r})"
    if text.strip().lower() in _MISSING_WORDS:
        nulls = ", ".join(repr(v) for v in (*null_values, text))
        return cause, f"if it stands for a missing value: null_values: [{nulls}]"
    return cause, columns_line(name, _wider(text, wanted))


def _wider(text: str, wanted: pa.DataType) -> str:
    """A type that takes `text` and what `wanted` takes, as far as there is one."""
    if pt.is_integer(wanted) and _INTEGER.fullmatch(text):
        return _wider_integer(Decimal(text.strip()))
    if (pt.is_integer(wanted) or pt.is_float32(wanted)) and _NUMBER.fullmatch(text):
        return "float64" if math.isfinite(float(text)) else "string"
    if pt.is_decimal(wanted) and _NUMBER.fullmatch(text):
        return _wider_decimal(Decimal(text.strip()), wanted)
    if pt.is_temporal(wanted) and (match := _DATE_AND_TIME.fullmatch(text.strip())):
        unit = "ns" if len(match[3] or "") > len(".123456") else "us"
        zone = wanted.tz if pt.is_timestamp(wanted) else None
        if match[4]:
            return f"timestamp[{unit}, tz={zone or 'UTC'}]"
        return "string" if zone else f"timestamp[{unit}]"  # with an offset or without: no time is both
    return "string"


def _wider_integer(number: Decimal) -> str:
    if -(2**63) <= number < 2**63:
        return "int64"
    return "uint64" if 0 <= number < 2**64 else "string"


def _wider_decimal(number: Decimal, wanted: pa.DataType) -> str:
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)  # no infinity, no nan
    scale = max(wanted.scale, -exponent)
    digits = scale + max(wanted.precision - wanted.scale, number.adjusted() + 1)
    return f"decimal({digits}, {scale})" if digits <= 38 else "string"

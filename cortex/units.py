"""Bytes, counts, decimals and durations as people write and read them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cortex.errors import UsageError

if TYPE_CHECKING:
    from decimal import Decimal

_ZEROS_MAX = 30  # written out in a decimal; beyond, an exponent is easier to read, and 1E+999999 has a text

_BYTES = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SECONDS = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]+)?)\s*([dhms])\s*", re.IGNORECASE)
_SECONDS_OF = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_SECONDS_MAX = 100 * 365 * 86_400.0
_BYTES_MAX = 2**60  # messages carry sizes in 64 bits, and there is arithmetic with them


def parse_bytes(text: str | int, what: str = "size") -> int:
    """``512MB`` -> 536870912. K, M, G and T are powers of 1024, with or without ``i`` and ``B``.

    Raises UsageError for anything else, for less than one byte and for more than there can be.
    """
    match = None if isinstance(text, bool) else _BYTES.fullmatch(str(text))
    if match is None:
        raise UsageError(f"{what}: {text!r} is not a size", cure="write a number and a unit, such as 512MB")
    value = float(match[1]) * 1024 ** _POWER[match[2].lower()]
    if value < 1:
        raise UsageError(f"{what}: {text!r} is less than one byte", cure="write a size of at least 1B")
    if value > _BYTES_MAX:  # infinity, for some hundred digits
        raise UsageError(
            f"{what}: {text!s:.40} is more than any machine has", cure="write a size of at most 1048576TB"
        )
    return int(value)


def parse_seconds(text: str | float, what: str = "time") -> float:
    """``7d`` -> 604800.0; a number with d, h, m or s. Raises UsageError for anything else, and for 0."""
    match = None if isinstance(text, bool) else _SECONDS.fullmatch(str(text))
    value = 0.0 if match is None else float(match[1]) * _SECONDS_OF[match[2].lower()]
    if not 0 < value <= _SECONDS_MAX:
        raise UsageError(
            f"{what}: {text!r} is not a time", cure="write a number and d, h, m or s, such as 7d"
        )
    return value


def format_bytes(count: float) -> str:
    """536870912 -> ``512 MB``; three digits are kept."""
    value, unit = float(count), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"


def format_count(count: float) -> str:
    """1234567 -> ``1,234,567``."""
    return f"{int(count):,}"


def counted(number: int, what: str) -> str:
    """1, split -> ``1 split``; 2 -> ``2 splits``."""
    return f"{format_count(number)} {what}{'' if number == 1 else 's'}"


def format_decimal(value: Decimal) -> str:
    """The exact value, in plain digits where they are not too many: ``1010`` for 1.01E+3."""
    exponent = value.as_tuple().exponent
    plain = isinstance(exponent, int) and value.adjusted() >= -_ZEROS_MAX and exponent <= _ZEROS_MAX
    return format(value, "f") if plain else str(value)


_HOURS_SHOWN = 48  # beyond it nobody counts hours


def format_seconds(seconds: float) -> str:
    """0.42 -> ``0.42 s``; 75 -> ``1 m 15 s``; 3700 -> ``1 h 1 m``; three days -> ``3 d 0 h``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest} s"
    hours = minutes // 60
    if hours < _HOURS_SHOWN:
        return f"{hours} h {minutes % 60} m"
    return f"{hours // 24} d {hours % 24} h"

"""Exact sums of `decimal.Decimal`, whatever the user's decimal context is.

The digits of each value must lie between 10**DIGITS and 10**-DIGITS, and be DIGITS at most: so the sum of all
the values that a job can have fits in a context that never rounds, and neither the sum nor whether it fails
depends on the order in which values are added. As with floats, a sum with a NaN or both infinities is NaN,
and a zero has no sign.
"""

from __future__ import annotations

import decimal
from decimal import Decimal
from typing import Final

from cortex.errors import OverflowedSum
from cortex.tasks.user_errors import shorten

DIGITS: Final = 10_000
_CARRY_DIGITS: Final = 30  # of 10**30 values no sum is longer than these and its values' digits
_NAN: Final = Decimal("NaN")

# Emin of -1 puts the last place there is at -DIGITS; what lies outside is rounded or clamped, and trapped.
_TERM: Final = decimal.Context(
    prec=DIGITS, Emin=-1, Emax=DIGITS, clamp=0, traps=[decimal.Rounded, decimal.Clamped]
)
_SUM: Final = decimal.Context(
    prec=2 * DIGITS + _CARRY_DIGITS, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX, clamp=0, traps=[]
)

added = _SUM.add
"""The exact sum of two numbers, each a `term` or a sum of terms."""


def term(value: Decimal) -> Decimal:
    """The value as one that `added` takes. Raises OverflowedSum for one too long to be added exactly."""
    try:
        plain = _TERM.plus(value)
    except decimal.DecimalException:
        raise OverflowedSum(
            f"combine = sum of a Decimal of more than {DIGITS:,} digits, or as many places from the point: "
            + shorten(str(value)),
            cure="yield floats, or round the values; or write combine as a function of two values",
        ) from None
    return plain if plain == plain else _NAN  # a NaN's digits would say which one came first

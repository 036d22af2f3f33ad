"""The values of combine = sum, min or max: of one type throughout a job, wherever the input is cut.

Numbers and text, NumPy's too, are folded as plain Python values, by kernels: floats are added exactly, and
so are ints, whose partial sums may be larger than 64 bits though the whole sum fits. A complex number is two
floats, and Decimals have exact sums of their own (`cortex.tasks.decimal_sums`). Other values are added with
their own ``+``, which must be associative, and compared with their own ``<``.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

from cortex.errors import OverflowedSum, ValueTypeError
from cortex.shuffle.scalars import names_of, plain_values
from cortex.tasks.decimal_sums import term
from cortex.tasks.user_errors import shorten

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
_CARRIES_MAX: Final = 65_536  # rows for one partial sum: no sum that comes to 64 bits goes that far away


def is_unicode(text: str) -> bool:
    """Has it a UTF-8 form? Text with lone surrogates has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class CombinedValues:
    """Checks and converts the values of one map, some at a time."""

    def __init__(self, combine: str) -> None:
        self._combine = combine
        self.kind = ""
        """The name of the values' type; "" before the first."""

    @property
    def in_dict(self) -> bool:
        """May the values be folded one by one as they come? Floats lose digits so, and NumPy's ints wrap."""
        return self.kind not in ("float", "complex") and not self.kind.startswith("numpy.")

    def plain(self, values: Sequence[Any]) -> Sequence[Any]:
        """The values as plain ones: bools are ints under sum. Raises ValueTypeError for values of different
        types. (An int to which another number was added is no int any more: sums show what they are of.)"""
        kinds = set(map(type, values))
        names = names_of(values, kinds)
        values, kinds = plain_values(values, kinds)
        if self._combine == "sum":
            if kinds & {str, bytes}:
                raise self._text(next(value for value in values if type(value) in (str, bytes)))
            if "bool" in names and names <= {"bool", "int"}:
                names = {"int"}
            if bool in kinds:
                values = [int(value) if type(value) is bool else value for value in values]
        if self.kind:
            names.add(self.kind)
        if len(names) > 1:
            raise self._mixed(sorted(names))
        (self.kind,) = names
        return values

    def taken(self, values: Sequence[Any]) -> Sequence[Any]:
        """The same of values as map() yielded them, not of partial sums: Decimals fit for an exact sum."""
        values = self.plain(values)
        if self._combine == "sum" and type(values[0]) is Decimal:
            return list(map(term, values))
        return values

    def plain_one(self, value: Any) -> Any:
        """The plain value of one, which under min and max must fit in 64 bits if it is an int, and have a
        UTF-8 form if it is text."""
        (plain,) = (value,) if type(value) is str and self.kind == "str" else self.plain((value,))
        if self._combine != "sum" and type(plain) is int and not INT_MIN <= plain <= INT_MAX:
            raise self.too_large(plain)
        if type(plain) is str and not is_unicode(plain):
            raise self.not_unicode(plain)
        return plain

    def carried(self, keys: Sequence[Any], values: Sequence[int]) -> tuple[Sequence[Any], Sequence[int]]:
        """Partial sums of ints as rows of 64 bits: one that is larger becomes several, which the exact sum
        joins again."""
        if min(values) >= INT_MIN and max(values) <= INT_MAX:
            return keys, values
        pairs: list[tuple[Any, int]] = []
        for key, value in zip(keys, values):
            largest = INT_MIN if value < 0 else INT_MAX
            rows, rest = divmod(value, largest)
            if rows > _CARRIES_MAX:
                raise self.too_large(value)
            pairs += [(key, largest)] * rows
            pairs.append((key, rest))
        made_keys, made_values = zip(*pairs)
        return made_keys, made_values

    def too_large(self, value: int) -> OverflowedSum:
        return OverflowedSum(
            f"combine = {self._combine} of an int that does not fit in 64 bits: {shorten(str(value))}",
            cure="yield floats or Decimals, or write combine as a function of two values",
        )

    def not_unicode(self, value: str) -> ValueTypeError:
        return ValueTypeError(
            f"combine = {self._combine} of text that is not valid Unicode: {shorten(repr(value))}",
            cure="yield bytes, for example value.encode('utf-8', 'surrogateescape')",
        )

    def _text(self, value: str | bytes) -> ValueTypeError:
        return ValueTypeError(
            f"combine = sum adds numbers, and map() yielded the value {shorten(repr(value))}",
            cure="yield numbers, such as 1 to count; or write combine as a function of two values",
        )

    def _mixed(self, names: Sequence[str]) -> ValueTypeError:
        example = f", for example always {names[0]}(value)" if names[0].isidentifier() else ""
        return ValueTypeError(
            f"combine = {self._combine} of values of different types: {', '.join(names)}",
            cure="do not yield None as a value"
            if "NoneType" in names
            else f"yield values of one type from map{example}",
        )

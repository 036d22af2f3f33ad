"""Flat columns of numbers: what a million tasks need, without an object each."""

from __future__ import annotations

import mmap
from array import array


def zeros(code: str, count: int) -> memoryview[int]:
    """`count` zeros of an `array` type code.

    The system gives the pages as they are first written to: an `array` would touch them all at once,
    some 60 ms for all that a million maps need.
    """
    size = array(code).itemsize * count
    pages = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return memoryview(pages)[:size].cast(code)  # type: ignore[call-overload,no-any-return]

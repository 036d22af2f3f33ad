"""Room on Python's stack for code that is run inside other code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def more_frames(count: int) -> Iterator[None]:
    """So many frames beyond those that may be used now."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + count)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)

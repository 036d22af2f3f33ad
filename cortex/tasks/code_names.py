"""What pickles of user code are made of again in executors, where cloudpickle's own way does not do.

A code object has the file name that its pickle carries: errors of user code name the user's file (cloudpickle
since 3.1.3 writes ``<dynamic-code>`` in place of every file name). A function with a cache is made anew, with
an empty one: cloudpickle has it looked up by its name. `cortex.user_code` pickles these as calls of these.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any


def named(filename: str, make: Callable[..., types.CodeType], arguments: tuple[Any, ...]) -> types.CodeType:
    """The code object of ``make(*arguments)``, from `filename`."""
    return make(*arguments).replace(co_filename=filename)


def cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Callable[..., Any]:
    """As ``@functools.lru_cache(maxsize, typed)`` makes it."""
    return functools.lru_cache(maxsize, typed)(function)

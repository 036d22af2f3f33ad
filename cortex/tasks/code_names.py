"""A code object with the file name that its pickle carries: errors of user code name the user's file.

cloudpickle since 3.1.3 writes ``<dynamic-code>`` in place of every file name. `cortex.user_code` pickles
code objects as calls of `named`, which executors import from here.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any


def named(filename: str, make: Callable[..., types.CodeType], arguments: tuple[Any, ...]) -> types.CodeType:
    """The code object of ``make(*arguments)``, from `filename`."""
    return make(*arguments).replace(co_filename=filename)

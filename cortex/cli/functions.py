"""The function that ``cortex compute`` calls, by the name that its file says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from operator import attrgetter
from typing import Any

from cortex.errors import UsageError, UserCodeError
from cortex.job.compute_spec import FunctionName
from cortex.user_code import load_object, user_traceback


def load_function(name: FunctionName, folder: str) -> Callable[..., Any]:
    """Import it; a module is looked for in `folder` as well, where the file stands.

    Raises UsageError (no such module or name; no function) and UserCodeError (the module fails).
    """
    found = load_object(f"{name.file}:{name.name}") if name.file else _of_module(name, folder)
    if not callable(found):
        raise UsageError(
            f"function: {name.text} is a {type(found).__name__}, not a function", cure="name a function"
        )
    return found  # type: ignore[no-any-return]  # it is callable


def _of_module(name: FunctionName, folder: str) -> Any:
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = import_module(name.module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name.module}.".startswith(f"{error.name}."):
            raise _failed(name, error) from error
        raise UsageError(
            f"function: there is no module {error.name!r}",
            cure=f"install it, or have it in {folder}; a file is named FILE.py:NAME",
        ) from error
    except Exception as error:
        raise _failed(name, error) from error
    try:
        return attrgetter(name.name)(module)
    except AttributeError:
        close = get_close_matches(name.name, vars(module), 1)
        raise UsageError(
            f"{name.module} has no {name.name!r}",
            cure=f"did you mean {close[0]!r}?" if close else "name a function in it",
        ) from None


def _failed(name: FunctionName, error: Exception) -> UserCodeError:
    return UserCodeError(
        f"{name.module} cannot be imported: {type(error).__name__}: {error}",
        cure=f'run  python -c "import {name.module}"  to see the same error',
        details={"traceback": user_traceback(error)},
    )

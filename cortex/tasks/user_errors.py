"""What the user sees when their own code raises: their frames, the record, and how to repeat it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import traceback
import types
from collections.abc import Sequence
from typing import Any

from cortex.errors import CortexError, UserCodeError, ValueTypeError
from cortex.limits import LINE_TEXT_CHARS_MAX

USER_EXCEPTIONS = (Exception, SystemExit, KeyboardInterrupt)
"""What may come out of user code. (An executor ignores SIGINT: the last is raised by the code itself.)"""

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARIES = tuple(
    prefix
    for name in ("pyarrow", "numpy")
    if (spec := importlib.util.find_spec(name)) is not None and spec.origin is not None
    for prefix in (os.path.dirname(spec.origin) + os.sep, name + "/")  # the second of compiled frames
)
_VALUES_SHOWN = 20  # values of a group in the line that repeats a reduce
_CALLED_BY_US = ("map", "map_batch", "combine", "combine_function", "partition", "reduce", "reduce_batch")


def user_error(
    error: BaseException,
    *,
    function: str,
    code: Any,
    code_name: str,
    where: dict[str, Any],
    record: str | None = None,
    arguments: str | None = None,
) -> UserCodeError:
    """The error to raise from `error`, which the user's code raised while `function` was at work.

    `code` is the job object. `where` are details that locate the record (file, offset, partition ...).
    `arguments` are Python text, of the call that repeats the failing one (None: it cannot be written).
    A combine or partition that was called meanwhile is told from `function`, and its arguments shown.
    """
    inner = _raised(error)
    called, frame = _called(inner, code)
    shown: dict[str, Any] = {"record": record}
    if called and called != function:
        function, arguments = called.removesuffix("_function"), None
        shown = {"arguments": _arguments(frame)}
    frames = user_frames(inner)
    only = "".join(traceback.format_exception_only(inner)).strip()
    last = frames[-1] if frames else None
    place = f"{os.path.basename(last.filename)}:{last.lineno}" if last else "its caller"
    details: dict[str, Any] = {
        **shown,
        **where,
        "traceback": "".join(traceback.format_list(frames)) + only,
    }
    if arguments is not None and len(arguments) <= 2 * LINE_TEXT_CHARS_MAX:
        details["repeat"] = repeat_command(code, code_name, function, arguments)
    cure = "run the line after 'repeat' to see it again by itself" if "repeat" in details else ""
    if isinstance(inner, SystemExit | KeyboardInterrupt):
        cure = "to leave out a record return from map or reduce; to stop the job raise an error"
    return UserCodeError(
        f"{function} raised {type(inner).__name__} at {place}: {shorten(str(inner))}".rstrip(": "),
        details=details,
        signature=f"{type(inner).__module__}.{type(inner).__qualname__}@"
        + (f"{last.filename}:{last.lineno}" if last else function),
        cure=cure,
    )


def _raised(error: BaseException) -> BaseException:
    """What the user's code raised: a StopIteration comes out of our generators as a RuntimeError."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration):
        return error.__cause__
    return error


def load_error(what: str, error: BaseException) -> UserCodeError:
    """The typed error for code of the user's that does not unpickle in an executor."""
    return UserCodeError(
        f"{what} cannot be loaded in an executor: {type(error).__name__}: {error}",
        cure="a module it imports is missing there, or runs code that fails when it is imported",
        details={
            "traceback": "".join(f"{f.filename}:{f.lineno} {f.line}\n" for f in user_frames(error)),
        },
        signature=f"load:{type(error).__name__}",
    )


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of a traceback that are not cortex's own; none if only pyarrow or NumPy raised, which
    cortex calls as well."""
    stack = traceback.extract_tb(_raised(error).__traceback__)
    frames = [frame for frame in stack if not frame.filename.startswith(_PACKAGE)]
    return [] if all(frame.filename.startswith(_LIBRARIES) for frame in frames) else frames


def _called(error: BaseException, code: Any) -> tuple[str, types.FrameType | None]:
    """Which of the job's functions `error` came out of, and its frame."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        trace = trace.tb_next
    if trace is None:
        return "", None
    for name in _CALLED_BY_US:
        if getattr(getattr(code, name, None), "__code__", None) is trace.tb_frame.f_code:
            return name, trace.tb_frame
    return "", None


def _arguments(frame: types.FrameType | None) -> str:
    if frame is None:
        return ""
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    held = frame.f_locals  # values is an iterator, which says nothing
    shown = []
    with contextlib.suppress(Exception):  # a __repr__ of the user's
        shown = [f"{n}={shorten(repr(held[n]))}" for n in names if n in held and n not in ("self", "values")]
    return ", ".join(shown)


def shorten(text: str) -> str:
    """At most LINE_TEXT_CHARS_MAX characters, and how many were left out."""
    if len(text) <= LINE_TEXT_CHARS_MAX:
        return text
    return f"{text[:LINE_TEXT_CHARS_MAX]}... ({len(text) - LINE_TEXT_CHARS_MAX} more characters)"


def repeat_command(code: Any, code_name: str, function: str, arguments: str) -> str:
    """A shell line that makes the same call: ``python -c "from wordcount import WordCount; ..."``."""
    found = getattr(code, function, None)
    if isinstance(found, types.FunctionType) and not isinstance(code, type):  # of a job file: no method
        file, name = found.__code__.co_filename, found.__name__
        call = f"{name}({arguments})"
    else:
        file, _, name = code_name.rpartition(":")
        call = f"{name or 'job'}().{function}({arguments})"
    if function in ("map", "reduce"):
        call = f"print(list({call} or ()))"
    if not file.endswith(".py") or not name.isidentifier():
        return call
    row = "from cortex.job.row import Row; " if "Row(" in arguments else ""
    script = f"from {os.path.splitext(os.path.basename(file))[0]} import {name}; {row}{call}"
    folder = os.path.dirname(file)
    here = folder in ("", os.getcwd())
    return ("" if here else f"cd {shlex.quote(folder)} && ") + f"python -c {shlex.quote(script)}"


def reduce_arguments(key: Any, values: Sequence[Any]) -> str | None:
    """The arguments that repeat a reduce; None when its values are too many to write down."""
    return f"{key!r}, iter({list(values)!r})" if len(values) <= _VALUES_SHOWN else None


def raise_fold_error(error: Exception, function: str, first: Any, second: Any) -> None:
    """Called where folding two values raised: raises the values' error, unless user code is in it."""
    if isinstance(error, CortexError | MemoryError) or user_frames(error):
        return
    raise ValueTypeError(
        f"{function} cannot take {shorten(repr(first))} and {shorten(repr(second))}: {error}",
        cure="yield values that it takes from map, or write another combine",
    ) from error

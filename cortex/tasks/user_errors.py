"""What the user sees when their own code raises: their frames, the record, and how to repeat it."""

from __future__ import annotations

import os
import shlex
import traceback
from collections.abc import Sequence
from typing import Any

from cortex.errors import UserCodeError
from cortex.limits import LINE_TEXT_CHARS_MAX

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_VALUES_SHOWN = 20  # values of a group in the line that repeats a reduce


def user_error(
    error: Exception,
    *,
    function: str,
    code_name: str,
    record: Any,
    where: dict[str, Any],
    call: str = "",
) -> UserCodeError:
    """The error to raise from `error`, which the user's `function` raised.

    `where` are details that locate the record (file, offset, partition ...); `call` is the Python
    expression that repeats the failing call on an instance ("" if the record is too large to write).
    """
    frames = user_frames(error)
    only = "".join(traceback.format_exception_only(error)).strip()
    shown = "".join(traceback.format_list(frames)) if frames else ""
    last = frames[-1] if frames else None
    place = f"{os.path.basename(last.filename)}:{last.lineno}" if last else "its caller"
    details: dict[str, Any] = {"record": shorten(repr(record)), **where, "traceback": shown + only}
    if call and len(call) <= 2 * LINE_TEXT_CHARS_MAX:
        details["repeat"] = repeat_command(code_name, call)
    return UserCodeError(
        f"{function} raised {type(error).__name__} at {place}: {shorten(str(error))}",
        details=details,
        signature=f"{type(error).__module__}.{type(error).__qualname__}@"
        + (f"{last.filename}:{last.lineno}" if last else function),
        cure="run the line after 'repeat' to see it again by itself" if "repeat" in details else "",
    )


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of a traceback that are not cortex's own."""
    return [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_PACKAGE)]


def shorten(text: str) -> str:
    """At most LINE_TEXT_CHARS_MAX characters, and how many were left out."""
    if len(text) <= LINE_TEXT_CHARS_MAX:
        return text
    return f"{text[:LINE_TEXT_CHARS_MAX]}... ({len(text) - LINE_TEXT_CHARS_MAX} more characters)"


def repeat_command(code_name: str, call: str) -> str:
    """A shell line that makes the same call: ``python -c "from wordcount import WordCount; ..."``."""
    file, _, name = code_name.rpartition(":")
    if file.endswith(".py") and name.isidentifier():
        module = os.path.splitext(os.path.basename(file))[0]
        script = f"from {module} import {name}; from cortex.job.row import Row; print(list({name}().{call}))"
        folder = os.path.dirname(file)
        return (f"cd {shlex.quote(folder)} && " if folder else "") + f"python -c {shlex.quote(script)}"
    return f"list({name or 'job'}().{call})"


def reduce_call(key: Any, values: Sequence[Any]) -> str:
    """The call that repeats a reduce; "" when its values are too many to write down."""
    return f"reduce({key!r}, iter({list(values)!r}))" if len(values) <= _VALUES_SHOWN else ""

"""What is said of a call that failed: its exception, as a pickle and in words, with the user's own frames."""

from __future__ import annotations

import os
import sys
import traceback

from cortex.errors import CortexError, TaskTimeout, UserCodeError, UserMemoryError
from cortex.limits import CALL_ERROR_BYTES_MAX, KIB
from cortex.tasks.cell_pickles import MadeAgain, by_value_dumps
from cortex.tasks.user_errors import shorten, user_frames
from cortex.units import format_bytes
from cortex.wire.messages import CallFailed

_TRACEBACK_CHARS_MAX = 16 * KIB  # a failed call's is read by people: the end of it says where


def call_failed(error: BaseException, call: int, number: int, name: str) -> CallFailed:
    """`call` is its number in the cell, `number` that in all that the cell belongs to."""
    if isinstance(error, CortexError):
        report = error.report()
        report.details.setdefault("call", str(number))
    else:
        report = _user_error(error, number, name).report()
    return CallFailed(call, _pickled(error), report)


def _user_error(error: BaseException, number: int, name: str) -> UserCodeError:
    frames = user_frames(error)
    last = frames[-1] if frames else None
    place = f"{os.path.basename(last.filename)}:{last.lineno}" if last else "its caller"
    return UserCodeError(
        f"{name} raised {type(error).__name__} at {place}: {shorten(_words(error))}".rstrip(": "),
        details={"call": number, "traceback": _traceback(error)},
        signature=f"{type(error).__module__}.{type(error).__qualname__}@"
        + (f"{last.filename}:{last.lineno}" if last else name),
    )


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as other:  # its own __str__ is the user's
        return f"(its text cannot be had: {type(other).__name__})"


def _traceback(error: BaseException) -> str:
    """As Python writes it, without cortex's own frames; of its causes too."""
    text = "".join(_chain(error, set()))
    return text if len(text) <= _TRACEBACK_CHARS_MAX else "..." + text[-_TRACEBACK_CHARS_MAX:]


def _chain(error: BaseException, seen: set[int]) -> list[str]:
    seen.add(id(error))
    lines: list[str] = []
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        lines = _chain(before, seen)
        because = "The above exception was the direct cause of the following exception:"
        during = "During handling of the above exception, another exception occurred:"
        lines.append(f"\n{because if error.__cause__ is not None else during}\n\n")
    frames = traceback.format_list(user_frames(error))
    try:
        only = traceback.format_exception_only(error)
    except BaseException:  # a __str__ of the user's
        only = [f"{type(error).__name__}\n"]
    return lines + (["Traceback (most recent call last):\n", *frames] if frames else []) + only


def _pickled(error: BaseException) -> bytes:
    """b"" where it cannot be pickled, or is too large: its words are there."""
    try:
        sent = MadeAgain(error) if MadeAgain.is_for(error) else error
        pickled = by_value_dumps(sent, lambda _buffer: True)
    except BaseException:  # its __reduce__ is the user's
        return b""
    return pickled if len(pickled) <= CALL_ERROR_BYTES_MAX else b""


def no_memory(error: BaseException, memory_bytes: int, name: str) -> UserMemoryError:
    """The named error for a call that needs more memory than its slot has."""
    frames = user_frames(error)
    last = frames[-1] if frames else None
    return UserMemoryError(
        f"{name} needs more memory than its slot has ({format_bytes(memory_bytes)})",
        cure="raise --memory, lower --slots, or hold less in the function",
        signature=f"UserMemoryError {name} " + (f"{last.filename}:{last.lineno}" if last else ""),
        details={
            "slot memory": format_bytes(memory_bytes),
            "cause": f"{type(error).__name__}: {_words(error)}".rstrip(": "),
            "traceback": _traceback(error),
        },
    )


def cannot_arrive(error: BaseException, name: str, number: int, calls: int) -> UserCodeError:
    """For arguments that cannot be unpickled: of one call, or of a cell of them."""
    which = f"the argument of call {number}" if calls == 1 else f"the arguments of {calls} calls, one of them"
    return UserCodeError(
        f"{which} of {name} cannot be unpickled in an executor: {type(error).__name__}: "
        f"{shorten(_words(error))}",
        cure="a module it needs is missing there, or its class cannot be made again from its pickle",
        details={"call": number, "traceback": _traceback(error)},
        signature=f"argument:{type(error).__name__}",
    )


def cannot_return(error: BaseException, name: str, number: int, kind: str) -> UserCodeError:
    return UserCodeError(
        f"what {name} returned for call {number}, a {kind}, cannot be pickled: {type(error).__name__}: "
        f"{shorten(_words(error))}",
        cure="return plain data, or what is needed to make it again",
        details={"call": number},
        signature=f"result:{type(error).__name__}",
    )


def took_too_long(name: str, number: int, timeout_s: float, thread: int) -> TaskTimeout:
    """With the stack of the thread that runs it."""
    frame = sys._current_frames().get(thread)
    own = user_stack(traceback.extract_stack(frame)) if frame is not None else []
    return TaskTimeout(
        f"call {number} of {name} took more than its {timeout_s:g} s",
        cure="give it more time (timeout), or have it do less",
        details={"call": number, "stack": "".join(traceback.format_list(own))[-_TRACEBACK_CHARS_MAX:]},
        signature=f"timeout:{name}",
    )


def waited_for(late: TaskTimeout, name: str, number: int) -> TaskTimeout:
    """For a call whose executor has to end with the one it has submitted and ran itself, being `late`."""
    return TaskTimeout(
        f"call {number} of {name} ended with its executor, in which it waited: {late.message}",
        cure="give that call more time (timeout), or the job another slot: it runs there then",
        details={"call": number, "stack": late.details.get("stack", "")},
        signature=f"timeout:{name}",
    )


def user_stack(frames: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """From the call on: what is behind the last frame of cortex's that leads to it."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
    ours = [index for index, frame in enumerate(frames) if frame.filename.endswith("cell_run.py")]
    inner = frames[ours[-1] + 1 :] if ours else frames
    return [frame for frame in inner if not frame.filename.startswith(package)]

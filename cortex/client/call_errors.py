"""A call that failed, as its caller sees it."""

from __future__ import annotations

import pickle
from typing import Any

from cortex.errors import ErrorReport, UserCodeError, from_report
from cortex.wire.messages import CallFailed

_TRACEBACK = "traceback"  # of an error report's details


class CallError(Exception):
    """Stands for the result of a call that failed (``errors="return"``).

    `argument_index` is the number of its argument, from 0; `exception` what it raised, or a `CortexError` for
    what ended it; `traceback` the text of the executor's traceback, "" if there is none.
    """

    def __init__(self, argument_index: int, exception: BaseException, traceback: str = "") -> None:
        super().__init__(argument_index, exception, traceback)
        self.argument_index = argument_index
        self.exception = exception
        self.traceback = traceback

    def __str__(self) -> str:
        return f"call {self.argument_index}: {type(self.exception).__name__}: {self.exception}"


class RemoteTraceback(Exception):
    """The traceback of an executor, as the cause of what was raised in it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text


def call_error(failed: CallFailed, index: int, name: str) -> CallError:
    """What was raised, with the executor's traceback as its cause."""
    traceback = failed.error.details.get(_TRACEBACK, "")
    exception = _exception(failed, traceback)
    if traceback:
        exception.__cause__ = RemoteTraceback(f'\n"""\n{traceback.rstrip()}\n"""')
    exception.add_note(f"in call {index} of {name}")
    return CallError(index, exception, traceback)


def own_error(exception: Exception, index: int) -> CallError:
    """Of a call that was not sent, or whose result cannot be read here."""
    return CallError(index, exception)


def _exception(failed: CallFailed, traceback: str) -> BaseException:
    if not failed.pickled:
        return from_report(failed.error)
    try:
        found: Any = pickle.loads(failed.pickled)
    except Exception as error:  # a class whose __init__ takes more than its args, or that is not here
        return _in_words(failed.error, error)
    return found if isinstance(found, BaseException) else _in_words(failed.error, None)


def _in_words(report: ErrorReport, why: Exception | None) -> BaseException:
    details = dict(report.details)
    if why is not None:
        details["not shown as itself"] = f"its pickle cannot be read here: {why!r}"
    return UserCodeError(report.message, cure=report.cure, details=details)

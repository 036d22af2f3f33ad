"""A call that failed, as its caller sees it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from cortex.tasks.cell_pickles import load_exception
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


def call_error(failed: CallFailed, index: int, name: str) -> CallError:
    """What was raised, with the executor's traceback as its cause."""
    traceback = failed.error.details.get(_TRACEBACK, "")
    exception = load_exception(failed)
    if traceback:
        # What users of executors know, by its own class. It brings multiprocessing along: only when needed.
        remote: Any = import_module("concurrent.futures.process")
        exception.__cause__ = remote._RemoteTraceback(f'\n"""\n{traceback.rstrip()}\n"""')
    exception.add_note(f"in call {index} of {name}")
    return CallError(index, exception, traceback)


def own_error(exception: BaseException, index: int) -> CallError:
    """Of a call that was not sent, or whose result cannot be read here."""
    return CallError(index, exception)

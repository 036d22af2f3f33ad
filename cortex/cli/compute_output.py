"""What ``cortex compute`` writes: a JSON object a line for each result, and for each failure.

    {"call": 0, "result": 1}                      with `arguments`: {"call": 0, "arguments": ..., "result": 1}
    {"call": 1, "repr": "<Thing 5>"}              a result that JSON does not have, by choice
    {"call": 2, "pickle": "gASV..."}              the same, in base64
    {"call": 3, "arguments": "9", "error": "ValueError: ...", "traceback": "..."}     in the file of failures

`call` counts the arguments from 0. `line_of` and `Failure` are pure; the sinks below write lines where
they go: to standard output as they come, or at the end, or to a file that is whole or not there.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import reprlib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from typing import IO, Any, Protocol

import msgspec

from cortex.cli.terminal import writing_out
from cortex.errors import CortexError, OutputFailed, ResultNotJson, UserCodeError, from_report
from cortex.job.compute_spec import ValueForm
from cortex.limits import ARGUMENT_CHARS_SHOWN, DISPLAY_ROWS
from cortex.storage.whole_file import WholeFile

NO_ARGUMENTS: Any = object()
FAILED_ENDING = ".failed"
"""Behind the output's name: where failures are listed."""


# --- lines ------------------------------------------------------------------------------------------


def line_of(call: int, result: Any, values: ValueForm, arguments: Any = NO_ARGUMENTS) -> bytes:
    """Raises ResultNotJson."""
    head: dict[str, Any] = {"call": call}
    if arguments is not NO_ARGUMENTS:
        head["arguments"] = _known(arguments)
    try:
        return _encoded(head | {"result": result})
    except (TypeError, ValueError, RecursionError) as error:
        if values == "repr":
            return _encoded(head | {"repr": repr(result)})
        if values == "pickle":
            return _encoded(head | {"pickle": base64.b64encode(_pickled(result)).decode()})
        raise ResultNotJson(
            f"its result cannot be written as JSON: {error}",
            cure="return numbers, texts, lists and dicts of them, or choose --values repr or pickle",
            details={"result": shown(result)},
        ) from error


def _pickled(result: Any) -> bytes:
    try:
        return pickle.dumps(result, 5)
    except Exception as error:
        raise ResultNotJson(
            f"its result cannot be pickled: {error}",
            cure="choose --values repr",
            details={"result": shown(result)},
        ) from error


@dataclass(frozen=True)
class Failure:
    """A call that failed, or whose result could not be written. `traceback` is the executor's."""

    call: int
    arguments: Any
    exception: BaseException
    traceback: str = ""

    @property
    def error(self) -> CortexError:
        """As the error that ends a run: of the type it is, if it is one of cortex."""
        told = {"arguments": shown(self.arguments)}
        if isinstance(self.exception, CortexError):
            report = self.exception.report()
            message = f"call {self.call} failed: {report.message}"
            details = told | report.details
            return from_report(msgspec.structs.replace(report, message=message, details=details))
        return UserCodeError(self.short(), details=told | {"traceback": self.traceback})

    def short(self) -> str:
        """On one line, mostly."""
        return f"call {self.call} failed: {self._said()}"

    def line(self) -> bytes:
        line = {"call": self.call, "arguments": _known(self.arguments), "error": self._said()}
        return _encoded(line | ({"traceback": self.traceback} if self.traceback else {}))

    def _said(self) -> str:
        if isinstance(self.exception, CortexError):
            return self.exception.message
        kind, text = type(self.exception), str(self.exception)
        name = (
            kind.__qualname__
            if kind.__module__ in ("builtins", "__main__")
            else f"{kind.__module__}.{kind.__qualname__}"
        )
        return f"{name}: {text}".removesuffix(": ")


def shown(value: Any) -> str:
    """For people: its repr, shortened."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = ARGUMENT_CHARS_SHOWN
    return short.repr(value)  # one that raises is told by its class


def _known(arguments: Any) -> Any:
    """As JSON, else as text."""
    try:
        _encoded(arguments)
    except (TypeError, ValueError, RecursionError):
        return shown(arguments)
    return arguments


def _encoded(value: Any) -> bytes:
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=_plain)
    return text.encode() + b"\n"  # a lone surrogate is a UnicodeEncodeError, which is a ValueError


def _plain(value: Any) -> Any:
    """NumPy's scalars stand for the plain values that they are."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        plain = value.item()
        if isinstance(plain, bool | int | float | str):
            return plain
    raise TypeError(f"{type(value).__name__} is not known to JSON")


# --- where lines go ---------------------------------------------------------------------------------


class Lines(Protocol):
    def write(self, line: bytes) -> None: ...
    def flush(self) -> None:
        """From any thread, now and then: what was written is to be seen."""

    def commit(self) -> None: ...
    def abort(self) -> None:
        """After `commit` it changes nothing."""


class NoLines:
    def write(self, line: bytes) -> None:
        pass

    def flush(self) -> None:
        pass

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass


class PrintedLines:
    """To standard output, as they come."""

    def write(self, line: bytes) -> None:
        with writing_out():
            sys.stdout.buffer.write(line)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the next write says so, where it can be told
            sys.stdout.buffer.flush()

    def commit(self) -> None:
        with writing_out():
            sys.stdout.buffer.flush()

    def abort(self) -> None:
        self.flush()


class HeldLines:
    """To standard output, all at the end; until then in a file without a name."""

    def __init__(self, folder: str) -> None:
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed at the end)
        except OSError as error:
            raise self._failed(folder, error) from error
        self._folder = folder

    def write(self, line: bytes) -> None:
        try:
            self._file.write(line)
        except OSError as error:
            raise self._failed(self._folder, error) from error

    def flush(self) -> None:
        pass

    def commit(self) -> None:
        self._file.seek(0)
        with writing_out():
            shutil.copyfileobj(self._file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        self._file.close()

    def abort(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written is not wanted either
            self._file.close()

    @staticmethod
    def _failed(folder: str, error: OSError) -> OutputFailed:
        return OutputFailed(
            f"results cannot be kept in {folder}: {error.strerror or error}",
            cure="free space there, or write them to a file with --output",
        )


class FirstLines:
    """Of a run whose end is told as one object: the first ones are in it, of the others the number."""

    def __init__(self) -> None:
        self.first: list[Any] = []
        self.more = 0

    def write(self, line: bytes) -> None:
        if len(self.first) < DISPLAY_ROWS:
            self.first.append(json.loads(line))
        else:
            self.more += 1

    def flush(self) -> None:
        pass

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass


class FileLines:
    """To a file that is whole or not there."""

    def __init__(self, path: str, overwrite: bool) -> None:
        self._file = WholeFile(path, overwrite)
        self.write = self._file.write
        self.commit = self._file.commit
        self.abort = self._file.abort

    def flush(self) -> None:
        pass

"""What every command shares: exit codes, errors as people read them, and streams that fail or are not there.

Standard error is for show: a job goes on without it. Standard output is the result: what cannot be written
is an error, but for a reader that has seen enough.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO

from cortex.errors import EXIT_DONE, EXIT_INTERRUPTED, CortexError, OutputFailed


def guarded(command: Callable[[], int], as_json: bool = False) -> int:
    """Run a command and return its exit code; errors go to standard error (and as JSON to standard out).

    A reader of standard output that goes away (``| head``) ends the command quietly with exit code 0.
    SIGTERM unwinds like any exception, so that temporary files are removed.
    """
    try:
        signal.signal(signal.SIGTERM, _terminated)
        code = command()
        with writing_out():
            sys.stdout.flush()
    except CortexError as error:
        say(f"error: {error}")
        if as_json:
            with contextlib.suppress(OutputFailed, BrokenPipeError):  # it was said on standard error
                print_json({"error": plain(error.report())})
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_DONE
    return code


def unprinted(error: OSError) -> int:
    """The exit code for help or a version that could not be printed; says so, as `guarded` does."""

    def command() -> int:
        with writing_out(cure=""):
            raise error

    return guarded(command)


@contextlib.contextmanager
def writing_out(cure: str = "free space where it goes, or name a folder with --output") -> Iterator[None]:
    """Writing to standard output, and nothing else. Raises OutputFailed, or BrokenPipeError for `guarded`."""
    try:
        yield
    except OSError as error:
        _close_quietly(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputFailed(
            f"standard output cannot be written: {error.strerror or error}", cure=cure
        ) from error


def replace_missing_streams() -> None:
    """Where Python found a standard stream closed (``2>&-``), the null device."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for the rest of the process)


def _terminated(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # what is removed now is not to be interrupted
    raise SystemExit(128 + number)


def say(text: str, end: str = "\n") -> None:
    """A message for the person: standard error, whatever standard output is."""
    for_show = ForShow(sys.stderr)
    for_show.write(text + end)
    for_show.flush()


class ForShow:
    """A stream whose failure is nobody's error: its reader, disk or terminal may be gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _close_quietly(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _close_quietly(self._stream)


def _close_quietly(stream: TextIO) -> None:
    """Point a stream that cannot be written at the null device, so that exit does not complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def plain(value: object) -> object:
    """Messages as dicts and lists, without the tags they carry on the wire."""
    import msgspec

    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def print_json(value: object) -> None:
    """One JSON value on standard output, indented."""
    import msgspec

    encoded = msgspec.json.encode(value, enc_hook=str)
    text = msgspec.json.format(encoded, indent=2).decode() + "\n"
    with writing_out():
        sys.stdout.write(text)
        sys.stdout.flush()


def printable(text: str) -> str:
    """On one line; of what others chose nothing that a terminal would obey."""
    return text if text.isprintable() else ascii(text)[1:-1]


def aligned(head: list[str], rows: list[list[str]], right: set[int]) -> list[str]:
    """A table as lines, columns two spaces apart; columns in `right` are aligned to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in [head, *rows]
    ]

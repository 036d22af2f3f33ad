"""What every command shares: exit codes, errors as people read them, and quiet ends of pipes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TextIO

from cortex.errors import EXIT_DONE, EXIT_INTERRUPTED, CortexError
from cortex.units import format_count


def guarded(command: Callable[[], int], as_json: bool = False) -> int:
    """Run a command and return its exit code; errors go to standard error (and as JSON to standard out).

    A reader of standard output that goes away (``| head``) ends the command quietly with exit code 0.
    SIGTERM unwinds like any exception, so that temporary files are removed.
    """
    try:
        signal.signal(signal.SIGTERM, _terminated)
        code = command()
        sys.stdout.flush()
    except CortexError as error:
        say(f"error: {error}")
        if as_json:
            print_json({"error": plain(error.report())})
            sys.stdout.flush()
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _close_quietly(sys.stdout)
        return EXIT_DONE
    return code


def _terminated(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # what is removed now is not to be interrupted
    raise SystemExit(128 + number)


def say(text: str, end: str = "\n") -> None:
    """A message for the person: standard error, whatever standard output is."""
    try:
        sys.stderr.write(text + end)
        sys.stderr.flush()
    except BrokenPipeError:
        _close_quietly(sys.stderr)


def _close_quietly(stream: TextIO) -> None:
    """Point a stream whose reader is gone at the null device, so that exit does not complain."""
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
    sys.stdout.write(msgspec.json.format(encoded, indent=2).decode() + "\n")


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


def counted(number: int, what: str) -> str:
    """1, split -> ``1 split``; 2 -> ``2 splits``."""
    return f"{format_count(number)} {what}{'' if number == 1 else 's'}"

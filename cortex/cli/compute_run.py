"""What ``cortex compute`` does: the plan shown and confirmed, calls made, results written as they come,
failures noted, and all of it summed up.

What is read from the file is `cortex.job.compute_file`'s, lines are `cortex.cli.compute_output`'s,
and how calls are made `cortex.cli.compute_calls`'.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator

import click

from cortex.cli.call_progress import CallsSoFar, call_display, call_summary
from cortex.cli.compute_calls import ComputeCalls, Outcome
from cortex.cli.compute_output import (
    FAILED_ENDING,
    NO_ARGUMENTS,
    Failure,
    FileLines,
    FirstLines,
    HeldLines,
    Lines,
    NoLines,
    PrintedLines,
    line_of,
)
from cortex.cli.compute_plan import Place, plan_lines
from cortex.cli.functions import load_function
from cortex.cli.terminal import print_json, say
from cortex.config import Config
from cortex.errors import EXIT_DONE, EXIT_FAILED, OutputExistsError, ResultNotJson
from cortex.job.compute_spec import ComputeFile
from cortex.limits import FAILURES_SHOWN
from cortex.units import counted, format_count
from cortex.user_code import make_importable


def run_compute(file: ComputeFile, config: Config, *, yes: bool, quiet: bool, as_json: bool) -> int:
    make_importable(file.modules)
    with contextlib.redirect_stdout(sys.stderr):  # what a module prints is no result
        function = load_function(file.function, os.path.dirname(file.path))
    file.arguments.check()
    total = file.arguments.count()
    with _lines(file, config, as_json) as lines, _failures(file) as failures:
        if not quiet:
            for line in plan_lines(file, total, place(file, config)):
                say(line)
            if not yes and sys.stdin.isatty() and sys.stderr.isatty():
                click.confirm("Run it?", default=True, abort=True, err=True)
        done = failed = 0
        with ComputeCalls(file, function, total, config) as calls:

            def look() -> CallsSoFar:
                seconds = 0.0 if calls.began is None else time.monotonic() - calls.began
                return CallsSoFar(done, failed, calls.sent, total, calls.slots, seconds)

            visible = not quiet and not (isinstance(lines, PrintedLines) and sys.stdout.isatty())
            with call_display(look, show=visible, then=lines.flush):
                for outcome in calls:
                    failure = _failure(file, lines, outcome)
                    if failure is None:
                        done += 1
                    elif file.errors == "raise":
                        raise failure.error
                    else:
                        failed += 1
                        failures.add(failure)
            so_far = look()
        failures.commit()
        lines.commit()
    if not quiet:
        say(call_summary(file.name, so_far))
        if file.output.path:
            say(f"  output   {file.output.path}: {counted(done, 'line')}")
    failures.tell()
    if as_json:
        print_json(_as_json(file, so_far, lines, failures))
    return EXIT_FAILED if failed else EXIT_DONE


def _failure(file: ComputeFile, lines: Lines, outcome: Outcome) -> Failure | None:
    """None for a call that is done, and its result written."""
    call, arguments, failed = outcome.call, outcome.arguments, outcome.failed
    if failed is not None:
        return Failure(call, arguments, failed.exception, failed.traceback)
    if file.mode != "none":
        shown = arguments if file.output.arguments else NO_ARGUMENTS
        try:
            lines.write(line_of(call, outcome.result, file.output.values, shown))
        except ResultNotJson as unwritten:
            return Failure(call, arguments, unwritten)
    return None


def place(file: ComputeFile, config: Config) -> Place:
    """Where it will run. Raises what keeps the cluster from being asked, and MemoryTooSmall."""
    if config.server:
        from cortex.client.cluster_client import ClusterConnection
        from cortex.wire.messages import ClusterStatus, GetStatus

        with ClusterConnection(config.home, config.server) as connection:
            nodes = connection.ask(GetStatus(), ClusterStatus).nodes
        return Place(config.server, len(nodes), sum(node.slots for node in nodes), slots_max=file.slots)
    from cortex.memory_plan import plan_memory

    plan = plan_memory(file.memory_bytes or config.memory_bytes, file.slots or config.slots)
    return Place("", 1, plan.slots, plan.cap_bytes)


def _as_json(file: ComputeFile, so_far: CallsSoFar, lines: Lines, failures: _Failures) -> dict[str, object]:
    described: dict[str, object] = {
        "job": file.name,
        "response_mode": file.mode,
        "output": file.output.path or None,
        "done": so_far.done,
        "failed": so_far.failed,
        "seconds": so_far.seconds,
        "failures": [json.loads(each.line()) for each in failures.first],
    }
    if isinstance(lines, FirstLines):
        described |= {"results": lines.first, "more": lines.more}
    return described


@contextlib.contextmanager
def _lines(file: ComputeFile, config: Config, as_json: bool) -> Iterator[Lines]:
    """Where results go; of a run that does not end well nothing is left but what was printed."""
    lines: Lines
    if file.mode == "none":
        lines = NoLines()
    elif file.output.path:
        lines = FileLines(file.output.path, file.output.overwrite)
    elif as_json:
        lines = FirstLines()
    elif file.mode == "collect":
        lines = HeldLines(config.spill_dirs[0])
    else:
        lines = PrintedLines()
    try:
        yield lines
    finally:
        lines.abort()


@contextlib.contextmanager
def _failures(file: ComputeFile) -> Iterator[_Failures]:
    failures = _Failures(file.output.path, file.output.overwrite)
    try:
        yield failures
    finally:
        failures.abort()


class _Failures:
    """Calls that failed, of a run that goes on: in a file beside the output, else said at once."""

    def __init__(self, output: str, overwrite: bool) -> None:
        self._path = output + FAILED_ENDING if output else ""
        self._overwrite = overwrite
        self._file: FileLines | None = None
        self.first: list[Failure] = []
        self._count = 0
        if self._path and not overwrite and os.path.lexists(self._path):
            raise OutputExistsError(
                f"{self._path} exists already", cure="add --overwrite to replace it, or name another output"
            )

    def add(self, failure: Failure) -> None:
        self._count += 1
        if len(self.first) < FAILURES_SHOWN:
            self.first.append(failure)
        if not self._path:
            say(str(failure.error))
            return
        if self._file is None:
            self._file = FileLines(self._path, self._overwrite)
        self._file.write(failure.line())

    def commit(self) -> None:
        if self._file is not None:
            self._file.commit()
        elif self._path and self._overwrite:  # of an earlier run
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    def abort(self) -> None:
        if self._file is not None:
            self._file.abort()

    def tell(self) -> None:
        """At the end: the first ones, and where all are."""
        if not self._count:
            return
        if self._path:
            for each in self.first:
                say(each.short())
            if self._count > len(self.first):
                say(f"... and {format_count(self._count - len(self.first))} more")
        say(f"error: {counted(self._count, 'call')} failed" + (f": {self._path}" if self._path else ""))

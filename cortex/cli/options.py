"""Options that commands share, and running a click command without its own exits."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from traceback import walk_tb
from typing import Any, TypeVar

import click

from cortex.cli.terminal import replace_missing_streams, say, unprinted
from cortex.errors import UsageError
from cortex.job.overrides import Overrides, parse_priority, parse_reducers, parse_retries, parse_timeout
from cortex.job.spec import FINGERPRINTS, INPUT_FORMATS, OUTPUT_FORMATS
from cortex.limits import DAY_S, PRIORITY_MAX, PRIORITY_MIN, RESULTS_S
from cortex.units import parse_bytes

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class RunOptions:
    """What the command line says about a job, and how to show what came of it."""

    job: Overrides = field(default_factory=Overrides)
    as_json: bool = False
    quiet: bool = False
    server: str | None = None
    """None: what the environment says; "" this machine."""
    home: str | None = None
    detach: bool = False
    keep_results: str = ""
    """"": as long as results are kept unless asked otherwise."""


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # older clicks' is no generic
    """An option whose text one of cortex's own parsers reads; its UsageError becomes click's."""

    def __init__(self, name: str, parse: Callable[[str], int | float]) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int | float):
            return value
        try:
            return self.parse(value)
        except UsageError as error:
            message = error.message.partition(": ")[2] or error.message
            self.fail(message + (f"; {error.cure}" if error.cure else ""), param, ctx)


SIZE = _Parsed("size", lambda text: parse_bytes(text))
REDUCERS = _Parsed("N|auto", parse_reducers)
PRIORITY = _Parsed("N", parse_priority)
RETRIES = _Parsed("N", lambda text: parse_retries(text))
TIMEOUT = _Parsed("time", lambda text: parse_timeout(text))

split_size = click.option(
    "--split-size",
    "split_bytes",
    type=SIZE,
    help="Input bytes of one map task (default 64MB, less below 2GB).",
)
input_format = click.option(
    "--format",
    "input_format",
    type=click.Choice(INPUT_FORMATS),
    help="Input format; without it each file's ending says.",
)
fingerprint = click.option(
    "--fingerprint",
    type=click.Choice(FINGERPRINTS),
    help="On a cluster: compare samples of a file (default), or all of it, with what nodes have at its path.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")


def run_options(function: _F) -> _F:
    """The options of running a job, for ``cortex mapreduce`` and ``MapReduceJob.main``."""
    decorators: Sequence[Callable[[_F], _F]] = (
        click.option(
            "--input", "-i", "input_options", multiple=True, metavar="PATH",
            help="File, folder or glob to read; may be repeated.",
        ),
        click.option(
            "--output", "-o", metavar="FOLDER",
            help="Folder to write; without it the result is shown (on a terminal) or printed as CSV.",
        ),
        click.option(
            "--output-on", type=click.Choice(["client", "nodes"]),
            help="Who writes --output: this machine (default), or a cluster's nodes, which then must all see"
            " that path.",
        ),
        click.option("--overwrite", is_flag=True, help="Replace the output folder of an earlier job."),
        click.option(
            "--memory", "memory_bytes", type=SIZE,
            help="Cap of all processes together, such as 512MB (default: half of the machine's).",
        ),
        click.option(
            "--slots", type=click.IntRange(min=1), metavar="N",
            help="Tasks at once (default: one for each processor).",
        ),
        click.option(
            "--reducers", type=REDUCERS, metavar="N|auto",
            help="Reduce tasks and output files; 0 for a map-only job (default auto).",
        ),
        split_size,
        click.option(
            "--priority", type=PRIORITY, metavar="N",
            help=f"Among your jobs on a cluster, {PRIORITY_MIN} (last) to {PRIORITY_MAX} (default 0): one"
            " more is four times the slots.",
        ),
        input_format,
        fingerprint,
        click.option(
            "--output-format", type=click.Choice(OUTPUT_FORMATS),
            help="Format of the output files (default csv).",
        ),
        click.option(
            "--server", metavar="HOST:PORT",
            help="Run on this server's cluster; 'local': on this machine (default: CORTEX_SERVER, if set).",
        ),
        click.option(
            "--detach", is_flag=True,
            help="Submit to a cluster, print the job's id, and leave. Later: cortex fetch ID.",
        ),
        click.option(
            "--keep-results", metavar="TIME",
            help=f"With --detach: how long the result is kept after the job, such as 12h"
            f" (default {RESULTS_S / DAY_S:g}d).",
        ),
        click.option("--home", metavar="DIR", help="Folder of cortex's state (default: CORTEX_HOME)."),
        as_json,
        click.option("--quiet", "-q", is_flag=True, help="No progress and no summary."),
    )  # fmt: skip
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def collect(
    more_inputs: Sequence[str],
    input_options: Sequence[str],
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    server: str | None,
    home: str | None,
    detach: bool,
    keep_results: str | None,
    **job_options: Any,
) -> RunOptions:
    """`RunOptions` of what click parsed; inputs given as arguments come after those of ``--input``."""
    inputs = (*input_options, *more_inputs)
    if keep_results and not detach:
        raise click.UsageError("--keep-results is for a job that is detached: add --detach")
    if detach and server == "local":
        raise click.UsageError(
            "a job on this machine alone ends with its command: --detach needs a cluster, not --server local"
        )
    job = Overrides(inputs=inputs, overwrite=overwrite or None, **job_options)
    on = "" if server == "local" else server
    return RunOptions(job, as_json, quiet, on, home, detach, keep_results or "")


def run_click(command: click.Command, arguments: list[str], name: str) -> int:
    """Run a click command; the exit code is what it returns, or 2 for wrong usage."""
    replace_missing_streams()
    try:
        code = command.main(args=arguments, prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        say(text.getvalue(), end="")
        return error.exit_code
    except click.Abort:
        return 130
    except OSError as error:
        echoed = any(frame.f_code is click.echo.__code__ for frame, _ in walk_tb(error.__traceback__))
        if not echoed:  # cortex prints what it prints otherwise, and has looked at its errors
            raise
        return unprinted(error)
    return code if isinstance(code, int) else 0

"""``cortex compute``: the command. What it does is in `cortex.cli.compute_run`, imported when it runs."""

from __future__ import annotations

from typing import Any

import click

from cortex.cli.options import HELP, PRIORITY, RETRIES, SIZE, TIMEOUT, as_json
from cortex.cli.terminal import guarded, say
from cortex.config import load_config
from cortex.job.compute_spec import ERROR_MODES, RESPONSE_MODES, VALUE_FORMS, ComputeOverrides


@click.command(name="compute", context_settings=HELP)
@click.argument("path", metavar="FILE")
@click.option(
    "--response-mode",
    "mode",
    type=click.Choice(RESPONSE_MODES),
    help="Results in the order of the arguments (default), as completed, all at the end, or only counted.",
)
@click.option("--output", "-o", metavar="FILE", help="File to write; without it results are printed.")
@click.option("--overwrite", is_flag=True, help="Replace the output of an earlier run.")
@click.option(
    "--values",
    type=click.Choice(VALUE_FORMS),
    help="Results that JSON does not have: an error (default), their repr, or their pickle in base64.",
)
@click.option(
    "--errors",
    type=click.Choice(ERROR_MODES),
    help="A call that fails ends the run (default), or is listed at the end.",
)
@click.option("--retries", type=RETRIES, metavar="N", help="Further tries of a call that raises (default 0).")
@click.option("--timeout", "timeout_s", type=TIMEOUT, metavar="TIME", help="Of one call, such as 30s.")
@click.option(
    "--memory",
    "memory_bytes",
    type=SIZE,
    help="Cap of all processes together, such as 512MB (default: half of the machine's).",
)
@click.option(
    "--slots", type=click.IntRange(min=1), metavar="N", help="Calls at once (default: one a processor)."
)
@click.option(
    "--priority", type=PRIORITY, metavar="N", help="Among your jobs on a cluster, -2 to 2 (default 0)."
)
@click.option(
    "--server",
    metavar="HOST:PORT",
    help="Run on this server's cluster; 'local': on this machine (default: CORTEX_SERVER, if set).",
)
@click.option("--home", metavar="DIR", help="Folder of cortex's state (default: CORTEX_HOME).")
@as_json
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--quiet", "-q", is_flag=True, help="No plan, no question, no progress and no summary.")
def compute(
    path: str,
    server: str | None,
    home: str | None,
    yes: bool,
    quiet: bool,
    as_json: bool,
    overwrite: bool,
    **options: Any,
) -> int:
    """Call a function for each of many arguments, on this machine, or with --server on a cluster.

    FILE (cortex_config.yaml) names the function, its arguments, and how: docs/compute.md. The plan is shown,
    and on a terminal confirmed once. Each result is a line {"call": N, "result": ...}: printed, or with
    --output in a file that appears when the run has ended well. Progress, the summary, failures and what
    the function prints go to standard error.

    With --errors collect failures are listed in OUTPUT.failed (without --output on standard error), and the
    exit code is 1 if there are any.

    \b
    --json prints one object instead of the results, when all is done:
      output    the output file, or null
      done      calls that are done
      failed    those that failed
      failures  the first 10 of these; {"error": {...}} replaces all of it when the run fails
      results   without an output file: the first 40 results
      more      ... and how many are not shown

    \b
    Examples:
      cortex compute cortex_config.yaml
      cortex compute cortex_config.yaml --output results.jsonl --errors collect --retries 2
      cortex compute cortex_config.yaml --response-mode stream | head
      cortex compute cortex_config.yaml --server head:8786 --yes
    """

    def command() -> int:
        from cortex.cli.compute_run import run_compute
        from cortex.job.compute_file import load_compute_file

        given = ComputeOverrides(overwrite=overwrite or None, **options)
        config = load_config(server="" if server == "local" else server, home=home)
        if not quiet:
            for warning in config.warnings:
                say(f"warning: {warning}")
        return run_compute(load_compute_file(path, given), config, yes=yes, quiet=quiet, as_json=as_json)

    return guarded(command, as_json)

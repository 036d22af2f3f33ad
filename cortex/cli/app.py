"""The command group ``cortex`` and its help."""

from __future__ import annotations

from typing import Any

import click

from cortex import __version__
from cortex.cli import admin, detached, jobs, members, nodes
from cortex.cli.audit import audit
from cortex.cli.compute import compute
from cortex.cli.doctor import doctor
from cortex.cli.mapreduce import mapreduce
from cortex.cli.options import HELP, run_click
from cortex.cli.put import put
from cortex.cli.splits import ls_splits
from cortex.cli.status import status


class _Group(click.Group):
    """A group that suggests the command a typo was meant to be."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            close = get_close_matches(args[0], self.list_commands(ctx), 1)
            if not close:
                raise
            raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from None


@click.group(cls=_Group, context_settings=HELP)
@click.version_option(__version__, prog_name="cortex", message="%(prog)s %(version)s")
def cortex() -> None:
    """MapReduce over files larger than memory, and any function over any arguments, in plain Python.

    \b
    Examples:
      cortex mapreduce job.yaml --input big.csv
      cortex mapreduce wordcount.py:WordCount --input 'docs/*.txt' --output counts/
      cortex ls-splits big.csv
      cortex compute cortex_config.yaml

    Exit codes: 0 done, 1 the job failed, 2 wrong usage, 130 interrupted.
    """


@cortex.command(name="help", context_settings=HELP)
@click.argument("command", required=False)
@click.pass_context
def help_command(context: click.Context, command: str | None) -> None:
    """Show help: of everything, or of COMMAND."""
    parent = context.parent
    assert parent is not None
    if command is None:
        click.echo(parent.get_help())
        return
    found = cortex.get_command(parent, command)
    if found is None:
        known = ", ".join(cortex.list_commands(parent))
        raise click.UsageError(f"No such command {command!r}. Commands: {known}.", context)
    with click.Context(found, info_name=command, parent=parent) as ctx:
        click.echo(found.get_help(ctx))


cortex.add_command(mapreduce)
cortex.add_command(compute)
cortex.add_command(ls_splits)
cortex.add_command(put)
for _command in (
    members.server,
    members.node,
    members.login,
    status,
    jobs.jobs,
    jobs.job,
    detached.fetch,
    detached.forget,
    jobs.cancel,
    jobs.logs,
    nodes.drain,
    nodes.nodes,
):
    cortex.add_command(_command)
for _command in (admin.token, admin.kill_cluster, audit, doctor):
    cortex.add_command(_command)
cortex.add_command(compute, "cortex_compute")
cortex.add_command(status, "cluster_status")
cortex.add_command(admin.kill_cluster, "kill_cluster")


def run(arguments: list[str]) -> int:
    return run_click(cortex, arguments, "cortex")

"""``cortex ls-splits``: how inputs would be split, and what cannot be."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from cortex.class_spec import input_paths
from cortex.cli.options import HELP, as_json, fingerprint, input_format, split_size
from cortex.cli.terminal import aligned, guarded, print_json, writing_out
from cortex.config import Config, load_config
from cortex.errors import EXIT_DONE, UsageError
from cortex.job.plan import InputPlan
from cortex.job.spec import Fingerprint, InputSpec, JobSpec, Resources
from cortex.units import counted, format_bytes, format_count

_HERE = "local"  # who has the bytes: on one machine, this one
_CLIENT = "client"
Holders = Sequence[tuple[str, ...]]
_LINES_AT_ONCE = 10_000  # of a table: its widths are those of this many rows


@click.command(name="ls-splits", context_settings=HELP)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@split_size
@input_format
@fingerprint
@click.option(
    "--server",
    metavar="HOST:PORT",
    help="As this server's cluster would; 'local': as this machine would (default: CORTEX_SERVER, if set).",
)
@click.option("--home", metavar="DIR", help="Folder of cortex's state (default: CORTEX_HOME).")
@as_json
def ls_splits(
    paths: tuple[str, ...],
    split_bytes: int | None,
    input_format: str | None,
    fingerprint: str | None,
    server: str | None,
    home: str | None,
    as_json: bool,
) -> int:
    """Show how inputs would be split: number, file, offset, length, rows where known, holders.

    PATH are files, folders or globs. A file that is one split says why. On a cluster the holders are the
    nodes that have the file below their data roots, or the client; data:PATH names files of the nodes.

    \b
    --json prints {"splits": [...], "files": [...], "columns": [...], "total_bytes": N, "notes": [...]}.

    \b
    Examples:
      cortex ls-splits big.csv
      cortex ls-splits logs/ --split-size 16MB
      cortex ls-splits 'data/*.parquet' --json
      cortex ls-splits 'data:logs/*.csv' --server head:8786
    """

    def command() -> int:
        problems: list[str] = []
        kind: Fingerprint = "full" if fingerprint == "full" else "sampled"
        spec = InputSpec(input_paths(list(paths), problems), input_format or "", fingerprint=kind)
        if problems:
            raise UsageError("\n".join(problems))
        config = load_config(server="" if server == "local" else server, home=home)
        if config.server:
            plan, holders = _plan_there(spec, split_bytes or 0, config)
        else:
            plan = _plan_here(spec, split_bytes or 0)
            holders = [(_HERE,)] * len(plan.files)
        if as_json:
            print_json(describe(plan, holders))
        else:
            _print_table(plan, holders)
        return EXIT_DONE

    return guarded(command, as_json)


def _plan_here(spec: InputSpec, split_bytes: int) -> InputPlan:
    from cortex.formats.planning import plan_inputs

    return plan_inputs(spec, used_columns=None, split_bytes=split_bytes, reducers=-1)


def _plan_there(spec: InputSpec, split_bytes: int, config: Config) -> tuple[InputPlan, Holders]:
    from cortex.client.cluster_session import ClusterSession

    with ClusterSession(config.home, config.server) as session:
        made = session.plan(JobSpec("ls-splits", spec, resources=Resources(split_bytes=split_bytes)))
    return made.plan, [
        made.sets[number] or ((_CLIENT,) if has == "1" else ())
        for number, has in zip(made.set_of, made.client_has)
    ]


def describe(plan: InputPlan, holders: Holders) -> dict[str, Any]:
    """The plan as ``--json`` prints it; `holders` are those of each file."""
    return {
        "splits": [
            {
                "split": s.index,
                "file": plan.files[s.file].path,
                "offset": s.offset,
                "length": s.length,
                "rows": s.rows if s.rows >= 0 else None,
                "holder": ", ".join(holders[s.file]),
                "holders": list(holders[s.file]),
            }
            for s in plan.splits
        ],
        "files": [
            {
                "path": f.path,
                "format": f.format,
                "compression": f.compression or None,
                "size_bytes": f.size_bytes,
                "splittable": not f.unsplittable,
                "unsplittable": f.unsplittable or None,
            }
            for f in plan.files
        ],
        "columns": [{"name": name, "type": kind} for name, kind in plan.columns],
        "tasks": len(plan.tasks),
        "total_bytes": plan.total_bytes,
        "notes": list(plan.notes),
    }


def _print_table(plan: InputPlan, holders: Holders) -> None:
    shown = _shown_paths(plan)
    head = ["split", "file", "offset", "length", "rows", "holder", ""]
    for start in range(0, max(1, len(plan.splits)), _LINES_AT_ONCE):
        rows = [
            [
                str(s.index),
                shown[s.file],
                str(s.offset),
                str(s.length),
                format_count(s.rows) if s.rows >= 0 else "",
                ", ".join(holders[s.file]),
                f"cannot be split: {plan.files[s.file].unsplittable}"
                if plan.files[s.file].unsplittable
                else "",
            ]
            for s in plan.splits[start : start + _LINES_AT_ONCE]
        ]
        lines = aligned(head, rows, {0, 2, 3, 4})
        with writing_out():
            sys.stdout.write("\n".join(lines if start == 0 else lines[1:]) + "\n")
    files, splits, tasks = len(plan.files), len(plan.splits), len(plan.tasks)
    with writing_out():
        print(
            f"\n{counted(splits, 'split')} of {counted(files, 'file')}, {format_bytes(plan.total_bytes)}, "
            f"{counted(tasks, 'map task')}"
        )
        if plan.columns:
            print("columns: " + ", ".join(f"{name} {kind}" for name, kind in plan.columns))
        for note in plan.notes:
            print(f"note: {note}")


def _shown_paths(plan: InputPlan) -> list[str]:
    """Paths as a person would type them: relative to this folder when they lie in it."""
    import os

    here = os.getcwd() + os.sep
    return [f.path.removeprefix(here) for f in plan.files]

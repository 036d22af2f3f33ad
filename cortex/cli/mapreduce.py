"""``cortex mapreduce`` and ``MapReduceJob.main``: run a job and show what came of it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from cortex.api import MapReduceJob
from cortex.cli.options import HELP, RunOptions, collect, run_click, run_options
from cortex.cli.targets import LoadedJob, load_class_job, load_target
from cortex.cli.terminal import guarded, plain, print_json
from cortex.errors import EXIT_DONE
from cortex.tasks.pandas_on_demand import defer_pandas

if TYPE_CHECKING:
    from cortex.result import Result


@click.command(context_settings=HELP)
@click.argument("target")
@click.argument("more_inputs", nargs=-1, metavar="[INPUT]...")
@run_options
def mapreduce(target: str, **options: Any) -> int:
    """Run a MapReduce job on this machine, or with --server on a cluster.

    TARGET is a job file (job.yaml) or a class in a Python file (wordcount.py:WordCount). Further arguments
    are inputs, as if given with --input.

    Without --output the result is shown as a table (the first 40 rows by key) on a terminal, and printed
    as CSV, all of it, into a pipe or file. Progress and the summary go to standard error. What the job's
    code prints is shown only when it fails: its last lines.

    \b
    With --detach the job's id is printed as soon as its input is planned, and the job goes on by itself. Its
    files must be where the nodes see them. The result is kept at the cluster for 7 days (--keep-results):
    `cortex fetch ID`.

    \b
    --json prints one object instead of the result:
      output    the output folder, or null
      columns   names of the output's columns
      row_count rows of the whole output
      rows      without an output folder: the first 40 rows by key (bytes in base64, NaN as null)
      more      ... and how many rows are not shown
      counters  {group: {name: count}}
      report    rows, bytes, stages, memory; {"error": {...}} replaces all of it when the job fails

    \b
    Examples:
      cortex mapreduce job.yaml --input big.csv
      cortex mapreduce job.yaml --input big.csv | head
      cortex mapreduce job.yaml --input 2023.csv --input 2024.csv --memory 512MB --output out/
      cortex mapreduce wordcount.py:WordCount --input 'docs/*.txt' --output counts/ --reducers 4
      cortex mapreduce job.yaml --input /shared/big.csv --output out/ --server head:8786
      cortex mapreduce job.yaml --input /shared/big.csv --server head:8786 --detach
    """
    wanted = collect(**options)
    return guarded(lambda: _run(lambda: load_target(target, wanted.job), wanted), wanted.as_json)


def class_main(job_class: type[MapReduceJob], arguments: list[str]) -> int:
    """The command line of one job class; returns the exit code."""
    name = os.path.basename(sys.argv[0]) or job_class.__name__

    @click.command(name=name, context_settings=HELP, help=_class_help(job_class, name))
    @click.argument("more_inputs", nargs=-1, metavar="[INPUT]...")
    @run_options
    def command(**options: Any) -> int:
        wanted = collect(**options)
        return guarded(
            lambda: _run(lambda: load_class_job(job_class, job_class.__name__, wanted.job), wanted),
            wanted.as_json,
        )

    return run_click(command, arguments, name)


def _class_help(job_class: type[MapReduceJob], name: str) -> str:
    own = job_class.__doc__ if job_class.__doc__ != MapReduceJob.__doc__ else None
    return (
        f"{own or f'Run the MapReduce job {job_class.__name__} on this machine.'}\n\n"
        "INPUT are files, folders or globs.\n\n"
        f"\b\nExamples:\n  python {name} 'docs/*.txt'\n  python {name} 'docs/*.txt' -o out/ --memory 512MB"
    )


def _run(load: Callable[[], LoadedJob], options: RunOptions) -> int:
    loaded = load()
    if options.detach:
        from cortex.cli.detached import detach

        return detach(loaded, options)
    from cortex.cli.progress import progress_display, summary
    from cortex.cli.terminal import say
    from cortex.config import load_config
    from cortex.local_run import open_session, pack_job, run_job, spill_folder

    config = load_config(server=options.server, home=options.home)
    if not options.quiet:
        for warning in config.warnings:
            say(f"warning: {warning}")
    with open_session(loaded.spec.resources, config) as session:
        # Made ready while the processes start.
        packed = pack_job(session, loaded.code, loaded.spec, loaded.modules)
        session.wait_ready()
        showing = _prepare_to_show(loaded)
        with progress_display(options.quiet) as on_progress:
            result = run_job(session, loaded.spec, packed, on_progress, spill_folder(config))
        session.finish()  # the processes end while the result is shown
        showing.join()
        with result:
            as_table = shows_table(result, options)
            if as_table:
                show(result, options)
            if not options.quiet:
                for line in summary(result):
                    say(line)
            if not as_table:  # a reader such as head may end this: the summary comes before
                show(result, options)
    return EXIT_DONE


def _prepare_to_show(loaded: LoadedJob) -> threading.Thread:
    """Import what will show the result while the job runs: 0.3 s less to wait for afterwards."""

    def prepare() -> None:
        if loaded.spec.output.path:
            return
        import_module("pyarrow")
        defer_pandas()  # not used here: half a second and 45 MB
        import_module("rich.table" if sys.stdout.isatty() else "cortex.formats.text_writers")

    thread = threading.Thread(target=prepare)
    thread.start()
    return thread


def shows_table(result: Result, options: RunOptions) -> bool:
    return result.path is None and not options.as_json and sys.stdout.isatty()


def show(result: Result, options: RunOptions) -> None:
    """The result on standard output: JSON if asked for, nothing if it is in a folder, else rows."""
    from cortex.cli import rows

    if options.as_json:
        print_json(_as_json(result))
    elif shows_table(result, options):
        rows.print_table(result)
    elif result.path is None:
        rows.print_csv(result)


def _as_json(result: Result) -> dict[str, Any]:
    described: dict[str, Any] = {
        "job": result.report.name,
        "output": result.path,
        "columns": result.columns,
        "row_count": len(result),
    }
    if result.path is None:
        first, more = result.first_rows()
        described |= {"rows": first, "more": more}
    return described | {"counters": result.counters, "report": plain(result.report)}

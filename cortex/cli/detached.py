"""Jobs that go on without their client: submitting one, waiting for one, and what becomes of its result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cortex.cli.connection import connected, of_cluster, settings
from cortex.cli.job_table import when
from cortex.cli.options import HELP, RunOptions, as_json
from cortex.cli.terminal import guarded, print_json, say
from cortex.errors import EXIT_DONE, CortexError, NotAllowed, ResultsLost
from cortex.limits import RESULTS_S
from cortex.units import format_seconds

if TYPE_CHECKING:
    from cortex.cli.targets import LoadedJob


def detach(loaded: LoadedJob, options: RunOptions) -> int:
    """Submit, and say how to go on."""
    from cortex.cli.terminal import plain
    from cortex.client.cluster_session import ClusterSession
    from cortex.job_handle import detach_job, keep_seconds
    from cortex.local_run import pack_job

    keep_s = keep_seconds(options.keep_results or RESULTS_S)
    config = settings(home=options.home, server=options.server, quiet=options.quiet)
    with ClusterSession(config.home, config.server) as session:
        packed = pack_job(session, loaded.code, loaded.spec, loaded.modules)
        job = detach_job(session, loaded.spec, packed, keep_s)
    on_nodes = loaded.spec.output.at == "nodes"
    if options.as_json:
        output = loaded.spec.output.path or None
        print_json(plain({"job": job, "keep_results_s": 0 if on_nodes else keep_s, "output": output}))
    else:
        print(job)
    if not options.quiet:
        say(f"{loaded.spec.name} goes on without this command")
        say(f"  wait for it   cortex job {job} --wait")
        if on_nodes:
            say(f"  its output    {loaded.spec.output.path}, where the nodes see that path")
        else:
            say(
                f"  its result    cortex fetch {job}"
                + ("" if loaded.spec.output.path else " --output FOLDER")
            )
            say(f"  is kept for   {format_seconds(keep_s)} after its end, unless: cortex forget {job}")
    return EXIT_DONE


def wait_for_end(job: str, home: str | None, server: str | None, quiet: bool) -> bool:
    """Follow a job with its progress, and tell its error; False for another user's, which cannot be."""
    from cortex.cli.progress import progress_display
    from cortex.job_handle import JobHandle

    try:
        with progress_display(quiet) as on_progress:
            JobHandle(job, settings(home=home, server=server, quiet=True)).wait(on_progress)
    except NotAllowed:
        return False
    except ResultsLost:
        pass  # it has ended meanwhile, and was forgotten
    except CortexError as error:
        if not hasattr(error, "job_report"):
            raise
        if not quiet:
            say(f"error: {error}")
    return True


@click.command(name="fetch", context_settings=HELP)
@click.argument("job_id", metavar="ID")
@click.option(
    "--output", "-o", metavar="FOLDER", help="Folder to write (default: the one that the job names, if any)."
)
@click.option("--overwrite", is_flag=True, help="Replace the output folder of an earlier job.")
@of_cluster
@as_json
@click.option("--quiet", "-q", is_flag=True, help="No progress and no summary.")
def fetch(
    job_id: str,
    output: str | None,
    overwrite: bool,
    home: str | None,
    server: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Fetch the result of a detached job of yours (or, as admin, of any).

    Waits for the job's end if need be. The output is committed in one step, as `cortex mapreduce` does;
    without a folder the result is shown. It may be fetched again, from each machine that shows your identity:
    it is kept until it expires (7 days after the job's end, unless --keep-results said otherwise) or
    `cortex forget`.

    \b
    Examples:
      cortex fetch j0123456789ab --output out/
      cortex fetch j0123456789ab --output out/ --overwrite
      cortex fetch j0123456789ab | head
    """

    def command() -> int:
        from cortex.cli.mapreduce import show, shows_table
        from cortex.cli.progress import progress_display, summary
        from cortex.job_handle import fetch_result

        config = settings(home=home, server=server, quiet=quiet)
        with progress_display(quiet) as on_progress:
            result, expires_at = fetch_result(config, job_id, output, overwrite, on_progress)
        options = RunOptions(as_json=as_json, quiet=quiet)
        with result:
            as_table = shows_table(result, options)
            if as_table:
                show(result, options)
            if not quiet:
                for line in summary(result):
                    say(line)
                say(f"  kept     at the cluster until {when(expires_at)}, unless: cortex forget {job_id}")
            if not as_table:
                show(result, options)
        return EXIT_DONE

    return guarded(command, as_json)


@click.command(name="forget", context_settings=HELP)
@click.argument("job_id", metavar="ID")
@of_cluster
def forget(job_id: str, home: str | None, server: str | None) -> int:
    """Drop the result of a detached job of yours (or, as admin, of any) at the cluster.

    It frees room at the nodes; what was fetched stays. A job that is under way is ended by `cortex cancel`.

    \b
    Examples:
      cortex forget j0123456789ab
    """

    def command() -> int:
        from cortex.wire.messages import ForgetResult, JobForgotten

        with connected(home, server) as connection:
            connection.ask(ForgetResult(job_id), JobForgotten)
        print(f"{job_id} is forgotten")
        return EXIT_DONE

    return guarded(command)

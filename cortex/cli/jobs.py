"""The commands about jobs that were submitted to a cluster: list them, look at one, end it, see its logs."""

from __future__ import annotations

import time

import click

from cortex.cli.connection import connected, of_cluster
from cortex.cli.job_table import has_ended, job_lines
from cortex.cli.locality import shares
from cortex.cli.options import HELP, as_json
from cortex.cli.terminal import guarded, plain, print_json, say
from cortex.errors import EXIT_DONE, EXIT_FAILED, UsageError


@click.command(name="jobs", context_settings=HELP)
@of_cluster
@as_json
def jobs(home: str | None, server: str | None, as_json: bool) -> int:
    """List jobs: those under way, and the last that ended.

    \b
    Examples:
      cortex jobs
      cortex jobs --json
    """

    def command() -> int:
        from cortex.wire.messages import ClusterStatus, GetStatus

        with connected(home, server) as connection:
            found = connection.ask(GetStatus(), ClusterStatus).jobs
        if as_json:
            print_json(plain(found))
        else:
            print("\n".join(job_lines(list(found)) or ["no jobs"]))
        return EXIT_DONE

    return guarded(command, as_json)


@click.command(name="job", context_settings=HELP)
@click.argument("job_id", metavar="ID")
@click.option("--wait", is_flag=True, help="Wait for its end; the exit code is then the job's.")
@of_cluster
@as_json
def job(job_id: str, wait: bool, home: str | None, server: str | None, as_json: bool) -> int:
    """Show one job.

    With --wait its progress is shown until it has ended; the error of a job of yours that failed is told
    whole.

    \b
    Examples:
      cortex job j0123456789ab
      cortex job j0123456789ab --wait && echo done
    """

    def command() -> int:
        from cortex.wire.messages import ClusterStatus, GetStatus

        waiting = wait
        while True:
            with connected(home, server) as connection:
                known = connection.ask(GetStatus(), ClusterStatus).jobs
            found = next((each for each in known if each.job == job_id), None)
            if found is None:
                raise UsageError(f"there is no job {job_id!r}", cure="list them: cortex jobs")
            if not wait or has_ended(found):
                break
            if waiting:
                from cortex.cli.detached import wait_for_end

                waiting = wait_for_end(job_id, home, server, quiet=as_json)
            else:  # another user's job: only its state is for everybody
                time.sleep(1.0)
        if as_json:
            print_json(plain(found))
        else:
            lines = job_lines([found])
            lines += [f"input: {shares(found.locality)}"] if shares(found.locality) else []
            lines += [f"error: {found.error}"] if found.error else []
            if found.kept_until:
                lines.append(f"its result: cortex fetch {job_id} --output FOLDER")
            print("\n".join(lines))
        return EXIT_FAILED if wait and found.state != "done" else EXIT_DONE

    return guarded(command, as_json)


@click.command(name="cancel", context_settings=HELP)
@click.argument("job_id", metavar="ID")
@of_cluster
def cancel(job_id: str, home: str | None, server: str | None) -> int:
    """Cancel a job of yours (or, as admin, any).

    \b
    Examples:
      cortex cancel j0123456789ab
    """

    def command() -> int:
        from cortex.wire.messages import CancelJob, ClusterStatus

        with connected(home, server) as connection:
            known = connection.ask(CancelJob(job_id), ClusterStatus).jobs
        state = next((each.state for each in known if each.job == job_id), "cancelled")
        print(f"{job_id} is {state}" + ("" if state == "cancelled" else ": it had ended before"))
        return EXIT_DONE

    return guarded(command)


@click.command(name="logs", context_settings=HELP)
@click.argument("job_id", metavar="ID")
@of_cluster
@as_json
def logs(job_id: str, home: str | None, server: str | None, as_json: bool) -> int:
    """Show what the code of a job of yours wrote on its nodes: the last lines of each.

    \b
    Examples:
      cortex logs j0123456789ab
    """

    def command() -> int:
        from cortex.wire.messages import GetLogs, JobLogs

        with connected(home, server) as connection:
            found = connection.ask(GetLogs(job_id), JobLogs)
        if as_json:
            print_json(plain(found))
        else:
            for log in found.logs:
                print(f"=== node {log.node}\n{log.text}")
        if not found.logs:
            say(f"{job_id} wrote nothing that is still kept")
        return EXIT_DONE

    return guarded(command, as_json)

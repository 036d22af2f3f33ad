"""The commands of a cluster: its server, its members' way in, and what it is doing."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cortex.cli.call_progress import calls_text
from cortex.cli.locality import local_share, shares
from cortex.cli.options import HELP, as_json
from cortex.cli.terminal import aligned, guarded, plain, print_json, say
from cortex.config import Config, load_config
from cortex.errors import EXIT_DONE, EXIT_FAILED, Unreachable, UsageError
from cortex.ids import Role, is_token_id
from cortex.job.overrides import parse_slots
from cortex.limits import LOG_FILE_BYTES, LOG_FILES_KEPT, TOKEN_S, TOKEN_USES
from cortex.sharing_policy import parse_cap, parse_weights
from cortex.units import counted, format_bytes, format_seconds, parse_bytes

if TYPE_CHECKING:
    from cortex.client.cluster_client import ClusterConnection
    from cortex.wire.join import Endpoint
    from cortex.wire.messages import ClusterStatus, JobStatus, NodeStatus, StageProgress

_F = TypeVar("_F", bound=Callable[..., Any])
_SERVER_PORT = 8786
_NODE_PORT = 8787
_WATCH_S = 1.0
_CALLS = "calls"
"""The one stage of a job of `cortex compute`."""


def of_cluster(function: _F) -> _F:
    """Options of commands that ask the server."""
    server = click.option(
        "--server",
        metavar="HOST:PORT",
        help="The cluster's server (default: CORTEX_SERVER, or where you joined).",
    )
    home = click.option("--home", metavar="DIR", help="Folder of cortex's state (default: CORTEX_HOME).")
    return server(home(function))


def settings(*, quiet: bool = False, **flags: Any) -> Config:
    """`load_config`; warnings go to standard error."""
    config = load_config(**flags)
    for warning in () if quiet else config.warnings:
        say(f"warning: {warning}")
    return config


def connected(home: str | None, server: str | None) -> ClusterConnection:
    from cortex.client.cluster_client import ClusterConnection

    config = settings(home=home, server=server)
    return ClusterConnection(config.home, config.server)


def _log_file(function: _F) -> _F:
    size, kept = format_bytes(LOG_FILE_BYTES), LOG_FILES_KEPT
    told = f"Write the log there, at most {size} and {kept} older files (default: standard error)."
    return click.option("--log-file", metavar="PATH", default="", help=told)(function)


metrics_option = click.option(
    "--metrics",
    metavar="ADDRESS:PORT",
    help="Tell figures and health there, over the cluster's TLS (default: CORTEX_METRICS, or nowhere).",
)


@click.command(name="server", context_settings=HELP)
@click.option(
    "--listen",
    metavar="ADDRESS:PORT",
    help=f"Address of this machine to listen on (default: CORTEX_LISTEN, or 0.0.0.0:{_SERVER_PORT}).",
)
@click.option(
    "--advertise",
    metavar="HOST",
    help="How others reach this machine (default: CORTEX_ADVERTISE, or its own address).",
)
@metrics_option
@click.option("--home", metavar="DIR", help="Folder of the server's state (default: CORTEX_HOME).")
@_log_file
@click.option("--jobs-per-user", metavar="N", help="Jobs of one user under way at once (default: 100).")
@click.option(
    "--queued-tasks",
    metavar="N",
    help="Tasks of all jobs, not begun, at which no further job is taken (default: 2000000).",
)
@click.option(
    "--user-weight",
    multiple=True,
    metavar="USER=W",
    help="Weight of a user's share of the slots (default: 1 each); may be repeated.",
)
def server(
    listen: str | None,
    advertise: str | None,
    metrics: str | None,
    home: str | None,
    log_file: str,
    jobs_per_user: str | None,
    queued_tasks: str | None,
    user_weight: tuple[str, ...],
) -> int:
    """Run the server of a cluster, in the foreground.

    The first start makes the cluster's certificate authority and prints the line that nodes join with.
    Only members get past the handshake: every connection is TLS 1.3 with a certificate of that authority.
    SIGTERM or Ctrl-C ends it.

    \b
    Examples:
      cortex server
      cortex server --listen 10.0.0.5:8786 --advertise head.example.org
      cortex server --jobs-per-user 20 --user-weight c0123456789ab=2
    """

    def command() -> int:
        from cortex.server.server_process import run_server
        from cortex.wire.join import Endpoint

        config = settings(
            home=home,
            listen=listen,
            advertise=advertise,
            metrics=metrics,
            jobs_per_user=None if jobs_per_user is None else parse_cap(jobs_per_user, "--jobs-per-user"),
            queued_tasks=None if queued_tasks is None else parse_cap(queued_tasks, "--queued-tasks"),
            user_weights=parse_weights(user_weight, "--user-weight") if user_weight else None,
        )
        at, known_as = _addresses(config, _SERVER_PORT)
        at_port = Endpoint(known_as, at.port)
        return run_server(config.home, at, at_port, config.sharing, log_file, _watched(config))

    return guarded(command)


@click.command(name="node", context_settings=HELP)
@click.option(
    "--join", metavar="LINE", help="HOST:PORT/TOKEN.CAHASH as the server prints it (or CORTEX_JOIN)."
)
@click.option(
    "--listen",
    metavar="ADDRESS:PORT",
    help=f"Where other nodes fetch map outputs (default: CORTEX_LISTEN, or 0.0.0.0:{_NODE_PORT}).",
)
@click.option(
    "--advertise",
    metavar="HOST",
    help="How other nodes reach this machine (default: CORTEX_ADVERTISE, or its own address).",
)
@metrics_option
@click.option("--slots", metavar="N", help="Tasks at once (default: one a processor).")
@click.option(
    "--memory", metavar="SIZE", help="Cap of everything the node starts (default: half of the machine's)."
)
@click.option("--spill", multiple=True, metavar="DIR", help="Folder for temporary data; may be repeated.")
@click.option(
    "--spill-quota",
    metavar="SIZE",
    help="Most that temporary data may take (default: what its disks have free).",
)
@click.option(
    "--data",
    multiple=True,
    metavar="DIR",
    help="Folder whose files the node may read and serve: jobs name them data:PATH; may be repeated.",
)
@click.option("--home", metavar="DIR", help="Folder of the node's state (default: CORTEX_HOME).")
@_log_file
def node(
    join: str | None,
    listen: str | None,
    advertise: str | None,
    metrics: str | None,
    slots: str | None,
    memory: str | None,
    spill: tuple[str, ...],
    spill_quota: str | None,
    data: tuple[str, ...],
    home: str | None,
    log_file: str,
) -> int:
    """Run a node of a cluster, in the foreground.

    It joins with the line that the server prints, and waits for a server that is not there yet. A home
    that has joined before needs no line. SIGTERM or Ctrl-C ends it: what it ran runs elsewhere, at once. A
    second one ends it on the spot. To let it finish first: cortex drain.

    \b
    Examples:
      cortex node --join head:8786/t0123456789ab-0123...
      cortex node --slots 8 --memory 24GB --spill /disk1/cortex --spill /disk2/cortex --spill-quota 400GB
      cortex node --slots 8 --memory 24GB --spill /disk1/cortex --spill /disk2/cortex
      cortex node --data /srv/logs --data /srv/archive
    """

    def command() -> int:
        from cortex.node.node_process import run_node

        config = settings(
            home=home,
            join_line=join,
            listen=listen,
            advertise=advertise,
            metrics=metrics,
            memory_bytes=None if memory is None else parse_bytes(memory, "--memory"),
            slots=None if slots is None else parse_slots(slots, "--slots"),
            spill_quota_bytes=None if spill_quota is None else parse_bytes(spill_quota, "--spill-quota"),
        )
        at, known_as = _addresses(config, _NODE_PORT, any_port=True)
        return run_node(
            config.home,
            config.join_line,
            at,
            known_as,
            memory_bytes=config.memory_bytes,
            slots=config.slots,
            spill_dirs=[os.path.abspath(folder) for folder in spill] or config.spill_dirs,
            spill_quota_bytes=config.spill_quota_bytes,
            log_file=log_file,
            data_dirs=[os.path.abspath(folder) for folder in data] or config.data_dirs,
            combine=config.combine,
            metrics=_watched(config),
        )

    return guarded(command)


def _addresses(config: Config, port: int, any_port: bool = False) -> tuple[Endpoint, str]:
    """Where a server or a node listens, and what others call this machine."""
    from cortex.wire.join import Endpoint, parse_endpoint, parse_host

    at = Endpoint("0.0.0.0", port)
    if config.listen:
        at = parse_endpoint(config.listen, "the address to listen at", any_port=any_port)
    if config.advertise:
        return at, parse_host(config.advertise, "the address to advertise")
    return at, own_address(at.host)


def _watched(config: Config) -> Endpoint | None:
    """Where to tell figures, if anywhere."""
    from cortex.wire.join import parse_endpoint

    if not config.metrics:
        return None
    return parse_endpoint(config.metrics, "the address for metrics", any_port=True)


def own_address(listen_host: str) -> str:
    """What others call this machine: the address it listens on, or the one it reaches others from."""
    if listen_host not in ("0.0.0.0", "::"):
        return listen_host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: only the route is looked up
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


@click.command(name="login", context_settings=HELP)
@click.argument("line", metavar="HOST:PORT/TOKEN.CAHASH", required=False)
@click.option("--home", metavar="DIR", help="Folder of cortex's state (default: CORTEX_HOME).")
def login(line: str | None, home: str | None) -> int:
    """Become a client of a cluster: get a certificate for this machine's commands.

    The line (or CORTEX_JOIN, out of sight of process lists) comes from `cortex token create --role client`,
    run where the server was started. Whoever started the server needs none.

    \b
    Examples:
      cortex login head:8786/TOKEN.CAHASH
      cortex status
    """

    def command() -> int:
        from cortex.client.cluster_client import CLIENT_FOLDER
        from cortex.wire.joiner import join_cluster
        from cortex.wire.versions import local_versions

        config = settings(home=home, join_line=line)
        if not config.join_line:
            raise UsageError(
                "there is no line to log in with",
                cure="give it behind login, or as CORTEX_JOIN: cortex token create --role client prints one",
            )
        folder = os.path.join(config.home, CLIENT_FOLDER)
        roles = (Role.CLIENT, Role.ADMIN, Role.MONITOR)
        identity = join_cluster(config.join_line, folder, local_versions(), roles, time.time())
        print(f"logged in to cluster {identity.cluster} at {identity.server} as {identity.id}")
        return EXIT_DONE

    return guarded(command)


@click.command(name="status", context_settings=HELP)
@of_cluster
@as_json
@click.option("--watch", is_flag=True, help="Show it again every second until Ctrl-C.")
def status(home: str | None, server: str | None, as_json: bool, watch: bool) -> int:
    """Show the cluster: nodes, slots, memory, disk, jobs, and seconds since each node was heard.

    \b
    Examples:
      cortex status
      cortex status --watch
      cortex status --json --server head:8786
    """

    def command() -> int:
        from cortex.wire.messages import ClusterStatus, GetStatus

        shown = said = False
        while True:
            try:
                with connected(home, server) as connection:
                    while True:
                        found = connection.ask(GetStatus(), ClusterStatus)
                        shown, said = True, False
                        if as_json:
                            print_json(plain(found))
                        else:
                            print("\n".join(status_lines(found)))
                        if not watch:
                            return EXIT_DONE
                        sys.stdout.flush()
                        time.sleep(_WATCH_S)
                        print()
            except Unreachable as error:  # a server that was there may come back to who watches
                if not shown:
                    raise
                if not said:
                    said = True
                    say(f"{error.message}; trying again")
                time.sleep(_WATCH_S)

    return guarded(command, as_json)


def status_lines(found: ClusterStatus) -> list[str]:
    slots = sum(node.slots for node in found.nodes)
    running = sum(min(node.running, node.slots) for node in found.nodes)
    head = ["node", "address", "slots", "tasks", "memory", "cap", "spilled", "heard", "state"]
    rows = [
        [
            node.node,
            node.data_address,
            str(node.slots),
            str(node.running),
            format_bytes(node.memory_bytes),
            format_bytes(node.memory_cap_bytes),
            spilled(node),
            f"{node.heard_s:.0f} s ago",
            node.state,
        ]
        for node in found.nodes
    ]
    rows += [[node.node, *["?"] * 7, f"expected {node.leaves_in_s:.0f} s"] for node in found.expected]
    nodes, busy = counted(len(found.nodes), "node"), f"{running} of {counted(slots, 'slot')} busy"
    lines = [f"cluster {found.cluster}: {nodes}, {busy}"]
    lines += aligned(head, rows, {2, 3, 4, 5, 6}) if rows else []
    return lines + job_lines([job for job in found.jobs if not _ended(job)])


def spilled(node: NodeStatus) -> str:
    """What a node's temporary data takes, and may take."""
    if node.spill_bytes < 0:
        return "?"
    return f"{format_bytes(node.spill_bytes)} of {format_bytes(node.spill_limit_bytes)}"


def _ended(job: JobStatus) -> bool:
    return job.state in ("done", "failed", "cancelled")


def job_lines(jobs: list[JobStatus]) -> list[str]:
    if not jobs:
        return []
    rows = [
        [
            job.job,
            job.name,
            job.state,
            "" if _ended(job) else f"{job.slots}/{job.slots_wanted}",
            "" if _ended(job) else str(job.priority),
            _tasks_done(job),
            local_share(job.locality),
            format_seconds(job.seconds),
            job.owner,
        ]
        for job in jobs
    ]
    head = ["job", "name", "state", "slots", "priority", "tasks", "maps", "time", "user"]
    if any(job.kept_until for job in jobs):
        head.append("result kept until")
        rows = [[*row, when(job.kept_until) if job.kept_until else ""] for row, job in zip(rows, jobs)]
    return aligned(head, rows, {3, 4, 7})


def when(seconds: float) -> str:
    """A time by this machine's clock; `seconds` are since 1970."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _tasks_done(job: JobStatus) -> str:
    return ", ".join(
        _calls(job, stage)
        if stage.stage == _CALLS
        else f"{stage.stage} {stage.tasks_done}/{stage.tasks_total}"
        for stage in job.stages
    )


def _calls(job: JobStatus, stage: StageProgress) -> str:
    """Of a job of `cortex compute`, whose client may not know how many calls there will be."""
    total = None if stage.open_ended and not _ended(job) else stage.tasks_total
    running = 0 if _ended(job) else min(stage.tasks_running, job.slots)  # others wait at their worker
    failed = stage.rows_in
    return "calls " + calls_text(total, stage.rows_out - failed, running, failed, stage.seconds)


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
            if not wait or _ended(found):
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


@click.group(name="token", context_settings=HELP)
def token() -> None:
    """Join tokens: how nodes and clients get in. Only an admin may.

    \b
    Examples:
      cortex token create
      cortex token create --role client --hours 1 --uses 1
      cortex token list
      cortex token revoke t0123456789ab
    """


@token.command(name="create", context_settings=HELP)
@click.option(
    "--role", type=click.Choice(["node", "client", "admin", "monitor"]), default="node", show_default=True
)
@click.option(
    "--hours", type=click.FloatRange(min=0, min_open=True), default=TOKEN_S / 3600, show_default=True
)
@click.option("--uses", type=click.IntRange(min=1), default=TOKEN_USES, show_default=True)
@of_cluster
@as_json
def token_create(
    role: str, hours: float, uses: int, home: str | None, server: str | None, as_json: bool
) -> int:
    """Print a new join line. It holds a secret: give it only to whom it is for."""

    def command() -> int:
        from cortex.wire.messages import CreateToken, TokenCreated

        with connected(home, server) as connection:
            made = connection.ask(CreateToken(Role(role), hours * 3600, uses), TokenCreated)
        if as_json:
            print_json(plain(made))
        else:
            print(("cortex node --join " if role == "node" else "cortex login ") + made.join_line)
        return EXIT_DONE

    return guarded(command, as_json)


@token.command(name="list", context_settings=HELP)
@of_cluster
@as_json
def token_list(home: str | None, server: str | None, as_json: bool) -> int:
    """List join tokens, without their secrets."""

    def command() -> int:
        from cortex.wire.messages import ListTokens, TokenList

        with connected(home, server) as connection:
            found = connection.ask(ListTokens(), TokenList).tokens
        if as_json:
            print_json(plain(found))
            return EXIT_DONE
        now = time.time()
        rows = [
            [
                each.token_id,
                each.role.value,
                f"{each.uses} of {each.uses_max}",
                "revoked" if each.revoked_at else "expired" if each.expires_at <= now
                else f"for {format_seconds(each.expires_at - now)}",
            ]
            for each in found
        ]  # fmt: skip
        print("\n".join(aligned(["token", "role", "uses", "good"], rows, set())) if rows else "no tokens")
        return EXIT_DONE

    return guarded(command, as_json)


@token.command(name="revoke", context_settings=HELP)
@click.argument("token_id", metavar="ID")
@of_cluster
def token_revoke(token_id: str, home: str | None, server: str | None) -> int:
    """End a join token, or put out the member of this id.

    Who has joined with a token stays. A node, client or admin that is put out is cut off at once, everywhere,
    and its certificates count for nothing. Ids are in `cortex status` (nodes) and `cortex jobs` (owners).

    \b
    Examples:
      cortex token revoke t0123456789ab
      cortex token revoke n0123456789ab
    """

    def command() -> int:
        from cortex.wire.messages import AdminDone, RevokePeer, RevokeToken

        with connected(home, server) as connection:
            if token_id == connection.identity.id:
                raise UsageError(f"{token_id} is you", cure="another admin may put you out")
            revoke = RevokeToken(token_id) if is_token_id(token_id) else RevokePeer(token_id)
            connection.ask(revoke, AdminDone)
        print(f"{token_id} is revoked")
        return EXIT_DONE

    return guarded(command)


@click.command(name="kill-cluster", context_settings=HELP)
@click.option("--yes", is_flag=True, help="Do not ask.")
@of_cluster
def kill_cluster(yes: bool, home: str | None, server: str | None) -> int:
    """End every node and the server. Jobs under way are lost.

    \b
    Examples:
      cortex kill-cluster
      cortex kill-cluster --yes
    """

    def command() -> int:
        from cortex.wire.messages import AdminDone, KillCluster

        with connected(home, server) as connection:
            if not yes:
                click.confirm(f"End the cluster at {connection.endpoint}?", abort=True)
            connection.ask(KillCluster(), AdminDone)
        print("the cluster has ended")
        return EXIT_DONE

    return guarded(command)

"""The commands that make this machine a member of a cluster: its server, one of its nodes, or a client.

A server and a node run in the foreground until a signal ends them. What they need (Twisted, certificates) is
imported when they run, so that no other command waits for it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cortex.cli.connection import settings
from cortex.cli.options import HELP
from cortex.cli.terminal import guarded
from cortex.config import Config
from cortex.errors import EXIT_DONE, UsageError
from cortex.ids import Role
from cortex.job.overrides import parse_slots
from cortex.limits import LOG_FILE_BYTES, LOG_FILES_KEPT
from cortex.sharing_policy import parse_cap, parse_weights
from cortex.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from cortex.wire.join import Endpoint

_F = TypeVar("_F", bound=Callable[..., Any])
_SERVER_PORT = 8786
_NODE_PORT = 8787


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

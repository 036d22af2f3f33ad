"""The commands about nodes: what they are, and how one leaves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from cortex.cli.connection import connected, of_cluster
from cortex.cli.options import HELP, as_json
from cortex.cli.status import spilled
from cortex.cli.terminal import aligned, guarded, plain, print_json, say
from cortex.errors import EXIT_DONE, Unreachable, UsageError
from cortex.limits import DRAIN_S
from cortex.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from cortex.client.cluster_client import ClusterConnection
    from cortex.wire.messages import NodeStatus

_LOOK_S = 0.5


def _status(connection: ClusterConnection) -> list[NodeStatus]:
    """All nodes, those that are expected back last."""
    from cortex.wire.messages import ClusterStatus, GetStatus

    found = connection.ask(GetStatus(), ClusterStatus)
    return [*found.nodes, *found.expected]


def _named(nodes: list[NodeStatus], name: str) -> NodeStatus:
    """The node of this id, address or machine. Raises UsageError when there is none, or are several."""
    found = [node for node in nodes if name in (node.node, node.data_address, node.host)]
    if len(found) == 1:
        return found[0]
    said = f"there is no node {name!r}"
    if found:
        said = f"{name!r} is the machine of several nodes: {', '.join(node.node for node in found)}"
    raise UsageError(said, cure="name one by its id: cortex nodes list")


@click.group(name="nodes", context_settings=HELP)
def nodes() -> None:
    """The nodes of a cluster: list them, or put one out for good.

    \b
    Examples:
      cortex nodes list
      cortex nodes list --json
      cortex nodes revoke n0123456789ab
    """


@nodes.command(name="list", context_settings=HELP)
@of_cluster
@as_json
def nodes_list(home: str | None, server: str | None, as_json: bool) -> int:
    """List nodes: state, versions, memory, disk, and how long their certificates are good.

    A state is up, full (it had no room for spilled data, and gets no work for a while), silent (no heartbeat,
    its work is given to others), away (its link has just ended), expected (known from before the server's
    restart), draining, or leaving (it only keeps finished results).
    """

    def command() -> int:
        with connected(home, server) as connection:
            found = _status(connection)
        if as_json:
            print_json(plain(found))
        else:
            print("\n".join(node_lines(found, time.time())) or "no nodes")
        return EXIT_DONE

    return guarded(command, as_json)


def node_lines(found: list[NodeStatus], now: float) -> list[str]:
    if not found:
        return []
    head = ["node", "machine", "address", "slots", "memory", "spilled", "cortex", "python", "state", "heard"]
    rows = [
        [
            node.node,
            node.host,
            node.data_address,
            str(node.slots),
            f"{format_bytes(node.memory_bytes)} of {format_bytes(node.memory_cap_bytes)}",
            spilled(node),
            node.versions.get("cortex", "?"),
            node.versions.get("python", "?"),
            node.state,
            f"{node.heard_s:.0f} s ago",
            _good_for(node, now),
        ]
        for node in found
    ]
    lines = aligned([*head, "certificate"], rows, {3})
    return lines + [f"{node.node} waits for: {'; '.join(node.waits_for)}" for node in found if node.waits_for]


def _good_for(node: NodeStatus, now: float) -> str:
    left_s = node.certificate_expires_at - now
    if not node.certificate_expires_at:
        return "?"
    return f"for {format_seconds(left_s)}" if left_s > 0 else "expired"


@nodes.command(name="revoke", context_settings=HELP)
@click.argument("name", metavar="NODE")
@of_cluster
def nodes_revoke(name: str, home: str | None, server: str | None) -> int:
    """Put a node out: its links are closed at once, everywhere, and its certificates count for nothing.

    What it ran runs elsewhere. For a machine that is stolen or no longer trusted; to take one out of service
    see `cortex drain`. The machine may join anew, with a new line.

    \b
    Examples:
      cortex nodes revoke n0123456789ab
    """

    def command() -> int:
        from cortex.ids import Role, is_peer_id
        from cortex.wire.messages import AdminDone, RevokePeer

        with connected(home, server) as connection:
            # one that is not connected is put out by its id
            node = name if is_peer_id(name, Role.NODE) else _named(_status(connection), name).node
            connection.ask(RevokePeer(node), AdminDone)
        print(f"{node} is revoked")
        return EXIT_DONE

    return guarded(command)


@click.command(name="drain", context_settings=HELP)
@click.argument("name", metavar="NODE")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=DRAIN_S,
    show_default=True,
    metavar="SECONDS",
    help="When what it still runs is given to other nodes.",
)
@click.option("--undo", is_flag=True, help="Let it work again.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it has left.")
@of_cluster
def drain(name: str, timeout: float, undo: bool, no_wait: bool, home: str | None, server: str | None) -> int:
    """Take a node out of service: no new work, finish what runs, hand over, leave.

    Its process ends with exit code 0 when nothing of it is needed any more. Map outputs and parts of results
    are served from it until their jobs end, or until the timeout, when they are made elsewhere. Only a
    finished result that its client has not fetched yet keeps it longer. No job fails of it, and no attempt
    is counted. Ctrl-C ends the waiting, not the drain.

    \b
    Examples:
      cortex drain n0123456789ab
      cortex drain worker7.example.org --timeout 600
      cortex drain n0123456789ab --undo
    """

    def command() -> int:
        from cortex.wire.messages import AdminDone, DrainNode

        with connected(home, server) as connection:
            known = _status(connection)
            node = _named(known, name).node
            connection.ask(DrainNode(node, timeout, undo), AdminDone)
            if not undo and not any(each.state == "up" for each in known if each.node != node):
                say("warning: no other node takes work now: jobs will wait for one")
            if undo or no_wait:
                print(f"{node} works again" if undo else f"{node} is draining")
                return EXIT_DONE
        _wait_until_left(home, server, node)
        print(f"{node} has left")
        return EXIT_DONE

    return guarded(command)


def _wait_until_left(home: str | None, server: str | None, node: str) -> None:
    """Say what the node is needed for, until it is gone; a server that starts again is waited for."""
    said: tuple[str, ...] = ()
    while True:
        try:
            with connected(home, server) as connection:
                while found := next((each for each in _status(connection) if each.node == node), None):
                    if found.state in ("up", "full"):
                        raise UsageError(f"{node} works again", cure="somebody has undone its drain")
                    if found.waits_for and found.waits_for != said:
                        said = found.waits_for
                        say(f"{node} waits for: {'; '.join(said)}")
                    time.sleep(_LOOK_S)
                return
        except Unreachable as error:
            if said != (error.message,):
                said = (error.message,)
                say(f"{error.message}; trying again")
            time.sleep(_LOOK_S)

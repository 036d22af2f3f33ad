"""`cortex status`: the cluster at a glance, once or again and again. Its lines are made apart from asking."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from cortex.cli.connection import connected, of_cluster
from cortex.cli.job_table import has_ended, job_lines
from cortex.cli.options import HELP, as_json
from cortex.cli.terminal import aligned, guarded, plain, print_json, say
from cortex.errors import EXIT_DONE, Unreachable
from cortex.units import counted, format_bytes

if TYPE_CHECKING:
    from cortex.wire.messages import ClusterStatus, NodeStatus

_WATCH_S = 1.0


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
    return lines + job_lines([job for job in found.jobs if not has_ended(job)])


def spilled(node: NodeStatus) -> str:
    """What a node's temporary data takes, and may take."""
    if node.spill_bytes < 0:
        return "?"
    return f"{format_bytes(node.spill_bytes)} of {format_bytes(node.spill_limit_bytes)}"

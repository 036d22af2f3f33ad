"""``cortex audit``: who did what in the cluster."""

from __future__ import annotations

import json
from typing import Any

import click

from cortex.cli.connection import connected, of_cluster
from cortex.cli.options import HELP, as_json
from cortex.cli.terminal import aligned, guarded, printable
from cortex.errors import EXIT_DONE
from cortex.limits import AUDIT_TAIL_MAX


@click.command(name="audit", context_settings=HELP)
@click.option(
    "--last", "-n", type=click.IntRange(1, AUDIT_TAIL_MAX), default=20, show_default=True, help="So many."
)
@of_cluster
@as_json
def audit(last: int, home: str | None, server: str | None, as_json: bool) -> int:
    """Show the last actions in the cluster's audit log. Only an admin may.

    Who submitted, cancelled and ended jobs, made and revoked tokens, joined, renewed, and was refused. The
    log itself is in the server's home, audit/audit.jsonl.

    \b
    Examples:
      cortex audit
      cortex audit --last 1000 --json
    """

    def command() -> int:
        from cortex.wire.messages import AuditTail, GetAudit

        with connected(home, server) as connection:
            lines = connection.ask(GetAudit(last), AuditTail).lines
        if as_json:
            for line in lines:
                print(line)
            return EXIT_DONE
        head = ["time", "who", "from", "action", "of", "outcome"]
        rows = [[printable(cell) for cell in _row(line)] for line in lines]
        print("\n".join(aligned(head, rows, set())) if lines else "nothing yet")
        return EXIT_DONE

    return guarded(command, as_json)


def _row(line: str) -> list[str]:
    try:
        entry: dict[str, Any] = json.loads(line)
        actor = entry["actor"]
        said = entry.get("details", {}).get("error", "")
        return [
            str(entry["at"]),
            f"{actor['role']} {actor['id']}".strip() or "a stranger",
            str(actor["address"]),
            str(entry["action"]),
            str(entry["object"]),
            f"{entry['outcome']}: {said}" if said else str(entry["outcome"]),
        ]
    except (ValueError, KeyError, TypeError, AttributeError):  # cut off by a crash
        return ["?", "", "", "", "", line]

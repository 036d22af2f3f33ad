"""``cortex doctor``: what is wrong, and the cure."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress

import click

from cortex.cli.connection import of_cluster
from cortex.cli.options import HELP, as_json
from cortex.cli.terminal import guarded, plain, print_json, printable
from cortex.errors import EXIT_DONE, EXIT_FAILED


@click.command(name="doctor", context_settings=HELP)
@of_cluster
@as_json
def doctor(home: str | None, server: str | None, as_json: bool) -> int:
    """Check this machine and its cluster: say what is wrong, and the cure.

    Settings, memory, disks, permissions, certificates and limits here. Where this machine belongs to a
    cluster (or --server is given): the way to the server, clocks, versions, the server's and each node's
    machine, and whether the nodes reach each other. The exit code is 0 when there is no problem; warnings
    are none.

    \b
    Examples:
      cortex doctor
      cortex doctor --server head:8786
      cortex doctor --json
    """

    def command() -> int:
        from cortex.client.findings import Finding, Verdict, failed, is_well

        def findings() -> Iterator[Finding]:
            from cortex.client.cluster_checks import check_cluster, check_way_to_server
            from cortex.client.own_checks import HERE, check_machine_here
            from cortex.config import load_config
            from cortex.errors import CortexError
            from cortex.wire.identity import load_identity
            from cortex.wire.versions import local_versions

            try:
                config = load_config(home=home, server=server)
            except CortexError as error:
                yield failed("settings", HERE, error)
                return
            versions = local_versions()
            yield from check_machine_here(config, os.getcwd(), time.time(), versions)
            member = any(os.path.lexists(os.path.join(config.home, name)) for name in ("admin", "client"))
            if config.server or member:
                yield from check_cluster(config.home, config.server, versions)
                return
            with suppress(CortexError):  # told of already
                node = load_identity(os.path.join(config.home, "node"))
                if node is not None:
                    yield from check_way_to_server(node)

        found = []
        for finding in findings():
            found.append(finding)
            if not as_json:
                cure = f"; cure: {finding.cure}" if finding.verdict is not Verdict.OK else ""
                line = f"{finding.subject}: {finding.check}: {finding.said}{cure}"
                print(f"{finding.verdict.value:<8} {printable(line)}")
        if as_json:
            print_json(plain(tuple(found)))
        return EXIT_DONE if is_well(found) else EXIT_FAILED

    return guarded(command, as_json)

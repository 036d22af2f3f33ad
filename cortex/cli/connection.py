"""How a command finds its cluster's server, and its settings. Used by all that ask a server something."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cortex.cli.terminal import say
from cortex.config import Config, load_config

if TYPE_CHECKING:
    from cortex.client.cluster_client import ClusterConnection

_F = TypeVar("_F", bound=Callable[..., Any])


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

"""Names of files that lie on a cluster's nodes: ``data:logs/*.csv``, below the folders that nodes may read.

What follows ``data:`` is a file, folder or glob, relative to each node's data roots (``cortex node --data``).
Without that prefix a path is the client's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from cortex.errors import UsageError

DATA_PREFIX: Final = "data:"


def is_data_name(path: str) -> bool:
    return path.startswith(DATA_PREFIX)


def refuse_data_names(paths: Iterable[str]) -> None:
    """Raise UsageError for a data name where there are no nodes to ask."""
    for path in paths:
        if is_data_name(path):
            raise UsageError(
                f"{path} names files of a cluster's nodes, and this runs on one machine",
                cure="name the cluster's server: --server HOST:PORT",
            )


def below_roots(name: str) -> str:
    """What a data name says below a root: ``data:logs/a.csv`` -> ``logs/a.csv``. Raises UsageError for one
    that leads out of it: who decodes a message has not looked at its names yet."""
    below = os.path.normpath(name.removeprefix(DATA_PREFIX))
    if not is_data_name(name) or os.path.isabs(below) or below.split(os.sep)[0] == ".." or "\0" in below:
        raise UsageError(
            f"{name!r} does not name files below the nodes' data roots",
            cure="write data: and a path relative to the folders of cortex node --data: data:logs/*.csv",
        )
    return below

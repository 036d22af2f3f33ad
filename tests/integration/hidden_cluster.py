"""A cluster of real processes whose nodes do not see the client's folders: mount namespaces of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any, Final

from cortex.clusters import LocalCluster

_UNSHARE: Final = ("unshare", "--map-root-user", "--mount")
_SCRIPT: Final = 'while [ "$1" != -- ]; do mount -t tmpfs none "$1" || exit 1; shift; done; shift; exec "$@"'
HIDE: Final = (*_UNSHARE, "sh", "-c", _SCRIPT, "sh")
"""Before FOLDER... -- COMMAND...: these folders are empty for the command."""


def can_hide() -> bool:
    """Whether this machine lets a process have mounts of its own."""
    command = [*_UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and not subprocess.run(command, capture_output=True).returncode


class HiddenCluster(LocalCluster):
    """`hidden` folders are empty for its nodes. The server and the client see them."""

    def __init__(self, nodes: int, hidden: Sequence[str | os.PathLike[str]], **rest: Any) -> None:
        self._hidden = [os.fspath(folder) for folder in hidden]
        super().__init__(nodes, **rest)

    def _command(self, name: str) -> list[str]:
        if name == "server":
            return super()._command(name)
        return [*HIDE, *self._hidden, "--", *super()._command(name)]

"""Starting the template, from which executors are forked, before anything slow is imported.

Standard library only.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from cortex.tasks.environment import template_environment


def start_template(context: str, spawn: bool = False) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The template process, and our end of its link. It ends with the link, or with this process."""
    ours, theirs = socket.socketpair()
    arguments = [sys.executable, "-P", "-m", "cortex.tasks.template", "--link", str(theirs.fileno())]
    arguments += ["--context", context] if context else []
    arguments += ["--spawn"] if spawn else []
    process = subprocess.Popen(
        arguments,
        env=template_environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=2,  # what is printed at import belongs in the log
        pass_fds=(theirs.fileno(),),
    )
    theirs.close()
    return process, ours

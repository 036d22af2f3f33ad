"""Starting the embedded process (`cortex.embedded`), as early as can be. Standard library only.

Its interpreter and imports take half a second of a short job. A command therefore starts it before its
own imports, knowing nothing yet of the job (`start_early`); `take` then hands it out, or starts one.
What the session is to be follows on its standard input (`wire.messages.EmbeddedSetup`). Until then it
has made nothing; its input's end, or SIGTERM, ends it without a trace.
"""

from __future__ import annotations

import atexit
import os
import signal
import site
import subprocess
import sys
import tempfile
from typing import IO, Any

from cortex.limits import EMBEDDED_EXIT_S_MAX

_waiting: list[tuple[subprocess.Popen[bytes], IO[Any]]] = []
_early_surroundings: dict[str, str] = {}


def start_early(arguments: list[str]) -> None:
    """Start the process for the job that a command line with these arguments will run, if it will."""
    elsewhere = os.environ.get("CORTEX_SERVER") or any(each.startswith("--server") for each in arguments)
    if arguments and not elsewhere and not {"-h", "--help"}.intersection(arguments) and not _waiting:
        _early_surroundings.update(_surroundings())
        _waiting.append(_start(""))
        atexit.register(_end_unused)


def take(context: str = "") -> tuple[subprocess.Popen[bytes], IO[Any]]:
    """The process and its log (a file without a name): the one started early, else a new one.

    The caller owns both. `context` is what runs tasks; "" for `cortex.tasks.runner`. The job's code may
    have set variables or changed the folder when it was loaded: executors are to find the same.
    """
    if _waiting and not context and _surroundings() == _early_surroundings:
        return _waiting.pop()
    _end_unused()
    return _start(context)


def _surroundings() -> dict[str, str]:
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # the command that needs it will say so
        folder = ""
    return {**os.environ, "": folder}


def _start(context: str) -> tuple[subprocess.Popen[bytes], IO[Any]]:
    # The first use of a temporary folder tries it with a file: no signal may come between its two steps.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    try:
        log = tempfile.TemporaryFile(prefix="cortex-log-")  # noqa: SIM115 (closed by its owner)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "cortex.embedded", str(os.getpid()), context],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=child_environment(),
    )
    return process, log


def child_environment() -> dict[str, str]:
    """This environment, in which the child finds the same cortex as this process did."""
    environment = dict(os.environ)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    if root not in map(os.path.abspath, installed):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    return environment


def _end_unused() -> None:
    """The command came to nothing: wrong usage, most likely."""
    for process, log in _waiting:
        process.terminate()
        try:
            process.communicate(timeout=EMBEDDED_EXIT_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        log.close()
    _waiting.clear()

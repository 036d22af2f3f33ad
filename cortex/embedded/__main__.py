"""The process that holds the real server and node of one machine: a child of the client.

    python -P -m cortex.embedded CLIENT_PID CONTEXT

Standard input brings one EmbeddedSetup, as a frame, and is then the client's life: its end means that
the client is gone (or done, when a ``q`` came before), and everything is stopped and removed. On
standard output it says EmbeddedReady or Refused once, as a frame, and Refused again if the node fails
later. Standard error is its log, whose tail the client shows when this process dies. It ignores SIGINT:
Ctrl-C is the client's.

The template is started before anything slow is imported, so that its imports and Twisted's overlap.
A client that ended without ``q`` was killed: then its jobs' staging folders are removed as well.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

from cortex.tasks.template_start import start_template


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    client_pid, context = int(arguments[0]), arguments[1]
    life, say = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    template, link = start_template(context)

    def give_up(*_: Any) -> NoReturn:
        template.kill()  # it has no children yet
        template.wait()
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGHUP):  # until there is something to take down in order
        signal.signal(number, give_up)
    # Slow imports from here on. Without TLS: the only socket is a unix one in a private folder, and
    # asyncio and Twisted take ssl and pyOpenSSL as optional. 0.1 s and 5 MB less.
    sys.modules["OpenSSL"] = sys.modules["ssl"] = None  # type: ignore[assignment]
    from cortex.embedded.machine import Machine, read_setup

    setup = read_setup(life)
    if setup is None:  # the client needs no session after all, or is gone
        give_up()
    machine = Machine(setup, parent=parent, client_pid=client_pid, life=life, say=say, template=template)
    return machine.run(link)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # everything is taken down: the interpreter's own end would only take time

"""Server and node of one machine in one process: built, run and taken down. See `cortex.embedded`.

Owns the two private folders (sockets; run files and logs), the template's process and the reactor.
Takes down in this order: no more work, executors killed, run files removed, folders removed, the
template reaped. A part that does not end in time is left behind, never waited for: the kernel kills
what remains with this process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, cast

from cortex.errors import CortexError, SpillFull
from cortex.limits import EMBEDDED_EXIT_S_MAX, FRAME_BYTES_MAX, PARENT_CHECK_S
from cortex.memory_plan import MemoryPlan, plan_memory
from cortex.node.executor_deaths import signal_name
from cortex.node.node import Node
from cortex.private_folders import PrivateFolder, remove_folder, remove_left_over
from cortex.server.local_link import LocalLink
from cortex.server.server import Server
from cortex.wire.framing import HEADER, FrameDecoder, encode_frame
from cortex.wire.messages import EmbeddedReady, EmbeddedSetup, Message, Refused, ToNode
from cortex.wire.transports import listen_unix, use_monotonic_clock
from cortex.wire.versions import local_versions

_TEMPLATE_EXIT_S_MAX = 0.3
_LOOK_S = 0.01
GRACEFUL = b"q"
"""Written to the life pipe by a client that ends in order."""


def read_setup(life: int) -> EmbeddedSetup | None:
    """Wait for the client's EmbeddedSetup and read no byte more; None if its pipe ends before."""
    head = _read_exactly(life, HEADER.size)
    body = _read_exactly(life, min(HEADER.unpack(head)[0], FRAME_BYTES_MAX)) if head else b""
    if not body:
        return None
    return next(FrameDecoder[EmbeddedSetup](EmbeddedSetup).feed(head + body))


def _read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            return b""
        data += more
    return data


class _Life:
    """Reads the life pipe on the reactor: `ended(graceful)` at its end."""

    def __init__(self, fd: int, ended: Any) -> None:
        self._fd = fd
        self._ended = ended
        self._graceful = False

    def fileno(self) -> int:
        return self._fd

    def doRead(self) -> Exception | None:
        data = os.read(self._fd, 64)
        self._graceful = self._graceful or GRACEFUL in data
        if self._graceful or not data:
            self._ended(self._graceful)
        return None

    def connectionLost(self, _reason: Any) -> None:
        self._ended(self._graceful)

    def logPrefix(self) -> str:
        return "life"


class Machine:
    """See the module. `life` and `say` are the descriptors of the pipes to the client."""

    def __init__(
        self,
        setup: EmbeddedSetup,
        *,
        parent: int,
        client_pid: int,
        life: int,
        say: int,
        template: subprocess.Popen[bytes],
    ) -> None:
        self._setup = setup
        self._parent = parent
        self._client_pid = client_pid
        self._life = life
        self._say_fd = say
        self._template = template
        self._folders: list[PrivateFolder] = []
        self._node: Node | None = None
        self._server: Server | None = None
        self._reactor: Any = None
        self._port: Any = None
        self._stopping = False
        self._graceful = False
        self._status = 0

    def run(self, template_link: socket.socket) -> int:
        """Serve until the client is gone; gives the exit status."""
        from twisted.internet import reactor
        from twisted.logger import (
            FilteringLogObserver,
            LogLevel,
            LogLevelFilterPredicate,
            globalLogPublisher,
            textFileLogObserver,
        )

        self._reactor = reactor
        use_monotonic_clock(reactor)
        # zope's interfaces say nothing to mypy, hence the casts
        log = cast(Any, textFileLogObserver(sys.stderr))
        wanted = cast(Any, LogLevelFilterPredicate(defaultLogLevel=LogLevel.warn))
        globalLogPublisher.addObserver(cast(Any, FilteringLogObserver(log, [wanted])))
        for number in (signal.SIGTERM, signal.SIGHUP):  # before there is a folder to remove
            signal.signal(number, self._signalled)
        try:
            plan = plan_memory(self._setup.memory_bytes, self._setup.slots)
            runtime, work = self._make_folders()
            self._build(plan, runtime, work, template_link)
        except CortexError as error:
            self._say(Refused(error.report()))
            self._status = error.exit_code
            self._reactor.callWhenRunning(self.shut_down, True)
        self._reactor.addReader(_Life(self._life, self.shut_down))
        self._check_parent()
        gc.freeze()  # what is there now stays: the garbage collector need not look at it again and again
        self._reactor.run(installSignalHandlers=False)
        return self._status

    def shut_down(self, graceful: bool) -> None:
        """Take everything down and end. A second call only says that the client ends in order after all."""
        self._graceful = self._graceful or graceful
        if self._stopping:
            return
        self._stopping = True
        deadline = self._reactor.callLater(EMBEDDED_EXIT_S_MAX, self._end)
        if self._server is not None:
            self._server.stop()
        if self._port is not None:
            self._port.stopListening()

        def executors_gone() -> None:
            if deadline.active():
                deadline.cancel()
            # large files: not on the reactor's thread
            threading.Thread(target=self._clean_up, name="clean-up").start()

        if self._node is None:
            executors_gone()
        else:
            self._node.stop(executors_gone)

    # --- inside ---

    def _make_folders(self) -> tuple[str, str]:
        try:
            runtime = PrivateFolder(self._setup.runtime_dir)
            self._folders.append(runtime)
        except OSError as error:
            raise SpillFull(
                f"cannot make a folder for sockets, {self._setup.runtime_dir}: {error.strerror}",
                cure="set TMPDIR to a folder that can be written to",
            ) from error
        try:
            work = PrivateFolder(self._setup.work_dir)
            self._folders.append(work)
        except OSError as error:
            raise SpillFull(
                f"cannot make a folder for spilled data, {self._setup.work_dir}: {error.strerror}",
                cure="name another folder for spilled data, with room for about the size of the input",
            ) from error
        return runtime.path, work.path

    def _build(self, plan: MemoryPlan, runtime: str, work: str, template_link: socket.socket) -> None:
        self._server = Server(self._reactor, time.monotonic, blob_folder=os.path.join(work, "blobs"))
        to_node = LocalLink[ToNode](self._reactor, lambda message: node.receive(message))
        from_node = self._server.attach_node(to_node)
        node = self._node = Node(
            self._reactor,
            time.monotonic,
            from_node,
            name="local",
            plan=plan,
            spill_dirs=[work],
            versions=local_versions(),
            failed=self._node_failed,
            client_pid=self._client_pid,
        )
        self._node.start(
            template_link,
            socket_path=os.path.join(runtime, "executors.sock"),
            task_silence_s_max=self._setup.task_silence_s_max,
        )
        self._node.hello()
        path = os.path.join(runtime, "client.sock")
        self._port = listen_unix(self._reactor, path, self._server.client_factory())
        self._say(EmbeddedReady(path, runtime, work, plan.slots, plan.cap_bytes))
        sweep = threading.Thread(target=self._sweep, name="sweep", daemon=True)
        self._reactor.callLater(2.0, sweep.start)  # after the start, which is to be quick

    def _sweep(self) -> None:
        for folder in self._folders:
            remove_left_over(os.path.dirname(folder.path))

    def _node_failed(self, error: CortexError) -> None:
        """The node can run nothing any more: tell the client why, and end."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # its link ends a moment before it does
            self._template.wait(_TEMPLATE_EXIT_S_MAX)
        code = self._template.returncode
        if code is not None and code != 0:
            error.details["template"] = (
                f"killed by {signal_name(-code)}" if code < 0 else f"exit status {code}"
            )
        print(f"cortex: {error}", file=sys.stderr, flush=True)
        self._status = 1
        self._say(Refused(error.report()))
        self.shut_down(graceful=False)

    def _say(self, message: Message) -> None:
        try:
            os.write(self._say_fd, encode_frame(message))
        except BrokenPipeError:
            self._parent = 0  # the client is gone: the next look at the parent ends this process

    def _signalled(self, _number: int, _frame: Any) -> None:
        self._reactor.callFromThread(self.shut_down, False)

    def _check_parent(self) -> None:
        if os.getppid() != self._parent:
            self.shut_down(graceful=False)
        elif not self._stopping:
            self._reactor.callLater(PARENT_CHECK_S, self._check_parent)

    def _clean_up(self) -> None:
        if self._node is not None and self._client_was_killed():
            for staging in self._node.staging_dirs:
                with contextlib.suppress(OSError):  # the next job on this output tries again
                    remove_folder(staging)
        for folder in self._folders:
            folder.remove()
        self._reactor.callFromThread(self._end)

    def _client_was_killed(self) -> bool:
        """One that lives may be committing what lies in the staging folders, and removes them itself. What
        a signal to the whole group does here may come before the client is gone: look for a while."""
        deadline = time.monotonic() + PARENT_CHECK_S
        while not self._graceful and time.monotonic() < deadline:
            if os.getppid() != self._parent:
                return True
            time.sleep(_LOOK_S)
        return False

    def _end(self) -> None:
        self._template.terminate()  # it kills what is left of the executors
        try:
            self._template.wait(_TEMPLATE_EXIT_S_MAX)
        except subprocess.TimeoutExpired:
            self._template.kill()
            self._template.wait()
        if self._reactor.running:
            self._reactor.stop()

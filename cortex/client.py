"""`LocalSession`: cortex on this machine, for as long as it is open.

Making one starts a child process with the real server and node (`cortex.embedded`) at once, so that
its start overlaps with the caller's own work; closing it, or the end of this process however it
comes, stops everything and removes its temporary files.

Blocking, on plain sockets, without a reactor and without Twisted: a client only asks and waits. That
saves 0.3 s of imports and 25 MB in every command, works in any thread (a notebook's too), and leaves
Ctrl-C to Python: KeyboardInterrupt in the thread that runs a job cancels the job. Each `run` has a
connection of its own, so several threads may run jobs at once; the child cancels the jobs of a
connection that ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import IO, Any

from cortex.errors import CortexError, ProtocolError, ServerDied, from_report
from cortex.job.spec import JobSpec
from cortex.limits import (
    CANCEL_S_MAX,
    EMBEDDED_EXIT_S_MAX,
    EMBEDDED_START_S_MAX,
    KIB,
    STDERR_TAIL_BYTES,
    TASK_SILENCE_S_MAX,
)
from cortex.wire.framing import BlockingConnection, FrameDecoder
from cortex.wire.messages import (
    CancelJob,
    ClientHello,
    EmbeddedReady,
    FromEmbedded,
    FromServer,
    JobAccepted,
    JobDone,
    JobFailed,
    JobProgress,
    JobReceived,
    JobReport,
    Refused,
    ServerHello,
    SubmitJob,
)
from cortex.wire.versions import check_versions, local_versions

_GRACEFUL = b"q"
_WAKE_S = 1.0  # a wait is cut into these, so that a signal that lands between two calls is seen


class LocalSession:
    """The processes of this machine. A context manager; `close` may be called twice, from any thread.

    * ``memory_bytes``: cap of the whole tree, 0 for half of the machine; ``slots``: 0 for all processors;
    * ``spill_dir``: where the session makes its folder for run files; "" for the system's temporary one;
    * ``context``: what runs tasks in the executors, "" for `cortex.tasks.runner` (tests put in their own).

    A cap too small to start in shows as MemoryTooSmall in the first `run` (or `wait_ready`).
    """

    def __init__(
        self,
        memory_bytes: int = 0,
        slots: int = 0,
        spill_dir: str = "",
        *,
        context: str = "",
        task_silence_s_max: float = TASK_SILENCE_S_MAX,
    ) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, BlockingConnection[FromServer]] = {}
        self._ready: EmbeddedReady | None = None
        self._failed: CortexError | None = None
        self._log = tempfile.TemporaryFile(prefix="cortex-log-")  # noqa: SIM115 (closed by _take_down)
        arguments = [sys.executable, "-P", "-m", "cortex.embedded", str(os.getpid())]
        arguments += [str(memory_bytes), str(slots), spill_dir or tempfile.gettempdir(), context]
        self._process = subprocess.Popen(
            [*arguments, str(task_silence_s_max)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_child_environment(),
        )
        assert self._process.stdout is not None
        self._says = FrameDecoder[FromEmbedded](FromEmbedded)
        # also at the interpreter's end: a session that nobody closed ends in order
        self._finalizer = weakref.finalize(self, _take_down, self._process, self._log)

    def __enter__(self) -> LocalSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def server_pid(self) -> int:
        """The child process that holds server and node."""
        return self._process.pid

    def wait_ready(self) -> EmbeddedReady:
        """Wait until the child answers. Raises what kept it from starting, or ServerDied."""
        with self._lock:
            if self._failed is not None:
                raise self._failed
            if self._ready is None:
                deadline = time.monotonic() + EMBEDDED_START_S_MAX
                said = self._listen(deadline)
                if not isinstance(said, EmbeddedReady):
                    self._failed = from_report(said.error) if said is not None else self._cause_of_death()
                    raise self._failed
                self._ready = said
            return self._ready

    def run(
        self,
        spec: JobSpec,
        code: bytes,
        sys_path: Sequence[str],
        staging_dir: str,
        on_progress: Callable[[JobProgress], None] | None = None,
    ) -> JobDone:
        """Run one job to its end: every part of the result is then in `staging_dir`.

        Raises the job's error (its `job_report` attribute tells what was done until then),
        ServerDied, or KeyboardInterrupt when it was cancelled. After JobDone call `received`.
        """
        connection = self._connect()
        done: JobDone | None = None
        try:
            connection.send(SubmitJob(spec, code, tuple(sys_path), staging_dir))
            accepted = self._next(connection)
            if not isinstance(accepted, JobAccepted):
                raise ProtocolError(f"the server answered a job with {type(accepted).__name__}")
            try:
                done = self._follow(connection, on_progress)
            except KeyboardInterrupt:
                self._cancel(connection, accepted.job)
                raise
            self._open[done.job] = connection
            return done
        except OSError as error:
            raise self._cause_of_death() from error
        finally:
            if done is None:
                connection.close()

    def received(self, job: str) -> None:
        """The result is committed (or given up): what the job left on this machine is removed."""
        connection = self._open.pop(job, None)
        if connection is None:
            return
        # a child that has died in between has nothing left to forget
        with contextlib.suppress(OSError):
            connection.send(JobReceived(job))
        connection.close()

    def close(self) -> None:
        """Stop everything and remove all temporary files; within about 2 s."""
        for connection in list(self._open.values()):
            connection.close()
        self._open.clear()
        self._finalizer()
        ready = self._ready
        if ready is not None:  # gone already, unless the child was killed
            for folder in (ready.runtime_dir, ready.work_dir):
                shutil.rmtree(folder, ignore_errors=True)

    # --- inside ---

    def _connect(self) -> BlockingConnection[FromServer]:
        ready = self.wait_ready()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection = BlockingConnection[FromServer](sock, FromServer)
        try:
            sock.connect(ready.socket_path)
            connection.send(ClientHello(local_versions()))
            hello = self._next(connection)
            if not isinstance(hello, ServerHello):
                raise ProtocolError(f"the server answered a hello with {type(hello).__name__}")
            check_versions(hello.versions, local_versions(), "the server")
        except OSError as error:
            connection.close()
            raise self._cause_of_death() from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _next(self, connection: BlockingConnection[FromServer]) -> FromServer:
        while True:
            try:
                message = connection.receive(_WAKE_S)
            except TimeoutError:
                continue
            except ProtocolError as error:
                if self._process.poll() is None:
                    raise
                raise self._cause_of_death() from error
            if message is None:
                raise self._cause_of_death()
            if isinstance(message, Refused):
                raise from_report(message.error)
            return message

    def _follow(
        self, connection: BlockingConnection[FromServer], on_progress: Callable[[JobProgress], None] | None
    ) -> JobDone:
        while True:
            message = self._next(connection)
            if isinstance(message, JobProgress):
                if on_progress is not None:
                    on_progress(message)
            elif isinstance(message, JobDone):
                return message
            elif isinstance(message, JobFailed):
                raise _job_error(message)

    def _cancel(self, connection: BlockingConnection[FromServer], job: str) -> None:
        """Have the job stopped, and wait a moment for it; the end of the connection cancels as well."""
        deadline = time.monotonic() + CANCEL_S_MAX
        with contextlib.suppress(OSError, CortexError):  # the child is gone: so is the job
            connection.send(CancelJob(job))
            while time.monotonic() < deadline:
                try:
                    message = connection.receive(max(0.0, deadline - time.monotonic()))
                except TimeoutError:
                    return
                if message is None or isinstance(message, JobFailed | JobDone):
                    return

    def _listen(self, deadline: float) -> FromEmbedded | None:
        """The child's next word on its start; None when it ended without one. Holds the lock."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while True:
            if poll.poll(_WAKE_S * 1000):
                data = os.read(pipe, 64 * KIB)
                if not data:
                    return None
                for said in self._says.feed(data):
                    return said
            elif time.monotonic() > deadline:
                raise ServerDied(
                    f"the server process (pid {self._process.pid}) did not start in"
                    f" {EMBEDDED_START_S_MAX:g} s",
                    details={"last output": _tail(self._log)},
                )

    def _cause_of_death(self) -> CortexError:
        """Why the child does not answer any more."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EMBEDDED_EXIT_S_MAX + CANCEL_S_MAX)
        code = self._process.returncode
        said = self._last_word() if code is not None else None
        if said is not None:
            return said
        if code is None:
            message = "the server process closed the connection"
        elif code < 0:
            message = f"the server process ended: killed by {_signal_name(-code)}"
        else:
            message = f"the server process ended with exit status {code}"
        hints = {
            -signal.SIGKILL: "if memory ran out: lower --memory, so that the machine has enough",
        }
        return ServerDied(
            message,
            cure=hints.get(code or 0, "run the job again; its last output says what happened"),
            details={"pid": self._process.pid, "last output": _tail(self._log)},
        )

    def _last_word(self) -> CortexError | None:
        """What a child that failed by itself said before it ended."""
        pipe = self._process.stdout
        if pipe is None or pipe.closed:
            return None
        with contextlib.suppress(OSError, ProtocolError):
            os.set_blocking(pipe.fileno(), False)
            for said in self._says.feed(os.read(pipe.fileno(), 64 * KIB)):
                if isinstance(said, Refused):
                    error = from_report(said.error)
                    error.details.setdefault("last output", _tail(self._log))
                    return error
        return None


def _job_error(failed: JobFailed) -> CortexError:
    error = from_report(failed.error)
    report: JobReport = failed.report
    error.job_report = report  # type: ignore[attr-defined]
    return error


def _child_environment() -> dict[str, str]:
    """This environment, in which the child finds the same cortex as this process did."""
    environment = dict(os.environ)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    if root not in map(os.path.abspath, installed):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    return environment


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(log: IO[Any]) -> str:
    if log.closed:
        return ""
    size = os.fstat(log.fileno()).st_size
    start = max(0, size - STDERR_TAIL_BYTES)
    return os.pread(log.fileno(), STDERR_TAIL_BYTES, start).decode("utf-8", "replace").strip()


def _take_down(process: subprocess.Popen[bytes], log: IO[Any]) -> None:
    """End the child in order; kill it if it does not come to an end."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError):  # it is gone already
        process.stdin.write(_GRACEFUL)
        process.stdin.flush()
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(EMBEDDED_EXIT_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    log.close()

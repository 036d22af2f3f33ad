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
import signal
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import IO, Any, TypeVar

from cortex.client.bundle_packing import NOTHING_PACKED, PackedBundle, upload
from cortex.client.embedded_start import take
from cortex.errors import CortexError, ProtocolError, ServerDied, from_report
from cortex.job.data_names import refuse_data_names
from cortex.job.overrides import utf8_path
from cortex.job.spec import JobSpec
from cortex.limits import (
    CANCEL_S_MAX,
    EMBEDDED_EXIT_S_MAX,
    EMBEDDED_START_S_MAX,
    KIB,
    STDERR_TAIL_BYTES,
    TASK_SILENCE_S_MAX,
    UNIX_PATH_BYTES_MAX,
)
from cortex.private_folders import new_name, remove_folder, runtime_parent
from cortex.wire.framing import BlockingConnection, FrameDecoder, encode_frame
from cortex.wire.messages import (
    CancelJob,
    ClientHello,
    EmbeddedReady,
    EmbeddedSetup,
    FromEmbedded,
    FromServer,
    JobAccepted,
    JobDone,
    JobFailed,
    JobProgress,
    JobReceived,
    JobReport,
    Message,
    Refused,
    ServerHello,
    SubmitJob,
)
from cortex.wire.versions import check_versions, local_versions

A = TypeVar("A", bound=Message)
_GRACEFUL = b"q"
_REAP_S = 0.1  # from the end of its pipe to the end of the child
_WAKE_S = 1.0  # a wait is cut into these, so that a signal that lands between two calls is seen


class LocalSession:
    """The processes of this machine. A context manager; `close` may be called twice, from any thread.

    * ``memory_bytes``: cap of the whole tree, 0 for half of the machine; ``slots``: 0 for all processors;
    * ``spill_dir``: where the session makes its folder for run files; "" for the system's temporary one;
    * ``context``: what runs tasks in the executors, "" for `cortex.tasks.runner` (tests put in their own).

    Raises UsageError for a spill folder with a name that is not UTF-8. A cap too small to start in shows as
    MemoryTooSmall in the first `run` (or `wait_ready`).
    """

    shares_files = True
    """Its tasks can open the files that its client can."""

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
        runtime_dir = new_name(runtime_parent(UNIX_PATH_BYTES_MAX))
        work_dir = utf8_path(
            new_name(os.path.abspath(spill_dir or tempfile.gettempdir())), "the spill folder"
        )
        self._process, self._log = take(context)
        # also at the interpreter's end: a session that nobody closed ends in order
        self._finalizer = weakref.finalize(
            self, _take_down, os.getpid(), self._process, self._log, (runtime_dir, work_dir)
        )
        self._says = FrameDecoder[FromEmbedded](FromEmbedded)
        setup = EmbeddedSetup(memory_bytes, slots, runtime_dir, work_dir, task_silence_s_max)
        _write(self._process, encode_frame(setup))

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
        packed: PackedBundle = NOTHING_PACKED,
    ) -> JobDone:
        """Run one job to its end: every part of the result is then in `staging_dir`.

        `packed` is what travels with it. Raises the job's error (its `job_report` attribute tells what was
        done until then), ServerDied, or KeyboardInterrupt when it was cancelled. After JobDone call
        `received`.
        """
        refuse_data_names(spec.input.paths)
        connection = self._connect()
        done: JobDone | None = None
        try:
            upload(packed, lambda message: self._send(connection, message), lambda _: self._next(connection))
            self._send(connection, SubmitJob(spec, code, tuple(sys_path), staging_dir, packed.bundle))
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

    def connect(self) -> LocalConnection:
        """A connection of the caller's own, for a job that it follows itself. Raises as `wait_ready`."""
        return LocalConnection(self, *self._greet())

    def finish(self) -> None:
        """No more jobs: the processes begin to end while the caller goes on. `close` waits for them."""
        for connection in list(self._open.values()):
            connection.close()
        self._open.clear()
        _say_done(self._process)

    def close(self) -> None:
        """Stop everything and remove all temporary files; within about 2 s."""
        self.finish()
        self._finalizer()

    # --- inside ---

    def _connect(self) -> BlockingConnection[FromServer]:
        return self._greet()[0]

    def _greet(self) -> tuple[BlockingConnection[FromServer], ServerHello]:
        ready = self.wait_ready()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection = BlockingConnection[FromServer](sock, FromServer)
        try:
            try:
                sock.connect(ready.socket_path)
            except OSError as error:
                raise self._cause_of_death() from error
            self._send(connection, ClientHello(local_versions()))
            hello = self._next(connection)
            if not isinstance(hello, ServerHello):
                raise ProtocolError(f"the server answered a hello with {type(hello).__name__}")
            check_versions(hello.versions, local_versions(), "the server")
        except BaseException:
            connection.close()
            raise
        return connection, hello

    def _send(self, connection: BlockingConnection[FromServer], message: Message) -> None:
        try:
            connection.send(message)
        except OSError as error:
            raise self._cause_of_death() from error

    def _next(self, connection: BlockingConnection[FromServer], timeout_s: float | None = None) -> FromServer:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = _WAKE_S if deadline is None else min(_WAKE_S, max(0.0, deadline - time.monotonic()))
            try:
                message = connection.receive(left_s)
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                continue
            except OSError as error:
                raise self._cause_of_death() from error
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


class LocalConnection:
    """A connection to the session's server, with the calls of `cluster_client.ClusterConnection`. One thread
    may receive while others send. Closed by whoever asked for it."""

    def __init__(
        self, session: LocalSession, connection: BlockingConnection[FromServer], hello: ServerHello
    ) -> None:
        self._session = session
        self._connection = connection
        self.hello = hello

    def ask(self, question: Message, answer: type[A]) -> A:
        self.send(question)
        said = self.receive()
        if not isinstance(said, answer):
            raise ProtocolError(f"the server answered {type(question).__name__} with {type(said).__name__}")
        return said

    def send(self, message: Message) -> None:
        """Raises ServerDied, with the cause of its death."""
        self._session._send(self._connection, message)

    def receive(self, timeout_s: float | None = None) -> Any:
        """Raises ServerDied, and what the server refuses us with. TimeoutError after `timeout_s`."""
        return self._session._next(self._connection, timeout_s)

    def close(self) -> None:
        self._connection.close()


def _job_error(failed: JobFailed) -> CortexError:
    error = from_report(failed.error)
    report: JobReport = failed.report
    error.job_report = report  # type: ignore[attr-defined]
    return error


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


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it has died: who waits for its answer will say why
        process.stdin.write(data)
        process.stdin.flush()


def _say_done(process: subprocess.Popen[bytes]) -> None:
    """Have the child end in order; a second call does nothing."""
    assert process.stdin is not None
    if not process.stdin.closed:
        _write(process, _GRACEFUL)
        with contextlib.suppress(OSError):  # what it did not take is lost with it
            process.stdin.close()


def _take_down(owner: int, process: subprocess.Popen[bytes], log: IO[Any], folders: Sequence[str]) -> None:
    """End the child in order, kill it if it does not come to an end, see that its folders are gone. In a
    process that `owner` has forked off it is not ours to end."""
    if os.getpid() != owner:
        return
    _say_done(process)
    assert process.stdout is not None
    # Its end closes the pipe and wakes us at once; Popen.wait with a timeout looks every 50 ms.
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    deadline = time.monotonic() + EMBEDDED_EXIT_S_MAX
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        if not os.read(process.stdout.fileno(), 64 * KIB):
            break
    try:
        process.wait(max(0.0, deadline - time.monotonic()) + _REAP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    log.close()
    for folder in folders:  # a child that was killed has left them
        with contextlib.suppress(OSError):
            remove_folder(folder)

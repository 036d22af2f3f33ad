"""The template: a single-threaded process that has imported what tasks need, and forks executors.

Started by the node's process before that imports Twisted, so that both imports overlap. A fork of
it costs milliseconds and shares its pages. It reads ForkExecutor and SignalExecutor from the link
whose descriptor it was given, answers ExecutorForked, reaps its children and answers ExecutorExited
with the signal that ended them. Each executor leads a process group, which ends with it: what the
job's code has started does not outlive it. The template ends with the link or its parent, and kills
all groups; if it is itself killed, the kernel kills the executors (PR_SET_PDEATHSIG; elsewhere they
find their link closed).

Forking needs a single thread. That is looked at after the imports: where a library has started one,
or the system's libraries do not survive a fork (macOS), executors are spawned afresh instead, which
costs their start-up time and their shared pages.

    python -m cortex.tasks.template --link FD [--context MODULE:FACTORY] [--spawn]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import select
import signal
import socket
import subprocess
import sys
import traceback

from cortex.limits import FRAME_BYTES_MAX, KIB
from cortex.tasks import executor
from cortex.tasks.executor import DEFAULT_CONTEXT, ContextFactory, load_context_factory, redirect_output
from cortex.tasks.memory_limits import die_with_parent
from cortex.tasks.pandas_on_demand import defer_pandas
from cortex.wire.framing import FrameDecoder, encode_frame
from cortex.wire.messages import (
    ExecutorExited,
    ExecutorForked,
    ForkExecutor,
    Message,
    SignalExecutor,
    TemplateReady,
    ToTemplate,
)


def is_single_threaded() -> bool:
    """Whether a fork is safe now. Not on macOS, whose system libraries do not survive one."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


_CAN_PEEK = hasattr(os, "waitid")  # not on macOS


def _kill_group(pid: int) -> None:
    """Kill an executor and the processes that its job's code has started: one process group."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; or not yet a group's leader
            kill(pid, signal.SIGKILL)


class Template:
    """The request loop. Owns the link's socket and the children."""

    def __init__(self, sock: socket.socket, factory_name: str, factory: ContextFactory, spawn: bool) -> None:
        self._sock = sock
        self._decoder = FrameDecoder[ToTemplate](ToTemplate, FRAME_BYTES_MAX)
        self._factory_name = factory_name
        self._factory = factory
        self._spawn = spawn
        self._index_of: dict[int, int] = {}
        self._pid_of: dict[int, int] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._send(TemplateReady(pid=os.getpid(), single_threaded=not self._spawn))
        poll = select.poll()  # not select: descriptors may have numbers above its 1,024
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            readable = {fd for fd, _ in poll.poll()}
            if self._wake_read in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4 * KIB)
                self._reap()
            if self._sock.fileno() in readable:
                data = self._sock.recv(64 * KIB)
                if not data:
                    return
                for message in self._decoder.feed(data):
                    if isinstance(message, ForkExecutor):
                        self._start(message)
                    else:
                        self._signal(message)

    def kill_children(self) -> None:
        for pid in self._index_of:
            _kill_group(pid)

    def _send(self, message: Message) -> None:
        self._sock.sendall(encode_frame(message))

    def _start(self, request: ForkExecutor) -> None:
        pid = self._spawned(request) if self._spawn else self._forked(request)
        self._index_of[pid] = request.executor
        self._pid_of[request.executor] = pid
        self._send(ExecutorForked(request.executor, pid))

    def _forked(self, request: ForkExecutor) -> int:
        template = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            os.setpgid(0, 0)
            die_with_parent(signal.SIGKILL)
            if os.getppid() != template:  # it ended before the line above took effect
                os._exit(1)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for fd in (self._wake_read, self._wake_write):
                os.close(fd)
            self._sock.close()
            redirect_output(request.stderr_path)
            status = executor.main(request.executor, request.socket_path, self._factory)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)  # never back into the template's loop, nor its exit handlers

    def _spawned(self, request: ForkExecutor) -> int:
        arguments = [sys.executable, "-P", "-m", "cortex.tasks.executor", "--index", str(request.executor)]
        arguments += ["--socket", request.socket_path, "--stderr", request.stderr_path]
        arguments += ["--context", self._factory_name]
        child = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, process_group=0)
        child.returncode = 0  # `_reap` waits for it; Popen must not
        return child.pid

    def _signal(self, request: SignalExecutor) -> None:
        pid = self._pid_of.get(request.executor)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, request.signal)

    def _end_groups(self) -> None:
        """Kill what dead executors have started, while their numbers cannot be in other use yet."""
        if _CAN_PEEK:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if dead is not None:
                _kill_group(dead.si_pid)

    def _reap(self) -> None:
        while self._index_of:
            try:
                self._end_groups()
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if not _CAN_PEEK:
                _kill_group(pid)
            index = self._index_of.pop(pid, None)
            if index is None:
                continue
            del self._pid_of[index]
            signal_number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            code = 0 if signal_number else os.waitstatus_to_exitcode(status)
            max_rss_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            self._send(ExecutorExited(index, pid, signal_number, code, max_rss_bytes))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--link", type=int, required=True)
    parser.add_argument("--context", default=DEFAULT_CONTEXT)
    parser.add_argument("--spawn", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal ends the client, which ends this
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by way of `kill_children`
    die_with_parent(signal.SIGTERM)
    sock = socket.socket(fileno=options.link)
    import numpy  # noqa: F401
    import pyarrow

    defer_pandas()
    factory = load_context_factory(options.context)
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    gc.collect()
    gc.freeze()  # the collector would write to every object's page, and unshare it
    spawn = options.spawn or sys.platform == "darwin" or not is_single_threaded()
    template = Template(sock, options.context, factory, spawn)
    try:
        template.serve()
    except (BrokenPipeError, ConnectionResetError):
        return 0  # the node ended while something was being said to it
    finally:
        template.kill_children()
    return 0


if __name__ == "__main__":
    status = 1
    try:
        status = main()
    except SystemExit as end:  # SIGTERM, or wrong arguments
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)  # the client waits: unloading what was imported would only take time

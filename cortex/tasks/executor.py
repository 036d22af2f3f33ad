"""An executor: a process that runs the tasks of one job, one at a time, for the node that dials it.

Blocking, without Twisted: user code may hold the interpreter for as long as it likes. It dials the
node's private unix socket, says ExecutorHello, then serves OpenJob, JobPlanned and RunTask until
Stop or the end of the link. Every RunTask is answered by one TaskFinished or TaskFailed; between
them TaskProgress at most every PROGRESS_S, from inside the task (a task that does not report is
silent, and the node kills what is silent too long).

The work itself is the context's, which `cortex.tasks.contexts` gives for OpenJob. Errors it raises on purpose
are CortexErrors; running out of memory becomes UserMemoryError, what else comes out is a bug (InternalError
with its traceback).

An executor whose memory does not come back after a task says Retiring and ends; a task that the node
had already sent it was not begun.

Standard output and error are the executor's stderr file. What user code prints is seen when it fails: the
last lines of the task go with its error, and the node shows the file's tail when the executor dies.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import importlib
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from cortex.errors import (
    CortexError,
    InternalError,
    ProtocolError,
    UserCodeError,
    UserMemoryError,
    from_report,
)
from cortex.limits import PROGRESS_S, PULSE_S, STDERR_TAIL_BYTES
from cortex.process_memory import peak_anonymous_bytes, reset_peak
from cortex.tasks.memory_limits import (
    HeldMemory,
    MemoryLimit,
    be_first_to_die,
    die_with_parent,
    give_back_memory,
    is_memory_error,
    no_core_files,
)
from cortex.tasks.pandas_on_demand import defer_pandas
from cortex.tasks.user_errors import user_frames
from cortex.tasks.words import describe_task
from cortex.units import format_bytes
from cortex.wire.framing import BlockingConnection
from cortex.wire.messages import (
    ExecutorHello,
    JobPlanned,
    OpenJob,
    PlanTask,
    Result,
    Retiring,
    RunTask,
    Stop,
    Task,
    TaskFailed,
    TaskFinished,
    TaskProgress,
    TaskStats,
    ToExecutor,
)

DEFAULT_CONTEXT = "cortex.tasks.contexts:open_context"
_PULSE_STACK_BYTES = 256 * 1024  # it calls little; the default of 8 MB counts against RLIMIT_DATA
_LINES_SHOWN = 20  # of what user code printed before it failed
_PLAN_CURE = "take larger splits (--split-size), or join small input files into fewer"
_ANSWER_CURE = "keep fewer counters, and shorter texts in what the job's code raises"


class Context(Protocol):
    """What runs a job's tasks; see `cortex.tasks.contexts`."""

    @property
    def retires(self) -> bool:
        """After the task that it has run the executor is to be replaced."""

    def planned(self, plan: Any) -> None: ...
    def run(self, attempt: str, task: Task, progress: Callable[[TaskStats], None]) -> Result: ...
    def position(self) -> tuple[int, int]: ...
    def close(self) -> None: ...


ContextFactory = Callable[[OpenJob, BlockingConnection[ToExecutor]], Context]
"""The executor's own link is for tasks that are sent to while they run; they read it themselves."""


def load_context_factory(name: str) -> ContextFactory:
    """``module:attribute`` -> the factory. Imported by the template, so that a fork has it already."""
    module, _, attribute = name.partition(":")
    factory: ContextFactory = getattr(importlib.import_module(module), attribute)
    return factory


def memory_error(task: Task, memory_bytes: int, peak_bytes: int, error: BaseException) -> UserMemoryError:
    """The named error for code that needs more memory than its slot has.

    A CortexError that memory is the cause of says itself what was too large, and what helps.
    """
    named = error if isinstance(error, CortexError) else None
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    where = f"{last.filename}:{last.lineno}" if last else ""
    return UserMemoryError(
        f"the task needs more memory than its slot has ({format_bytes(memory_bytes)})",
        cure=(named.cure if named else "")
        or "raise --memory, lower --slots, or lower --split-size; or hold less in the job's own code",
        signature=f"UserMemoryError {type(task).__name__} {where}",
        details={
            "task": describe_task(task),
            "slot memory": format_bytes(memory_bytes),
            "peak memory": format_bytes(peak_bytes),
            "cause": named.message if named else f"{type(error).__name__}: {error}".rstrip(": "),
            **(named.details if named else {}),
            "traceback": "".join(traceback.format_list(user_frames(error) or frames)[-8:]),
        },
    )


def task_error(task: Task, memory_bytes: int, peak_bytes: int, error: BaseException) -> CortexError:
    """What a task raised -> the typed error that the scheduler decides on."""
    if is_memory_error(error):
        return memory_error(task, memory_bytes, peak_bytes, error)
    if isinstance(error, CortexError):
        return error
    text = "".join(traceback.format_exception(error))
    signature = re.sub(r"0x[0-9a-f]+", "", traceback.format_exc(limit=-1))[-300:]
    return InternalError(
        f"a bug in cortex: {type(error).__name__}: {error}",
        cure="please report it with the traceback",
        signature=signature,
        details={"task": describe_task(task), "traceback": text},
    )


class Executor:
    """The message loop. Owns the connection and the context; `serve` returns the exit status."""

    def __init__(
        self, connection: BlockingConnection[ToExecutor], index: int, context_factory: ContextFactory
    ) -> None:
        self._connection = connection
        self._index = index
        self._context_factory = context_factory
        self._context: Context | None = None
        self._open_error: BaseException | None = None
        self._memory_bytes = 0
        self._memory_limit = MemoryLimit(0)
        self._held_memory = HeldMemory(0)
        self._parent = os.getppid()
        self._progress_due = 0.0
        self._in_hand = TaskProgress("", TaskStats())

    def serve(self) -> int:
        threading.stack_size(_PULSE_STACK_BYTES)
        threading.Thread(target=self._pulse, name="pulse", daemon=True).start()
        threading.stack_size(0)
        self._connection.send(ExecutorHello(executor=self._index, pid=os.getpid()))
        try:
            while True:
                message = self._connection.receive()
                if message is None or isinstance(message, Stop):
                    return 0
                self._handle(message)
                if isinstance(message, RunTask) and self._retires(message.task):
                    self._connection.send(Retiring())
                    return 0
        finally:
            if self._context is not None:
                self._context.close()

    def _handle(self, message: ToExecutor) -> None:
        if isinstance(message, OpenJob):
            self._open(message)
        elif isinstance(message, JobPlanned):
            if self._context is not None:
                self._guarded(lambda context: context.planned(message.plan))
        elif isinstance(message, RunTask):
            self._run(message)

    def _retires(self, task: Task) -> bool:
        """After it: is this executor to be replaced?"""
        if self._context is not None and self._context.retires:
            return True
        return self._held_memory.does_not_come_back(type(task))

    def _open(self, job: OpenJob) -> None:
        """Open the job. An error waits for the first task, whose answer can carry it."""
        self._memory_bytes = job.memory_bytes
        self._memory_limit = MemoryLimit(job.memory_bytes)
        self._memory_limit.set()
        self._held_memory = HeldMemory(job.memory_bytes)
        try:
            self._context = self._context_factory(job, self._connection)
        except BaseException as error:
            self._open_error = error

    def _guarded(self, call: Callable[[Context], None]) -> None:
        assert self._context is not None
        try:
            call(self._context)
        except BaseException as error:
            self._open_error = error

    def _progress(self, attempt: str, stats: TaskStats) -> None:
        now = time.monotonic()
        if now < self._progress_due:
            return
        self._progress_due = now + PROGRESS_S
        if os.getppid() != self._parent:  # where the kernel does not tell (no PR_SET_PDEATHSIG)
            os._exit(1)
        self._in_hand = TaskProgress(attempt, stats)
        self._connection.send(self._in_hand)

    def _pulse(self) -> None:
        """Report for a task that goes on record by record and has nothing else to report. A thread:
        the task's own is inside the user's code. It stands still when that code holds the interpreter."""
        seen: object = None
        while True:
            time.sleep(PULSE_S)
            context, in_hand = self._context, self._in_hand
            if context is None or not in_hand.attempt:
                continue
            position = (in_hand.attempt, context.position())
            if position != seen:
                seen = position
                try:
                    self._connection.send(in_hand)
                except OSError:
                    return  # the node is gone, as the main thread will find

    def _run(self, message: RunTask) -> None:
        started = time.monotonic()
        self._progress_due = started + PROGRESS_S
        reset_peak()
        self._in_hand = TaskProgress(message.attempt, TaskStats())
        printed_bytes = os.fstat(1).st_size
        try:
            if self._open_error is not None:
                raise self._open_error
            if self._context is None:
                raise InternalError("a task came before its job was opened")
            result = self._context.run(
                message.attempt, message.task, lambda stats: self._progress(message.attempt, stats)
            )
        except BrokenPipeError:
            raise  # the node is gone: there is no one to answer
        except BaseException as error:
            self._memory_limit.lift()
            peak_bytes = peak_anonymous_bytes()
            failed = task_error(message.task, self._memory_bytes, peak_bytes, error)
            if isinstance(failed, UserCodeError | UserMemoryError) and (text := printed(printed_bytes)):
                failed.details["last output"] = text
            report = failed.report()
            if self._open_error is not None:
                self._open_error = from_report(report)  # without the frames, which hold memory
            error.__traceback__ = error.__cause__ = error.__context__ = None
            answer: TaskFailed | TaskFinished = TaskFailed(
                message.attempt, report, time.monotonic() - started, peak_bytes
            )
            gc.collect()
            give_back_memory()
            self._memory_limit.set()
        else:
            answer = TaskFinished(message.attempt, result, time.monotonic() - started, peak_anonymous_bytes())
            if self._held_memory.is_much():
                give_back_memory()
        self._in_hand = TaskProgress("", TaskStats())
        flush_output()
        self._answer(message.task, answer)

    def _answer(self, task: Task, answer: TaskFinished | TaskFailed) -> None:
        try:
            self._connection.send(answer)
        except (ProtocolError, MemoryError) as error:  # it has no frame: nothing of it was sent
            self._memory_limit.lift()
            failed = task_error(task, self._memory_bytes, answer.peak_bytes, error)
            if isinstance(failed, ProtocolError):
                failed.cure = _PLAN_CURE if isinstance(task, PlanTask) else _ANSWER_CURE
                failed.details["task"] = describe_task(task)
            self._connection.send(
                TaskFailed(answer.attempt, failed.report(), answer.seconds, answer.peak_bytes)
            )
            self._memory_limit.set()


def main(index: int, socket_path: str, context_factory: ContextFactory) -> int:
    """Be executor `index` of the node that listens at `socket_path`; gives the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's; it decides what to stop
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    no_core_files()
    be_first_to_die()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(socket_path)
    except OSError as error:
        print(f"cortex executor {index}: cannot reach its node: {error}", file=sys.stderr)
        return 1
    with BlockingConnection[ToExecutor](sock, ToExecutor) as connection:
        try:
            return Executor(connection, index, context_factory).serve()
        except (BrokenPipeError, ConnectionResetError):
            return 1  # the node closed the link: this executor is no longer wanted


def redirect_output(stderr_path: str) -> None:
    """Standard input reads nothing; output and error go to the executor's own file, line by line."""
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(stderr_path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for fd in (null, log):
        if fd > 2:
            os.close(fd)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (these stay open for the process's life)
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = open(fd, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        setattr(sys, name, stream)


def flush_output() -> None:
    """See that what was printed is in the file. User code may have closed the streams, or replaced them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.flush()


def printed(since_bytes: int) -> str:
    """The last of what was printed since the executor's file had this size; "" if that is no file."""
    flush_output()
    size = os.fstat(1).st_size
    begin = max(since_bytes if since_bytes <= size else 0, size - STDERR_TAIL_BYTES)  # the node cuts it
    try:
        data = os.pread(1, size - begin, begin)
    except OSError:  # a terminal or a pipe, where the executor's main loop is run by itself
        return ""
    text = data.decode("utf-8", "replace")
    return "\n".join(text.strip().split("\n")[-_LINES_SHOWN:])


def run_spawned() -> int:
    """The entry point where executors are not forked: ``python -m cortex.tasks.executor``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--stderr", required=True)
    parser.add_argument("--context", default=DEFAULT_CONTEXT)
    options = parser.parse_args()
    die_with_parent(signal.SIGKILL)
    redirect_output(options.stderr)
    defer_pandas()
    factory = load_context_factory(options.context)
    with contextlib.suppress(ImportError, AttributeError):
        import pyarrow

        pyarrow.set_cpu_count(1)
    return main(options.index, options.socket, factory)


if __name__ == "__main__":
    sys.exit(run_spawned())

"""What the node knows of an executor, and what it says when one has died.

Pure but for `tail`, which reads the end of a stderr file.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from cortex.errors import CortexError, ExecutorDied, TaskTimeout
from cortex.limits import STDERR_TAIL_BYTES
from cortex.tasks.words import describe_task
from cortex.units import format_bytes
from cortex.wire.messages import ExecutorExited, FromExecutor, OpenJob, RunTask, ServeTask, TaskStats
from cortex.wire.transports import MessageProtocol

_MEMORY_CURE = "if memory ran out: raise --memory where the machine has more, or lower --slots"
_SIGNAL_HINTS: dict[int, str] = {
    signal.SIGKILL: "the kernel's out-of-memory killer, a hard memory limit of a container, or an operator",
    signal.SIGSEGV: "a bug in native code that the job (or a library it uses) called",
    signal.SIGBUS: "a mapped file was cut short, or the disk failed",
    signal.SIGABRT: "native code gave up, often for lack of memory",
    signal.SIGXCPU: "a limit on processor time",
    signal.SIGTERM: "an operator, or the system shutting down",
}
_OVER_TIME = re.compile(r"^Timeout \([0-9:.]+\)!$(?=\nThread 0x[^\0]*\Z)", re.MULTILINE)
"""What `cortex.tasks.call_deadline` has written last, before the stacks."""
_EXIT_HINT = "the job's code, or a library it uses, ended the process (os._exit)"


def tail(path: str, bytes_max: int = STDERR_TAIL_BYTES) -> str:
    """The last lines of a text file, at most `bytes_max` bytes; "" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - bytes_max))
            text = file.read(bytes_max).decode("utf-8", "replace")
    except OSError:
        return ""
    if size > bytes_max:
        text = text.partition("\n")[2] or text
    return text.strip()


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(slots=True)
class Executor:
    index: int
    stderr_path: str
    started_at: float
    pid: int = 0
    link: MessageProtocol[FromExecutor] | None = None
    job: str = ""
    run: RunTask | None = None
    run_started_at: float = 0.0
    heard_at: float = 0.0
    stats: TaskStats = field(default_factory=TaskStats)
    peak_bytes: int = 0
    """The most seen in samples while it worked for this attempt."""
    ending: bool = False
    revoked: bool = False
    cause: CortexError | None = None
    """Why it is being killed, if the node decided it."""
    exited: ExecutorExited | None = None
    link_closed: bool = False
    retiring: bool = False
    """It said so: what it was sent since was not begun."""
    dumped_at: float = 0.0

    @property
    def idle(self) -> bool:
        return self.link is not None and self.run is None and not self.ending


def exit_text(exited: ExecutorExited) -> str:
    return f"killed by {signal_name(exited.signal)}" if exited.signal else f"exit status {exited.status}"


def circumstances(executor: Executor, run: RunTask, job: OpenJob | None) -> dict[str, Any]:
    """Details of an error about a task that an executor did not end by itself."""
    details = {"task": describe_task(run.task), "attempt": run.attempt}
    if executor.peak_bytes:
        details["peak memory"] = format_bytes(executor.peak_bytes)
    if executor.exited is not None:
        resident = format_bytes(executor.exited.max_rss_bytes)
        details["peak resident memory, file pages included"] = resident
    if job is not None and job.memory_bytes:
        details["memory of the slot"] = format_bytes(job.memory_bytes)
    if not isinstance(run.task, ServeTask):
        details["rows read"] = str(executor.stats.rows_in)
    details["last output"] = tail(executor.stderr_path)
    return details


def _users_part(stacks: str) -> str:
    """Of stacks as faulthandler writes them, the latest call first: the main thread's, down to the call."""
    frames = stacks[stacks.rfind("\nThread 0x") :].strip().splitlines()[1:]
    own = list(takewhile(lambda line: not re.search(r"cell_run\.py\", line \d+ in ", line), frames))
    return "\n".join(own)


def died(executor: Executor, run: RunTask, job: OpenJob | None) -> CortexError:
    """The error for an executor that ended, nobody having wanted it, while it ran a task."""
    exited = executor.exited
    assert exited is not None
    details = circumstances(executor, run, job)
    output = details.pop("last output", "")
    if over := _OVER_TIME.search(output):
        return TaskTimeout(
            "a call took more than its time, and kept Python's interpreter to itself: it is in C code",
            cure="give it more time (timeout), or have it do less at once",
            details={"stack": _users_part(output[over.end() :]), "executor": f"pid {exited.pid}"},
            signature="timeout:kept",
        )
    details["likely"] = _SIGNAL_HINTS.get(exited.signal, "") if exited.signal else _EXIT_HINT
    details["last output"] = output
    return ExecutorDied(
        f"the executor (pid {exited.pid}) ended while it ran a task: {exit_text(exited)}",
        cure=_MEMORY_CURE if exited.signal in (signal.SIGKILL, signal.SIGABRT) else "",
        details=details,
    )

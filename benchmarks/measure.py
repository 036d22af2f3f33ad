"""Run one command and say what it took: wall and processor time, peak memory, whether it was killed."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.cgroup import MemoryCgroup
from benchmarks.tree_memory import TreeMemory, descendants


@dataclass(frozen=True)
class Measured:
    seconds: float
    processor_s: float
    """User and system, of the command and all its children."""
    exit_code: int
    peak_tree_bytes: int = 0
    """Peak of anonymous and shared memory of the tree; 0 if not asked for."""
    group_peak_bytes: int = 0
    """Peak of the control group, page cache included; 0 without a cap."""
    oom_kills: int = 0
    error: str = ""
    """Last lines of standard error of a command that failed."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cap_bytes: int | None = None,
    watch_memory: bool = False,
    timeout_s: float = 3600.0,
) -> Measured:
    """Standard output is dropped. With `cap_bytes` the command runs in a control group with that cap.

    Sampling memory costs a per cent or two of a processor: leave it off where times are compared.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile())
        options: dict[str, Any] = {
            "env": dict(env) if env is not None else None,
            "stdout": subprocess.DEVNULL,
            "stderr": errors,
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
        }
        group = stack.enter_context(MemoryCgroup(cap_bytes)) if cap_bytes else None
        started = time.perf_counter()
        process = group.start(command, **options) if group else subprocess.Popen(list(command), **options)
        pids = group.pids if group else (lambda: descendants(process.pid))
        memory = stack.enter_context(TreeMemory(pids)) if watch_memory else None
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            seconds = time.perf_counter() - started
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2000))
        tail = errors.read().decode(errors="replace").strip()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Measured(
            seconds=seconds,
            processor_s=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            exit_code=process.returncode,
            peak_tree_bytes=memory.peak_bytes if memory else 0,
            group_peak_bytes=group.peak_bytes() if group else 0,
            oom_kills=group.oom_kills() if group else 0,
            error=tail if process.returncode else "",
        )

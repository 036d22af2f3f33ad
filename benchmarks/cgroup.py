"""A hard memory cap around a command, by a control group of its own (Linux, v1 or v2).

    reason = unavailable()                  # "" where the machine allows it
    with MemoryCgroup(640 * 2**20) as group:
        process = group.start(["cortex", ...])
        process.wait()
        assert group.oom_kills() == 0

The kernel reclaims page cache when the cap is met and kills a process when that does not help. What
`peak_bytes` reports therefore counts the cache and is mostly the cap itself; how much memory was truly
needed is `benchmarks.tree_memory`'s to say.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_numbers = itertools.count()


def _mounts() -> list[tuple[str, str, str]]:
    """(folder, file system type, options) of every mount."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(" ", 2)
            found.append((before.split(" ")[4], kind, options))
    return found


def _own_paths() -> dict[str, str]:
    """Controller name ("" for v2) -> this process's path in its hierarchy."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for name in controllers.split(","):
                found[name] = path
    return found


@functools.cache
def _parent() -> tuple[Path, int]:
    """The folder to make groups in, and the version; OSError with the reason when there is none."""
    own = _own_paths()
    candidates: list[tuple[Path, int]] = []
    for folder, kind, options in _mounts():
        if kind == "cgroup" and "memory" in options.split(","):
            candidates += [(Path(folder + own.get("memory", "")), 1), (Path(folder), 1)]
        elif kind == "cgroup2":
            candidates += [(Path(folder + own.get("", "")), 2), (Path(folder), 2)]
    reason = "no control group with a memory controller is mounted"
    for folder, version in sorted(candidates, key=lambda c: c[1]):
        probe = folder / f"cortex-probe-{os.getpid()}"
        limit = "memory.limit_in_bytes" if version == 1 else "memory.max"
        try:
            if version == 2:
                with contextlib.suppress(OSError):  # needed only where it is not yet on
                    (folder / "cgroup.subtree_control").write_text("+memory")
            probe.mkdir()
        except OSError as error:
            reason = f"{folder}: {error.strerror}"
            continue
        try:
            (probe / limit).write_text(str(1 << 30))
            return folder, version
        except OSError as error:
            reason = f"{folder}: no memory controller ({error.strerror})"
        finally:
            probe.rmdir()
    raise OSError(errno.ENOTSUP, reason)


def unavailable() -> str:
    """Why no hard cap can be set here; "" if one can."""
    try:
        _parent()
    except OSError as error:
        return error.strerror or str(error)
    return ""


class MemoryCgroup:
    """A group with a cap on memory and none to swap to; gone, with what runs in it, at the end."""

    def __init__(self, limit_bytes: int) -> None:
        parent, self._version = _parent()
        self.limit_bytes = limit_bytes
        self.folder = parent / f"cortex-bench-{os.getpid()}-{next(_numbers)}"
        self.folder.mkdir()
        try:
            if self._version == 1:
                self._write("memory.limit_in_bytes", limit_bytes)
                with contextlib.suppress(OSError):  # only where the kernel counts swap
                    self._write("memory.memsw.limit_in_bytes", limit_bytes)
            else:
                self._write("memory.max", limit_bytes)
                with contextlib.suppress(OSError):
                    self._write("memory.swap.max", 0)
        except BaseException:
            self.folder.rmdir()
            raise

    def _write(self, name: str, value: object) -> None:
        (self.folder / name).write_text(str(value))

    def _number(self, name: str) -> int:
        return int((self.folder / name).read_text())

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Popen inside the group: the child enters it before it becomes the command."""
        procs = os.fspath(self.folder / "cgroup.procs")

        def enter() -> None:
            descriptor = os.open(procs, os.O_WRONLY)
            os.write(descriptor, b"0")
            os.close(descriptor)

        return subprocess.Popen(list(command), preexec_fn=enter, **options)

    def pids(self) -> list[int]:
        """Of all that run in it, however they were started."""
        return [int(pid) for pid in (self.folder / "cgroup.procs").read_text().split()]

    def usage_bytes(self) -> int:
        return self._number("memory.usage_in_bytes" if self._version == 1 else "memory.current")

    def peak_bytes(self) -> int:
        """Most ever used, page cache included; 0 where an old v2 kernel does not tell."""
        try:
            return self._number("memory.max_usage_in_bytes" if self._version == 1 else "memory.peak")
        except FileNotFoundError:
            return 0

    def oom_kills(self) -> int:
        """Processes that the kernel killed at the cap."""
        name = "memory.oom_control" if self._version == 1 else "memory.events"
        for line in (self.folder / name).read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
        return 0

    def close(self) -> None:
        """Kill what is left in the group and remove it."""
        for attempt in range(200):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                self.folder.rmdir()
                return
            except OSError:  # busy until the killed have been reaped
                if attempt == 199:
                    raise
                time.sleep(0.02)

    def __enter__(self) -> MemoryCgroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""What processes hold in memory, in bytes, and what the machine gives.

A process tree is counted as the sum of ``Pss_Anon + Pss_Shmem`` (from ``smaps_rollup``): pages that
forked processes share count once, file pages, which the kernel drops at will, do not count. Where
the kernel has no ``smaps_rollup``, the resident size of ``ps`` is used: it counts too much, never
too little. Nothing here raises: a process that has gone holds nothing.

One process's own figure is `own_anonymous_bytes` (``RssAnon + RssShmem``): shared pages in full,
because it is compared with the process's own limit.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_PROC = "/proc"
_CGROUPS = "/sys/fs/cgroup"
_CGROUP_UNLIMITED_BYTES = 1 << 60  # cgroup v1 says "no limit" with a number near 2**63


def _fields_bytes(text: str) -> dict[str, int]:
    """``Pss_Anon:  12 kB`` lines -> bytes by name."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            found[name] = int(words[0]) * 1024
    return found


def _read(*path: str) -> str:
    try:
        with open(os.path.join(*path), encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _ps_rss_bytes(pid: int) -> int:
    try:
        done = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    text = done.stdout.strip()
    return int(text) * 1024 if text.isdigit() else 0


def proportional_bytes(pid: int) -> int:
    """Anonymous and shared-memory bytes of one process, each page divided by those who map it."""
    fields = _fields_bytes(_read(_PROC, str(pid), "smaps_rollup"))
    if "Pss_Anon" in fields:
        return fields["Pss_Anon"] + fields.get("Pss_Shmem", 0)
    fields = _fields_bytes(_read(_PROC, str(pid), "status"))
    if "RssAnon" in fields:
        return fields["RssAnon"] + fields.get("RssShmem", 0)
    return 0 if sys.platform == "linux" else _ps_rss_bytes(pid)


def own_anonymous_bytes(pid: int | str = "self") -> int:
    """Anonymous and shared-memory resident bytes, pages shared with a parent included. 30 µs."""
    fields = _fields_bytes(_read(_PROC, str(pid), "status"))
    if "RssAnon" in fields:
        return fields["RssAnon"] + fields.get("RssShmem", 0)
    if sys.platform == "linux":
        return 0
    return _ps_rss_bytes(os.getpid() if pid == "self" else int(pid))


def own_data_bytes() -> int:
    """Virtual size of this process's writable private mappings: what RLIMIT_DATA counts. 0: unknown."""
    return _fields_bytes(_read(_PROC, "self", "status")).get("VmData", 0)


def reset_peak() -> None:
    """Start a new high-water mark for `peak_anonymous_bytes` (without it the mark is of all time)."""
    try:
        with open(f"{_PROC}/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return  # an older kernel or a sandbox: peaks are then those since the process began


def peak_anonymous_bytes() -> int:
    """Most anonymous bytes this process held since `reset_peak`.

    The kernel's high-water mark counts file pages; those mapped now are taken off. File pages that
    were mapped at the peak and are gone by now make it too high; it is never below the present use.
    """
    fields = _fields_bytes(_read(_PROC, "self", "status"))
    if "VmHWM" in fields and "RssAnon" in fields:
        now = fields["RssAnon"] + fields.get("RssShmem", 0)
        return max(now, fields["VmHWM"] - fields.get("RssFile", 0))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def child_pids(pid: int) -> list[int]:
    """Direct children of a process, whichever of its threads made them."""
    tasks = f"{_PROC}/{pid}/task"
    found: list[int] = []
    try:
        threads = os.listdir(tasks)
    except OSError:
        return _ps_child_pids(pid) if sys.platform != "linux" else []
    for thread in threads:
        found.extend(int(word) for word in _read(tasks, thread, "children").split())
    return found


def _ps_child_pids(pid: int) -> list[int]:
    try:
        done = subprocess.run(
            ["ps", "-A", "-o", "ppid=,pid="], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    pairs = [line.split() for line in done.stdout.splitlines()]
    return [int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == str(pid)]


def descendant_pids(pid: int) -> list[int]:
    """`pid` and everything below it, parents first."""
    found, seen = [pid], {pid}
    for each in found:  # grows while it is read
        new = [child for child in child_pids(each) if child not in seen]
        seen.update(new)
        found.extend(new)
    return found


# --- what the machine gives ----------------------------------------------------------------------


def _cgroup_folders(controller: str, root: str | Path, own: str) -> list[str]:
    """This process's cgroup of `controller` and every one above it (v1 and v2), innermost first."""
    folders: list[str] = []
    for line in own.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            bases = [os.fspath(root), os.path.join(root, "unified")]
        elif controller in controllers.split(","):
            bases = [os.path.join(root, controllers), os.path.join(root, controller)]
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for base in bases:
            # a container sees its own group as the root: paths that do not exist read as nothing
            folders.extend(os.path.join(base, *parts[:depth]) for depth in range(len(parts), -1, -1))
    return folders


def cgroup_memory_bytes(root: str | Path = _CGROUPS, own: str | None = None) -> int:
    """The smallest memory limit of the cgroups this process is in; 0: none."""
    own = _read(_PROC, "self", "cgroup") if own is None else own
    limits = []
    for folder in _cgroup_folders("memory", root, own):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            text = _read(folder, name).strip()
            if text.isdigit() and 0 < int(text) < _CGROUP_UNLIMITED_BYTES:
                limits.append(int(text))
    return min(limits, default=0)


def cgroup_processors(root: str | Path = _CGROUPS, own: str | None = None) -> float:
    """Processors' worth of time the cgroups of this process may use; 0: no quota."""
    own = _read(_PROC, "self", "cgroup") if own is None else own
    quotas = []
    for folder in _cgroup_folders("cpu", root, own):
        words = _read(folder, "cpu.max").split()
        if not words:
            words = [
                _read(folder, "cpu.cfs_quota_us").strip(),
                _read(folder, "cpu.cfs_period_us").strip(),
            ]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=0.0)


def usable_memory_bytes() -> int:
    """Physical memory, or the cgroup's limit where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroup_memory_bytes()
    return min(physical, limit) if limit else physical


def usable_processors() -> int:
    """Processors this process may run on, by affinity and by cgroup quota (rounded up); at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        count = os.cpu_count() or 1
    quota = cgroup_processors()
    return max(1, min(count, math.ceil(quota)) if quota else count)

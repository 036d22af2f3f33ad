"""What a tree of processes holds: the sum of ``Pss_Anon + Pss_Shmem``, sampled, and its peak.

Written apart from cortex's own counting of the same thing, so that the two can be held against each
other. Pages of files do not count; a page that two processes share counts half in each.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """`pid` and every process below it that still runs."""
    found, todo = [], [pid]
    while todo:
        at = todo.pop()
        found.append(at)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{at}/task").iterdir():
                with contextlib.suppress(OSError):
                    todo += map(int, (task / "children").read_text().split())
    return found


def process_bytes(pid: int) -> int:
    """One process's share; 0 when it has gone."""
    total = 0
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            for line in lines:
                if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    total += int(line.split()[1]) * 1024
    except OSError:
        return 0
    return total


class TreeMemory:
    """Samples in a thread of its own, from `start` to `stop`, all pids that `pids()` names each time."""

    def __init__(self, pids: Callable[[], list[int]], every_s: float = 0.05) -> None:
        self._pids = pids
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.peak_bytes = 0
        self.peak_processes: dict[int, int] = {}
        self.samples = 0

    def sample(self) -> int:
        shares = {pid: process_bytes(pid) for pid in self._pids()}
        total = sum(shares.values())
        if total > self.peak_bytes:
            self.peak_bytes, self.peak_processes = total, shares
        self.samples += 1
        return total

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            with contextlib.suppress(OSError):  # the group has gone between two samples
                self.sample()

    def __enter__(self) -> TreeMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

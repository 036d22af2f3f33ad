"""Limits and manners of an executor process: its memory cap, no core files, memory given back.

`MemoryLimit` turns an overrun into an exception (MemoryError, pyarrow's
ArrowMemoryError) where the kernel counts writable memory against RLIMIT_DATA (Linux). Elsewhere
the node's watchdog is the only limit.

That limit counts address space: see `cortex.tasks.environment` for what it asks of allocators.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import resource
import sys
from collections.abc import Callable
from typing import Final

from cortex.limits import DATA_SLACK_BYTES
from cortex.process_memory import own_anonymous_bytes, own_data_bytes

_PR_SET_PDEATHSIG: Final = 1
_MEMORY_ERROR_NAMES: Final = ("MemoryError", "ArrowMemoryError", "_ArrayMemoryError")


class MemoryLimit:
    """A cap on this process's anonymous memory at about `memory_bytes` (pages shared with the template
    included); 0 or less: no cap.

    The address space reserved and not used by now (stacks, allocator slack) comes on top. It is measured
    once: after a task that failed for want of memory far more is reserved, and the cap would grow each time.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._limit = resource.RLIM_INFINITY
        if memory_bytes <= 0 or not sys.platform.startswith("linux"):
            return
        data, used = own_data_bytes(), own_anonymous_bytes()
        if data > 0:
            self._limit = memory_bytes + max(0, data - used) + DATA_SLACK_BYTES

    def set(self) -> None:
        if self._limit != resource.RLIM_INFINITY:
            _soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            limit = self._limit if hard == resource.RLIM_INFINITY else min(self._limit, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))

    def lift(self) -> None:
        """Room to report in, after a MemoryError."""
        if self._limit != resource.RLIM_INFINITY:
            _soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))

    def allow(self, more_bytes: int) -> None:
        """For a private mapping of a file, whose pages are no anonymous memory until they are written to
        (negative: it is gone)."""
        if self._limit != resource.RLIM_INFINITY:
            self._limit += more_bytes
            self.set()


class HeldMemory:
    """Whether the memory of a process that does one thing after the other comes back."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._after_first_bytes: dict[object, int] = {}

    def is_much(self) -> bool:
        """Worth giving back: over half of the limit."""
        return own_anonymous_bytes() > self._memory_bytes // 2 > 0

    def does_not_come_back(self, kind: object) -> bool:
        """After something of this kind: what stays is over half of the limit and a quarter more than after
        the first.

        What the job's own setup holds is there after its first task (of each kind: a plan calls no user
        code); a leak, or a heap in shreds, grows.
        """
        if self._memory_bytes <= 0:
            return False
        left_bytes = own_anonymous_bytes()
        grown_bytes = left_bytes - self._after_first_bytes.setdefault(kind, left_bytes)
        return left_bytes > self._memory_bytes // 2 and grown_bytes > self._memory_bytes // 4


def no_core_files() -> None:
    """A crash of a large executor must not write its memory, and the user's data, to disk."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def be_first_to_die() -> None:
    """When the machine is out of memory the kernel should take an executor, whose work is redone."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("500")


def die_with_parent(signal_number: int) -> None:
    """Linux: have the kernel send this process a signal when its parent ends, however it ends.

    Other systems have no such call: there the end of the link to the parent is what counts.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # not glibc
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim


def give_back_memory() -> None:
    """Return freed memory to the kernel: pyarrow's pool, then the C library's heap."""
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is not None:
        pyarrow.default_memory_pool().release_unused()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def is_memory_error(error: BaseException) -> bool:
    """MemoryError, or one of its kinds that pyarrow and NumPy raise, or one of them as the cause."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or type(seen).__name__ in _MEMORY_ERROR_NAMES:
            return True
        seen = seen.__cause__
    return False

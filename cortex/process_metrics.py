"""What Prometheus knows of every process: memory, processor time, descriptors, when it began."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator

from cortex.metric_text import Family, counter, gauge

_BEGAN_AT = time.time() - time.process_time()  # near enough: this is imported when the process begins


def process_families() -> Iterator[Family]:
    """By the names of Prometheus' own client libraries."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield counter(
        "process_cpu_seconds_total", "Processor time, user and system.", used.ru_utime + used.ru_stime
    )
    yield gauge("process_start_time_seconds", "When it began, since 1970.", _BEGAN_AT)
    yield gauge("process_resident_memory_bytes", "Resident memory.", _resident_bytes(used.ru_maxrss))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        yield gauge("process_max_fds", "Descriptors that it may have open.", soft)
    open_fds = open_descriptors()
    if open_fds is not None:
        yield gauge("process_open_fds", "Descriptors that it has open.", open_fds)


def open_descriptors() -> int | None:
    """How many descriptors this process has open; None where the system does not say."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return max(0, len(os.listdir(folder)) - 1)  # without the one that lists them
        except OSError:
            continue
    return None


def _resident_bytes(peak: int) -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # not Linux: the peak, in its units
        return peak if sys.platform == "darwin" else peak * 1024

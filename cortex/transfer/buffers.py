"""What a process that moves segments asks of the C library: to keep the buffers that it frees.

glibc gives the top of its heap back to the kernel as soon as 128 KiB of it are free. A buffer freed and
taken again for each piece of a segment then costs a page fault for every 4 KiB: a fifth of the processor
time of a transfer.
"""

from __future__ import annotations

import ctypes

from cortex.limits import KEPT_HEAP_BYTES, MIB

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_buffers() -> None:
    """For the whole process, which then keeps up to KEPT_HEAP_BYTES more. Nothing where there is no glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_TRIM_THRESHOLD, KEPT_HEAP_BYTES)
    mallopt(_M_MMAP_THRESHOLD, 4 * MIB)  # above every buffer here: a mapping is given back when it is freed

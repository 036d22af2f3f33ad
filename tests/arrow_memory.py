"""The most that pyarrow had allocated while some code ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

_POOLS: list[pa.MemoryPool] = []  # arrays may outlive the test, and a pool must outlive its arrays


class Peak:
    bytes = 0


@contextmanager
def arrow_peak() -> Iterator[Peak]:
    """`bytes` is set at the end: what was allocated inside, whatever was there before."""
    before, peak = pa.default_memory_pool(), Peak()
    pool = pa.proxy_memory_pool(before)
    _POOLS.append(pool)
    pa.set_memory_pool(pool)
    try:
        yield peak
    finally:
        pa.set_memory_pool(before)
        peak.bytes = pool.max_memory()

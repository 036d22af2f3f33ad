"""How a task divides the memory its executor was given. Chunk sizes only: never what the output is."""

from __future__ import annotations

from dataclasses import dataclass

from cortex.limits import BLOCK_BYTES, KIB, MIB
from cortex.process_memory import own_anonymous_bytes

_DATA_BYTES_MIN = 16 * MIB  # what is always planned with, so that a tight cap gives small chunks, not none
_BUFFER_BYTES_MAX = 1024 * MIB  # a larger buffer sorts no faster: it has long left the caches


@dataclass(frozen=True)
class Budget:
    """All in bytes.

    * ``block``: input decoded at once. pyarrow's CSV parse holds three to four times as much.
    * ``lines_block``: the same for lines as Python strings, which take several times their bytes.
    * ``buffer``: what a collector's rows and their sort take before they are spilled.
    * ``merge``: what a merge round's rows and their sort take.
    """

    block: int
    lines_block: int
    buffer: int
    merge: int

    @classmethod
    def of(cls, memory_bytes: int) -> Budget:
        """For an executor whose whole anonymous memory may be `memory_bytes`; 0: as if it had 1 GB."""
        data = max(_DATA_BYTES_MIN, (memory_bytes or 1024 * MIB) - own_anonymous_bytes())
        block = min(BLOCK_BYTES, max(256 * KIB, data // 24))
        # The rest is for decoded blocks, slices, Python objects, and what allocators keep of them.
        rows = min(_BUFFER_BYTES_MAX, data * 2 // 5)
        return cls(block=block, lines_block=max(256 * KIB, block // 4), buffer=rows, merge=rows)

"""How the memory cap of one machine is divided: so much for each process, so many slots.

The cap M counts the whole tree (see `cortex.process_memory`): client, the process with server and
node, the template, and the executors, whose pages shared with the template count once:

    M >= reserve + client + embedded + template + slots * (unshared base + working memory)

Slots shrink until each executor has a useful working memory; a cap that has no room for one
executor is refused with the smallest that works. The plan decides how fast a job is, never what
comes out of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cortex.errors import MemoryTooSmall, UsageError
from cortex.limits import (
    CLIENT_BYTES,
    EMBEDDED_BYTES,
    EXECUTOR_UNSHARED_BYTES,
    EXECUTOR_WORKING_BYTES_MIN,
    MEMORY_RESERVE_FRACTION,
    MIB,
    TEMPLATE_BYTES,
)
from cortex.process_memory import usable_memory_bytes, usable_processors
from cortex.units import format_bytes

_BASE_BYTES = CLIENT_BYTES + EMBEDDED_BYTES + TEMPLATE_BYTES
_EXECUTOR_BYTES_MIN = EXECUTOR_UNSHARED_BYTES + EXECUTOR_WORKING_BYTES_MIN


@dataclass(frozen=True)
class MemoryPlan:
    """`executor_bytes` is an executor's whole anonymous memory, the template's shared pages included."""

    cap_bytes: int
    slots: int
    executor_bytes: int


def smallest_cap_bytes() -> int:
    """The smallest cap with room for one executor, in whole MiB."""
    needed = (_BASE_BYTES + _EXECUTOR_BYTES_MIN) / (1 - MEMORY_RESERVE_FRACTION)
    return -(-int(needed + 1) // MIB) * MIB


def plan_memory(cap_bytes: int = 0, slots: int = 0) -> MemoryPlan:
    """The plan for a cap and a number of slots; 0: half of the machine's memory, all its processors.

    Raises MemoryTooSmall.
    """
    smallest = smallest_cap_bytes()
    if cap_bytes and cap_bytes < smallest:
        raise MemoryTooSmall(
            f"a memory cap of {format_bytes(cap_bytes)} is too small for cortex's processes",
            cure=f"the smallest that works is --memory {smallest // MIB}MB",
        )
    if not cap_bytes:
        usable = usable_memory_bytes()
        cap_bytes = max(usable // 2, smallest)
        if cap_bytes > usable:
            raise MemoryTooSmall(
                f"this machine (or its container) has {format_bytes(usable)} of memory;"
                f" cortex needs {format_bytes(smallest)}",
                cure="give the container more memory",
            )
    room = int(cap_bytes * (1 - MEMORY_RESERVE_FRACTION)) - _BASE_BYTES
    wanted = slots or usable_processors()
    slots = max(1, min(wanted, room // _EXECUTOR_BYTES_MIN))
    shared = TEMPLATE_BYTES - EXECUTOR_UNSHARED_BYTES
    return MemoryPlan(cap_bytes, slots, room // slots + shared)


def refuse_beyond_machine(cap_bytes: int) -> None:
    """Raises UsageError for a cap that a node is to keep to and its machine has not: others would rely on it.
    On one machine alone whoever gives it is who is hurt, and a job file may name more than this one has."""
    usable = usable_memory_bytes()
    if cap_bytes > usable:
        raise UsageError(
            f"a memory cap of {format_bytes(cap_bytes)} is more than this machine (or its container) has:"
            f" {format_bytes(usable)}",
            cure=f"lower --memory (or CORTEX_MEMORY) to {usable // MIB}MB at most, or leave it out: then it"
            " is half of the machine's",
        )


def smallest_job_bytes() -> int:
    """The smallest memory that a job may have at a node of a cluster: one executor's."""
    return _EXECUTOR_BYTES_MIN


def job_slots(memory_bytes: int, slots: int) -> int:
    """Slots that a job with so much memory may have at a node with so many: each has a useful part of it."""
    return max(1, min(slots, memory_bytes // _EXECUTOR_BYTES_MIN))


def job_executor_bytes(plan: MemoryPlan, memory_bytes: int) -> int:
    """What each executor of such a job may take at a node of this plan: all together no more than the job's
    memory, and with those of other jobs no more than the node's."""
    return min(plan.executor_bytes, memory_bytes // job_slots(memory_bytes, plan.slots))


def too_large(wanted_bytes: int, has_bytes: int, who: str) -> MemoryTooSmall:
    """The error about a node that has less memory than a job is to have there."""
    return MemoryTooSmall(
        f"the job is to have {format_bytes(wanted_bytes)} of memory at each node, and {who} has"
        f" {format_bytes(has_bytes)}",
        cure="lower the job's memory (resources: memory, or --memory), or leave it out to use what slots"
        " have; or start a node with more: cortex node --memory",
    )

"""What node and executor both say about tasks: how one is named in an error.

Light, because the node's process starts with it: nothing of what an executor needs to work.
"""

from __future__ import annotations

from cortex.units import format_bytes
from cortex.wire.messages import CombineTask, CommitTask, PlanTask, ReduceTask, ScanTask, ServeTask, Task


def describe_task(task: Task) -> str:
    """What a task works on, for an error: ``map 3: splits 12-13, file 0 at offset 67108864 (...)``."""
    if isinstance(task, PlanTask):
        return "plan: input files, columns and splits"
    if isinstance(task, ScanTask):
        return f"scan: file {task.file}, offsets {task.boundaries[0]} to {task.boundaries[-1]}"
    if isinstance(task, ReduceTask):
        maps = sum(task.spans[1::2]) - sum(task.spans[::2])
        return f"reduce: partition {task.partition}, {maps} map outputs"
    if isinstance(task, CombineTask):
        return f"combining {len(task.members)} map outputs of this node, from {task.members[0]} on"
    if isinstance(task, CommitTask):
        return f"commit: {len(task.parts)} parts of the output"
    if isinstance(task, ServeTask):
        return "calls of functions"
    if not task.splits:
        return f"map {task.map_index}: no splits"
    first = task.splits[0]
    length = sum(split.length for split in task.splits)
    more = f" and {len(task.splits) - 1} more splits" if len(task.splits) > 1 else ""
    return (
        f"map {task.map_index}: split {first.index} of file {first.file}, offset {first.offset}{more}"
        f" ({format_bytes(length)})"
    )

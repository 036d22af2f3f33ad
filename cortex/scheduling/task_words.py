"""What an attempt works on, for people: nodes know files by number alone. Pure."""

from __future__ import annotations

import os

import msgspec

from cortex.errors import ErrorReport
from cortex.job.plan import InputPlan
from cortex.scheduling.leases import Running
from cortex.units import format_bytes
from cortex.wire.messages import CommitTask, MapTask, PlanTask, ReduceTask, ScanTask


def task_words(plan: InputPlan | None, running: Running) -> str:
    """`plan`: None before it is made."""
    task = running.task
    if isinstance(task, PlanTask) or plan is None:
        return "the plan of the inputs"
    if isinstance(task, CommitTask):
        return "the commit of the output"
    if isinstance(task, ReduceTask):
        return f"partition {task.partition} of {plan.reducers}"
    if isinstance(task, ScanTask):
        first_byte, end_byte = task.boundaries[0], task.boundaries[-1]
        return f"quotes of {_name(plan, task.file)} from byte {first_byte} to {end_byte}"
    group = plan.tasks[running.index]
    if not group:
        return "a map without input"
    first = plan.splits[group.start]
    more = f" and {len(group) - 1} more splits" if len(group) > 1 else ""
    return f"{_name(plan, first.file)} from byte {first.offset}, {format_bytes(first.length)}{more}"


def with_file(plan: InputPlan | None, running: Running, error: ErrorReport) -> ErrorReport:
    """An error that tells its task, with the path of the file that the task reads (first)."""
    task = running.task
    if plan is None or "task" not in error.details or "file" in error.details:
        return error
    if isinstance(task, MapTask) and plan.tasks[task.map_index]:
        file = plan.splits.file_of(plan.tasks[task.map_index].start)
    elif isinstance(task, ScanTask):
        file = task.file
    else:
        return error
    return msgspec.structs.replace(error, details={"file": plan.files[file].path, **error.details})


def _name(plan: InputPlan, file: int) -> str:
    return os.path.basename(plan.files[file].path)

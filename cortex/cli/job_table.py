"""Jobs as lines of a table: what `cortex status`, `jobs` and `job` show of each. Pure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cortex.cli.call_progress import calls_text
from cortex.cli.locality import local_share
from cortex.cli.terminal import aligned
from cortex.units import format_seconds

if TYPE_CHECKING:
    from cortex.wire.messages import JobStatus, StageProgress

_NAME_CHARS_MAX = 40  # of a job's name in a table: names may be sentences
_CALLS = "calls"
"""The one stage of a job of `cortex compute`."""


def has_ended(job: JobStatus) -> bool:
    return job.state in ("done", "failed", "cancelled")


def job_lines(jobs: list[JobStatus]) -> list[str]:
    if not jobs:
        return []
    rows = [
        [
            job.job,
            shortened(job.name),
            job.state,
            "" if has_ended(job) else f"{job.slots}/{job.slots_wanted}",
            "" if has_ended(job) else str(job.priority),
            _tasks_done(job),
            local_share(job.locality),
            format_seconds(job.seconds),
            job.owner,
        ]
        for job in jobs
    ]
    head = ["job", "name", "state", "slots", "priority", "tasks", "maps", "time", "user"]
    if any(job.kept_until for job in jobs):
        head.append("result kept until")
        rows = [[*row, when(job.kept_until) if job.kept_until else ""] for row, job in zip(rows, jobs)]
    return aligned(head, rows, {3, 4, 7})


def shortened(name: str) -> str:
    """As a column has room for it."""
    return name if len(name) <= _NAME_CHARS_MAX else f"{name[: _NAME_CHARS_MAX - 3]}..."


def when(seconds: float) -> str:
    """A time by this machine's clock; `seconds` are since 1970."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _tasks_done(job: JobStatus) -> str:
    return ", ".join(
        _calls(job, stage)
        if stage.stage == _CALLS
        else f"{stage.stage} {stage.tasks_done}/{stage.tasks_total}"
        for stage in job.stages
    )


def _calls(job: JobStatus, stage: StageProgress) -> str:
    """Of a job of `cortex compute`, whose client may not know how many calls there will be."""
    total = None if stage.open_ended and not has_ended(job) else stage.tasks_total
    running = 0 if has_ended(job) else min(stage.tasks_running, job.slots)  # others wait at their worker
    failed = stage.rows_in
    return "calls " + calls_text(total, stage.rows_out - failed, running, failed, stage.seconds)

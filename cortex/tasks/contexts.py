"""Which kind of work a job's executors do: its tasks, or calls of functions."""

from __future__ import annotations

from cortex.tasks.compute_task import ComputeContext
from cortex.tasks.executor import Context
from cortex.tasks.runner import JobContext
from cortex.wire.framing import BlockingConnection
from cortex.wire.messages import OpenJob, ToExecutor


def open_context(open_job: OpenJob, link: BlockingConnection[ToExecutor]) -> Context:
    """An executor's `ContextFactory`."""
    return ComputeContext(open_job, link) if open_job.spec.compute else JobContext(open_job)

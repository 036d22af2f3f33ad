"""A compute job in an executor: opened once, then it serves calls of functions (`cortex compute`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cortex.errors import InternalError
from cortex.tasks.call_worker import CallWorker
from cortex.tasks.job_bundle import enter_bundle
from cortex.tasks.memory_limits import HeldMemory, MemoryLimit
from cortex.wire.framing import BlockingConnection
from cortex.wire.messages import OpenJob, Result, ServeTask, Task, TaskStats, ToExecutor


class ComputeContext:
    """An executor's `Context`. Its tasks read the executor's own link until they end."""

    def __init__(self, open_job: OpenJob, link: BlockingConnection[ToExecutor]) -> None:
        enter_bundle(open_job)
        self._open_job = open_job
        self._link = link
        self._held_memory = HeldMemory(open_job.memory_bytes)
        self._memory_limit = MemoryLimit(open_job.memory_bytes)
        self._worker: CallWorker | None = None

    @property
    def retires(self) -> bool:
        return self._worker is not None and self._worker.retires

    def planned(self, plan: Any) -> None:
        raise InternalError("a compute job has no plan")

    def run(self, attempt: str, task: Task, progress: Callable[[TaskStats], None]) -> Result:
        """Serve until the worker is to end."""
        if not isinstance(task, ServeTask):
            raise InternalError(f"a task of type {type(task).__name__} reached an executor of a compute job")
        self._worker = CallWorker(self._open_job, self._link, attempt, self._held_memory, self._memory_limit)
        return self._worker.serve()

    def position(self) -> tuple[int, int]:
        """Changes when calls have ended. May be asked from another thread."""
        return (self._worker.calls if self._worker is not None else 0), 0

    def close(self) -> None:
        self._worker = None

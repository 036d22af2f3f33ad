"""The memory of a node's process tree: measured, and what to do when it is over the cap. No Twisted.

Each sample reads what every process holds, shared pages in full: 30 µs each. What the tree holds together,
shared pages once, takes up to 1 ms a process, and holds its page faults up meanwhile: it is read when a
process has come or grown, when the tree might be over the cap, and now and then (a forked process that writes
to a shared page grows by none of its own figures).

Over the cap the node starts no further attempt while any runs, until it is below again. An executor that
is over its own share by a tenth meanwhile (shared memory, its own child processes, or a system without
RLIMIT_DATA) is to be killed, with the error that says why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from cortex.errors import UserMemoryError
from cortex.limits import CLIENT_BYTES, MEMORY_WHOLE_SAMPLES, MIB
from cortex.memory_plan import MemoryPlan
from cortex.node.executor_deaths import Executor
from cortex.process_memory import descendant_pids, own_anonymous_bytes, proportional_bytes
from cortex.tasks.words import describe_task
from cortex.units import format_bytes
from cortex.wire.messages import RunTask

_OVER_SHARE = 1.1  # of its share an executor is left alone: what is shared counts in full in its own figure
_BELOW_CAP = 0.95  # of the cap at which a paused node goes on
_GROWN_BYTES = 1 * MIB  # by less a process has not grown: allocators come and go


class MemoryGuard:
    """`client_pid` 0: there is no client process to count."""

    def __init__(self, plan: MemoryPlan, client_pid: int = 0) -> None:
        self._plan = plan
        self._client_pid = client_pid
        self.now_bytes = 0
        self.peak_bytes = 0
        self.paused = False
        """No further attempt is to start while any runs."""
        self._own_bytes: dict[int, int] = {}
        """Executor's pid -> its anonymous bytes with those of its child processes, shared pages in full."""
        self._whole_bytes: dict[int, int] = {}
        """Pid -> its anonymous bytes, shared pages in full, when the tree was last measured as a whole."""
        self._samples = 0
        """Since then."""

    def sample(self, executors: Sequence[Executor]) -> None:
        """Measure the tree, and note each executor's peak. A user's own process, the client, is charged no
        more than cortex itself needs in it."""
        tree = descendant_pids(os.getpid())
        own = {pid: own_anonymous_bytes(pid) for pid in (*tree, self._client_pid) if pid}
        self._samples += 1
        if self._is_to_be_whole(own):
            self._samples, self._whole_bytes = 0, own
            total = sum(proportional_bytes(pid) for pid in tree)
            if self._client_pid:
                total += min(CLIENT_BYTES, proportional_bytes(self._client_pid))
            self.now_bytes = total
            self.peak_bytes = max(self.peak_bytes, total)
        self._own_bytes = {
            executor.pid: sum(
                own.get(pid) or own_anonymous_bytes(pid) for pid in descendant_pids(executor.pid)
            )
            for executor in executors
        }
        for executor in executors:
            executor.peak_bytes = max(executor.peak_bytes, self._own_bytes[executor.pid])

    def _is_to_be_whole(self, own: Mapping[int, int]) -> bool:
        return (
            self._samples >= MEMORY_WHOLE_SAMPLES
            or own.keys() != self._whole_bytes.keys()
            or sum(own.values()) > self._plan.cap_bytes * _BELOW_CAP
            or self.paused
            or any(size > self._whole_bytes[pid] + _GROWN_BYTES for pid, size in own.items())
        )

    def decide(self, executors: Sequence[Executor]) -> tuple[Executor, UserMemoryError] | None:
        """Set `paused` by the last sample. Gives an executor that is to be killed, and its error."""
        if self.now_bytes <= self._plan.cap_bytes:
            self.paused = self.paused and self.now_bytes >= self._plan.cap_bytes * _BELOW_CAP
            return None
        self.paused = True
        working = [executor for executor in executors if executor.run is not None]
        if not working:
            return None
        largest = max(working, key=lambda executor: self._own_bytes.get(executor.pid, 0))
        own = self._own_bytes.get(largest.pid, 0)
        if own <= self._plan.executor_bytes * _OVER_SHARE or largest.run is None:
            return None
        return largest, self._over_share(largest.run, own)

    def said(self) -> str:
        return f"{format_bytes(self.now_bytes)} of {format_bytes(self._plan.cap_bytes)}"

    def _over_share(self, run: RunTask, own_bytes: int) -> UserMemoryError:
        return UserMemoryError(
            f"the task and its child processes hold {format_bytes(own_bytes)}; its slot has"
            f" {format_bytes(self._plan.executor_bytes)} and the cap of"
            f" {format_bytes(self._plan.cap_bytes)} is exceeded",
            cure="raise --memory, lower --slots, or lower --split-size; or hold less in the job's own code",
            signature=f"UserMemoryError watchdog {type(run.task).__name__}",
            details={
                "task": describe_task(run.task),
                "attempt": run.attempt,
                "memory of the whole tree": format_bytes(self.now_bytes),
                "cap": format_bytes(self._plan.cap_bytes),
            },
        )

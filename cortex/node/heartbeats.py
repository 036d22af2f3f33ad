"""A node's time: every MEMORY_SAMPLE_S it measures memory, looks after executors, and beats when it is due.

A heartbeat keeps the node's leases, and says what runs, what memory and disk there are, and which slots stand
empty; it comes as often as the jobs here want to show progress, and every HEARTBEAT_S while nothing runs. One
that is out of turn follows a hello, and a new peak of memory before an end is told.

What memory decides (`cortex.node.memory_guard`) is done here: the executor that it names is killed, and what
waited for memory begins. On the reactor's thread, from `start` to `stop`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from cortex.limits import HEARTBEAT_S, MEMORY_SAMPLE_S, PROGRESS_S
from cortex.node.executor_pool import ExecutorPool
from cortex.node.leased_attempts import LeasedAttempts
from cortex.node.memory_guard import MemoryGuard
from cortex.node.spill_folders import SpillFolders
from cortex.node.spill_meter import SpillMeter
from cortex.wire.messages import FromNode, Heartbeat

_log = Logger()


class Heartbeats:
    def __init__(
        self,
        reactor: Any,
        clock: Callable[[], float],
        send: Callable[[FromNode], None],
        name: str,
        incarnation: Callable[[], str],
        memory: MemoryGuard,
        attempts: LeasedAttempts,
        folders: SpillFolders,
        meter: SpillMeter | None,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._send = send
        self._name = name
        self._incarnation = incarnation
        self._memory = memory
        self._attempts = attempts
        self._folders = folders
        self._meter = meter
        self._pool: ExecutorPool
        self._due = 0.0
        self._reported_peak = 0
        self._timer: Any = None
        self.progress_s = PROGRESS_S
        """Between heartbeats while something runs."""

    def start(self, pool: ExecutorPool) -> None:
        self._pool = pool
        self._tick()

    def stop(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def measure(self, anew: bool) -> None:
        """Memory, now; `anew`: what its peak was is forgotten."""
        if anew:
            self._memory.peak_bytes = 0
        self._memory.sample(self._pool.executors())

    def beat(self) -> None:
        running = self._attempts.progress()
        self._due = self._clock() + (self.progress_s if running else HEARTBEAT_S) - 0.01
        self._reported_peak = self._memory.peak_bytes
        beat = Heartbeat(
            self._name,
            self._incarnation(),
            running,
            self._memory.now_bytes,
            self._memory.peak_bytes,
            self._folders.free_bytes(),
            -1 if self._meter is None else self._meter.used_bytes,
            -1 if self._meter is None else self._meter.limit_bytes,
            self._attempts.idle_slots(),
        )
        self._send(beat)

    def beat_peak(self) -> None:
        """If the server has not heard of it: of a short job the only beat."""
        if self._memory.peak_bytes != self._reported_peak:
            self.beat()

    def _tick(self) -> None:
        self._timer = self._reactor.callLater(MEMORY_SAMPLE_S, self._tick)
        self._guard_memory()
        self._pool.check()
        if self._clock() >= self._due:
            self.beat()

    def _guard_memory(self) -> None:
        executors, was_paused = self._pool.executors(), self._memory.paused
        self._memory.sample(executors)
        found = self._memory.decide(executors)
        if self._memory.paused and not was_paused:
            _log.warn(
                "memory is over the cap: {said}; no further task starts until it is below",
                said=self._memory.said(),
            )
        if was_paused and not self._memory.paused:
            self._attempts.room()
        if found is not None:
            self._pool.kill(*found)

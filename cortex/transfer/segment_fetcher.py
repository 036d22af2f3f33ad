"""Fetches segments of map outputs that ran on other nodes, into the job's folder on this one.

What is wanted is reported once each: `landed(wanted, size_bytes, rows, others)` when the segment lies under
its name in the folder and its size and footer were found right, with what else it stands for if it came
combined, or `failed(wanted, error)`: FetchFailed
(fault LOST: the map has to run again) when its holder cannot give it, SpillFull or SpillFailed when this
node cannot keep it. Nothing is reported of a cancelled job.

`FetchQueue` decides; this carries out. `connect(holder)` gives an endpoint to a holder, plain or TLS, and
`check(holder, transport)` is called when its first bytes come: it raises CortexError for a peer that is
not that holder after all.
Bytes are written by a bounded pool of threads. When `policy.bytes_max` of them wait for the disk, no
connection is read from until half are written, so senders are paused by TCP itself. A connection that
is silent for `policy.stall_s` while bytes are due is cut off and tried again.

All methods and callbacks are on the reactor's thread.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from cortex.errors import CorruptRun, CortexError, InternalError, Unreachable
from cortex.limits import TRANSFER_TICK_S
from cortex.storage.fetched_segments import FetchedSegments
from cortex.storage.filesystem import Filesystem
from cortex.storage.spill_quota import SpillQuota
from cortex.transfer.fetch_connection import FetchConnection, stalled
from cortex.transfer.fetch_queue import (
    Ask,
    Close,
    Connect,
    FetchPolicy,
    FetchQueue,
    GiveUp,
    Instruction,
    Wanted,
)
from cortex.transfer.landing import Inflight, Landing


@dataclass(eq=False)
class _Job:
    store: FetchedSegments
    landings: set[Landing] = field(default_factory=set)
    gone: Callable[[], None] | None = None
    """Set when it was cancelled."""


class SegmentFetcher:
    """See the module. `threads` is for tests: something with `callInThread`, in place of the pool.
    `spill_account`: path of the node's `SpillAccount`; "": there is none."""

    def __init__(
        self,
        reactor: Any,
        clock: Callable[[], float],
        fs: Filesystem,
        connect: Callable[[str], Any],
        landed: Callable[[Wanted, int, int, list[Wanted]], None],
        failed: Callable[[Wanted, CortexError], None],
        check: Callable[[str, Any], None] = lambda holder, transport: None,
        policy: FetchPolicy | None = None,
        jitter: Callable[[], float] = random.random,
        threads: Any = None,
        spill_account: str = "",
    ) -> None:
        self.clock = clock
        self.policy = policy or FetchPolicy()
        self.inflight = Inflight(self.policy.bytes_max, self._pause, self._resume)
        self._spill_account = spill_account
        self._reactor = reactor
        self._fs = fs
        self._connect = connect
        self.check = check
        self._landed = landed
        self._failed = failed
        self._queue = FetchQueue(jitter, self.policy)
        self._jobs: dict[str, _Job] = {}
        self._connecting: dict[int, Deferred[Any]] = {}
        self._open: dict[int, FetchConnection] = {}
        self._todo: deque[Instruction] = deque()
        self._obeying = False
        self._stopping = False
        self._timer: Any = None
        self._pool = None if threads is not None else ThreadPool(0, self.policy.writers, name="segment-write")
        self._threads: Any = threads if threads is not None else self._pool
        if self._pool is not None:
            self._pool.start()

    # --- what the node calls ---

    def open_job(self, job: str, folder: str) -> None:
        """Segments of this job go into `folder`, which exists. Before the first `fetch` of the job."""
        quota = SpillQuota(self._fs, folder, account=self._spill_account)
        self._jobs[job] = _Job(FetchedSegments(self._fs, folder, quota))

    def fetch(self, wanted: Iterable[Wanted]) -> None:
        """What is already being fetched is reported once, and put off no longer if it is not wanted ahead any
        more. What landed before is fetched again."""
        some = list(wanted)
        for each in some:
            if each.job not in self._jobs:
                raise InternalError(f"a segment is to be fetched for job {each.job}, which is not open")
        self._obey(self._queue.add(some, self.clock()))

    def discard(self, job: str, attempt: str, partition: int) -> None:
        """Remove a segment that has landed, and that nobody reads any more."""
        found = self._jobs.get(job)
        if found is not None:
            self._in_thread(_remove, found.store, found.store.set_aside(attempt, partition))

    def holder_moved(self, holder: str) -> None:
        """It is somewhere else now: what failed where it was is no reason to wait."""
        self._obey(self._queue.moved(holder, self.clock()))

    def cancel(self, job: str, gone: Callable[[], None]) -> None:
        """Fetch nothing more for the job; `gone()` when no thread works in its folder any more."""
        found = self._jobs.pop(job, None)
        if found is None:
            gone()
            return
        self._obey(self._queue.cancel(job, self.clock()))
        found.gone = gone
        for landing in list(found.landings):
            landing.abandon()
        self._check_gone(found)

    def stop(self, gone: Callable[[], None]) -> None:
        """Cut every connection, report nothing more; `gone()` when no thread writes any more."""
        self._todo.clear()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        for connection in list(self._open.values()):
            connection.abort()
        for job in self._jobs.values():
            for landing in list(job.landings):
                landing.abandon()
        self._stopping = True
        for connecting in list(self._connecting.values()):
            connecting.cancel()

        def stop_threads() -> None:
            if self._pool is not None:
                self._pool.stop()
            self._reactor.callFromThread(gone)

        # stop() waits for the threads: it must not run on the reactor's thread
        threading.Thread(target=stop_threads, name="stop-segment-write").start()

    # --- what its connections call ---

    def begin(self, request: int, wanted: Wanted, size_bytes: int, others: list[Wanted]) -> Landing:
        """A segment's bytes are about to come, combined with those of `others`."""
        job = self._jobs[wanted.job]
        landing = Landing(
            job.store,
            wanted.attempt,
            wanted.partition,
            size_bytes,
            members=tuple(each.attempt for each in (wanted, *others)) if others else (),
            batch_bytes=self.policy.batch_bytes,
            inflight=self.inflight,
            in_thread=self._in_thread,
            from_thread=self._reactor.callFromThread,
            settled=lambda: self._settled(job, request, wanted, others, landing),
        )
        job.landings.add(landing)
        return landing

    def received(self, request: int, covers: tuple[int, ...]) -> None:
        self._obey(self._queue.received(request, self.clock(), covers))

    def later(self, request: int) -> None:
        self._obey(self._queue.later(request, self.clock()))

    def refused(self, request: int, error: CortexError) -> None:
        self._obey(self._queue.refused(request, error, self.clock()))

    def connection_lost(self, connection: FetchConnection, error: CortexError) -> None:
        if self._open.get(connection.number) is connection:  # not the slower of two addresses of one name
            del self._open[connection.number]
            self._obey(self._queue.disconnected(connection.number, error, self.clock()))

    # --- inside ---

    def _settled(
        self, job: _Job, request: int, wanted: Wanted, others: list[Wanted], landing: Landing
    ) -> None:
        job.landings.discard(landing)
        if job.gone is not None:
            self._check_gone(job)
        elif landing.abandoned or self._stopping:
            return
        elif landing.error is None:
            self._queue.landed(request)
            self._landed(wanted, landing.size_bytes, landing.rows, others)
        elif isinstance(landing.error, CorruptRun):
            self._obey(self._queue.damaged(request, landing.error, self.clock()))
        else:
            self._obey(self._queue.not_kept(request, landing.error))

    def _in_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        if not self._stopping:
            self._threads.callInThread(function, *arguments)

    def _check_gone(self, job: _Job) -> None:
        if not job.landings and job.gone is not None:
            gone, job.gone = job.gone, None
            gone()

    def _obey(self, instructions: list[Instruction]) -> None:
        """Carry out what the queue says, in its order even when a callback brings more."""
        if self._stopping:
            return
        self._todo.extend(instructions)
        if self._obeying:
            return
        self._obeying = True
        try:
            while self._todo:
                self._carry_out(self._todo.popleft())
        finally:
            self._obeying = False
        if self._queue.busy and (self._timer is None or not self._timer.active()):
            self._timer = self._reactor.callLater(TRANSFER_TICK_S, self._tick)

    def _carry_out(self, instruction: Instruction) -> None:
        if isinstance(instruction, GiveUp):
            self._failed(instruction.wanted, instruction.error)
        elif isinstance(instruction, Connect):
            self._start_connecting(instruction.connection, instruction.holder)
        elif isinstance(instruction, Ask):
            if instruction.connection in self._open:  # not lost since the queue decided
                self._open[instruction.connection].ask(instruction)
        elif isinstance(instruction, Close):
            connecting = self._connecting.pop(instruction.connection, None)
            if connecting is not None:
                connecting.cancel()
            connection = self._open.pop(instruction.connection, None)
            if connection is not None:
                connection.abort()

    def _start_connecting(self, number: int, holder: str) -> None:
        factory = Factory.forProtocol(lambda: FetchConnection(self, number, holder))
        factory.noisy = False
        connecting = maybeDeferred(lambda: self._connect(holder).connect(factory))
        self._connecting[number] = connecting
        timer = self._reactor.callLater(self.policy.connect_s_max, connecting.cancel)

        def made(connection: FetchConnection) -> None:
            timer.cancel()
            if self._connecting.pop(number, None) is None or self._stopping:
                connection.abort()
                return
            self._open[number] = connection
            self._obey(self._queue.connected(number, self.clock()))

        def not_made(failure: Failure) -> None:
            if timer.active():
                timer.cancel()
            if self._connecting.pop(number, None) is not None:
                error = Unreachable(f"no connection could be made: {failure.getErrorMessage()}")
                self._obey(self._queue.disconnected(number, error, self.clock()))

        connecting.addCallbacks(made, not_made)

    def _tick(self) -> None:
        now = self.clock()
        for connection in list(self._open.values()):
            if connection.waiting and now - connection.heard_at >= self.policy.stall_s:
                connection.abort()
                self.connection_lost(connection, stalled(self.policy.stall_s))
        self._obey(self._queue.tick(now))

    def _pause(self) -> None:
        for connection in self._open.values():
            connection.pause()
        for job in self._jobs.values():
            for landing in list(job.landings):  # each may hold less than a batch, and all together too much
                landing.write_on(now=True)

    def _resume(self) -> None:
        for connection in self._open.values():
            connection.resume()


def _remove(store: FetchedSegments, aside: str) -> None:
    """In a thread. What cannot be removed goes with the job's folder."""
    with contextlib.suppress(OSError):
        if aside:
            store.remove(aside)

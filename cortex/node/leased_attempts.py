"""The attempts that a node has and that have not ended: which wait, in what order, and who runs next.

An attempt that was leased is *waiting* for an executor, *bringing* its inputs from other nodes (it joins
those that wait when they are here), or *running*. One that was leased for a free slot goes before what only
waits for its turn. A slot stays with its job while something of the job waits for it; when its job has
nothing more here, it is kept for SLOT_KEPT_S, until the server has said who has it next.

Beside them the node's own work waits (`cortex.node.combine_desk`), which nobody has leased: it goes in the
place of its job's next map, else behind all others.

Each attempt is here from `lease` to its one `forget`. Nothing here tells the server. On the reactor's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from cortex.limits import SLOT_KEPT_S
from cortex.node.executor_pool import ExecutorPool
from cortex.node.memory_guard import MemoryGuard
from cortex.node.workers import Workers
from cortex.transfer.shuffle_agent import ShuffleAgent
from cortex.wire.messages import (
    CombineTask,
    MapTask,
    ReduceTask,
    RunTask,
    ServeTask,
    TaskProgress,
    TaskStats,
)

_Waiting = deque[tuple[str, RunTask]]


@dataclass(frozen=True, slots=True)
class _Leased:
    job: str
    version: int
    """Of a reduce: its task's."""
    with_slot: bool
    """It was leased for a free slot."""


class LeasedAttempts:
    """`workers` and `shuffle` hear of attempts that serve, and of inputs that nobody waits for any more.
    Above the cap of `memory` no attempt begins but the only one. `give_way(waiting, running, full)` is asked
    after each round: reduces of the jobs `waiting` have no executor, `running` are the attempts that have."""

    def __init__(
        self,
        reactor: Any,
        slots: int,
        memory: MemoryGuard,
        workers: Workers,
        shuffle: ShuffleAgent | None,
        give_way: Callable[[list[str], Iterable[str], bool], None],
    ) -> None:
        self._reactor = reactor
        self._slots = slots
        self._memory = memory
        self._workers = workers
        self._shuffle = shuffle
        self._give_way = give_way
        self._pool: ExecutorPool | None = None
        self._leased: dict[str, _Leased] = {}
        """In the order in which they were."""
        self._queue: _Waiting = deque()
        self._bringing: dict[str, tuple[str, RunTask]] = {}
        """Reduces whose inputs are on their way."""
        self._own: _Waiting = deque()
        """Of the node's own work what waits."""
        self._progress: dict[str, TaskProgress] = {}
        """Of those that run."""
        self._slots_kept = 0
        """Slots that jobs left, and that wait for the server's word who has them next."""
        self._giving_out = False
        self._stopped = False

    def start(self, pool: ExecutorPool) -> None:
        """There are executors now."""
        self._pool = pool

    def stop(self) -> None:
        """Nothing that waits begins any more."""
        self._stopped = True
        self._queue.clear()
        self._own.clear()
        self._bringing.clear()

    # --- to look at ---

    def __contains__(self, attempt: object) -> bool:
        return attempt in self._leased

    def version(self, attempt: str) -> int:
        """What the task of a reduce was made from; 0 for others, and for what is not here."""
        found = self._leased.get(attempt)
        return 0 if found is None else found.version

    def versions(self) -> dict[str, int]:
        return {attempt: leased.version for attempt, leased in self._leased.items()}

    def waiting(self) -> list[str]:
        """In the order in which they begin."""
        return [run.attempt for _, run in self._queue]

    def progress(self) -> tuple[TaskProgress, ...]:
        return tuple(self._progress.values())

    @property
    def queued(self) -> int:
        return len(self._queue) + len(self._bringing)

    @property
    def running(self) -> int:
        return max(0, len(self._leased) - self.queued)

    def idle_slots(self) -> int:
        """Slots that stand empty while inputs are on their way."""
        if self._pool is None or not self._bringing:
            return 0
        return max(0, self._slots - len(self._pool.running()) - len(self._queue))

    # --- from the server ---

    def slots_given(self, slots: int) -> None:
        """The server has leased for so many free slots."""
        self._slots_kept = max(0, self._slots_kept - slots)

    def lease(self, job: str, attempt: str, version: int, with_slot: bool) -> None:
        """Then `wait` or `bring`, and `room` when all of a lease are here."""
        self._leased[attempt] = _Leased(job, version, with_slot)

    def wait(self, job: str, run: RunTask) -> None:
        """An attempt that has a slot goes behind the last of those, others go to the end."""
        place = len(self._queue)
        if self._has_slot(run.attempt):
            waiting = (n for n, (_, each) in enumerate(self._queue) if not self._has_slot(each.attempt))
            place = next(waiting, place)
        self._queue.insert(place, (job, run))

    def bring(self, job: str, run: RunTask) -> None:
        """It waits for its inputs: `inputs_here` or `inputs_lost`."""
        self._bringing[run.attempt] = job, run

    def give_back(self, job: str, attempts: int) -> tuple[str, ...]:
        """Of what has not begun, so many, the last leased first: that whose inputs are still on their way,
        too."""
        waiting = {run.attempt for of, run in self._not_begun() if of == job}
        last_first = [attempt for attempt in reversed(self._leased) if attempt in waiting]
        return self._drop(last_first[:attempts])

    def give_back_all(self) -> tuple[str, ...]:
        """All that has not begun."""
        return self._drop([run.attempt for _, run in self._not_begun()])

    def revoke(self, attempts: Collection[str]) -> None:
        """Whether they wait or run."""
        assert self._pool is not None
        self._drop(attempts)
        for attempt in attempts:
            self._pool.revoke(attempt)

    # --- of jobs ---

    def drop_waiting(self, job: str) -> None:
        self._drop([run.attempt for of, run in self._queue if of == job])

    def drop_job(self, job: str) -> None:
        """Its executors are ended elsewhere."""
        self._drop([attempt for attempt, leased in self._leased.items() if leased.job == job])

    # --- of inputs ---

    def inputs_here(self, attempt: str) -> None:
        waiting = self._bringing.pop(attempt, None)
        if waiting is not None:
            self.wait(*waiting)
            self.room()

    def inputs_lost(self, attempt: str) -> str:
        """They cannot be had. Its job, where the attempt has failed by that; "" if nobody waits for them."""
        waiting = self._bringing.pop(attempt, None)
        return "" if waiting is None else waiting[0]

    # --- the node's own work ---

    def add_own(self, job: str, run: RunTask) -> None:
        self._own.append((job, run))
        self.room()

    def own_waiting(self, job: str) -> list[str]:
        return [run.attempt for of, run in self._own if of == job]

    def own_returned(self, job: str, run: RunTask) -> None:
        """By an executor that ended before it began."""
        self._own.appendleft((job, run))

    def drop_own(self, attempt: str) -> None:
        """Whether it waits or runs."""
        assert self._pool is not None
        self._own = deque(item for item in self._own if item[1].attempt != attempt)
        self._pool.revoke(attempt)

    # --- of executors ---

    def told(self, progress: TaskProgress) -> None:
        if progress.attempt in self._leased:
            self._progress[progress.attempt] = progress

    def returned(self, job: str, run: RunTask) -> None:
        """By an executor that ended before it began."""
        if run.attempt in self._leased:
            self._progress.pop(run.attempt, None)
            self._queue.appendleft((job, run))

    def ended(self, job: str, attempt: str) -> None:
        """An attempt of this job has. If only others wait here, its slot is not theirs yet."""
        self.forget(attempt)
        if self._queue and not any(each == job or self._has_slot(run.attempt) for each, run in self._queue):
            self._slots_kept += 1
            self._reactor.callLater(SLOT_KEPT_S, self._keep_no_slot)

    def forget(self, attempt: str) -> None:
        self._leased.pop(attempt, None)
        self._workers.ended(attempt)
        self._progress.pop(attempt, None)
        if self._bringing.pop(attempt, None) is not None and self._shuffle is not None:
            self._shuffle.forget(attempt)

    def room(self) -> None:
        """Give out waiting attempts while executors take them. First to idle executors of their jobs: a slot
        stays with its job while something waits for it. Then the pool is to have executors of other jobs."""
        if self._pool is None or self._giving_out or self._stopped:
            return
        self._giving_out = True
        try:
            self._give_out(self._pool)
        finally:
            self._giving_out = False

    # --- inside ---

    def _give_out(self, pool: ExecutorPool) -> None:
        self._own_in_turn()
        waiting: _Waiting = deque()
        running = len(pool.running())
        for bound in (True, False):
            refused: set[str] = set()
            waiting.clear()
            slots = self._slots - (0 if bound else self._slots_kept)
            while self._queue and running < slots and not (self._memory.paused and running):
                job, run = self._queue.popleft()
                if job not in refused and pool.run(job, run, bound):
                    running += 1
                    self._began(job, run)
                else:
                    refused.add(job)
                    waiting.append((job, run))
            self._queue.extendleft(reversed(waiting))
        if self._queue and not (self._memory.paused and running):
            pool.make_room([job for job, _ in self._queue], slots - running)
        self._own.extend(item for item in self._queue if _is_own(item[1]))
        self._queue = deque(item for item in self._queue if not _is_own(item[1]))
        reduces = [job for job, run in self._queue if isinstance(run.task, ReduceTask)]
        attempts = [each.run.attempt for each in pool.running() if each.run is not None]
        self._give_way(reduces, attempts, running >= self._slots)

    def _began(self, job: str, run: RunTask) -> None:
        if isinstance(run.task, ServeTask):
            self._workers.began(job, run.attempt)
        if not _is_own(run):
            self._progress[run.attempt] = TaskProgress(run.attempt, TaskStats())

    def _own_in_turn(self) -> None:
        """Put what is the node's own into the queue: in the place of its job's next map, else at the end."""
        for job, run in self._own:
            maps = (
                n for n, (of, each) in enumerate(self._queue) if of == job and isinstance(each.task, MapTask)
            )
            self._queue.insert(next(maps, len(self._queue)), (job, run))
        self._own.clear()

    def _keep_no_slot(self) -> None:
        self._slots_kept = 0
        self.room()

    def _has_slot(self, attempt: str) -> bool:
        found = self._leased.get(attempt)
        return found is not None and found.with_slot

    def _not_begun(self) -> list[tuple[str, RunTask]]:
        return [*self._queue, *self._bringing.values()]

    def _drop(self, attempts: Collection[str]) -> tuple[str, ...]:
        dropped = set(attempts)
        self._queue = deque(item for item in self._queue if item[1].attempt not in dropped)
        for attempt in attempts:
            self.forget(attempt)
        return tuple(attempts)


def _is_own(run: RunTask) -> bool:
    return isinstance(run.task, CombineTask)

"""`NestedCalls`: the link of a client that is used inside a call, by way of its executor.

It behaves as `compute_link.CallLink` does, towards maps and submitted calls. Results come in a thread that
must not run user code, so those of submitted calls wait for whoever waits for them, or for a thread of this
link where that does something else. The executor drops what is under way when the call ends.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence

from cortex.client.attachments import FiledData, Uses
from cortex.client.call_owners import CallNumbers, Came, Owner
from cortex.client.call_window import Fresh, Ledger
from cortex.client.cells import Results
from cortex.errors import Cancelled
from cortex.tasks.attached_files import map_attached
from cortex.tasks.cell_data import check_frame
from cortex.tasks.cell_pickles import Pickled
from cortex.tasks.nested_calls import NestedLink
from cortex.wire.messages import Attached, Cell, CellDone, FunctionCode

_FEW_SLOTS = 2


class NestedCalls:
    nested = True

    def __init__(self, link: NestedLink) -> None:
        self.job = link.job
        self.numbers = CallNumbers(slots=max(_FEW_SLOTS, os.cpu_count() or 1))
        self._link = link
        self._lock = threading.Lock()
        self._store = FiledData(link.staging_dir)
        self._uses = Uses(self._store)
        self._ledger: Ledger[Owner] = Ledger(link.next_cell)
        self._unwanted: deque[Owner] = deque()
        self._names: dict[str, str] = {}
        self._came: deque[tuple[Owner, Came]] = deque()
        self._news = threading.Semaphore(0)
        self._waiters = 0
        """Threads that hand out what comes, as long as they wait."""
        self._thread: threading.Thread | None = None

    @property
    def slots(self) -> int:
        """It is not told how many executors there are."""
        return self.numbers.slots

    def check(self) -> None:
        if not self._link.usable:
            raise Cancelled(
                "the call that this client was used in has ended", cure="wait for its calls inside of it"
            )

    def join(self, owner: Owner) -> None:
        self.check()

    def number(self) -> int:
        return self._link.next_cell()

    def attach(self, pickled: Pickled) -> Attached | None:
        if self._link.shares_files:
            return self._store.put(pickled)
        check_frame(pickled, "argument")
        return None

    def function(self, code: FunctionCode, holds: int = 1) -> None:
        self._names[code.function] = code.name
        self._link.send_function(code)

    def release(self, function: str) -> None:
        """It stays known until the executor ends."""

    def send(self, owner: Owner, cells: Sequence[Cell], retries: int = 0, coming: int | None = 0) -> None:
        self.check()
        self._drop_unwanted()
        with self._lock:
            for cell in cells:
                self._uses.begin(cell)
                self._ledger.add(cell, owner, retries)
                self.numbers.sent += cell.end - cell.start
        self._link.send_cells(cells, self._done)

    def call_by_call(self, owner: Owner, results: Results, start: int, stop: int, root: int) -> None:
        again = Fresh(owner, root, ((start, stop),), results.cell, 0, True)
        with self._lock:
            cells = [self._ledger.again(again, call, call + 1, 0) for call in range(start, stop)]
        self._link.send_cells(cells, self._done)

    def leave(self, owner: Owner) -> None:
        self._unwanted.append(owner)
        self._drop_unwanted()

    def cancel(self) -> None:
        """The executor does, when the call ends."""

    def may_wait(self) -> None:
        """Anybody may: who waits hands results out meanwhile."""

    def wait(self, event: threading.Event, timeout_s: float | None = None) -> bool:
        def until() -> bool:
            self._hand_out()
            return event.is_set()

        self._waiters += 1
        try:
            return until() or self._link.wait(until, timeout_s)
        finally:
            self._waiters -= 1
            if self._came:
                self._call_thread()

    # --- inside ---

    def _drop_unwanted(self) -> None:
        # Where garbage is collected this thread may have the lock: then its holder looks again.
        if not self._unwanted or not self._lock.acquire(blocking=False):
            return
        try:
            dropped: list[Cell] = []
            while self._unwanted:
                dropped += self._ledger.drop(self._unwanted.popleft())
            for cell in dropped:
                self._uses.end(cell)
        finally:
            self._lock.release()
        if self._link.usable:
            self._link.drop(cell.cell for cell in dropped)

    def _done(self, done: CellDone) -> None:
        """In the thread that reads the executor's link."""
        parts: Sequence[memoryview] = ()
        if done.attached is not None:
            path = os.path.join(self._link.staging_dir, os.path.basename(done.attached.name))
            try:
                parts = map_attached(path, done.attached.sizes, unlink=True)
            except OSError:  # it came twice, or is lost with its node
                self._run_again(done)
                return
        with self._lock:
            settled = self._ledger.settle(done)
            if settled is None:
                return
            for cell in settled.again:
                self._uses.begin(cell)
            fresh = settled.fresh
            if fresh.complete:
                self._uses.end(fresh.cell)
            self.numbers.done += sum(stop - start for start, stop in settled.ranges)
            self.numbers.failed += settled.failures(done)
        results = Results(done, fresh.cell, self._names[fresh.cell.function], parts)
        came = [Came(fresh.root, *each, results) for each in settled.ranges]
        if fresh.owner.reads_at_once:
            self._came.extend((fresh.owner, each) for each in came)
            if not self._waiters:
                self._call_thread()
        else:
            fresh.owner.came(came)
        if settled.again:
            self._link.send_cells(settled.again, self._done)

    def _run_again(self, done: CellDone) -> None:
        """Those of its calls that are not done."""
        with self._lock:
            fresh = self._ledger.came(done)
            if fresh is None:
                return
            cells = [self._ledger.again(fresh, *each, fresh.retries) for each in fresh.ranges]
            for cell in cells:
                self._uses.begin(cell)
            if fresh.complete:
                self._uses.end(fresh.cell)
        if cells:
            self._link.send_cells(cells, self._done)

    def _hand_out(self) -> None:
        handed = False
        while True:
            try:
                owner, came = self._came.popleft()
            except IndexError:
                break
            owner.came([came])
            handed = True
        if handed:
            self._link.poke()  # others may wait for it

    def _call_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._hand_out_all, name="cortex nested", daemon=True)
            self._thread.start()
        self._news.release()

    def _hand_out_all(self) -> None:
        while True:
            self._news.acquire()
            self._hand_out()

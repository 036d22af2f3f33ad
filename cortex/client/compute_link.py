"""`CallLink`: a client's compute job, and the one connection that all its calls go over.

Threads: callers send, one thread of the link receives, and hands results to their owners (a map, the
submitted calls), which must not block in it. The link holds every cell until its results are here. When the
server of a cluster is gone the receiving thread dials it again, attaches to the job, and sends all functions
and unfinished cells once more: a result that comes twice counts once (`call_window.Ledger`).

An error that ends the job ends the link: its owners hear of it, and every call of it raises it from then on.
`close` ends the job in order. A process that was forked off must not use its parent's link.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from cortex.client.attachments import DataStore, FiledData, MemoryData, Uses
from cortex.client.bundle_packing import PackedBundle
from cortex.client.call_owners import CallNumbers, Came, Connection, Owner
from cortex.client.call_window import Fresh, Ledger
from cortex.client.cells import Results
from cortex.client.input_sender import InputSender
from cortex.client.part_fetches import PartFetches
from cortex.client.submission import submit
from cortex.errors import (
    Cancelled,
    CortexError,
    InternalError,
    OutputFailed,
    ProtocolError,
    ServerDied,
    Unreachable,
    UsageError,
    from_report,
)
from cortex.held_signals import held_signals
from cortex.limits import CALLS_END_S, CANCEL_S_MAX, FUNCTIONS_SENT_MAX, SEND_BYTES, SEND_HELD_S
from cortex.tasks.attached_files import map_attached
from cortex.tasks.cell_pickles import Pickled
from cortex.wire.messages import (
    Attached,
    AttachJob,
    CallPrinted,
    CancelJob,
    Cell,
    CellDone,
    CellsDone,
    CellsTaken,
    DropCells,
    EndCalls,
    ForgetFunctions,
    FunctionCode,
    JobAccepted,
    JobDone,
    JobFailed,
    JobForgotten,
    JobProgress,
    JobReceived,
    Message,
    PartBytes,
    PartLost,
    Piece,
    ReadInput,
    SendCells,
    SubmitJob,
)

if TYPE_CHECKING:
    from cortex.client.client import LocalSession
    from cortex.client.cluster_session import ClusterSession

_GONE = (OSError, Unreachable, ServerDied)


class CallLink:
    """`request` has the job's id; its blobs are those of `packed`. Opening dials, and submits the job: raises
    as the session does, and what the server refuses the job with."""

    nested = False

    def __init__(
        self,
        session: LocalSession | ClusterSession,
        request: SubmitJob,
        packed: PackedBundle,
        store: FiledData | MemoryData,
        on_printed: Callable[[CallPrinted, str], None],
    ) -> None:
        self.job = request.job
        self.store: DataStore = store
        self.numbers = CallNumbers()
        self._session = session
        self._on_printed = on_printed
        self._process = os.getpid()
        self._lock = threading.Lock()
        """Of everything but the connection's sending."""
        self._send_lock = threading.Lock()
        """Held while messages go out that belong together. Taken before `_lock`, never inside it."""
        self._saying = threading.local()
        """`now`: this thread is sending."""
        self._ledger: Ledger[Owner] = Ledger()
        self._uses = Uses(store)
        self._owners: set[Owner] = set()
        self._coming: dict[Owner, int | None] = {}
        """Calls that owners will send."""
        self._unwanted: deque[Owner] = deque()
        """Whose cells the receiving thread is to drop: their owner could not wait for a lock."""
        self._functions: dict[str, FunctionCode] = {}
        """That were sent, and not forgotten since."""
        self._holds: Counter[str] = Counter()
        self._unheld: dict[str, None] = {}
        """Those that nobody holds, the last used last."""
        self._error: CortexError | None = None
        self._closing = False
        self._sender: InputSender | None = None
        self._fetches = PartFetches(self.job, store.folder, self._say)
        self._connection = self._submit(request, packed)
        self.numbers.slots = max(1, self._connection.hello.slots)
        self._begin_sender()
        self._thread = threading.Thread(target=self._receive_all, name="cortex calls", daemon=True)
        self._thread.start()

    @property
    def slots(self) -> int:
        return self.numbers.slots

    # --- callers ---

    def check(self) -> None:
        """Raises the error that has ended the link, or UsageError in a process that was forked off."""
        if self._error is not None:
            raise self._error
        if os.getpid() != self._process:
            raise UsageError(
                "this client was opened in the process that this one was forked from",
                cure="make a cortex.Client here",
            )

    def join(self, owner: Owner) -> None:
        """It is told of the link's end, until it leaves."""
        self.check()
        with self._lock:
            self.check()
            self._owners.add(owner)

    def number(self) -> int:
        """Of a new cell."""
        with self._lock:
            return self._ledger.number()

    def attach(self, pickled: Pickled) -> Attached | None:
        return self.store.put(pickled)

    def function(self, code: FunctionCode, holds: int = 1) -> None:
        """Before cells that name it. It is not forgotten before so many `release`."""
        with self._lock:
            self._holds[code.function] += holds
            self._unheld.pop(code.function, None)
            if code.function in self._functions:
                return
        try:
            with held_signals(SEND_HELD_S), self._send_lock:
                with self._lock:
                    self.check()
                    if code.function in self._functions:
                        return
                    forgotten = self._forget_some()
                    self._functions[code.function] = code
                if forgotten:
                    self._say(ForgetFunctions(self.job, forgotten))
                try:
                    self._say(code)
                except BaseException:  # it is too large, most likely
                    del self._functions[code.function]
                    raise
        except BaseException:
            for _ in range(holds):
                self.release(code.function)
            raise

    def release(self, function: str) -> None:
        """No cell of whoever held it names it any more."""
        with self._lock:
            self._holds[function] -= 1
            if not self._holds[function]:
                del self._holds[function]
                if function in self._functions:
                    self._unheld[function] = None

    def _forget_some(self) -> tuple[str, ...]:
        """Of many functions, those that were not used for the longest. Holds the lock."""
        if len(self._functions) < FUNCTIONS_SENT_MAX:
            return ()
        oldest = tuple(islice(self._unheld, FUNCTIONS_SENT_MAX // 10))
        for function in oldest:
            del self._unheld[function], self._functions[function]
        return oldest

    def send(self, owner: Owner, cells: Sequence[Cell], retries: int = 0, coming: int | None = 0) -> None:
        """Have these run; `coming` calls of this owner will follow (None: it is not known how many). What is
        lost on the way goes again by itself. Raises as `check`."""
        with held_signals(SEND_HELD_S):
            with self._lock:
                self.check()
                self._coming[owner] = coming
                for cell in cells:
                    self._uses.begin(cell)
                    self._ledger.add(cell, owner, retries)
                    self.numbers.sent += cell.end - cell.start
            self._send_cells(cells)

    def call_by_call(self, owner: Owner, results: Results, start: int, stop: int, root: int) -> None:
        """These were not to be read together: have each call run once more, for a result of its own."""
        again = Fresh(owner, root, ((start, stop),), results.cell, 0, True)
        with self._lock:
            self.check()
            cells = [self._ledger.again(again, call, call + 1, 0) for call in range(start, stop)]
            self.numbers.done -= stop - start
        self._send_cells(cells)

    def wait(self, event: threading.Event, timeout_s: float | None = None) -> bool:
        """Until `event` is set, by an owner that hears of something. Raises as `may_wait`."""
        self.may_wait()
        return event.wait(timeout_s)

    def may_wait(self) -> None:
        """Raises UsageError in the receiving thread, which alone could bring what is waited for."""
        if threading.get_ident() == self._thread.ident:
            raise UsageError(
                "a callback of a call waits for another call, whose result it keeps from coming",
                cure="wait in a thread of your own, or give that call a callback too",
            )

    def leave(self, owner: Owner) -> None:
        """What it has under way is not wanted any more. Does not wait, as it may be called wherever Python
        collects garbage."""
        self._unwanted.append(owner)
        self._drop_unwanted()

    def cancel(self) -> None:
        """End the job without its results: whoever waits for them hears of it now."""
        self._say(CancelJob(self.job))
        self._fail(Cancelled("this client was closed", cure="make another cortex.Client"))

    def close(self) -> None:
        """End the job when what is under way is done. Does nothing a second time, or in a forked process."""
        if os.getpid() != self._process:
            return
        for owner in list(self._owners):
            owner.finish()
        with self._lock:
            first, self._closing = not self._closing, True
            owners = list(self._owners)
        if first and self._error is None:
            for owner in owners:
                self.leave(owner)
                owner.failed(Cancelled("this client was closed", cure="read all results before"))
            self._say(EndCalls(self.job))
        if threading.current_thread() is not self._thread:
            self._thread.join(CALLS_END_S)
            if self._thread.is_alive():  # calls whose results nobody wants, or a server that is away
                self._say(CancelJob(self.job))
                self._thread.join(CANCEL_S_MAX)
        self._connection.close()
        self._end_sender()
        self._fetches.close()

    # --- sending ---

    def _say(self, message: Message) -> None:
        """A connection that has ended is the receiving thread's to notice, and to say why."""
        self._saying.now = True
        try:
            self._connection.send(message)
        except _GONE:
            pass
        except ProtocolError:  # too large: nothing of it was sent
            raise
        except BaseException:  # a message that is sent in part leaves a link that is of no more use
            self._connection.close()
            raise
        finally:
            self._saying.now = False

    def _send_cells(self, cells: Sequence[Cell]) -> None:
        batch: list[Cell] = []
        size_bytes = 0
        known = list(self._coming.values())
        coming = -1 if None in known else sum(each or 0 for each in known)
        with self._send_lock:
            for cell in cells:
                batch.append(cell)
                size_bytes += len(cell.data) + sum(map(len, cell.buffers))
                if size_bytes >= SEND_BYTES:
                    self._say(SendCells(self.job, tuple(batch), coming))
                    batch, size_bytes = [], 0
            if batch:
                self._say(SendCells(self.job, tuple(batch), coming))

    def _drop_unwanted(self) -> None:
        # Its holder is at work, which may be this very thread, where garbage is collected in between: the
        # receiving thread looks again.
        if getattr(self._saying, "now", False) or not self._lock.acquire(blocking=False):
            return
        try:
            dropped: list[Cell] = []
            while self._unwanted:
                owner = self._unwanted.popleft()
                self._owners.discard(owner)
                self._coming.pop(owner, None)
                dropped += self._ledger.drop(owner)
            for cell in dropped:
                self._uses.end(cell)
        finally:
            self._lock.release()
        if dropped and self._error is None:
            self._say(DropCells(self.job, tuple(cell.cell for cell in dropped)))

    # --- opening, and opening again ---

    def _submit(self, request: SubmitJob, packed: PackedBundle) -> Connection:
        connection: Connection = self._session.connect()
        try:
            return submit(connection, request, packed, self._come_back)
        except BaseException:
            connection.close()
            raise

    def _come_back(self, begin: Callable[[Any], None], cause: CortexError) -> Connection:
        from cortex.client.cluster_session import ClusterSession

        if not isinstance(self._session, ClusterSession):
            raise cause
        return self._session.come_back(begin, cause)

    def _reconnect(self, cause: CortexError) -> None:
        def attach(connection: Any) -> None:
            connection.ask(AttachJob(self.job), JobAccepted)

        self._end_sender()
        self._connection.close()
        connection = self._come_back(attach, cause)
        with self._send_lock:
            with self._lock:
                self._connection = connection
                functions = list(self._functions.values())
                # those of owners that have left may name functions that are forgotten
                cells = [each for each in self._ledger.unfinished() if each.function in self._functions]
                closing = self._closing
            for code in functions:
                self._say(code)
        self._begin_sender()
        self._send_cells(cells)
        self._fetches.begin_again()
        if closing:
            self._say(EndCalls(self.job))

    def _begin_sender(self) -> None:
        if isinstance(self.store, MemoryData):
            self._sender = InputSender(self.job, self.store, self._connection.send)
            self._sender.__enter__()

    def _end_sender(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.__exit__()

    # --- receiving ---

    def _receive_all(self) -> None:
        try:
            while True:
                try:
                    message = self._connection.receive(_LOOK_S)
                except TimeoutError:
                    self._drop_unwanted()
                    continue
                except Unreachable as error:
                    self._reconnect(error)
                    continue
                if isinstance(message, JobDone):
                    self._say(JobReceived(self.job))
                    self._forgotten()
                    self._fail(Cancelled("this client was closed", cure="make another cortex.Client"))
                    return
                self._take(message)
                if self._unwanted:
                    self._drop_unwanted()
        except CortexError as error:
            self._fail(error)
        except BaseException as error:  # whoever waits for results would wait for ever
            if self._closing and isinstance(error, OSError):
                self._fail(Cancelled("this client was closed"))
                return
            self._fail(InternalError(f"the client's receiving thread failed: {error!r}"))
            raise

    def _forgotten(self) -> None:
        """Wait a moment for the server's word that it has heard us: a connection that is closed at once may
        lose what it has not sent."""
        if self._session.shares_files:
            return
        deadline = time.monotonic() + CANCEL_S_MAX
        with contextlib.suppress(CortexError, OSError):
            while time.monotonic() < deadline:
                message = self._connection.receive(max(0.0, deadline - time.monotonic()))
                if isinstance(message, JobForgotten):
                    return

    def _take(self, message: object) -> None:
        if isinstance(message, CellsDone):
            self._cells_done(message)
        elif isinstance(message, JobProgress):
            self.numbers.nobody = message.slots == 0
        elif isinstance(message, CallPrinted):
            self._on_printed(message, message.name)
        elif isinstance(message, ReadInput):
            if self._sender is not None:
                self._sender.ask(message)
        elif isinstance(message, PartBytes):
            arrived = self._fetches.took(message)
            if arrived is not None:
                done, path = arrived
                self._arrived([(done, self._mapped(done, path))])
        elif isinstance(message, PartLost):
            lost = self._fetches.lost(message)
            if lost is not None:
                self._run_again(lost)
        elif isinstance(message, JobFailed):
            error = from_report(message.error)
            error.job_report = message.report  # type: ignore[attr-defined]
            raise error

    def _cells_done(self, message: CellsDone) -> None:
        self.numbers.slots = max(1, message.slots)
        arrived: list[tuple[CellDone, Sequence[memoryview]]] = []
        for done in message.results:
            if done.attached is None:
                arrived.append((done, ()))
            elif self._session.shares_files:
                path = os.path.join(self.store.folder, os.path.basename(done.attached.name))
                try:
                    arrived.append((done, self._mapped(done, path)))
                except FileNotFoundError:
                    self._run_again(done)  # a result that comes twice, most likely
            else:
                self._fetches.fetch(done)
        self._arrived(arrived)

    def _mapped(self, done: CellDone, path: str) -> Sequence[memoryview]:
        """The parts of a result in a file, which goes."""
        assert done.attached is not None
        try:
            return map_attached(path, done.attached.sizes, unlink=True)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OutputFailed(
                f"a result cannot be read from {path}: {error.strerror or error}",
                cure="this machine's memory or its limit of mapped files may be used up",
            ) from error

    def _arrived(self, arrived: Sequence[tuple[CellDone, Sequence[memoryview]]]) -> None:
        """Results are here, with what was attached to them."""
        for_owner: defaultdict[Owner, list[Came]] = defaultdict(list)
        again: list[Cell] = []
        with self._lock:
            for done, parts in arrived:
                settled = self._ledger.settle(done)
                if settled is None:
                    continue
                fresh = settled.fresh
                for cell in settled.again:
                    again.append(cell)
                    self._uses.begin(cell)
                if fresh.complete:
                    self._uses.end(fresh.cell)
                self.numbers.done += sum(stop - start for start, stop in settled.ranges)
                self.numbers.failed += settled.failures(done)
                code = self._functions.get(fresh.cell.function)
                name = code.name if code is not None else ""  # its owner has left, and is not told
                results = Results(done, fresh.cell, name, parts)
                for_owner[fresh.owner] += [Came(fresh.root, *each, results) for each in settled.ranges]
        for owner, results_of in for_owner.items():
            owner.came(results_of)
        if again:
            self._send_cells(again)
        taken = [each for each, parts in arrived if parts or not self._session.shares_files]
        if taken:
            pieces = tuple(Piece("", each.cell, each.start, each.stop) for each in taken)
            self._say(CellsTaken(self.job, pieces))

    def _run_again(self, done: CellDone) -> None:
        """The result's file is lost, with its node: its calls run once more, but for those that are done."""
        with self._lock:
            fresh = self._ledger.came(done)
            if fresh is None:
                return
            cells = [self._ledger.again(fresh, start, stop, fresh.retries) for start, stop in fresh.ranges]
            for cell in cells:
                self._uses.begin(cell)
            if fresh.complete:
                self._uses.end(fresh.cell)
        self._send_cells(cells)

    def _fail(self, error: CortexError) -> None:
        with self._lock:
            if self._error is None:
                self._error = error
            owners, self._owners = self._owners, set()
        for owner in owners:
            owner.failed(error)


_LOOK_S = 1.0  # how often the receiving thread looks for what it is to drop

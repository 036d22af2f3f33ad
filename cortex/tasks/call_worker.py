"""A worker: runs the cells that come on its executor's link, one after the other, until it is to end.

The thread that runs calls reads the link itself while it has none in hand, and while a call waits for calls
that it has submitted; so a single call passes from thread to thread nowhere. Meanwhile `CallWatch`, the other
thread, reads it for a call that takes long. What both touch is under `lock`; user code never runs under it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from cortex.errors import CortexError, InternalError, UserCodeError, UserMemoryError
from cortex.limits import (
    CALL_ERRORS_BYTES,
    CELL_INLINE_BYTES_MAX,
    FUNCTIONS_LOADED_MAX,
    KIB,
    NESTED_AGAIN_S,
    NESTED_DEPTH_MAX,
    NESTED_FRAMES,
    NESTED_WAIT_S,
    WORKER_MEMORY_S,
)
from cortex.process_memory import peak_anonymous_bytes
from cortex.tasks import nested_calls
from cortex.tasks.call_failures import call_failed, cannot_arrive, no_memory, took_too_long, waited_for
from cortex.tasks.call_watch import CallWatch
from cortex.tasks.cell_data import CellData
from cortex.tasks.cell_run import CellRun, Outcomes
from cortex.tasks.memory_limits import HeldMemory, MemoryLimit, give_back_memory, is_memory_error
from cortex.tasks.printed_calls import PrintedCalls
from cortex.tasks.python_frames import more_frames
from cortex.tasks.travelling_function import load_function
from cortex.wire.framing import BlockingConnection
from cortex.wire.messages import (
    CellDone,
    CellsGivenBack,
    CellsRun,
    ChildrenAwaited,
    ChildrenDone,
    DropCells,
    EndServing,
    ForgetFunctions,
    FromWorker,
    FunctionCode,
    OpenJob,
    Piece,
    Retiring,
    RunCells,
    ServeResult,
    Stop,
    TaskFinished,
    ToExecutor,
)
from cortex.wire.messages.compute import Cell

Function = Callable[..., Any]


class CallWorker:
    """Serves one attempt: `serve`, once."""

    def __init__(
        self,
        open_job: OpenJob,
        link: BlockingConnection[ToExecutor],
        attempt: str,
        held_memory: HeldMemory,
        memory_limit: MemoryLimit,
    ) -> None:
        self._job = open_job
        self._link = link
        self._attempt = attempt
        self._held_memory = held_memory
        self._memory_limit = memory_limit
        self._memory_due = 0.0  # at once: what the first cell leaves is what later ones are compared with
        self._started_at = time.monotonic()
        self._codes: dict[str, FunctionCode] = {}
        self._functions: dict[str, Function | CortexError] = {}
        self._pending: deque[Cell] = deque()
        self._offered: deque[Cell] = deque()
        """To be run while the call in hand waits for children."""
        self._runs: list[CellRun] = []
        """In hand; each but the last waits for calls that it has submitted."""
        self._reads = True
        """The thread that runs calls reads the link, or is about to."""
        self._ending = False
        self._calls = 0
        self._failed_calls = 0
        self.lock = threading.RLock()
        self.retires = False
        """The executor is to end with this attempt."""
        self._thread = threading.get_ident()
        self._process = os.getpid()
        self._data = CellData(open_job, attempt, memory_limit)
        self._awaits = 0
        """What the server was told last of that: `ChildrenAwaited.first`; 0: none waits."""
        self._waits = 0
        """How many of the calls in hand wait for calls they have submitted."""
        self._woken, self._wakes = os.pipe()
        os.set_blocking(self._wakes, False)
        self._poll = select.poll()
        self._poll.register(link.fileno(), select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)
        self._nested = nested_calls.NestedLink(open_job, attempt, self)
        self._arrived: deque[CellDone] = deque()
        self._printed = PrintedCalls(open_job.job, self._whose, self.say)
        self._watch = CallWatch(self, link.fileno())

    @property
    def calls(self) -> int:
        return self._calls

    def serve(self) -> ServeResult:
        """Until it is told to end, or has to. BrokenPipeError: the node is gone."""
        self._printed.begin()
        nested_calls.enter(self._nested)
        self._watch.start()
        try:
            self.say(CellsRun(self._attempt, ()))
            while not self._ending:
                self._take_waiting()
                if self._ending:
                    break
                if self._pending:
                    self._run_cell(self._pending.popleft())
                    self._check_memory()
                else:
                    self._take(self._received(None))
            self._take_waiting()
            with self.lock:
                self._give_back(self._pending)
            return ServeResult(self._calls, self._failed_calls)
        finally:
            self._watch.end()
            nested_calls.enter(None)
            self._printed.end()
            self._data.close()
            os.close(self._woken)
            os.close(self._wakes)

    def say(self, message: FromWorker) -> None:
        if isinstance(message, FunctionCode):  # its node takes it for known here, and does not send it back
            self._codes[message.function] = message
        self._link.send(message)

    def run_in_hand(self) -> CellRun | None:
        return self._runs[-1] if self._runs else None

    # --- what comes ---

    def _received(self, timeout: float | None) -> ToExecutor:
        message = self._link.receive(timeout)
        if message is None:
            raise BrokenPipeError("the node has closed the link")
        return message

    def _take_waiting(self) -> None:
        """What has come by now."""
        while True:
            try:
                message = self._received(0)
            except TimeoutError:
                return
            self._take(message)

    def _take(self, message: ToExecutor) -> None:
        """In the thread that runs calls."""
        self._sort(message)
        self._tell_arrived()

    def _sort(self, message: ToExecutor) -> None:
        if isinstance(message, RunCells):
            if message.attempt == self._attempt:
                self._sort_cells(message)
        elif isinstance(message, FunctionCode):
            self._codes[message.function] = message
        elif isinstance(message, ForgetFunctions):
            for function in message.functions:
                self._codes.pop(function, None)
                self._functions.pop(function, None)
        elif isinstance(message, DropCells):
            self._drop(message)
        elif isinstance(message, ChildrenDone):
            self._arrived.extend(message.results)
        elif isinstance(message, EndServing | Stop):
            self._ending = True
            self.retires |= isinstance(message, Stop)
        else:
            raise InternalError(f"a {type(message).__name__} came to an executor that serves calls")

    def _sort_cells(self, message: RunCells) -> None:
        if not message.awaited:
            self._pending.extend(message.cells)
        elif self._runs and self._runs[-1].first_child == message.awaited:
            self._offered.extend(message.cells)
        else:  # of a wait that is over: in another call they would wait for what is around them
            self._give_back(deque(message.cells))

    def _tell_arrived(self) -> None:
        """Without the lock: whoever has submitted these has locks of its own."""
        if self._arrived:
            arrived = [self._arrived.popleft() for _ in range(len(self._arrived))]
            self._nested.arrived(arrived)

    def _drop(self, message: DropCells) -> None:
        with self.lock:
            unwanted = frozenset(message.cells)
            for cells in (self._pending, self._offered):
                dropped = [c for c in cells if c.source == message.source and c.cell in unwanted]
                for cell in dropped:
                    cells.remove(cell)
                self._give_back(deque(dropped))
            for run in self._runs:
                if run.cell.source == message.source and run.cell.cell in unwanted:
                    self._give_back_rest(run)

    # --- giving back ---

    def _give_back(self, cells: deque[Cell]) -> None:
        pieces = tuple(Piece(each.source, each.cell, each.start, each.end) for each in cells)
        cells.clear()
        if pieces:
            self.say(CellsGivenBack(self._attempt, pieces))

    def _give_back_rest(self, run: CellRun) -> None:
        piece = run.give_back()
        if piece is not None:
            self.say(CellsGivenBack(self._attempt, (piece,)))

    # --- calls ---

    def _run_cell(self, cell: Cell) -> None:
        code = self._codes.get(cell.function)
        run = CellRun(cell, code.name if code is not None else cell.function, self._nested.next_number)
        self._runs.append(run)
        self._reads = False
        self._watch.begun()
        function = self._opened(run, code)
        while function is not None:
            try:
                run.run(function)
                break
            except BaseException as error:
                self._raised(run, error)
        if os.getpid() != self._process:
            os._exit(1)  # forked by a call, which it has come out of: the link is its parent's
        self._nested.end_of(run)
        with self.lock:
            self._give_back(self._offered)
            outcomes = run.take_done(ended=True)
        # not under the lock: they may be large, and the watch thread gives back what waits for that
        results = self._results(run, outcomes) if outcomes is not None else []
        with self.lock:
            self._runs.pop()
            self._reads = True
        self._tell(results)

    def _opened(self, run: CellRun, code: FunctionCode | None) -> Function | None:
        """The function, and the run with its arguments; None: neither could be had, and its calls fail."""
        cell = run.cell
        try:
            function = self._function(cell, code)
            entries = self._data.entries(cell)
            if len(entries) != cell.end - cell.start:
                raise InternalError(f"a cell of {cell.count} calls came with {len(entries)} arguments")
            run.load(entries)
            return function
        except BaseException as error:
            known = isinstance(error, CortexError)
            if is_memory_error(error):
                failed: BaseException = self._out_of_memory(run.name, error)
            else:
                failed = (
                    error if known else cannot_arrive(error, run.name, cell.first + cell.start, cell.count)
                )
            error.__traceback__ = None
        for call in range(cell.start, cell.end):
            with self.lock:
                run.failed(call_failed(failed, call, cell.first + call, run.name))
                if run.failed_bytes > CALL_ERRORS_BYTES:
                    self._tell_done(run)
        return None

    def _function(self, cell: Cell, code: FunctionCode | None) -> Function:
        found = self._functions.get(cell.function)
        if found is None:
            if code is None:
                raise InternalError(f"a cell came before its function {cell.function}")
            try:
                found = load_function(code.code, code.name, self._job.work_dir)
            except UserCodeError as error:  # the same for every cell
                error.__traceback__ = error.__cause__ = error.__context__ = None
                found = error
            if len(self._functions) >= FUNCTIONS_LOADED_MAX:
                del self._functions[next(iter(self._functions))]  # it is loaded again if it comes again
            self._functions[cell.function] = found
        if isinstance(found, CortexError):
            raise found
        return found

    def _raised(self, run: CellRun, error: BaseException) -> None:
        call = run.call
        number = run.cell.first + call
        if is_memory_error(error):
            failed = call_failed(self._out_of_memory(run.name, error), call, number, run.name)
        else:
            failed = call_failed(error, call, number, run.name)
        with self.lock:
            run.failed(failed)
            if run.failed_bytes > CALL_ERRORS_BYTES:
                self._tell_done(run)

    def _out_of_memory(self, name: str, error: BaseException) -> UserMemoryError:
        """The named error; what the failed call held is given back."""
        self._memory_limit.lift()
        named = no_memory(error, self._job.memory_bytes, name)
        error.__traceback__ = error.__cause__ = error.__context__ = None
        gc.collect()
        give_back_memory()
        self._memory_limit.set()
        return named

    # --- results ---

    def _tell_done(self, run: CellRun) -> None:
        """What is done of it by now, and was not told. Under the lock."""
        outcomes = run.take_done()
        if outcomes is not None:
            self._tell(self._results(run, outcomes))

    def _results(self, run: CellRun, outcomes: Outcomes) -> list[CellDone]:
        self._printed.tell()
        return self._data.results(
            run.cell, run.name, outcomes, lambda error: self._out_of_memory(run.name, error)
        )

    def _tell(self, results: list[CellDone]) -> None:
        held: list[CellDone] = []
        held_bytes = 0
        for each in results:
            size_bytes = len(each.data) + sum(map(len, each.buffers))
            if held and held_bytes + size_bytes > CELL_INLINE_BYTES_MAX:
                self.say(CellsRun(self._attempt, tuple(held)))
                held, held_bytes = [], 0
            held.append(each)
            held_bytes += size_bytes
        if held:
            self.say(CellsRun(self._attempt, tuple(held)))
        with self.lock:
            self._calls += sum(each.stop - each.start for each in results)
            self._failed_calls += sum(len(each.failed) for each in results)

    def _whose(self) -> tuple[str, int, bool, str] | None:
        run = self.run_in_hand()
        if run is None:
            return None
        return run.cell.function, run.cell.first + run.call, bool(run.cell.source), run.name

    def _check_memory(self) -> None:
        now = time.monotonic()
        if now < self._memory_due:
            return
        self._memory_due = now + WORKER_MEMORY_S
        if self._held_memory.is_much():
            give_back_memory()
        if self._held_memory.does_not_come_back(ServeResult):
            self.retires = self._ending = True

    # --- calls that wait for calls ---

    def check_depth(self) -> None:
        if len(self._runs) > NESTED_DEPTH_MAX:
            raise UserCodeError(
                f"calls wait for calls more than {NESTED_DEPTH_MAX} deep in one executor",
                cure="submit what is independent of each other at once, or return what is to be called next",
            )

    def drop_own(self, cells: Iterable[int]) -> None:
        self._drop(DropCells(self._job.job, tuple(cells), self._attempt))

    def wait_in_call(self, until: Callable[[], bool], deadline: float | None) -> bool:
        """For `NestedLink.wait`: runs cells of submitted calls until it is true."""
        if until():
            return True
        run = self._runs[-1]
        with self.lock:
            self._reads = True
        self._waits += 1
        began, say_at = time.monotonic(), 0.0
        try:
            while True:
                self._take_waiting()
                if until():
                    return True
                now = time.monotonic()
                left_s = NESTED_WAIT_S if deadline is None else min(NESTED_WAIT_S, deadline - now)
                if left_s <= 0:
                    return False
                self._give_back(self._pending)
                if self._offered:
                    cell = self._offered.popleft()
                    self._give_back(self._offered)
                    with more_frames(NESTED_FRAMES):
                        self._run_cell(cell)
                    continue
                if self._awaits != run.first_child or now >= say_at:
                    self.say(ChildrenAwaited(self._attempt, True, run.first_child))
                    self._awaits, say_at = run.first_child, now + NESTED_AGAIN_S
                self._wait_for_more(left_s)
        finally:
            self._waits -= 1
            run.pause(time.monotonic() - began)
            with self.lock:
                self._reads = False
            if self._awaits == run.first_child:
                self.say(ChildrenAwaited(self._attempt, False))
                self._awaits = 0

    def _wait_for_more(self, seconds: float) -> None:
        ready = self._poll.poll(seconds * 1000)
        if any(fd == self._woken for fd, _ in ready):
            os.read(self._woken, KIB)

    def wake(self) -> None:
        if self._waits:
            with contextlib.suppress(BlockingIOError):  # as many wakes are in it as it holds
                os.write(self._wakes, b"w")

    # --- for the watch thread ---

    def look(self, now: float, stuck_s: float) -> bool:
        """See to the calls in hand. True: one of them takes long, and this thread is to read the link."""
        with self.lock:
            if not self._runs:
                return False
            for run in self._runs:
                if run.watched(now) > run.cell.timeout_s > 0:
                    self._end_in_call(run)
            for run in self._runs:
                if now - run.begun_at > stuck_s:
                    self._tell_done(run)
                    self._give_back_rest(run)
            self._printed.tell_due()
            reads = not self._reads and now - self._runs[-1].begun_at > stuck_s
            if reads:
                self._take_for_later()
                self._give_back(self._pending)
                self._give_back(self._offered)
        self._tell_arrived()
        return reads

    def _take_for_later(self) -> None:
        while True:
            try:
                self._sort(self._received(0))
            except TimeoutError:
                return

    def tick_s(self, usual_s: float, least_s: float) -> float:
        """How soon to look again."""
        run = self.run_in_hand()
        timeout_s = run.cell.timeout_s if run is not None else 0.0
        return min(usual_s, max(least_s, timeout_s / 4)) if timeout_s else usual_s

    def _end_in_call(self, run: CellRun) -> NoReturn:
        """The call in hand is over its time: say so, give back all else, and end the process. Calls that wait
        for it here fail with it: run again, they would end like this again."""
        number = run.cell.first + run.call
        error = took_too_long(run.name, number, run.cell.timeout_s, self._thread)
        self._fail_in_hand(run, error)
        for around in self._runs[: self._runs.index(run)]:
            self._fail_in_hand(around, waited_for(error, around.name, around.cell.first + around.call))
        rests = [rest for each in self._runs if (rest := each.rest()) is not None]
        if rests:
            self.say(CellsGivenBack(self._attempt, tuple(rests)))
        if not self._reads:
            self._take_for_later()
        self._give_back(self._pending)
        self._give_back(self._offered)
        result = ServeResult(self._calls, self._failed_calls)
        seconds = time.monotonic() - self._started_at
        self._link.send(TaskFinished(self._attempt, result, seconds, peak_anonymous_bytes()))
        self._link.send(Retiring())
        os._exit(0)

    def _fail_in_hand(self, run: CellRun, error: CortexError) -> None:
        self._tell_done(run)
        failed = call_failed(error, run.call, run.cell.first + run.call, run.name)
        self._tell(self._results(run, run.fail_in_hand(failed)))

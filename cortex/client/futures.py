"""Submitted calls as futures, and an executor of them.

`Submits` sends what is submitted in small cells. With few under way the submitting thread sends at once; else
calls wait in a queue, where they can be cancelled, and a thread of its own sends them as results come.
Results are read, and callbacks of futures run, in the link's receiving thread, as they do in a thread of
`concurrent.futures.ProcessPoolExecutor`: a callback must not wait for another call.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from concurrent.futures import as_completed as completed
from dataclasses import dataclass
from typing import Any, Literal

from cortex.client.call_owners import Came
from cortex.client.call_run import CallOptions, Function, Link, make_cell, unreadable
from cortex.client.call_window import CellSizes, Flight
from cortex.client.cells import pickle_calls
from cortex.errors import Cancelled, CortexError
from cortex.limits import FUNCTIONS_SENT_MAX, SENDER_REST_S
from cortex.wire.messages import CallForm, Cell

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
_FULL = CallOptions(form=CallForm.FULL)


class BrokenCalls(BrokenExecutor):
    """The session behind an executor has ended; its cause says why."""


class _HelpfulEvent(threading.Event):
    """One that is waited for inside a call, which runs other submitted calls meanwhile."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    def wait(self, timeout: float | None = None) -> bool:
        return self._link.wait(self, timeout)


class _Waiters(list[Any]):
    """Of a future: what `concurrent.futures.wait` and `as_completed` put there, and block on the events of
    (`Future._waiters`, so from Python 3.2 to 3.14)."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    def append(self, waiter: Any) -> None:
        if not isinstance(waiter.event, _HelpfulEvent):
            waiter.event = _HelpfulEvent(self._link)
        super().append(waiter)


class CallFuture(Future[Any]):
    """Inside a call, whoever waits for it runs other submitted calls meanwhile. `keep` lives as long."""

    def __init__(self, link: Link, keep: object) -> None:
        super().__init__()
        self._link = link
        self._keep = keep
        if link.nested:
            self._waiters = _Waiters(link)

    def result(self, timeout: float | None = None) -> Any:
        self._wait(timeout)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait(timeout)
        return super().exception(timeout)

    def _wait(self, timeout: float | None) -> None:
        if self.done():
            return
        self._link.may_wait()
        if self._link.nested:
            ended = threading.Event()
            self.add_done_callback(lambda _: ended.set())
            if not self._link.wait(ended, timeout):
                raise TimeoutError


def as_completed(
    link: Link, futures: Iterable[Future[Any]], timeout: float | None = None
) -> Iterator[Future[Any]]:
    """As in `concurrent.futures`, for those that wait inside a call, too."""
    if not link.nested:
        yield from completed(futures, timeout)
        return
    deadline = None if timeout is None else time.monotonic() + timeout
    ended: deque[Future[Any]] = deque()
    news = threading.Event()

    def end(future: Future[Any]) -> None:
        ended.append(future)
        news.set()

    left = set(futures)
    for future in list(left):
        future.add_done_callback(end)
    while left:
        news.clear()
        while ended:
            future = ended.popleft()
            left.discard(future)
            yield future
        if left:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not link.wait(news, left_s):
                raise TimeoutError(f"{len(left)} futures have not ended")


@dataclass(eq=False)
class _Call:
    function: Function
    arguments: Arguments
    future: Future[Any]


class Submits:
    """`cells_max`: that are under way at once, each of which is worked on by one executor; None: as many as
    keep all busy. Belongs to its link, which ends it."""

    reads_at_once = True

    def __init__(
        self,
        link: Link,
        cells_max: int | None = None,
        broken: Callable[[CortexError], BaseException] = lambda error: error,
    ) -> None:
        self._link = link
        self._cells_max = cells_max
        self._broken = broken
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[_Call] = deque()
        self._flying: dict[int, Sequence[_Call]] = {}
        """Cell -> its calls."""
        self._flight = Flight()
        self._making = 0
        """Cells that are being made."""
        self._numbered = 0
        self._sizes: dict[str, CellSizes] = {}
        self._thread: threading.Thread | None = None
        self._error: CortexError | None = None
        self._idle = threading.Event()
        self._idle.set()
        link.join(self)

    def submit(self, function: Function, arguments: Arguments, future: Future[Any]) -> None:
        """Raises the error that has ended the link."""
        call = _Call(function, arguments, future)
        self._link.check()  # before the lock: at a fork another thread may have had it
        with self._lock:
            self._link.check()
            self._idle.clear()
            if self._queue or not self._room(function):
                self._queue.append(call)
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._send_queued, name="cortex submits", daemon=True
                    )
                    self._thread.start()
                self._changed.notify_all()
                return
            self._making += 1
        self._send([call])

    def cancel_queued(self) -> None:
        """Cancel all that was not sent."""
        with self._lock:
            queued = list(self._queue)
            self._queue.clear()
        for call in queued:
            call.future.cancel()
            call.future.set_running_or_notify_cancel()
        with self._lock:
            self._news()

    def finish(self) -> None:
        """Wait until every call that was submitted has its result."""
        self._link.wait(self._idle)

    def leave(self) -> None:
        """Nothing more will be submitted, and nothing is under way."""
        with self._lock:
            self._error = self._error or Cancelled("this executor was shut down")
            self._changed.notify_all()
        self._link.leave(self)

    # --- in the link's thread ---

    def came(self, results: Sequence[Came]) -> None:
        for each in results:
            with self._lock:
                flying = self._flying.get(each.cell)
            if flying is None:
                continue
            size_bytes = len(each.results.done.data)
            self._sizes[flying[0].function.code.function].came(
                each.results.done.stop - each.results.done.start, each.results.done.seconds, size_bytes
            )
            if not self._resolve(flying, each):
                self._link.call_by_call(self, each.results, each.start, each.stop, each.cell)
                continue
            with self._lock:
                ended = self._flight.came(each.cell, each.stop - each.start)
                if ended:
                    del self._flying[each.cell]
                self._news()
            if ended:
                self._link.release(flying[0].function.code.function)

    def failed(self, error: CortexError) -> None:
        with self._lock:
            self._error = error
            calls = [call for flying in self._flying.values() for call in flying]
            queued = list(self._queue)
            self._flying.clear()
            self._queue.clear()
            self._news()
        for call in queued:
            if call.future.set_running_or_notify_cancel():
                call.future.set_exception(self._broken(error))
        for call in calls:
            if not call.future.done():
                call.future.set_exception(self._broken(error))

    # --- inside ---

    def _news(self) -> None:
        """Holds the lock."""
        if not (self._queue or self._making or self._flying):
            self._idle.set()
        if self._queue or self._error is not None:
            self._changed.notify_all()

    def _room(self, function: Function) -> bool:
        """Holds the lock."""
        name = function.code.function
        if name not in self._sizes and len(self._sizes) >= FUNCTIONS_SENT_MAX:
            used = {call.function.code.function for calls in self._flying.values() for call in calls[:1]}
            used |= {call.function.code.function for call in self._queue}
            self._sizes = {each: sizes for each, sizes in self._sizes.items() if each in used}
        sizes = self._sizes.setdefault(name, CellSizes())
        if self._cells_max is not None and self._making + self._flight.cells >= self._cells_max:
            return False
        return sizes.has_room(self._link.slots, self._flight, self._making)

    def _send_queued(self) -> None:
        while True:
            with self._lock:
                while not (self._queue and self._room(self._queue[0].function)):
                    news = self._error is None and self._changed.wait(SENDER_REST_S)
                    if self._error is not None or not (news or self._queue):
                        self._thread = None  # the next that has to wait begins another
                        return
                function = self._queue[0].function
                sizes = self._sizes[function.code.function]
                wanted = sizes.next(self._link.slots, len(self._queue))
                calls: list[_Call] = []
                while self._queue and len(calls) < wanted and self._queue[0].function is function:
                    calls.append(self._queue.popleft())
                self._making += 1
            self._send(calls)
            del calls  # with their results, for as long as nothing more is to be sent

    def _send(self, calls: Sequence[_Call]) -> None:
        """`_making` counts it."""
        calls = [call for call in calls if call.future.set_running_or_notify_cancel()]
        held = 0
        try:
            cells = self._cells(calls) if calls else []
            if cells:
                self._link.function(calls[0].function.code, len(cells))
                held = len(cells)
                self._link.send(self, cells)
                held = 0  # each is released with its results
        except BaseException as error:
            for _ in range(held):
                self._link.release(calls[0].function.code.function)
            with self._lock:
                for number in [each for each, flying in self._flying.items() if flying[0] in calls]:
                    del self._flying[number]
                    self._flight.end(number)
            for call in calls:
                if not call.future.done():
                    call.future.set_exception(
                        self._broken(error) if isinstance(error, CortexError) else error
                    )
            if not isinstance(error, Exception):
                raise
        finally:
            with self._lock:
                self._making -= 1
                self._news()

    def _cells(self, calls: Sequence[_Call]) -> list[Cell]:
        function = calls[0].function
        entries = [call.arguments for call in calls]
        with self._lock:
            first, self._numbered = self._numbered, self._numbered + len(calls)
        cells = []
        size_bytes = 0
        for group in pickle_calls(
            entries,
            first,
            CallForm.FULL,
            function.name,
            function.dump,
            function.blame,
            numbered_from=0 if function.given is None else 1,
        ):
            of_group = calls[group.first - first : group.first - first + group.count]
            if group.pickled is None:
                assert group.error is not None
                of_group[0].future.set_exception(group.error.exception)
                continue
            size_bytes += group.pickled.size_bytes
            cell = make_cell(self._link, function, group, _FULL)
            with self._lock:
                self._flying[cell.cell] = of_group
                self._flight.begin(cell.cell, group.count, group.pickled.size_bytes)
            cells.append(cell)
        self._sizes[function.code.function].sent(len(calls), size_bytes, 0.0)
        return cells

    def _resolve(self, flying: Sequence[_Call], came: Came) -> bool:
        """False if these results cannot be read together."""
        results = came.results
        try:
            values = results.between(came.start, came.stop)
        except BaseException as error:  # whatever the user's classes raise; there is no Ctrl-C in this thread
            if came.stop - came.start > 1 and results.cell.attached is None:
                return False
            for call in flying[came.start : came.stop]:
                call.future.set_exception(unreadable(call.function.name, results.cell.first, error))
            return True
        failed = {each.call for each in results.done.failed}
        for number, value in zip(range(came.start, came.stop), values):
            future = flying[number].future
            if future.done():
                continue  # the link has failed meanwhile
            if number in failed:
                future.set_exception(value.exception)
            else:
                future.set_result(value)
        return True


class CallExecutor(Executor):
    """A `concurrent.futures.Executor` whose calls run in a client's executors. `submits` is its own;
    `functions` gives what is sent of a function; `ended` is called once, when it is shut down and idle."""

    def __init__(
        self,
        submits: Submits,
        functions: Callable[[Callable[..., Any], Arguments], tuple[Function, Arguments]],
        new_future: Callable[[], Future[Any]],
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._submits = submits
        self._functions = functions
        self._new_future = new_future
        self._ended = ended
        self._shut = False
        self._shut_lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with self._shut_lock:
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            future = self._new_future()
            try:
                function, arguments = self._functions(fn, (args, kwargs))
            except CortexError as error:  # it cannot be pickled, or called
                future.set_exception(error)
                return future
            try:
                self._submits.submit(function, arguments, future)
            except Cancelled as error:
                raise RuntimeError("cannot schedule new futures after shutdown") from error
            except CortexError as error:
                raise broken(error) from error
            return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """`chunksize` is of no use: calls go together as their time says."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        return super().map(fn, *iterables, timeout=timeout, **kwargs)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> Literal[False]:
        """Ctrl-C waits for the calls under way, not for all that wait for those."""
        interrupted = kind is not None and not issubclass(kind, Exception)
        self.shutdown(wait=True, cancel_futures=interrupted)
        return False

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._shut_lock:
            first, self._shut = not self._shut, True
        if cancel_futures:
            self._submits.cancel_queued()
        if wait:
            self._submits.finish()
            self._finish()
        elif first:
            threading.Thread(target=self._finish, name="cortex shutdown", daemon=True).start()

    def _finish(self) -> None:
        self._submits.finish()
        self._submits.leave()
        self._ended()


def broken(error: CortexError) -> BrokenCalls:
    """As users of `concurrent.futures` expect it."""
    made = BrokenCalls(error.message)
    made.__cause__ = error
    return made

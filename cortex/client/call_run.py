"""`CallRun`: one map over a source of arguments, from its first cell to its last result.

The consumer's thread does everything: it pulls the source as cells are made (so a source may be endless, and
is never called from another thread), pickles, sends, and reads results; the link's thread only puts what has
come into an inbox. Results that are not read hold back the sending (`call_window.CellSizes.may_send`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from cortex.client.call_errors import CallError, own_error
from cortex.client.call_owners import Came
from cortex.client.call_window import CellSizes, Flight, Held, Order
from cortex.client.cells import Blame, Dump, Group, Results, pickle_calls
from cortex.errors import CortexError, UserCodeError
from cortex.limits import CELL_PULL_S, SEND_BYTES
from cortex.tasks.cell_pickles import Pickled
from cortex.wire.messages import Attached, CallForm, Cell, FunctionCode


class Link(Protocol):
    """A `CallLink`, or that of an executor whose call submits calls (`nested`)."""

    nested: bool

    @property
    def slots(self) -> int: ...
    def check(self) -> None: ...
    def join(self, owner: Any) -> None: ...
    def number(self) -> int: ...
    def attach(self, pickled: Pickled) -> Attached | None:
        """None: it goes in a frame all the same. Raises UsageError if it is too large for that."""

    def function(self, code: FunctionCode, holds: int = 1) -> None:
        """Before cells that name it are sent. It stays known to whoever runs them until so many `release`."""

    def release(self, function: str) -> None: ...
    def send(self, owner: Any, cells: Sequence[Cell], retries: int = 0, coming: int | None = 0) -> None: ...
    def call_by_call(self, owner: Any, results: Results, start: int, stop: int, root: int) -> None: ...
    def leave(self, owner: Any) -> None: ...
    def wait(self, event: threading.Event, timeout_s: float | None = None) -> bool: ...
    def may_wait(self) -> None: ...


@dataclass(frozen=True)
class Function:
    """A function as it is sent, and how its arguments are."""

    code: FunctionCode
    dump: Dump
    blame: Blame
    given: Callable[[], Function] | None = None
    """One that calls what it is given first: for when there would be too many to send. None: it is that."""

    @property
    def name(self) -> str:
        return self.code.name


@dataclass(frozen=True)
class CallOptions:
    form: CallForm = CallForm.ONE
    ordered: bool = True
    discard: bool = False
    timeout_s: float = 0.0
    retries: int = 0


@dataclass(frozen=True)
class Batch:
    """Results next to each other: `values[i]` is of call `first + i`. `failures` are the `CallError`s among
    them; with `discard` there are no values but these."""

    first: int
    count: int
    values: list[Any]
    failures: tuple[CallError, ...] = ()


def make_cell(link: Link, function: Function, group: Group, options: CallOptions) -> Cell:
    pickled = group.pickled
    assert pickled is not None
    attached = link.attach(pickled) if pickled.is_large else None
    data, buffers = pickled.inline() if attached is None else (b"", ())
    return Cell(
        cell=link.number(),
        function=function.code.function,
        count=group.count,
        form=options.form,
        data=data,
        buffers=buffers,
        attached=attached,
        first=group.first,
        discard=options.discard,
        timeout_s=options.timeout_s,
    )


class CallRun:
    """`entries` are what `options.form` says; `length` is how many there are, None if that is not known.
    `keep` lives as long as this does."""

    reads_at_once = False

    def __init__(
        self,
        link: Link,
        function: Function,
        entries: Iterator[Any],
        length: int | None,
        options: CallOptions,
        keep: object = None,
    ) -> None:
        self._link = link
        self._function = function
        self._entries: Iterator[Any] | None = entries
        self._length = length
        self._options = options
        self._keep = keep
        self._sizes = CellSizes()
        self._order: Order[Results | CallError] = Order(options.ordered)
        self._pulled = 0
        self._flight = Flight()
        self._held = Held()
        self._slow_source = False
        self._inbox: deque[Came] = deque()
        self._news = threading.Event()
        self._error: CortexError | None = None
        self._holds = False
        self._closed = False

    @property
    def name(self) -> str:
        """Of the function, for people."""
        return self._function.name

    # --- in the link's thread ---

    def came(self, results: Sequence[Came]) -> None:
        self._inbox.extend(results)
        self._news.set()

    def failed(self, error: CortexError) -> None:
        self._error = error
        self._news.set()

    def finish(self) -> None:
        """Results that are not read are not waited for."""

    # --- in the consumer's thread ---

    def __iter__(self) -> Iterator[Batch]:
        """Until the source has ended and all its results were given. Raises what the source raises (its calls
        so far are dropped), and what ends the link. Leaves the link when it ends, however it does."""
        self._link.join(self)
        try:
            self._link.function(self._function.code)
            self._holds = True
            while (batch := self._next()) is not None:
                yield batch
        finally:
            self.close()

    def close(self) -> None:
        """Nothing more is wanted of it."""
        if not self._closed:
            self._closed = True
            self._link.leave(self)
            if self._holds:
                self._link.release(self._function.code.function)

    def _next(self) -> Batch | None:
        while True:
            self._news.clear()
            self._absorb()
            if not (self._slow_source and self._order.ready()):
                self._feed()
                self._absorb()
            while (ready := self._order.take()) is not None:
                held = ready.held
                if isinstance(held, CallError):
                    return Batch(ready.unit.first, 1, [held], (held,))
                self._held.count(held.done, -1)
                batch = self._read(held, ready.start, ready.stop)
                if batch is not None:
                    return batch
                if ready.stop - ready.start > 1:
                    self._order.back(ready)
                    self._flight.begin(ready.unit.cell, ready.stop - ready.start, 0)
                    self._link.call_by_call(self, held, ready.start, ready.stop, ready.unit.cell)
            if self._entries is None and self._order.empty:
                return None
            if self._error is not None:
                raise self._error
            self._link.wait(self._news)

    def _absorb(self) -> None:
        while self._inbox:
            each = self._inbox.popleft()
            self._flight.came(each.cell, each.stop - each.start)
            done = each.results.done
            self._held.count(done)
            size_bytes = len(done.data) + sum(map(len, done.buffers))
            size_bytes += sum(done.attached.sizes) if done.attached is not None else 0
            self._sizes.came(done.stop - done.start, done.seconds, size_bytes)
            self._order.came(each.cell, each.start, each.stop, each.results)

    def _feed(self) -> None:
        cells: list[Cell] = []
        size_bytes = 0
        deadline = time.monotonic() + CELL_PULL_S
        try:
            while self._entries is not None and self._sizes.may_send(
                self._link.slots, self._flight, self._held
            ):
                made, made_bytes = self._make()
                cells += made
                size_bytes += made_bytes
                if size_bytes >= SEND_BYTES or time.monotonic() > deadline:
                    break
                if not made and self._order.ready():
                    break  # of calls that cannot be sent there may be endlessly many
        finally:  # also where the source has failed: what was made goes with the others that are dropped
            if cells:
                self._send(cells)

    def _send(self, cells: Sequence[Cell]) -> None:
        coming = 0 if self._entries is None else None
        if coming is None and self._length is not None:
            coming = max(0, self._length - self._pulled)
        self._link.send(self, cells, self._options.retries, coming)

    def _make(self) -> tuple[list[Cell], int]:
        """Pull what goes into one cell. It becomes several when something in it cannot be pickled."""
        assert self._entries is not None
        left = None if self._length is None else max(1, self._length - self._pulled)
        wanted = self._sizes.next(self._link.slots, left)
        before = time.monotonic()
        entries = list(islice(self._entries, wanted))
        pull_s = time.monotonic() - before
        if len(entries) < wanted:
            self._entries = None
        if not entries:
            return [], 0
        self._slow_source = pull_s > CELL_PULL_S / 10
        first, self._pulled = self._pulled, self._pulled + len(entries)
        function = self._function
        cells = []
        size_bytes = 0
        for group in pickle_calls(
            entries, first, self._options.form, function.name, function.dump, function.blame
        ):
            if group.pickled is None:
                assert group.error is not None
                number = -group.first - 1  # of no cell
                self._order.sent(number, group.first, 1)
                self._order.came(number, 0, 1, group.error)
                continue
            cell = make_cell(self._link, function, group, self._options)
            cells.append(cell)
            size_bytes += group.pickled.size_bytes
            self._order.sent(cell.cell, group.first, group.count)
            self._flight.begin(cell.cell, group.count, group.pickled.size_bytes)
        self._sizes.sent(len(entries), size_bytes, pull_s)
        return cells, size_bytes if not cells or cells[-1].attached is None else 0

    def _read(self, results: Results, start: int, stop: int) -> Batch | None:
        """None for results that cannot be read together."""
        first = results.cell.first + start
        if self._options.discard:
            failures = [each for call, each in sorted(results.failures().items()) if start <= call < stop]
            return Batch(first, stop - start, list(failures), tuple(failures))
        try:
            values = results.between(start, stop)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever the user's classes raise
            if stop - start > 1 and results.cell.attached is None:
                return None
            failures = [
                own_error(unreadable(self._function.name, call, error), call)
                for call in range(first, first + stop - start)
            ]
            return Batch(first, stop - start, list(failures), tuple(failures))
        if not results.done.failed:
            return Batch(first, stop - start, values)
        failed = {each.call for each in results.done.failed}
        return Batch(
            first,
            stop - start,
            values,
            tuple(values[call - start] for call in range(start, stop) if call in failed),
        )


def unreadable(name: str, index: int, error: BaseException) -> UserCodeError:
    """What a call fails with whose result raises this here."""
    failed = UserCodeError(
        f"the result of call {index} of {name} cannot be read here: {type(error).__name__}: {error}",
        cure="return what it is made of, or make its class importable here",
    )
    failed.__cause__ = error
    return failed

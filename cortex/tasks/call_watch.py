"""The thread beside the one that runs calls: sees to what waits behind a call that takes long.

It looks at the cells in hand every CALL_LOOK_S, sleeps while there are none, and costs the calls
nothing. (Code that holds the interpreter all the time holds this thread, too.)
"""

from __future__ import annotations

import os
import select
import threading
import time
import traceback
from typing import Protocol

from cortex.limits import CALL_LOOK_S, CALL_STUCK_S, CALL_TIME_TICK_S, MIB, WORKER_REST_S

_STACK_BYTES = 2 * MIB  # it pickles results; the default of 8 MB counts against RLIMIT_DATA


class Watched(Protocol):
    def look(self, now: float, stuck_s: float) -> bool: ...
    def tick_s(self, usual_s: float, least_s: float) -> float: ...
    def run_in_hand(self) -> object | None: ...


class CallWatch:
    """`link_fd` is polled while it is this thread that reads it."""

    def __init__(self, worker: Watched, link_fd: int) -> None:
        self._worker = worker
        self._poll = select.poll()
        self._poll.register(link_fd, select.POLLIN)
        self._wake = threading.Event()
        self._asleep = False
        self._over = False
        self._thread = threading.Thread(target=self._watch, name="calls", daemon=True)

    def start(self) -> None:
        threading.stack_size(_STACK_BYTES)
        self._thread.start()
        threading.stack_size(0)

    def end(self) -> None:
        """From the other thread, which does not hold the worker's lock."""
        self._over = True
        self._wake.set()
        self._thread.join()

    def begun(self) -> None:
        """A cell is in hand now."""
        if self._asleep:
            self._wake.set()

    def _watch(self) -> None:
        try:
            self._look_on()
        except (BrokenPipeError, ConnectionResetError):
            os._exit(1)  # the node is gone; the other thread may be in a call for long
        except BaseException:
            traceback.print_exc()  # a bug: what waits behind a long call would wait for ever
            os._exit(70)

    def _look_on(self) -> None:
        idle_since, reads = 0.0, False
        while not self._over:
            tick_s = self._worker.tick_s(CALL_LOOK_S, CALL_TIME_TICK_S)
            if reads:
                self._poll.poll(tick_s * 1000)
            else:
                self._wake.wait(tick_s)
            if self._over:
                return
            now = time.monotonic()
            reads = self._worker.look(now, CALL_STUCK_S)
            if self._worker.run_in_hand() is not None:
                idle_since = 0.0
            elif not idle_since:
                idle_since = now
            elif now - idle_since > WORKER_REST_S:
                self._rest()
                idle_since = 0.0

    def _rest(self) -> None:
        self._asleep = True
        if self._worker.run_in_hand() is None and not self._over:
            self._wake.wait()
        self._asleep = False
        if not self._over:
            self._wake.clear()

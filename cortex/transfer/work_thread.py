"""A thread of one's own for work that blocks: done in order, its answers given on the reactor's thread."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from cortex.errors import CortexError, InternalError

T = TypeVar("T")


class WorkThread:
    """Starts with its first work. A daemon: what it does must be of no worth to a process that ends."""

    def __init__(self, reactor: Any, name: str) -> None:
        self._reactor = reactor
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(
        self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[CortexError], None]
    ) -> None:
        """Call `work()` in the thread, then one of the two on the reactor's."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()

        def one() -> None:
            try:
                result = work()
            except CortexError as error:
                self._reactor.callFromThread(failed, error)
            except Exception as error:
                details = {"traceback": traceback.format_exc()}
                bug = InternalError(f"a bug in cortex: {type(error).__name__}: {error}", details=details)
                self._reactor.callFromThread(failed, bug)
            else:
                self._reactor.callFromThread(done, result)

        self._work.put(one)

    def stop(self) -> None:
        """What is queued is still done; nobody waits for it."""
        self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()

"""One thread for work that blocks: in order, with its answers on the reactor's thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from cortex.errors import BundleFailed, CortexError, InternalError
from cortex.transfer.work_thread import WorkThread


class Reactor:
    """Runs in this thread what others hand it."""

    def __init__(self) -> None:
        self.calls: queue.Queue[Callable[[], None]] = queue.Queue()

    def callFromThread(self, function: Any, *arguments: Any) -> None:
        self.calls.put(lambda: function(*arguments))

    def turn(self) -> None:
        self.calls.get(timeout=10)()


def test_work_is_done_in_order_and_answered_here() -> None:
    reactor, seen = Reactor(), []
    thread = WorkThread(reactor, "test")

    def note(answer: Any) -> None:
        seen.append((answer, threading.current_thread() is threading.main_thread()))

    for number in range(5):
        thread.run(lambda number=number: (number, threading.current_thread().name), note, note)
    for _ in range(5):
        reactor.turn()
    assert seen == [((number, "test"), True) for number in range(5)]
    thread.stop()


def test_errors_are_typed_and_a_bug_does_not_end_the_thread() -> None:
    reactor = Reactor()
    failed: list[CortexError] = []
    done: list[int] = []
    thread = WorkThread(reactor, "test")

    def broken() -> int:
        raise BundleFailed("the disk is gone")

    thread.run(broken, done.append, failed.append)
    thread.run(lambda: 1 // 0, done.append, failed.append)
    thread.run(lambda: 3, done.append, failed.append)
    for _ in range(3):
        reactor.turn()
    assert done == [3]
    assert isinstance(failed[0], BundleFailed)
    assert isinstance(failed[1], InternalError)
    assert "ZeroDivisionError" in failed[1].details["traceback"]
    thread.stop()


def test_what_was_queued_is_done_before_the_thread_ends() -> None:
    reactor, done = Reactor(), []
    thread = WorkThread(reactor, "test")
    thread.stop()  # not started: nothing to end
    thread.run(lambda: 1, done.append, done.append)
    thread.run(lambda: 2, done.append, done.append)
    assert reactor.calls.empty()
    other = WorkThread(reactor, "other")
    other.run(lambda: 3, done.append, done.append)
    other.stop()
    reactor.turn()
    assert done == [3]

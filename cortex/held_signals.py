"""Signals that would end a clean-up half way: held until it is done, for a bounded time.

A second Ctrl-C, while what the first one stopped is being removed, would leave the rest of it lying there.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def held_signals(seconds_max: float) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM do not raise; those that came do when it ends. One that comes after
    `seconds_max` is not held any more: a disk that hangs must not make a process that cannot be stopped.

    Of signals with a handler in Python, and in the main thread, where those run; elsewhere nothing is held.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deadline = time.monotonic() + seconds_max
    came: dict[int, None] = {}
    handlers: dict[int, Any] = {}

    def hold(number: int, frame: FrameType | None) -> None:
        came[number] = None
        if time.monotonic() >= deadline:
            release()

    def release() -> None:
        while handlers:
            signal.signal(*handlers.popitem())
        while came:
            signal.raise_signal(came.popitem()[0])

    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(handler := signal.getsignal(number)):  # not those that end the process, or are ignored
            handlers[number] = handler
            signal.signal(number, hold)
    try:
        yield
    finally:
        release()

"""The way from the server to a node, and the one between two ends of one process.

On one machine server and node are in the same process: each gives the other a `LocalLink` to call, where in a
cluster there is a connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from twisted.logger import Logger

from cortex.wire.messages import ToNode

_log = Logger()
M = TypeVar("M")


class NodeLink(Protocol):
    """The way to a node."""

    def send(self, message: ToNode) -> None: ...


class LocalLink(Generic[M]):
    """Hands messages to `deliver` in order, each batch in a later turn of the reactor.

    So two ends in one process never call into each other while they decide.
    """

    def __init__(self, reactor: Any, deliver: Callable[[M], None]) -> None:
        self._reactor = reactor
        self._deliver = deliver
        self._waiting: deque[M] = deque()

    def send(self, message: M) -> None:
        if not self._waiting:
            self._reactor.callLater(0, self._drain)
        self._waiting.append(message)

    def _drain(self) -> None:
        # What is sent meanwhile has a turn of its own, or two ends could spin without the reactor.
        batch, self._waiting = self._waiting, deque()
        for message in batch:
            try:
                self._deliver(message)
            except Exception:
                _log.failure("a {kind} could not be handled", kind=type(message).__name__)

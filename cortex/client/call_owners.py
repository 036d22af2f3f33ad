"""What a link of calls (`compute_link`, `nested_link`) has to do with those who send cells over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cortex.client.cells import Results
from cortex.errors import CortexError
from cortex.wire.messages import Message, ServerHello


class Connection(Protocol):
    """Of a session: one thread receives, and others send."""

    hello: ServerHello

    def ask(self, question: Message, answer: Any) -> Any: ...
    def send(self, message: Message) -> None: ...
    def receive(self, timeout_s: float | None = None) -> Any: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Came:
    """Results of calls [start, stop) of the owner's cell `cell`."""

    cell: int
    start: int
    stop: int
    results: Results


class Owner(Protocol):
    """Who has sent cells. `came` and `failed` are called in the receiving thread."""

    reads_at_once: bool
    """`came` unpickles, and runs code of the user's."""

    def came(self, results: Sequence[Came]) -> None: ...
    def failed(self, error: CortexError) -> None: ...
    def finish(self) -> None:
        """Called by whoever closes the link: wait for what somebody may still wait for."""


@dataclass
class CallNumbers:
    """What a link has done so far."""

    sent: int = 0
    done: int = 0
    """With those that failed."""
    failed: int = 0
    slots: int = 0
    nobody: bool = False
    """The cluster has no node that could run a call."""

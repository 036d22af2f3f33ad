"""Having the server take a job, once, though its answer may be lost with the connection.

The job has its id before it is asked for: whether it was taken or not, asking again takes it once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from cortex.client.bundle_packing import PackedBundle, upload
from cortex.errors import Unreachable
from cortex.wire.messages import JobAccepted, Message, SubmitJob


class _Connection(Protocol):
    def ask(self, question: Message, answer: Any) -> Any: ...
    def send(self, message: Message) -> None: ...
    def receive(self, timeout_s: float | None = None) -> Any: ...
    def close(self) -> None: ...


C = TypeVar("C", bound=_Connection)


def submit(
    connection: C,
    request: SubmitJob,
    packed: PackedBundle,
    come_back: Callable[[Callable[[C], None], Unreachable], C],
) -> C:
    """Have the job taken, with what travels with it, over this connection or, when it ends (it is closed
    then), over one that `come_back(begin, cause)` gives; returns the one that it was. Raises what the server
    refuses it with, and what `come_back` does."""

    def begin(connection: C) -> None:
        upload(packed, connection.send, connection.receive)
        connection.ask(request, JobAccepted)

    try:
        begin(connection)
    except Unreachable as error:
        connection.close()
        return come_back(begin, error)
    return connection

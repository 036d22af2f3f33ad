"""The server's way to what a job's code wrote: it asks every node, and answers the client once. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from cortex.wire.messages import FromServer, JobLogs, NodeLog, SendLogs, ToNode


@dataclass(eq=False)
class _Request:
    number: int
    client: Any
    job: str
    asked: set[str]
    found: list[NodeLog] = field(default_factory=list)


class LogDesk:
    """Asks every node, and answers when all have, or when it is told to wait no longer."""

    def __init__(
        self, to_node: Callable[[str, ToNode], None], to_client: Callable[[Any, FromServer], None]
    ) -> None:
        self._to_node = to_node
        self._to_client = to_client
        self._requests: dict[int, _Request] = {}
        self._next = 0

    def ask(self, client: Any, job: str, nodes: Iterable[str]) -> int:
        """Gives the number of the request, for `give_up`."""
        self._next += 1
        request = self._requests[self._next] = _Request(self._next, client, job, set(nodes))
        for node in sorted(request.asked):
            self._to_node(node, SendLogs(request.number, job))
        self._check(request)
        return request.number

    def answered(self, log: NodeLog) -> None:
        request = self._requests.get(log.request)
        if request is not None and log.node in request.asked:
            request.asked.discard(log.node)
            if log.text:
                request.found.append(log)
            self._check(request)

    def node_lost(self, node: str) -> None:
        for request in list(self._requests.values()):
            request.asked.discard(node)
            self._check(request)

    def client_lost(self, client: Any) -> None:
        for request in [each for each in self._requests.values() if each.client == client]:
            del self._requests[request.number]

    def give_up(self, number: int) -> None:
        """Answer with what has come. Nothing happens when that is all."""
        request = self._requests.get(number)
        if request is not None:
            request.asked.clear()
            self._check(request)

    def _check(self, request: _Request) -> None:
        if not request.asked:
            del self._requests[request.number]
            found = tuple(sorted(request.found, key=lambda log: log.node))
            self._to_client(request.client, JobLogs(request.job, found))

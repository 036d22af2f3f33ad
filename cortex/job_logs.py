"""What a job's code wrote: at a node the ends of its executors' logs, at the server the way to ask for them.

An executor serves one job, and what its code prints goes to its log. When it ends, the last lines are kept
for as long as there is room for them; of executors that live they are read when somebody asks. Pure but for
`cortex.executor_deaths.tail`, which its caller uses.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from cortex.limits import JOB_LOG_BYTES, LOGS_BYTES_MAX
from cortex.wire.messages import FromServer, JobLogs, NodeLog, SendLogs, ToNode


class KeptLogs:
    """A node's memory of what executors wrote that have ended: of each job the end, and of the last jobs."""

    def __init__(self, bytes_max: int = LOGS_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._of: OrderedDict[str, str] = OrderedDict()

    def add(self, job: str, executor: int, text: str) -> None:
        """`text` is what executor number `executor` wrote last."""
        if not text:
            return
        old = self._of.pop(job, "")
        new = joined([old, headed(executor, text)])[-JOB_LOG_BYTES:]
        self._of[job] = new
        self._bytes += len(new) - len(old)
        while self._bytes > self._bytes_max:
            _, gone = self._of.popitem(last=False)
            self._bytes -= len(gone)

    def of(self, job: str) -> str:
        return self._of.get(job, "")


def headed(executor: int, text: str) -> str:
    return f"--- executor {executor}\n{text}" if text else ""


def joined(texts: Iterable[str]) -> str:
    return "\n".join(text for text in texts if text)


@dataclass(eq=False)
class _Request:
    number: int
    client: Any
    job: str
    asked: set[str]
    found: list[NodeLog] = field(default_factory=list)


class LogDesk:
    """The server's side: asks every node, and answers when all have, or when it is told to wait no longer."""

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

"""The server's side of the output's way to the client: which node has a part, and which stream is whose.

Opaque bytes with credit from end to end: the client grants, the node sends no more than that, and the
server holds nothing. A node that is back after a lost link goes on where its bytes had ended. Pure
bookkeeping: `PartRelay` says what to send to whom.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cortex.errors import ErrorReport, ProtocolError, ResultsLost
from cortex.limits import PART_STREAMS_MAX
from cortex.wire.messages import (
    DropPart,
    FetchPart,
    FromServer,
    JobDone,
    PartBytes,
    PartChunk,
    PartCredit,
    PartLost,
    PartTaken,
    PartUnread,
    SendPart,
    ToNode,
)


@dataclass(eq=False)
class _Stream:
    number: int
    client: Any
    node: str
    job: str
    staged_as: str
    credit_bytes: int
    offset: int


class PartRelay:
    """`to_node(node, message)` and `to_client(client, message)` send; clients are told apart by identity."""

    def __init__(
        self, to_node: Callable[[str, ToNode], None], to_client: Callable[[Any, FromServer], None]
    ) -> None:
        self._to_node = to_node
        self._to_client = to_client
        self._streams: dict[int, _Stream] = {}
        self._of_client: dict[tuple[Any, str, str], _Stream] = {}
        self._next = 0
        self._parts: dict[str, dict[str, str]] = {}
        """Of jobs that are done: a part's staged name -> the node that has it."""
        self.relayed_bytes = 0

    def job_done(self, done: JobDone) -> None:
        self._parts[done.job] = {part.staged_as: part.node for part in done.parts if part.node}

    def drop_job(self, job: str) -> None:
        """Nobody is to fetch its parts any more."""
        self._parts.pop(job, None)

    def node_of(self, job: str, staged_as: str) -> str | None:
        """Which has the part; None: nobody said that it is done."""
        return self._parts.get(job, {}).get(staged_as)

    def fetch(self, client: Any, message: FetchPart, node: str) -> None:
        """Begin a stream from `node`. Raises ProtocolError for one that is open, or one too many."""
        key = (client, message.job, message.staged_as)
        mine = sum(stream.client == client for stream in self._streams.values())
        if key in self._of_client or mine >= PART_STREAMS_MAX:
            raise ProtocolError(f"part {message.staged_as} was asked for again, or with too many others")
        self._next += 1
        stream = self._streams[self._next] = self._of_client[key] = _Stream(
            self._next, client, node, message.job, message.staged_as, message.credit_bytes, message.offset
        )
        self._ask(stream)

    def node_back(self, node: str) -> None:
        """It has dropped its streams, or never heard of them: they go on."""
        for stream in [each for each in self._streams.values() if each.node == node]:
            self._ask(stream)

    def _ask(self, stream: _Stream) -> None:
        message = SendPart(stream.number, stream.job, stream.staged_as, stream.credit_bytes, stream.offset)
        self._to_node(stream.node, message)

    def taken(self, client: Any, message: PartTaken) -> None:
        stream = self._of_client.get((client, message.job, message.staged_as))
        if stream is not None:  # else it has ended
            stream.credit_bytes += message.credit_bytes
            self._to_node(stream.node, PartCredit(stream.number, message.credit_bytes))

    def chunk(self, message: PartChunk) -> None:
        stream = self._streams.get(message.stream)
        if stream is None or stream.node != message.node:
            return  # its client is gone
        stream.offset += len(message.data)
        self.relayed_bytes += len(message.data)
        stream.credit_bytes -= len(message.data)
        if message.last:
            self._forget(stream)
        self._to_client(stream.client, PartBytes(stream.job, stream.staged_as, message.data, message.last))

    def unread(self, message: PartUnread) -> tuple[str, str] | None:
        """The stream has ended. Gives (job, staged name) of the part, if anybody waits for it."""
        stream = self._streams.get(message.stream)
        if stream is None or stream.node != message.node:
            return None
        self._lost(stream, message.error)
        return stream.job, stream.staged_as

    def node_lost(self, node: str) -> None:
        for stream in [each for each in self._streams.values() if each.node == node]:
            self._lost(stream, results_lost(node, stream.staged_as))

    def client_lost(self, client: Any) -> None:
        for stream in [each for each in self._streams.values() if each.client == client]:
            self._forget(stream)
            self._to_node(stream.node, DropPart(stream.number))

    def _lost(self, stream: _Stream, error: ErrorReport) -> None:
        self._forget(stream)
        self._to_client(stream.client, PartLost(stream.job, stream.staged_as, error))

    def _forget(self, stream: _Stream) -> None:
        del self._streams[stream.number]
        del self._of_client[stream.client, stream.job, stream.staged_as]


def results_lost(node: str, staged_as: str) -> ErrorReport:
    return ResultsLost(
        f"node {node} was lost with a part of the result that had not reached the client",
        cure="run the job again",
        details={"part": staged_as},
    ).report()

"""The server's side of the client's input on its way to the nodes: whose read goes to which client.

Opaque bytes, and none are held: a node asks for what it has room for, a client is asked for no more than
INPUT_CLIENT_BYTES at once, and an answer is passed on as it comes. While a job's client is away its reads
wait; they are asked again when it is back. Pure bookkeeping: `InputRelay` says what to send to whom.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from cortex.errors import CortexError, NotAllowed, ProtocolError
from cortex.limits import INPUT_CLIENT_BYTES, INPUT_NODE_BYTES, INPUT_READ_BYTES, INPUT_READS_MAX
from cortex.transfer.read_queue import ReadQueue
from cortex.wire.messages import FromServer, InputBytes, InputUnread, NodeReads, ReadInput, ToNode


@dataclass(eq=False)
class _Job:
    queue: ReadQueue[str]
    client: Any = None
    """None: it is away."""


@dataclass(eq=False)
class _Asked:
    """What a node has asked for of one job and was not answered."""

    reads: int = 0
    size_bytes: int = 0


class InputRelay:
    """`to_node(node, message)` and `to_client(client, message)` send; clients are told apart by identity.
    `is_there(job)`: the job is under way, or done and kept; its reads wait for a client that was not seen yet
    (by a server that was started again)."""

    def __init__(
        self,
        to_node: Callable[[str, ToNode], None],
        to_client: Callable[[Any, FromServer], None],
        is_there: Callable[[str], bool],
    ) -> None:
        self.relayed_bytes = 0
        self._to_node = to_node
        self._to_client = to_client
        self._is_there = is_there
        self._numbers = itertools.count(1)
        self._jobs: dict[str, _Job] = {}
        self._job_of: dict[int, str] = {}
        """Of reads that a client was asked for."""
        self._asked: dict[str, dict[str, _Asked]] = {}
        """By node and job."""

    def client_here(self, job: str, client: Any) -> None:
        """The job has begun, or its client is back, over this link: what waits is asked for."""
        found = self._jobs.get(job) or self._open(job)
        if found.client is not None:
            self._away(job, found)
        found.client = client
        found.queue.up()

    def client_lost(self, client: Any) -> None:
        """Its jobs' reads wait."""
        for job, found in self._jobs.items():
            if found.client is client:
                self._away(job, found)

    def close_job(self, job: str) -> None:
        """Nobody reads any more."""
        if self._jobs.pop(job, None) is not None:
            self._forget_numbers(job)
            for asked in self._asked.values():
                asked.pop(job, None)

    def node_lost(self, node: str) -> None:
        for job in self._asked.pop(node, {}):
            self._jobs[job].queue.drop(node)

    def read(self, message: NodeReads) -> None:
        """A node asks. It is answered in any case, for an executor waits."""
        read = message.asked
        job = self._jobs.get(read.job)
        if job is None and self._is_there(read.job):
            job = self._open(read.job)
        if job is None:
            error: CortexError = NotAllowed(f"{read.job} is no job under way: its input is read no more")
        elif not self._has_room(message.node, read.length):
            error = ProtocolError(f"node {message.node} asked for more input than it may hold")
        else:
            asked = self._asked.setdefault(message.node, {}).setdefault(read.job, _Asked())
            asked.reads += 1
            asked.size_bytes += read.length
            job.queue.ask(message.node, read)
            return
        self._to_node(message.node, InputUnread(read.read, error.report()))

    def answer(self, client: Any, message: InputBytes | InputUnread) -> None:
        """A client answers. Raises ProtocolError for an answer to what it was not asked."""
        job = self._job_of.get(message.read)
        if job is None:
            return  # asked for by a job that has ended, or before the client was away
        if self._jobs[job].client is not client:
            raise ProtocolError("a client answered a read of another client's file")
        del self._job_of[message.read]
        found = self._jobs[job].queue.answered(message.read)
        if found is None:
            return  # its node is lost
        node, read = found
        if isinstance(message, InputBytes):
            self.relayed_bytes += len(message.data)
        asked = self._asked[node][job]
        asked.reads -= 1
        asked.size_bytes -= read.length
        if isinstance(message, InputBytes) and len(message.data) > read.length:
            error = ProtocolError(
                f"a client sent {len(message.data)} bytes where {read.length} were asked for"
            )
            self._to_node(node, InputUnread(read.read, error.report()))  # an executor waits for it
            raise error
        self._to_node(node, msgspec.structs.replace(message, read=read.read))

    def owes(self, job: str, node: str) -> bool:
        """Whether the node has asked for something of this job and has no answer."""
        asked = self._asked.get(node, {}).get(job)
        return asked is not None and asked.reads > 0

    def _has_room(self, node: str, size_bytes: int) -> bool:
        asked = self._asked.get(node, {}).values()
        held = size_bytes + sum(each.size_bytes for each in asked)
        return (
            held <= INPUT_NODE_BYTES + INPUT_READ_BYTES
            and sum(each.reads for each in asked) < INPUT_READS_MAX
        )

    def _open(self, job: str) -> _Job:
        ask = partial(self._ask_client, job)
        found = self._jobs[job] = _Job(ReadQueue(self._numbers, ask, INPUT_CLIENT_BYTES, up=False))
        return found

    def _ask_client(self, job: str, read: ReadInput) -> None:
        self._job_of[read.read] = job
        self._to_client(self._jobs[job].client, read)

    def _away(self, job: str, found: _Job) -> None:
        found.client = None
        found.queue.down()
        self._forget_numbers(job)

    def _forget_numbers(self, job: str) -> None:
        for number in [number for number, of in self._job_of.items() if of == job]:
            del self._job_of[number]

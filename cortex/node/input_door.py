"""A node's door for its executors' reads of the client's files: a unix socket of its own.

Apart from the executors' links, so that no bytes of input stand before a lease. The node asks the server for
no more than INPUT_NODE_BYTES at once, its executors by turns, and hands on what comes as it comes. An
executor that is gone is forgotten. Everything here runs on the reactor's thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.protocol import Factory

from cortex.errors import CortexError, ProtocolError
from cortex.limits import INPUT_NODE_BYTES
from cortex.transfer.read_queue import ReadQueue
from cortex.wire.messages import (
    FromNode,
    InputBytes,
    InputHello,
    InputUnread,
    NodeReads,
    ReadInput,
    ToInputDoor,
)
from cortex.wire.transports import MessageProtocol, listen_unix

_Link = MessageProtocol[ToInputDoor]


class InputDoor:
    """Listens at `socket_path`, in a private folder. `send` takes messages to the server."""

    def __init__(self, reactor: Any, node: str, send: Callable[[FromNode], None], socket_path: str) -> None:
        self._reactor = reactor
        self._node = node
        self._send = send
        self.socket_path = socket_path
        self._jobs: set[str] = set()
        self._links: dict[_Link, str] = {}
        """Link -> the job that its executor serves."""
        self._queue = ReadQueue[_Link](itertools.count(1), self._ask_server, INPUT_NODE_BYTES)
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = self._build  # type: ignore[method-assign,assignment]
        self._port = listen_unix(reactor, socket_path, factory)

    def open_job(self, job: str) -> None:
        """Its executors may read."""
        self._jobs.add(job)

    def close_job(self, job: str) -> None:
        self._jobs.discard(job)
        for link in [link for link, of in self._links.items() if of == job]:
            link.close()
        self._queue.close_job(job)

    def answer(self, message: InputBytes | InputUnread) -> None:
        """From the server."""
        found = self._queue.answered(message.read)
        if found is not None:
            link, read = found
            link.send(msgspec.structs.replace(message, read=read.read))

    def server_gone(self) -> None:
        """Reads wait."""
        self._queue.down()

    def server_back(self) -> None:
        """What waits, and what was not answered, is asked for."""
        self._queue.up()

    def stop(self) -> None:
        self._port.stopListening()
        for link in list(self._links):
            link.close()

    # --- inside ---

    def _ask_server(self, read: ReadInput) -> None:
        self._send(NodeReads(self._node, read))

    def _build(self, _address: Any) -> _Link:
        return MessageProtocol(self._reactor, ToInputDoor, self._said, self._lost)

    def _said(self, link: _Link, message: ToInputDoor) -> None:
        if isinstance(message, InputHello):
            if message.job not in self._jobs or link in self._links:
                raise ProtocolError(f"{message.job} is no job that reads input here")
            self._links[link] = message.job
            link.accept()
        elif self._links.get(link) != message.job:
            raise ProtocolError("an executor reads the input of a job that is not its own")
        else:
            self._queue.ask(link, message)

    def _lost(self, link: _Link, _error: CortexError | None) -> None:
        self._queue.drop(link)
        self._links.pop(link, None)

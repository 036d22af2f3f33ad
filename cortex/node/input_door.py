"""A node's door for its executors' reads of input that is not at hand: a unix socket of its own.

Apart from the executors' links, so that no bytes of input stand before a lease. What this node has itself its
executors are told the place of, and read there. Of other files, another node that has it is asked, and the
next one when that cannot be had; and the client, through the server, for files of its own when no node is
left. Where there is no client to ask a read waits, for INPUT_HOLDERS_S_MAX, and then has failed: InputLost.
While the link to the server is down nothing fails: holders may only wait for the server as well.

The server is asked for no more than INPUT_NODE_BYTES at once, executors by turns, and what comes is handed on
as it comes. An executor that is gone is forgotten. Everything here runs on the reactor's thread.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import msgspec
from twisted.internet.protocol import Factory

from cortex.errors import CortexError, InputChanged, InputError, InputLost, ProtocolError
from cortex.limits import INPUT_HOLDERS_S_MAX, INPUT_NODE_BYTES, INPUT_REST_S
from cortex.node.held_inputs import HeldInputs
from cortex.transfer.input_fetcher import InputFetcher
from cortex.transfer.read_queue import ReadQueue
from cortex.wire.messages import (
    FromNode,
    InputBytes,
    InputHello,
    InputHolders,
    InputLocated,
    InputUnread,
    LocateInput,
    NodeReads,
    OutputNode,
    ReadInput,
    ToInputDoor,
)
from cortex.wire.transports import MessageProtocol, listen_unix

_Link = MessageProtocol[ToInputDoor]
_OF_THE_FILE = (InputChanged.code, InputError.code)  # what another holder would not know better


class Asker(Hashable, Protocol):
    """Whoever reads the client's bytes: the link of an executor, or a part of a put."""

    def send(self, message: Any) -> None: ...


_LOOK_S = 1.0  # how often reads that wait for a holder are looked at


class _Holders:
    """Of one job's files, as the server told last."""

    def __init__(self, message: InputHolders, own_name: str) -> None:
        self._sets = [
            tuple(message.nodes[number].node for number in each if message.nodes[number].node != own_name)
            for each in message.sets
        ]
        self._set_of = array("I", message.set_of)
        self.client_files = message.client_files

    def of(self, file: int) -> tuple[str, ...]:
        return self._sets[self._set_of[file]] if 0 <= file < len(self._set_of) else ()


class InputDoor:
    """Listens at `socket_path`, in a private folder. `send` takes messages to the server. `fetcher(answered,
    failed)` makes what asks other nodes, `learn(nodes)` hears of their addresses; `held` is what this node
    has. None of these on one machine, or in tests of the client's part alone."""

    def __init__(
        self,
        reactor: Any,
        node: str,
        send: Callable[[FromNode], None],
        socket_path: str,
        *,
        clock: Callable[[], float] = lambda: 0.0,
        held: HeldInputs | None = None,
        fetcher: Callable[[Any, Any], InputFetcher] | None = None,
        learn: Callable[[Sequence[OutputNode]], None] = lambda nodes: None,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._node = node
        self._send = send
        self._held = held
        self._learn = learn
        self._fetcher = None if fetcher is None else fetcher(self._fetched, self._not_fetched)
        self.socket_path = socket_path
        self._jobs: set[str] = set()
        self._holders: dict[str, _Holders] = {}
        self._resting: dict[str, float] = {}
        """Holders that could not be had -> when they may be asked again."""
        self._stuck: list[tuple[_Link, ReadInput, float]] = []
        """Reads that nobody could answer, each with since when."""
        self._since: dict[tuple[_Link, int], float] = {}
        """When such a read began to wait, while it is tried again."""
        self._timer: Any = None
        self._links: dict[_Link, str] = {}
        """Link -> the job that its executor serves."""
        self._server_here = True
        self._queue = ReadQueue[Asker](itertools.count(1), self._ask_server, INPUT_NODE_BYTES)
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = self._build  # type: ignore[method-assign,assignment]
        self._port = listen_unix(reactor, socket_path, factory)

    def open_job(self, job: str) -> None:
        """Its executors may read."""
        self._jobs.add(job)

    def close_job(self, job: str) -> None:
        self._jobs.discard(job)
        self._holders.pop(job, None)
        for link in [link for link, of in self._links.items() if of == job]:
            link.close()
        self._queue.close_job(job)

    def holders(self, message: InputHolders) -> None:
        """Who has the job's files, from now on."""
        self._learn(message.nodes)
        self._holders[message.job] = _Holders(message, self._node)
        for node in message.nodes:
            self._resting.pop(node.node, None)
        self._try_again()

    def answer(self, message: InputBytes | InputUnread) -> None:
        """From the server."""
        found = self._queue.answered(message.read)
        if found is not None:
            asker, read = found
            asker.send(msgspec.structs.replace(message, read=read.read))

    def read(self, asker: Asker, read: ReadInput) -> None:
        """A read of this node's own: the client is asked."""
        self._queue.ask(asker, read)

    def drop(self, asker: Asker) -> None:
        """It wants nothing more; what it has asked for comes all the same."""
        self._queue.drop(asker)

    def drop_job(self, job: str) -> None:
        """Nobody answers what was read under this id."""
        self._queue.close_job(job)

    def server_gone(self) -> None:
        """Reads of the client wait."""
        self._server_here = False
        self._queue.down()

    def server_back(self) -> None:
        """What waits, and what was not answered, is asked for."""
        self._server_here = True
        now = self._clock()
        self._since = dict.fromkeys(self._since, now)
        self._stuck = [(link, read, now) for link, read, _ in self._stuck]
        self._queue.up()

    def stop(self) -> None:
        self._port.stopListening()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._fetcher is not None:
            self._fetcher.stop()
        for link in list(self._links):
            link.close()

    # --- whom to ask ---

    def _route(self, link: _Link, read: ReadInput) -> None:
        known = self._holders.get(read.job)
        now = self._clock()
        able = () if known is None else known.of(read.file)
        able = tuple(node for node in able if self._resting.get(node, now) <= now)
        if able and self._fetcher is not None:
            self._fetcher.ask(min(able, key=self._fetcher.load), link, read)
        elif known is None or read.file < known.client_files:
            self._since.pop((link, read.read), None)
            self._queue.ask(link, read)
        else:
            self._stuck.append((link, read, self._since.setdefault((link, read.read), now)))
            if self._timer is None or not self._timer.active():
                self._timer = self._reactor.callLater(_LOOK_S, self._look)

    def _look(self) -> None:
        now = self._clock()
        waiting, self._stuck = self._stuck, []
        for link, read, since in waiting:
            if self._links.get(link) != read.job:
                continue
            if self._server_here and now - since >= INPUT_HOLDERS_S_MAX:
                self._since.pop((link, read.read), None)
                error = InputLost(
                    f"none of the nodes that have file {read.file} of the job could be reached",
                    details={"node": self._node, "for": f"{INPUT_HOLDERS_S_MAX:g} s"},
                    cure="cortex status shows which nodes are there; each must reach the others' data ports",
                )
                link.send(InputUnread(read.read, error.report()))
            else:
                self._route(link, read)
        if self._stuck and (self._timer is None or not self._timer.active()):
            self._timer = self._reactor.callLater(_LOOK_S, self._look)

    def _try_again(self) -> None:
        waiting, self._stuck = self._stuck, []
        for link, read, _ in waiting:
            if self._links.get(link) == read.job:
                self._route(link, read)

    def _fetched(self, holder: str, link: _Link, read: ReadInput, answer: InputBytes | InputUnread) -> None:
        if self._links.get(link) != read.job:
            return
        if isinstance(answer, InputUnread) and answer.error.code not in _OF_THE_FILE:
            self._rest(holder)  # it does not know the job (any more)
            self._route(link, read)
            return
        self._since.pop((link, read.read), None)
        link.send(answer)

    def _not_fetched(
        self, holder: str, reads: Sequence[tuple[_Link, ReadInput]], _error: CortexError
    ) -> None:
        self._rest(holder)
        for link, read in reads:
            if self._links.get(link) == read.job:
                self._route(link, read)

    def _rest(self, holder: str) -> None:
        self._resting[holder] = self._clock() + INPUT_REST_S

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
        elif isinstance(message, LocateInput):
            link.send(self._located(message))
        else:
            self._route(link, message)

    def _located(self, message: LocateInput) -> InputLocated:
        found = None if self._held is None else self._held.file(message.job, message.file)
        if found is None:
            return InputLocated(message.read)
        _, file = found
        return InputLocated(message.read, file.path, file.modified_ns, file.inode)

    def _lost(self, link: _Link, _error: CortexError | None) -> None:
        self._queue.drop(link)
        if self._fetcher is not None:
            self._fetcher.drop(link)
        self._stuck = [each for each in self._stuck if each[0] is not link]
        for key in [key for key in self._since if key[0] is link]:
            del self._since[key]
        self._links.pop(link, None)

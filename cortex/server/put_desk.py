"""The server's desk for ``cortex put``: a `PutRun` for each connection that puts something.

The bytes of a part go from the client to its node as reads of input do (`InputRelay`): the server keeps none.
Nothing of a put outlives its connection or this server. All methods are called on the reactor's thread;
ProtocolErrors they raise are the client's fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from cortex.errors import CortexError, ProtocolError, UsageError
from cortex.ids import new_put_id
from cortex.scheduling.put_run import PutRun, PutState, Say
from cortex.server.input_relay import InputRelay
from cortex.wire.messages import (
    BeginPut,
    FinishPut,
    Message,
    OfferPart,
    PartsNamed,
    PartStored,
    PutOpened,
    Refused,
)


class PutDesk:
    """`to_node(node, message)` and `to_client(client, message)` send, `refuse(client, refused)` tells and
    closes; clients are told apart by identity. `note(client, request, error)` hears of each put at its end,
    with "" where it is done."""

    def __init__(
        self,
        clock: Callable[[], float],
        relay: InputRelay,
        to_node: Callable[[str, Any], None],
        to_client: Callable[[Any, Any], None],
        refuse: Callable[[Any, Refused], None],
        note: Callable[[Any, BeginPut, str], None],
    ) -> None:
        self._clock = clock
        self._relay = relay
        self._to_node = to_node
        self._to_client = to_client
        self._refuse = refuse
        self._note = note
        self._runs: dict[str, tuple[PutRun, Any]] = {}
        """Put -> (it, its client)."""
        self._of: dict[Any, str] = {}

    def begin(self, client: Any, request: BeginPut, nodes: Iterable[str]) -> None:
        """`nodes` have data roots and take work."""
        if client in self._of:
            raise ProtocolError("a client puts one file at a time on a connection")
        if any(run.request.name == request.name for run, _ in self._runs.values()):
            error: CortexError = UsageError(
                f"data:{request.name} is being put by somebody just now", cure="name another with --as"
            )
            self._note(client, request, error.message)
            self._refuse(client, Refused(error.report()))
            return
        run = PutRun(new_put_id(), request, nodes, self._clock())
        self._runs[run.put] = run, client
        self._of[client] = run.put
        self._relay.client_here(run.put, client)
        self._act(run, client, run.begin())

    def said(self, client: Any, message: OfferPart | FinishPut) -> None:
        put = self._of.get(client)
        if put is None:
            raise ProtocolError(f"a {type(message).__name__} came before a put was begun")
        run, _ = self._runs[put]
        act = run.offered(message) if isinstance(message, OfferPart) else run.finish(message)
        self._act(run, client, act)

    def client_lost(self, client: Any) -> None:
        put = self._of.get(client)
        if put is not None:
            run, _ = self._runs[put]
            self._act(run, client, run.give_up())

    def node_said(self, message: PutOpened | PartStored | PartsNamed) -> None:
        run, client = self._runs.get(message.put, (None, None))
        if run is None:
            return  # it has ended
        if isinstance(message, PutOpened):
            said = run.opened(message)
        elif isinstance(message, PartStored):
            said = run.stored(message)
        else:
            said = run.named(message)
        self._act(run, client, said)

    def node_lost(self, node: str) -> None:
        """Its link has ended: it gives up all of its own."""
        for run, client in list(self._runs.values()):
            self._act(run, client, run.node_lost(node))

    def node_reads(self, node: str, put: str) -> None:
        """A node asks for input under this id, which may be a job's."""
        found = self._runs.get(put)
        if found is not None:
            found[0].reads(node)

    def tick(self) -> None:
        for run, client in list(self._runs.values()):
            self._act(run, client, run.tick(self._clock(), partial(self._relay.owes, run.put)))

    def _act(self, run: PutRun, client: Any, said: list[Say]) -> None:
        if run.ended and self._runs.pop(run.put, None) is not None:
            del self._of[client]
            self._relay.close_job(run.put)
            self._note(client, run.request, _cause(run, said))
        for node, message in said:
            if node:
                self._to_node(node, message)
            else:
                self._tell(client, message)

    def _tell(self, client: Any, message: Message) -> None:
        if isinstance(message, Refused):
            self._refuse(client, message)
        else:
            self._to_client(client, message)


def _cause(run: PutRun, said: list[Say]) -> str:
    """Why it has failed; "" where it is done."""
    refused = (message.error.message for _, message in said if isinstance(message, Refused))
    return "" if run.state is PutState.DONE else next(refused, "the client's connection ended")

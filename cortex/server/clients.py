"""The clients that are connected to the server: how each is greeted, and how it is answered.

A client says hello, with its versions, and hears the server's when it may begin: on one machine not before
the node is there, so that the answer can say what can be used. Which jobs are a client's is the matter of
`cortex.server.client_jobs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cortex.errors import CortexError, ProtocolError, VersionMismatch
from cortex.wire.messages import (
    ClientHello,
    FromServer,
    JobDone,
    JobFailed,
    JobReport,
    Refused,
    ServerHello,
)
from cortex.wire.transports import MessageProtocol
from cortex.wire.versions import check_versions, local_versions

if TYPE_CHECKING:  # the certificates' library is not needed on one machine
    from cortex.wire.authority import Peer


class Client:
    """A connected client and its jobs that have not been acknowledged."""

    def __init__(self, link: MessageProtocol[Any], peer: Peer | None) -> None:
        self.link = link
        self.peer = peer
        """None: a process of this machine's user, over a unix socket."""
        self.greeted = False
        self.welcomed = False
        self.jobs: set[str] = set()

    @property
    def owner(self) -> str:
        """Of its jobs: the id in its certificate, "" on one machine."""
        return "" if self.peer is None else self.peer.id

    def refuse(self, error: CortexError) -> None:
        """Say that what it asked for is not done, and why."""
        self.link.send(Refused(error.report()))

    def answer(self, message: FromServer) -> None:
        """About a job: one that is too large for a frame fails the job."""
        try:
            self.link.send(message)
        except ProtocolError as error:
            assert isinstance(message, JobDone | JobFailed)
            job, report = message.job, message.report
            self.link.send(JobFailed(job, error.report(), JobReport(job, report.name, report.seconds)))


class Clients:
    """`room()`: slots and bytes of memory that there are; None: nobody is welcome yet."""

    def __init__(self, room: Callable[[], tuple[int, int] | None]) -> None:
        self._room = room
        self._versions = local_versions()
        self._clients: dict[MessageProtocol[Any], Client] = {}

    def of(self, link: MessageProtocol[Any], peer: Peer | None) -> Client:
        """Who is at the other end."""
        client = self._clients.get(link)
        if client is None:
            client = self._clients[link] = Client(link, peer)
        return client

    def is_here(self, client: Client) -> bool:
        return self._clients.get(client.link) is client

    def lost(self, link: MessageProtocol[Any]) -> Client | None:
        """Its connection has ended; None if it had said nothing."""
        return self._clients.pop(link, None)

    def close(self) -> None:
        for client in list(self._clients.values()):
            client.link.close()

    def greet(self, client: Client, hello: ClientHello) -> None:
        if client.greeted:
            raise ProtocolError("a second hello came")
        try:
            check_versions(hello.versions, self._versions, "the client")
        except VersionMismatch as error:
            client.link.close(Refused(error.report()))
            return
        client.greeted = True
        client.link.accept()
        self._welcome(client)

    def welcome(self) -> None:
        """There is a node: whoever was greeted may begin."""
        for client in list(self._clients.values()):
            self._welcome(client)

    def _welcome(self, client: Client) -> None:
        room = self._room() if client.greeted and not client.welcomed else None
        if room is not None:
            client.welcomed = True
            client.link.send(ServerHello(self._versions, *room))

"""The server's door on its cluster port: answers joins and renewals, and hands members to their owner.

A peer without certificate is answered once and closed. A member's messages, other than a renewal, go to
`received(link, message)`, where ``link.peer`` says who it is; what its role may not send has been
refused before. Blocking work (the disk under a join) runs in `run`, never on the reactor's thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from cortex.errors import CortexError, InternalError, NotAllowed, ProtocolError, from_report
from cortex.ids import Role
from cortex.wire.authority import not_after
from cortex.wire.gate import Members, revoked
from cortex.wire.join_desk import JoinDesk
from cortex.wire.messages import CertificateRenewed, Join, Joined, Message, Refused, RenewCertificate
from cortex.wire.peers import AcceptedProtocol
from cortex.wire.permissions import union_from
from cortex.wire.tls import exporter_of

_log = Logger()
_MEMBERS = (Role.NODE, Role.CLIENT, Role.ADMIN, Role.MONITOR)

Link = AcceptedProtocol[Message]


class Door:
    """See the module. `run(function, *arguments)` gives a Deferred, such as a `deferToThreadPool` on a
    pool of the journal; `clock` has `callLater`; `wall_clock` is what certificates and tokens go by.

    `lost(link, error)` is called once for every member whose link ends. `noted(link, action, object, error,
    details)` is for the audit log: joins, renewals, and who was refused (`error`).
    """

    def __init__(
        self,
        clock: Any,
        members: Members,
        desk: JoinDesk,
        run: Callable[..., Deferred[Any]],
        received: Callable[[Link, Message], None],
        lost: Callable[[Link, CortexError | None], None],
        wall_clock: Callable[[], float] = time.time,
        noted: Callable[[Link, str, str, CortexError | None, dict[str, str]], None] = lambda *_: None,
    ) -> None:
        self._clock = clock
        self._members = members
        self._desk = desk
        self._run = run
        self._received = received
        self._lost = lost
        self._wall_clock = wall_clock
        self._noted = noted
        self._links: set[Link] = set()
        self._answering: set[Link] = set()

    def factory(self) -> Factory:
        """What to listen with (`cortex.wire.peers.listen_tls`)."""
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = self._build  # type: ignore[method-assign,assignment]
        return factory

    def revoke(self, peer: str) -> None:
        """This peer is out: its connections are closed, and it makes no more. (Journal it before.)"""
        self._members.revoke(peer)
        for link in list(self._links):
            if link.peer is not None and link.peer.id == peer:
                link.close(Refused(revoked(link.peer).report()))

    def connections(self) -> dict[str, int]:
        """How many links there are, by role; "stranger" for peers that may only join."""
        return dict(
            Counter("stranger" if each.peer is None else each.peer.role.value for each in self._links)
        )

    def close(self) -> None:
        """Close every link."""
        for link in list(self._links):
            link.close()

    # --- inside ---

    def _build(self, _address: Any) -> Link:
        return AcceptedProtocol(self._clock, self._admit, self._message, self._ended, self._wall_clock)

    def _admit(self, link: Link) -> Any:
        if link.peer is not None:
            try:
                self._members.check(link.peer, _MEMBERS)
            except NotAllowed as error:
                self._noted(link, "connect", "", error, {})
                raise
        self._links.add(link)
        return union_from(None if link.peer is None else link.peer.role)

    def _message(self, link: Link, message: Message) -> None:
        if isinstance(message, Join):
            link.hold()
            self._answer(link, message, self._desk.answer, message, exporter_of(link.transport))
        elif isinstance(message, RenewCertificate):
            self._answer(link, message, self._desk.renew, link.peer, message)
        else:
            self._received(link, message)

    def _answer(
        self, link: Link, asked: Join | RenewCertificate, function: Callable[..., Message], *arguments: Any
    ) -> None:
        if link in self._answering:  # one at a time: signing costs, and a stranger asks once
            raise ProtocolError("another request came before the last was answered")
        self._answering.add(link)
        answering = self._run(function, *arguments, self._wall_clock())
        answering.addCallbacks(
            self._answered, self._failed, callbackArgs=(link, asked), errbackArgs=(link, asked)
        )

    def _answered(self, answer: Message, link: Link, asked: Join | RenewCertificate) -> None:
        self._answering.discard(link)
        action = "join" if isinstance(asked, Join) else "renew"
        error = from_report(answer.error) if isinstance(answer, Refused) else None
        details = {"token": asked.token_id} if isinstance(asked, Join) else {}
        self._noted(link, action, answer.id if isinstance(answer, Joined) else "", error, details)
        if isinstance(answer, CertificateRenewed):
            link.renewed(not_after(answer.certificate_der))
        if isinstance(answer, Joined):
            _log.info("{id} joined", id=answer.id)
        if isinstance(answer, Refused):
            address = link.transport.getPeer() if link.transport is not None else "one that is gone"
            who = link.peer or address
            _log.warn("{who}: {error}", who=str(who), error=answer.error.message)
        if link.peer is None:
            link.close(answer)
        else:
            link.send(answer)

    def _failed(self, failure: Failure, link: Link, asked: Join | RenewCertificate) -> None:
        _log.failure("a join or renewal could not be answered", failure)
        error = InternalError("the server could not answer; its log says why")
        self._answered(Refused(error.report()), link, asked)

    def _ended(self, link: Link, error: CortexError | None) -> None:
        self._links.discard(link)
        if isinstance(error, NotAllowed):
            self._noted(link, "ask", "", error, {})
        if link.peer is not None:
            self._lost(link, error)
        elif error is not None:
            _log.warn("a peer without certificate was refused: {error}", error=error.message)

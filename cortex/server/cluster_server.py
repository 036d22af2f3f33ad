"""The server process of a cluster: its home, its one door, and the members behind it wired to a `Server`.

Everything a member says has passed `cortex.wire.door`: its certificate, its role's messages. Here its
words are bound to who it is: a node speaks for itself alone, and a client of its own jobs (an admin of
all). A node whose link ends may come back with what it holds, and a client for its job; both may do so in a
later life of the server, which begins with the journal in its home (`cortex.storage.journal`).

Blocking work (tokens on the disk, signing) runs in one thread of the journal's own pool. A home is
locked while a server lives in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from cortex.errors import CortexError, InternalError, ProtocolError, UsageError, VersionMismatch
from cortex.ids import Role
from cortex.limits import (
    AUDIT_TAIL_MAX,
    AUTHORITY_WARNED_S,
    EXAMINE_S_MAX,
    RENEW_RETRY_S,
    SHUT_DOWN_S,
    TOKEN_S,
    TOKEN_USES,
)
from cortex.machine_report import examine_machine
from cortex.metric_text import Family
from cortex.private_files import lock_file, make_private_folder
from cortex.server.audit_desk import DONE, REFUSED, AuditDesk, actor_of
from cortex.server.examinations import Examinations
from cortex.server.journal_desk import JournalDesk
from cortex.server.server import Server
from cortex.server.server_metrics import server_ailing, server_families
from cortex.sharing_policy import SharingPolicy
from cortex.storage.audit_log import AuditLog
from cortex.storage.filesystem import is_memory_backed
from cortex.storage.journal import Journal
from cortex.storage.token_store import TokenStore
from cortex.units import counted
from cortex.wire import tls
from cortex.wire.door import Door, Link
from cortex.wire.gate import Members, Strangers
from cortex.wire.join import Endpoint
from cortex.wire.join_desk import JoinDesk, TokenDesk
from cortex.wire.messages import (
    AdminDone,
    AuditTail,
    CreateToken,
    DrainNode,
    Examined,
    FromNode,
    GetAudit,
    GetDiagnosis,
    KillCluster,
    ListTokens,
    Message,
    NodeHello,
    PeersRevoked,
    Refused,
    RevokePeer,
    RevokeToken,
    ShutDown,
    TokenCreated,
)
from cortex.wire.peers import listen_tls
from cortex.wire.renewal import look_again_s
from cortex.wire.server_home import ServerHome, open_server_home
from cortex.wire.versions import check_versions, local_versions

if TYPE_CHECKING:
    from cortex.wire.metrics_port import MetricsPort

_log = Logger()
_LOCK: Final = "server.lock"
_TOKENS: Final = "tokens"
_BLOBS: Final = "blobs"
_JOURNAL: Final = "journal"
_AUDIT: Final = "audit"


class ClusterServer:
    """`reactor` times its calls by the monotonic `clock`; certificates and tokens go by `wall_clock`.

    `metrics`: where its figures are told (`cortex.wire.metrics_port`); None: nowhere.
    `stopped()` is called when an admin has ended the cluster. Raises UsageError for a home in use or an
    address that cannot be listened on.
    """

    def __init__(
        self,
        reactor: Any,
        home: str,
        listen: Endpoint,
        advertised: Endpoint,
        stopped: Callable[[], None],
        *,
        metrics: Endpoint | None = None,
        sharing: SharingPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        make_private_folder(home)
        self._lock = lock_file(os.path.join(home, _LOCK), f"another server lives in {home}")
        self._reactor = reactor
        self._home = home
        self._advertised = advertised
        self._stopped = stopped
        self._wall_clock = wall_clock
        self._stopping = False
        self._versions = local_versions()
        now = wall_clock()
        made = open_server_home(home, advertised, now)
        self.cluster = made.authority.cluster
        store = TokenStore(os.path.join(home, _TOKENS))
        self._store = store
        self._tokens = TokenDesk(made.authority, store, advertised)
        self._members = Members(self.cluster, store.revoked_peers())
        self._pool = ThreadPool(0, 1, name="journal")
        self._pool.start()
        self._run: Callable[..., Deferred[Any]] = partial(deferToThreadPool, reactor, self._pool)
        journal = Journal(os.path.join(home, _JOURNAL))
        self._journal = JournalDesk(reactor, journal, self._run, wall_clock)
        self._audit = AuditDesk(AuditLog(os.path.join(home, _AUDIT)), self._run, wall_clock)
        self._nodes: dict[str, Link] = {}
        self._server = Server(
            reactor,
            clock,
            self.cluster,
            self._journal,
            blob_folder=os.path.join(home, _BLOBS),
            wall_clock=wall_clock,
            audit=self._audit.note,
            certificate_expiry=self._certificate_expiry,
            sharing=sharing or SharingPolicy(),
        )
        self._from_node: dict[Link, Callable[[FromNode], None]] = {}
        desk = JoinDesk(made.authority, store, self._versions)
        self._door = Door(
            reactor, self._members, desk, self._run, self._said, self._lost, wall_clock, self._noted
        )
        self._settings = tls.Renewable(tls.cluster_port(made.server))
        self._port = listen_tls(reactor, listen, self._settings, Strangers(), self._door.factory())
        self._expiries = {
            "authority": made.authority.certificate.not_valid_after_utc.timestamp(),
            "server": made.server.expires_at,
            "admin": made.admin.expires_at,
        }
        self._metrics_settings = tls.Renewable(tls.data_port(made.server))
        self._metrics: MetricsPort | None = None
        if metrics is not None:
            from cortex.wire.metrics_port import MetricsPort  # and with it twisted.web

            self._metrics = MetricsPort(
                reactor,
                metrics,
                self._metrics_settings,
                self._members,
                self._families,
                lambda: server_ailing(self._server, self._journal),
                wall_clock,
            )
        self._examinations = Examinations(wall_clock, lambda: (self.port, self.metrics_port))
        self._renewal: Any = None
        self._renewed(made)

    @property
    def port(self) -> int:
        return int(self._port.getHost().port)

    def invite(self, role: Role = Role.NODE) -> str:
        """A new join line; it holds a secret."""
        return self._tokens.invite(role, TOKEN_S, TOKEN_USES, self._wall_clock()).text()

    @property
    def metrics_port(self) -> int:
        """0: none."""
        return 0 if self._metrics is None else self._metrics.port

    @property
    def invited_before(self) -> bool:
        """False on the first start: nobody can have joined."""
        return bool(self._store.tokens())

    def stop(self) -> None:
        """Close every link and the port; a later life goes on with the jobs under way."""
        self._stopping = True
        if self._renewal is not None and self._renewal.active():
            self._renewal.cancel()
        self._port.stopListening()
        if self._metrics is not None:
            self._metrics.stop()
        self._server.stop()
        self._door.close()
        self._audit.stop()
        self._journal.stop()
        self._pool.stop()
        os.close(self._lock)

    # --- members ---

    def _said(self, link: Link, message: Message) -> None:
        assert link.peer is not None
        if link.peer.role is Role.NODE:
            self._node_said(link, message)
        elif isinstance(message, KillCluster):
            self._kill(link)
        elif isinstance(message, GetDiagnosis):
            self._diagnose(link)
        elif isinstance(message, GetAudit):
            link.accept()
            reading = self._run(self._audit.tail, min(max(message.count, 0), AUDIT_TAIL_MAX))
            reading.addCallbacks(
                lambda lines: link.send(AuditTail(tuple(lines))), self._failed, errbackArgs=(link,)
            )
        elif isinstance(message, DrainNode):
            self._drain(link, message)
        elif isinstance(message, CreateToken | ListTokens | RevokeToken | RevokePeer):
            link.accept()
            answering = self._run(self._tokens.answer, message, self._wall_clock())
            answering.addCallbacks(
                self._answered, self._failed, callbackArgs=(link, message), errbackArgs=(link,)
            )
        else:
            self._server.client_said(link, message, link.peer)

    def _node_said(self, link: Link, message: Message) -> None:
        assert link.peer is not None
        if isinstance(message, NodeHello):
            self._node_hello(link, message)
            return
        deliver = self._from_node.get(link)
        if deliver is None:
            raise ProtocolError(f"a {type(message).__name__} came before the node's hello")
        if not hasattr(message, "node"):
            raise ProtocolError(f"a node sent {type(message).__name__}")
        if message.node != link.peer.id:
            raise ProtocolError(f"{link.peer} spoke for node {message.node!r}")
        if isinstance(message, Examined):
            self._examinations.answered(message)
            return
        deliver(message)  # type: ignore[arg-type]  # the link's decoder gives no other

    def _node_hello(self, link: Link, hello: NodeHello) -> None:
        assert link.peer is not None
        if hello.node != link.peer.id:
            raise ProtocolError(f"{link.peer} said hello as node {hello.node!r}")
        if link in self._from_node:
            raise ProtocolError("a second hello came")
        if hello.slots < 1:
            raise ProtocolError(f"node {hello.node} has {hello.slots} slots")
        try:
            check_versions(hello.versions, self._versions, f"node {hello.node}")
        except VersionMismatch as error:
            link.close(Refused(error.report()))
            return
        link.accept()
        old = self._nodes.get(hello.node)
        if old is not None:  # its end has not reached us yet
            self._forget_node(old)
            old.close()
        self._nodes[hello.node] = link
        deliver = self._from_node[link] = self._server.attach_node(link)
        link.send(PeersRevoked(self._members.revoked))
        deliver(hello)
        _log.info("{node} is here, with {slots}", node=hello.node, slots=counted(hello.slots, "slot"))

    def _lost(self, link: Link, error: CortexError | None) -> None:
        assert link.peer is not None
        if link.peer.role is Role.NODE:
            self._forget_node(link)
            if error is not None:
                _log.warn("{peer}: {error}", peer=str(link.peer), error=error.message)
        else:
            self._server.client_lost(link, error)

    def _forget_node(self, link: Link) -> None:
        if self._from_node.pop(link, None) is None:
            return
        assert link.peer is not None
        if self._nodes.get(link.peer.id) is link:
            del self._nodes[link.peer.id]
            self._server.detach_node(link.peer.id, for_good=link.peer.id in self._members.revoked)
            _log.info("{node} is gone", node=link.peer.id)

    def _noted(
        self, link: Link, action: str, about: str, error: CortexError | None, details: dict[str, str]
    ) -> None:
        """What the door has to say to the audit log."""
        if error is not None:
            details = {**details, "error": error.message}
        self._audit.note(actor_of(link), action, about, DONE if error is None else REFUSED, details)

    def _diagnose(self, link: Link) -> None:
        known = self._server.scheduler.leases.nodes
        addresses = {name: node.hello.data_address for name, node in known.items()}
        number = self._examinations.begin(link, addresses, self._nodes)
        reporting = self._run(
            examine_machine,
            self._wall_clock(),
            self._versions,
            [("home", self._home)],
            is_memory_backed,
            certificate_expires_at=self._expiries["server"],
        )
        reporting.addCallbacks(
            lambda report: self._examinations.reported(number, report), self._failed, errbackArgs=(link,)
        )
        self._reactor.callLater(EXAMINE_S_MAX, self._examinations.give_up, number)

    # --- admins ---

    def _answered(self, answer: Message, link: Link, message: Message) -> None:
        action, about = _audited(message, answer)
        if action:
            error = answer.error.message if isinstance(answer, Refused) else ""
            outcome, details = (REFUSED, {"error": error}) if error else (DONE, {})
            self._audit.note(actor_of(link), action, about, outcome, details)
        if isinstance(message, RevokePeer) and isinstance(answer, AdminDone):
            self._door.revoke(message.peer)
            for node in self._nodes.values():
                node.send(PeersRevoked(self._members.revoked))
        link.send(answer)

    def _failed(self, failure: Failure, link: Link) -> None:
        _log.failure("an admin's request failed", failure)
        link.send(Refused(InternalError("the request failed; the server's log says why").report()))

    def _drain(self, link: Link, message: DrainNode) -> None:
        link.accept()
        if not self._server.drain(message.node, message.seconds, message.undo):
            cure = "list them: cortex nodes list"
            link.send(Refused(UsageError(f"there is no node {message.node!r} here", cure=cure).report()))
            self._audit.note(actor_of(link), "drain", message.node, REFUSED)
            return
        self._audit.note(actor_of(link), "undo-drain" if message.undo else "drain", message.node)
        done = "keeps" if message.undo else "drains"
        _log.info("{peer} {done} {node}", peer=str(link.peer), done=done, node=message.node)
        link.send(AdminDone())

    def _certificate_expiry(self, node: str) -> float:
        link = self._nodes.get(node)
        return 0.0 if link is None or link.peer is None else link.peer.not_after

    def _kill(self, link: Link) -> None:
        _log.warn("{peer} ends the cluster", peer=str(link.peer))
        self._audit.note(actor_of(link), "kill-cluster")
        self._server.cancel_all(f"{link.peer} has ended the cluster")
        for node in self._nodes.values():
            node.send(ShutDown())
        link.close(AdminDone())
        self._reactor.callLater(SHUT_DOWN_S, self._stopped)

    # --- time ---

    def _renew(self) -> None:
        opening = self._run(open_server_home, self._home, self._advertised, self._wall_clock())
        opening.addCallbacks(self._renewed, self._not_renewed)

    def _renewed(self, made: ServerHome) -> None:
        """The server's and the admin's certificates as they are now: those to come are shown from here on."""
        if self._stopping:
            return
        now = self._wall_clock()
        self._settings.options = tls.cluster_port(made.server)
        self._metrics_settings.options = tls.data_port(made.server)
        self._expiries.update(server=made.server.expires_at, admin=made.admin.expires_at)
        self._renewal = self._reactor.callLater(look_again_s([made.server, made.admin], now), self._renew)
        ends_at = made.authority.certificate.not_valid_after_utc
        if ends_at.timestamp() - now < AUTHORITY_WARNED_S:
            _log.warn(
                "the cluster's authority ends on {day:%Y-%m-%d}: make a new cluster before", day=ends_at
            )

    def _not_renewed(self, failure: Failure) -> None:
        _log.failure("the server's certificate could not be looked after", failure)
        if not self._stopping:
            self._renewal = self._reactor.callLater(RENEW_RETRY_S, self._renew)

    def _families(self) -> Iterable[Family]:
        return server_families(
            self._server, self._journal, self._audit, self._door.connections(), self._expiries
        )


def _audited(message: Message, answer: Message) -> tuple[str, str]:
    """(action, object) of what an admin asked; "" for a question that changes nothing."""
    if isinstance(message, CreateToken):
        return "create-token", answer.token_id if isinstance(answer, TokenCreated) else message.role.value
    if isinstance(message, RevokeToken):
        return "revoke-token", message.token_id
    if isinstance(message, RevokePeer):
        return "revoke-peer", message.peer
    return "", ""

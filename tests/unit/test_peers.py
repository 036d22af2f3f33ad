"""Both ends of a TLS link in memory, on a test clock: who gets in, who does not, and when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, connect

from cortex.errors import CortexError, NotAllowed, NotTrusted, ProtocolError, Unreachable, UsageError
from cortex.ids import Role, new_peer_id, peer_name, server_name
from cortex.limits import (
    CLOSE_S_MAX,
    DAY_S,
    HELLO_BYTES_MAX,
    HELLO_S_MAX,
    STRANGERS_PER_ADDRESS_MAX,
)
from cortex.storage.token_store import TokenStore
from cortex.wire import messages as m
from cortex.wire import tls
from cortex.wire.authority import Authority, make_key, make_request
from cortex.wire.door import Door, Link
from cortex.wire.framing import HEADER, FrameDecoder, encode_frame
from cortex.wire.gate import Members, Strangers
from cortex.wire.identity import Identity, make_identity
from cortex.wire.join import Endpoint, make_proof
from cortex.wire.join_desk import JoinDesk
from cortex.wire.peers import AcceptedProtocol, DialedProtocol, listen_tls
from cortex.wire.permissions import union_to
from cortex.wire.versions import local_versions
from tests.unit.test_authority import signed

NOW = time.time()  # OpenSSL looks at the real clock
HELLO = m.ClientHello({})
ANSWER = m.ServerHello({}, 1, 1)
AUTHORITY = Authority.make("k0123456789ab", NOW)


def identity_of(role: Role, authority: Authority = AUTHORITY, now: float = NOW) -> Identity:
    key = make_key()
    certificate = authority.issue(key.public_key(), role, new_peer_id(role), now)
    return make_identity(key, certificate, authority.certificate, "h:1")


IDENTITIES = {role: identity_of(role) for role in Role}


class Port:
    """A listening port in memory: what dials it gets a pump that moves the bytes of both ends."""

    def __init__(self, settings: Any, factory: Factory) -> None:
        self.reactor = MemoryReactorClock()
        self.strangers = Strangers()
        self.settings = tls.Renewable(settings)
        listen_tls(self.reactor, Endpoint("127.0.0.1", 0), self.settings, self.strangers, factory)
        self.factory: Any = self.reactor.tcpServers[0][1]

    def dial(self, client: Any, address: str = "10.0.0.1") -> Any:
        server = self.factory.buildProtocol(IPv4Address("TCP", address, 1))
        assert server is not None, "turned away"
        transport = FakeTransport(server, True, peerAddress=IPv4Address("TCP", address, 1))
        return connect(server, transport, client, FakeTransport(client, False), clock=self.reactor)


class Server(Port):
    """The cluster port, with a real door and desk behind it."""

    def __init__(self, folder: Path, settings: Any = None) -> None:
        self.got: list[m.Message] = []
        self.links: list[Link] = []
        self.ended: list[tuple[str, str]] = []
        self.waiting: list[tuple[Any, Deferred[Any]]] | None = None
        self.store = TokenStore(str(folder))
        self.members = Members(AUTHORITY.cluster)
        desk = JoinDesk(AUTHORITY, self.store, local_versions())
        factory = Factory()
        super().__init__(settings or tls.cluster_port(IDENTITIES[Role.SERVER]), factory)
        self.door = Door(
            self.reactor, self.members, desk, self.run, self.received, self.lost, lambda: self.wall()
        )
        self.factory.wrappedFactory = self.door.factory()

    def wall(self) -> float:
        return NOW + self.reactor.seconds()

    def run(self, function: Any, *arguments: Any) -> Any:
        if self.waiting is None:
            return succeed(function(*arguments))
        self.waiting.append(((function, arguments), Deferred()))
        return self.waiting[-1][1]

    def received(self, link: Link, message: m.Message) -> None:
        self.got.append(message)
        self.links.append(link)
        link.accept()
        link.send(m.PeersRevoked(()) if isinstance(message, m.NodeHello) else ANSWER)

    def lost(self, link: Link, error: CortexError | None) -> None:
        self.ended.append((str(link.peer), "" if error is None else error.code))


class Client:
    """A dialed link, and what becomes of it."""

    def __init__(self, port: Port, identity: Identity, name: str, first: m.Message | None = None) -> None:
        self.got: list[m.Message] = []
        self.opened = 0
        self.ended: list[CortexError | None] = []
        self.first = first
        union = union_to(identity.role) if identity.role is not Role.SERVER else m.ToNode
        self.protocol: DialedProtocol[Any] = DialedProtocol(
            port.reactor, name, union, self.open, self.take, self.lost
        )
        self.tls = wrapped(port, tls.dialing(identity, name), self.protocol)

    def open(self, protocol: DialedProtocol[Any]) -> None:
        self.opened += 1
        if self.first is not None:
            protocol.send(self.first)

    def take(self, protocol: DialedProtocol[Any], message: Any) -> None:
        self.got.append(message)
        protocol.accept()

    def lost(self, _: object, error: CortexError | None) -> None:
        self.ended.append(error)


class Raw(Protocol):
    """A stranger: sends what it likes once TCP is connected, and keeps what comes."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
        self.heard = b""
        self.reason: Failure | None = None

    def connectionMade(self) -> None:
        if self.data:
            self.transport.write(self.data)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.reason = reason

    def messages(self) -> list[Any]:
        return list(FrameDecoder[Any](m.FromServerJoin).feed(self.heard))


def wrapped(port: Port, settings: Any, protocol: Any) -> Any:
    factory = Factory()
    factory.buildProtocol = lambda _: protocol  # type: ignore[method-assign,assignment]
    return TLSMemoryBIOFactory(settings, True, factory, clock=port.reactor).buildProtocol(None)


def anonymous() -> Any:
    """Settings of a dialer without a certificate, who verifies nothing."""
    from twisted.internet.ssl import CertificateOptions

    return CertificateOptions()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "home")
    yield made
    made.store.close()
    made.door.close()
    made.reactor.advance(max(HELLO_S_MAX, CLOSE_S_MAX) + 400 * DAY_S)
    assert not made.reactor.getDelayedCalls()


def name_of(identity: Identity) -> str:
    return peer_name(identity.cluster, identity.role, identity.id)


SERVER = server_name(AUTHORITY.cluster)


# --- the good way ---


@pytest.mark.parametrize(
    ("role", "hello"),
    [(Role.CLIENT, HELLO), (Role.ADMIN, HELLO), (Role.NODE, m.NodeHello("n", "1", 1, 1, {}))],
)
def test_a_member_is_known_before_its_first_message(server: Server, role: Role, hello: m.Message) -> None:
    client = Client(server, IDENTITIES[role], SERVER, hello)
    pump = server.dial(client.tls)
    pump.flush()
    assert server.got == [hello]
    peer = server.links[0].peer
    assert peer is not None
    assert (peer.role, peer.id) == (role, IDENTITIES[role].id)
    assert client.protocol.peer is not None
    assert client.protocol.peer.role is Role.SERVER
    assert server.strangers.total == 0
    assert len(client.got) == 1
    client.protocol.close()
    pump.flush()
    assert server.ended == [(f"{role.value} {IDENTITIES[role].id}", "")]


def test_large_frames_pass_once_the_hello_is_accepted(server: Server) -> None:
    client = Client(server, IDENTITIES[Role.CLIENT], SERVER, HELLO)
    pump = server.dial(client.tls)
    pump.flush()
    client.protocol.send(m.CancelJob("j" * 300_000))
    pump.flush()
    assert len(server.got) == 2
    client.protocol.close()
    pump.flush()


def test_a_stranger_joins_and_comes_back_as_a_member(server: Server) -> None:
    token = server.store.create(Role.NODE, 60, 1, NOW)
    key = make_key()
    request = make_request(key)
    raw = Raw()
    connection = wrapped(server, anonymous(), raw)
    pump = server.dial(connection)
    pump.flush()
    exporter = tls.exporter_of(connection)
    raw.transport.write(  # type: ignore[union-attr]
        encode_frame(m.Join(token.id, request, make_proof(token.secret, exporter, request), local_versions()))
    )
    pump.flush()
    (joined,) = raw.messages()
    assert isinstance(joined, m.Joined)
    assert raw.reason is not None  # and is shown the door, to come back
    assert server.ended == []  # the owner never heard of it
    certificate = x509.load_der_x509_certificate(joined.certificate_der)
    identity = make_identity(key, certificate, AUTHORITY.certificate, "h:1")
    client = Client(server, identity, SERVER, m.NodeHello(joined.id, "1", 1, 1, {}))
    server.dial(client.tls).flush()
    assert str(server.links[0].peer) == f"node {joined.id}"
    client.protocol.close()


def test_a_renewal_is_answered_on_the_link_itself(server: Server) -> None:
    client = Client(server, IDENTITIES[Role.NODE], SERVER, m.RenewCertificate(make_request(make_key())))
    pump = server.dial(client.tls)
    pump.flush()
    assert isinstance(client.got[0], m.CertificateRenewed)
    assert server.got == []
    client.protocol.close()
    pump.flush()


# --- who does not get in ---


@pytest.mark.parametrize(
    "identity",
    [
        identity_of(Role.CLIENT, Authority.make("k0123456789ab", NOW)),  # the same name, another key
        identity_of(Role.CLIENT, now=NOW - 91 * DAY_S),  # expired
        identity_of(Role.CLIENT, now=NOW + DAY_S),  # not yet valid
        IDENTITIES[Role.SERVER],  # for accepting, not for dialing
    ],
    ids=["other authority", "expired", "not yet valid", "the server's own"],
)
def test_a_certificate_that_is_not_valid_here_fails_the_handshake(server: Server, identity: Identity) -> None:
    raw = Raw(encode_frame(HELLO))
    settings = tls.dialing(identity, SERVER)
    if identity.authority_pem != IDENTITIES[Role.CLIENT].authority_pem:
        own = tls._own(identity)
        from twisted.internet.ssl import CertificateOptions

        settings = CertificateOptions(**own)
    pump = server.dial(wrapped(server, settings, raw))
    pump.flush()
    assert server.got == []
    assert raw.heard == b""
    assert raw.reason is not None
    assert server.strangers.total == 0


def test_the_dialer_learns_that_it_was_refused(server: Server) -> None:
    client = Client(server, identity_of(Role.CLIENT, now=NOW - 91 * DAY_S), SERVER, HELLO)
    server.dial(client.tls).flush()
    (error,) = client.ended
    assert isinstance(error, NotTrusted)
    assert "our certificate has expired" in error.message
    assert "clocks" in error.cure


@pytest.mark.parametrize(
    "message",
    [HELLO, m.NodeHello("n", "1", 1, 1, {}), m.KillCluster(), m.RenewCertificate(b""), m.Stop()],
    ids=lambda message: type(message).__name__,
)
def test_a_stranger_may_join_and_nothing_else(server: Server, message: m.Message) -> None:
    raw = Raw(encode_frame(message))
    server.dial(wrapped(server, anonymous(), raw)).flush()
    assert server.got == []
    (refused,) = raw.messages()
    assert isinstance(refused, m.Refused)
    if not isinstance(message, m.Stop):
        assert refused.error.code == "not-allowed"
        assert "join first" in refused.error.cure
    assert raw.reason is not None


@pytest.mark.parametrize(
    ("role", "message"),
    [
        (Role.NODE, HELLO),
        (Role.NODE, m.CancelJob("j")),
        (Role.NODE, m.KillCluster()),
        (Role.NODE, m.Join("t", b"", b"", {})),
        (Role.CLIENT, m.NodeHello("n", "1", 1, 1, {})),
        (Role.CLIENT, m.Heartbeat("n", "1", (), 0, 0)),
        (Role.CLIENT, m.KillCluster()),
        (Role.CLIENT, m.CreateToken(Role.ADMIN, 60.0, 1)),
        (Role.CLIENT, m.RevokePeer("n0123456789ab")),
        (Role.ADMIN, m.NodeHello("n", "1", 1, 1, {})),
    ],
)
def test_a_role_that_sends_what_it_may_not_is_closed(server: Server, role: Role, message: m.Message) -> None:
    client = Client(server, IDENTITIES[role], SERVER, message)
    server.dial(client.tls).flush()
    assert server.got == []
    (refused,) = client.got
    assert isinstance(refused, m.Refused)
    assert refused.error.code == "not-allowed"
    assert refused.error.message == f"a {role.value} may not send {type(message).__name__}"
    assert server.ended == [(f"{role.value} {IDENTITIES[role].id}", "not-allowed")]


def test_a_member_of_another_cluster_or_one_put_out_is_refused(server: Server) -> None:
    server.members.revoke(IDENTITIES[Role.NODE].id)
    revoked = Client(server, IDENTITIES[Role.NODE], SERVER)
    server.dial(revoked.tls).flush()
    assert [type(message) for message in revoked.got] == [m.Refused]
    assert server.ended == []
    server.members.cluster = "k000000000000"
    foreign = Client(server, IDENTITIES[Role.CLIENT], SERVER)
    server.dial(foreign.tls).flush()
    (refused,) = foreign.got
    assert isinstance(refused, m.Refused)
    assert "another cluster" in refused.error.message


def test_who_is_put_out_is_cut_off_and_stays_out(server: Server) -> None:
    client = Client(server, IDENTITIES[Role.NODE], SERVER, m.NodeHello("n", "1", 1, 1, {}))
    other = Client(server, IDENTITIES[Role.CLIENT], SERVER, HELLO)
    pumps = [server.dial(each.tls) for each in (client, other)]
    [pump.flush() for pump in pumps]
    silent = Client(server, IDENTITIES[Role.NODE], SERVER)  # known, and has not said a word yet
    pumps.append(server.dial(silent.tls))
    pumps[-1].flush()
    client.got.clear()
    server.door.revoke(IDENTITIES[Role.NODE].id)
    [pump.flush() for pump in pumps]
    assert [type(message) for message in silent.got] == [m.Refused]
    assert [type(message) for message in client.got] == [m.Refused]
    assert server.ended == [(f"node {IDENTITIES[Role.NODE].id}", "")] * 2
    assert other.ended == []
    again = Client(server, IDENTITIES[Role.NODE], SERVER, m.NodeHello("n", "1", 1, 1, {}))
    server.got.clear()
    server.dial(again.tls).flush()
    assert server.got == []
    other.protocol.close()
    pumps[1].flush()


def test_a_link_ends_with_its_certificate(server: Server) -> None:
    client = Client(server, IDENTITIES[Role.CLIENT], SERVER, HELLO)
    pump = server.dial(client.tls)
    pump.flush()
    server.reactor.advance(90 * DAY_S - 5)
    pump.flush()
    assert client.ended == []
    server.reactor.advance(10)
    pump.flush()
    assert isinstance(client.got[-1], m.Refused)
    assert "expired" in client.got[-1].error.message
    assert len(client.ended) == 1


# --- time, size and number ---


def test_a_handshake_that_never_comes_is_cut_off_and_leaves_its_place(server: Server) -> None:
    quiet = Raw()  # TCP, and not a byte of TLS
    pump = server.dial(quiet)
    assert server.strangers.total == 1
    server.reactor.advance(HELLO_S_MAX - 0.1)
    pump.flush()
    assert quiet.reason is None
    server.reactor.advance(0.2)
    pump.flush()
    assert quiet.reason is not None
    assert quiet.heard == b""
    assert server.strangers.total == 0


def test_a_handshake_that_drips_is_cut_off(server: Server) -> None:
    record = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    drip = Raw()
    pump = server.dial(drip)
    for byte in record:
        drip.transport.write(bytes([byte]))  # type: ignore[union-attr]
        pump.flush()
        server.reactor.advance(HELLO_S_MAX / len(record) + 0.01)
    pump.flush()
    assert drip.reason is not None
    assert server.strangers.total == 0


@pytest.mark.parametrize("role", [None, Role.CLIENT])
def test_a_hello_that_never_comes_is_refused(server: Server, role: Role | None) -> None:
    raw = Raw()
    settings = anonymous() if role is None else tls.dialing(IDENTITIES[role], SERVER)
    pump = server.dial(wrapped(server, settings, raw))
    pump.flush()
    server.reactor.advance(HELLO_S_MAX + 0.1)
    pump.flush()
    (refused,) = raw.messages()
    assert "no hello within 10 s" in refused.error.message
    assert raw.reason is not None
    assert server.strangers.total == 0


@pytest.mark.parametrize("role", [None, Role.CLIENT])
def test_an_oversized_first_frame_is_refused_by_its_header(server: Server, role: Role | None) -> None:
    raw = Raw(HEADER.pack(HELLO_BYTES_MAX + 1))
    settings = anonymous() if role is None else tls.dialing(IDENTITIES[role], SERVER)
    server.dial(wrapped(server, settings, raw)).flush()
    (refused,) = raw.messages()
    assert "at most 4 KB" in refused.error.message
    assert raw.reason is not None


def test_junk_instead_of_tls_is_cut_off(server: Server) -> None:
    junk = Raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    server.dial(junk).flush()
    assert junk.reason is not None
    assert (server.got, server.ended, server.strangers.total) == ([], [], 0)


def test_one_address_cannot_keep_others_out(server: Server) -> None:
    strangers = [server.dial(Raw(), "10.0.0.66") for _ in range(STRANGERS_PER_ADDRESS_MAX)]
    address = IPv4Address("TCP", "10.0.0.66", 1)
    assert server.factory.buildProtocol(address) is None
    client = Client(server, IDENTITIES[Role.CLIENT], SERVER, HELLO)
    pump = server.dial(client.tls, "10.0.0.1")
    pump.flush()
    assert client.got == [ANSWER]
    server.reactor.advance(HELLO_S_MAX + 1)
    [each.flush() for each in strangers]
    assert server.factory.buildProtocol(address) is not None
    client.protocol.close()
    pump.flush()


def test_a_member_costs_no_place_of_strangers(server: Server) -> None:
    clients = [Client(server, IDENTITIES[Role.CLIENT], SERVER, HELLO) for _ in range(3)]
    pumps = [server.dial(client.tls) for client in clients]
    [pump.flush() for pump in pumps]
    assert server.strangers.total == 0
    [client.protocol.close() for client in clients]
    [pump.flush() for pump in pumps]
    assert server.strangers.total == 0


# --- the door's own work ---


def join_bytes() -> bytes:
    return encode_frame(m.Join("t0123456789ab", make_request(make_key()), b"p" * 32, local_versions()))


def test_a_stranger_asks_once(server: Server) -> None:
    server.waiting = []
    raw = Raw(join_bytes() * 2)
    pump = server.dial(wrapped(server, anonymous(), raw))
    pump.flush()
    assert len(server.waiting) == 1
    (refused,) = raw.messages()
    assert "another request came" in refused.error.message
    server.waiting[0][1].callback(m.Refused(NotAllowed("x").report()))  # the disk answers too late
    pump.flush()


def test_a_slow_disk_does_not_count_as_a_slow_hello(server: Server) -> None:
    server.waiting = []
    raw = Raw(join_bytes())
    pump = server.dial(wrapped(server, anonymous(), raw))
    pump.flush()
    server.reactor.advance(HELLO_S_MAX * 2)
    pump.flush()
    assert raw.reason is None
    (function, arguments), waiting = server.waiting[0]
    waiting.callback(function(*arguments))
    pump.flush()
    (refused,) = raw.messages()
    assert refused.error.code == "join-refused"


def test_a_stranger_whose_join_waits_is_still_a_stranger(server: Server) -> None:
    server.waiting = []
    raw = Raw(join_bytes() + HEADER.pack(HELLO_BYTES_MAX + 1))
    pump = server.dial(wrapped(server, anonymous(), raw))
    pump.flush()
    (refused,) = raw.messages()
    assert "at most 4 KB" in refused.error.message


def test_a_joiner_that_has_left_is_forgotten(server: Server) -> None:
    server.waiting = []
    raw = Raw(join_bytes())
    pump = server.dial(wrapped(server, anonymous(), raw))
    pump.flush()
    raw.transport.loseConnection()  # type: ignore[union-attr]
    pump.flush()
    server.waiting[0][1].callback(m.Refused(NotAllowed("x").report()))
    assert server.strangers.total == 0


def test_a_desk_that_breaks_answers_all_the_same(server: Server) -> None:
    from twisted.logger import globalLogPublisher

    server.waiting = []
    logged: list[Any] = []
    globalLogPublisher.addObserver(logged.append)  # type: ignore[arg-type]
    raw = Raw(join_bytes())
    pump = server.dial(wrapped(server, anonymous(), raw))
    pump.flush()
    server.waiting[0][1].errback(Failure(RuntimeError("a bug")))
    pump.flush()
    globalLogPublisher.removeObserver(logged.append)  # type: ignore[arg-type]
    (refused,) = raw.messages()
    assert refused.error.code == "internal"
    assert "a bug" not in refused.error.message
    assert any(event.get("log_failure") is not None for event in logged)


# --- the dialing end ---


class Elsewhere(Port):
    """Somebody who listens with an identity of their own, and answers anyone."""

    def __init__(self, settings: Any) -> None:
        self.got: list[Any] = []
        factory = Factory()
        super().__init__(settings, factory)
        factory.buildProtocol = lambda _: AcceptedProtocol(  # type: ignore[method-assign,assignment]
            self.reactor, lambda _: m.ToServer, self.take, lambda *_: None, lambda: NOW
        )

    def take(self, _: object, message: Any) -> None:
        self.got.append(message)


def bare(identity: Identity) -> Any:
    from twisted.internet.ssl import CertificateOptions

    return CertificateOptions(**tls._own(identity))


@pytest.mark.parametrize(
    "identity",
    [
        identity_of(Role.SERVER, Authority.make("k0123456789ab", NOW)),
        identity_of(Role.SERVER, now=NOW - 400 * DAY_S),
        IDENTITIES[Role.NODE],
        IDENTITIES[Role.CLIENT],
    ],
    ids=["other authority", "expired", "a node", "a client"],
)
def test_nothing_is_said_to_who_is_not_the_server(identity: Identity) -> None:
    impostor = Elsewhere(bare(identity))
    client = Client(impostor, IDENTITIES[Role.CLIENT], SERVER, HELLO)
    impostor.dial(client.tls).flush()
    assert (client.opened, impostor.got) == (0, [])
    (error,) = client.ended
    assert isinstance(error, NotTrusted)
    assert error.cure


def test_a_certificate_without_any_name_is_not_taken() -> None:
    """Twisted's own check lets one pass whose names cannot be read; the authority never signs one."""
    key = make_key()
    nameless = signed(AUTHORITY, None)
    builder = x509.CertificateBuilder(
        issuer_name=nameless.issuer,
        subject_name=nameless.subject,
        public_key=key.public_key(),
        serial_number=7,
        not_valid_before=AUTHORITY.certificate.not_valid_before_utc,
        not_valid_after=AUTHORITY.certificate.not_valid_after_utc,
    )
    from cryptography.hazmat.primitives import hashes

    certificate = builder.sign(AUTHORITY._key, hashes.SHA256())
    identity = Identity(
        *("k0123456789ab", Role.SERVER, "s0123456789ab", "h:1", NOW, NOW + 9),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        certificate.public_bytes(Encoding.PEM).decode(),
        AUTHORITY.certificate.public_bytes(Encoding.PEM).decode(),
    )
    impostor = Elsewhere(bare(identity))
    client = Client(impostor, IDENTITIES[Role.CLIENT], SERVER, HELLO)
    impostor.dial(client.tls).flush()
    assert (client.opened, impostor.got) == (0, [])
    assert len(client.ended) == 1
    assert client.ended[0] is not None


def test_nothing_is_written_before_the_handshake(server: Server) -> None:
    client = Client(server, IDENTITIES[Role.CLIENT], SERVER, HELLO)
    client.tls.makeConnection(FakeTransport(client.tls, False))
    assert client.opened == 0
    assert client.tls._appSendBuffer == []
    client.protocol.connectionLost(Failure(ConnectionRefusedError()))


class Nodes(Port):
    """The data port of one node, as the fetching of segments will have it."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.node = identity_of(Role.NODE)
        self.members = Members(AUTHORITY.cluster)
        factory = Factory()
        super().__init__(tls.data_port(self.node), factory)
        factory.buildProtocol = lambda _: AcceptedProtocol(  # type: ignore[method-assign,assignment]
            self.reactor, self.admit, lambda _, got: self.got.append(got), lambda *_: None, lambda: NOW
        )

    def admit(self, link: Any) -> Any:
        self.members.check(link.peer, (Role.NODE,))
        return m.CancelJob


def test_nodes_reach_each_other_and_nobody_else_does() -> None:
    port = Nodes()
    say = m.CancelJob("j")
    node = Client(port, IDENTITIES[Role.NODE], name_of(port.node), say)
    pump = port.dial(node.tls)
    pump.flush()
    assert port.got == [say]
    node.protocol.close()
    pump.flush()
    for role in (Role.CLIENT, Role.ADMIN):
        other = Client(port, IDENTITIES[role], name_of(port.node), say)
        port.dial(other.tls).flush()
        assert [type(message) for message in other.got] == [m.Refused]
    raw = Raw(encode_frame(say))
    port.dial(wrapped(port, anonymous(), raw)).flush()
    assert raw.heard == b""
    assert raw.reason is not None
    wrong = Client(port, IDENTITIES[Role.NODE], name_of(IDENTITIES[Role.NODE]), say)
    port.dial(wrong.tls).flush()
    assert isinstance(wrong.ended[0], NotTrusted)
    assert port.got == [say]
    port.members.revoke(IDENTITIES[Role.NODE].id)
    out = Client(port, IDENTITIES[Role.NODE], name_of(port.node), say)
    port.dial(out.tls).flush()
    assert port.got == [say]


def test_a_renewed_certificate_counts_for_the_next_connection() -> None:
    port = Nodes()
    renewed = identity_of(Role.NODE)
    port.settings.options = tls.data_port(renewed)
    node = Client(port, IDENTITIES[Role.NODE], name_of(renewed), m.CancelJob("j"))
    pump = port.dial(node.tls)
    pump.flush()
    assert len(port.got) == 1
    node.protocol.close()
    pump.flush()


def test_where_nobody_listens_is_said_once() -> None:
    port = Elsewhere(bare(IDENTITIES[Role.SERVER]))
    client = Client(port, IDENTITIES[Role.CLIENT], SERVER)
    client.protocol.dialing(Endpoint("10.0.0.5", 8786))
    client.protocol.not_connected(Failure(ConnectionRefusedError("Connection refused")))
    client.protocol.not_connected(Failure(ConnectionRefusedError("Connection refused")))
    (error,) = client.ended
    assert isinstance(error, Unreachable)
    assert "10.0.0.5:8786" in error.message
    given_up = Client(port, IDENTITIES[Role.CLIENT], SERVER)
    given_up.protocol.not_connected(Failure(CancelledError()))
    assert given_up.ended == [None]


def test_a_message_that_is_none_ends_a_dialed_link_with_its_cause(server: Server) -> None:
    client = Client(server, IDENTITIES[Role.NODE], SERVER, m.NodeHello("n", "1", 1, 1, {}))
    pump = server.dial(client.tls)
    pump.flush()
    server.links[0].send(ANSWER)  # which is not for nodes
    pump.flush()
    (error,) = client.ended
    assert isinstance(error, ProtocolError)
    assert server.ended == [(f"node {IDENTITIES[Role.NODE].id}", "")]


# --- listening ---


def test_a_port_listens_at_its_address_alone() -> None:
    reactor = MemoryReactorClock()
    settings = tls.Renewable(tls.cluster_port(IDENTITIES[Role.SERVER]))
    listen_tls(reactor, Endpoint("127.0.0.1", 8786), settings, Strangers(), Factory())
    listen_tls(reactor, Endpoint("::1", 8786), settings, Strangers(), Factory())
    assert [(port, interface) for port, _, _, interface in reactor.tcpServers] == [
        (8786, "127.0.0.1"),
        (8786, "::1"),
    ]
    with pytest.raises(UsageError, match="must be an address") as caught:
        listen_tls(reactor, Endpoint("localhost", 8786), settings, Strangers(), Factory())
    assert "--advertise" in caught.value.cure

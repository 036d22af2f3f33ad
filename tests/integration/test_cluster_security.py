"""The cluster's doors over real sockets: the good way in, and every attack we could think of."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL

from cortex.errors import (
    CortexError,
    JoinRefused,
    NotAllowed,
    NotTrusted,
    Unreachable,
    UsageError,
    from_report,
)
from cortex.ids import Role, new_peer_id, server_name
from cortex.limits import DAY_S, HELLO_BYTES_MAX, MIB, STRANGERS_PER_ADDRESS_MAX
from cortex.storage.token_store import TokenStore
from cortex.tokens import Token
from cortex.wire import blocking_tls, joiner
from cortex.wire import messages as m
from cortex.wire.authority import Authority, make_key
from cortex.wire.framing import HEADER, BlockingConnection, encode_frame
from cortex.wire.identity import Identity, load_identity, make_identity, save_identity
from cortex.wire.join import Endpoint, JoinLine, make_proof
from cortex.wire.joiner import PENDING_FILE, join_cluster
from cortex.wire.permissions import union_to
from cortex.wire.server_home import AUTHORITY_FILE, open_server_home
from cortex.wire.versions import local_versions

ROOT = Path(__file__).parents[2]
HELLO_S = 1.5  # instead of ten, so that tests can wait for it
HELLO = m.ClientHello(local_versions())
ANYONE = (Role.NODE, Role.CLIENT, Role.ADMIN)
COMMAND = [sys.executable, "-m", "tests.integration.security_processes"]


class Server:
    """A server process with a home, and what we know of it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.log = open(home.parent / f"{home.name}.log", "wb")  # noqa: SIM115 (closed by stop)
        self.process = subprocess.Popen(
            [*COMMAND, "serve", str(home), str(HELLO_S)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said, Path(self.log.name).read_text()
        cluster, data = json.loads(said)
        self.endpoint, self.data = Endpoint("127.0.0.1", cluster), Endpoint("127.0.0.1", data)
        self.authority = Authority.from_pem((home / AUTHORITY_FILE).read_bytes())
        self.store = TokenStore(str(home / "tokens"))

    def stop(self) -> None:
        self.store.close()
        self.process.terminate()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()

    def line_of(self, token: Token) -> str:
        return JoinLine(self.endpoint, token.id, token.secret, self.authority.hash).text()

    def line(self, role: Role = Role.CLIENT, life_s: float = 600, uses: int = 9, ago_s: float = 0) -> str:
        return self.line_of(self.store.create(role, life_s, uses, time.time() - ago_s))

    def identity(
        self, role: Role, folder: Path, ago_s: float = 0, authority: Authority | None = None
    ) -> Identity:
        """An identity as a join would give it, or as an attacker would like it to be."""
        key = make_key()
        by = authority or self.authority
        certificate = by.issue(key.public_key(), role, new_peer_id(role), time.time() - ago_s)
        identity = make_identity(key, certificate, by.certificate, str(self.endpoint))
        if authority is not None:  # it trusts the real server all the same
            ours = self.identity(role, folder)
            identity = replace(identity, authority_pem=ours.authority_pem)
        save_identity(str(folder), identity)
        return identity

    def heard(self) -> list[str]:
        return (self.home / "heard").read_text().splitlines()

    def connect(
        self, identity: Identity, folder: Path, endpoint: Endpoint | None = None
    ) -> BlockingConnection[Any]:
        sock = blocking_tls.connect(identity, str(folder), endpoint or self.endpoint)
        return BlockingConnection[Any](sock, union_to(identity.role))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server") / "home")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def other_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("other") / "home")
    yield made
    made.stop()


def join(line: str, folder: Path, roles: tuple[Role, ...] = ANYONE) -> Identity:
    return join_cluster(line, str(folder), local_versions(), roles, time.time())


def stranger(endpoint: Endpoint, minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLSocket:
    """A connection of someone without a certificate, who believes anyone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if minimum is not ssl.TLSVersion.TLSv1_3:
        context.maximum_version = minimum
    sock = socket.create_connection((endpoint.host, endpoint.port), 10)
    return context.wrap_socket(sock)


def answers(sock: ssl.SSLSocket, union: Any = m.FromServerJoin) -> list[Any]:
    """Everything until the other end closes."""
    from cortex.wire.framing import FrameDecoder

    decoder: FrameDecoder[Any] = FrameDecoder(union)
    got = []
    while data := sock.recv(65536):
        got.extend(decoder.feed(data))
    return got


def dialed(folder: Path, name: str, endpoint: Endpoint) -> list[str]:
    """What a node with the identity in `folder` says of its link to `name` at `endpoint`."""
    command = [*COMMAND, "dial", str(folder), name, str(endpoint)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# --- the good way ---


def test_a_client_joins_and_is_served_in_under_a_second(server: Server, tmp_path: Path) -> None:
    line = server.line()
    begun = time.monotonic()
    identity = join(line, tmp_path / "client")
    with server.connect(identity, tmp_path / "client") as connection:
        connection.send(HELLO)
        assert isinstance(connection.receive(5), m.ServerHello)
    assert time.monotonic() - begun < 1
    assert f"client {identity.id} ClientHello" in server.heard()
    assert load_identity(str(tmp_path / "client")) == identity
    assert not (tmp_path / "client" / PENDING_FILE).exists()


def test_nodes_reach_the_server_and_each_other(server: Server, tmp_path: Path) -> None:
    identity = join(server.line(Role.NODE), tmp_path / "node")
    ways = [(server_name(identity.cluster), server.endpoint), ("node", server.data)]
    for name, endpoint in ways:
        opened, received, lost = dialed(tmp_path / "node", name, endpoint)
        assert opened.startswith("opened ")
        assert (received, lost) == ("received PeersRevoked", "lost ")
    assert server.heard().count(f"node {identity.id} NodeHello") == 2


def test_a_restart_with_the_old_line_keeps_its_identity(server: Server, tmp_path: Path) -> None:
    token = server.store.create(Role.NODE, 600, 1, time.time())
    line = server.line_of(token)
    first = join(line, tmp_path / "node")
    server.store.revoke(token.id, time.time())
    assert join(line, tmp_path / "node") == first
    gone = Endpoint("127.0.0.1", 1)
    assert join(line.replace(str(server.endpoint), str(gone)), tmp_path / "node") == first
    assert server.store.find(token.id).uses == 1  # type: ignore[union-attr]


def test_a_server_that_has_moved_is_found_where_a_new_line_says(server: Server, tmp_path: Path) -> None:
    line = server.line(Role.NODE)
    first = join(line, tmp_path / "node")
    moved = join(line.replace("127.0.0.1", "localhost"), tmp_path / "node")
    assert moved == first.at(f"localhost:{server.endpoint.port}")
    assert load_identity(str(tmp_path / "node")) == moved
    gone = line.replace(str(server.endpoint), "127.0.0.1:1")  # an old one, in a unit that was not changed
    assert join(gone, tmp_path / "node") == moved


def test_an_expired_identity_joins_anew(server: Server, tmp_path: Path) -> None:
    old = server.identity(Role.NODE, tmp_path / "node", ago_s=40 * DAY_S)
    new = join(server.line(Role.NODE), tmp_path / "node")
    assert new.id != old.id
    assert not new.expired(time.time())


def test_a_join_cut_off_before_its_answer_costs_one_use(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = server.store.create(Role.CLIENT, 600, 1, time.time())
    with monkeypatch.context() as patch:

        def cut(self: Any) -> Any:
            raise Unreachable("the cable was pulled")

        patch.setattr(joiner._Connection, "receive", cut)
        with pytest.raises(Unreachable):
            join(server.line_of(token), tmp_path / "client")
    assert (tmp_path / "client" / PENDING_FILE).stat().st_mode & 0o777 == 0o600
    deadline = time.monotonic() + 5
    while server.store.find(token.id).uses == 0 and time.monotonic() < deadline:  # type: ignore[union-attr]
        time.sleep(0.02)
    identity = join(server.line_of(token), tmp_path / "client")
    assert server.store.find(token.id).uses == 1  # type: ignore[union-attr]
    assert identity.role is Role.CLIENT


def test_a_server_that_is_not_there_is_said(tmp_path: Path, server: Server) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound, not listening
        nobody = Endpoint("127.0.0.1", sock.getsockname()[1])
        line = server.line().replace(str(server.endpoint), str(nobody))
        with pytest.raises(Unreachable, match=f"no connection to the server at {nobody}"):
            join(line, tmp_path / "client")
        identity = server.identity(Role.CLIENT, tmp_path / "c")
        with pytest.raises(Unreachable, match="refused"):
            server.connect(identity, tmp_path / "c", nobody)
        node = server.identity(Role.NODE, tmp_path / "n")
        assert dialed(tmp_path / "n", server_name(node.cluster), nobody) == ["lost unreachable"]


def test_large_messages_go_both_ways_at_once(server: Server, tmp_path: Path) -> None:
    """One thread sends while another receives: OpenSSL alone would not allow it."""
    identity = server.identity(Role.CLIENT, tmp_path / "c")
    with server.connect(identity, tmp_path / "c") as connection:
        connection.send(HELLO)
        assert isinstance(connection.receive(5), m.ServerHello)
        large = [letter * (6 * MIB) for letter in "abcd"]
        sender = threading.Thread(target=lambda: [connection.send(m.CancelJob(text)) for text in large])
        sender.start()
        for text in large:
            assert connection.receive(60) == m.JobAccepted(text)
        sender.join()
        with pytest.raises(TimeoutError):
            connection.receive(0.05)


# --- without a certificate ---


@pytest.mark.parametrize("message", [HELLO, m.KillCluster(), m.NodeHello("n", "1", 1, 1, {})])
def test_a_stranger_may_join_and_nothing_else(server: Server, message: m.Message) -> None:
    before = server.heard()
    with stranger(server.endpoint) as sock:
        sock.sendall(encode_frame(message))
        (refused,) = answers(sock)
    assert from_report(refused.error).code == "not-allowed"
    assert server.heard() == before


def test_a_stranger_gets_nothing_from_the_data_port(server: Server) -> None:
    before = server.heard()
    with stranger(server.data) as sock:
        sock.sendall(encode_frame(m.NodeHello("n", "1", 1, 1, {})))
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            sock.recv(1)
    assert server.heard() == before


@pytest.mark.parametrize("port", ["endpoint", "data"])
def test_older_tls_and_no_tls_are_not_spoken(server: Server, port: str) -> None:
    endpoint: Endpoint = getattr(server, port)
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        stranger(endpoint, ssl.TLSVersion.TLSv1_2)
    with socket.create_connection((endpoint.host, endpoint.port), 10) as sock:
        sock.sendall(encode_frame(HELLO) + b"\r\n\r\n" * 20)
        data = b""
        while more := _recv(sock):
            data += more
        assert len(data) <= 7  # an alert, at most


def _recv(sock: socket.socket) -> bytes:
    try:
        return sock.recv(4096)
    except ConnectionResetError:
        return b""


def test_an_oversized_first_frame_is_refused(server: Server, tmp_path: Path) -> None:
    with stranger(server.endpoint) as sock:
        sock.sendall(HEADER.pack(HELLO_BYTES_MAX + 1) + b"x" * 100)
        (refused,) = answers(sock)
        assert "at most 4 KB" in refused.error.message
    identity = server.identity(Role.CLIENT, tmp_path / "c")
    with server.connect(identity, tmp_path / "c") as connection:
        connection.send(m.ClientHello({"x": "y" * HELLO_BYTES_MAX}))
        refused = connection.receive(5)
        assert isinstance(refused, m.Refused)
        assert "at most 4 KB" in refused.error.message
        assert connection.receive(5) is None


def test_no_bytes_of_a_stranger_harm_the_server(server: Server) -> None:
    before = server.heard()
    dice = random.Random(20261125)
    good = encode_frame(m.Join("t0123456789ab", b"c" * 300, b"p" * 32, local_versions()))
    for number in range(60):
        junk = bytearray(good if number % 2 else dice.randbytes(dice.randrange(1, 2000)))
        for _ in range(dice.randrange(4)):
            junk[dice.randrange(len(junk))] = dice.randrange(256)
        with stranger(server.endpoint) as sock:
            sock.sendall(junk)
            sock.settimeout(0.1)  # a part of a frame has no answer
            with contextlib.suppress(OSError):
                assert all(isinstance(answer, m.Refused) for answer in answers(sock))
    assert server.process.poll() is None
    assert server.heard() == before


def test_a_slow_handshake_and_a_slow_hello_are_cut_off(server: Server) -> None:
    begun = time.monotonic()
    quiet = socket.create_connection((server.endpoint.host, server.endpoint.port), 10)
    half = socket.create_connection((server.endpoint.host, server.endpoint.port), 10)
    half.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    silent = stranger(server.endpoint)
    with quiet, half, silent:
        assert _recv(quiet) == b""
        assert _recv(half) == b""
        (refused,) = answers(silent)
        assert "no hello" in refused.error.message
    assert HELLO_S - 0.1 < time.monotonic() - begun < HELLO_S + 5


def test_one_address_cannot_fill_the_door(server: Server, tmp_path: Path) -> None:
    time.sleep(0.1)  # what earlier tests left behind is gone
    address = (server.endpoint.host, server.endpoint.port)
    socks = [socket.create_connection(address, 10) for _ in range(STRANGERS_PER_ADDRESS_MAX + 4)]
    try:
        socks[-1].settimeout(HELLO_S / 2)
        assert _recv(socks[-1]) == b""  # closed at once: the others hold theirs
        for sock in socks[:5]:
            assert _recv(sock) == b""  # and are cut off in time
        time.sleep(0.2)
        assert join(server.line(), tmp_path / "client").role is Role.CLIENT
    finally:
        for sock in socks:
            sock.close()


# --- with the wrong certificate ---


def refusal(attempt: Callable[[], Any]) -> CortexError:
    with pytest.raises(CortexError) as caught:
        attempt()
    return caught.value


def test_a_certificate_of_another_authority_is_not_taken(server: Server, tmp_path: Path) -> None:
    before = server.heard()
    forger = Authority.make(server.authority.cluster, time.time())
    for role, endpoint in ((Role.CLIENT, server.endpoint), (Role.NODE, server.endpoint)):
        identity = server.identity(role, tmp_path / role.value, authority=forger)

        def attempt(identity: Identity = identity, endpoint: Endpoint = endpoint) -> None:
            with server.connect(identity, tmp_path / identity.role.value, endpoint) as connection:
                connection.send(HELLO)
                connection.receive(5)

        error = refusal(attempt)
        assert isinstance(error, NotTrusted), error
    assert server.heard() == before


@pytest.mark.parametrize("days", [91, -1])
def test_a_certificate_out_of_its_time_is_not_taken(server: Server, tmp_path: Path, days: int) -> None:
    before = server.heard()
    identity = server.identity(Role.CLIENT, tmp_path / "c", ago_s=days * DAY_S)
    with server.connect(identity, tmp_path / "c") as connection:
        error = refusal(lambda: (connection.send(HELLO), connection.receive(5)))
    assert isinstance(error, NotTrusted)
    if days > 0:
        assert "our certificate has expired" in error.message
        assert "clocks" in error.cure
    assert server.heard() == before


@pytest.mark.parametrize(
    ("role", "message"),
    [
        (Role.NODE, HELLO),
        (Role.NODE, m.KillCluster()),
        (Role.CLIENT, m.NodeHello("n", "1", 1, 1, {})),
        (Role.CLIENT, m.KillCluster()),
        (Role.CLIENT, m.CreateToken(Role.ADMIN, 60.0, 1)),
        (Role.CLIENT, m.RevokePeer("n0123456789ab")),
    ],
)
def test_no_role_acts_as_another(server: Server, tmp_path: Path, role: Role, message: m.Message) -> None:
    before = server.heard()
    identity = server.identity(role, tmp_path / "x")
    with server.connect(identity, tmp_path / "x") as connection:
        connection.send(message)
        refused = connection.receive(5)
        assert isinstance(refused, m.Refused)
        error = from_report(refused.error)
        assert isinstance(error, NotAllowed)
        assert f"a {role.value} may not send {type(message).__name__}" in error.message
        assert connection.receive(5) is None
    assert server.heard() == before


def test_an_admin_may_what_a_client_may_not(server: Server) -> None:
    folder = server.home / "admin"
    admin = load_identity(str(folder))
    assert admin is not None
    with server.connect(admin, folder) as connection:
        connection.send(m.KillCluster())  # the test's server only notes it
        assert connection.receive(5) == m.AdminDone()
    assert f"admin {admin.id} KillCluster" in server.heard()


@pytest.mark.parametrize("role", [Role.CLIENT, Role.ADMIN])
def test_only_nodes_enter_the_data_port(server: Server, tmp_path: Path, role: Role) -> None:
    before = server.heard()
    identity = server.identity(role, tmp_path / "x")
    context = blocking_tls._context(identity, str(tmp_path / "x"))
    context.check_hostname = False
    raw = socket.create_connection((server.data.host, server.data.port), 10)
    with context.wrap_socket(raw) as sock:
        sock.sendall(encode_frame(m.NodeHello("n", "1", 1, 1, {})))
        (refused,) = answers(sock)
        assert "it is for a node" in refused.error.message
    assert server.heard() == before


def test_a_session_is_never_resumed(server: Server, tmp_path: Path) -> None:
    """Each connection proves itself anew: who was put out in between stays out."""
    identity = server.identity(Role.CLIENT, tmp_path / "c")
    context = blocking_tls._context(identity, str(tmp_path / "c"))
    context.options &= ~ssl.OP_NO_TICKET
    session = None
    for _ in range(2):
        raw = socket.create_connection((server.endpoint.host, server.endpoint.port), 10)
        name = server_name(identity.cluster)
        with context.wrap_socket(raw, server_hostname=name, session=session) as sock:
            assert not sock.session_reused
            sock.sendall(encode_frame(HELLO))
            assert sock.recv(4096)
            assert sock.version() == "TLSv1.3"
            session = sock.session


# --- the other end is not the server ---


def test_a_node_cannot_pose_as_the_server(server: Server, tmp_path: Path) -> None:
    """The data port's certificate is of the same authority, for another name."""
    before = server.heard()
    identity = server.identity(Role.CLIENT, tmp_path / "c")
    error = refusal(lambda: server.connect(identity, tmp_path / "c", server.data))
    assert isinstance(error, NotTrusted)
    assert "certificate of another process" in error.message
    line = server.line(Role.NODE).replace(str(server.endpoint), str(server.data))
    assert isinstance(refusal(lambda: join(line, tmp_path / "n")), NotTrusted)
    node = server.identity(Role.NODE, tmp_path / "node")
    assert dialed(tmp_path / "node", server_name(node.cluster), server.data) == ["lost not-trusted"]
    assert server.heard() == before


def test_another_authority_cannot_stand_between(server: Server, other_server: Server, tmp_path: Path) -> None:
    token = server.store.create(Role.NODE, 600, 9, time.time())
    line = server.line_of(token).replace(str(server.endpoint), str(other_server.endpoint))
    error = refusal(lambda: join(line, tmp_path / "n"))
    assert isinstance(error, NotTrusted)
    assert "another authority" in error.message
    assert token.secret.hex() not in str(error)
    identity = server.identity(Role.CLIENT, tmp_path / "c")
    assert isinstance(
        refusal(lambda: server.connect(identity, tmp_path / "c", other_server.endpoint)), NotTrusted
    )
    assert not (other_server.home / "heard").read_text()


class Impostor(threading.Thread):
    """Shows the real authority's certificate, which is no secret, behind a leaf that it did not sign."""

    def __init__(self, server: Server, leaf: Any, key: Any) -> None:
        super().__init__(daemon=True)
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate(leaf)
        context.use_privatekey(key)
        context.add_extra_chain_cert(server.authority.certificate)
        self.context = context
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.endpoint = Endpoint("127.0.0.1", self.sock.getsockname()[1])
        self.heard: list[bytes] = []
        self.start()

    def run(self) -> None:
        while True:
            try:
                raw, _ = self.sock.accept()
            except OSError:
                return
            connection = SSL.Connection(self.context, raw)
            connection.set_accept_state()
            try:
                connection.do_handshake()
                self.heard.append(connection.recv(4096))
            except SSL.Error:
                pass
            raw.close()


def test_the_real_authoritys_certificate_in_false_hands_wins_nothing(server: Server, tmp_path: Path) -> None:
    forger = Authority.make(server.authority.cluster, time.time())
    key = make_key()
    leaf = forger.issue(key.public_key(), Role.SERVER, new_peer_id(Role.SERVER), time.time())
    impostor = Impostor(server, leaf, key)
    line = server.line().replace(str(server.endpoint), str(impostor.endpoint))
    error = refusal(lambda: join(line, tmp_path / "c"))
    assert isinstance(error, NotTrusted)
    assert "no valid certificate of our cluster" in error.message
    # and a node's certificate of the real authority, in the hands of a node gone bad
    node_key = make_key()
    leaf = server.authority.issue(node_key.public_key(), Role.NODE, new_peer_id(Role.NODE), time.time())
    second = Impostor(server, leaf, node_key)
    line = server.line().replace(str(server.endpoint), str(second.endpoint))
    error = refusal(lambda: join(line, tmp_path / "c"))
    assert isinstance(error, NotTrusted)
    assert "another process" in error.message
    for each in (impostor, second):
        each.sock.close()
        assert not any(each.heard)  # not one byte was said to either


def test_a_false_authority_around_the_pinned_key_wins_nothing(server: Server, tmp_path: Path) -> None:
    """The pin is of the key; a certificate around it that the key has not signed is refused."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    forger = Authority.make("k000000000000", time.time())
    real = server.authority.certificate
    forged = x509.CertificateBuilder(
        issuer_name=forger.certificate.subject,
        subject_name=forger.certificate.subject,
        public_key=real.public_key(),  # type: ignore[arg-type]
        serial_number=5,
        not_valid_before=real.not_valid_before_utc,
        not_valid_after=real.not_valid_after_utc,
    ).add_extension(x509.BasicConstraints(True, None), critical=True)
    false = forged.sign(forger._key, hashes.SHA256())
    key = make_key()
    leaf = forger.issue(key.public_key(), Role.SERVER, new_peer_id(Role.SERVER), time.time())

    class Shown:
        authority = type("A", (), {"certificate": false})

    impostor = Impostor(Shown(), leaf, key)  # type: ignore[arg-type]
    line = server.line().replace(str(server.endpoint), str(impostor.endpoint))
    error = refusal(lambda: join(line, tmp_path / "c"))
    impostor.sock.close()
    assert isinstance(error, NotTrusted)
    assert "not signed by itself" in error.message
    assert not any(impostor.heard)


# --- tokens ---


@pytest.mark.parametrize("why", ["expired", "used up", "revoked"])
def test_an_ended_token_lets_nobody_in(server: Server, tmp_path: Path, why: str) -> None:
    now = time.time()
    if why == "expired":
        token = server.store.create(Role.NODE, 60, 9, now - 61)
    else:
        token = server.store.create(Role.NODE, 600, 1, now)
        if why == "used up":
            join(server.line_of(token), tmp_path / "first")
        else:
            server.store.revoke(token.id, now)
    error = refusal(lambda: join(server.line_of(token), tmp_path / "n"))
    assert isinstance(error, JoinRefused)
    assert why in error.message
    assert "cortex token create" in error.cure
    assert load_identity(str(tmp_path / "n")) is None


def test_a_wrong_secret_is_refused_and_costs_no_use(server: Server, tmp_path: Path) -> None:
    token = server.store.create(Role.NODE, 600, 1, time.time())
    error = refusal(lambda: join(server.line_of(replace(token, secret=b"x" * 16)), tmp_path / "n"))
    assert isinstance(error, JoinRefused)
    assert "not known here, or its secret is another" in error.message
    assert join(server.line_of(token), tmp_path / "n").role is Role.NODE


def test_the_secret_of_a_token_is_never_sent_not_even_inside_tls(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = server.store.create(Role.NODE, 600, 1, time.time())
    sent: list[bytes] = []
    send = joiner._Connection.send

    def recorded(self: Any, data: bytes) -> None:
        sent.append(data)
        send(self, data)

    monkeypatch.setattr(joiner._Connection, "send", recorded)
    assert join(server.line_of(token), tmp_path / "n").role is Role.NODE
    said = b"".join(sent)
    assert token.id.encode() in said
    assert token.secret not in said
    assert token.secret.hex().encode() not in said


def test_a_recorded_join_is_worth_nothing_on_another_connection(server: Server, tmp_path: Path) -> None:
    token = server.store.create(Role.NODE, 600, 9, time.time())
    _, request = joiner._prepare(str(tmp_path / "n"))
    context = SSL.Context(SSL.TLS_METHOD)
    deadline = time.monotonic() + 20
    with joiner._Connection(server.endpoint, context, None, deadline) as first:
        exporter = first.exporter()
        proof = make_proof(token.secret, exporter, request)
        recorded = encode_frame(m.Join(token.id, request, proof, local_versions()))
        first.send(recorded)
        assert isinstance(first.receive(), m.Joined)  # the very bytes are good, where they were made
    with joiner._Connection(server.endpoint, context, None, deadline) as second:
        assert second.exporter() != exporter
        second.send(recorded)
        refused = second.receive()
    assert isinstance(refused, m.Refused)
    assert refused.error.code == "join-refused"
    assert server.store.find(token.id).uses == 1  # type: ignore[union-attr]


def test_a_line_for_another_role_is_not_taken(server: Server, tmp_path: Path) -> None:
    error = refusal(lambda: join(server.line(Role.CLIENT), tmp_path / "n", roles=(Role.NODE,)))
    assert isinstance(error, JoinRefused)
    assert "is for a client, not for a node" in error.message
    assert load_identity(str(tmp_path / "n")) is None


def test_a_home_of_one_cluster_does_not_join_another(
    server: Server, other_server: Server, tmp_path: Path
) -> None:
    join(server.line(), tmp_path / "c")
    error = refusal(lambda: join(other_server.line(), tmp_path / "c"))
    assert isinstance(error, UsageError)
    assert "another cluster" in error.message


def test_other_versions_are_refused_with_the_cure(server: Server, tmp_path: Path) -> None:
    versions = {**local_versions(), "cloudpickle": "0.1"}
    with pytest.raises(CortexError, match=r"cloudpickle 0\.1 there") as caught:
        join_cluster(server.line(), str(tmp_path / "c"), versions, ANYONE, time.time())
    assert caught.value.code == "version-mismatch"


# --- what lies about ---


@pytest.mark.parametrize("part", ["authority/authority.pem", "server/identity.pem", "tokens/tokens.sqlite"])
@pytest.mark.parametrize("of", ["file", "folder"])
def test_a_server_does_not_start_on_files_that_others_can_read(tmp_path: Path, part: str, of: str) -> None:
    home = tmp_path / "home"
    open_server_home(str(home), Endpoint("127.0.0.1", 1), time.time())
    TokenStore(str(home / "tokens")).close()
    path = home / part if of == "file" else (home / part).parent
    path.chmod(0o644 if of == "file" else 0o755)
    done = subprocess.run(
        [*COMMAND, "serve", str(home), "1"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert "cure: chmod" in done.stderr
    assert done.stdout == ""


def test_a_joiner_does_not_use_a_folder_that_others_can_enter(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "n"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    assert isinstance(refusal(lambda: join(server.line(), folder)), UsageError)
    folder.chmod(0o700)
    join(server.line(), folder)
    (folder / "identity.pem").chmod(0o640)
    error = refusal(lambda: load_identity(str(folder)))
    assert isinstance(error, UsageError)
    assert "0640" in error.message


def test_nothing_of_the_home_can_be_read_by_others(server: Server) -> None:
    assert [path for path in server.home.rglob("*") if path.stat().st_mode & 0o077] in (
        [],
        [server.home / "heard"],  # the test's own
    )


def test_no_secret_reaches_the_log(server: Server, tmp_path: Path) -> None:
    token = server.store.create(Role.NODE, 600, 1, time.time())
    join(server.line_of(token), tmp_path / "n")
    refusal(lambda: join(server.line_of(token), tmp_path / "m"))
    log = Path(server.log.name).read_text()
    assert f"{token.id} is used up" in log
    for each in server.store.tokens():
        assert each.secret.hex() not in log
        assert repr(each.secret) not in log
    assert "PRIVATE KEY" not in log


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel's list of sockets is Linux's")
def test_every_listener_has_the_address_it_was_given(server: Server) -> None:
    sockets = set()
    for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            target = link.readlink().name
        except FileNotFoundError:  # a file that it has closed meanwhile; its listeners stay
            continue
        if target.startswith("socket:["):
            sockets.add(target[len("socket:[") : -1])
    listening = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{server.process.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A" and fields[9] in sockets:
                listening.add(fields[1])
    loopback = "0100007F"
    assert listening == {f"{loopback}:{port:04X}" for port in (server.endpoint.port, server.data.port)}

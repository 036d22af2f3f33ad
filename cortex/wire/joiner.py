"""The newcomer's side of joining, blocking, for a process that has no reactor (or not yet).

First a handshake that trusts nobody and sends nothing, to read the authority's certificate; it is kept
if the join line pins its key. Then a handshake that trusts that authority alone, for the server's name;
the proof that we were invited; and our certificate in return. The key and the request are on the disk
before the request is sent, so that a join that was cut off asks for the same again and costs no second
use of the token.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Collection
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from OpenSSL import SSL
from OpenSSL.crypto import X509

from cortex.errors import JoinRefused, NotTrusted, ProtocolError, Unreachable, UsageError, from_report
from cortex.ids import Role, server_name
from cortex.limits import DIAL_S_MAX, HELLO_BYTES_MAX, JOIN_S_MAX, KIB
from cortex.private_files import read_private, remove_private, write_private
from cortex.wire.authority import (
    cluster_of,
    make_key,
    make_request,
    public_key_hash,
    read_peer,
    requested_key,
)
from cortex.wire.framing import FrameDecoder, encode_frame
from cortex.wire.identity import Identity, load_identity, make_identity, save_identity
from cortex.wire.join import EXPORTER_BYTES, EXPORTER_LABEL, Endpoint, JoinLine, make_proof, parse_join_line
from cortex.wire.messages import FromServerJoin, Join, Joined, Refused
from cortex.wire.tls_failures import explain

PENDING_FILE: Final = "join-pending.pem"
_CHUNK_BYTES: Final = 64 * KIB


def join_cluster(
    line: str, folder: str, versions: dict[str, str], roles: Collection[Role], now: float
) -> Identity:
    """Join with a join line, and keep the identity in `folder`; `roles` are those the caller can be.

    A `folder` that holds an identity of the line's cluster keeps it, unless it has expired at `now`: so
    a restart may come with the old line, and a server that has moved is found by a new one. Raises
    UsageError (a line that is none; another cluster's identity in the folder), Unreachable, NotTrusted (the
    server is not the one that the line pins), JoinRefused, or VersionMismatch. After Unreachable the same
    call may be made again.
    """
    wanted = parse_join_line(line)
    kept = load_identity(folder)
    if kept is not None:
        ours = x509.load_pem_x509_certificate(kept.authority_pem.encode())
        if public_key_hash(ours) != wanted.authority_hash:
            raise UsageError(
                f"{folder!r} holds the identity of another cluster, {kept.cluster} at {kept.server}",
                cure="name another --home; or delete that folder, if it is not needed any more",
            )
        if not kept.expired(now):
            return kept if kept.server == str(wanted.endpoint) else _moved(kept, wanted, folder)
    key, request = _prepare(folder)
    deadline = time.monotonic() + JOIN_S_MAX
    authority = _pinned_authority(wanted, deadline)
    joined = _ask(wanted, authority, request, versions, deadline)
    identity = _check(joined, key, authority, wanted.endpoint)
    if identity.role not in roles:
        raise JoinRefused(
            f"the join line is for a {identity.role.value}, not for a {' or '.join(map(str, roles))}",
            cure="ask for a line of the right role: cortex token create --role node (or client)",
        )
    save_identity(folder, identity)
    remove_private(os.path.join(folder, PENDING_FILE))
    return identity


def _moved(kept: Identity, wanted: JoinLine, folder: str) -> Identity:
    """The line has another address than the identity: the server's new one if the server answers there, else
    the line is an old one."""
    try:
        _pinned_authority(wanted, time.monotonic() + JOIN_S_MAX)
    except (Unreachable, NotTrusted):
        return kept
    moved = kept.at(str(wanted.endpoint))
    save_identity(folder, moved)
    return moved


def _prepare(folder: str) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """The key and the request to join with: those of a join that was cut off, else new ones."""
    path = os.path.join(folder, PENDING_FILE)
    data = read_private(path)
    if data is not None:
        with contextlib.suppress(ValueError, ProtocolError):  # only a part of it: begin anew
            key = load_pem_private_key(data, None)
            request = x509.load_pem_x509_csr(data).public_bytes(Encoding.DER)
            if isinstance(key, ec.EllipticCurvePrivateKey) and requested_key(request) == key.public_key():
                return key, request
    key = make_key()
    request = make_request(key)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(path, pem + x509.load_der_x509_csr(request).public_bytes(Encoding.PEM))
    return key, request


def _pinned_authority(wanted: JoinLine, deadline: float) -> x509.Certificate:
    """The certificate of the authority whose key the line pins, as the server at its address shows it."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    with _Connection(wanted.endpoint, context, None, deadline) as connection:
        chain = connection.chain()
    for certificate in chain:
        if public_key_hash(certificate) == wanted.authority_hash:
            cluster_of(certificate)  # refuses a certificate that only has the key in it
            return certificate
    raise NotTrusted(
        f"the server at {wanted.endpoint} is not the one that the join line names: it has another authority",
        cure="is the address right, and the line the server's newest? If they are, somebody may be between"
        " you and the server",
    )


def _ask(
    wanted: JoinLine, authority: x509.Certificate, request: bytes, versions: dict[str, str], deadline: float
) -> Joined:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_verify(SSL.VERIFY_PEER)
    context.set_verify_depth(1)
    store = context.get_cert_store()
    assert store is not None
    store.add_cert(X509.from_cryptography(authority))
    cluster = cluster_of(authority)
    with _Connection(wanted.endpoint, context, server_name(cluster), deadline) as connection:
        server = read_peer(connection.chain()[0])
        if server.role is not Role.SERVER or server.cluster != cluster:
            raise explain("hostname mismatch", connection.who)
        proof = make_proof(wanted.secret, connection.exporter(), request)
        connection.send(encode_frame(Join(wanted.token_id, request, proof, versions)))
        answer = connection.receive()
    if isinstance(answer, Refused):
        raise from_report(answer.error)
    return answer


def _check(
    joined: Joined, key: ec.EllipticCurvePrivateKey, authority: x509.Certificate, endpoint: Endpoint
) -> Identity:
    try:
        certificate = x509.load_der_x509_certificate(joined.certificate_der)
    except ValueError as error:
        raise ProtocolError(f"the server's certificate for us cannot be read: {error}") from error
    identity = make_identity(key, certificate, authority, str(endpoint))
    if (identity.id, identity.cluster) != (joined.id, joined.cluster):
        raise ProtocolError("the server's certificate for us names another than its answer does")
    return identity


class _Connection:
    """A blocking TLS connection that ends at a deadline (pyOpenSSL: the standard library has no exporter)."""

    def __init__(self, endpoint: Endpoint, context: SSL.Context, name: str | None, deadline: float) -> None:
        self.who = f"the server at {endpoint}"
        self._endpoint = endpoint
        self._deadline = deadline
        self._tls = SSL.Connection(context, None)
        if name is not None:
            self._tls.set_tlsext_host_name(name.encode("ascii"))
        self._tls.set_connect_state()
        try:
            left_s = min(DIAL_S_MAX, self._left_s())
            self._sock = socket.create_connection((endpoint.host, endpoint.port), left_s)
        except OSError as error:
            raise self._unreachable(error) from error

    def __enter__(self) -> _Connection:
        try:
            self._until_done(self._tls.do_handshake)
        except BaseException:
            self._sock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(SSL.Error, OSError):  # a polite end, if there is anyone to hear it
            self._tls.shutdown()
            self._flush()
        self._sock.close()

    def chain(self) -> list[x509.Certificate]:
        """What the other end shows, its own first."""
        return self._tls.get_peer_cert_chain(as_cryptography=True) or []

    def exporter(self) -> bytes:
        return self._tls.export_keying_material(EXPORTER_LABEL, EXPORTER_BYTES)

    def send(self, data: bytes) -> None:
        self._until_done(lambda: self._tls.send(data))  # on memory: takes all of it

    def receive(self) -> Joined | Refused:
        decoder = FrameDecoder[Joined | Refused](FromServerJoin, HELLO_BYTES_MAX)
        while True:
            for message in decoder.feed(self._until_done(lambda: self._tls.recv(_CHUNK_BYTES))):
                return message

    def _until_done(self, step: Any) -> Any:
        """Do `step`, moving bytes between the socket and OpenSSL's memory as it asks for them."""
        try:
            while True:
                try:
                    done = step()
                except SSL.WantReadError:
                    self._flush()
                    self._sock.settimeout(self._left_s())
                    data = self._sock.recv(_CHUNK_BYTES)
                    if not data:
                        raise ConnectionResetError("the server closed the connection") from None
                    self._tls.bio_write(data)
                else:
                    self._flush()
                    return done
        except SSL.ZeroReturnError as error:
            raise Unreachable(f"{self.who} closed the connection without an answer") from error
        except SSL.Error as error:
            with contextlib.suppress(SSL.Error, OSError):
                self._flush()  # the alert that tells the other end why
            said = "; ".join(str(entry[-1]) for entry in error.args[0]) if error.args else "no reason"
            raise explain(said, self.who) from error
        except OSError as error:
            raise self._unreachable(error) from error

    def _flush(self) -> None:
        while True:
            try:
                data = self._tls.bio_read(_CHUNK_BYTES)
            except SSL.WantReadError:
                return
            self._sock.settimeout(self._left_s())
            self._sock.sendall(data)

    def _left_s(self) -> float:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"the join took longer than {JOIN_S_MAX:g} s")
        return left_s

    def _unreachable(self, error: OSError) -> Unreachable:
        return Unreachable(
            f"no connection to the server at {self._endpoint}: {error.strerror or error}",
            cure="is the server running there, and is the way to it open?",
        )

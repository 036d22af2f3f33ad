"""The server's side of joining: a join in, a certificate or a refusal out.

What lasts is behind `Register` (`cortex.storage.token_store`). A use of the token is counted there,
with the newcomer's id, before anything is signed; the same request again, within the token's life,
gets the same certificate and costs nothing. Before a proof is checked nothing is said about a token.

Calls block on the disk: run them in a thread of the journal, not on the reactor's. Any number of
threads may call.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cortex.errors import CortexError, JoinRefused, UsageError
from cortex.ids import Role, new_peer_id
from cortex.limits import TOKEN_SECRET_BYTES
from cortex.tokens import Place, Token
from cortex.wire.authority import Authority, Peer, requested_key
from cortex.wire.gate import revoked
from cortex.wire.join import Endpoint, JoinLine, make_proof
from cortex.wire.messages import (
    AdminDone,
    CertificateRenewed,
    CreateToken,
    FromServerAdmin,
    Join,
    Joined,
    ListTokens,
    Refused,
    RenewCertificate,
    RevokePeer,
    RevokeToken,
    TokenCreated,
    TokenInfo,
    TokenList,
)
from cortex.wire.versions import check_versions


class Register(Protocol):
    """Tokens, who came with them, and who is out; durable when a call returns."""

    def create(self, role: Role, life_s: float, uses_max: int, now: float) -> Token: ...
    def find(self, token_id: str) -> Token | None: ...
    def tokens(self) -> list[Token]: ...
    def revoke(self, token_id: str, now: float) -> bool: ...
    def use(self, token_id: str, request_hash: bytes, peer: str, now: float) -> Place: ...
    def record(self, peer: str, certificate: bytes) -> None: ...
    def revoke_peer(self, peer: str, now: float) -> None: ...
    def is_revoked(self, peer: str) -> bool: ...


class JoinDesk:
    """See the module. `versions` are the server's own: who has others cannot work with it."""

    def __init__(self, authority: Authority, register: Register, versions: dict[str, str]) -> None:
        self._authority = authority
        self._register = register
        self._versions = versions
        self._lock = threading.Lock()

    def answer(self, join: Join, exporter: bytes, now: float) -> Joined | Refused:
        """`exporter` is that of the connection the join came on (`cortex.wire.tls.exporter_of`)."""
        try:
            with self._lock:  # the same request twice at once: one certificate
                return self._join(join, exporter, now)
        except CortexError as error:
            return Refused(error.report())

    def renew(self, peer: Peer, message: RenewCertificate, now: float) -> CertificateRenewed | Refused:
        """`peer` is who the connection's certificate says: it gets its own id and role, and no other."""
        try:
            if self._register.is_revoked(peer.id):
                raise revoked(peer)
            key = requested_key(message.csr_der)
            return CertificateRenewed(_der(self._authority.issue(key, peer.role, peer.id, now)))
        except CortexError as error:
            return Refused(error.report())

    def _join(self, join: Join, exporter: bytes, now: float) -> Joined:
        token = self._register.find(join.token_id)
        # an unknown id takes the same way: how long it takes tells nothing
        secret = secrets.token_bytes(TOKEN_SECRET_BYTES) if token is None else token.secret
        proven = hmac.compare_digest(make_proof(secret, exporter, join.csr_der), join.proof)
        if token is None or not proven:
            raise JoinRefused(
                "the join token is not known here, or its secret is another",
                cure="copy the whole join line, or ask for a new one: cortex token create",
            )
        check_versions(join.versions, self._versions, f"the joining {token.role.value}")
        key = requested_key(join.csr_der)
        request_hash = hashlib.sha256(join.csr_der).digest()
        place = self._register.use(token.id, request_hash, new_peer_id(token.role), now)
        certificate = place.certificate
        if certificate is None:
            certificate = _der(self._authority.issue(key, token.role, place.peer, now))
            self._register.record(place.peer, certificate)
        return Joined(certificate, _der(self._authority.certificate), place.peer, self._authority.cluster)


class TokenDesk:
    """What an admin asks about tokens and peers. `endpoint` is where newcomers reach the server.

    Blocks on the disk, as `JoinDesk` does.
    """

    def __init__(self, authority: Authority, register: Register, endpoint: Endpoint) -> None:
        self._authority = authority
        self._register = register
        self._endpoint = endpoint

    def invite(self, role: Role, life_s: float, uses_max: int, now: float) -> JoinLine:
        """A new token, as the line that its holder joins with. Raises UsageError."""
        token = self._register.create(role, life_s, uses_max, now)
        return JoinLine(self._endpoint, token.id, token.secret, self._authority.hash)

    def answer(
        self, message: CreateToken | ListTokens | RevokeToken | RevokePeer, now: float
    ) -> FromServerAdmin | Refused:
        """After RevokePeer the caller closes the peer's connections and tells the nodes."""
        try:
            if isinstance(message, CreateToken):
                line = self.invite(message.role, message.life_s, message.uses_max, now)
                return TokenCreated(line.token_id, line.text())
            if isinstance(message, ListTokens):
                return TokenList(tuple(map(_info, self._register.tokens())))
            if isinstance(message, RevokePeer):
                self._register.revoke_peer(message.peer, now)
            elif not self._register.revoke(message.token_id, now):
                raise UsageError("there is no such join token", cure="list them: cortex token list")
            return AdminDone()
        except CortexError as error:
            return Refused(error.report())


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _info(token: Token) -> TokenInfo:
    return TokenInfo(
        token.id,
        token.role,
        token.created_at,
        token.expires_at,
        token.uses,
        token.uses_max,
        token.revoked_at or 0.0,
    )

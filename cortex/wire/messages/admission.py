"""Newcomer - server, certificates, and admin - server."""

from __future__ import annotations

from typing import Union

from cortex.ids import Role
from cortex.wire.messages.base import Message, Refused


class Join(Message, frozen=True):
    """The only message of a peer without certificate. `csr_der` is a certificate signing request, of
    which only the key is used; `proof` is `cortex.wire.join.make_proof`."""

    token_id: str
    csr_der: bytes
    proof: bytes
    versions: dict[str, str]


class Joined(Message, frozen=True):
    """The newcomer is `id`, in the role of its token. The connection is closed after it."""

    certificate_der: bytes
    ca_der: bytes
    id: str
    cluster: str


class RenewCertificate(Message, frozen=True):
    """Another certificate, please, for the sender and the key of this request."""

    csr_der: bytes


class CertificateRenewed(Message, frozen=True):
    certificate_der: bytes


class PeersRevoked(Message, frozen=True):
    """To a node, after its hello and whenever there is another: it serves none of these. All of them."""

    peers: tuple[str, ...]


ToServerJoin = Join
FromServerJoin = Union[Joined, Refused]  # noqa: UP007


class CreateToken(Message, frozen=True):
    role: Role
    life_s: float
    uses_max: int


class TokenCreated(Message, frozen=True):
    """`join_line` holds the token's secret: it is shown to the admin, and kept by nobody."""

    token_id: str
    join_line: str


class ListTokens(Message, frozen=True):
    """Tokens that have not ended, and those that have."""


class TokenInfo(Message, frozen=True):
    """A token without its secret. Times are seconds since 1970; `revoked_at` 0: it was not."""

    token_id: str
    role: Role
    created_at: float
    expires_at: float
    uses: int
    uses_max: int
    revoked_at: float


class TokenList(Message, frozen=True):
    tokens: tuple[TokenInfo, ...]


class RevokeToken(Message, frozen=True):
    """Nobody joins with it any more; who has joined stays."""

    token_id: str


class RevokePeer(Message, frozen=True):
    """The process of this id is out: its connections are closed, its certificates count for nothing."""

    peer: str


class DrainNode(Message, frozen=True):
    """The node finishes what it runs, within so many seconds, and leaves; `undo`: it stays after all.
    Answered with AdminDone when that has begun: the rest is in ClusterStatus."""

    node: str
    seconds: float
    undo: bool = False


class KillCluster(Message, frozen=True):
    """End every node, and the server after them."""


class GetAudit(Message, frozen=True):
    """The last so many actions of the audit log. Answered with `AuditTail`."""

    count: int


class AuditTail(Message, frozen=True):
    """Lines as `cortex.server.audit_desk` writes them, the oldest first."""

    lines: tuple[str, ...]


class AdminDone(Message, frozen=True):
    """It is done, and durable."""


ToServerAdmin = Union[  # noqa: UP007
    CreateToken, ListTokens, RevokeToken, RevokePeer, DrainNode, KillCluster, GetAudit
]
FromServerAdmin = Union[TokenCreated, TokenList, AdminDone, AuditTail]  # noqa: UP007

"""Who a process is, on its disk: one file with its key, its certificate, the authority's, and the server.

    cortex identity 1
    cluster: k0123456789ab
    role: node
    id: n0123456789ab
    server: HOST:PORT
    issued: 1764000000
    expires: 1766592000

    (three PEM blocks: private key, certificate, certificate of the authority)

One file, so that a renewal replaces all of it in one step. Its head says what the certificate says, so
that a command line can go to its server without loading a certificate parser (a tenth of a second);
a mistake in it cannot help anyone, since the other end believes the certificate alone. The file has
mode 0600 in a folder of mode 0700 and is refused when others can reach it. A file that is not whole
counts as none.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from cortex.errors import StateFailed
from cortex.ids import Role, is_cluster_id, is_peer_id, peer_name, role_named
from cortex.limits import RENEW_AFTER_FRACTION
from cortex.private_files import read_private, write_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

FILE_NAME: Final = "identity.pem"
_FIRST_LINE: Final = "cortex identity 1"
_FIELDS: Final = ("cluster", "role", "id", "server", "issued", "expires")
_HEAD = re.compile(_FIRST_LINE + "\n" + "".join(rf"{name}: ([^\n]*)\n" for name in _FIELDS) + "\n")
_BLOCK = re.compile(r"-----BEGIN ([A-Z ]+)-----\n[A-Za-z0-9+/=\n]+-----END \1-----\n")
_BLOCKS: Final = ["PRIVATE KEY", "CERTIFICATE", "CERTIFICATE"]


@dataclass(frozen=True, slots=True)
class Identity:
    """See the module. Times are seconds since 1970."""

    cluster: str
    role: Role
    id: str
    server: str
    """``HOST:PORT`` where the cluster's server was last reached."""
    issued_at: float
    expires_at: float
    key_pem: str = field(repr=False)
    certificate_pem: str = field(repr=False)
    authority_pem: str = field(repr=False)

    @property
    def name(self) -> str:
        """The DNS name in the certificate."""
        return peer_name(self.cluster, self.role, self.id)

    @property
    def renew_at(self) -> float:
        """When two thirds of the certificate's life are over."""
        return self.issued_at + (self.expires_at - self.issued_at) * RENEW_AFTER_FRACTION

    def renew_due(self, now: float) -> bool:
        return now >= self.renew_at

    def expired(self, now: float) -> bool:
        return now >= self.expires_at

    def at(self, server: str) -> Identity:
        """The same identity, for a server that has moved."""
        return replace(self, server=server)

    def to_text(self) -> str:
        values = (self.cluster, self.role.value, self.id, self.server, self.issued_at, self.expires_at)
        head = "".join(
            f"{name}: {value:.0f}\n" if isinstance(value, float) else f"{name}: {value}\n"
            for name, value in zip(_FIELDS, values, strict=True)
        )
        return f"{_FIRST_LINE}\n{head}\n{self.key_pem}{self.certificate_pem}{self.authority_pem}"


def make_identity(
    key: EllipticCurvePrivateKey, certificate: x509.Certificate, authority: x509.Certificate, server: str
) -> Identity:
    """An identity from what a server issued. Raises ProtocolError or NotTrusted unless the three belong
    together: the certificate is for `key` and signed by `authority`, in `authority`'s cluster."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from cortex.errors import NotTrusted
    from cortex.wire.authority import cluster_of, read_peer

    peer = read_peer(certificate)
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise NotTrusted("a certificate came that the cluster's authority has not signed") from error
    if certificate.public_key() != key.public_key() or peer.cluster != cluster_of(authority):
        raise NotTrusted("a certificate came that is for another key or another cluster")
    return Identity(
        peer.cluster,
        peer.role,
        peer.id,
        server,
        certificate.not_valid_before_utc.timestamp(),
        peer.not_after,
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii"),
        certificate.public_bytes(Encoding.PEM).decode("ascii"),
        authority.public_bytes(Encoding.PEM).decode("ascii"),
    )


def save_identity(folder: str, identity: Identity) -> str:
    """Put the identity into `folder` in one step; gives the file's path. Raises StateFailed."""
    path = os.path.join(folder, FILE_NAME)
    write_private(path, identity.to_text().encode("utf-8"))
    return path


def load_identity(folder: str) -> Identity | None:
    """The identity in `folder`; None if there is none, or only a part of one.

    Raises UsageError when others can reach it, StateFailed when it is whole and makes no sense.
    """
    path = os.path.join(folder, FILE_NAME)
    data = read_private(path)
    if data is None:
        return None
    text = data.decode("utf-8", "replace")
    head = _HEAD.match(text)
    if head is None:
        return None
    blocks = list(_BLOCK.finditer(text, head.end()))
    if [block[1] for block in blocks] != _BLOCKS or blocks[-1].end() != len(text):
        return None
    cluster, role_name, peer, server, issued, expires = head.groups()
    role = role_named(role_name)
    if (
        role is None
        or not is_cluster_id(cluster)
        or not is_peer_id(peer, role)
        or not (issued.isdecimal() and expires.isdecimal())
    ):
        raise StateFailed(f"{path!r} is damaged", cure="delete it and join the cluster again")
    key, certificate, authority = (block[0] for block in blocks)
    return Identity(cluster, role, peer, server, float(issued), float(expires), key, certificate, authority)

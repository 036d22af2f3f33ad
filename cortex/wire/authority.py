"""The cluster's certificate authority, and what its certificates say.

Everyone in a cluster has a certificate of one authority, ECDSA on P-256, signed by the server. Of a
request only the public key is taken, and only when the request proves that its sender has the private
one: id, names, role, serial number and life are the server's choice. A certificate names its owner
twice, as ``<id>.<role>.<cluster>.cortex`` (``server.<cluster>.cortex`` for the server), which TLS
checks, and as ``cortex://<cluster>/<role>/<id>``, which `read_peer` reads; they must agree.

Times are seconds since 1970 and are passed in.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cortex.errors import NotTrusted, ProtocolError, StateFailed
from cortex.ids import Role, is_cluster_id, is_peer_id, peer_name, role_named
from cortex.limits import (
    AUTHORITY_S,
    CERTIFICATE_BACKDATE_S,
    CLIENT_CERTIFICATE_S,
    NODE_CERTIFICATE_S,
    SERVER_CERTIFICATE_S,
)

LIFE_S: Final = {
    Role.SERVER: SERVER_CERTIFICATE_S,
    Role.NODE: NODE_CERTIFICATE_S,
    Role.CLIENT: CLIENT_CERTIFICATE_S,
    Role.ADMIN: CLIENT_CERTIFICATE_S,
    Role.MONITOR: CLIENT_CERTIFICATE_S,
}
_ACCEPTS, _DIALS = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
_USES: Final = {
    Role.SERVER: [_ACCEPTS],
    Role.NODE: [_ACCEPTS, _DIALS],  # nodes serve each other and dial the server
    Role.CLIENT: [_DIALS],
    Role.ADMIN: [_DIALS],
    Role.MONITOR: [_DIALS],
}
_URI = re.compile(r"cortex://([^/]+)/([^/]+)/([^/]+)")
_AUTHORITY_NAME = re.compile(r"ca\.(k[0-9a-f]{12})\.cortex")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, from a certificate that TLS has verified."""

    role: Role
    id: str
    cluster: str
    serial: int
    not_after: float

    def __str__(self) -> str:
        return f"{self.role.value} {self.id}"


def public_key_hash(certificate: x509.Certificate) -> str:
    """SHA-256 of the public key info, all 64 hex digits: what a join line pins."""
    return hashlib.sha256(_key_info(certificate.public_key())).hexdigest()


def read_peer(certificate: x509.Certificate) -> Peer:
    """Who a certificate speaks for. Verify it first: this only reads.

    Raises ProtocolError unless it has exactly one cortex URI and one DNS name, they agree, and nothing
    else is named.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        not_after = certificate.not_valid_after_utc.timestamp()
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise ProtocolError(f"a certificate is not one of a cluster: {error}") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    match = _URI.fullmatch(uris[0]) if len(uris) == 1 else None
    if match is None or is_authority:
        raise ProtocolError("a certificate does not say which process of a cluster it is for")
    cluster, peer = match[1], match[3]
    role = role_named(match[2])
    if role is None or not is_cluster_id(cluster) or not is_peer_id(peer, role):
        raise ProtocolError("a certificate names a process of a cluster in a way that is not ours")
    if len(names) != 2 or names.get_values_for_type(x509.DNSName) != [peer_name(cluster, role, peer)]:
        raise ProtocolError("the two names in a certificate do not agree")
    return Peer(role, peer, cluster, certificate.serial_number, not_after)


def not_after(certificate_der: bytes) -> float:
    """When a certificate that this process has signed ends."""
    return x509.load_der_x509_certificate(certificate_der).not_valid_after_utc.timestamp()


def cluster_of(authority: x509.Certificate) -> str:
    """The cluster whose authority this is. Raises NotTrusted unless it is signed by its own key.

    A pinned key alone says nothing of the rest of a certificate: TLS libraries do not check the
    signature of what they are told to trust, so anyone could put this key beside another name.
    """
    try:
        authority.verify_directly_issued_by(authority)
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        names = authority.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        match = _AUTHORITY_NAME.fullmatch(str(names[0].value)) if len(names) == 1 else None
    except (
        *(InvalidSignature, ValueError, TypeError),
        *(x509.ExtensionNotFound, x509.DuplicateExtension),
    ) as error:
        raise NotTrusted("a certificate authority's certificate is not signed by itself") from error
    if match is None or not constraints.ca:
        raise NotTrusted("a certificate is not that of a cluster's authority")
    return match[1]


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def make_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate signing request in DER: the public key, a proof of the private one, and no name."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a request in DER. Raises ProtocolError unless it is on P-256 and proven."""
    try:
        parsed = x509.load_der_x509_csr(request)
        key = parsed.public_key()
        proven = parsed.is_signature_valid
    except Exception as error:  # bytes of a stranger: the parser's errors are of many types
        raise ProtocolError(f"a certificate signing request cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ProtocolError("a certificate signing request has a key that is not on P-256")
    if not proven:
        raise ProtocolError("a certificate signing request does not prove that its sender has the key")
    return key


class Authority:
    """The key that signs, and its certificate. Whoever has it can be anyone in the cluster."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate
        self.cluster = cluster_of(certificate)

    @classmethod
    def make(cls, cluster: str, now: float) -> Authority:
        key = make_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"ca.{cluster}.cortex")])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(now - CERTIFICATE_BACKDATE_S))
            .not_valid_after(_time(now + AUTHORITY_S))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def from_pem(cls, data: bytes) -> Authority:
        """The authority that `to_pem` wrote. Raises StateFailed when it is damaged."""
        try:
            key = load_pem_private_key(data, None)
            certificate = x509.load_pem_x509_certificate(data)
            same = isinstance(key, ec.EllipticCurvePrivateKey) and (
                _key_info(key.public_key()) == _key_info(certificate.public_key())
            )
        except Exception as error:  # the parsers' errors are of many types
            raise StateFailed(f"the cluster's authority cannot be read: {error}") from error
        if not same or not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StateFailed("the cluster's authority has a key and a certificate that do not match")
        return cls(key, certificate)

    def to_pem(self) -> bytes:
        key = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return key + self.certificate.public_bytes(Encoding.PEM)

    @property
    def hash(self) -> str:
        return public_key_hash(self.certificate)

    def issue(self, key: ec.EllipticCurvePublicKey, role: Role, peer: str, now: float) -> x509.Certificate:
        """A certificate for the owner of `key` as `peer`; it does not outlive the authority."""
        if not is_peer_id(peer, role):
            raise ValueError(f"{peer!r} is not an id of a {role.value}")
        not_after = min(now + LIFE_S[role], self.certificate.not_valid_after_utc.timestamp())
        dns = peer_name(self.cluster, role, peer)
        uri = f"cortex://{self.cluster}/{role.value}/{peer}"
        names = x509.SubjectAlternativeName([x509.DNSName(dns), x509.UniformResourceIdentifier(uri)])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, dns)]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(now - CERTIFICATE_BACKDATE_S))
            .not_valid_after(_time(not_after))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_USES[role]), critical=False)
            .add_extension(names, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _key_info(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )

"""TLS settings for Twisted: version 1.3 only, the cluster's authority only, no tickets, no resumption.

* `cluster_port`: the server's one port. A peer that shows a certificate must show a valid one of this
  authority, else its handshake fails; a peer without one gets through, and may join and nothing else
  (`cortex.wire.permissions`).
* `data_port`: where nodes serve each other. A certificate is required.
* `dialing`: the other end must have a certificate of this authority for the name we dial. Names are the
  cluster's own, never those of DNS, so that addresses may change and nothing outside vouches for them.

A handshake says that the authority signed the certificate, and no more: role and revocation are
checked by who owns the connection (`cortex.wire.peers`).
"""

from __future__ import annotations

from typing import Any, Final, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    TLSVersion,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from zope.interface.declarations import implementer

from cortex.wire.authority import Peer, read_peer
from cortex.wire.identity import Identity
from cortex.wire.join import EXPORTER_BYTES, EXPORTER_LABEL

_DEPTH: Final = 1  # the authority signs everyone itself


def cluster_port(identity: Identity) -> CertificateOptions:
    """Settings of the server's port. It shows its authority too: a joiner pins it."""
    authority = _authority(identity)
    return CertificateOptions(
        **_own(identity),
        extraCertChain=[cast(Any, authority)],
        verify=True,
        requireCertificate=False,
        caCerts=[X509.from_cryptography(authority)],
        verifyDepth=_DEPTH,
        raiseMinimumTo=TLSVersion.TLSv1_3,
    )


def data_port(identity: Identity) -> CertificateOptions:
    """Settings of a node's port for other nodes."""
    return CertificateOptions(
        **_own(identity), trustRoot=_trust(identity), verifyDepth=_DEPTH, raiseMinimumTo=TLSVersion.TLSv1_3
    )


def dialing(identity: Identity, name: str) -> Any:
    """Settings to dial the process whose certificate has the DNS name `name` (`cortex.ids.peer_name`)."""
    options = {**_own(identity), "verifyDepth": _DEPTH, "raiseMinimumTo": TLSVersion.TLSv1_3}
    return optionsForClientTLS(name, trustRoot=_trust(identity), extraCertificateOptions=options)


@implementer(IOpenSSLServerConnectionCreator)
class Renewable:
    """Settings of a port that can be replaced while it listens: a new certificate counts for the next
    connection."""

    def __init__(self, options: CertificateOptions) -> None:
        self.options = options

    def serverConnectionForTLS(self, protocol: Any) -> Any:
        return self.options.serverConnectionForTLS(protocol)


def peer_of(transport: Any) -> Peer | None:
    """Who is at the other end of a TLS transport whose handshake has completed; None without certificate.

    Raises ProtocolError for a certificate of our authority that does not say who it is for.
    """
    certificate = transport.getHandle().get_peer_certificate(as_cryptography=True)
    return None if certificate is None else read_peer(certificate)


def exporter_of(transport: Any) -> bytes:
    """32 bytes that only the two ends of this very connection know (RFC 8446, 7.5)."""
    exported: bytes = transport.getHandle().export_keying_material(EXPORTER_LABEL, EXPORTER_BYTES)
    return exported


def _own(identity: Identity) -> dict[str, Any]:
    return {
        "privateKey": load_pem_private_key(identity.key_pem.encode(), None),
        "certificate": x509.load_pem_x509_certificate(identity.certificate_pem.encode()),
    }


def _authority(identity: Identity) -> x509.Certificate:
    return x509.load_pem_x509_certificate(identity.authority_pem.encode())


def _trust(identity: Identity) -> Any:
    return trustRootFromCertificates([Certificate(X509.from_cryptography(_authority(identity)))])

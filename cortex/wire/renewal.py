"""Renewing one's own certificate over a link that the old one opened: a new key, the same name. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509

from cortex.errors import NotTrusted, ProtocolError
from cortex.limits import DAY_S, RENEW_RETRY_S
from cortex.wire.authority import make_key, make_request
from cortex.wire.identity import Identity, make_identity
from cortex.wire.messages import CertificateRenewed, RenewCertificate


def look_again_s(identities: Iterable[Identity], now: float) -> float:
    """Seconds until one of these is due for renewal: a day at most, for clocks that are set."""
    due_s = min(identity.renew_at for identity in identities) - now
    return min(DAY_S, due_s) if due_s > 0 else RENEW_RETRY_S


class Renewal:
    """One renewal of `identity`: send `request`, give the answer to `finish`, save what it returns."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._key = make_key()
        self.request = RenewCertificate(make_request(self._key))

    def finish(self, answer: CertificateRenewed) -> Identity:
        """The new identity. Raises ProtocolError or NotTrusted when the answer is not what was asked for."""
        old = self._identity
        try:
            certificate = x509.load_der_x509_certificate(answer.certificate_der)
            authority = x509.load_pem_x509_certificate(old.authority_pem.encode())
        except ValueError as error:
            raise ProtocolError(f"a renewed certificate cannot be read: {error}") from error
        new = make_identity(self._key, certificate, authority, old.server)
        if (new.cluster, new.role, new.id) != (old.cluster, old.role, old.id):
            raise NotTrusted("a renewed certificate came that is for another process")
        return new

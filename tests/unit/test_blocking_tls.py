"""What a TLS socket has taken from the wire it hands out: nobody who polls the wire waits for the rest."""

from __future__ import annotations

import contextlib
import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cortex.limits import KIB
from cortex.wire.blocking_tls import TlsSocket

NAME = "server.test"
BUFFER_BYTES = 256 * KIB


class Wire:
    """The socket under a TlsSocket: what it sends is the other end's, which decides what arrives when."""

    def __init__(self, to: ssl.MemoryBIO) -> None:
        self._to = to
        self.arrived = bytearray()

    def recv(self, size: int) -> bytes:
        data = bytes(self.arrived[:size])
        del self.arrived[:size]
        return data

    def sendall(self, data: bytes) -> None:
        self._to.write(data)

    def settimeout(self, seconds: float | None) -> None:
        pass


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "both.pem").write_bytes(private + pem)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "both.pem")
    serving.num_tickets = 0
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.load_verify_locations(cadata=pem.decode())
    return serving, asking


class Pair:
    def __init__(self, folder: Path) -> None:
        serving, asking = contexts(folder)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._server = serving.wrap_bio(self._in, self._out, server_side=True)
        self.wire = Wire(self._in)
        self.client = TlsSocket(self.wire, asking, NAME, "the server")  # type: ignore[arg-type]
        for end in (self.client._tls, self._server, self.client._tls, self._server):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
            self.client._flush()
            self.client._incoming.write(self._out.read())

    def sealed(self, data: bytes) -> bytes:
        self._server.write(data)
        return self._out.read()


@pytest.mark.parametrize("size_bytes", [262_000, 262_144, 265_000, 270_001, 277_000, 277_700])
def test_a_record_that_began_earlier_does_not_leave_another_behind(tmp_path: Path, size_bytes: int) -> None:
    pair = Pair(tmp_path)
    data = b"".join(i.to_bytes(4, "big") for i in range(size_bytes // 4 + 1))[:size_bytes]
    sealed = pair.sealed(data)
    first = max(0, len(sealed) - BUFFER_BYTES)  # so much comes first, and as much as the buffer holds then
    came = bytearray()
    for part in (sealed[:first], sealed[first:]):
        pair.wire.arrived += part
        while pair.wire.arrived:  # as long as a poll would show something
            buffer = bytearray(BUFFER_BYTES)
            try:
                came += buffer[: pair.client.recv_into(buffer)]
            except BlockingIOError:
                continue
    assert came == data

"""Certificates of a made-up cluster, for transfers that are to run as between real nodes."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NAME = "node.cortex"


def make_certificates(folder: Path) -> None:
    """``ca.pem``, and ``node.pem`` with the key and certificate of a node called `NAME`, for a day."""
    folder.mkdir(exist_ok=True)
    authority, node = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def certificate(subject: str, key: Any, extension: x509.ExtensionType) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("ca"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(extension, critical=True)
        )
        return builder.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM)

    (folder / "ca.pem").write_bytes(certificate("ca", authority, x509.BasicConstraints(True, None)))
    secret = node.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    named = certificate("node", node, x509.SubjectAlternativeName([x509.DNSName(NAME)]))
    (folder / "node.pem").write_bytes(secret + named)

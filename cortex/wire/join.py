"""Joining a cluster: the join line, and the proof that a process was invited. Pure.

    HOST:PORT/TOKEN.CAHASH        an IPv6 host is in brackets: [::1]:8786/...
    TOKEN   = token id (``t`` and 12 hex digits), then the secret (32 hex digits)
    CAHASH  = SHA-256 of the public key info of the cluster's authority (64 hex digits)

The line pins the authority: whoever answers at HOST:PORT must have a certificate that its key signed.
The secret in it is never sent. What is sent is `make_proof`: an HMAC over a value that only the two
ends of one TLS connection know and over the certificate signing request, so that what a thief records
is worth nothing on another connection or for another key.

No error made here repeats the line: it holds a secret.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final

from cortex.errors import UsageError
from cortex.limits import TOKEN_SECRET_BYTES

EXPORTER_LABEL: Final = b"EXPORTER-cortex-join"
EXPORTER_BYTES: Final = 32
_PROOF_LABEL: Final = b"cortex join 1\0"
_TOKEN_CHARS: Final = 13 + 2 * TOKEN_SECRET_BYTES
_HASH_CHARS: Final = 64
_TOKEN = re.compile(r"(t[0-9a-f]{12})([0-9a-f]{8,})")
_HASH = re.compile(r"[0-9a-f]+")
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")
_CURE: Final = "copy the whole line that the server (or cortex token create) prints: HOST:PORT/TOKEN.CAHASH"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where somebody listens; `str` gives ``HOST:PORT``, an IPv6 host in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class JoinLine:
    """A join line, taken apart; `text` gives it back."""

    endpoint: Endpoint
    token_id: str
    secret: bytes = field(repr=False)
    authority_hash: str

    def text(self) -> str:
        """The line, with its secret: for the eyes of the one who is invited."""
        return f"{self.endpoint}/{self.token_id}{self.secret.hex()}.{self.authority_hash}"


def parse_endpoint(text: str, what: str = "the address", *, any_port: bool = False) -> Endpoint:
    """``HOST:PORT``; with `any_port` 0 is one. Raises UsageError naming `what`."""
    if "://" in text:
        raise UsageError(
            f"{what}: {text!r} is a URL", cure=f"write HOST:PORT: {text.split('://')[1].strip('/')}"
        )
    host, colon, port = text.rpartition(":")
    if not colon:
        raise UsageError(f"{what}: {text!r} has no port", cure="write HOST:PORT, such as 10.0.0.5:8786")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(
            f"{what}: {text!r} is an IPv6 address without brackets", cure=f"write [{host}]:{port}"
        )
    least = 0 if any_port else 1
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and least <= int(port) < 65536):
        raise UsageError(f"{what}: {port!r} is not a port", cure="ports are 1 to 65535")
    if not (_is_ipv6(host) if bracketed else _HOST_NAME.fullmatch(host)):
        raise UsageError(f"{what}: {host!r} is not a host", cure="write HOST:PORT, such as 10.0.0.5:8786")
    return Endpoint(host, int(port))


def parse_host(text: str, what: str) -> str:
    """A name or an address, an IPv6 one with or without brackets. Raises UsageError naming `what`."""
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not (_is_ipv6(host) or (host == text and _HOST_NAME.fullmatch(host))):
        raise UsageError(f"{what}: {text!r} is not a host", cure="write a name or an address, without a port")
    return host


def parse_join_line(line: str) -> JoinLine:
    """Take a join line apart. Raises UsageError saying what is wrong with it, without repeating it."""
    text = line.strip()
    if any(char.isspace() for char in text):
        raise UsageError("the join line has a space or a line break in it", cure=_CURE)
    address, slash, rest = text.partition("/")
    if not slash:
        raise UsageError("the join line has no token: there is no / in it", cure=_CURE)
    if _TOKEN.search(address):
        raise UsageError("the join line has its token in the wrong place", cure=_CURE)
    endpoint = parse_endpoint(address, "the join line's address")
    token, dot, authority_hash = rest.partition(".")
    if not dot:
        raise UsageError("the join line is cut short: there is no . behind its token", cure=_CURE)
    match = _TOKEN.fullmatch(token)
    if match is None or len(token) != _TOKEN_CHARS:
        raise UsageError(
            f"the join line's token is not one: it has {len(token)} characters where t and"
            f" {_TOKEN_CHARS - 1} hex digits belong",
            cure=_CURE,
        )
    if not _HASH.fullmatch(authority_hash) or len(authority_hash) != _HASH_CHARS:
        raise UsageError(
            f"the join line's end is not the hash of an authority: it has {len(authority_hash)} characters"
            f" where {_HASH_CHARS} hex digits belong",
            cure=_CURE,
        )
    return JoinLine(endpoint, match[1], bytes.fromhex(match[2]), authority_hash)


def make_proof(secret: bytes, exporter: bytes, request: bytes) -> bytes:
    """HMAC-SHA256 over the connection's exporter and the certificate signing request."""
    if len(exporter) != EXPORTER_BYTES:
        raise ValueError(f"an exporter has {EXPORTER_BYTES} bytes, not {len(exporter)}")
    signed = _PROOF_LABEL + exporter + hashlib.sha256(request).digest()
    return hmac.new(secret, signed, hashlib.sha256).digest()


def _is_ipv6(host: str) -> bool:
    try:
        return isinstance(ipaddress.ip_address(host), ipaddress.IPv6Address)
    except ValueError:
        return False

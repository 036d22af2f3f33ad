"""Certificates: what the authority signs, what is read from them, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cortex.errors import NotTrusted, ProtocolError, StateFailed
from cortex.ids import Role, is_cluster_id, is_peer_id, new_cluster_id, new_peer_id, peer_name
from cortex.limits import AUTHORITY_S, CERTIFICATE_BACKDATE_S, DAY_S
from cortex.wire.authority import (
    LIFE_S,
    Authority,
    Peer,
    cluster_of,
    make_key,
    make_request,
    public_key_hash,
    read_peer,
    requested_key,
)

NOW = 1_800_000_000.0
CLUSTER = "k0123456789ab"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make(CLUSTER, NOW)


def test_ids_are_hex_only() -> None:
    assert is_cluster_id(new_cluster_id())
    for role in Role:
        assert is_peer_id(new_peer_id(role), role)
        assert new_peer_id(role)[0] == role.value[0]
    bad = ("", "n", "n0123456789a", "n0123456789abc", "n0123456789aB", "n../../etc/pw", "n0123456789ab\n")
    assert not any(is_peer_id(text, Role.NODE) for text in (*bad, "c0123456789ab"))
    assert not is_cluster_id("n0123456789ab")


@pytest.mark.parametrize("role", list(Role))
def test_a_certificate_says_who_it_is_for(authority: Authority, role: Role) -> None:
    key, peer = make_key(), new_peer_id(role)
    certificate = authority.issue(key.public_key(), role, peer, NOW)
    not_after = NOW + LIFE_S[role]
    assert read_peer(certificate) == Peer(role, peer, CLUSTER, certificate.serial_number, not_after)
    assert certificate.public_key() == key.public_key()
    assert certificate.not_valid_before_utc.timestamp() == NOW - CERTIFICATE_BACKDATE_S
    certificate.verify_directly_issued_by(authority.certificate)
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    accepts, dials = (
        use in uses for use in (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
    )
    assert accepts == (role in (Role.SERVER, Role.NODE))
    assert dials == (role is not Role.SERVER)


def test_lives_are_those_of_the_protocol() -> None:
    days = {role: life_s / DAY_S for role, life_s in LIFE_S.items()}
    assert days == {Role.NODE: 30, Role.CLIENT: 90, Role.ADMIN: 90, Role.SERVER: 365, Role.MONITOR: 90}
    assert AUTHORITY_S / DAY_S == 3650


def test_no_certificate_outlives_the_authority(authority: Authority) -> None:
    late = NOW + AUTHORITY_S - DAY_S
    certificate = authority.issue(make_key().public_key(), Role.NODE, new_peer_id(Role.NODE), late)
    assert certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_an_id_of_another_role_is_not_signed(authority: Authority) -> None:
    with pytest.raises(ValueError, match="not an id of a admin"):
        authority.issue(make_key().public_key(), Role.ADMIN, new_peer_id(Role.NODE), NOW)


def test_the_authority_survives_its_file(authority: Authority) -> None:
    again = Authority.from_pem(authority.to_pem())
    assert (again.cluster, again.hash) == (CLUSTER, authority.hash)
    assert len(again.hash) == 64
    again.issue(make_key().public_key(), Role.NODE, new_peer_id(Role.NODE), NOW)
    other = Authority.make(CLUSTER, NOW)
    mixed = other.to_pem().partition(b"-----BEGIN CERTIFICATE")[0] + authority.certificate.public_bytes(
        Encoding.PEM
    )
    for damaged in (b"", authority.to_pem()[:300], mixed):
        with pytest.raises(StateFailed):
            Authority.from_pem(damaged)


def test_a_request_gives_its_key_and_nothing_else() -> None:
    key = make_key()
    assert requested_key(make_request(key)) == key.public_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"server.{CLUSTER}.cortex")])
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    authority = Authority.make(CLUSTER, NOW)
    peer = new_peer_id(Role.CLIENT)
    certificate = authority.issue(requested_key(greedy), Role.CLIENT, peer, NOW)
    assert read_peer(certificate).id == peer
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert name.rfc4514_string() not in certificate.subject.rfc4514_string()


def test_requests_that_prove_nothing_are_refused() -> None:
    good = bytearray(make_request(make_key()))
    forged = bytes(good[:-4]) + bytes(byte ^ 1 for byte in good[-4:])

    def request(key: Any) -> bytes:
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)

    cases = {
        forged: "does not prove|cannot be read",
        request(ec.generate_private_key(ec.SECP384R1())): "not on P-256",
        request(rsa.generate_private_key(65537, 2048)): "not on P-256",
        b"": "cannot be read",
        b"\x30\x80" * 50: "cannot be read",
        bytes(good) + b"\0": "cannot be read",
    }
    for data, why in cases.items():
        with pytest.raises(ProtocolError, match=why):
            requested_key(data)


def signed(authority: Authority, names: list[x509.GeneralName] | None, ca: bool = False) -> x509.Certificate:
    """A certificate with any names, from the authority's own key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(authority.certificate.subject)
        .public_key(make_key().public_key())
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(NOW, UTC))
        .not_valid_after(datetime.fromtimestamp(NOW, UTC) + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(authority._key, hashes.SHA256())


NODE = "n0123456789ab"
DNS = x509.DNSName(peer_name(CLUSTER, Role.NODE, NODE))
URI = x509.UniformResourceIdentifier(f"cortex://{CLUSTER}/node/{NODE}")


def test_the_helper_makes_a_good_one(authority: Authority) -> None:
    assert read_peer(signed(authority, [DNS, URI])).id == NODE


@pytest.mark.parametrize(
    "names",
    [
        None,
        [DNS],
        [URI],
        [DNS, URI, URI],
        [DNS, URI, x509.UniformResourceIdentifier(f"cortex://{CLUSTER}/admin/a0123456789ab")],
        [DNS, DNS, URI],
        [DNS, URI, x509.RFC822Name("a@example.org")],
        [x509.DNSName(f"server.{CLUSTER}.cortex"), URI],
        [x509.DNSName(peer_name("k000000000000", Role.NODE, NODE)), URI],
        [x509.DNSName("*.cortex"), URI],
        [DNS, x509.UniformResourceIdentifier(f"cortex://{CLUSTER}/server/{NODE}")],
        [DNS, x509.UniformResourceIdentifier(f"cortex://{CLUSTER}/owner/{NODE}")],
        [DNS, x509.UniformResourceIdentifier(f"cortex://{CLUSTER}/node/{NODE}/../x")],
        [DNS, x509.UniformResourceIdentifier(f"http://{CLUSTER}/node/{NODE}")],
        [DNS, x509.UniformResourceIdentifier(f"cortex://{CLUSTER.upper()}/node/{NODE}")],
    ],
)
def test_names_that_are_not_exactly_ours_are_refused(
    authority: Authority, names: list[x509.GeneralName] | None
) -> None:
    with pytest.raises(ProtocolError):
        read_peer(signed(authority, names))


def test_an_authority_is_nobody(authority: Authority) -> None:
    with pytest.raises(ProtocolError):
        read_peer(signed(authority, [DNS, URI], ca=True))
    with pytest.raises(ProtocolError):
        read_peer(authority.certificate)


def test_the_pinned_key_in_a_certificate_of_another_maker_is_not_trusted(authority: Authority) -> None:
    assert cluster_of(authority.certificate) == CLUSTER
    forger = Authority.make("k000000000000", NOW)
    forged = (
        x509.CertificateBuilder()
        .subject_name(forger.certificate.subject)
        .issuer_name(forger.certificate.subject)
        .public_key(authority.certificate.public_key())  # type: ignore[arg-type]
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(NOW, UTC))
        .not_valid_after(datetime.fromtimestamp(NOW, UTC) + timedelta(days=9000))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(forger._key, hashes.SHA256())
    )
    assert public_key_hash(forged) == authority.hash
    with pytest.raises(NotTrusted):
        cluster_of(forged)
    leaf = authority.issue(make_key().public_key(), Role.NODE, NODE, NOW)
    with pytest.raises(NotTrusted):
        cluster_of(leaf)

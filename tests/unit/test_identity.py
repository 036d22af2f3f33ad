"""Identities on disk: whole or none, private, renewed in time; and the server's home that begins them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cortex.errors import CortexError, NotTrusted, ProtocolError, StateFailed, UsageError
from cortex.ids import Role, new_peer_id, peer_name
from cortex.limits import DAY_S
from cortex.wire.authority import Authority, make_key, read_peer, requested_key
from cortex.wire.identity import Identity, load_identity, make_identity, save_identity
from cortex.wire.join import Endpoint
from cortex.wire.messages import CertificateRenewed
from cortex.wire.renewal import Renewal
from cortex.wire.server_home import open_server_home

NOW = 1_800_000_000.0
HERE = Endpoint("10.0.0.5", 8786)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("k0123456789ab", NOW)


def identity_of(authority: Authority, role: Role = Role.NODE) -> Identity:
    key = make_key()
    certificate = authority.issue(key.public_key(), role, new_peer_id(role), NOW)
    return make_identity(key, certificate, authority.certificate, str(HERE))


def test_an_identity_survives_its_file(authority: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "node"
    assert load_identity(str(folder)) is None
    identity = identity_of(authority)
    path = Path(save_identity(str(folder), identity))
    assert load_identity(str(folder)) == identity
    assert (path.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    assert identity.name == peer_name(authority.cluster, Role.NODE, identity.id)
    moved = identity.at("[::1]:9")
    save_identity(str(folder), moved)
    assert load_identity(str(folder)) == moved


def test_no_secret_is_shown(authority: Authority) -> None:
    identity = identity_of(authority)
    assert "PRIVATE" not in repr(identity)
    assert identity.key_pem.split("\n")[1] not in repr(identity)


def test_any_part_of_an_identity_counts_as_none(authority: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "node"
    path = Path(save_identity(str(folder), identity_of(authority)))
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert load_identity(str(folder)) is None
    path.write_bytes(b"\xff" * 500)
    assert load_identity(str(folder)) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("role: node", "role: root"),
        ("cluster: k", "cluster: q"),
        ("id: n", "id: c"),
        ("issued: ", "issued: x"),
    ],
)
def test_a_whole_identity_that_makes_no_sense_is_said(
    authority: Authority, tmp_path: Path, old: str, new: str
) -> None:
    folder = tmp_path / "node"
    path = Path(save_identity(str(folder), identity_of(authority)))
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(StateFailed, match="damaged") as caught:
        load_identity(str(folder))
    assert "join the cluster again" in caught.value.cure


def test_an_identity_that_others_can_read_is_refused(authority: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "node"
    path = Path(save_identity(str(folder), identity_of(authority)))
    path.chmod(0o644)
    with pytest.raises(UsageError, match="0644"):
        load_identity(str(folder))
    path.chmod(0o600)
    folder.chmod(0o755)
    with pytest.raises(UsageError, match="0755"):
        load_identity(str(folder))


def test_renewal_is_due_at_two_thirds_of_life(authority: Authority) -> None:
    identity = identity_of(authority)
    assert not identity.renew_due(NOW + 19.9 * DAY_S)
    assert identity.renew_due(NOW + 20 * DAY_S)
    assert not identity.expired(NOW + 30 * DAY_S - 1)
    assert identity.expired(NOW + 30 * DAY_S)


def test_parts_that_do_not_belong_together_make_no_identity(authority: Authority) -> None:
    key, peer = make_key(), new_peer_id(Role.NODE)
    certificate = authority.issue(key.public_key(), Role.NODE, peer, NOW)
    with pytest.raises(NotTrusted, match="another key"):
        make_identity(make_key(), certificate, authority.certificate, "h:1")
    other = Authority.make(authority.cluster, NOW)
    with pytest.raises(NotTrusted, match="has not signed"):
        make_identity(key, certificate, other.certificate, "h:1")


def test_a_renewal_keeps_the_name_and_takes_a_new_key(authority: Authority) -> None:
    old = identity_of(authority)
    renewal = Renewal(old)
    key = requested_key(renewal.request.csr_der)
    later = NOW + 20 * DAY_S

    def answer(role: Role, peer: str, by: Authority = authority) -> CertificateRenewed:
        from cryptography.hazmat.primitives.serialization import Encoding

        return CertificateRenewed(by.issue(key, role, peer, later).public_bytes(Encoding.DER))

    new = renewal.finish(answer(old.role, old.id))
    assert (new.id, new.role, new.cluster, new.server) == (old.id, old.role, old.cluster, old.server)
    assert new.expires_at == later + 30 * DAY_S
    assert new.key_pem != old.key_pem
    bad = (
        answer(Role.NODE, new_peer_id(Role.NODE)),
        answer(Role.ADMIN, new_peer_id(Role.ADMIN)),
        answer(old.role, old.id, Authority.make(authority.cluster, NOW)),
        CertificateRenewed(b"junk"),
    )
    for each in bad:
        with pytest.raises((NotTrusted, ProtocolError)):
            renewal.finish(each)


def test_a_home_is_made_once_and_kept(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    first = open_server_home(home, HERE, NOW)
    assert open_server_home(home, HERE, NOW + DAY_S).server == first.server
    again = open_server_home(home, HERE, NOW + DAY_S)
    assert (again.authority.hash, again.admin) == (first.authority.hash, first.admin)
    assert (first.server.role, first.admin.role) == (Role.SERVER, Role.ADMIN)
    assert first.server.name == f"server.{first.authority.cluster}.cortex"
    private = [path for path in (tmp_path / "home").rglob("*") if path.stat().st_mode & 0o077]
    assert private == []


def test_a_home_renews_what_is_due_and_makes_what_is_missing(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    first = open_server_home(home, HERE, NOW)
    later = open_server_home(home, HERE, NOW + 61 * DAY_S)
    assert later.server == first.server
    assert later.admin.id == first.admin.id
    assert later.admin.expires_at == NOW + 151 * DAY_S
    moved = open_server_home(home, Endpoint("::1", 1), NOW + 61 * DAY_S)
    assert (moved.server.server, moved.admin.server) == ("[::1]:1", "[::1]:1")
    assert moved.server.certificate_pem == first.server.certificate_pem
    (tmp_path / "home" / "admin" / "identity.pem").write_text("cortex identity 1\nclus")
    again = open_server_home(home, HERE, NOW)
    assert again.admin.id != first.admin.id
    assert again.server.id == first.server.id


def test_a_home_of_two_clusters_or_with_open_doors_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    open_server_home(str(home), HERE, NOW)
    key = home / "authority" / "authority.pem"
    key.chmod(0o640)
    with pytest.raises(UsageError, match="0640"):
        open_server_home(str(home), HERE, NOW)
    key.unlink()
    with pytest.raises(CortexError, match="another cluster"):
        open_server_home(str(home), HERE, NOW)


def test_a_command_line_loads_no_certificate_parser(authority: Authority, tmp_path: Path) -> None:
    """Reading an identity and dialing with it costs no import of a tenth of a second."""
    save_identity(str(tmp_path / "c"), identity_of(authority, Role.CLIENT))
    code = (
        "import sys\n"
        "from cortex.wire import blocking_tls, permissions\n"
        "from cortex.wire.identity import load_identity\n"
        "from cortex.wire.join import parse_endpoint\n"
        "identity = load_identity(sys.argv[1])\n"
        "blocking_tls._context(identity, sys.argv[1])\n"
        "found = {'cryptography', 'OpenSSL', 'twisted', 'asyncio'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_certificate_is_what_counts_not_the_head_of_the_file(
    authority: Authority, tmp_path: Path
) -> None:
    from cryptography import x509

    identity = identity_of(authority, Role.CLIENT)
    path = Path(save_identity(str(tmp_path / "c"), identity))
    admin = new_peer_id(Role.ADMIN)
    path.write_text(path.read_text().replace("role: client", "role: admin").replace(identity.id, admin, 1))
    loaded = load_identity(str(tmp_path / "c"))
    assert loaded is not None
    assert loaded.role is Role.ADMIN  # what it thinks of itself
    certificate = x509.load_pem_x509_certificate(loaded.certificate_pem.encode())
    assert read_peer(certificate).role is Role.CLIENT  # what everyone else believes

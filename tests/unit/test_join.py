"""Join lines, proofs, the desk that answers joins and renewals, and the token store behind it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sqlite3
import threading
from pathlib import Path

import pytest
from cryptography import x509

from cortex.errors import CortexError, JoinRefused, StateFailed, UsageError
from cortex.ids import Role, is_peer_id, new_peer_id
from cortex.limits import TOKEN_S_MAX
from cortex.storage.token_store import FILE_NAME, TokenStore
from cortex.tokens import Token
from cortex.wire import messages as m
from cortex.wire.authority import Authority, make_key, make_request, read_peer
from cortex.wire.join import (
    EXPORTER_BYTES,
    Endpoint,
    JoinLine,
    make_proof,
    parse_endpoint,
    parse_join_line,
)
from cortex.wire.join_desk import JoinDesk, TokenDesk
from cortex.wire.versions import local_versions

NOW = 1_800_000_000.0
EXPORTER = b"e" * EXPORTER_BYTES
SECRET = "0123456789abcdef" * 2
LINE = f"host.example:8786/t0123456789ab{SECRET}.{'ab' * 32}"
VERSIONS = local_versions()


# --- the line ---


def test_a_line_is_taken_apart() -> None:
    line = parse_join_line(f"  {LINE}\n")
    assert line.endpoint == Endpoint("host.example", 8786)
    assert (line.token_id, line.secret.hex(), line.authority_hash) == ("t0123456789ab", SECRET, "ab" * 32)
    assert line.text() == LINE
    assert parse_join_line(LINE.replace("host.example", "[fe80::1]")).endpoint.host == "fe80::1"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "no token"),
        ("host:8786", "no token"),
        (LINE.replace("host.example:8786", "host.example"), "has no port"),
        (LINE.replace(":8786", ":0"), "not a port"),
        (LINE.replace(":8786", ":65536"), "not a port"),
        (LINE.replace(":8786", ":٨"), "not a port"),
        (LINE.replace("host.example", ""), "not a host"),
        (LINE.replace("host.example", "-x"), "not a host"),
        (LINE.replace("host.example", "[1.2.3.4]"), "not a host"),
        (LINE.replace("host.example", "::1"), "IPv6 address without brackets"),
        (LINE[:60], "cut short"),
        (LINE[:-1], "63 characters"),
        (LINE + "0", "65 characters"),
        (LINE[:-1] + "g", "64 characters where 64 hex"),
        (LINE.replace(SECRET, SECRET[:-1]), "44 characters where t and 44 hex"),
        (LINE.replace("/t", "/x"), "token is not one"),
        (LINE.replace(".ab", ". ab"), "space or a line break"),
        (LINE[:80] + "\n" + LINE[80:], "space or a line break"),
        (LINE.replace("/", ":"), "no token"),
        (LINE.replace("/", ":") + "/x", "wrong place"),
    ],
)
def test_a_line_that_is_none_says_why_and_keeps_its_secret(line: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        parse_join_line(line)
    assert SECRET[:12] not in str(caught.value)


def test_an_address_says_what_it_is_for() -> None:
    with pytest.raises(UsageError, match=r"--server: 'x' has no port"):
        parse_endpoint("x", "--server")
    assert str(parse_endpoint("[::1]:1")) == "[::1]:1"


def test_no_secret_is_shown_by_repr() -> None:
    line = parse_join_line(LINE)
    token = Token("t0", Role.NODE, line.secret, 0, 0, 1)
    assert SECRET not in repr(line) + repr(token)
    assert str(line.secret) not in repr(line) + repr(token)


# --- the store ---


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(str(tmp_path / "home"))


def test_tokens_survive_a_restart(store: TokenStore, tmp_path: Path) -> None:
    token = store.create(Role.NODE, 3600, 5, NOW)
    store.use(token.id, b"h", new_peer_id(Role.NODE), NOW)
    gone = store.create(Role.CLIENT, 60, 1, NOW + 1)
    assert store.revoke(gone.id, NOW + 2)
    store.revoke_peer("n0123456789ab", NOW)
    store.close()
    again = TokenStore(str(tmp_path / "home"))
    found = again.find(token.id)
    assert found is not None
    assert (found.secret, found.uses, found.uses_max, found.role) == (token.secret, 1, 5, Role.NODE)
    assert [t.id for t in again.tokens()] == [token.id, gone.id]
    assert again.tokens()[1].revoked_at == NOW + 2
    assert again.revoked_peers() == {"n0123456789ab"}
    assert again.is_revoked("n0123456789ab")
    assert again.find("t000000000000") is None
    again.close()


def test_two_tokens_differ(store: TokenStore) -> None:
    one, two = (store.create(Role.NODE, 60, 1, NOW) for _ in range(2))
    assert one.id != two.id
    assert one.secret != two.secret
    assert len(one.secret) == 16


@pytest.mark.parametrize(
    ("role", "life_s", "uses"),
    [
        (Role.SERVER, 60, 1),
        (Role.NODE, 0, 1),
        (Role.NODE, -1, 1),
        (Role.NODE, float("nan"), 1),
        (Role.NODE, float("inf"), 1),
        (Role.NODE, TOKEN_S_MAX + 1, 1),
        (Role.NODE, 60, 0),
        (Role.NODE, 60, 10**9),
    ],
)
def test_a_token_without_bounds_is_not_made(store: TokenStore, role: Role, life_s: float, uses: int) -> None:
    with pytest.raises(UsageError):
        store.create(role, life_s, uses, NOW)
    assert store.tokens() == []


def test_each_request_takes_one_use_and_no_more_than_there_are(store: TokenStore) -> None:
    token = store.create(Role.NODE, 60, 2, NOW)
    first = store.use(token.id, b"1", "n000000000001", NOW)
    assert store.use(token.id, b"1", "n00000000000f", NOW) == first  # again: the first id, no use
    store.use(token.id, b"2", "n000000000002", NOW)
    with pytest.raises(JoinRefused, match="used up: 2 of 2"):
        store.use(token.id, b"3", "n000000000003", NOW)
    store.record("n000000000001", b"certificate")
    assert store.use(token.id, b"1", "n00000000000f", NOW).certificate == b"certificate"


def test_an_ended_token_gives_nothing_even_for_a_request_it_knows(store: TokenStore) -> None:
    token = store.create(Role.NODE, 60, 2, NOW)
    store.use(token.id, b"1", "n000000000001", NOW + 59)
    with pytest.raises(JoinRefused, match="expired"):
        store.use(token.id, b"1", "n000000000001", NOW + 60)
    store.revoke(token.id, NOW)
    assert store.revoke(token.id, NOW + 9)  # twice is fine
    with pytest.raises(JoinRefused, match="revoked"):
        store.use(token.id, b"1", "n000000000001", NOW + 1)
    assert not store.revoke("t000000000000", NOW)
    with pytest.raises(JoinRefused):
        store.use("t000000000000", b"1", "n000000000001", NOW)


def test_threads_never_share_a_use(store: TokenStore) -> None:
    token = store.create(Role.NODE, 60, 10, NOW)
    granted: list[str] = []

    def join(number: int) -> None:
        for attempt in range(5):
            request = bytes([number, attempt])
            with contextlib.suppress(JoinRefused):
                granted.append(store.use(token.id, request, new_peer_id(Role.NODE), NOW).peer)

    threads = [threading.Thread(target=join, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(granted) == len(set(granted)) == 10
    found = store.find(token.id)
    assert found is not None
    assert found.uses == 10


def test_the_store_is_private_and_refused_when_it_is_not(store: TokenStore, tmp_path: Path) -> None:
    store.create(Role.NODE, 60, 1, NOW)
    folder = tmp_path / "home"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    store.close()
    (folder / FILE_NAME).chmod(0o644)
    with pytest.raises(UsageError, match="0644"):
        TokenStore(str(folder))
    (folder / FILE_NAME).chmod(0o600)
    folder.chmod(0o711)
    with pytest.raises(UsageError, match="0711"):
        TokenStore(str(folder))
    folder.chmod(0o700)
    os.rename(folder / FILE_NAME, folder / "elsewhere")
    (folder / FILE_NAME).symlink_to(folder / "elsewhere")
    with pytest.raises(StateFailed):
        TokenStore(str(folder))


def test_a_store_that_is_none_or_newer_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    TokenStore(str(folder)).close()
    with sqlite3.connect(folder / FILE_NAME) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StateFailed, match="newer cortex"):
        TokenStore(str(folder))
    for path in folder.iterdir():
        path.unlink()
    descriptor = os.open(folder / FILE_NAME, os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(descriptor, b"not a database at all, and long enough to be seen as one" * 20)
    os.close(descriptor)
    with pytest.raises(StateFailed, match="not a database"):
        TokenStore(str(folder))


def test_writes_reach_the_disk_before_they_are_answered(store: TokenStore) -> None:
    assert store._file.db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert store._file.db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_only_ids_of_those_who_dial_can_be_put_out(store: TokenStore) -> None:
    for bad in ("", "s0123456789ab", "everyone", "n012", "'; DROP TABLE tokens; --"):
        with pytest.raises(UsageError):
            store.revoke_peer(bad, NOW)
    store.revoke_peer("n0123456789ab", NOW)
    store.revoke_peer("n0123456789ab", NOW)


# --- the desk ---


class Desk:
    """A join desk on a real store, and joins to it."""

    def __init__(self, folder: Path) -> None:
        self.store = TokenStore(str(folder))
        self.authority = Authority.make("k0123456789ab", NOW)
        self.desk = JoinDesk(self.authority, self.store, VERSIONS)
        self.admin = TokenDesk(self.authority, self.store, Endpoint("h", 1))

    def line(self, role: Role = Role.NODE, life_s: float = 60, uses: int = 2) -> JoinLine:
        return self.admin.invite(role, life_s, uses, NOW)

    def join(self, line: JoinLine, request: bytes, now: float = NOW) -> m.Joined | m.Refused:
        proof = make_proof(line.secret, EXPORTER, request)
        return self.desk.answer(m.Join(line.token_id, request, proof, VERSIONS), EXPORTER, now)

    def uses(self, line: JoinLine) -> int:
        token = self.store.find(line.token_id)
        assert token is not None
        return token.uses


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "home")


def error_of(answer: object) -> str:
    assert isinstance(answer, m.Refused), answer
    return answer.error.code


@pytest.mark.parametrize("role", [Role.NODE, Role.CLIENT, Role.ADMIN])
def test_who_is_invited_joins_in_the_role_of_its_token(desk: Desk, role: Role) -> None:
    key = make_key()
    joined = desk.join(desk.line(role), make_request(key))
    assert isinstance(joined, m.Joined)
    certificate = x509.load_der_x509_certificate(joined.certificate_der)
    peer = read_peer(certificate)
    assert (peer.role, peer.id, peer.cluster) == (role, joined.id, "k0123456789ab")
    assert is_peer_id(joined.id, role)
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(x509.load_der_x509_certificate(joined.ca_der))


def test_the_same_request_again_gets_the_same_certificate_for_no_use(desk: Desk) -> None:
    line, request = desk.line(uses=1), make_request(make_key())
    first = desk.join(line, request)
    assert desk.join(line, request) == first
    assert desk.uses(line) == 1
    other = desk.join(line, make_request(make_key()))
    assert error_of(other) == "join-refused"
    assert error_of(desk.join(line, request, NOW + 61)) == "join-refused"  # its token has ended


def test_a_use_is_counted_before_it_is_signed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server dies between the two: the newcomer asks again, and is the same one for the same use."""
    line, request = desk.line(uses=1), make_request(make_key())

    class Died(BaseException):
        pass

    def die(*_: object) -> None:
        assert desk.uses(line) == 1
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Authority, "issue", die)
        with pytest.raises(Died):
            desk.join(line, request)
    joined = desk.join(line, request)
    assert isinstance(joined, m.Joined)
    assert desk.uses(line) == 1
    assert read_peer(x509.load_der_x509_certificate(joined.certificate_der)).id == joined.id


def test_joins_at_once_with_one_request_get_one_certificate(desk: Desk) -> None:
    line, request = desk.line(uses=5), make_request(make_key())
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(desk.join(line, request))) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(answer == answers[0] for answer in answers)
    assert desk.uses(line) == 1


def test_every_false_proof_is_refused_alike_and_costs_no_use(desk: Desk) -> None:
    line, request = desk.line(uses=1), make_request(make_key())
    good = make_proof(line.secret, EXPORTER, request)
    other = make_request(make_key())
    attempts = [
        (m.Join("t000000000000", request, good, VERSIONS), EXPORTER),  # no such token
        (m.Join("", request, good, VERSIONS), EXPORTER),
        (m.Join(line.token_id, request, make_proof(b"x" * 16, EXPORTER, request), VERSIONS), EXPORTER),
        (m.Join(line.token_id, request, good, VERSIONS), b"f" * EXPORTER_BYTES),  # another connection
        (m.Join(line.token_id, other, good, VERSIONS), EXPORTER),  # another key
        (m.Join(line.token_id, request, b"", VERSIONS), EXPORTER),
        (m.Join(line.token_id, request, good[:-1], VERSIONS), EXPORTER),
        (m.Join(line.token_id, request, good + b"\0", VERSIONS), EXPORTER),
    ]
    answers = [desk.desk.answer(join, exporter, NOW) for join, exporter in attempts]
    assert all(answer == answers[0] for answer in answers)  # nothing tells them apart
    assert error_of(answers[0]) == "join-refused"
    assert desk.uses(line) == 0


def test_the_state_of_a_token_is_said_to_its_holder_alone(desk: Desk) -> None:
    line, request = desk.line(), make_request(make_key())
    refused = desk.join(line, request, NOW + 61)
    assert isinstance(refused, m.Refused)
    assert "expired" in refused.error.message
    stranger = m.Join(line.token_id, request, b"x" * 32, VERSIONS)
    refused = desk.desk.answer(stranger, EXPORTER, NOW + 61)
    assert isinstance(refused, m.Refused)
    assert "expired" not in refused.error.message
    assert "expired" not in refused.error.cure


def test_expired_used_up_and_revoked_tokens_are_refused(desk: Desk) -> None:
    request = make_request(make_key())
    expired, spent, revoked = desk.line(life_s=1), desk.line(uses=1), desk.line()
    desk.join(spent, make_request(make_key()))
    assert isinstance(desk.admin.answer(m.RevokeToken(revoked.token_id), NOW), m.AdminDone)
    for line, why in ((expired, "expired"), (spent, "used up"), (revoked, "revoked")):
        refused = desk.join(line, request, NOW + 2)
        assert isinstance(refused, m.Refused)
        assert (refused.error.code, why in refused.error.message) == ("join-refused", True)
        assert "cortex token create" in refused.error.cure


def test_other_versions_are_refused_before_a_use_is_counted(desk: Desk) -> None:
    line, request = desk.line(), make_request(make_key())
    proof = make_proof(line.secret, EXPORTER, request)
    refused = desk.desk.answer(
        m.Join(line.token_id, request, proof, {**VERSIONS, "python": "2.7.1"}), EXPORTER, NOW
    )
    assert error_of(refused) == "version-mismatch"
    assert desk.uses(line) == 0


def test_a_bad_request_is_refused_before_a_use_is_counted(desk: Desk) -> None:
    line = desk.line()
    for request in (b"", b"\x30\x03junk", random.Random(1).randbytes(300)):
        assert error_of(desk.join(line, request)) == "protocol"
    assert desk.uses(line) == 0


def test_a_disk_that_fails_refuses_the_join(desk: Desk) -> None:
    line = desk.line()
    desk.store.close()
    assert error_of(desk.join(line, make_request(make_key()))) == "state"


def test_a_renewal_is_for_the_one_who_asks(desk: Desk) -> None:
    joined = desk.join(desk.line(), make_request(make_key()))
    assert isinstance(joined, m.Joined)
    peer = read_peer(x509.load_der_x509_certificate(joined.certificate_der))
    key = make_key()
    renewed = desk.desk.renew(peer, m.RenewCertificate(make_request(key)), NOW + 100)
    assert isinstance(renewed, m.CertificateRenewed)
    certificate = x509.load_der_x509_certificate(renewed.certificate_der)
    assert (read_peer(certificate).id, read_peer(certificate).role) == (peer.id, peer.role)
    assert read_peer(certificate).not_after == peer.not_after + 100
    assert error_of(desk.desk.renew(peer, m.RenewCertificate(b"junk"), NOW)) == "protocol"
    desk.admin.answer(m.RevokePeer(peer.id), NOW)
    assert error_of(desk.desk.renew(peer, m.RenewCertificate(make_request(key)), NOW)) == "not-allowed"


def test_an_admin_makes_lists_and_revokes_tokens(desk: Desk) -> None:
    created = desk.admin.answer(m.CreateToken(Role.CLIENT, 60.0, 3), NOW)
    assert isinstance(created, m.TokenCreated)
    line = parse_join_line(created.join_line)
    assert (line.token_id, line.authority_hash) == (created.token_id, desk.authority.hash)
    assert isinstance(desk.join(line, make_request(make_key())), m.Joined)
    listed = desk.admin.answer(m.ListTokens(), NOW)
    assert listed == m.TokenList((m.TokenInfo(created.token_id, Role.CLIENT, NOW, NOW + 60, 1, 3, 0.0),))
    assert line.secret.hex() not in repr(listed)
    assert desk.admin.answer(m.RevokeToken(created.token_id), NOW) == m.AdminDone()
    assert error_of(desk.admin.answer(m.RevokeToken("t000000000000"), NOW)) == "usage"
    assert error_of(desk.admin.answer(m.CreateToken(Role.SERVER, 60.0, 3), NOW)) == "usage"
    assert error_of(desk.admin.answer(m.RevokePeer("nobody"), NOW)) == "usage"


def test_a_request_is_counted_for_its_own_token(desk: Desk) -> None:
    """The same key with two tokens is two processes: each token says its own role."""
    request = make_request(make_key())
    node, client = desk.join(desk.line(Role.NODE), request), desk.join(desk.line(Role.CLIENT), request)
    assert isinstance(node, m.Joined)
    assert isinstance(client, m.Joined)
    assert (node.id[0], client.id[0]) == ("n", "c")


def test_a_proof_depends_on_all_it_is_made_of() -> None:
    proofs = {
        make_proof(secret, exporter * EXPORTER_BYTES, request)
        for secret in (b"a", b"b")
        for exporter in (b"a", b"b")
        for request in (b"a", b"b")
    }
    assert len(proofs) == 8
    assert all(len(proof) == hashlib.sha256().digest_size for proof in proofs)
    with pytest.raises(ValueError):
        make_proof(b"a", b"", b"a")


def test_join_errors_keep_their_type_across_the_wire() -> None:
    from cortex import errors

    for error in (
        errors.JoinRefused("x"),
        errors.NotAllowed("x"),
        errors.NotTrusted("x"),
        errors.Unreachable("x"),
        errors.StateFailed("x"),
    ):
        assert type(errors.from_report(error.report())) is type(error)
        assert isinstance(error, CortexError)

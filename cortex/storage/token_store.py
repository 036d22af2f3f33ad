"""Join tokens, who came with them, and who was put out: SQLite in the server's home.

Every call that changes something is one transaction, on the disk when it returns (WAL mode,
synchronous=FULL). The file has mode 0600 in a folder of mode 0700 and is refused when others can reach
it: it holds the tokens' secrets as they are, because an HMAC cannot be checked with less. Whoever can
read it can join, and could read the authority's key beside it as well.

Threads may share a store. Times are seconds since 1970 and are passed in. A disk that fails raises
StateFailed, and nothing of the call has happened.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any, Final

from cortex.errors import JoinRefused, StateFailed, UsageError
from cortex.ids import Role, is_peer_id
from cortex.private_files import check_private_file, make_private_folder
from cortex.tokens import Place, Token, new_token

FILE_NAME: Final = "tokens.sqlite"
_VERSION: Final = 1
_BUSY_S: Final = 10.0  # another process (a command beside the server) holds the file for milliseconds
_SCHEMA: Final = f"""
CREATE TABLE tokens (
    id TEXT PRIMARY KEY, role TEXT NOT NULL, secret BLOB NOT NULL,
    created_at REAL NOT NULL, expires_at REAL NOT NULL,
    uses_max INTEGER NOT NULL, uses INTEGER NOT NULL, revoked_at REAL
) WITHOUT ROWID;
CREATE TABLE places (
    token TEXT NOT NULL REFERENCES tokens (id), request_hash BLOB NOT NULL,
    peer TEXT NOT NULL UNIQUE, taken_at REAL NOT NULL, certificate BLOB,
    PRIMARY KEY (token, request_hash)
) WITHOUT ROWID;
CREATE TABLE revoked (peer TEXT PRIMARY KEY, revoked_at REAL NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""
_COLUMNS: Final = "id, role, secret, created_at, expires_at, uses_max, uses, revoked_at"


class TokenStore:
    """See the module. `folder` is made if it is missing."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, FILE_NAME)
        self._lock = threading.Lock()
        make_private_folder(folder)
        self._check_file()
        with self._typed_errors():
            self._db = sqlite3.connect(
                self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # --- tokens ---

    def create(self, role: Role, life_s: float, uses_max: int, now: float) -> Token:
        """A new token. Raises UsageError for a life or a number of uses out of bounds."""
        token = new_token(role, life_s, uses_max, now)
        with self._transaction():
            values = (token.id, role.value, token.secret, now, token.expires_at, uses_max, 0, None)
            self._db.execute(f"INSERT INTO tokens ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        return token

    def tokens(self) -> list[Token]:
        """All, the oldest first."""
        return [_token(row) for row in self._rows(f"SELECT {_COLUMNS} FROM tokens ORDER BY created_at, id")]

    def find(self, token_id: str) -> Token | None:
        rows = self._rows(f"SELECT {_COLUMNS} FROM tokens WHERE id = ?", token_id)
        return _token(rows[0]) if rows else None

    def revoke(self, token_id: str, now: float) -> bool:
        """No further use of the token; False if there is none of this id."""
        with self._transaction():
            done = self._db.execute(
                "UPDATE tokens SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?", (now, token_id)
            )
            return done.rowcount == 1

    # --- who came ---

    def use(self, token_id: str, request_hash: bytes, peer: str, now: float) -> Place:
        """Count a use of the token, and give its newcomer the id `peer`.

        The same request again has its first id (and certificate, once recorded) and costs no use.
        Raises JoinRefused for a token that is unknown, expired, revoked or used up.
        """
        with self._transaction():
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM tokens WHERE id = ?", (token_id,)).fetchall()
            if not rows:
                raise JoinRefused("the join token is not known here")
            token = _token(rows[0])
            token.check_alive(now)
            taken = self._db.execute(
                "SELECT peer, certificate FROM places WHERE token = ? AND request_hash = ?",
                (token_id, request_hash),
            ).fetchone()
            if taken is not None:
                return Place(*taken)
            token.check_uses()
            self._db.execute("UPDATE tokens SET uses = uses + 1 WHERE id = ?", (token_id,))
            self._db.execute(
                "INSERT INTO places VALUES (?, ?, ?, ?, NULL)", (token_id, request_hash, peer, now)
            )
        return Place(peer, None)

    def record(self, peer: str, certificate: bytes) -> None:
        """Keep the certificate that was signed for a newcomer, before it is sent."""
        with self._transaction():
            self._db.execute("UPDATE places SET certificate = ? WHERE peer = ?", (certificate, peer))

    # --- who is out ---

    def revoke_peer(self, peer: str, now: float) -> None:
        """Every certificate of this id counts for nothing. Raises UsageError for what is no id of one
        that could dial in."""
        if not any(is_peer_id(peer, role) for role in Role if role is not Role.SERVER):
            raise UsageError(f"{peer!r} is not the id of a node, client or admin")
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO revoked VALUES (?, ?)", (peer, now))

    def is_revoked(self, peer: str) -> bool:
        return bool(self._rows("SELECT 1 FROM revoked WHERE peer = ?", peer))

    def revoked_peers(self) -> frozenset[str]:
        return frozenset(row[0] for row in self._rows("SELECT peer FROM revoked"))

    # --- inside ---

    def _check_file(self) -> None:
        """Make the file as a private one, or check the one that is there."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise StateFailed(f"{self._path!r} cannot be opened: {error.strerror}") from error
        try:
            check_private_file(os.fstat(descriptor), self._path)
        finally:
            os.close(descriptor)

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
        self._db.execute("COMMIT")
        if version > _VERSION:
            raise StateFailed(
                f"{self._path!r} was written by a newer cortex", cure="start the newer version again"
            )

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._lock, self._typed_errors():
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._typed_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextlib.contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StateFailed(
                f"{self._path!r} failed: {error}", cure="check that its disk is not full and is in order"
            ) from error


def _token(row: Any) -> Token:
    identifier, role, *rest = row
    return Token(identifier, Role(role), *rest)

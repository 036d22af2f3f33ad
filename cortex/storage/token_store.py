"""Join tokens, who came with them, and who was put out: SQLite in the server's home.

Every call that changes something is one transaction, on the disk when it returns, and the file is private
(`cortex.storage.sqlite_file`): it holds the tokens' secrets as they are, because an HMAC cannot be checked
with less. Whoever can read it can join, and could read the authority's key beside it as well.

Threads may share a store. Times are seconds since 1970 and are passed in. A disk that fails raises
StateFailed, and nothing of the call has happened.
"""

from __future__ import annotations

import os
from typing import Any, Final

from cortex.errors import JoinRefused, UsageError
from cortex.ids import Role, is_peer_id
from cortex.storage.sqlite_file import SqliteFile
from cortex.tokens import Place, Token, new_token

FILE_NAME: Final = "tokens.sqlite"
_VERSION: Final = 1
_SCHEMA: Final = """
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
"""
_COLUMNS: Final = "id, role, secret, created_at, expires_at, uses_max, uses, revoked_at"


class TokenStore:
    """See the module. `folder` is made if it is missing."""

    def __init__(self, folder: str) -> None:
        self._file = SqliteFile(
            os.path.join(folder, FILE_NAME),
            "the file of tokens",
            schema=_SCHEMA,
            version=_VERSION,
            begin_anew=f"put back a copy of {folder}; or begin with an empty one, which ends every token and"
            f" forgets who was put out: mv {folder} {folder}.damaged",
            pragmas=("foreign_keys = ON",),
        )

    def close(self) -> None:
        self._file.close()

    # --- tokens ---

    def create(self, role: Role, life_s: float, uses_max: int, now: float) -> Token:
        """A new token. Raises UsageError for a life or a number of uses out of bounds."""
        token = new_token(role, life_s, uses_max, now)
        with self._file.transaction() as db:
            values = (token.id, role.value, token.secret, now, token.expires_at, uses_max, 0, None)
            db.execute(f"INSERT INTO tokens ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        return token

    def tokens(self) -> list[Token]:
        """All, the oldest first."""
        rows = self._file.rows(f"SELECT {_COLUMNS} FROM tokens ORDER BY created_at, id")
        return [_token(row) for row in rows]

    def find(self, token_id: str) -> Token | None:
        rows = self._file.rows(f"SELECT {_COLUMNS} FROM tokens WHERE id = ?", token_id)
        return _token(rows[0]) if rows else None

    def revoke(self, token_id: str, now: float) -> bool:
        """No further use of the token; False if there is none of this id."""
        with self._file.transaction() as db:
            done = db.execute(
                "UPDATE tokens SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?", (now, token_id)
            )
            return done.rowcount == 1

    # --- who came ---

    def use(self, token_id: str, request_hash: bytes, peer: str, now: float) -> Place:
        """Count a use of the token, and give its newcomer the id `peer`.

        The same request again has its first id (and certificate, once recorded) and costs no use.
        Raises JoinRefused for a token that is unknown, expired, revoked or used up.
        """
        with self._file.transaction() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM tokens WHERE id = ?", (token_id,)).fetchall()
            if not rows:
                raise JoinRefused("the join token is not known here")
            token = _token(rows[0])
            token.check_alive(now)
            taken = db.execute(
                "SELECT peer, certificate FROM places WHERE token = ? AND request_hash = ?",
                (token_id, request_hash),
            ).fetchone()
            if taken is not None:
                return Place(*taken)
            token.check_uses()
            db.execute("UPDATE tokens SET uses = uses + 1 WHERE id = ?", (token_id,))
            db.execute("INSERT INTO places VALUES (?, ?, ?, ?, NULL)", (token_id, request_hash, peer, now))
        return Place(peer, None)

    def record(self, peer: str, certificate: bytes) -> None:
        """Keep the certificate that was signed for a newcomer, before it is sent."""
        with self._file.transaction() as db:
            db.execute("UPDATE places SET certificate = ? WHERE peer = ?", (certificate, peer))

    # --- who is out ---

    def revoke_peer(self, peer: str, now: float) -> None:
        """Every certificate of this id counts for nothing. Raises UsageError for what is no id of one
        that could dial in."""
        if not any(is_peer_id(peer, role) for role in Role if role is not Role.SERVER):
            raise UsageError(
                f"{peer!r} is not the id of a token, node, client or admin",
                cure="ids of tokens: cortex token list; of nodes: cortex status; of owners: cortex jobs",
            )
        with self._file.transaction() as db:
            db.execute("INSERT OR IGNORE INTO revoked VALUES (?, ?)", (peer, now))

    def is_revoked(self, peer: str) -> bool:
        return bool(self._file.rows("SELECT 1 FROM revoked WHERE peer = ?", peer))

    def revoked_peers(self) -> frozenset[str]:
        return frozenset(row[0] for row in self._file.rows("SELECT peer FROM revoked"))


def _token(row: Any) -> Token:
    identifier, role, *rest = row
    return Token(identifier, Role(role), *rest)

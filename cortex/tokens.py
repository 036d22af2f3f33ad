"""A join token: what lets a new process prove that somebody invited it.

A token has a role, an end and a number of uses. Its secret never crosses the wire and is never shown
in a representation, an error or a log; only the join line carries it, to the one who was invited.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from cortex.errors import JoinRefused, UsageError
from cortex.ids import Role, new_token_id
from cortex.limits import TOKEN_S_MAX, TOKEN_SECRET_BYTES, TOKEN_USES_MAX

_NEW_LINE = "ask for a new join line: cortex token create"


@dataclass(frozen=True, slots=True)
class Token:
    """Times are seconds since 1970. `uses` counts the joins that were granted."""

    id: str
    role: Role
    secret: bytes = field(repr=False)
    created_at: float
    expires_at: float
    uses_max: int
    uses: int = 0
    revoked_at: float | None = None

    def check_alive(self, now: float) -> None:
        """Raise JoinRefused when the token has ended; uses left do not matter here."""
        if self.revoked_at is not None:
            raise JoinRefused(f"the join token {self.id} was revoked", cure=_NEW_LINE)
        if now >= self.expires_at:
            raise JoinRefused(f"the join token {self.id} has expired", cure=_NEW_LINE)

    def check_uses(self) -> None:
        """Raise JoinRefused when no use is left."""
        if self.uses >= self.uses_max:
            raise JoinRefused(
                f"the join token {self.id} is used up: {self.uses} of {self.uses_max} joins", cure=_NEW_LINE
            )


@dataclass(frozen=True, slots=True)
class Place:
    """A use of a token, counted: the id that its new process has, and its certificate once one is signed."""

    peer: str
    certificate: bytes | None


def new_token(role: Role, life_s: float, uses_max: int, now: float) -> Token:
    """A token with a fresh id and secret. Raises UsageError for a life or a number of uses out of bounds."""
    if role is Role.SERVER:
        raise UsageError(
            "nobody joins a cluster as its server", cure="the roles are node, client, admin and monitor"
        )
    if not 0 < life_s <= TOKEN_S_MAX:
        raise UsageError(
            f"a join token cannot live for {life_s:g} s", cure=f"choose between 1 s and {TOKEN_S_MAX:g} s"
        )
    if not 1 <= uses_max <= TOKEN_USES_MAX:
        raise UsageError(
            f"a join token cannot allow {uses_max} joins", cure=f"choose between 1 and {TOKEN_USES_MAX:,}"
        )
    secret = secrets.token_bytes(TOKEN_SECRET_BYTES)
    return Token(new_token_id(), role, secret, now, now + life_s, uses_max)

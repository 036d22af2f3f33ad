"""The audit log beside the reactor: who did what, and whether it was let. One line an action.

    {"at": "2026-11-29T22:50:00.123Z", "actor": {"id": "c0123456789ab", "role": "client",
     "address": "10.0.0.7"}, "action": "submit", "object": "j0123456789ab", "outcome": "done",
     "details": {"name": "word count"}}

Entries are written in groups by the journal's thread, and are on the device then: within a moment, or later
when the disk is busy. Nobody waits for them. Those that cannot be written go to the server's log instead, as
they are. Nothing secret is put in: ids, names and hashes.

Peers without certificate cannot drive the rest out of the log: so many of theirs a minute are written, and
how many more there were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from cortex.limits import AUDIT_STRANGERS_MAX, AUDIT_TEXT_CHARS_MAX, AUDIT_WAITING_MAX
from cortex.storage.audit_log import AuditLog

_log = Logger()
_encode = msgspec.json.Encoder().encode
_MINUTE_S: Final = 60.0
DONE: Final = "done"
REFUSED: Final = "refused"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who: the id and role in a certificate, "" for a peer without one; and the address it came from."""

    id: str = ""
    role: str = ""
    address: str = ""


def actor_of(link: Any) -> Actor:
    """Whoever is at the other end of a link, or was."""
    peer = getattr(link, "peer", None)
    transport = getattr(link, "transport", None)
    host = getattr(transport.getPeer(), "host", "") if transport is not None else ""
    return Actor("" if peer is None else peer.id, "" if peer is None else peer.role.value, host or "")


class Audit(Protocol):
    """How everybody notes what somebody did."""

    def __call__(
        self,
        actor: Actor,
        action: str,
        object: str = "",
        outcome: str = DONE,
        details: Mapping[str, Any] | None = None,
    ) -> None: ...


def no_audit(
    actor: Actor,
    action: str,
    object: str = "",
    outcome: str = DONE,
    details: Mapping[str, Any] | None = None,
) -> None:
    """On one machine there is nobody else."""


class AuditDesk:
    """See the module. `run` takes a function to the journal's thread; `wall_clock` is seconds since 1970."""

    def __init__(
        self, log: AuditLog, run: Callable[..., Deferred[Any]], wall_clock: Callable[[], float]
    ) -> None:
        self._audit_log = log
        self._run = run
        self._wall_clock = wall_clock
        self._waiting: list[bytes] = []
        self._writing = False
        self._stopped = False
        self._minute = 0
        self._of_strangers = 0
        self.written = 0
        self.lost = 0
        """Entries that went to the server's log alone."""

    def note(
        self,
        actor: Actor,
        action: str,
        object: str = "",
        outcome: str = DONE,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """An `Audit`."""
        if self._stopped:
            return
        now = self._wall_clock()
        if not actor.id and outcome == REFUSED and not self._may_note_stranger(now):
            return
        self._add(now, actor, action, object, outcome, details or {})

    def tail(self, count: int) -> list[str]:
        """In the journal's thread: the last lines that were written."""
        return self._audit_log.tail(count)

    def stop(self) -> None:
        """Write what waits: `run`'s thread is to end after it."""
        self._note_more(self._wall_clock())
        self._stopped = True
        if self._waiting:
            self._run(self._audit_log.append, self._waiting).addErrback(self._not_written, self._waiting)
        self._run(self._audit_log.close)

    # --- inside ---

    def _may_note_stranger(self, now: float) -> bool:
        minute = int(now // _MINUTE_S)
        if minute != self._minute:
            self._note_more(now)
            self._minute, self._of_strangers = minute, 0
        self._of_strangers += 1
        return self._of_strangers <= AUDIT_STRANGERS_MAX

    def _note_more(self, now: float) -> None:
        more = self._of_strangers - AUDIT_STRANGERS_MAX
        if more > 0:
            self._of_strangers = 0
            self._add(now, Actor(), "connect", "", REFUSED, {"more of these": more})

    def _add(
        self,
        now: float,
        actor: Actor,
        action: str,
        object: str,
        outcome: str,
        details: Mapping[str, Any],
    ) -> None:
        at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry: dict[str, Any] = {
            "at": at,
            "actor": {"id": actor.id, "role": actor.role, "address": actor.address},
            "action": action,
            "object": _cut(object),
            "outcome": outcome,
        }
        if details:
            entry["details"] = {name: _cut(value) for name, value in details.items()}
        line = _encode(entry)
        if len(self._waiting) >= AUDIT_WAITING_MAX:
            self._give_up([line])
            return
        self._waiting.append(line)
        self._flush()

    def _flush(self) -> None:
        if self._waiting and not self._writing and not self._stopped:
            batch, self._waiting = self._waiting, []
            self._writing = True
            self._run(self._audit_log.append, batch).addCallbacks(
                self._written, self._not_written, callbackArgs=(batch,), errbackArgs=(batch,)
            )

    def _written(self, _: None, batch: list[bytes]) -> None:
        self.written += len(batch)
        self._writing = False
        self._flush()

    def _not_written(self, failure: Failure, batch: list[bytes]) -> None:
        _log.error("the audit log is not written: {error}", error=str(failure.value))
        self._give_up(batch)
        self._writing = False
        self._flush()

    def _give_up(self, lines: list[bytes]) -> None:
        self.lost += len(lines)
        for line in lines:
            _log.error("audit: {line}", line=line.decode())


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > AUDIT_TEXT_CHARS_MAX:
        return value[:AUDIT_TEXT_CHARS_MAX] + "..."
    return value

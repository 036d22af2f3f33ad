"""The audit log: what is in a line, private and bounded files, a disk that fails, a crowd of strangers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred

from cortex.errors import StateFailed, UsageError
from cortex.ids import Role
from cortex.limits import AUDIT_STRANGERS_MAX, AUDIT_TEXT_CHARS_MAX
from cortex.server.audit_desk import DONE, REFUSED, Actor, AuditDesk, actor_of
from cortex.storage.audit_log import AuditLog
from cortex.wire.authority import Peer

ANN = Actor("c" + "a" * 12, "client", "10.0.0.7")


class Desk(AuditDesk):
    def __init__(self, log: AuditLog) -> None:
        self.blocked: list[Callable[[], None]] = []
        self.holds_back = False
        self.now = 1764456600.25
        super().__init__(log, self._at_once, lambda: self.now)

    def _at_once(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        if not self.holds_back:
            return maybeDeferred(function, *arguments)
        result: Deferred[Any] = Deferred()
        self.blocked.append(lambda: maybeDeferred(function, *arguments).chainDeferred(result))
        return result


def lines(folder: Path, name: str = "audit.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_line_says_when_who_from_where_what_and_how_it_ended(tmp_path: Path) -> None:
    desk = Desk(AuditLog(str(tmp_path / "audit")))
    desk.note(ANN, "submit", "j1", DONE, {"name": "a job\nwith a line's end" + "x" * 1000})
    desk.note(Actor(address="10.0.0.8"), "join", "", REFUSED, {"token": "t1"})
    submitted, refused = lines(tmp_path / "audit")
    name = submitted.pop("details")["name"]
    assert len(name) == AUDIT_TEXT_CHARS_MAX + 3
    assert submitted == {
        "at": "2025-11-29T22:50:00.250Z",
        "actor": {"id": ANN.id, "role": "client", "address": "10.0.0.7"},
        "action": "submit",
        "object": "j1",
        "outcome": "done",
    }
    assert (refused["actor"]["id"], refused["outcome"], refused["details"]) == (
        "",
        "refused",
        {"token": "t1"},
    )
    assert desk.tail(1) == [(tmp_path / "audit" / "audit.jsonl").read_text().splitlines()[1]]


def test_who_is_at_the_other_end_of_a_link() -> None:
    peer = Peer(Role.ADMIN, "a" * 13, "k", 1, 2.0)
    transport = SimpleNamespace(getPeer=lambda: SimpleNamespace(host="10.0.0.9"))
    link = SimpleNamespace(peer=peer, transport=transport)
    assert actor_of(link) == Actor("a" * 13, "admin", "10.0.0.9")
    assert actor_of(SimpleNamespace(peer=None, transport=None)) == Actor()


def test_files_are_private_and_what_is_kept_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex.storage.audit_log.AUDIT_FILE_BYTES", 1000)
    monkeypatch.setattr("cortex.storage.audit_log.AUDIT_FILES", 3)
    desk = Desk(AuditLog(str(tmp_path / "audit")))
    for number in range(100):
        desk.note(ANN, "cancel", f"j{number}")
    files = sorted((tmp_path / "audit").iterdir())
    assert [file.name for file in files] == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(file.stat().st_size <= 1000 and file.stat().st_mode & 0o777 == 0o600 for file in files)
    shown = [json.loads(line)["object"] for line in desk.tail(12)]
    assert shown == [f"j{number}" for number in range(88, 100)]  # of two files
    assert len(desk.tail(1000)) < 30
    (tmp_path / "audit" / "audit.jsonl").chmod(0o644)
    with pytest.raises(UsageError, match="0644"):
        AuditLog(str(tmp_path / "audit"))


def test_a_line_that_a_crash_cut_off_stands_alone(tmp_path: Path) -> None:
    log = AuditLog(str(tmp_path / "audit"))
    log.append([b'{"whole": 1}'])
    log.close()
    with (tmp_path / "audit" / "audit.jsonl").open("ab") as file:
        file.write(b'{"cut of')
    log = AuditLog(str(tmp_path / "audit"))
    log.append([b'{"whole": 2}'])
    assert log.tail(9) == ['{"whole": 1}', '{"cut of', '{"whole": 2}']


def test_what_comes_while_the_disk_is_busy_is_written_together_and_in_order(tmp_path: Path) -> None:
    desk = Desk(AuditLog(str(tmp_path / "audit")))
    desk.holds_back = True
    for number in range(5):
        desk.note(ANN, "cancel", f"j{number}")
    assert len(desk.blocked) == 1
    desk.blocked.pop()()
    assert len(desk.blocked) == 1
    desk.stop()
    desk.note(ANN, "cancel", "too late")
    for go_on in desk.blocked:
        go_on()
    assert [line["object"] for line in lines(tmp_path / "audit")] == [f"j{number}" for number in range(5)]


def test_a_disk_that_fails_loses_nothing_from_the_servers_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(str(tmp_path / "audit"))
    said: list[str] = []
    monkeypatch.setattr(
        "cortex.server.audit_desk._log",
        SimpleNamespace(error=lambda text, **more: said.append(text.format(**more))),
    )
    desk = Desk(log)

    def fail(_: object) -> None:
        raise StateFailed("no space left")

    monkeypatch.setattr(log, "append", fail)
    desk.note(ANN, "cancel", "j1")
    assert "no space left" in said[0]
    assert '"object":"j1"' in said[1]
    assert (desk.lost, desk.written) == (1, 0)
    monkeypatch.undo()
    desk.note(ANN, "cancel", "j2")
    assert [line["object"] for line in lines(tmp_path / "audit")] == ["j2"]


def test_strangers_cannot_drive_the_rest_out(tmp_path: Path) -> None:
    desk = Desk(AuditLog(str(tmp_path / "audit")))
    for _ in range(1000):
        desk.note(Actor(address="10.0.0.8"), "join", "", REFUSED)
    desk.note(ANN, "cancel", "j1", REFUSED)
    desk.now += 60
    desk.note(Actor(address="10.0.0.8"), "join", "", REFUSED)
    found = lines(tmp_path / "audit")
    assert len(found) == AUDIT_STRANGERS_MAX + 3
    assert found[-3]["object"] == "j1"
    assert found[-2]["details"] == {"more of these": 1000 - AUDIT_STRANGERS_MAX}

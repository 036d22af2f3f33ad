"""A private SQLite file: whole or not there, all of a transaction or nothing, and every failure by name."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import pytest

from cortex.errors import StateFailed
from cortex.storage import sqlite_file
from cortex.storage.sqlite_file import SqliteFile

SCHEMA = "CREATE TABLE numbers (n INTEGER PRIMARY KEY)"


def opened(folder: Path) -> SqliteFile:
    return SqliteFile(
        str(folder / "some.sqlite"), "the file of numbers", schema=SCHEMA, version=1, begin_anew="count again"
    )


def numbers(file: SqliteFile) -> list[int]:
    return [row[0] for row in file.rows("SELECT n FROM numbers ORDER BY n")]


def add(file: SqliteFile, *some: int) -> None:
    with file.transaction() as db:
        for n in some:
            db.execute("INSERT INTO numbers VALUES (?)", (n * n // n,))  # 0 fails half way


def test_a_transaction_is_all_there_or_not_at_all(tmp_path: Path) -> None:
    file = opened(tmp_path / "home")
    add(file, 1)
    with pytest.raises(ZeroDivisionError):
        add(file, 2, 0)
    with pytest.raises(StateFailed, match=r"the file of numbers .*UNIQUE"):
        add(file, 3, 1)
    assert numbers(file) == [1]
    file.close()
    assert numbers(opened(tmp_path / "home")) == [1]


def test_threads_take_turns(tmp_path: Path) -> None:
    file = opened(tmp_path / "home")

    def add_some(first: int) -> None:
        for n in range(first, first + 20):
            add(file, n)

    threads = [threading.Thread(target=add_some, args=(20 * number + 1,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert numbers(file) == list(range(1, 81))
    file.close()


def test_a_file_that_could_not_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sqlite_file.os, "rename", fail)
    with pytest.raises(StateFailed, match="No space left") as caught:
        opened(tmp_path / "home")
    assert "disk is not full" in caught.value.cure
    assert os.listdir(tmp_path / "home") == []


@pytest.mark.parametrize("damage", ["empty", "text", "torn"])
def test_damage_is_named_with_the_cure(tmp_path: Path, damage: str) -> None:
    file = opened(tmp_path / "home")
    add(file, *range(1, 5000))
    file.close()
    path = tmp_path / "home" / "some.sqlite"
    data = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"hello\n" * 5000, "torn": data[:4096] + os.urandom(8192) + data[12288:]}[
            damage
        ]
    )
    with pytest.raises(StateFailed, match="damaged") as caught:
        opened(tmp_path / "home")
    assert str(path) in caught.value.message
    assert caught.value.cure == "count again"


def test_a_file_of_a_newer_cortex_is_left_alone(tmp_path: Path) -> None:
    opened(tmp_path / "home").close()
    db = sqlite3.connect(tmp_path / "home" / "some.sqlite")
    db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(StateFailed, match="newer cortex"):
        opened(tmp_path / "home")

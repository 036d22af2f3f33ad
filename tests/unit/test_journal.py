"""The journal: what was written is there after the process's death, in order, and damage is named."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from cortex.errors import StateFailed, UsageError
from cortex.limits import JOBS_REMEMBERED
from cortex.storage import journal as j
from cortex.storage.journal import Journal

JOB, OTHER = "j" + "1" * 12, "j" + "2" * 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home" / "journal"


def added(job: str = JOB, at: float = 1.0, code: bytes = b"code") -> j.JobAdded:
    return j.JobAdded(job, "c1", at, b"request", code)


def ended(job: str = JOB, at: float = 9.0, answer: bytes = b"answer") -> j.JobEnded:
    return j.JobEnded(job, at, b"summary", answer)


def code_files(folder: Path) -> int:
    return len(os.listdir(folder / "code"))


def test_a_job_and_its_records_are_there_in_order_after_a_death(folder: Path) -> None:
    journal = Journal(str(folder))
    journal.begin_life()
    journal.write([added(OTHER, 2.0), added(), j.RecordAdded(JOB, b"a")])
    journal.write([j.RecordAdded(OTHER, b"x"), j.RecordAdded(JOB, b"b"), j.NodeKnown("n1", "i1")])
    journal.write([j.NodeKnown("n1", "i2"), j.NodeKnown("n2", "i1"), j.NodeDropped("n2")])
    del journal  # without a close, as when it is killed
    later = Journal(str(folder))
    later.begin_life()
    assert later.jobs() == [
        j.KeptJob(JOB, "c1", 1.0, 1, b"request", b"code", b""),
        j.KeptJob(OTHER, "c1", 2.0, 1, b"request", b"code", b""),
    ]
    assert list(later.records(JOB)) == [b"a", b"b"]
    assert list(later.records(OTHER)) == [b"x"]
    assert later.nodes() == {"n1": "i2"}
    assert later.ended() == []
    assert code_files(folder) == 1  # the two jobs have the same
    later.close()


def test_an_ended_job_leaves_its_answer_and_then_its_summary(folder: Path) -> None:
    journal = Journal(str(folder))
    journal.write([added(), added(OTHER), j.RecordAdded(JOB, b"a"), ended()])
    assert [job.job for job in journal.jobs()] == [OTHER]
    assert list(journal.records(JOB)) == []
    assert journal.ended() == [j.EndedJob(JOB, "c1", 9.0, b"summary", b"answer")]
    assert code_files(folder) == 1
    journal.write([j.AnswerTaken(JOB), ended(OTHER, 10.0)])
    assert [(job.job, job.answer) for job in journal.ended()] == [(JOB, b""), (OTHER, b"answer")]
    assert code_files(folder) == 0
    journal.close()


def test_a_job_that_is_done_is_under_way_until_its_client_has_the_result(folder: Path) -> None:
    journal = Journal(str(folder))
    journal.write([added(), j.RecordAdded(JOB, b"a"), j.JobAnswered(JOB, b"done"), j.AnswerTaken(JOB)])
    assert [(job.job, job.answer) for job in journal.jobs()] == [(JOB, b"done")]
    assert list(journal.records(JOB)) == [b"a"]
    journal.write([ended(answer=b"")])
    assert journal.jobs() == []
    assert journal.ended() == [j.EndedJob(JOB, "c1", 9.0, b"summary", b"")]
    journal.close()


def test_only_the_last_ended_jobs_stay_but_no_answer_is_lost(folder: Path) -> None:
    journal = Journal(str(folder))
    names = [f"j{i:012x}" for i in range(JOBS_REMEMBERED + 5)]
    for at, name in enumerate(names):
        changes: list[j.Change] = [added(name), ended(name, float(at))]
        journal.write(changes if at == 1 else [*changes, j.AnswerTaken(name)])
    kept = [job.job for job in journal.ended()]
    assert kept[0] == names[1]
    assert kept[-1] == names[-1]
    assert len(kept) <= JOBS_REMEMBERED + 2
    journal.close()


def test_a_write_that_fails_leaves_nothing(folder: Path) -> None:
    journal = Journal(str(folder))
    with pytest.raises(StateFailed):
        journal.write([j.RecordAdded(JOB, b"a"), added(), added()])
    assert journal.jobs() == []
    assert list(journal.records(JOB)) == []
    journal.write([added()])
    assert len(journal.jobs()) == 1
    journal.close()


def test_a_full_disk_is_a_typed_error_and_is_over_when_there_is_room(folder: Path) -> None:
    journal = Journal(str(folder))
    (pages,) = journal._file.db.execute("PRAGMA page_count").fetchone()
    journal._file.db.execute(f"PRAGMA max_page_count = {pages + 5}")  # SQLite's own full disk
    with pytest.raises(StateFailed, match="full") as caught:
        journal.write([added(), j.RecordAdded(JOB, b"x" * 200_000)])
    assert str(folder / "journal.sqlite") in caught.value.message
    assert "full" in caught.value.cure
    journal._file.db.execute("PRAGMA max_page_count = 1000000")
    journal.write([added(), j.RecordAdded(JOB, b"x" * 200_000)])
    assert len(list(journal.records(JOB))) == 1
    journal.close()


def test_the_file_gives_back_what_ended_jobs_took(folder: Path) -> None:
    journal = Journal(str(folder))
    journal.write([added(), *(j.RecordAdded(JOB, os.urandom(10_000)) for _ in range(300))])
    journal.write([ended()])
    journal.close()
    Journal(str(folder)).close()
    assert (folder / "journal.sqlite").stat().st_size < 200_000


def test_a_large_job_leaves_bit_by_bit_while_the_server_lives(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex.storage.journal._FREE_PAGES", 100)
    monkeypatch.setattr("cortex.storage.journal._RECORDS_AT_ONCE", 200)
    journal = Journal(str(folder))
    journal.write(
        [added(), added(OTHER), j.RecordAdded(OTHER, b"kept"), *[j.RecordAdded(JOB, bytes(4000))] * 700]
    )
    assert not journal.untidy
    journal.write([ended()])
    assert journal.untidy
    assert [job.job for job in journal.jobs()] == [OTHER]
    assert len(list(journal.records(JOB))) == 500
    assert journal.tidy()
    assert len(list(journal.records(JOB))) == 300
    journal.close()
    journal = Journal(str(folder))  # a later life goes on with it
    journal.begin_life()
    assert journal.untidy
    while journal.tidy():
        assert journal.untidy
    assert not journal.untidy
    assert list(journal.records(JOB)) == []
    assert list(journal.records(OTHER)) == [b"kept"]
    journal._file.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert os.path.getsize(folder / "journal.sqlite") < 110 * 4096 + 100_000
    journal.close()


@pytest.mark.parametrize("damage", ["cut", "empty", "torn", "text"])
def test_damage_is_named_with_its_cure(folder: Path, damage: str) -> None:
    journal = Journal(str(folder))
    journal.write([added(), *(j.RecordAdded(JOB, os.urandom(1000)) for _ in range(500))])
    journal.close()
    path = folder / "journal.sqlite"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "torn":
        path.write_bytes(data[:4096] + os.urandom(8192) + data[12288:])
    else:
        path.write_bytes(b"hello\n" * 5000)
    with pytest.raises(StateFailed, match="damaged") as caught:
        Journal(str(folder))
    assert str(path) in caught.value.message
    assert f"mv {folder} {folder}.damaged" in caught.value.cure
    folder.rename(f"{folder}.damaged")  # the cure
    assert Journal(str(folder)).jobs() == []


def test_code_that_is_gone_or_changed_is_named(folder: Path) -> None:
    journal = Journal(str(folder))
    journal.write([added()])
    (name,) = os.listdir(folder / "code")
    (folder / "code" / name).chmod(0o600)
    (folder / "code" / name).write_bytes(b"other")
    with pytest.raises(StateFailed, match="not what was written"):
        journal.jobs()
    (folder / "code" / name).unlink()
    with pytest.raises(StateFailed, match="cannot be read"):
        journal.jobs()
    journal.close()


def test_nobody_else_can_read_it_and_a_file_that_others_can_read_is_refused(folder: Path) -> None:
    old = os.umask(0)
    try:
        journal = Journal(str(folder))
        journal.write([added()])
    finally:
        os.umask(old)
    for root, _, files in os.walk(folder):
        assert os.stat(root).st_mode & 0o777 == 0o700
        for name in files:
            assert os.stat(os.path.join(root, name)).st_mode & 0o777 == 0o600, name
    journal.close()
    (folder / "journal.sqlite").chmod(0o644)
    with pytest.raises(UsageError, match="0644"):
        Journal(str(folder))


def test_a_newer_journal_is_left_alone(folder: Path) -> None:
    Journal(str(folder)).close()
    db = sqlite3.connect(folder / "journal.sqlite")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StateFailed, match="newer cortex"):
        Journal(str(folder))

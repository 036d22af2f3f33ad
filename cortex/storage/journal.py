"""The server's journal: what a later life of the server needs to go on, as SQLite in the server's home.

It knows jobs, their records in order, how they ended, and nodes; what a record says is opaque bytes. A job's
code lies beside it in a file named by its SHA-256. `write` is one transaction, on the disk when it returns
(`cortex.storage.sqlite_file`). What an ended job's records took is given back (by `tidy`, bit by bit), and of
ended jobs only the last are kept, so the file stays small.

One thread at a time; every call blocks on the disk. Times are seconds since 1970 and are passed in. A disk
that fails, or a file that is damaged, raises StateFailed, which names it and the cure.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cortex.errors import StateFailed
from cortex.limits import JOBS_REMEMBERED, JOURNAL_DROPPED_AT_ONCE, JOURNAL_FREE_BYTES, JOURNAL_WAL_BYTES
from cortex.private_files import check_private_file, make_private_folder, write_private
from cortex.storage.sqlite_file import SqliteFile

FILE_NAME: Final = "journal.sqlite"
CODE_FOLDER: Final = "code"
_VERSION: Final = 1
_SCHEMA: Final = """
PRAGMA auto_vacuum = INCREMENTAL;
CREATE TABLE jobs (
    job TEXT PRIMARY KEY, owner TEXT NOT NULL, accepted_at REAL NOT NULL, lives INTEGER NOT NULL,
    request BLOB NOT NULL, code TEXT NOT NULL,
    ended_at REAL, summary BLOB, answer BLOB
) WITHOUT ROWID;
CREATE TABLE records (place INTEGER PRIMARY KEY, job TEXT NOT NULL, record BLOB NOT NULL);
CREATE INDEX records_of_job ON records (job, place);
CREATE TABLE nodes (node TEXT PRIMARY KEY, incarnation TEXT NOT NULL) WITHOUT ROWID;
"""
_DROP_RECORDS: Final = (
    "DELETE FROM records WHERE place IN (SELECT place FROM records WHERE job = ? ORDER BY place LIMIT ?)"
)
_HAS_RECORDS: Final = "SELECT 1 FROM records WHERE job = ? LIMIT 1"
_RECORDS_AT_ONCE: Final = JOURNAL_DROPPED_AT_ONCE
_FREE_PAGES: Final = JOURNAL_FREE_BYTES // 4096  # SQLite's own page size


@dataclass(frozen=True, slots=True)
class JobAdded:
    """`request` without `code`, which may be large and is often the same."""

    job: str
    owner: str
    accepted_at: float
    request: bytes
    code: bytes


@dataclass(frozen=True, slots=True)
class RecordAdded:
    job: str
    record: bytes


@dataclass(frozen=True, slots=True)
class JobAnswered:
    """It is done, and `answer` is what its client is to be told. Until the client has the result it may go
    on: it counts as under way."""

    job: str
    answer: bytes


@dataclass(frozen=True, slots=True)
class JobEnded:
    """Its request and records are not needed any more. `answer` is what its client is to be told, b"" for
    nothing."""

    job: str
    ended_at: float
    summary: bytes
    answer: bytes


@dataclass(frozen=True, slots=True)
class AnswerTaken:
    """The client of an ended job has the answer, or will not ask for it: only the summary stays."""

    job: str


@dataclass(frozen=True, slots=True)
class JobDropped:
    """A job under way that no later life can go on with."""

    job: str


@dataclass(frozen=True, slots=True)
class NodeKnown:
    node: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class NodeDropped:
    node: str


Change = JobAdded | RecordAdded | JobAnswered | JobEnded | AnswerTaken | JobDropped | NodeKnown | NodeDropped


@dataclass(frozen=True, slots=True)
class KeptJob:
    """A job under way. `lives`: of the server that have worked at it. `answer` b"": it was not done."""

    job: str
    owner: str
    accepted_at: float
    lives: int
    request: bytes
    code: bytes
    answer: bytes


@dataclass(frozen=True, slots=True)
class EndedJob:
    """`answer` b"": it was taken."""

    job: str
    owner: str
    ended_at: float
    summary: bytes
    answer: bytes


class Journal:
    """See the module. `folder` is made if it is missing; a job's code lies in a folder below it."""

    def __init__(self, folder: str) -> None:
        self._code_folder = os.path.join(folder, CODE_FOLDER)
        self._begin_anew = (
            "begin with an empty one, which loses the jobs that were under way and nothing else:"
            f" mv {folder} {folder}.damaged"
        )
        self._leftover: set[str] = set()
        """Jobs that have ended and of which there are records still."""
        self.untidy = False
        """`tidy` may have something to do."""
        self._file = SqliteFile(
            os.path.join(folder, FILE_NAME),
            "the server's journal",
            schema=_SCHEMA,
            version=_VERSION,
            begin_anew=self._begin_anew,
            pragmas=(f"journal_size_limit = {JOURNAL_WAL_BYTES}",),
        )
        make_private_folder(self._code_folder)
        self._file.give_back()

    def close(self) -> None:
        self._file.close()

    # --- what an earlier life left ---

    def begin_life(self) -> None:
        """A life of the server begins, with what is here. Code that no job needs is removed."""
        with self._file.transaction() as db:
            db.execute("UPDATE jobs SET lives = lives + 1 WHERE ended_at IS NULL")
        wanted = {row[0] for row in self._file.rows("SELECT code FROM jobs WHERE ended_at IS NULL")}
        for name in os.listdir(self._code_folder):
            if name not in wanted:
                self._remove_code(name)
        left = "SELECT job FROM jobs WHERE ended_at IS NOT NULL AND EXISTS"
        left += " (SELECT 1 FROM records WHERE records.job = jobs.job)"
        self._leftover = {row[0] for row in self._file.rows(left)}
        self.untidy = bool(self._leftover)

    def jobs(self) -> list[KeptJob]:
        """Those under way, the oldest first."""
        query = (
            "SELECT job, owner, accepted_at, lives, request, code, answer FROM jobs WHERE ended_at IS NULL"
            " ORDER BY accepted_at, job"
        )
        return [
            KeptJob(job, owner, at, lives, request, self._read_code(code), answer or b"")
            for job, owner, at, lives, request, code, answer in self._file.rows(query)
        ]

    def records(self, job: str) -> Iterator[bytes]:
        """In the order they were written. Nothing may be written meanwhile."""
        for row in self._file.each("SELECT record FROM records WHERE job = ? ORDER BY place", job):
            yield row[0]

    def ended(self) -> list[EndedJob]:
        """The oldest first."""
        query = (
            "SELECT job, owner, ended_at, summary, answer FROM jobs WHERE ended_at IS NOT NULL"
            " ORDER BY ended_at, job"
        )
        return [
            EndedJob(job, owner, at, summary, answer or b"")
            for job, owner, at, summary, answer in self._file.rows(query)
        ]

    def nodes(self) -> dict[str, str]:
        """Node -> incarnation, of those that were here."""
        return dict(self._file.rows("SELECT node, incarnation FROM nodes"))

    # --- what this life writes ---

    def write(self, changes: Iterable[Change]) -> None:
        """All of these, in order, or (StateFailed) none."""
        unused: set[str] = set()
        ended: set[str] = set()
        with self._file.transaction() as db:
            for change in changes:
                self._apply(db, change, unused)
                if isinstance(change, JobEnded) and db.execute(_HAS_RECORDS, (change.job,)).fetchone():
                    ended.add(change.job)
            wanted = {
                row[0]
                for row in db.execute("SELECT code FROM jobs WHERE ended_at IS NULL")
                if row[0] in unused
            } if unused else set()  # fmt: skip
        for name in unused - wanted:
            self._remove_code(name)
        self._leftover |= ended
        if unused:
            self.untidy = True

    def tidy(self) -> bool:
        """Remove some of what large jobs have left that ended, and give some free pages back to the disk: a
        tenth of a second. True: there is more."""
        self.untidy = False
        if self._leftover:
            job = min(self._leftover)
            with self._file.transaction() as db:
                if db.execute(_DROP_RECORDS, (job, _RECORDS_AT_ONCE)).rowcount < _RECORDS_AT_ONCE:
                    self._leftover.discard(job)
        else:
            ((free,),) = self._file.rows("PRAGMA freelist_count")
            if free <= _FREE_PAGES:
                return False
            self._file.give_back(_FREE_PAGES)
        self.untidy = True
        return True

    def _apply(self, db: sqlite3.Connection, change: Change, unused: set[str]) -> None:
        execute = db.execute
        if isinstance(change, RecordAdded):
            execute("INSERT INTO records (job, record) VALUES (?, ?)", (change.job, change.record))
        elif isinstance(change, JobAdded):
            code = self._write_code(change.code)
            execute(
                "INSERT INTO jobs (job, owner, accepted_at, lives, request, code) VALUES (?, ?, ?, 0, ?, ?)",
                (change.job, change.owner, change.accepted_at, change.request, code),
            )
        elif isinstance(change, JobAnswered):
            execute("UPDATE jobs SET answer = ? WHERE job = ?", (change.answer, change.job))
        elif isinstance(change, JobEnded):
            _drop_work(db, change.job, unused, _RECORDS_AT_ONCE)
            execute(
                "UPDATE jobs SET ended_at = ?, summary = ?, answer = ?, request = x'', code = ''"
                " WHERE job = ?",
                (change.ended_at, change.summary, change.answer or None, change.job),
            )
            execute(
                "DELETE FROM jobs WHERE answer IS NULL AND ended_at <= (SELECT ended_at FROM jobs"
                " WHERE ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT 1 OFFSET ?)",
                (JOBS_REMEMBERED,),
            )
        elif isinstance(change, AnswerTaken):
            execute("UPDATE jobs SET answer = NULL WHERE job = ? AND ended_at IS NOT NULL", (change.job,))
        elif isinstance(change, JobDropped):
            _drop_work(db, change.job, unused)
            execute("DELETE FROM jobs WHERE job = ?", (change.job,))
        elif isinstance(change, NodeKnown):
            execute("INSERT OR REPLACE INTO nodes VALUES (?, ?)", (change.node, change.incarnation))
        else:
            execute("DELETE FROM nodes WHERE node = ?", (change.node,))

    # --- code ---

    def _write_code(self, code: bytes) -> str:
        name = hashlib.sha256(code).hexdigest()
        path = os.path.join(self._code_folder, name)
        if not os.path.lexists(path):
            write_private(path, code)
        return name

    def _read_code(self, name: str) -> bytes:
        path = os.path.join(self._code_folder, name)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                check_private_file(os.fstat(file.fileno()), path)
                code = file.read()
        except OSError as error:
            said = f"the code of a job, {path!r}, cannot be read: {error.strerror}"
            raise self._unreadable(said) from error
        if hashlib.sha256(code).hexdigest() != name:
            raise self._unreadable(f"the code of a job, {path!r}, is not what was written there")
        return code

    def _remove_code(self, name: str) -> None:
        with contextlib.suppress(OSError):  # the next life tries again
            os.unlink(os.path.join(self._code_folder, name))

    def damaged(self, cause: str) -> StateFailed:
        """The error for something in the file that makes no sense."""
        return self._file.damaged(cause)

    def _unreadable(self, message: str) -> StateFailed:
        return StateFailed(message, cure=self._begin_anew)


def _drop_work(db: sqlite3.Connection, job: str, unused: set[str], records: int = -1) -> None:
    """With so many of its records; -1: all."""
    unused.update(row[0] for row in db.execute("SELECT code FROM jobs WHERE job = ?", (job,)))
    db.execute(_DROP_RECORDS, (job, records))

"""One SQLite file of this user alone, whose transactions are on the disk when they return.

WAL mode, synchronous=FULL. The file has mode 0600 in a folder of mode 0700, and is refused when others can
reach it. One that is there is whole: it gets its name when all of its schema is on the disk. It is checked
when it is opened; a disk that fails, a damaged file and one of a newer cortex raise StateFailed, which names
the file and the cure.

Threads may share one. Calls block on the disk.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any, Final

from cortex.errors import StateFailed
from cortex.private_files import check_private_file, make_private_folder

_BUSY_S: Final = 10.0  # another process (a backup, a look with sqlite3) holds the file for milliseconds
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})


class SqliteFile:
    """See the module. The folder of `path` is made if it is missing.

    `what` it is, in errors; `schema`: statements, of `version` 1 or more; `pragmas` of each connection;
    `begin_anew`: the cure for a damaged one. One transaction at a time, of one thread.
    """

    def __init__(
        self,
        path: str,
        what: str,
        *,
        schema: str,
        version: int,
        begin_anew: str,
        pragmas: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self._what = what
        self._begin_anew = begin_anew
        self._lock = threading.Lock()
        make_private_folder(os.path.dirname(path))
        with self._typed_errors():
            if not os.path.lexists(path):
                self._make(f"{schema}; PRAGMA user_version = {version}")
            self._check_file()
            self.db = _connect(path)
            try:
                self._open(version, pragmas)
            except BaseException:
                self.db.close()
                raise

    def close(self) -> None:
        with self._lock:
            self.db.close()

    def rows(self, query: str, *values: Any) -> list[Any]:
        with self._lock, self._typed_errors():
            return self.db.execute(query, values).fetchall()

    def each(self, query: str, *values: Any) -> Iterator[Any]:
        """Rows as they are read. Nothing may be written meanwhile."""
        with self._typed_errors():
            yield from self.db.execute(query, values)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is executed in it is on the disk at its end, or (an exception) nothing of it."""
        with self._lock, self._typed_errors():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            finally:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")

    def give_back(self, pages_max: int = 0) -> None:
        """Pages that hold nothing go back to the file system (0: all of them), in a file with auto_vacuum =
        INCREMENTAL."""
        with self._lock, self._typed_errors():
            self.db.executescript(
                f"PRAGMA incremental_vacuum({pages_max})"
            )  # `execute` would give back one page alone

    def damaged(self, cause: str) -> StateFailed:
        """The error for something in the file that makes no sense."""
        return StateFailed(f"{self.path!r} is damaged: {cause}", cure=self._begin_anew)

    # --- inside ---

    def _make(self, schema: str) -> None:
        part = f"{self.path}.{secrets.token_hex(4)}.part"
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        try:
            db = _connect(part)
            try:
                for statement in schema.split(";"):
                    db.execute(statement)
            finally:
                db.close()
            os.rename(part, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise

    def _check_file(self) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            check_private_file(os.fstat(descriptor), self.path)
        finally:
            os.close(descriptor)

    def _open(self, version: int, pragmas: tuple[str, ...]) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", *pragmas):
            self.db.execute(f"PRAGMA {pragma}")
        (found,) = self.db.execute("PRAGMA user_version").fetchone()
        if found > version:
            raise StateFailed(
                f"{self.path!r} was written by a newer cortex", cure="start the newer version again"
            )
        said = [row[0] for row in self.db.execute("PRAGMA quick_check(1)")]
        if found != version or said != ["ok"]:
            raise self.damaged("; ".join(said) if said != ["ok"] else f"its schema has number {found}")

    @contextlib.contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0)
            if code & 0xFF in _DAMAGED:  # the low byte of an extended code is the plain one
                raise self.damaged(str(error)) from error
            raise self._failed(str(error)) from error
        except OSError as error:
            raise self._failed(error.strerror or str(error)) from error

    def _failed(self, cause: str) -> StateFailed:
        return StateFailed(
            f"{self._what} {self.path!r} cannot be used: {cause}",
            cure="check that its disk is not full and is in order",
        )


def _connect(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)

"""A file of the user's that is whole or not there: written as a hidden sibling, given its name by `commit`.

The sibling ``.<name>.<nonce>.partial`` is locked for as long as its writer lives; one without a lock was left
by a process that was killed, and is removed by the next that writes to the same name. Used by one thread.

Raises OutputExistsError when the file is there already, at the start and again at the end, and OutputFailed
for all that a disk or a missing right can do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import IO, NoReturn

from cortex.errors import OutputExistsError, OutputFailed
from cortex.ids import is_job_id, new_job_id

_PARTIAL = ".partial"


class WholeFile:
    """Open from the start; ends with `commit` or `abort`."""

    def __init__(self, path: str, overwrite: bool = False) -> None:
        self.path = path
        self._overwrite = overwrite
        folder, name = os.path.split(path)
        self._partial = os.path.join(folder, f".{name}.{new_job_id()}{_PARTIAL}")
        if os.path.isdir(path):
            raise OutputFailed(f"output {path} is a folder", cure="name a file in it")
        if not overwrite and os.path.lexists(path):
            self._exists()
        try:
            os.makedirs(folder, exist_ok=True)
            _remove_left_over(folder, name)
            self._file: IO[bytes] = open(self._partial, "xb")  # noqa: SIM115 (closed by commit or abort)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            self._failed(error)

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self._failed(error)

    def commit(self) -> None:
        """Give it its name, on the disk. One that has come to have the name stays, unless `overwrite`."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._give_name()
            self._file.close()
            descriptor = os.open(os.path.dirname(self.path), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except FileExistsError:
            self._exists()
        except OSError as error:
            self._failed(error)

    def _give_name(self) -> None:
        if not self._overwrite:
            try:
                os.link(self._partial, self.path)  # unlike a rename it replaces nothing
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                if os.path.lexists(self.path):
                    self._exists()
            else:
                os.unlink(self._partial)
                return
        os.rename(self._partial, self.path)

    def abort(self) -> None:
        """Nothing is left of it. May be called after `commit`, which it does not undo."""
        with contextlib.suppress(OSError):  # what could not be written is not wanted either
            self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._partial)

    def _exists(self) -> NoReturn:
        raise OutputExistsError(
            f"output {self.path} exists already", cure="add --overwrite to replace it, or name another file"
        )

    def _failed(self, error: OSError) -> NoReturn:
        raise OutputFailed(
            f"output {self.path} cannot be written: {error.strerror or error}",
            cure="free space where it goes, or name another file with --output",
        ) from error


def _remove_left_over(folder: str, name: str) -> None:
    for found in os.listdir(folder):
        nonce = found.removeprefix(f".{name}.").removesuffix(_PARTIAL)
        if found != f".{name}.{nonce}{_PARTIAL}" or not is_job_id(nonce):
            continue
        path = os.path.join(folder, found)
        with contextlib.suppress(OSError), open(path, "rb") as file:  # locked: its writer lives
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)

"""The audit log's files: who did what in a cluster, one JSON object a line, in the server's home.

`audit.jsonl` is the newest; when it is full it becomes `audit.jsonl.1`, and so on up to AUDIT_FILES in all,
so what is kept is bounded. Files have mode 0600 in a folder of mode 0700. What `append` was given is on the
device when it returns. A line that a crash cut off stays as it is, on a line of its own.

One thread at a time; every call blocks on the disk. A disk that fails raises StateFailed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Final

from cortex.errors import StateFailed
from cortex.limits import AUDIT_FILE_BYTES, AUDIT_FILES
from cortex.private_files import check_private_file, make_private_folder

FILE_NAME: Final = "audit.jsonl"
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class AuditLog:
    """See the module. `folder` is made if it is missing. Raises UsageError when others can reach it."""

    def __init__(self, folder: str) -> None:
        make_private_folder(folder)
        self._path = os.path.join(folder, FILE_NAME)
        self._file: int | None = None
        with self._typed_errors():
            self._open()

    def append(self, lines: Sequence[bytes]) -> None:
        """Put these lines, without their ends, behind what is there: all on the device, or StateFailed."""
        data = b"".join(line + b"\n" for line in lines)
        with self._typed_errors():
            file = self._open()
            if (size := os.fstat(file).st_size) and size + len(data) > AUDIT_FILE_BYTES:
                self._rotate()
                file = self._open()
            left = memoryview(data)
            while left:
                left = left[os.write(file, left) :]
            os.fdatasync(file)

    def tail(self, count: int) -> list[str]:
        """The last `count` lines, the oldest first."""
        found: list[str] = []
        with self._typed_errors():
            for number in range(AUDIT_FILES):
                if len(found) >= count:
                    break
                try:
                    descriptor = os.open(self._name(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                except FileNotFoundError:
                    break
                with open(descriptor, encoding="utf-8", errors="replace") as file:
                    found = [*file.read().splitlines(), *found]
        return found[-count:] if count > 0 else []

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # --- inside ---

    def _name(self, number: int) -> str:
        return f"{self._path}.{number}" if number else self._path

    def _open(self) -> int:
        if self._file is None:
            file = os.open(self._path, _FLAGS, 0o600)
            try:
                check_private_file(found := os.fstat(file), self._path)
                if found.st_size and os.pread(file, 1, found.st_size - 1) != b"\n":
                    os.write(file, b"\n")  # a crash cut the last line off
            except BaseException:
                os.close(file)
                raise
            self._file = file
        return self._file

    def _rotate(self) -> None:
        self.close()
        for number in reversed(range(AUDIT_FILES - 1)):
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._name(number), self._name(number + 1))

    @contextlib.contextmanager
    def _typed_errors(self):  # type: ignore[no-untyped-def]
        try:
            yield
        except OSError as error:
            raise StateFailed(
                f"the audit log {self._path!r} cannot be used: {error.strerror}",
                cure="check that its disk is not full and is in order",
            ) from error

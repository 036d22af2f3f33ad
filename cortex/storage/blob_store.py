"""Blobs: the bytes of the files that travel with jobs, each under its SHA-256 in a private folder.

Opaque: nothing here looks into them. A blob is written under a private name while it comes, checked
against its hash and size, and only then gets its name. All of it blocks on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Container

from cortex.errors import BundleFailed
from cortex.limits import SPILL_RESERVE_BYTES
from cortex.private_files import make_private_folder, sync_folder
from cortex.units import format_bytes

_PART = ".part"


class IncomingBlob:
    """A blob on its way into `folder`: `write` in order, then `finish`, or `abort`. One thread at a time.

    `durable`: it is on the device before `finish` returns. Raises BundleFailed when the disk has no room
    for it beside the reserve that is never taken.
    """

    def __init__(self, folder: str, sha256: str, size_bytes: int, *, durable: bool = False) -> None:
        _check_room(folder, size_bytes)
        self.path = os.path.join(folder, sha256)
        self._sha256 = sha256
        self._size_bytes = size_bytes
        self._durable = durable
        self._hash = hashlib.sha256()
        self._received_bytes = 0
        self._part = os.path.join(folder, f"{sha256}.{secrets.token_hex(4)}{_PART}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._file = open(os.open(self._part, flags, 0o600), "wb", buffering=0)  # noqa: SIM115 (kept)
        except OSError as error:
            raise _disk_failed(folder, error) from error

    def write(self, data: bytes) -> None:
        """Raises BundleFailed when the disk does not take it, or more comes than was said."""
        self._received_bytes += len(data)
        if self._received_bytes > self._size_bytes:
            raise BundleFailed(f"a file of the job has more than the {self._size_bytes} bytes it was to have")
        self._hash.update(data)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _disk_failed(os.path.dirname(self.path), error) from error

    def finish(self) -> None:
        """Give it its name, read-only. Raises BundleFailed if it is not what its hash and size say."""
        if self._received_bytes != self._size_bytes or self._hash.hexdigest() != self._sha256:
            self.abort()
            raise BundleFailed(
                f"a file of the job arrived with other bytes than it was to have"
                f" ({format_bytes(self._received_bytes)} of {format_bytes(self._size_bytes)})",
                cure="run the job again",
                details={"sha256": self._sha256},
            )
        try:
            os.fchmod(self._file.fileno(), 0o400)
            if self._durable:
                os.fsync(self._file.fileno())
            self._file.close()
            os.rename(self._part, self.path)
            if self._durable:
                sync_folder(os.path.dirname(self.path))
        except OSError as error:
            self.abort()
            raise _disk_failed(os.path.dirname(self.path), error) from error

    def abort(self) -> None:
        """Remove what came of it."""
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._part)


class BlobStore:
    """The blobs in `folder`. What a process that ended left half written is removed by `keep_only`."""

    def __init__(self, folder: str, *, durable: bool) -> None:
        self._folder = folder
        self._durable = durable

    def keep_only(self, wanted: Container[str]) -> set[str]:
        """Make the folder, or remove all but `wanted` from it; gives what is there."""
        make_private_folder(self._folder)
        names = set(os.listdir(self._folder))
        for name in names:
            if name not in wanted:
                self.remove(name)
        return {name for name in names if name in wanted}

    def receive(self, sha256: str, size_bytes: int) -> IncomingBlob:
        return IncomingBlob(self._folder, sha256, size_bytes, durable=self._durable)

    def read(self, sha256: str, offset: int, size_bytes: int) -> bytes:
        """Raises BundleFailed for a blob that is gone or cut short."""
        try:
            with open(os.path.join(self._folder, sha256), "rb", buffering=0) as file:
                data = os.pread(file.fileno(), size_bytes, offset)
        except OSError as error:
            raise BundleFailed(
                f"the server has lost a file of the job: {error.strerror}", cure="run the job again"
            ) from error
        if len(data) < size_bytes:
            raise BundleFailed("the server has lost the end of a file of the job", cure="run the job again")
        return data

    def remove(self, sha256: str) -> None:
        with contextlib.suppress(OSError):  # tried again when the server starts
            os.unlink(os.path.join(self._folder, sha256))


def _check_room(folder: str, size_bytes: int) -> None:
    try:
        found = os.statvfs(folder)
    except OSError as error:
        raise _disk_failed(folder, error) from error
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes - SPILL_RESERVE_BYTES < size_bytes:
        raise BundleFailed(
            f"no space for a file of the job, of {format_bytes(size_bytes)}, in {folder}",
            cure="free space there",
            details={
                "free": format_bytes(free_bytes),
                "cause": f"{format_bytes(SPILL_RESERVE_BYTES)} are kept free",
            },
        )


def _disk_failed(folder: str, error: OSError) -> BundleFailed:
    return BundleFailed(
        f"a file of the job cannot be written to {folder}: {error.strerror}",
        cure="check that its disk has room",
    )

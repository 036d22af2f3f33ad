"""A `Filesystem` that fails on purpose: at its n-th call, full, writing short, flipping a bit, or "crashing".

`calls` counts every call that reaches the disk, in order, as (name, path).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any

from cortex.storage.filesystem import FolderLock, LocalFilesystem, ReadableFile, WritableFile


class Crash(BaseException):
    """The machine stopped here: no cleaning up is possible after it."""


class FaultyFile:
    def __init__(self, fs: FaultyFilesystem, file: WritableFile, path: str) -> None:
        self._fs, self._file, self._path = fs, file, path

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: Any, /) -> int:
        view = bytes(memoryview(data).cast("B"))
        self._fs.count("write", self._path)
        room = self._fs.capacity_bytes - self._fs.written_bytes
        if len(view) > room:  # a disk takes what it can, then says no
            self._fs.written_bytes += self._file.write(view[:room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        flip = self._fs.flip_bit_at
        if flip is not None and self._file.tell() <= flip // 8 < self._file.tell() + len(view):
            changed = bytearray(view)
            changed[flip // 8 - self._file.tell()] ^= 1 << flip % 8
            view = bytes(changed)
        done = self._file.write(view)
        self._fs.written_bytes += done
        return done

    def write_all(self, pieces: Sequence[bytes], /) -> int:
        return self.write(b"".join(pieces))

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        self._fs.count("sync", self._path)
        self._file.sync()

    def close(self) -> None:
        self._file.close()


class FaultyReadableFile:
    def __init__(self, fs: FaultyFilesystem, file: ReadableFile, path: str) -> None:
        self._fs, self._file, self._path = fs, file, path
        self.size_bytes = file.size_bytes

    def pread(self, length: int, offset: int) -> bytes:
        self._fs.count("pread", self._path)
        return self._file.pread(length, offset)

    def read_cached(self, into: memoryview, offset: int) -> bool:
        self._fs.count("read_cached", self._path)
        return self._file.read_cached(into, offset)

    def close(self) -> None:
        self._file.close()


_COUNTED = {
    *("rename", "unlink", "mkdir", "rmdir", "remove_tree", "listdir", "chmod"),
    *("sync_file", "sync_folder", "file_bytes", "mode"),
}


class FaultyFilesystem:
    """`fail_at`: number (from 0) of the call that raises `error`; with `crash`, it and later ones Crash."""

    def __init__(
        self,
        fail_at: int | None = None,
        error: int = errno.EIO,
        crash: bool = False,
        capacity_bytes: int = 2**62,
        flip_bit_at: int | None = None,
        can_exchange: bool = True,
    ) -> None:
        self._disk = LocalFilesystem()
        self.fail_at, self.error, self.crash = fail_at, error, crash
        self.capacity_bytes, self.written_bytes = capacity_bytes, 0
        self.flip_bit_at = flip_bit_at
        self.can_exchange = can_exchange
        self.calls: list[tuple[str, str]] = []
        self._locks: list[FolderLock] = []

    def count(self, name: str, path: str) -> None:
        number = len(self.calls)
        self.calls.append((name, path))
        if self.fail_at is None:
            return
        if self.crash and number >= self.fail_at:
            raise Crash(f"call {self.fail_at}: {self.calls[self.fail_at]}")
        if number == self.fail_at:
            raise OSError(self.error, os.strerror(self.error), path)

    def create(self, path: str, mode: int = 0o600) -> FaultyFile:
        self.count("create", path)
        return FaultyFile(self, self._disk.create(path, mode), path)

    def open(self, path: str) -> FaultyReadableFile:
        self.count("open", path)
        return FaultyReadableFile(self, self._disk.open(path), path)

    def exchange(self, one: str, other: str) -> bool:
        self.count("exchange", one)
        return self.can_exchange and self._disk.exchange(one, other)

    def free_bytes(self, path: str) -> int:
        self.count("free_bytes", path)
        return min(self._disk.free_bytes(path), self.capacity_bytes - self.written_bytes)

    def lock_folder(self, path: str) -> FolderLock | None:
        self.count("lock_folder", path)
        lock = self._disk.lock_folder(path)
        if lock is not None:
            self._locks.append(lock)
        return lock

    def end_process(self) -> None:
        """Give up every lock, as the death of their holder does."""
        for lock in self._locks:
            lock.close()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._disk, name)
        if name not in _COUNTED:
            return method

        def counted(path: str, *rest: Any) -> Any:
            self.count(name, path)
            return method(path, *rest)

        return counted

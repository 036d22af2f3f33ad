"""A `Filesystem` in memory: no disk is touched, every folder is there once it is made."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any

from cortex.storage.filesystem import FolderLock


class MemoryFile:
    def __init__(self) -> None:
        self.data = bytearray()
        self.closed = False

    def write(self, data: Any, /) -> int:
        if self.closed:
            raise OSError(errno.EBADF, "closed")
        view = memoryview(data).cast("B")
        self.data += view
        return len(view)

    def write_all(self, pieces: Sequence[bytes], /) -> int:
        return sum(self.write(piece) for piece in pieces)

    def tell(self) -> int:
        return len(self.data)

    def flush(self) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class MemoryReadableFile:
    def __init__(self, data: bytearray) -> None:
        self._data = data
        self.size_bytes = len(data)

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def read_cached(self, into: memoryview, offset: int) -> bool:
        data = self._data[offset : offset + len(into)]
        into[: len(data)] = data
        return len(data) == len(into)

    def close(self) -> None: ...


class MemoryLock:
    def close(self) -> None: ...


class MemoryFilesystem:
    """Files by path, folders by path; modes are not kept."""

    def __init__(self) -> None:
        self.files: dict[str, MemoryFile] = {}
        self.folders: set[str] = {"/"}

    def _missing(self, path: str) -> OSError:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def create(self, path: str, mode: int = 0o600) -> MemoryFile:
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if os.path.dirname(path) not in self.folders:
            raise self._missing(path)
        self.files[path] = MemoryFile()
        return self.files[path]

    def open(self, path: str) -> MemoryReadableFile:
        if path not in self.files:
            raise self._missing(path)
        return MemoryReadableFile(self.files[path].data)

    def rename(self, old: str, new: str) -> None:
        if old not in self.files:
            raise self._missing(old)
        self.files[new] = self.files.pop(old)

    def exchange(self, one: str, other: str) -> bool:
        return False

    def unlink(self, path: str) -> None:
        if path not in self.files:
            raise self._missing(path)
        del self.files[path]

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self.folders.add(path)

    def rmdir(self, path: str) -> None:
        self.folders.remove(path)

    def remove_tree(self, path: str) -> None:
        self.folders = {f for f in self.folders if f != path and not f.startswith(path + "/")}
        self.files = {f: data for f, data in self.files.items() if not f.startswith(path + "/")}

    def listdir(self, path: str) -> list[str]:
        if path not in self.folders:
            raise self._missing(path)
        return sorted(os.path.basename(f) for f in {*self.files, *self.folders} if os.path.dirname(f) == path)

    def is_folder(self, path: str) -> bool:
        return path in self.folders

    def exists(self, path: str) -> bool:
        return path in self.files or path in self.folders

    def file_bytes(self, path: str) -> int:
        return len(self.files[path].data)

    def mode(self, path: str) -> int:
        return 0o600 if path in self.files else 0o700

    def chmod(self, path: str, mode: int) -> None: ...

    def sync_file(self, path: str) -> None: ...

    def sync_folder(self, path: str) -> None: ...

    def free_bytes(self, path: str) -> int:
        return 2**40

    def lock_folder(self, path: str) -> FolderLock | None:
        return MemoryLock()

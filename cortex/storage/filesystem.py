"""The only way runs and commits of the output reach a disk: one small interface, one real body. (The rows
of the output do not: `cortex.formats.writers` writes each part where no one looks before the commit.)

Everything above takes a `Filesystem`, so that tests put one in its place that fails the n-th call,
runs out of space, writes short or flips a bit, and see what is left behind.

Files are made exclusively and never through a symbolic link (O_EXCL | O_NOFOLLOW), mode 0600; folders
with mode 0700. A method raises the OSError of the call it stands for, nothing else: who writes knows
whether a full disk means `SpillFull` or `OutputFailed`. Names beginning with ``.`` are ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from cortex.errors import UsageError
from cortex.private_folders import remove_folder

Bytes = bytes | bytearray | memoryview
_NO_WAIT: int | None = getattr(os, "RWF_NOWAIT", None)
_PIECES_A_CALL = 512  # POSIX lets a system take as few as 16, Linux and macOS take 1,024


class WritableFile(Protocol):
    """A new file, written once from front to end; pyarrow takes it as a file object."""

    @property
    def closed(self) -> bool: ...
    def write(self, data: Any, /) -> int:
        """Write all of a bytes-like object; its size in bytes."""
        ...

    def write_all(self, pieces: Sequence[bytes], /) -> int:
        """Write the pieces one after the other, without joining them; their bytes."""
        ...

    def tell(self) -> int: ...
    def flush(self) -> None: ...
    def sync(self) -> None:
        """Return when the bytes are on the device."""
        ...

    def close(self) -> None: ...


class ReadableFile(Protocol):
    size_bytes: int

    def pread(self, length: int, offset: int) -> bytes:
        """`length` bytes, fewer only where the file ends."""
        ...

    def read_cached(self, into: memoryview, offset: int) -> bool:
        """Fill `into` if that takes no waiting for the disk; else False, and `into` may be changed."""
        ...

    def close(self) -> None: ...


class FolderLock(Protocol):
    """Held until `close` or the end of the process, however it ends; a rename does not end it."""

    def close(self) -> None: ...


class Filesystem(Protocol):
    def create(self, path: str, mode: int = 0o600) -> WritableFile:
        """A file that did not exist; FileExistsError otherwise. `mode` is under the umask."""
        ...

    def open(self, path: str) -> ReadableFile: ...
    def rename(self, old: str, new: str) -> None:
        """Atomic; replaces a file, or an empty folder."""
        ...

    def exchange(self, one: str, other: str) -> bool:
        """Swap two names in one step; False, with nothing done, where the system cannot."""
        ...

    def unlink(self, path: str) -> None: ...
    def mkdir(self, path: str, mode: int = 0o700) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def remove_tree(self, path: str) -> None:
        """Remove a folder and all in it; one that is not there is fine."""
        ...

    def listdir(self, path: str) -> list[str]:
        """Names, sorted."""
        ...

    def is_folder(self, path: str) -> bool: ...
    def exists(self, path: str) -> bool: ...
    def file_bytes(self, path: str) -> int: ...
    def mode(self, path: str) -> int: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def sync_file(self, path: str) -> None: ...
    def sync_folder(self, path: str) -> None:
        """Names made or renamed in the folder are on the device."""
        ...

    def free_bytes(self, path: str) -> int:
        """What this user may still write on the disk that holds `path`."""
        ...

    def lock_folder(self, path: str) -> FolderLock | None:
        """None when another holds the lock, or when the disk knows no locks."""
        ...


class LocalFile:
    """`WritableFile` on a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = 0

    @property
    def closed(self) -> bool:
        return self._descriptor < 0

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        done = os.write(self._descriptor, view)
        while done < len(view):  # a signal, or a disk about to be full
            done += os.write(self._descriptor, view[done:])
        self._position += done
        return done

    def write_all(self, pieces: Sequence[bytes], /) -> int:
        total = 0
        for begin in range(0, len(pieces), _PIECES_A_CALL):
            some = pieces[begin : begin + _PIECES_A_CALL]
            wanted = sum(map(len, some))
            done = os.writev(self._descriptor, some)
            self._position += done
            if done < wanted:
                self.write(memoryview(b"".join(some))[done:])
            total += wanted
        return total

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Nothing is held back."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class LocalReadableFile:
    """`ReadableFile` on a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size_bytes = os.fstat(descriptor).st_size

    def pread(self, length: int, offset: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]  # Linux reads at most 2 GiB a call
        done = len(data)
        while done < length and parts[-1]:
            parts.append(os.pread(self._descriptor, length - done, offset + done))
            done += len(parts[-1])
        return b"".join(parts)

    def read_cached(self, into: memoryview, offset: int) -> bool:
        if _NO_WAIT is None:
            return False
        try:
            return os.preadv(self._descriptor, [into], offset, _NO_WAIT) == len(into)
        except OSError:  # not cached, or a disk that cannot tell; `pread` says what else is wrong
            return False

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class LocalLock:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class LocalFilesystem:
    """The machine's own."""

    def create(self, path: str, mode: int = 0o600) -> WritableFile:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return LocalFile(os.open(path, flags, mode))

    def open(self, path: str) -> ReadableFile:
        return LocalReadableFile(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def exchange(self, one: str, other: str) -> bool:
        return _exchange(one, other)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        os.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def remove_tree(self, path: str) -> None:
        remove_folder(path)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(path) and not os.path.islink(path)

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def file_bytes(self, path: str) -> int:
        return os.stat(path, follow_symlinks=False).st_size

    def mode(self, path: str) -> int:
        return stat.S_IMODE(os.stat(path, follow_symlinks=False).st_mode)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def sync_file(self, path: str) -> None:
        with _descriptor(path, os.O_RDONLY | os.O_NOFOLLOW) as descriptor:
            os.fsync(descriptor)

    def sync_folder(self, path: str) -> None:
        with _descriptor(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            os.fsync(descriptor)

    def free_bytes(self, path: str) -> int:
        disk = os.statvfs(path)
        return disk.f_bavail * disk.f_frsize

    def lock_folder(self, path: str) -> FolderLock | None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                return None
            raise
        return LocalLock(descriptor)


@contextlib.contextmanager
def _descriptor(path: str, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def _exchange(one: str, other: str) -> bool:
    """renameat2(RENAME_EXCHANGE) on Linux, renamex_np(RENAME_SWAP) on macOS: Python has neither."""
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            failed = libc.renamex_np(first, second, ctypes.c_uint(2))
        else:
            here = ctypes.c_int(-100)  # AT_FDCWD
            failed = libc.renameat2(here, first, here, second, ctypes.c_uint(2))
    except AttributeError:  # an older libc
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), one, None, other)


def is_memory_backed(path: str) -> bool:
    """True when what is written below `path` stays in memory (tmpfs, ramfs) and so counts as memory."""
    device = os.stat(path).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                before, _, after = line.partition(" - ")
                if before.split(" ")[2] == name:
                    return after.split(" ")[0] in ("tmpfs", "ramfs")
    except FileNotFoundError:  # no Linux: macOS has no memory disk that one meets by accident
        return False
    return False


def refuse_memory_backed(path: str) -> None:
    """Raise UsageError when spilling to `path` would take the memory that it is there to save."""
    if is_memory_backed(path):
        raise UsageError(
            f"{path} lies in memory (tmpfs): what is spilled there would count against the memory cap",
            cure="name a folder on a disk in CORTEX_SPILL_DIRS (of a node also: --spill)",
        )


def is_disk_full(error: OSError) -> bool:
    """No space left, over quota, or over the file size limit."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

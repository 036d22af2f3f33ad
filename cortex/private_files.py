"""Files and folders that hold secrets: made for this user alone, and refused when others can reach them.

A file is replaced in one step and is on the device before `write_private` returns: whoever reads it
finds the old bytes or the new ones, never a part. What is read is checked on the open descriptor, so
that no name can be exchanged between the check and the reading.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat

from cortex.errors import StateFailed, UsageError
from cortex.limits import PRIVATE_FILE_BYTES_MAX
from cortex.units import format_bytes


def check_private_folder(folder: str) -> None:
    """Raise UsageError unless `folder` is a real folder of this user that only it may enter."""
    try:
        found = os.lstat(folder)
    except OSError as error:
        raise UsageError(f"the private folder {folder!r} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{folder!r} is not a folder (a link to one is not taken)")
    if found.st_uid != os.geteuid():
        raise UsageError(
            f"{folder!r} belongs to user {found.st_uid}, not to you ({os.geteuid()})",
            cure=f"run cortex as user {found.st_uid}, or name a folder of your own",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise UsageError(
            f"{folder!r} has mode {stat.S_IMODE(found.st_mode):04o}: others could reach what is in it",
            cure=f"chmod 700 {folder}",
        )


def make_private_folder(folder: str) -> None:
    """Make `folder` with mode 0700, and what is missing above it; one that is there is checked."""
    try:
        os.makedirs(os.path.dirname(os.path.abspath(folder)), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
    except OSError as error:
        raise StateFailed(
            f"the folder {folder!r} cannot be made: {error.strerror}",
            cure="name another, on a disk with room and where you may write: --home, or CORTEX_HOME",
        ) from error
    check_private_folder(folder)


def lock_file(path: str, taken: str) -> int:
    """An open, locked file at `path`, made if missing; its lock lasts until it is closed or the process ends.

    Raises UsageError, saying `taken`, when another process has it.
    """
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StateFailed(f"the file {path!r} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise UsageError(taken, cure="end it first, or name another --home") from error
    return lock


def check_private_file(found: os.stat_result, path: str) -> None:
    """Raise UsageError unless an open file's `found` is a regular file of this user that only it may open."""
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path!r} is not a file")
    if found.st_uid != os.geteuid():
        raise UsageError(
            f"{path!r} belongs to user {found.st_uid}, not to you ({os.geteuid()})",
            cure=f"run cortex as user {found.st_uid}, or name a home of your own",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise UsageError(
            f"{path!r} has mode {stat.S_IMODE(found.st_mode):04o}: others could have read the secret in it",
            cure=f"chmod 600 {path}; if others use this machine, delete it and join again",
        )


def read_private(path: str) -> bytes | None:
    """The bytes of a private file in a private folder; None if the file or the folder is not there.

    Raises UsageError when others can reach either, StateFailed when it cannot be read.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.lexists(folder):
        return None
    check_private_folder(folder)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateFailed(f"{path!r} cannot be read: {error.strerror}") from error
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        check_private_file(found, path)
        if found.st_size > PRIVATE_FILE_BYTES_MAX:
            raise StateFailed(f"{path!r} has {format_bytes(found.st_size)}: it is not a file of cortex")
        return file.read(PRIVATE_FILE_BYTES_MAX)


def write_private(path: str, data: bytes) -> None:
    """Put `data` at `path` in one step, mode 0600; its folder is made or checked. Raises StateFailed.

    Left-over parts of earlier writes that were cut off are removed.
    """
    folder, name = os.path.split(os.path.abspath(path))
    make_private_folder(folder)
    part = f".{name}.{secrets.token_hex(4)}.part"
    try:
        for other in os.listdir(folder):
            if other.startswith(f".{name}.") and other.endswith(".part"):
                os.unlink(os.path.join(folder, other))
        _write_new(os.path.join(folder, part), data)
        os.rename(os.path.join(folder, part), path)
        sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(folder, part))
        raise StateFailed(
            f"{path!r} cannot be written: {error.strerror}",
            cure="check that its disk is not full and that you may write there",
        ) from error


def remove_private(path: str) -> None:
    """Remove a private file; one that is not there is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _write_new(path: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: str) -> None:
    """Names in it, given and taken, are on the device when this returns."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

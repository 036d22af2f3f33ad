"""Folders of one process: private, named, and removed by whoever comes later if their owner could not.

A folder holds a lock file, locked for as long as its owner lives; the kernel lets go of the lock
however the owner ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import time

from cortex.held_signals import held_signals
from cortex.limits import REMOVE_S_MAX

PREFIX = "cortex-"
LOCK = "owner.lock"
_REMOVE_AGAIN_S = 0.01
_SETTLED_S = 60.0  # between making a folder and locking it nobody may take it for a left-over one


def new_name(parent: str) -> str:
    """A path in `parent` that nothing has yet and nobody can guess."""
    return os.path.join(parent, f"{PREFIX}{secrets.token_hex(4)}")


class PrivateFolder:
    """A new folder of mode 0700 at `path`, a `new_name`; its parent is made if missing. Raises OSError."""

    def __init__(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        os.mkdir(path, 0o700)
        self.path = path
        self._lock = os.open(os.path.join(self.path, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        with contextlib.suppress(OSError):  # what stays is left over
            remove_folder(self.path)
        with contextlib.suppress(OSError):  # a second call: closed before
            os.close(self._lock)


def remove_left_over(parent: str) -> list[str]:
    """Remove folders of this user in `parent` whose owner is gone; gives their paths."""
    removed = []
    try:
        names = os.listdir(parent)
    except OSError:
        return []
    for name in names:
        path = os.path.join(parent, name)
        if name.startswith(PREFIX) and _is_left_over(path):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def _is_left_over(path: str) -> bool:
    try:
        lock = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False  # not one of ours
    try:
        found = os.fstat(lock)
        if found.st_uid != os.geteuid() or time.time() - found.st_mtime < _SETTLED_S:
            return False
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False  # its owner lives
    finally:
        os.close(lock)


def remove_folder(path: str) -> None:
    """Remove a folder and all in it, if it is there: before a signal may interrupt. Raises OSError.

    Processes that are being killed may write to it for a moment yet, or remove files of their own.
    """
    with held_signals(REMOVE_S_MAX):
        _remove_folder(path)


def _remove_folder(path: str) -> None:
    deadline = time.monotonic() + REMOVE_S_MAX
    while True:
        try:
            shutil.rmtree(path)
            return
        except OSError as error:
            if not os.path.lexists(path):
                return
            written = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
            if not written or time.monotonic() >= deadline:
                raise
        time.sleep(_REMOVE_AGAIN_S)


def runtime_parent(path_bytes_max: int) -> str:
    """Where a folder for unix sockets goes: a path that is short enough and that messages can name, of this
    user alone if there is one."""
    candidates = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir()]
    for parent in candidates:
        # a new name is PREFIX and 8 letters; a socket's name has at most 20
        short = len(os.fsencode(parent)) + len(PREFIX) + 8 + 22 <= path_bytes_max
        named = parent.isascii() or os.fsencode(parent).decode(errors="ignore") == parent  # UTF-8
        if parent and short and named and os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK):
            return parent
    return "/tmp"

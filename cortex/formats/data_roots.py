"""The folders of this machine that a node may read and serve: its data roots (``cortex node --data``).

A file in them is found once, by name (`list_files`) or by a path of the client's (`find`), and registered as
a `HeldFile`: where it really lies below its root, without links, and its size, time and inode. It is opened
part by part below the root, and no link is followed on the way: what has become one since is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cortex.errors import InputError, UsageError
from cortex.formats.input_files import files_at
from cortex.job.data_names import DATA_PREFIX, below_roots


@dataclass(frozen=True, slots=True)
class HeldFile:
    root: str
    """Absolute and without links."""
    below: str
    """From there, without links."""
    size_bytes: int
    modified_ns: int
    inode: int

    @property
    def path(self) -> str:
        return os.path.join(self.root, self.below)

    def open(self) -> int:
        """A descriptor of what is there now; the caller looks whether it is still this file. Raises OSError,
        also for a link anywhere below the root."""
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        *parents, name = self.below.split(os.sep)
        try:
            for part in parents:
                inner = os.open(
                    part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder
                )
                os.close(folder)
                folder = inner
            # not blocking: what is a pipe by now would wait for its writer
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)


class DataRoots:
    """Raises UsageError for a root that is no folder."""

    def __init__(self, folders: Sequence[str]) -> None:
        for folder in folders:
            if not os.path.isdir(folder):
                raise UsageError(
                    f"{folder} is no folder: a node cannot read its data there",
                    cure="name a folder that exists: --data DIR",
                )
        self.folders = tuple(dict.fromkeys(os.path.realpath(folder) for folder in folders))

    def __len__(self) -> int:
        return len(self.folders)

    def list_files(self, name: str) -> Iterator[tuple[str, HeldFile]]:
        """The files that a data name stands for, root by root: (data name, file). A name may come from more
        than one root. Raises UsageError for a name that leads out, InputError for a folder that cannot be
        read, and for a file that is a link out of its root."""
        below = below_roots(name)
        for root in self.folders:
            for path in files_at(os.path.join(root, below)):
                yield DATA_PREFIX + os.path.relpath(path, root), self._registered(path, root)

    def named(self, name: str) -> Iterator[HeldFile]:
        """The files of exactly this data name: one a root at most."""
        below = below_roots(name)
        for root in self.folders:
            path = os.path.join(root, below)
            if os.path.isfile(path):
                yield self._registered(path, root)

    def find(self, path: str) -> HeldFile | None:
        """The file at this absolute path, if it really lies in a root."""
        real = os.path.realpath(path)
        root = next((root for root in self.folders if _is_below(real, root)), None)
        if root is None:
            return None
        try:
            return _look_at(root, real)
        except OSError:
            return None

    def _registered(self, path: str, root: str) -> HeldFile:
        real = os.path.realpath(path)
        home = root if _is_below(real, root) else next((r for r in self.folders if _is_below(real, r)), None)
        if home is None:
            raise InputError(
                "a file below a data root is a link out of it",
                details={"file": path, "leads to": real},
                cure="start the node with --data for the folder it leads to as well, or remove the link",
            )
        try:
            found = _look_at(home, real)
        except OSError as error:
            raise InputError(
                f"input file cannot be read: {error.strerror}", details={"file": path}
            ) from error
        if found is None:
            raise InputError(
                "input is no regular file: its bytes can be read only once",
                details={"file": path},
                cure="save it as a file first",
            )
        return found


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip(os.sep) + os.sep)


def _look_at(root: str, real: str) -> HeldFile | None:
    """None for what is no regular file."""
    status = os.stat(real, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        return None
    below = os.path.relpath(real, root)
    return HeldFile(root, below, status.st_size, status.st_mtime_ns, status.st_ino)

"""A node's disk under ``cortex put``: parts that come into a folder nobody looks into, and get their names
together.

    <root>/.cortex-put-<put>/owner          the node's id, for whoever finds this after a crash
                             parts/0000003  parts, each whole, checked and on the device
                             old/           what the put replaces, until it is done
    <root>/<name>/part-00003-of-00016.csv   from `name_parts` on
                  _SHA256SUMS               of the parts here, as sha256sum -c reads it; no input is called so

Everything is done below the root's own descriptor and no link is followed. Making the hidden folder is one
step, so of two nodes that share a root one has it and the other none. All of it blocks on the disk; one
thread at a time. Raises PutFailed, and OutputExistsError for a name that is taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from cortex.errors import OutputExistsError, PartDamaged, PutFailed
from cortex.job.put_names import is_part_name, part_name
from cortex.limits import SPILL_RESERVE_BYTES
from cortex.units import format_bytes

_HIDDEN: Final = ".cortex-put-"
_HIDDEN_NAME: Final = re.compile(r"\.cortex-put-p[0-9a-f]{12}")
_OWNER, _PARTS, _OLD = "owner", "parts", "old"
_SUMS: Final = "_SHA256SUMS"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_left_over(roots: Sequence[str], owner: str) -> None:
    """What an earlier life of this node left of puts under way."""
    for root in roots:
        with contextlib.suppress(OSError), _opened(root) as folder:
            for name in filter(_HIDDEN_NAME.fullmatch, os.listdir(folder)):
                with contextlib.suppress(OSError), _opened(name, folder) as inside:
                    file = os.open(_OWNER, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
                    with open(file, "rb") as said:
                        mine = said.read(64).decode("ascii", "replace") == owner
                    if mine:
                        shutil.rmtree(name, dir_fd=folder)


class _Root:
    """A root with the put's hidden folder in it."""

    def __init__(self, path: str, put: str, owner: str) -> None:
        """Raises FileExistsError where another node has made the folder, OSError where none can be made."""
        self.path = path
        self.hidden = _HIDDEN + put
        self.folder = os.open(path, _FOLDER)
        try:
            os.mkdir(self.hidden, dir_fd=self.folder)
            self.inside = os.open(self.hidden, _FOLDER, dir_fd=self.folder)
        except OSError:
            os.close(self.folder)
            raise
        try:
            with open(os.open(_OWNER, _NEW, 0o666, dir_fd=self.inside), "wb") as file:
                file.write(owner.encode())
            os.mkdir(_PARTS, dir_fd=self.inside)
            self.parts = os.open(_PARTS, _FOLDER, dir_fd=self.inside)
        except OSError:
            self._remove_hidden()
            os.close(self.inside)
            os.close(self.folder)
            raise

    @property
    def free_bytes(self) -> int:
        found = os.fstatvfs(self.folder)
        return max(0, found.f_bavail * found.f_frsize - SPILL_RESERVE_BYTES)

    def taken(self, name: str) -> os.stat_result | None:
        with contextlib.suppress(FileNotFoundError):
            return os.stat(name, dir_fd=self.folder, follow_symlinks=False)
        return None

    def replaceable(self, name: str) -> bool:
        """Whether there is a folder with nothing in it but parts that were put."""
        found = self.taken(name)
        if found is None or not stat.S_ISDIR(found.st_mode):
            return False
        with _opened(name, self.folder) as folder:
            names = set(os.listdir(folder))
        return _SUMS in names and all(map(is_part_name, names - {_SUMS}))

    def close(self) -> None:
        """Remove the hidden folder; nothing is done with this any more."""
        self._remove_hidden()
        for descriptor in (self.parts, self.inside, self.folder):
            os.close(descriptor)

    def _remove_hidden(self) -> None:
        with contextlib.suppress(OSError):  # what is left the node removes when it starts again
            shutil.rmtree(self.hidden, dir_fd=self.folder)


class PutFolder:
    """Of one put at one node. `undo` or `keep` ends it."""

    def __init__(self, roots: Sequence[str], put: str, name: str, owner: str, overwrite: bool) -> None:
        self._name = name
        self._roots: list[_Root] = []
        self._named: list[_Root] = []
        """Where the parts have their names."""
        self._sums: dict[str, str] = {}
        """Part -> its SHA-256."""
        self._replaced: list[_Root] = []
        problems = {}
        try:
            for path in roots:
                try:
                    self._roots.append(_Root(path, put, owner))
                except FileExistsError:
                    problems[path] = "it is a data root of another node as well, which has it"
                except OSError as error:
                    problems[path] = error.strerror or str(error)
            for root in self._roots:
                self._check_name(root, overwrite)
            if not self._roots:
                raise PutFailed(
                    "no data root here takes files",
                    details=problems,
                    cure="give the node's user leave to write there, or name another with cortex node --data",
                )
            self._chosen = max(self._roots, key=lambda root: root.free_bytes)
        except OSError as error:
            self.undo()
            raise PutFailed(f"a data root cannot be looked at: {error.strerror}", details=problems) from error
        except BaseException:
            self.undo()
            raise

    @property
    def free_bytes(self) -> int:
        try:
            return self._chosen.free_bytes
        except OSError as error:
            raise _disk_failed(self._chosen.path, error) from error

    def receive(self, part: int, size_bytes: int, sha256: str) -> IncomingPart:
        free_bytes = self.free_bytes
        if free_bytes < size_bytes:
            raise PutFailed(
                f"no space for a part of {format_bytes(size_bytes)} in {self._chosen.path}",
                cure="free space there",
                details={
                    "free": format_bytes(free_bytes),
                    "cause": f"{format_bytes(SPILL_RESERVE_BYTES)} are kept free",
                },
            )
        self._sums[_number(part)] = sha256
        return IncomingPart(self._chosen.path, self._chosen.parts, part, size_bytes, sha256)

    def name_parts(self, parts: int, ending: str) -> None:
        """There are so many parts: those here get their names, in the place of what the put replaces."""
        chosen, sums = self._chosen, []
        try:
            for number in sorted(os.listdir(chosen.parts)):
                called = part_name(int(number), parts, ending)
                os.rename(number, called, src_dir_fd=chosen.parts, dst_dir_fd=chosen.parts)
                sums.append(f"{self._sums[number]}  {called}\n")
            with open(os.open(_SUMS, _NEW, 0o666, dir_fd=chosen.parts), "wb") as file:
                file.write("".join(sums).encode())
                file.flush()
                os.fsync(file.fileno())
            os.fsync(chosen.parts)
            for root in self._roots:
                if root.taken(self._name) is not None:
                    os.rename(self._name, _OLD, src_dir_fd=root.folder, dst_dir_fd=root.inside)
                    self._replaced.append(root)
            if sums:
                os.rename(_PARTS, self._name, src_dir_fd=chosen.inside, dst_dir_fd=chosen.folder)
                self._named.append(chosen)
            for root in self._roots:
                os.fsync(root.folder)
        except OSError as error:
            raise _disk_failed(chosen.path, error) from error

    def keep(self) -> None:
        """It is done: what it replaced is removed."""
        for root in self._roots:
            root.close()
        self._roots = []

    def undo(self) -> None:
        """Remove every part, named or not, and put back what was replaced."""
        for root in self._named:
            with contextlib.suppress(OSError):
                os.rename(self._name, _PARTS, src_dir_fd=root.folder, dst_dir_fd=root.inside)
        for root in self._replaced:
            with contextlib.suppress(OSError):
                os.rename(_OLD, self._name, src_dir_fd=root.inside, dst_dir_fd=root.folder)
        self._named, self._replaced = [], []
        self.keep()

    def _check_name(self, root: _Root, overwrite: bool) -> None:
        if root.taken(self._name) is None:
            return
        where = os.path.join(root.path, self._name)
        if not overwrite:
            raise OutputExistsError(
                f"data:{self._name} is there already",
                details={"path": where},
                cure="name another with --as, or replace it with --overwrite",
            )
        if not root.replaceable(self._name):
            raise OutputExistsError(
                f"data:{self._name} is no folder of a file that was put: it is not replaced",
                details={"path": where},
                cure="name another with --as, or move it away",
            )


class IncomingPart:
    """A part on its way to the disk: `write` in order, then `finish`, or `abort`."""

    def __init__(self, root: str, folder: int, part: int, size_bytes: int, sha256: str) -> None:
        self._root = root
        self._folder = folder
        self._name = _number(part)
        self._size_bytes = size_bytes
        self._sha256 = sha256
        self._hash = hashlib.sha256()
        self._written_bytes = 0
        try:
            descriptor = os.open(self._name, _NEW, 0o666, dir_fd=folder)
        except OSError as error:
            raise _disk_failed(root, error) from error
        self._file = open(descriptor, "wb", buffering=0)  # noqa: SIM115 (kept)

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._written_bytes += len(data)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _disk_failed(self._root, error) from error

    def finish(self) -> None:
        """It is on the device from here on. Raises PartDamaged when it is not what it was to be."""
        if self._written_bytes != self._size_bytes or self._hash.hexdigest() != self._sha256:
            raise PartDamaged(
                "a part arrived with other bytes than it was sent with",
                cure="run cortex put again; if it comes back, the way or a memory is at fault",
                details={"sha256": self._hash.hexdigest(), "expected": self._sha256},
            )
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise _disk_failed(self._root, error) from error

    def abort(self) -> None:
        """Remove what came of it."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._folder)


@contextlib.contextmanager
def _opened(path: str, folder: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _FOLDER, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _number(part: int) -> str:
    return f"{part:07d}"


def _disk_failed(root: str, error: OSError) -> PutFailed:
    return PutFailed(
        f"a part cannot be written below the data root {root}: {error.strerror or error}",
        cure="check that its disk has room and the node's user may write there",
    )

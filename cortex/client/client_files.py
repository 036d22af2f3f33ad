"""The input files that a client has: what the names of a job stand for on its machine, and their bytes.

Only what was found is ever opened, by its number; and only while it is the file that it was then: a read of
one that has another size, modification time or inode by now is an InputChanged.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cortex.errors import InputError, NotAllowed
from cortex.formats.input_bytes import LocalBytes
from cortex.formats.input_files import files_at, look_at
from cortex.job.data_names import is_data_name
from cortex.job.plan import ClientFile, ClientFiles, InputFile
from cortex.limits import INPUT_OPEN_FILES_MAX, KIB
from cortex.storage.fingerprint import fingerprint_of


@dataclass(frozen=True)
class FoundFiles:
    """`listed` goes to the server; `inodes` are those of all files in it."""

    listed: ClientFiles
    inodes: tuple[int, ...]

    @classmethod
    def find(cls, paths: Sequence[str], full: bool = False) -> FoundFiles:
        """The files behind each of a job's absolute `paths`, as a plan on this machine would find them. One
        behind which there is none here is left to the nodes, which may have it, and so are data names. Each
        has its fingerprint, of all its bytes if `full`.

        Raises InputError for a folder that cannot be read and for what is no regular file.
        """
        seen: set[str] = set()  # real paths: a file that is reached twice is read once
        listed: list[tuple[ClientFile, ...] | None] = []
        inodes: list[int] = []
        for path in paths:
            names, found = [] if is_data_name(path) else files_at(path), []
            for name in names:
                real = os.path.realpath(name)
                if real not in seen:
                    seen.add(real)
                    status = look_at(name)
                    mark = _fingerprint(name, status.st_size, full)
                    there = "" if real == name else real
                    found.append(ClientFile(name, status.st_size, status.st_mtime_ns, mark, there))
                    inodes.append(status.st_ino)
            listed.append(tuple(found) if names else None)
        return cls(tuple(listed), tuple(inodes))

    def files(self) -> list[ClientFile]:
        """A file's id is its place."""
        return [file for found in self.listed if found is not None for file in found]

    def open(self) -> FileReads:
        return FileReads(self)


def _fingerprint(name: str, size_bytes: int, full: bool) -> bytes:
    try:
        return fingerprint_of(name, size_bytes, full)
    except OSError as error:
        raise InputError(
            f"input file cannot be opened: {error.strerror}",
            details={"file": name},
            cure="check that the file exists and that you may read it",
        ) from error


_FIND_BYTES: Final = 1024 * KIB  # read and looked through at once


class FileReads:
    """Reads of `files`, by one thread. Keeps some of them open; close it."""

    def __init__(self, files: FoundFiles) -> None:
        self._files = files.files()
        self._inodes = files.inodes
        self._open: OrderedDict[int, LocalBytes] = OrderedDict()
        """The one used last is the last."""

    def read(self, number: int, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on, fewer only where the file ends. Raises NotAllowed for a number
        that is none, InputError and InputChanged."""
        if not 0 <= number < len(self._files):
            raise NotAllowed(f"{number} is none of the job's {len(self._files)} input files")
        data = self._opened(number)
        try:
            read = data.read(length, offset)
        except OSError as error:
            raise InputError(
                f"input file cannot be read: {error.strerror}", details={"file": data.file.path}
            ) from error
        data.check()
        return read

    def without(self, number: int, offset: int, length: int, byte: bytes) -> int:
        """How many of `length` bytes from `offset` on stand before the first `byte`. Raises as `read`."""
        done = 0
        while done < length:
            data = self.read(number, offset + done, min(_FIND_BYTES, length - done))
            place = data.find(byte)
            if place >= 0 or not data:
                return done + max(0, place)
            done += len(data)
        return done

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _opened(self, number: int) -> LocalBytes:
        data = self._open.pop(number, None)
        if data is None:
            file = self._files[number]
            while len(self._open) >= INPUT_OPEN_FILES_MAX:
                self._open.popitem(last=False)[1].close()
            data = LocalBytes(
                InputFile(
                    index=number,
                    path=file.path,
                    format="",
                    size_bytes=file.size_bytes,
                    modified_ns=file.modified_ns,
                    inode=self._inodes[number],
                )
            )
        self._open[number] = data
        return data

"""The bytes of one input file, wherever they are: what every reader reads through.

`LocalBytes` is a file of this machine. Another opener (`Opener`) may give bytes that lie elsewhere, with
the same contract. A file that is not the one that was planned is an `InputChanged`, when it is opened or
when `check` looks at it again.
"""

from __future__ import annotations

import abc
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, TypeVar

from cortex.errors import InputChanged, InputError
from cortex.job.plan import InputFile
from cortex.limits import INPUT_FILES_AHEAD, MIB

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
_FIND_BYTES: Final = 1 * MIB  # read and looked through at once


class InputBytes(abc.ABC):
    """An open file. Used by one thread; close it."""

    def __init__(self, file: InputFile) -> None:
        self.file = file

    @abc.abstractmethod
    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset` on; gives the count, which is smaller only where the file ends."""

    def read(self, length: int, offset: int) -> bytes:
        """`length` bytes from `offset` on, fewer only where the file ends."""
        data = bytearray(max(0, min(length, self.file.size_bytes - offset)))
        with memoryview(data) as view:
            count = self.read_into(view, offset)
        return bytes(data) if count == len(data) else bytes(data[:count])

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:  # noqa: B027 (a hint: nothing must be done)
        """These [low, high) will be read, each from its beginning on: they may be brought beforehand."""

    def without(self, byte: bytes, low: int, high: int) -> int:
        """How far it is known that `byte` does not occur in [low, high): `low` where only reading tells."""
        return low

    @abc.abstractmethod
    def native(self) -> pa.NativeFile:
        """The same bytes for Arrow's readers, at a position of its own. The caller closes it, before this."""

    @abc.abstractmethod
    def check(self) -> None:
        """InputChanged unless it is still the file that was planned."""

    @abc.abstractmethod
    def close(self) -> None:
        """A second call does nothing."""


Opener = Callable[[InputFile], InputBytes]
"""Raises InputError for a file that cannot be opened, InputChanged for one that is not as planned."""


Soon = Callable[[InputFile], None]
"""Told of files whose beginnings will be read soon, in the order in which they will."""


def at_hand(file: InputFile) -> None:
    """A `Soon` for files of this machine: nothing is done."""


def announced(items: Iterable[T], file_of: Callable[[T], InputFile], soon: Soon) -> Iterator[T]:
    """The items, one by one; `soon` hears of the file of each INPUT_FILES_AHEAD items before its turn."""
    coming: deque[T] = deque()
    for item in items:
        if coming:  # a single one has its turn now
            soon(file_of(item))
        coming.append(item)
        if len(coming) > INPUT_FILES_AHEAD:
            yield coming.popleft()
    yield from coming


class LocalBytes(InputBytes):
    """Read with `pread`, never mapped: a mapped file that is cut short kills its reader. It lies at `place`
    ("": at its own path); or `descriptor` is the open file, which is closed with this."""

    def __init__(self, file: InputFile, place: str = "", descriptor: int = -1) -> None:
        super().__init__(file)
        self._place = place or file.path
        self._descriptor = descriptor if descriptor >= 0 else _open(self._place, file.path)
        try:
            self.check()
        except BaseException:
            self.close()
            raise

    def read_into(self, view: memoryview, offset: int) -> int:
        count = 0
        while count < len(view):
            got = os.preadv(self._descriptor, [view[count:]], offset + count)
            if got == 0:
                break
            count += got
        return count

    def native(self) -> pa.NativeFile:
        import pyarrow as pa

        return pa.OSFile(self._place)

    def check(self) -> None:
        now = os.fstat(self._descriptor)
        file = self.file
        found = (
            ("size", file.size_bytes, now.st_size),
            ("modification time", file.modified_ns, now.st_mtime_ns),
            ("inode", file.inode or now.st_ino, now.st_ino),
        )
        for what, planned, is_now in found:
            if planned != is_now:
                raise changed(file.path, f"its {what} was {planned} and is now {is_now}")

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def find_byte(data: InputBytes, offset: int, length: int, byte: bytes) -> int:
    """How many of `length` bytes from `offset` on stand before the first `byte`."""
    done = 0
    while done < length:
        some = data.read(min(_FIND_BYTES, length - done), offset + done)
        place = some.find(byte)
        if place >= 0 or not some:
            return done + max(0, place)
        done += len(some)
    return done


def open_local(file: InputFile) -> InputBytes:
    return LocalBytes(file)


def changed(path: str, how: str) -> InputChanged:
    return InputChanged(
        f"input file changed while the job read it: {how}",
        details={"file": path},
        cure="run the job again when nothing writes to its input",
    )


def _open(place: str, path: str) -> int:
    try:
        return os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(
            f"input file cannot be opened: {error.strerror}",
            details={"file": path},
            cure="check that the file exists and that you may read it",
        ) from error

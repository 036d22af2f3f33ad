"""Pickles too large for a frame, as files: written buffer by buffer, mapped where they are read.

Each part (the pickle, then its buffers) begins at a multiple of ATTACHED_ALIGN_BYTES. A file is mapped copy
on write: what is unpickled from it is writable, is read from disk once, and changes nobody else's.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Final

from cortex.errors import OutputFailed
from cortex.limits import ATTACHED_ALIGN_BYTES
from cortex.storage.filesystem import is_disk_full
from cortex.storage.spill_quota import spill_full
from cortex.tasks.cell_pickles import Pickled

_PADDING: Final = bytes(ATTACHED_ALIGN_BYTES)
_numbers = itertools.count(1)


def offsets(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each part begins, and where the last one ends."""
    found, end = [], 0
    for size in sizes:
        begin = -(-end // ATTACHED_ALIGN_BYTES) * ATTACHED_ALIGN_BYTES
        found.append(begin)
        end = begin + size
    return found, end


def new_name(owner: str) -> str:
    """A file's name that no other process, and nobody else in this one, gives."""
    return f"{owner}.{os.getpid()}.{next(_numbers)}"


def write_attached(path: str, pickled: Pickled) -> None:
    """Write the file; none is left behind on an error. Raises SpillFull and OutputFailed."""
    begins, size_bytes = offsets(pickled.sizes)
    with failures_named(path, size_bytes), open(path, "xb", buffering=0) as file:
        end = 0
        for begin, part in zip(begins, [memoryview(pickled.data), *pickled.buffers]):
            write_all(file.fileno(), memoryview(_PADDING)[: begin - end])
            write_all(file.fileno(), part)
            end = begin + part.nbytes


def write_all(fd: int, part: memoryview) -> None:
    """However many writes it takes."""
    while part.nbytes:
        part = part[os.write(fd, part) :]


def map_attached(path: str, sizes: Sequence[int], *, unlink: bool = False) -> list[memoryview]:
    """Its parts, writable. They keep the mapping; the file may go (`unlink`: it does, now). OSError if it
    cannot be opened or mapped, or is too short."""
    _, size_bytes = offsets(sizes)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size < size_bytes:
            raise OSError(f"{path} has fewer than the {size_bytes} bytes that are attached")
        mapped = mmap.mmap(fd, size_bytes, access=mmap.ACCESS_COPY)
    finally:
        os.close(fd)
    if unlink:
        os.unlink(path)
    return parts_of(memoryview(mapped), sizes)


def parts_of(whole: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """The parts of an attachment that is in memory."""
    begins, _ = offsets(sizes)
    return [whole[begin : begin + size] for begin, size in zip(begins, sizes)]


@contextlib.contextmanager
def failures_named(path: str, size_bytes: int) -> Iterator[None]:
    """What goes wrong while the file is written is a typed error, and leaves none behind."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(path)
        if not isinstance(error, OSError):
            raise
        if is_disk_full(error):
            raise spill_full(os.path.dirname(path), size_bytes, None, str(error)) from error
        raise OutputFailed(
            f"data of a call, of {size_bytes} bytes, could not be written: {error}",
            cure="the folder's disk may be full or failing",
            details={"file": path},
        ) from error

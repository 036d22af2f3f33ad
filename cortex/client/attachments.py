"""Data of cells that is too large for frames, from its submitter's side: arguments out, results in.

`FiledData` is for a client that shares files with its executors: both ways a file in the job's staging
folder, which whoever reads it maps. `MemoryData` is for a cluster: arguments stay in this process's memory,
where nodes read them from (`cortex.client.input_sender`), and results are fetched as parts into files here.

A cell's data is kept until no cell that was sent has it: slices of a cell share it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from bisect import bisect_right
from typing import Protocol

from cortex.errors import NotAllowed
from cortex.tasks.attached_files import new_name, offsets, write_attached
from cortex.tasks.cell_pickles import Pickled
from cortex.wire.messages import Attached, Cell


class DataStore(Protocol):
    """Use from any thread."""

    folder: str
    """Where results in files are."""

    def put(self, pickled: Pickled) -> Attached:
        """Have it read by executors. Raises OutputFailed and SpillFull."""

    def remove(self, attached: Attached) -> None:
        """Nobody reads it any more."""


class Uses:
    """Which of the cells that were sent have attached data. Belongs to its link's lock."""

    def __init__(self, store: DataStore) -> None:
        self._store = store
        self._cells: dict[tuple[str, int], set[int]] = {}

    def begin(self, cell: Cell) -> None:
        if cell.attached is not None:
            self._cells.setdefault((cell.attached.name, cell.attached.number), set()).add(cell.cell)

    def end(self, cell: Cell) -> None:
        if cell.attached is None:
            return
        key = cell.attached.name, cell.attached.number
        users = self._cells.get(key)
        if users is not None:
            users.discard(cell.cell)
            if not users:
                del self._cells[key]
                self._store.remove(cell.attached)


class FiledData:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def put(self, pickled: Pickled) -> Attached:
        name = new_name("arguments")
        write_attached(os.path.join(self.folder, name), pickled)
        return Attached(name, pickled.sizes)

    def remove(self, attached: Attached) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder, attached.name))


class MemoryData:
    """Also the `Files` that an `InputSender` reads of."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._last = -1
        self._parts: dict[int, tuple[list[int], list[memoryview]]] = {}
        """Where each part begins, and where the last one ends; the parts."""

    def put(self, pickled: Pickled) -> Attached:
        begins, end = offsets(pickled.sizes)
        with self._lock:
            self._last += 1
            self._parts[self._last] = [*begins, end], [memoryview(pickled.data), *pickled.buffers]
            return Attached("", pickled.sizes, self._last)

    def remove(self, attached: Attached) -> None:
        with self._lock:
            self._parts.pop(attached.number, None)

    def open(self) -> MemoryData:
        return self

    def close(self) -> None:
        """Called by the thread that has read: nothing is open."""

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Raises NotAllowed for what is not there (any more)."""
        with self._lock:
            found = self._parts.get(number)
        if found is None:
            raise NotAllowed(f"arguments {number} of this job are not needed any more")
        starts, parts = found
        pieces: list[bytes | memoryview] = []
        at, end = offset, min(offset + length, starts[-1])
        index = bisect_right(starts, offset, hi=len(parts)) - 1
        while at < end:
            inside = parts[index][at - starts[index] : end - starts[index]]
            pieces.append(inside)
            at += len(inside)
            gap = min(end, starts[index + 1]) - at  # up to where the next one begins
            pieces.append(bytes(gap))
            at += gap
            index += 1
        return b"".join(pieces)

    def without(self, number: int, offset: int, length: int, byte: bytes) -> int:
        found = self.read(number, offset, length).find(byte)
        return length if found < 0 else found

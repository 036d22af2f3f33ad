"""A cell's arguments in an executor, and what came of its calls as messages: in frames, or attached.

What cannot be pickled (or written) fails alone: the outcomes are halved until it is found.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from cortex.errors import CortexError, InputLost, InternalError, UsageError
from cortex.limits import (
    ARGUMENT_READS_AHEAD,
    CELL_INLINE_BYTES_MAX,
    FETCHED_ARGUMENT_DIVISOR,
    INPUT_READ_BYTES,
    NESTED_INLINE_BYTES_MAX,
)
from cortex.storage.filesystem import LocalFilesystem
from cortex.storage.spill_quota import SpillQuota
from cortex.tasks.attached_files import (
    failures_named,
    map_attached,
    new_name,
    offsets,
    parts_of,
    write_all,
    write_attached,
)
from cortex.tasks.call_failures import call_failed, cannot_return
from cortex.tasks.cell_pickles import Pickled, dump_list, load_list
from cortex.tasks.cell_run import Outcomes
from cortex.tasks.input_link import Answer, InputLink
from cortex.tasks.memory_limits import MemoryLimit
from cortex.units import format_bytes
from cortex.wire.messages import Attached, CallFailed, Cell, CellDone, OpenJob


class CellData:
    """Of one worker. Arguments are read in one thread; results may be made in two at a time."""

    def __init__(self, open_job: OpenJob, attempt: str, memory_limit: MemoryLimit) -> None:
        self._memory_bytes = open_job.memory_bytes
        self._memory_limit = memory_limit
        self._work_dir = open_job.work_dir
        self._folder = open_job.staging_dir
        self._attempt = attempt
        self.shares_files = not open_job.input_socket
        """The client is on this machine, and maps what lies here."""
        account = open_job.spill_account
        self._room = SpillQuota(LocalFilesystem(), self._folder, account=account) if account else None
        self._asking = threading.Lock()
        self._link: InputLink | None = None
        if open_job.input_socket:
            self._link = InputLink(open_job.input_socket, open_job.job, lambda: None)

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    # --- arguments ---

    def entries(self, cell: Cell) -> list[Any]:
        """Of the calls of this piece of the cell. Raises what unpickling does, and CortexErrors."""
        if cell.attached is None:
            entries = load_list(cell.data, cell.buffers)
        else:
            parts = self._attached(cell.attached)
            entries = load_list(parts[0], parts[1:])
        return entries if cell.end - cell.start == cell.count else entries[cell.start : cell.end]

    def _attached(self, attached: Attached) -> list[memoryview]:
        if attached.name:
            path = os.path.join(self._folder, os.path.basename(attached.name))
            return self._mapped(path, attached.sizes, unlink=False)
        size_bytes = offsets(attached.sizes)[1]
        if 0 < self._memory_bytes < size_bytes * FETCHED_ARGUMENT_DIVISOR:
            return self._spilled(attached, size_bytes)
        whole = memoryview(bytearray(size_bytes))
        for begin, data in self._fetched(attached.number, size_bytes):
            whole[begin : begin + len(data)] = data
        return parts_of(whole, attached.sizes)

    def _spilled(self, attached: Attached, size_bytes: int) -> list[memoryview]:
        """By way of a file, so that its pages need not be in memory."""
        path = os.path.join(self._work_dir, new_name(self._attempt))
        self._take_room(size_bytes)
        with failures_named(path, size_bytes), open(path, "xb", buffering=0) as file:
            for _, data in self._fetched(attached.number, size_bytes):
                write_all(file.fileno(), memoryview(data))
        return self._mapped(path, attached.sizes, unlink=True)

    def _mapped(self, path: str, sizes: Sequence[int], *, unlink: bool) -> list[memoryview]:
        size_bytes = offsets(sizes)[1]
        self._memory_limit.allow(size_bytes)
        try:
            parts = map_attached(path, sizes, unlink=unlink)
        except OSError as error:
            self._memory_limit.allow(-size_bytes)
            raise InputLost(f"the file of a call's arguments cannot be read: {error}") from error
        weakref.finalize(parts[0].obj, self._memory_limit.allow, -size_bytes).atexit = False
        return parts

    def _fetched(self, file: int, size_bytes: int) -> Iterator[tuple[int, bytes]]:
        """All of the client's file of this number, piece by piece."""
        link = self._link
        if link is None:
            raise InternalError("a cell's arguments are with a client that there is no way to")
        begins = range(0, size_bytes, INPUT_READ_BYTES)
        asked: deque[Answer] = deque()
        try:
            for index, begin in enumerate(begins):
                for ahead in begins[index + len(asked) : index + ARGUMENT_READS_AHEAD]:
                    asked.append(link.ask(file, ahead, min(INPUT_READ_BYTES, size_bytes - ahead)))
                data = link.wait(asked[0]).data
                asked.popleft()
                if len(data) != min(INPUT_READ_BYTES, size_bytes - begin):
                    raise InputLost(f"the client's data of a call ends before its {size_bytes} bytes")
                yield begin, data
        finally:
            link.forget(asked)

    def _take_room(self, size_bytes: int) -> None:
        if self._room is not None:
            with self._asking:
                self._room.take(size_bytes)

    # --- results ---

    def results(
        self, cell: Cell, name: str, outcomes: Outcomes, no_memory: Callable[[MemoryError], CortexError]
    ) -> list[CellDone]:
        """One message, or one for each half where something in them cannot be pickled or written."""
        done = CellDone(cell.source, cell.cell, outcomes.start, outcomes.stop, seconds=outcomes.seconds)
        if cell.discard or not outcomes.values:
            return [msgspec.structs.replace(done, failed=tuple(outcomes.failed))]
        try:
            pickled = dump_list(outcomes.values)
            return [self._filled(done, pickled, outcomes.failed)]
        except BaseException as error:  # pickling runs user code, which may call sys.exit
            if outcomes.stop - outcomes.start > 1:
                return [
                    each for half in outcomes.halves() for each in self.results(cell, name, half, no_memory)
                ]
            return [
                msgspec.structs.replace(done, failed=(self._unsent(cell, name, outcomes, error, no_memory),))
            ]

    def _unsent(
        self,
        cell: Cell,
        name: str,
        outcomes: Outcomes,
        error: BaseException,
        no_memory: Callable[[MemoryError], CortexError],
    ) -> CallFailed:
        number = cell.first + outcomes.start
        if isinstance(error, MemoryError):
            error = no_memory(error)
        elif isinstance(error, Exception) and not isinstance(error, CortexError):
            error = cannot_return(error, name, number, type(outcomes.values[0]).__name__)
        return call_failed(error, outcomes.start, number, name)

    def _filled(self, done: CellDone, pickled: Pickled, failed: list[CallFailed]) -> CellDone:
        if not pickled.is_large:
            data, buffers = pickled.inline()
            return msgspec.structs.replace(done, data=data, buffers=buffers, failed=tuple(failed))
        if done.source and not self.shares_files:  # the executor that gets it fetches nothing
            check_frame(pickled, "result")
            data, buffers = pickled.inline()
            return msgspec.structs.replace(done, data=data, buffers=buffers, failed=tuple(failed))
        name = new_name(self._attempt)
        self._take_room(offsets(pickled.sizes)[1])
        write_attached(os.path.join(self._folder, name), pickled)
        return msgspec.structs.replace(done, attached=Attached(name, pickled.sizes), failed=tuple(failed))


def check_frame(pickled: Pickled, what: str) -> None:
    """UsageError unless calls that submit calls on a cluster may pass it on, which takes a frame."""
    if len(pickled.data) > CELL_INLINE_BYTES_MAX or pickled.size_bytes > NESTED_INLINE_BYTES_MAX:
        raise UsageError(
            f"the {what} of a call that another call has submitted has {format_bytes(pickled.size_bytes)}:"
            f" on a cluster at most {format_bytes(NESTED_INLINE_BYTES_MAX)} in arrays and"
            f" {format_bytes(CELL_INLINE_BYTES_MAX)} in other objects go from call to call",
            cure="pass the name of a file that all nodes see, or submit the call from the client itself",
        )

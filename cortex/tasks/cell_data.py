"""A cell's arguments in an executor, and what came of its calls as messages: in frames, or attached.

What cannot be pickled (or written) fails alone: the outcomes are halved until it is found.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from cortex.errors import CortexError, InputLost, UsageError
from cortex.limits import CELL_INLINE_BYTES_MAX, INPUT_READ_BYTES, NESTED_INLINE_BYTES_MAX
from cortex.storage.filesystem import LocalFilesystem
from cortex.storage.spill_quota import SpillQuota
from cortex.tasks.attached_files import map_attached, new_name, offsets, read_attached, write_attached
from cortex.tasks.call_failures import call_failed, cannot_return
from cortex.tasks.cell_pickles import Pickled, dump_list, load_list
from cortex.tasks.cell_run import Outcomes
from cortex.tasks.input_link import InputLink
from cortex.units import format_bytes
from cortex.wire.messages import Attached, CallFailed, Cell, CellDone, OpenJob

_READS_AHEAD = 8  # pieces of an argument asked for before the first is there


class CellData:
    """Of one worker. Arguments are read in one thread; results may be made in two at a time."""

    def __init__(self, open_job: OpenJob, attempt: str) -> None:
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
        if attached.number < 0:
            path = os.path.join(self._folder, os.path.basename(attached.name))
            try:
                return map_attached(path, attached.sizes)
            except FileNotFoundError as error:
                raise InputLost(f"the file of a call's arguments is gone: {path}") from error
        assert self._link is not None
        return read_attached(attached.sizes, lambda _, view: self._read(attached.number, view))

    def _read(self, file: int, view: memoryview) -> None:
        """All of the client's file of this number."""
        link = self._link
        assert link is not None
        begins = range(0, len(view), INPUT_READ_BYTES)
        lengths = [min(INPUT_READ_BYTES, len(view) - begin) for begin in begins]
        asked = [link.ask(file, begin, length) for begin, length in list(zip(begins, lengths))[:_READS_AHEAD]]
        try:
            for index, (begin, length) in enumerate(zip(begins, lengths)):
                data = link.wait(asked[index]).data
                if len(data) != length:
                    raise InputLost(f"the client's file {file} of a call's arguments has been cut short")
                view[begin : begin + length] = data
                ahead = index + _READS_AHEAD
                if ahead < len(begins):
                    asked.append(link.ask(file, begins[ahead], lengths[ahead]))
        except BaseException:
            link.forget(asked)
            raise

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
        except Exception as error:
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
        error: Exception,
        no_memory: Callable[[MemoryError], CortexError],
    ) -> CallFailed:
        number = cell.first + outcomes.start
        if isinstance(error, MemoryError):
            error = no_memory(error)
        elif not isinstance(error, CortexError):
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
        if self._room is not None:
            with self._asking:
                self._room.take(offsets(pickled.sizes)[1])
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

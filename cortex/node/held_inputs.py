"""The input files that a node has below its data roots: what it answers the server, and reads of them by
others.

Looking for files and hashing them takes disks their time, and so happens in threads. A file's fingerprint is
remembered with its time and inode. What was found for a job is registered under the ids of its question,
until the job's end: nobody names a path. Registering and forgetting happen on the reactor's thread;
`FileReads`, one a connection, reads in whichever thread has it.
"""

from __future__ import annotations

import os
import traceback
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from cortex.errors import CortexError, InputError, InternalError, NotAllowed
from cortex.formats.data_roots import DataRoots, HeldFile
from cortex.formats.input_bytes import LocalBytes, find_byte
from cortex.job.data_names import is_data_name
from cortex.job.plan import ClientFile, InputFile
from cortex.limits import HELD_FINGERPRINTS_MAX, INPUT_OPEN_FILES_MAX
from cortex.storage.fingerprint import fingerprint
from cortex.wire.messages import (
    DataListed,
    FindInput,
    FromNode,
    InputBytes,
    InputFound,
    InputUnread,
    ListData,
    ReadInput,
)


class HeldInputs:
    """`send` takes messages to the server; `in_thread(function)` runs one in a thread,
    `from_thread(function)` on the reactor's."""

    def __init__(
        self,
        node: str,
        roots: DataRoots,
        send: Callable[[FromNode], None],
        in_thread: Callable[..., Any],
        from_thread: Callable[..., Any],
    ) -> None:
        self._node = node
        self.roots = roots
        self._send = send
        self._in_thread = in_thread
        self._from_thread = from_thread
        self._held: dict[str, dict[int, tuple[str, HeldFile]]] = {}
        """Job -> id -> (the file's name in the job, the file)."""
        self._fingerprints: OrderedDict[tuple[HeldFile, bool], bytes] = OrderedDict()

    def list_data(self, question: ListData) -> None:
        self._in_thread(self._list, question)

    def find(self, question: FindInput) -> None:
        """The answer comes while the job lasts."""
        self._held.setdefault(question.job, {})
        self._in_thread(self._find, question)

    def close_job(self, job: str) -> None:
        self._held.pop(job, None)

    def file(self, job: str, file: int) -> tuple[str, HeldFile] | None:
        """(its name in the job, the file) of an id that this node has; from any thread."""
        return self._held.get(job, {}).get(file)

    # --- in a thread ---

    def _list(self, question: ListData) -> None:
        try:
            found = tuple(tuple(self._listed(name, question.full)) for name in question.names)
            answer = DataListed(self._node, question.job, found)
        except CortexError as error:
            answer = DataListed(self._node, question.job, error=error.report())
        except Exception as error:  # the job would wait for ever
            answer = DataListed(self._node, question.job, error=_unforeseen(error).report())
        self._from_thread(self._send, answer)

    def _listed(self, name: str, full: bool) -> list[ClientFile]:
        listed = []
        for called, held in self.roots.list_files(name):
            try:
                mark = self._fingerprint(held, full)
            except OSError as error:
                raise InputError(
                    f"input file cannot be read: {error.strerror}", details={"file": held.path}
                ) from error
            listed.append(ClientFile(called, held.size_bytes, 0, mark))
        return sorted(listed, key=lambda file: file.path)

    def _find(self, question: FindInput) -> None:
        bits = bytearray((len(question.files) + 7) // 8)
        found: dict[int, tuple[str, HeldFile]] = {}
        for number, file in enumerate(question.files):
            try:
                held = self._same(file, question.full)
            except (CortexError, OSError):
                held = None  # it cannot be read here: then this node does not have it
            if held is not None:
                bits[number >> 3] |= 1 << (number & 7)
                found[number] = file.path, held
        self._from_thread(self._found, question.job, found, bytes(bits))

    def _same(self, file: ClientFile, full: bool) -> HeldFile | None:
        if is_data_name(file.path):
            candidates = list(self.roots.named(file.path))
        else:
            paths = dict.fromkeys(filter(None, (file.real_path, file.path)))
            candidates = [held for path in paths if (held := self.roots.find(path)) is not None]
        for held in candidates:
            if held.size_bytes == file.size_bytes and self._fingerprint(held, full) == file.fingerprint:
                return held
        return None

    def _fingerprint(self, held: HeldFile, full: bool) -> bytes:
        known = self._fingerprints.get((held, full))
        if known is None:
            descriptor = held.open()
            try:
                known = fingerprint(descriptor, held.size_bytes, full)
            finally:
                os.close(descriptor)
            self._fingerprints[held, full] = known
            while len(self._fingerprints) > HELD_FINGERPRINTS_MAX:
                self._fingerprints.popitem(last=False)
        return known

    # --- on the reactor's thread again ---

    def _found(self, job: str, found: dict[int, tuple[str, HeldFile]], bits: bytes) -> None:
        if job in self._held:  # not ended meanwhile
            self._held[job] = found
            self._send(InputFound(self._node, job, bits))


class FileReads:
    """Another node's reads, by one thread at a time. Keeps some files open; close it."""

    def __init__(self, held: HeldInputs) -> None:
        self._held = held
        self._open: OrderedDict[tuple[str, int], LocalBytes] = OrderedDict()

    def answer(self, read: ReadInput) -> InputBytes | InputUnread:
        """The bytes, once it was seen after reading them that the file is still the one that was found."""
        try:
            data = self._opened(read.job, read.file)
            got = data.read(read.length, read.offset)
            clear = find_byte(data, read.offset, read.find_bytes, read.find) if read.find else 0
            data.check()
            return InputBytes(read.read, got, clear)
        except CortexError as error:
            failed = error
        except OSError as error:
            failed = InputError(f"input file cannot be read: {error.strerror}")
        except Exception as error:
            failed = _unforeseen(error)
        failed.details.setdefault("node", self._held._node)
        return InputUnread(read.read, failed.report())

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _opened(self, job: str, file: int) -> LocalBytes:
        data = self._open.pop((job, file), None)
        if data is None:
            found = self._held.file(job, file)
            if found is None:
                raise NotAllowed(f"this node has no file {file} of job {job}")
            while len(self._open) >= INPUT_OPEN_FILES_MAX:
                self._open.popitem(last=False)[1].close()
            data = open_held(*found)
        self._open[job, file] = data
        return data


def open_held(name: str, held: HeldFile) -> LocalBytes:
    """Raises InputError, and InputChanged for one that is not what was found."""
    file = InputFile(0, name, "", held.size_bytes, held.modified_ns, held.inode)
    try:
        descriptor = held.open()
    except OSError as error:
        raise InputError(
            f"input file cannot be opened: {error.strerror}",
            details={"file": name, "on the node": held.path},
            cure="run the job again when nothing changes its input",
        ) from error
    return LocalBytes(file, held.path, descriptor)


def _unforeseen(error: Exception) -> InternalError:
    text = "".join(traceback.format_exception(error))
    return InternalError(f"the node could not read input: {error!r}", details={"traceback": text})

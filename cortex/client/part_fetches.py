"""Results in files of nodes, fetched as parts to files of this machine. For one job; by its receiving thread.

A part has arrived when `took` gives it; one that is lost, with its node, is given by `lost`, and its calls
have to run again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from cortex.errors import OutputFailed, ProtocolError
from cortex.limits import PART_CREDIT_BYTES, PARTS_FETCHED_AT_ONCE
from cortex.tasks.attached_files import offsets
from cortex.wire.messages import CellDone, FetchPart, Message, PartBytes, PartLost, PartTaken


@dataclass
class _Coming:
    done: CellDone
    file: BinaryIO


@dataclass
class PartFetches:
    job: str
    folder: str
    send: Callable[[Message], None]
    _waiting: deque[CellDone] = field(default_factory=deque)
    _coming: dict[str, _Coming] = field(default_factory=dict)

    def fetch(self, done: CellDone) -> None:
        assert done.attached is not None
        known = {each.attached.name for each in self._waiting if each.attached is not None}
        if done.attached.name not in known | self._coming.keys():
            self._waiting.append(done)
            self._ask()

    def begin_again(self) -> None:
        """Over another connection: what had come is kept."""
        for name, coming in self._coming.items():
            self.send(FetchPart(self.job, name, PART_CREDIT_BYTES, coming.file.tell()))

    def took(self, message: PartBytes) -> tuple[CellDone, str] | None:
        """The result that is here with this, and its file. Raises OutputFailed, ProtocolError."""
        coming = self._coming.get(message.staged_as)
        if coming is None:
            return None
        try:
            rest = memoryview(message.data)
            while rest:
                rest = rest[coming.file.write(rest) :]
        except OSError as error:
            raise OutputFailed(
                f"a result cannot be written to {self.folder}: {error.strerror or error}",
                cure="set CORTEX_SPILL_DIRS to a folder of yours with free space",
            ) from error
        if not message.last:
            self.send(PartTaken(message.job, message.staged_as, len(message.data)))
            return None
        attached = coming.done.attached
        assert attached is not None
        size_bytes = offsets(attached.sizes)[1]
        if coming.file.tell() != size_bytes:
            raise ProtocolError(f"a result of {size_bytes} bytes came with {coming.file.tell()}")
        coming.file.close()
        del self._coming[message.staged_as]
        self._ask()
        return coming.done, self._path(message.staged_as)

    def lost(self, message: PartLost) -> CellDone | None:
        coming = self._coming.pop(message.staged_as, None)
        if coming is None:
            return None
        coming.file.close()
        os.unlink(self._path(message.staged_as))
        self._ask()
        return coming.done

    def close(self) -> None:
        for coming in self._coming.values():
            coming.file.close()

    def _ask(self) -> None:
        while self._waiting and len(self._coming) < PARTS_FETCHED_AT_ONCE:
            done = self._waiting.popleft()
            assert done.attached is not None
            name = done.attached.name
            try:
                file = open(self._path(name), "xb", buffering=0)  # noqa: SIM115 (closed when all is here)
            except OSError as error:
                raise OutputFailed(
                    f"a result cannot be written to {self.folder}: {error.strerror or error}",
                    cure="set CORTEX_SPILL_DIRS to a folder of yours with free space",
                ) from error
            self._coming[name] = _Coming(done, file)
            self.send(FetchPart(self.job, name, PART_CREDIT_BYTES))

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, os.path.basename(name))

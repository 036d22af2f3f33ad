"""A node's part in ``cortex put``: parts read of the client, through the server, and kept below a data root.

A put is this link's: when it ends the server counts its parts here as lost, and they are removed; only those
that have their names already stay. The disk is written to by one thread, and no more of a part is asked for
than PUT_AHEAD_BYTES before that is written. Everything here runs on the reactor's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from cortex.errors import CortexError, from_report
from cortex.formats.data_roots import DataRoots
from cortex.limits import INPUT_READ_BYTES, PUT_AHEAD_BYTES
from cortex.storage.put_folder import IncomingPart, PutFolder, remove_left_over
from cortex.transfer.work_thread import WorkThread
from cortex.wire.messages import (
    EndPut,
    FromNode,
    InputBytes,
    InputUnread,
    KeepPart,
    Message,
    NameParts,
    OpenPut,
    PartsNamed,
    PartStored,
    PutOpened,
    ReadInput,
)


class Reader(Protocol):
    """Of the client's bytes: `cortex.node.input_door.InputDoor`."""

    def read(self, asker: _Coming, read: ReadInput) -> None:
        """Answered with `asker.send`, in order unless the link to the server was down."""

    def drop(self, asker: _Coming) -> None: ...

    def drop_job(self, job: str) -> None: ...


@dataclass(eq=False)
class _Coming:
    """A part that is being read."""

    keeper: PutKeeper
    put: _Put
    wanted: KeepPart
    asked_bytes: int = 0
    written_bytes: int = 0
    came: dict[int, bytes] = field(default_factory=dict)
    """Offset -> what is there, where something before it is missing."""
    next_offset: int = 0
    """Of what goes to the disk next."""
    incoming: IncomingPart | None = None
    over: bool = False

    def send(self, message: Message) -> None:
        """An answer to a read of this part's."""
        self.keeper._answered(self, message)


@dataclass(eq=False)
class _Put:
    id: str
    folder: PutFolder | None = None
    parts: dict[int, _Coming] = field(default_factory=dict)
    named: bool = False
    over: bool = False


class PutKeeper:
    """`send` takes messages to the server. `reader` is to be there before the first put."""

    def __init__(
        self, node: str, roots: DataRoots, send: Callable[[FromNode], None], thread: WorkThread
    ) -> None:
        self._node = node
        self._roots = roots
        self._send = send
        self._thread = thread
        self._puts: dict[str, _Put] = {}
        self.reader: Reader | None = None

    def start(self) -> None:
        folders, node = self._roots.folders, self._node
        self._thread.run(lambda: remove_left_over(folders, node), _ignore, _ignore)

    def stop(self) -> None:
        self.server_lost()
        self._thread.stop()

    def server_lost(self) -> None:
        for put in list(self._puts.values()):
            self._end(put, undo=not put.named)

    def receive(self, message: OpenPut | KeepPart | NameParts | EndPut) -> None:
        """From the server. What is of a put that ended with an earlier link is passed over."""
        if isinstance(message, OpenPut):
            self._open(message)
            return
        put = self._puts.get(message.put)
        if put is None:
            return
        if isinstance(message, KeepPart):
            self._keep(put, message)
        elif isinstance(message, NameParts):
            self._name_parts(put, message)
        else:
            self._end(put, message.undo)

    def _open(self, message: OpenPut) -> None:
        put = self._puts[message.put] = _Put(message.put)
        folders, node = self._roots.folders, self._node

        def work() -> int:
            put.folder = PutFolder(folders, message.put, message.name, node, message.overwrite)
            return put.folder.free_bytes

        def opened(free_bytes: int) -> None:
            if not put.over:
                self._send(PutOpened(node, put.id, free_bytes))

        def failed(error: CortexError) -> None:
            if not put.over:
                self._send(PutOpened(node, put.id, error=error.report()))

        self._thread.run(work, opened, failed)

    def _keep(self, put: _Put, message: KeepPart) -> None:
        coming = put.parts[message.part] = _Coming(self, put, message)

        def work() -> None:
            if not coming.over and put.folder is not None:
                coming.incoming = put.folder.receive(message.part, message.size_bytes, message.sha256)

        self._thread.run(work, lambda _: self._ask(coming), lambda error: self._fail(coming, error))

    def _name_parts(self, put: _Put, message: NameParts) -> None:
        put.named = True

        def work() -> None:
            if put.folder is not None:
                put.folder.name_parts(message.parts, message.ending)

        def done(error: CortexError | None) -> None:
            if not put.over:
                said = None if error is None else error.report()
                self._send(PartsNamed(self._node, put.id, said))

        self._thread.run(work, lambda _: done(None), done)

    # --- a part ---

    def _ask(self, coming: _Coming) -> None:
        """For as much as may be here and not written."""
        wanted, reader = coming.wanted, self.reader
        if coming.over:
            return
        assert reader is not None
        while coming.asked_bytes < min(wanted.size_bytes, coming.written_bytes + PUT_AHEAD_BYTES):
            offset = coming.asked_bytes
            length = min(INPUT_READ_BYTES, wanted.size_bytes - offset)
            coming.asked_bytes += length
            reader.read(coming, ReadInput(offset, coming.put.id, wanted.part, offset, length))
        if coming.written_bytes == wanted.size_bytes:
            self._finish(coming)

    def _answered(self, coming: _Coming, message: Message) -> None:
        if coming.over:
            return
        if isinstance(message, InputUnread):
            self._fail(coming, from_report(message.error))
            return
        assert isinstance(message, InputBytes)
        coming.came[message.read] = message.data
        while coming.next_offset in coming.came:
            data = coming.came.pop(coming.next_offset)
            # a short answer is a part cut short: the check at its end says so
            coming.next_offset += min(INPUT_READ_BYTES, coming.wanted.size_bytes - coming.next_offset)
            self._write(coming, data, coming.next_offset)

    def _write(self, coming: _Coming, data: bytes, up_to: int) -> None:
        def work() -> None:
            if coming.incoming is not None:
                coming.incoming.write(data)

        def written(_: None) -> None:
            coming.written_bytes = up_to
            self._ask(coming)

        self._thread.run(work, written, lambda error: self._fail(coming, error))

    def _finish(self, coming: _Coming) -> None:
        def work() -> None:
            if coming.incoming is not None:
                coming.incoming.finish()

        def stored(_: None) -> None:
            if not coming.over:
                coming.over = True
                self._send(PartStored(self._node, coming.put.id, coming.wanted.part))

        self._thread.run(work, stored, lambda error: self._fail(coming, error))

    def _fail(self, coming: _Coming, error: CortexError) -> None:
        if coming.over:
            return
        self._abort(coming)
        self._send(PartStored(self._node, coming.put.id, coming.wanted.part, error.report()))

    def _abort(self, coming: _Coming) -> None:
        coming.over = True
        coming.came.clear()
        if self.reader is not None:
            self.reader.drop(coming)

        def work() -> None:
            if coming.incoming is not None:
                coming.incoming.abort()

        self._thread.run(work, _ignore, _ignore)

    def _end(self, put: _Put, undo: bool) -> None:
        del self._puts[put.id]
        put.over = True
        for coming in put.parts.values():
            if not coming.over:
                self._abort(coming)
        if self.reader is not None:
            self.reader.drop_job(put.id)

        def work() -> None:
            folder, put.folder = put.folder, None
            if folder is not None and undo:
                folder.undo()
            elif folder is not None:
                folder.keep()

        self._thread.run(work, _ignore, _ignore)


def _ignore(_: object) -> None:
    """Nothing follows: what could not be removed is removed when the node starts again."""

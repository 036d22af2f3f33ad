"""``cortex put`` from the client's side: parts are cut, offered, and read by nodes until each is kept.

Blocking. A few parts are offered at once, while a thread answers reads of them. Whatever ends the connection
before `PutDone` ends the put, and the cluster removes what it had of it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cortex.client.cluster_client import ClusterConnection
from cortex.client.input_sender import InputSender
from cortex.errors import InputError, NotAllowed, ProtocolError, Unreachable
from cortex.formats.file_parts import FileParts, Part
from cortex.formats.input_bytes import LocalBytes
from cortex.job.plan import InputFile
from cortex.job.spec import InputSpec
from cortex.limits import ANSWER_S_MAX, PUT_PARTS_AT_ONCE
from cortex.private_folders import PrivateFolder, new_name
from cortex.wire.messages import (
    BeginPut,
    FinishPut,
    Message,
    OfferPart,
    PartGone,
    PartKept,
    PutBegun,
    PutDone,
    ReadInput,
)


@dataclass(frozen=True)
class PutReport:
    name: str
    parts: int
    size_bytes: int
    """Of the parts together; each CSV part has a header."""
    nodes: dict[str, tuple[int, int]]
    """Node -> (parts, bytes)."""


def put_file(
    connection: ClusterConnection,
    path: str,
    spec: InputSpec,
    name: str,
    part_bytes: int,
    *,
    overwrite: bool = False,
    copies: int = 1,
    on_progress: Callable[[int, int], None] = lambda parts, size_bytes: None,
) -> PutReport:
    """Put the file at `path`, described by `spec`, on the cluster's nodes as ``data:<name>/*``.

    `on_progress` hears of parts and bytes that are kept. Raises InputError, InputChanged and UsageError for
    the file, OutputExistsError for the name, PutFailed for the nodes, Unreachable.
    """
    folder = PrivateFolder(new_name(tempfile.gettempdir()))
    try:
        with contextlib.closing(FileParts(path, spec, part_bytes, folder.path)) as parts:
            begin = BeginPut(name, parts.ending, overwrite, copies)
            put = connection.ask(begin, PutBegun).put
            offered = _Offered(parts.file)
            with InputSender(put, offered, connection.send) as sender:
                putting = _Putting(connection, parts, offered, sender, on_progress)
                return putting.report(name, putting.run())
    finally:
        folder.remove()


class _Putting:
    def __init__(
        self,
        connection: ClusterConnection,
        parts: FileParts,
        offered: _Offered,
        sender: InputSender,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._connection = connection
        self._parts = parts
        self._offered = offered
        self._sender = sender
        self._on_progress = on_progress
        self._made: list[Part] = []
        """Every part that was cut, by its number; a temporary one may be removed again."""
        self._gone: deque[int] = deque()
        """To be offered again."""
        self._kept: set[int] = set()
        self._kept_bytes = 0

    def run(self) -> PutDone:
        coming: Iterator[Part] | None = iter(self._parts)
        finished = False
        while True:
            while len(self._offered.parts) < PUT_PARTS_AT_ONCE and (self._gone or coming is not None):
                if self._gone:
                    number = self._gone.popleft()
                    self._made[number] = self._parts.again(number, self._made[number])
                else:
                    assert coming is not None
                    part = next(coming, None)
                    if part is None:
                        coming = None
                        break
                    number = len(self._made)
                    self._made.append(part)
                self._offer(number, self._made[number])
            if not self._offered.parts and not finished:
                self._send(FinishPut(len(self._made)))
                finished = True
            said = self._connection.receive()
            if isinstance(said, ReadInput):
                self._sender.ask(said)
            elif isinstance(said, PartKept):
                self._part_kept(said.part)
            elif isinstance(said, PartGone):
                self._kept.discard(said.part)
                self._kept_bytes -= self._made[said.part].size_bytes
                self._gone.append(said.part)
                finished = False
            elif isinstance(said, PutDone):
                return said
            else:
                raise ProtocolError(f"the server answered a put with {type(said).__name__}")

    def report(self, name: str, done: PutDone) -> PutReport:
        nodes = {
            node: (len(numbers), sum(self._made[number].size_bytes for number in numbers))
            for node, numbers in done.nodes.items()
        }
        return PutReport(name, len(self._made), sum(part.size_bytes for part in self._made), nodes)

    def _offer(self, number: int, part: Part) -> None:
        self._offered.parts[number] = part
        self._send(OfferPart(number, part.size_bytes, part.sha256))

    def _send(self, message: Message) -> None:
        """Raises what the server said last, where it has closed the connection."""
        try:
            self._connection.send(message)
        except Unreachable:
            with contextlib.suppress(TimeoutError):
                while True:
                    self._connection.receive(ANSWER_S_MAX)
            raise

    def _part_kept(self, number: int) -> None:
        part = self._offered.parts.pop(number)
        if self._parts.temporary:
            os.unlink(part.path)
        self._kept.add(number)
        self._kept_bytes += part.size_bytes
        self._on_progress(len(self._kept), self._kept_bytes)


class _Offered:
    """The parts that nodes may read, by number: changed by one thread, read by another."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self.parts: dict[int, Part] = {}

    def open(self) -> _PartReads:
        return _PartReads(self._file, self.parts)


class _PartReads:
    """Reads of offered parts, by one thread."""

    def __init__(self, file: InputFile, parts: dict[int, Part]) -> None:
        self._file = file
        self._parts = parts
        self._source: LocalBytes | None = None

    def read(self, number: int, offset: int, length: int) -> bytes:
        part = self._parts.get(number)
        if part is None:
            raise NotAllowed(f"part {number} is not offered (any more)")
        head = part.head[offset : offset + length]
        low = max(0, offset - len(part.head))
        return head + self._body(part, part.offset + low, min(length - len(head), part.length - low))

    def without(self, number: int, offset: int, length: int, byte: bytes) -> int:
        return 0  # parts are read whole

    def close(self) -> None:
        if self._source is not None:
            self._source.close()

    def _body(self, part: Part, offset: int, length: int) -> bytes:
        try:
            if part.path != self._file.path:
                with open(part.path, "rb", buffering=0) as file:
                    return os.pread(file.fileno(), length, offset)
            if self._source is None:
                self._source = LocalBytes(self._file)
            data = self._source.read(length, offset)
        except OSError as error:
            raise InputError(
                f"input file cannot be read: {error.strerror}", details={"file": part.path}
            ) from error
        self._source.check()
        return data

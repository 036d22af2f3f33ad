"""The server's side of a job's files on their way to nodes: blobs, read and sent as far as credit reaches.

Some streams go on at once, the others in the order they were asked for; each is read one chunk at a
time, when the last was sent and credit is left. So however many nodes begin a job together, the server
holds a bounded number of bytes. Knows nothing of what is in a blob. All methods are on the reactor's thread.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cortex.errors import CortexError, ProtocolError
from cortex.limits import BLOB_CHUNK_BYTES, BLOB_CREDIT_BYTES, BLOB_REQUESTS_MAX, BLOB_STREAMS_MAX
from cortex.storage.blob_store import BlobStore
from cortex.transfer.work_thread import WorkThread
from cortex.wire.messages import BlobChunk, BlobLost, BlobTaken, FetchBlob, ToNode

Key = tuple[str, str, str]
"""Node, job, SHA-256."""


@dataclass(eq=False)
class _Stream:
    key: Key
    size_bytes: int
    credit_bytes: int
    offset: int = 0
    started: bool = False
    reading: bool = False
    dropped: bool = False


class BlobStreams:
    """`to_node(node, message)` sends."""

    def __init__(self, store: BlobStore, thread: WorkThread, to_node: Callable[[str, ToNode], None]) -> None:
        self._store = store
        self._thread = thread
        self._to_node = to_node
        self._streams: dict[Key, _Stream] = {}
        self._asked: Counter[tuple[str, str]] = Counter()
        """Node and job -> streams."""
        self._waiting: deque[_Stream] = deque()
        self._going = 0

    def begin(self, message: FetchBlob, size_bytes: int) -> None:
        """Send a blob of this size. Raises ProtocolError for one under way, or one too many."""
        key = (message.node, message.job, message.sha256)
        if key in self._streams or self._asked[key[:2]] >= BLOB_REQUESTS_MAX:
            raise ProtocolError("a file of a job was asked for again, or with too many others")
        self._asked[key[:2]] += 1
        stream = self._streams[key] = _Stream(key, size_bytes, min(message.credit_bytes, BLOB_CREDIT_BYTES))
        self._waiting.append(stream)
        self._start()

    def credit(self, message: BlobTaken) -> None:
        stream = self._streams.get((message.node, message.job, message.sha256))
        if stream is not None:  # else it has ended: the last credits come after it
            stream.credit_bytes = min(stream.credit_bytes + message.credit_bytes, BLOB_CREDIT_BYTES)
            self._go_on(stream)

    def node_lost(self, node: str) -> None:
        self._drop([key for key in self._streams if key[0] == node])

    def job_ended(self, job: str) -> None:
        self._drop([key for key in self._streams if key[1] == job])

    def _drop(self, keys: list[Key]) -> None:
        for key in keys:
            self._end(self._streams[key])

    def _end(self, stream: _Stream) -> None:
        del self._streams[stream.key]
        self._asked[stream.key[:2]] -= 1
        if not self._asked[stream.key[:2]]:
            del self._asked[stream.key[:2]]
        stream.dropped = True
        if stream.started:
            self._going -= 1
            self._start()

    def _start(self) -> None:
        while self._waiting and self._going < BLOB_STREAMS_MAX:
            stream = self._waiting.popleft()
            if not stream.dropped:
                stream.started = True
                self._going += 1
                self._go_on(stream)

    def _go_on(self, stream: _Stream) -> None:
        rest = stream.size_bytes - stream.offset
        if not stream.started or stream.reading or (stream.credit_bytes <= 0 and rest):
            return
        stream.reading = True
        size = min(BLOB_CHUNK_BYTES, stream.credit_bytes, rest)
        work = partial(self._store.read, stream.key[2], stream.offset, size)
        self._thread.run(work, partial(self._was_read, stream), partial(self._unread, stream))

    def _was_read(self, stream: _Stream, data: bytes) -> None:
        stream.reading = False
        if stream.dropped:
            return
        stream.offset += len(data)
        stream.credit_bytes -= len(data)
        last = stream.offset == stream.size_bytes
        node, job, sha256 = stream.key
        self._to_node(node, BlobChunk(job, sha256, data, last))
        if last:
            self._end(stream)
        else:
            self._go_on(stream)

    def _unread(self, stream: _Stream, error: CortexError) -> None:
        if not stream.dropped:
            self._end(stream)
            node, job, sha256 = stream.key
            self._to_node(node, BlobLost(job, sha256, error.report()))

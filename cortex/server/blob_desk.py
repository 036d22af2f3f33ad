"""The server's desk for the files that travel with jobs: taken from clients, kept while a job needs them,
given to nodes.

Who needs a blob holds it: a client from its offer to its job, the job until it ends. What nobody holds is
removed. The blobs are opaque; reading and writing them is done by one thread, in order. All methods are
called on the reactor's thread; ProtocolErrors they raise are the sender's fault.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cortex.errors import BundleFailed, CortexError, ProtocolError
from cortex.job.bundle import Bundle, check_bundle, is_sha256
from cortex.limits import BLOB_CREDIT_BYTES, BUNDLE_BYTES_MAX, BUNDLE_FILES_MAX
from cortex.storage.blob_store import BlobStore, IncomingBlob
from cortex.transfer.blob_streams import BlobStreams
from cortex.transfer.work_thread import WorkThread
from cortex.wire.messages import (
    BlobLost,
    BlobsTaken,
    BlobsWanted,
    BlobTaken,
    FetchBlob,
    FromServer,
    OfferBlobs,
    PutBlob,
    ToNode,
)


@dataclass(eq=False)
class _Upload:
    """What a client is sending: the blobs still to come, and what came and is not yet written."""

    wanted: deque[tuple[str, int]]
    came: deque[PutBlob] = field(default_factory=deque)
    unwritten_bytes: int = 0
    incoming: IncomingBlob | None = None
    writing: bool = False
    dropped: bool = False


class BlobDesk:
    """`to_node(node, message)` and `to_client(client, message)` send, `refuse(client, error)` tells and
    closes; clients are told apart by identity. `in_thread` makes the thread."""

    def __init__(
        self,
        store: BlobStore,
        thread: WorkThread,
        to_node: Callable[[str, ToNode], None],
        to_client: Callable[[Any, FromServer], None],
        refuse: Callable[[Any, CortexError], None],
    ) -> None:
        self._store = store
        self._thread = thread
        self._to_node = to_node
        self._to_client = to_client
        self._refuse = refuse
        self._streams = BlobStreams(store, thread, to_node)
        self._here: dict[str, int] | None = None
        """SHA-256 -> bytes of the blobs there are; None until the folder was looked at."""
        self._opening = False
        self._held_by: dict[Any, set[str]] = {}
        self._holders: Counter[str] = Counter()
        self._jobs: dict[str, Bundle] = {}
        self._uploads: dict[Any, _Upload] = {}
        self._offered: list[tuple[Any, OfferBlobs]] = []
        """Offers that came before the folder was looked at."""

    def open(self, jobs: dict[str, Bundle]) -> None:
        """Look at the folder and remove from it what none of `jobs` needs: those of an earlier life of
        this server that go on. Called once, before anything else; or by the first offer."""
        self._opening = True
        for job, bundle in jobs.items():
            self._jobs[job] = bundle
            self._hold(job, bundle.blobs())
        wanted = dict(self._all_blobs())
        self._thread.run(
            partial(self._store.keep_only, wanted), partial(self._opened, wanted), self._not_opened
        )

    def stop(self) -> None:
        self._thread.stop()

    # --- clients ---

    def offer(self, client: Any, message: OfferBlobs) -> None:
        """Answered with BlobsWanted: those that are not here."""
        blobs = message.blobs
        fits = len(blobs) <= BUNDLE_FILES_MAX and sum(blobs.values()) <= BUNDLE_BYTES_MAX
        if (
            client in self._held_by
            or not fits
            or not all(map(is_sha256, blobs))
            or min(blobs.values(), default=-1) < 0
        ):
            raise ProtocolError(
                "files were offered twice, over their limits, or without a hash, or none were"
            )
        self._hold(client, blobs)
        if self._here is None:
            self._offered.append((client, message))
            if not self._opening:
                self.open({})
        else:
            self._want(client, blobs)

    def put(self, client: Any, message: PutBlob) -> None:
        """Answered with BlobsTaken when it is written, or refused."""
        upload = self._uploads.get(client)
        if upload is None or not upload.wanted:
            raise ProtocolError("a file came that was not asked for")
        upload.unwritten_bytes += len(message.data)
        if upload.unwritten_bytes > BLOB_CREDIT_BYTES or len(upload.came) > BUNDLE_FILES_MAX:
            raise ProtocolError("more of a file came than there was credit for")
        upload.came.append(message)
        self._write(client, upload)

    def client_lost(self, client: Any) -> None:
        upload = self._uploads.pop(client, None)
        if upload is not None:
            upload.dropped = True
            self._abort(upload)
        self._let_go(client)

    def submitted(self, client: Any, job: str, bundle: Bundle) -> None:
        """The client's job has this bundle: the blobs are the job's from here on. Raises ProtocolError for
        one that is not here."""
        check_bundle(bundle)
        held, here = self._held_by.get(client, set()), self._here or {}
        for sha256, size_bytes in bundle.blobs().items():
            if sha256 not in held or here.get(sha256) != size_bytes:
                raise ProtocolError("a job came before the files that travel with it")
        if bundle.files:
            self._jobs[job] = bundle
            self._hold(job, bundle.blobs())
        self._uploads.pop(client, None)
        self._let_go(client)

    def job_ended(self, job: str) -> None:
        """No node needs its files any more. An unknown job is fine."""
        if self._jobs.pop(job, None) is not None:
            self._streams.job_ended(job)
            self._let_go(job)

    # --- nodes ---

    def fetch(self, message: FetchBlob) -> None:
        size_bytes = (self._here or {}).get(message.sha256)
        if size_bytes is None or message.sha256 not in self._held_by.get(message.job, ()):
            error = BundleFailed("the server has no such file of the job any more")
            self._to_node(message.node, BlobLost(message.job, message.sha256, error.report()))
        else:
            self._streams.begin(message, size_bytes)

    def taken(self, message: BlobTaken) -> None:
        self._streams.credit(message)

    def node_lost(self, node: str) -> None:
        self._streams.node_lost(node)

    # --- inside ---

    def _all_blobs(self) -> Iterable[tuple[str, int]]:
        return (item for bundle in self._jobs.values() for item in bundle.blobs().items())

    def _opened(self, wanted: dict[str, int], found: set[str]) -> None:
        self._here = {sha256: size for sha256, size in wanted.items() if sha256 in found}
        offered, self._offered = self._offered, []
        for client, message in offered:
            if client in self._held_by:
                self._want(client, message.blobs)

    def _not_opened(self, error: CortexError) -> None:
        """Jobs without files go on; the next offer tries again."""
        self._opening = False
        offered, self._offered = self._offered, []
        for client, _ in offered:
            self._refuse(client, error)

    def _want(self, client: Any, blobs: dict[str, int]) -> None:
        assert self._here is not None
        wanted = deque((sha, size) for sha, size in blobs.items() if self._here.get(sha) != size)
        self._uploads[client] = _Upload(wanted)
        self._to_client(client, BlobsWanted(tuple(sha for sha, _ in wanted), BLOB_CREDIT_BYTES))

    def _write(self, client: Any, upload: _Upload) -> None:
        if upload.writing or not upload.came:
            return
        message = upload.came.popleft()
        sha256, size_bytes = upload.wanted[0] if upload.wanted else ("", 0)
        if message.sha256 != sha256:
            self._refuse(client, ProtocolError("a file came out of turn"))
            return
        upload.writing = True

        def write() -> None:
            if upload.incoming is None:
                upload.incoming = self._store.receive(sha256, size_bytes)
            upload.incoming.write(message.data)
            if message.last:
                incoming, upload.incoming = upload.incoming, None
                incoming.finish()

        written = partial(self._written, client, upload, message, size_bytes)
        self._thread.run(write, written, partial(self._not_written, client, upload))

    def _written(self, client: Any, upload: _Upload, message: PutBlob, size_bytes: int, _: None) -> None:
        upload.writing = False
        if message.last:
            assert self._here is not None
            if self._holders[message.sha256]:
                self._here[message.sha256] = size_bytes
            else:  # its client went away meanwhile
                self._remove(message.sha256)
        if upload.dropped:
            self._abort(upload)
            return
        if message.last:
            upload.wanted.popleft()
        upload.unwritten_bytes -= len(message.data)
        self._to_client(client, BlobsTaken(len(message.data), not upload.wanted))
        self._write(client, upload)

    def _not_written(self, client: Any, upload: _Upload, error: CortexError) -> None:
        upload.writing = False
        self._abort(upload)
        if not upload.dropped:
            self._refuse(client, error)

    def _abort(self, upload: _Upload) -> None:
        """Remove what is half written, unless it is being written just now: that comes back here."""
        if not upload.writing and upload.incoming is not None:
            incoming, upload.incoming = upload.incoming, None
            self._thread.run(incoming.abort, _ignore, _ignore)

    def _hold(self, owner: Any, blobs: Iterable[str]) -> None:
        self._held_by[owner] = set(blobs)
        self._holders.update(self._held_by[owner])

    def _let_go(self, owner: Any) -> None:
        for sha256 in self._held_by.pop(owner, ()):
            self._holders[sha256] -= 1
            if not self._holders[sha256]:
                del self._holders[sha256]
                if self._here is not None and self._here.pop(sha256, None) is not None:
                    self._remove(sha256)

    def _remove(self, sha256: str) -> None:
        self._thread.run(partial(self._store.remove, sha256), _ignore, _ignore)


def _ignore(_: object) -> None:
    """Nothing follows: what could not be removed is removed when the server starts."""

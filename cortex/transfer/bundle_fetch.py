"""A node's side of what travels with jobs: packages looked for, files fetched, checked and laid out.

For each job once, before its first attempt. What is laid out lies in the job's own folder, read-only, and
goes with it:

    <folder>/file/<name>      side files
    <folder>/module/<path>    modules, importable from there

A blob that has several names is fetched once and linked. Files come several at once, as far as credit
reaches; the disk is written to by one thread. All methods and callbacks are on the reactor's thread.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from cortex.errors import BundleFailed, CortexError, from_report
from cortex.job.bundle import Bundle, check_bundle, folders_of
from cortex.limits import BLOB_CREDIT_BYTES, BLOB_REQUESTS_MAX
from cortex.packages import check_packages
from cortex.storage.blob_store import IncomingBlob
from cortex.transfer.work_thread import WorkThread
from cortex.wire.messages import BlobChunk, BlobLost, BlobTaken, FetchBlob, FromNode

_BLOBS = "blobs"


@dataclass(eq=False)
class _Coming:
    size_bytes: int
    granted_bytes: int
    incoming: IncomingBlob | None = None


@dataclass(eq=False)
class _Fetch:
    job: str
    bundle: Bundle
    folder: str
    sys_path: tuple[str, ...]
    waiting: deque[tuple[str, int]] = field(default_factory=deque)
    coming: dict[str, _Coming] = field(default_factory=dict)
    in_flight_bytes: int = 0
    working: int = 0
    """What the thread has to do for it, done or not."""
    over: bool = False
    gone: Callable[[], None] | None = None


class BundleFetch:
    """`ready(job)` or `failed(job, error)` is called once for each job prepared, unless it is forgotten."""

    def __init__(
        self,
        node: str,
        send: Callable[[FromNode], None],
        thread: WorkThread,
        ready: Callable[[str], None],
        failed: Callable[[str, CortexError], None],
    ) -> None:
        self._node = node
        self._send = send
        self._thread = thread
        self._ready = ready
        self._failed = failed
        self._fetches: dict[str, _Fetch] = {}

    def prepare(self, job: str, bundle: Bundle, folder: str, sys_path: tuple[str, ...]) -> None:
        """Have the job's bundle in `folder`, which is made. Packages are looked for on `sys_path` too."""
        fetch = self._fetches[job] = _Fetch(job, bundle, folder, sys_path)
        self._in_thread(fetch, partial(self._begin, fetch), lambda: self._begun(fetch))

    def forget(self, job: str, gone: Callable[[], None]) -> None:
        """Nothing more is said of the job; `gone()` once nothing more is written for it."""
        fetch = self._fetches.pop(job, None)
        if fetch is None:
            gone()
            return
        self._end(fetch)
        if fetch.working:
            fetch.gone = gone
        else:
            gone()

    def chunk(self, message: BlobChunk) -> None:
        fetch = self._fetches.get(message.job)
        coming = None if fetch is None else fetch.coming.get(message.sha256)
        if fetch is None or coming is None or fetch.over:
            return  # of a job that has ended
        written = partial(self._written, fetch, coming, message)
        self._in_thread(fetch, partial(self._write, fetch, coming, message), written)

    def server_back(self) -> None:
        """After a lost link: what was on its way is asked for again, from its start."""
        for fetch in self._fetches.values():
            if fetch.over or not fetch.coming:
                continue
            for sha256, coming in fetch.coming.items():
                fetch.waiting.appendleft((sha256, coming.size_bytes))
                self._abort(fetch, coming)
            fetch.coming.clear()
            fetch.in_flight_bytes = 0
            self._go_on(fetch)

    def lost(self, message: BlobLost) -> None:
        fetch = self._fetches.get(message.job)
        if fetch is not None:
            self._fail(fetch, from_report(message.error))

    # --- inside: in the thread ---

    def _begin(self, fetch: _Fetch) -> None:
        check_bundle(fetch.bundle)
        check_packages(fetch.bundle.packages, fetch.sys_path, self._node)
        if fetch.bundle.files:
            _on_disk(fetch.folder, partial(_make_folders, fetch.folder, ["", _BLOBS]))

    def _write(self, fetch: _Fetch, coming: _Coming, message: BlobChunk) -> None:
        if fetch.over:
            return
        if coming.incoming is None:
            blobs = os.path.join(fetch.folder, _BLOBS)
            coming.incoming = IncomingBlob(blobs, message.sha256, coming.size_bytes)
        coming.incoming.write(message.data)
        if message.last:
            incoming, coming.incoming = coming.incoming, None
            incoming.finish()

    def _lay_out(self, fetch: _Fetch) -> None:
        if not fetch.over:
            _on_disk(fetch.folder, lambda: lay_out(fetch.bundle, fetch.folder))

    # --- inside: on the reactor's thread ---

    def _in_thread(self, fetch: _Fetch, work: Callable[[], None], done: Callable[[], None]) -> None:
        fetch.working += 1

        def finished(_: None) -> None:
            self._worked(fetch)
            if not fetch.over:
                done()

        def failed(error: CortexError) -> None:
            self._worked(fetch)
            self._fail(fetch, error)

        self._thread.run(work, finished, failed)

    def _worked(self, fetch: _Fetch) -> None:
        fetch.working -= 1
        if fetch.gone is not None and not fetch.working:
            gone, fetch.gone = fetch.gone, None
            gone()

    def _begun(self, fetch: _Fetch) -> None:
        fetch.waiting.extend(fetch.bundle.blobs().items())
        self._go_on(fetch)

    def _go_on(self, fetch: _Fetch) -> None:
        """Ask for as many blobs as there is credit for; at the end give them their names."""
        while fetch.waiting and len(fetch.coming) < BLOB_REQUESTS_MAX:
            sha256, size_bytes = fetch.waiting[0]
            credit_bytes = min(size_bytes, BLOB_CREDIT_BYTES)
            if fetch.coming and fetch.in_flight_bytes + credit_bytes > BLOB_CREDIT_BYTES:
                return
            fetch.waiting.popleft()
            fetch.coming[sha256] = _Coming(size_bytes, credit_bytes)
            fetch.in_flight_bytes += credit_bytes
            self._send(FetchBlob(self._node, fetch.job, sha256, credit_bytes))
        if not fetch.waiting and not fetch.coming:
            if fetch.bundle.files:
                self._in_thread(fetch, partial(self._lay_out, fetch), lambda: self._done(fetch))
            else:
                self._done(fetch)

    def _written(self, fetch: _Fetch, coming: _Coming, message: BlobChunk) -> None:
        if fetch.coming.get(message.sha256) is not coming:
            return  # it is asked for again
        size = len(message.data)
        fetch.in_flight_bytes -= size
        if message.last:
            del fetch.coming[message.sha256]
            self._go_on(fetch)
            return
        more = min(size, coming.size_bytes - coming.granted_bytes)
        if more:
            coming.granted_bytes += more
            fetch.in_flight_bytes += more
            self._send(BlobTaken(self._node, fetch.job, message.sha256, more))

    def _done(self, fetch: _Fetch) -> None:
        self._end(fetch)
        self._ready(fetch.job)

    def _fail(self, fetch: _Fetch, error: CortexError) -> None:
        if not fetch.over:
            self._end(fetch)
            error.details.setdefault("node", self._node)
            self._failed(fetch.job, error)

    def _end(self, fetch: _Fetch) -> None:
        fetch.over = True
        for coming in fetch.coming.values():
            self._abort(fetch, coming)
        fetch.coming.clear()

    def _abort(self, fetch: _Fetch, coming: _Coming) -> None:
        """Close its descriptor, after what was written before; the file goes with the folder."""

        def abort() -> None:
            if coming.incoming is not None:
                incoming, coming.incoming = coming.incoming, None
                incoming.abort()

        fetch.working += 1
        worked = partial(lambda _: self._worked(fetch))
        self._thread.run(abort, worked, worked)


def lay_out(bundle: Bundle, folder: str) -> None:
    """Give every blob in `folder` its names. The folder is new and private, and the names were checked:
    no link can be in the way. Raises OSError."""
    paths = {f"{file.kind}/{file.name}": file.sha256 for file in bundle.files}
    _make_folders(folder, sorted({"file", "module", *folders_of(paths)}))
    for path, sha256 in paths.items():
        os.link(os.path.join(folder, _BLOBS, sha256), os.path.join(folder, path), follow_symlinks=False)
    shutil.rmtree(os.path.join(folder, _BLOBS))


def _make_folders(folder: str, names: Iterable[str]) -> None:
    for name in names:  # each above those in it
        os.mkdir(os.path.join(folder, name), 0o700)


def _on_disk(folder: str, work: Callable[[], None]) -> None:
    try:
        work()
    except OSError as error:
        raise BundleFailed(
            f"the job's files cannot be laid out in {folder}: {error.strerror or error}",
            cure="check that its disk has room, and takes hard links and these names",
        ) from error

"""Where fetched segments of one job lie: beside its run files, private while written, named when whole.

``<work_dir>/<attempt>.p00012.<n>.partial`` becomes ``<work_dir>/<attempt>.p00012.segment`` in one
rename, after its size and footer were found right, and ``….<n>.used`` in another, before it is removed.
No NumPy and no Arrow: the node fetches; executors read through `MapOutputStore`.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

from cortex.errors import CortexError
from cortex.storage.file_names import segment_path
from cortex.storage.filesystem import Filesystem, is_disk_full
from cortex.storage.run_format import corrupt
from cortex.storage.segment_file import check_segment
from cortex.storage.spill_quota import SpillQuota, spill_full


class FetchedSegments:
    """Use from any thread; each `IncomingSegment` from one at a time. The folder is the caller's."""

    def __init__(self, fs: Filesystem, work_dir: str, quota: SpillQuota | None = None) -> None:
        self.work_dir = work_dir
        self._fs = fs
        self._quota = quota or SpillQuota(fs, work_dir)
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    def create(
        self, attempt: str, partition: int, size_bytes: int, members: tuple[str, ...] = ()
    ) -> IncomingSegment:
        """A new private file for a segment of `size_bytes`. A stuck earlier try does not hinder it.
        `members`: the attempts that it stands for, of which `attempt` is the first, if it was combined."""
        path = segment_path(self.work_dir, attempt, partition)
        with self._lock:
            number = next(self._numbers)
        partial = segment_path(self.work_dir, attempt, partition, f"{number}.partial")
        return IncomingSegment(self._fs, self, partial, path, partition, size_bytes, members)

    def set_aside(self, attempt: str, partition: int) -> str:
        """Take a committed segment's name from it, so that it may be fetched again; "" if there is none.
        Quick. What is returned is for `remove`, which may not be."""
        path = segment_path(self.work_dir, attempt, partition)
        if not self._fs.exists(path):
            return ""
        with self._lock:
            number = next(self._numbers)
        aside = segment_path(self.work_dir, attempt, partition, f"{number}.used")
        self._fs.rename(path, aside)
        return aside

    def remove(self, aside: str) -> None:
        if self._fs.exists(aside):  # not with the whole job
            self._fs.unlink(aside)

    def take(self, wanted_bytes: int) -> None:
        """Room for bytes about to be written. Raises SpillFull."""
        with self._lock:
            self._quota.take(wanted_bytes)


class IncomingSegment:
    """A segment being received. Owns its private file until `commit` or `abort`.

    Raises SpillFull when the disk is full, and lets any other OSError through; after an error `abort`
    leaves nothing behind.
    """

    def __init__(
        self,
        fs: Filesystem,
        store: FetchedSegments,
        partial: str,
        path: str,
        partition: int,
        size_bytes: int,
        members: tuple[str, ...],
    ) -> None:
        self.path = path
        self._fs = fs
        self._store = store
        self._partial = partial
        self._partition = partition
        self._size_bytes = size_bytes
        self._members = members
        self._written_bytes = 0
        try:
            self._file = fs.create(partial)
        except OSError as error:
            raise self._full(error, 0) from error

    def write(self, pieces: Sequence[bytes]) -> None:
        size = sum(map(len, pieces))
        self._store.take(size)
        try:
            self._file.write_all(pieces)
        except OSError as error:
            raise self._full(error, size) from error
        self._written_bytes += size

    def commit(self) -> int:
        """Check what was received and give it its name; its rows. Raises CorruptRun, then `abort`."""
        try:
            self._file.close()
        except OSError as error:
            raise self._full(error, 0) from error
        if self._written_bytes != self._size_bytes:
            raise corrupt(self.path, f"{self._written_bytes} bytes came of {self._size_bytes}")
        rows = check_segment(self._fs, self._partial, self._partition, self._members)
        self._fs.rename(self._partial, self.path)
        return rows

    def abort(self) -> None:
        """Close and remove the private file. Safe to call twice, and after a failure."""
        try:
            self._file.close()
        finally:
            if self._fs.exists(self._partial):
                self._fs.unlink(self._partial)

    def _full(self, error: OSError, size: int) -> CortexError | OSError:
        """SpillFull when that is what it is, else the error itself."""
        if is_disk_full(error):
            return spill_full(self._store.work_dir, size, None, str(error))
        return error

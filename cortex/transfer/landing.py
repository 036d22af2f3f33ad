"""A segment on its way to the disk: its bytes are gathered, written in a thread, checked and committed.

At most one thread works for a landing at a time, so its bytes are written in order; several landings
are written at once. What is received and not yet written counts in `Inflight`, which says when it is
too much. All but what threads do is called on the reactor's thread.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable

from cortex.errors import CortexError, InternalError, SpillFailed
from cortex.storage.fetched_segments import FetchedSegments, IncomingSegment

_OWN_BYTES = 2048  # of a landing itself, while all it waits for is the disk: many small segments may


class Inflight:
    """Counts bytes received and not yet on disk. At `bytes_max` it calls `pause`, at half of it `resume`."""

    def __init__(self, bytes_max: int, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._bytes_max = bytes_max
        self._pause = pause
        self._resume = resume
        self.full = False
        self.held_bytes = 0
        self.peak_bytes = 0

    def take(self, size_bytes: int) -> None:
        self.held_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        if self.held_bytes >= self._bytes_max:
            self.full = True
            self._pause()  # each time: a connection may be new

    def give(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes
        if self.full and self.held_bytes <= self._bytes_max // 2:
            self.full = False
            self._resume()


class Landing:
    """One segment of `size_bytes`, standing for `members` if it is combined. `settled()` is called once, when
    no thread works for it any more and its file is committed (`rows` is set), or removed (`error` is set and
    all bytes came, or it was abandoned)."""

    def __init__(
        self,
        store: FetchedSegments,
        attempt: str,
        partition: int,
        size_bytes: int,
        *,
        members: tuple[str, ...] = (),
        batch_bytes: int,
        inflight: Inflight,
        in_thread: Callable[..., None],
        from_thread: Callable[..., None],
        settled: Callable[[], None],
    ) -> None:
        self.size_bytes = size_bytes
        self.missing_bytes = size_bytes
        """Not yet received."""
        self.rows = 0
        self.error: CortexError | None = None
        self.abandoned = False
        self._store = store
        self._attempt = attempt
        self._partition = partition
        self._members = members
        self._batch_bytes = batch_bytes
        self._inflight = inflight
        self._in_thread = in_thread
        self._from_thread = from_thread
        self._settled = settled
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._working = False
        self._ended = False
        self._incoming: IncomingSegment | None = None

    def add(self, data: bytes) -> None:
        """The next bytes, no more than are missing; `write_on` follows. Dropped once something went wrong."""
        self.missing_bytes -= len(data)
        if self.error is None:
            self._pieces.append(data)
            self._pieces_bytes += len(data)
            self._inflight.take(len(data))
        if not self.missing_bytes:
            self._inflight.take(_OWN_BYTES)

    def write_on(self, now: bool = False) -> None:
        """Have written what is there, if it is enough, or `now`; for a segment without bytes, too."""
        if self._working or self._ended or self.abandoned:
            return
        whole = not self.missing_bytes
        if self.error is not None:
            if whole:
                self._end()
        elif whole or self._pieces_bytes >= (1 if now else self._batch_bytes):
            pieces, self._pieces, size, self._pieces_bytes = self._pieces, [], self._pieces_bytes, 0
            self._working = True
            self._in_thread(self._write, pieces, size, whole)

    def abandon(self) -> None:
        """Nothing of it is wanted any more."""
        if self.abandoned or self._ended:
            return
        self.abandoned = True
        self._drop_pieces()
        if not self._working:
            self._remove()

    # --- inside: in a thread ---

    def _write(self, pieces: list[bytes], size_bytes: int, whole: bool) -> None:
        rows, error = 0, None
        try:
            if self._incoming is None:
                self._incoming = self._store.create(
                    self._attempt, self._partition, self.size_bytes, self._members
                )
            if pieces:
                self._incoming.write(pieces)
            if whole:
                rows = self._incoming.commit()
        except CortexError as caught:
            error = caught
        except OSError as caught:
            error = SpillFailed(
                f"a fetched segment could not be written in {self._store.work_dir}: {caught}",
                cure="check the disk of that folder, or name another in CORTEX_SPILL_DIRS",
            )
        except Exception as caught:
            error = InternalError(str(caught), details={"traceback": traceback.format_exc()})
        if error is not None:
            self._abort()
        del pieces
        self._from_thread(self._written, size_bytes, whole and error is None, rows, error)

    def _abort(self) -> None:
        if self._incoming is not None:
            with contextlib.suppress(OSError):  # the folder is removed with the job
                self._incoming.abort()
            self._incoming = None

    # --- inside: on the reactor's thread ---

    def _written(self, size_bytes: int, committed: bool, rows: int, error: CortexError | None) -> None:
        self._working = False
        self._inflight.give(size_bytes)
        if error is not None:
            self.error = error
            self._drop_pieces()
        if committed:
            self.rows = rows
            self._end()
        elif self.abandoned:
            self._remove()
        else:
            self.write_on(now=self._inflight.full)

    def _remove(self) -> None:
        """Have the private file removed, if there is one."""
        if self._incoming is None:
            self._end()
            return

        def remove() -> None:
            self._abort()
            self._from_thread(self._end)

        self._working = True
        self._in_thread(remove)

    def _drop_pieces(self) -> None:
        self._pieces = []
        size, self._pieces_bytes = self._pieces_bytes, 0
        self._inflight.give(size)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            if not self.missing_bytes:
                self._inflight.give(_OWN_BYTES)
            self._settled()

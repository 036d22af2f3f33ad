"""A node's part in the shuffle: it serves its map outputs, and brings a reduce's inputs before it runs.

A reduce takes a slot only when all its segments are here, or reduces that wait would fill the slots that
a lost map needs. What ran on this node is read in place and never passes here.

All methods and callbacks are on the reactor's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from cortex.errors import CortexError
from cortex.transfer.fetch_queue import Wanted
from cortex.transfer.segment_fetcher import SegmentFetcher
from cortex.transfer.segment_server import SegmentServer

Key = tuple[str, int]
"""(map attempt, partition)."""


@dataclass(eq=False)
class _Waiting:
    attempt: str
    job: str
    missing: set[Key] = field(default_factory=set)


class ShuffleAgent:
    """`fetcher(landed, failed)` makes the fetcher. `ready(attempt)`: its inputs are all here;
    `failed(attempt, error)`: one of them cannot be had. One of the two is called for every attempt that
    `bring` did not answer at once, unless it is forgotten."""

    def __init__(
        self,
        server: SegmentServer,
        fetcher: Callable[[Any, Any], SegmentFetcher],
        ready: Callable[[str], None],
        failed: Callable[[str, CortexError], None],
    ) -> None:
        self._server = server
        self._fetcher = fetcher(self._landed, self._lost)
        self._ready = ready
        self._failed = failed
        self._waiting: dict[str, _Waiting] = {}
        self._wanting: dict[Key, set[str]] = {}
        """Segments on their way -> the attempts that wait for them."""
        self._here: dict[str, set[Key]] = {}
        """Job -> segments that have landed."""

    def open_job(self, job: str, folder: str) -> None:
        self._server.register_job(job, folder)
        self._fetcher.open_job(job, folder)
        self._here[job] = set()

    def bring(self, job: str, attempt: str, segments: Iterable[Wanted]) -> bool:
        """Have these segments here. True when they are already."""
        missing = {each.key: each for each in segments if each.key not in self._here[job]}
        if not missing:
            return True
        self._waiting[attempt] = _Waiting(attempt, job, set(missing))
        new = [wanted for key, wanted in missing.items() if key not in self._wanting]
        for key in missing:
            self._wanting.setdefault(key, set()).add(attempt)
        self._fetcher.fetch(new)
        return False

    def forget(self, attempt: str) -> None:
        """The attempt is revoked or over; what is on its way for it still comes."""
        waiting = self._waiting.pop(attempt, None)
        if waiting is not None:
            for key in waiting.missing & self._wanting.keys():
                self._wanting[key].discard(attempt)

    def peer_lost(self, holder: str, error: CortexError) -> None:
        self._fetcher.holder_lost(holder, error)

    def close_job(self, job: str, gone: Callable[[], None]) -> None:
        """`gone()` when no thread works in the job's folder any more."""
        self._server.unregister_job(job)
        for attempt in [each.attempt for each in self._waiting.values() if each.job == job]:
            self.forget(attempt)
        prefix = f"{job}-"
        for key in [key for key in self._wanting if key[0].startswith(prefix)]:
            del self._wanting[key]
        self._here.pop(job, None)
        self._fetcher.cancel(job, gone)

    def stop(self, gone: Callable[[], None]) -> None:
        """Cut every peer off; `gone()` when nothing is read or written any more."""
        self._waiting.clear()
        self._wanting.clear()
        left = 2

        def one_gone() -> None:
            nonlocal left
            left -= 1
            if not left:
                gone()

        self._fetcher.stop(one_gone)
        self._server.stop(one_gone)

    # --- what the fetcher says ---

    def _landed(self, wanted: Wanted, _size_bytes: int, _rows: int) -> None:
        if wanted.job in self._here:
            self._here[wanted.job].add(wanted.key)
        for attempt in sorted(self._wanting.pop(wanted.key, ())):
            waiting = self._waiting[attempt]
            waiting.missing.discard(wanted.key)
            if not waiting.missing:
                del self._waiting[attempt]
                self._ready(attempt)

    def _lost(self, wanted: Wanted, error: CortexError) -> None:
        for attempt in sorted(self._wanting.pop(wanted.key, ())):
            self.forget(attempt)
            self._failed(attempt, error)

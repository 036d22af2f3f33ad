"""What a node's spilled data takes, measured every few seconds, and the account that writers take from.

All that lies in the node's spill folders counts: run files, fetched segments, parts of results, files that
travel with jobs, and logs. The limit is the quota, and never more than what leaves SPILL_RESERVE_BYTES free
on the disks, whoever else writes there.

The folders are walked in a thread of its own, seldom enough to cost a twentieth of a processor at most.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from cortex.limits import SPILL_MEASURE_S, SPILL_RESERVE_BYTES
from cortex.node.spill_folders import free_bytes
from cortex.storage.spill_account import SpillAccount
from cortex.storage.spill_quota import spill_full

_log = Logger()
_ACCOUNT = "spill.account"
_RESTS_PER_WALK = 20


class SpillMeter:
    """`folders` are the node's own; `quota_bytes` 0: no more than the disks take. `free_bytes(folders)` is
    what those have free together, -1 unknown. Made, started and stopped on the reactor's thread. Raises
    SpillFull."""

    def __init__(
        self,
        reactor: Any,
        folders: Sequence[str],
        quota_bytes: int = 0,
        free_bytes: Callable[[Sequence[str]], int] = free_bytes,
    ) -> None:
        self._reactor = reactor
        self._folders = tuple(folders)
        self._quota_bytes = quota_bytes
        self._free_bytes = free_bytes
        self._pool = ThreadPool(0, 1, name="measure-spilled")
        self._timer: Any = None
        self._stopping = False
        self.account_path = os.path.join(self._folders[0], _ACCOUNT)
        self.used_bytes = 0
        self.limit_bytes = self._limit(0)
        """All that may lie there."""
        try:
            self._account = SpillAccount.create(self.account_path, self.limit_bytes)
        except OSError as error:
            raise spill_full(self._folders[0], 0, None, str(error)) from error

    def start(self) -> None:
        self._pool.start()
        self._timer = self._reactor.callLater(SPILL_MEASURE_S, self._measure)

    def stop(self) -> None:
        """Begin to stop; `join` ends it."""
        self._stopping = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def join(self) -> None:
        """Wait for a walk under way: not on the reactor's thread."""
        self._pool.stop()
        self._account.close()

    def _limit(self, used_bytes: int) -> int:
        free = self._free_bytes(self._folders)
        room = used_bytes + max(0, free - SPILL_RESERVE_BYTES) if free >= 0 else used_bytes
        return min(room, self._quota_bytes) if self._quota_bytes else room

    def _measure(self) -> None:
        self._pool.callInThread(self._walk)

    def _walk(self) -> None:
        """In the thread."""
        began = time.monotonic()
        try:
            used = spilled_bytes(self._folders)
            limit = self._limit(used)
            self._account.set_left(limit - used)
        except Exception:  # the folder is gone with its disk: attempts say so; here nothing is known
            _log.failure("spilled data could not be measured")
            used, limit = self.used_bytes, self.limit_bytes
        self._reactor.callFromThread(self._measured, used, limit, time.monotonic() - began)

    def _measured(self, used_bytes: int, limit_bytes: int, seconds: float) -> None:
        self.used_bytes, self.limit_bytes = used_bytes, limit_bytes
        if not self._stopping:
            rest_s = max(SPILL_MEASURE_S, _RESTS_PER_WALK * seconds)
            self._timer = self._reactor.callLater(rest_s, self._measure)


def spilled_bytes(folders: Iterable[str]) -> int:
    """Of all files below; those that go meanwhile are not counted, nor what links point to."""
    total, waiting = 0, list(folders)
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
    return total

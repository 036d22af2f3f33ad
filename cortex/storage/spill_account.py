"""How much a node may still spill: one number, shared by the processes that spill, in a small locked file.

Who is about to write takes from it, in portions; the node, which measures what lies there, sets it anew every
few seconds. What was taken and not yet written when it is set is forgotten, so the node may hold a portion
more for each writer than it should; what is removed counts as free from the next measure on.

    <path>    8 bytes, little-endian: bytes left
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator

from cortex.limits import SPILL_CHECK_BYTES, SPILL_PORTION_FRACTION

_LEFT = struct.Struct("<q")


class SpillAccount:
    """The account at `path`, of a file that `create` made. Each thread and process has its own object, or a
    lock around it. Raises OSError when the file is gone."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    @classmethod
    def create(cls, path: str, left_bytes: int) -> SpillAccount:
        """A new account, in a folder of the caller's own."""
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        account = cls(path)
        account.set_left(left_bytes)
        return account

    def take(self, wanted_bytes: int) -> int:
        """Room for `wanted_bytes`, and for some that will be written next: how many in all. 0: there is none,
        and nothing was taken."""
        with self._locked():
            left = self._left()
            if left < wanted_bytes:
                return 0
            ahead = min(SPILL_CHECK_BYTES, int((left - wanted_bytes) * SPILL_PORTION_FRACTION))
            granted = max(1, wanted_bytes, ahead)
            os.pwrite(self._descriptor, _LEFT.pack(left - granted), 0)
            return granted

    def set_left(self, left_bytes: int) -> None:
        with self._locked():
            os.pwrite(self._descriptor, _LEFT.pack(left_bytes), 0)

    def left(self) -> int:
        with self._locked():
            return self._left()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _left(self) -> int:
        (left,) = _LEFT.unpack(os.pread(self._descriptor, _LEFT.size, 0).ljust(_LEFT.size, b"\0"))
        return int(left)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

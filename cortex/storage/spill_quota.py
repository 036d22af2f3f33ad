"""Room for spilled data: asked for before it is written, so that a full disk is met with space left.

A disk at zero bytes stops more than this job (journals, logs, the user's editor), and a write that
fails in its middle leaves nothing to say so with: the last `SPILL_RESERVE_BYTES` are never taken. A node of a
cluster has a quota as well, of all its jobs together (`spill_account`).
"""

from __future__ import annotations

import os

from cortex.errors import SpillFailed, SpillFull
from cortex.limits import SPILL_CHECK_BYTES, SPILL_RESERVE_BYTES
from cortex.storage.filesystem import Filesystem
from cortex.storage.spill_account import SpillAccount
from cortex.units import format_bytes


def spill_full(folder: str, wanted_bytes: int, free_bytes: int | None, cause: str = "") -> SpillFull:
    """The error for a spill that found no room."""
    return SpillFull(
        f"no space to spill {format_bytes(wanted_bytes)} in {folder}",
        cure="free space there, name a folder on a larger disk in CORTEX_SPILL_DIRS, or give more --memory "
        "so that less is spilled",
        details={
            "folder": folder,
            "bytes": wanted_bytes,
            "free": None if free_bytes is None else format_bytes(free_bytes),
            "cause": cause,
        },
    )


class SpillQuota:
    """Checks the disk under `folder` once every `SPILL_CHECK_BYTES` written through `take`. `account` is the
    path of the node's `SpillAccount`; "": there is none."""

    def __init__(
        self,
        fs: Filesystem,
        folder: str,
        reserve_bytes: int = SPILL_RESERVE_BYTES,
        account: str = "",
    ) -> None:
        self._account_path = account
        self._account: SpillAccount | None = None
        self._fs = fs
        self._folder = os.path.abspath(folder)
        self._reserve_bytes = reserve_bytes
        self._granted_bytes = 0

    def take(self, wanted_bytes: int) -> None:
        """Before writing `wanted_bytes`. Raises SpillFull when they would reach into the reserve, or go
        beyond the node's quota; SpillFailed when the quota cannot be read."""
        if wanted_bytes <= self._granted_bytes:
            self._granted_bytes -= wanted_bytes
            return
        grant = max(wanted_bytes, SPILL_CHECK_BYTES)
        free = self._fs.free_bytes(self._folder)
        if free - self._reserve_bytes < wanted_bytes:
            raise spill_full(
                self._folder, wanted_bytes, free, f"{format_bytes(self._reserve_bytes)} are kept free"
            )
        grant = min(grant, free - self._reserve_bytes)
        if self._account_path:
            grant = min(grant, self._of_account(wanted_bytes))
        self._granted_bytes = grant - wanted_bytes

    def _of_account(self, wanted_bytes: int) -> int:
        try:
            if self._account is None:
                self._account = SpillAccount(self._account_path)
            granted = self._account.take(wanted_bytes)
            left = 0 if granted else max(0, self._account.left())
        except OSError as error:
            raise SpillFailed(
                f"what the node may still spill cannot be read from {self._account_path}: {error.strerror}",
                cure="check the disk of that folder, and start the node again",
            ) from error
        if not granted:
            said = f"the node's quota is used up: {format_bytes(left)} are left of it"
            full = spill_full(self._folder, wanted_bytes, None, said)
            full.cure = (
                "raise the node's --spill-quota, wait until other jobs have ended, drop results that nobody"
                " needs (cortex forget ID), or give more --memory so that less is spilled"
            )
            raise full
        return granted

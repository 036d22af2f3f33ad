"""Room for spilled data: asked for before it is written, so that a full disk is met with space left.

A disk at zero bytes stops more than this job (journals, logs, the user's editor), and a write that
fails in its middle leaves nothing to say so with: the last `SPILL_RESERVE_BYTES` are never taken. A node of a
cluster has a quota as well, of all its jobs together (`spill_account`).
"""

from __future__ import annotations

import os

from cortex.errors import SpillFull
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
        self._account = SpillAccount(account) if account else None
        self._fs = fs
        self._folder = os.path.abspath(folder)
        self._reserve_bytes = reserve_bytes
        self._granted_bytes = 0

    def take(self, wanted_bytes: int) -> None:
        """Before writing `wanted_bytes`. Raises SpillFull when they would reach into the reserve, or go
        beyond the node's quota."""
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
        if self._account is not None:
            grant = min(grant, self._of_account(self._account, wanted_bytes))
        self._granted_bytes = grant - wanted_bytes

    def _of_account(self, account: SpillAccount, wanted_bytes: int) -> int:
        granted = account.take(wanted_bytes)
        if not granted:
            said = f"the node's quota is used up: {format_bytes(max(0, account.left()))} are left of it"
            error = spill_full(self._folder, wanted_bytes, None, said)
            error.cure = (
                "raise the node's --spill-quota, wait until other jobs have ended, or give more --memory so"
                " that less is spilled"
            )
            raise error
        return granted

"""How attempts ended here, told to the server, and kept until it needs to hear it no more.

Where the server may die before it has written an end down (`keep`), each is told again at every hello, in the
order in which they came, until the server says ReportsKept, or the attempt counts for nothing any more. With
it goes the `version` of what it was made from, by which a server that knows a later one drops it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from cortex.errors import Fault, SpillFull
from cortex.wire.messages import (
    AttemptFailed,
    AttemptFinished,
    FromNode,
    MapResult,
    ReduceResult,
    TaskFailed,
    TaskFinished,
)


class EndReports:
    """`one_of_many`: other nodes may have the room on their disks that is missing here."""

    def __init__(
        self,
        node: str,
        incarnation: Callable[[], str],
        send: Callable[[FromNode], None],
        *,
        keep: bool,
        one_of_many: bool,
    ) -> None:
        self._node = node
        self._incarnation = incarnation
        self._send = send
        self._keep = keep
        self._one_of_many = one_of_many
        self._reports: dict[str, tuple[AttemptFinished | AttemptFailed, int]] = {}
        """Those that were not acknowledged, in order, each with its version."""
        self.finished = self.failed = self.spilled_bytes = 0
        """Over the node's life."""

    def tell(self, ended: TaskFinished | TaskFailed, version: int) -> None:
        report: AttemptFinished | AttemptFailed
        if isinstance(ended, TaskFinished):
            report = AttemptFinished(self._node, self._incarnation(), ended)
            self.finished += 1
            if isinstance(ended.result, MapResult | ReduceResult):
                self.spilled_bytes += ended.result.stats.spilled_bytes
        else:
            self.failed += 1
            report = AttemptFailed(self._node, self._incarnation(), self._elsewhere(ended))
        if self._keep:
            self._reports[ended.attempt] = report, version
        self._send(report)

    def tell_again(self) -> None:
        for report, _ in self._reports.values():
            self._send(report)

    def versions(self) -> dict[str, int]:
        return {attempt: version for attempt, (_, version) in self._reports.items()}

    def drop(self, attempts: Iterable[str]) -> None:
        """The server has them, or wants none of them."""
        for attempt in attempts:
            self._reports.pop(attempt, None)

    def drop_job(self, job: str) -> None:
        self.drop([attempt for attempt in self._reports if attempt.startswith(f"{job}-")])

    def _elsewhere(self, failed: TaskFailed) -> TaskFailed:
        """No room here ends the job where this is the only node for good; another may have some."""
        if not self._one_of_many or failed.error.code != SpillFull.code:
            return failed
        details = {"node": self._node, **failed.error.details}
        error = msgspec.structs.replace(failed.error, details=details, fault=Fault.TASK.value)
        return msgspec.structs.replace(failed, error=error)

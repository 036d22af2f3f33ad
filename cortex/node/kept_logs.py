"""What a job's code wrote, at a node: the ends of its executors' logs, for whoever asks.

An executor serves one job, and what its code prints goes to its log. When it ends, the last lines are kept
for as long as there is room for them; of executors that live they are read when somebody asks. Pure but for
`cortex.node.executor_deaths.tail`, which its caller uses.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from cortex.limits import JOB_LOG_BYTES, LOGS_BYTES_MAX


class KeptLogs:
    """A node's memory of what executors wrote that have ended: of each job the end, and of the last jobs."""

    def __init__(self, bytes_max: int = LOGS_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._of: OrderedDict[str, str] = OrderedDict()

    def add(self, job: str, executor: int, text: str) -> None:
        """`text` is what executor number `executor` wrote last."""
        if not text:
            return
        old = self._of.pop(job, "")
        new = joined([old, headed(executor, text)])[-JOB_LOG_BYTES:]
        self._of[job] = new
        self._bytes += len(new) - len(old)
        while self._bytes > self._bytes_max:
            _, gone = self._of.popitem(last=False)
            self._bytes -= len(gone)

    def of(self, job: str) -> str:
        return self._of.get(job, "")


def headed(executor: int, text: str) -> str:
    return f"--- executor {executor}\n{text}" if text else ""


def joined(texts: Iterable[str]) -> str:
    return "\n".join(text for text in texts if text)

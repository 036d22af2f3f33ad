"""cortex: MapReduce over files larger than memory, in plain Python.

`MapReduceJob` is the job as a class, `Result` what its `run` returns, `Row` a tabular record; `Client` calls
functions on this machine or a cluster (`CallError`, `CallCounts`) and is a cluster to run jobs on,
`LocalCluster` one of this machine's processes, `JobHandle` a job that is on one. `file` gives a task the path
of one of the job's side files. Errors are `CortexError` subclasses (`cortex.errors`).
Everything is imported on first use, so that the command line starts quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cortex.version import VERSION

if TYPE_CHECKING:
    from cortex.api import Counter, MapReduceJob
    from cortex.calls import CallCounts
    from cortex.client.call_errors import CallError
    from cortex.clusters import Client, LocalCluster
    from cortex.errors import CortexError
    from cortex.job.row import Row
    from cortex.job_handle import JobHandle
    from cortex.result import Result
    from cortex.side_files import path_of as file

__version__ = VERSION
__all__ = [
    "CallCounts", "CallError", "Client", "CortexError", "Counter", "JobHandle", "LocalCluster",
    "MapReduceJob", "Result", "Row", "__version__", "file",
]  # fmt: skip

_HOMES = {
    "CallCounts": "cortex.calls",
    "CallError": "cortex.client.call_errors",
    "Client": "cortex.clusters",
    "Counter": "cortex.api",
    "CortexError": "cortex.errors",
    "JobHandle": "cortex.job_handle",
    "LocalCluster": "cortex.clusters",
    "MapReduceJob": "cortex.api",
    "Result": "cortex.result",
    "Row": "cortex.job.row",
    "file": "cortex.side_files",
}
_OTHER_NAMES = {"file": "path_of"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cortex' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), _OTHER_NAMES.get(name, name))
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

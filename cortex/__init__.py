"""cortex: MapReduce over files larger than memory, in plain Python.

`MapReduceJob` is the job as a class, `Result` what its `run` returns, `Row` a tabular record; `Client` is a
cluster to run it on, `LocalCluster` one of this machine's processes. Errors are
`CortexError` subclasses (`cortex.errors`). Everything is imported on first use, so that the command line
starts quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cortex.api import Counter, MapReduceJob
    from cortex.clusters import Client, LocalCluster
    from cortex.errors import CortexError
    from cortex.job.row import Row
    from cortex.result import Result

__version__ = "0.1.0"
__all__ = [
    "Client", "CortexError", "Counter", "LocalCluster", "MapReduceJob", "Result", "Row", "__version__",
]  # fmt: skip

_HOMES = {
    "Client": "cortex.clusters",
    "Counter": "cortex.api",
    "CortexError": "cortex.errors",
    "LocalCluster": "cortex.clusters",
    "MapReduceJob": "cortex.api",
    "Result": "cortex.result",
    "Row": "cortex.job.row",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cortex' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

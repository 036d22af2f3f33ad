"""Keep pyarrow from importing pandas for cortex's own conversions.

`pyarrow.array(...)` imports pandas wherever it is installed, to know its scalars and Series when it
sees one: 45 MB and half a second of processor time in every executor, for jobs that have nothing to
do with pandas. (Where it is not installed, every call searches sys.path for it again.) After
`defer_pandas` an import of pandas that comes out of a pyarrow call in cortex's own code finds
nothing. Everyone else's finds it: the job's code, its libraries, and unpickling; pyarrow is told in
the same moment, so that a Series is a Series there (nulls for NaN and all).

One thing is lost: pyarrow's C++ part asks once in a process. Code that imports pandas only inside a
function, after cortex has converted something, cannot make an array from a *list* with `pandas.NA` or
`NaT` in it; pyarrow raises an error then. Imported at the top of the job's file, pandas comes first.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import FrameType, ModuleType
from typing import Any, cast

_CORTEX = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def _pyarrow() -> str:
    file = getattr(sys.modules.get("pyarrow"), "__file__", None)
    return os.path.dirname(file) + os.sep if file else "<frozen importlib"


def _asked_by_cortex(frame: FrameType | None) -> bool:
    """Whether the import comes out of a C call made in cortex's own code, and is not unpickling's."""
    # pyarrow.compute's functions are Python too: it is their caller that asks
    while frame is not None and frame.f_code.co_filename.startswith(("<frozen importlib", _pyarrow())):
        frame = frame.f_back
    if frame is None or not frame.f_code.co_filename.startswith(_CORTEX):
        return False
    code = frame.f_code
    return not any("load" in name for name in (*code.co_names, *code.co_varnames, *code.co_freevars))


# A loader and a finder by what they do: their base classes (importlib.abc) import tempfile and more.


class _TellingLoader:
    """Loads pandas by its own loader, then has pyarrow take notice and steps aside."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._own.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._own
        self._own.exec_module(module)
        import pyarrow

        _ = pyarrow.lib._pandas_api.pd  # looks again, and this time it finds it


class _PandasWatch:
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "pandas":
            return None
        if _asked_by_cortex(sys._getframe(1)):
            raise ModuleNotFoundError("pandas is imported when the job's code needs it", name=name)
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)  # not there; the job's sys.path may have it later
            return None
        spec.loader = cast(Any, _TellingLoader(spec.loader))
        return spec


def defer_pandas() -> None:
    """Call once, before anything has been converted. Does nothing if pandas is already imported."""
    if "pandas" in sys.modules:
        return
    import numpy
    import pyarrow

    sys.meta_path.insert(0, _PandasWatch())
    pyarrow.array(numpy.zeros(1))  # pyarrow's Python part asks once, and remembers

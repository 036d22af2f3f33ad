"""What a job may take along: the rules for `files`, `modules` and `env`, whether in job.yaml or in a class.

Each function gives (what is wrong, cure) or None; where that is shown is the caller's.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from cortex.job.bundle import name_problem

Problem = tuple[str, str]

_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_AT_START: Final = "it is read when a process starts, and executors have started by then"
_LIMITS: Final = "cortex sets it, so that memory limits hold"
_THREADS: Final = "cortex runs one thread a slot"
_FIXED_PREFIXES: Final = {
    "CORTEX_": "it is cortex's own, and never reaches executors",
    "LD_": _AT_START,
    "DYLD_": _AT_START,
    "PYTHON": _AT_START,
    "MALLOC_": _LIMITS,
}
_FIXED: Final = {
    "GLIBC_TUNABLES": _AT_START,
    "ARROW_DEFAULT_MEMORY_POOL": _LIMITS,
    "JE_ARROW_MALLOC_CONF": _LIMITS,
    "ARROW_IO_THREADS": _THREADS,
    "OMP_NUM_THREADS": _THREADS,
    "OPENBLAS_NUM_THREADS": _THREADS,
    "MKL_NUM_THREADS": _THREADS,
    "NUMEXPR_NUM_THREADS": _THREADS,
    "VECLIB_MAXIMUM_THREADS": _THREADS,
}
_CURES: Final = {
    "PYTHONPATH": "list modules under `modules`",
    "PYTHONHASHSEED": "leave it out: it is 0, so that sets iterate alike in every attempt",
}
NODE_MODULES: Final = frozenset(
    ("cortex", "pyarrow", "numpy", "cloudpickle", "msgspec", "xxhash", "yaml", "twisted", "cryptography")
)
"""Modules that executors and their node run on: another of the name would take their place."""


def env_problem(name: str, value: str) -> Problem | None:
    if not _ENV_NAME.fullmatch(name):
        return f"{name!r} is no name of a variable", "write letters, digits and _"
    if "\0" in value:
        return f"the value of {name} has a zero byte", "write text"
    reason = _FIXED.get(name) or next((r for p, r in _FIXED_PREFIXES.items() if name.startswith(p)), "")
    if not reason:
        return None
    cure = "raise --slots instead" if reason == _THREADS else "leave it out"
    return f"{name} cannot be set by a job: {reason}", _CURES.get(name, cure)


def file_problem(name: str, path: str) -> Problem | None:
    """`name` as the tasks will ask for it; `path` absolute."""
    wrong = name_problem(name)
    if wrong:
        return f"a file cannot be named {name!r}: {wrong}", "write a name such as stopwords.txt"
    return _missing(path)


def module_problem(path: str) -> Problem | None:
    """`path` of a .py file or of a package's folder, absolute."""
    missing = _missing(path)
    if missing:
        return missing
    name = module_name(path)
    if os.path.isfile(path) and not path.endswith(".py"):
        return f"{path} is no module", "name a .py file or a package's folder; other files go under `files`"
    if not name.isidentifier():
        return f"{os.path.basename(path)} cannot be imported: {name!r} is no identifier", "rename it"
    if name in sys.stdlib_module_names or name in NODE_MODULES:
        return f"a module named {name} would hide the one that executors need", "rename it"
    if os.path.isdir(path) and not any(n.endswith(".py") for _, _, names in os.walk(path) for n in names):
        return f"{path} has no .py file in it", "name a package's folder; data goes under `files`"
    return None


def module_name(path: str) -> str:
    """What a listed module is imported as."""
    name = os.path.basename(os.path.normpath(path))
    return name.removesuffix(".py")


def default_name(path: str) -> str:
    """The name of a side file that was given none."""
    return os.path.basename(os.path.normpath(path))


def taken_twice(names: Iterable[str]) -> list[str]:
    """Names that come more than once, or that one lies in as in a folder."""
    seen: list[str] = []
    twice: list[str] = []
    for name in names:
        if any(name == other or f"{name}/".startswith(f"{other}/") or f"{other}/".startswith(f"{name}/")
               for other in seen):  # fmt: skip
            twice.append(name)
        seen.append(name)
    return twice


def _missing(path: str) -> Problem | None:
    if os.path.exists(path):
        return None
    folder, name = os.path.split(path)
    try:
        near = get_close_matches(name, os.listdir(folder), 1, 0.6)
    except OSError:
        near = []
    return f"there is no {path}", f"did you mean {near[0]}?" if near else "check the path"

"""Which modules this Python can import, without importing one: for the packages that a job needs.

A client notes those that it can find itself; a node that cannot find one of them says so before it runs
anything of the job.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
from collections.abc import Iterable, Sequence

from cortex.errors import PackageMissing
from cortex.job.bundle import Package


def find(module: str, sys_path: Sequence[str] = ()) -> importlib.machinery.ModuleSpec | None:
    """Where `module` (dotted or not) would be imported from, looked for on `sys_path` first; no package
    above it is imported."""
    path: Sequence[str] | None = None
    spec = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = _find_one(name, path, sys_path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return spec


def _find_one(
    name: str, path: Sequence[str] | None, sys_path: Sequence[str]
) -> importlib.machinery.ModuleSpec | None:
    found = None
    if path is None and sys_path:
        found = importlib.machinery.PathFinder.find_spec(name, sys_path)
    for finder in () if found is not None else sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        found = None if find_spec is None else find_spec(name, path, None)
        if found is not None:
            break
    return found


def is_shared_name(spec: importlib.machinery.ModuleSpec) -> bool:
    """True for a namespace package, such as ``google``: being there says nothing of what is below it."""
    return spec.origin is None and spec.submodule_search_locations is not None


def check_packages(packages: Iterable[Package], sys_path: Sequence[str], node: str) -> None:
    """Raise PackageMissing, naming all that this Python cannot find. Looks at the disk."""
    importlib.invalidate_caches()  # one may have been installed since
    missing = [package for package in packages if find(package.module, sys_path) is None]
    if not missing:
        return
    names = ", ".join(package.module for package in missing)
    wanted = sorted({package.requirement for package in missing if package.requirement})
    loose = [package.module for package in missing if not package.requirement]
    cures = []
    if wanted:
        pip = " ".join(f"'{each}'" for each in wanted)
        cures.append(f"on {node}: {sys.executable} -m pip install {pip}")
    if loose:
        cures.append(f"{', '.join(loose)}: list under `modules`, so that it travels with the job")
    one = len(missing) == 1
    raise PackageMissing(
        f"node {node} lacks the {'package' if one else 'packages'} {names}, which the job imports",
        cure="; ".join(cures),
        details={"node": node, "python": f"{sys.executable} ({os.path.basename(sys.prefix)})"},
    )

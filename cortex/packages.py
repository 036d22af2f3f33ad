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
from dataclasses import dataclass

from cortex.errors import PackageMissing
from cortex.job.bundle import Package


@dataclass(frozen=True)
class Place:
    """Where a module is."""

    folders: tuple[str, ...]
    """Where what is below it is looked for; () for a module that is no package."""
    path: str = ""
    """Of a module's file, or a package's folder; "" where it is neither."""
    shared: bool = False
    """A namespace package, such as ``google``: being there says nothing of what is below it."""


def find(module: str, sys_path: Sequence[str]) -> Place | None:
    """Where `module` (dotted or not) would be imported from by a process with this ``sys.path``; no package
    above it is imported."""
    top, *parts = module.split(".")
    place = _find_top(top, sys_path)
    for part in parts:
        if place is None:
            return None
        place = _find_below(place, part)
    return place


def _find_top(name: str, sys_path: Sequence[str]) -> Place | None:
    for finder in sys.meta_path:  # some are of packages that are installed for development
        find_spec = getattr(finder, "find_spec", None)
        if find_spec is not None:
            path = sys_path if finder is importlib.machinery.PathFinder else None
            spec: importlib.machinery.ModuleSpec | None = find_spec(name, path, None)
            if spec is not None:
                folders = tuple(spec.submodule_search_locations or ())
                return Place(folders, _path_of(spec), shared=spec.origin is None and bool(folders))
    return None


def _find_below(place: Place, name: str) -> Place | None:
    """Python itself would import the package first."""
    shared = []
    for folder in place.folders:
        path = os.path.join(folder, name)
        for suffix in importlib.machinery.all_suffixes():
            if os.path.isfile(os.path.join(path, f"__init__{suffix}")):
                return Place((path,), path)
            if os.path.isfile(path + suffix):
                return Place((), path + suffix)
        if os.path.isdir(path):
            shared.append(path)
    return Place(tuple(shared), shared[0], shared=True) if shared else None


def _path_of(spec: importlib.machinery.ModuleSpec) -> str:
    if not spec.has_location or spec.origin is None:
        return ""
    return os.path.dirname(spec.origin) if spec.submodule_search_locations else spec.origin


def executors_path() -> list[str]:
    """The ``sys.path`` of this node's executors, which begins with no script's or current folder."""
    return sys.path if sys.flags.safe_path else sys.path[1:]


def is_shared_name(spec: importlib.machinery.ModuleSpec) -> bool:
    """True for a namespace package, such as ``google``: being there says nothing of what is below it."""
    return spec.origin is None and spec.submodule_search_locations is not None


def other_versions(packages: Iterable[Package]) -> dict[str, str]:
    """Requirement of the client -> the version that is installed here, where that is another."""
    from importlib import metadata  # slow to import

    found = {}
    for requirement in {package.requirement for package in packages if package.requirement}:
        name, _, version = requirement.partition("==")
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:  # the module is there, but by another way
            continue
        if here != version:
            found[requirement] = here
    return found


def check_packages(packages: Iterable[Package], sys_path: Sequence[str], node: str) -> None:
    """Raise PackageMissing, naming all that executors of this node would not find, also on the job's own
    `sys_path`. Looks at the disk."""
    importlib.invalidate_caches()  # one may have been installed since
    path = [*sys_path, *executors_path()]
    missing = [package for package in packages if find(package.module, path) is None]
    if not missing:
        return
    names = ", ".join(package.module for package in missing)
    wanted = sorted({package.requirement for package in missing if package.requirement})
    loose = [package for package in missing if not package.requirement]
    cures = []
    if wanted:
        pip = " ".join(f"'{each}'" for each in wanted)
        cures.append(f"on {node}: {sys.executable} -m pip install {pip}")
    if loose:
        paths = ", ".join(package.source or package.module for package in loose)
        cures.append(f"modules: [{paths}] in the job, so that it travels along: pip has no such package")
    one = len(missing) == 1
    raise PackageMissing(
        f"node {node} lacks the {'package' if one else 'packages'} {names}, which the job imports",
        cure="; ".join(cures),
        details={"node": node, "python": f"{sys.executable} ({os.path.basename(sys.prefix)})"},
    )

"""What a job's code imports: which modules of the user's own travel with it, and which packages it needs.

Found without running anything: in the bytecode of functions that are pickled, and in the source of modules
that travel. What stands in a ``try`` may be missing, and is not counted as needed; of modules neither is
what stands in an ``if``.
"""

from __future__ import annotations

import ast
import dis
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cortex.errors import UsageError
from cortex.job.bundle import Package
from cortex.job.travelling import NODE_MODULES, module_name
from cortex.limits import PACKAGES_MAX
from cortex.packages import find


def imports_in(code: types.CodeType) -> set[str]:
    """Dotted names that a function imports when it runs (not those of functions in it): ``a.b`` for
    ``import a.b``, ``a.b.c`` for ``from a.b import c``, "." for what is relative."""
    instructions = [each for each in dis.get_instructions(code) if each.opname != "EXTENDED_ARG"]
    if not any(each.opname == "IMPORT_NAME" for each in instructions):
        return set()
    tried = _tried(code, instructions)
    found = set()
    for index, each in enumerate(instructions):
        if each.opname != "IMPORT_NAME" or any(start <= each.offset < end for start, end in tried):
            continue
        level, names = instructions[index - 2].argval, instructions[index - 1].argval
        found |= {"."} if level else _dotted(each.argval, names or ())
    return found


def _tried(code: types.CodeType, instructions: list[dis.Instruction]) -> list[tuple[int, int]]:
    """Ranges of offsets in a ``try`` with a handler. (``with`` and generators have entries of their own.)"""
    at = {each.offset: index for index, each in enumerate(instructions)}
    ranges = []
    for entry in dis.Bytecode(code).exception_entries:  # type: ignore[attr-defined]
        handler = at.get(entry.target)
        if handler is None or instructions[handler].opname != "PUSH_EXC_INFO":
            continue
        if instructions[handler + 1].opname != "WITH_EXCEPT_START":
            ranges.append((entry.start, entry.end))
    return ranges


def _dotted(module: str, names: Iterable[str]) -> set[str]:
    below = {f"{module}.{name}" for name in names if name != "*"}
    return below or {module}


@dataclass(frozen=True)
class Travelling:
    sources: dict[str, str]
    """Modules beside the job's own: ``pkg/mod.py`` -> path."""
    imports: frozenset[str]
    """What the job needs besides: dotted names."""


def modules_beside(imports: Iterable[str], roots: Iterable[str], listed: Iterable[str]) -> Travelling:
    """The user's modules that `imports` reach, and what they and the `listed` ones import in turn.

    A module is the user's if it lies in one of `roots`, or beside a listed one. Of a package all its .py
    files travel; other files in it only when it is listed.
    """
    listed = list(listed)
    folders = dict.fromkeys([*roots, *(os.path.dirname(path) for path in listed)])
    travel_already = set(map(module_name, listed))
    sources: dict[str, str] = {}
    needed = {name for name in imports if name.partition(".")[0] not in travel_already}
    unread = [path for each in listed for path in _python_files(each).values()]
    seen: set[str] = set(travel_already)
    reached = {name.partition(".")[0] for name in needed}
    while unread or reached - seen:
        for top in sorted(reached - seen):
            seen.add(top)
            found = _source_of(top, folders)
            sources.update(found)
            travel_already |= {top} if found else set()
            unread += found.values()
        if unread:
            certain, possible = _imports_of_file(unread.pop())
            needed |= certain
            reached |= {name.partition(".")[0] for name in certain | possible}
    return Travelling(
        sources, frozenset(name for name in needed if name.partition(".")[0] not in travel_already)
    )


def _source_of(top: str, folders: Iterable[str]) -> dict[str, str]:
    """The .py files of a module, or of a package, that lies in one of the folders; none if it does not."""
    if top in sys.stdlib_module_names or top in NODE_MODULES or not top.isidentifier():
        return {}
    for folder in folders:
        for path in (os.path.join(folder, top), os.path.join(folder, f"{top}.py")):
            package = os.path.isfile(os.path.join(path, "__init__.py"))
            if not (package or path.endswith(".py")) and not _is_plain_folder_of_modules(top, path):
                continue
            found = _python_files(path)
            if found:
                return found
    return {}


def _is_plain_folder_of_modules(top: str, path: str) -> bool:
    """A folder without ``__init__.py`` is a package only if no other of its name is found."""
    place = find(top, sys.path) if os.path.isdir(path) else None
    return place is not None and place.shared


def _python_files(path: str) -> dict[str, str]:
    """``pkg/mod.py`` -> path, of a .py file or all .py files below a folder."""
    if os.path.isfile(path):
        return {os.path.basename(path): path}
    above = os.path.dirname(os.path.normpath(path))
    found = {}
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name.isidentifier() and name != "__pycache__")
        for name in sorted(names):
            whole = os.path.join(folder, name)
            if name.endswith(".py") and os.path.isfile(whole):
                found[os.path.relpath(whole, above).replace(os.sep, "/")] = whole
    return found


def _imports_of_file(path: str) -> tuple[set[str], set[str]]:
    """(what it surely imports, what it may), but for what is relative. A file that is no Python is the
    importing executor's to complain of."""
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return set(), set()
    certain: set[str] = set()
    possible: set[str] = set()
    for node, is_certain in _statements(tree, True):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = _dotted(node.module, [alias.name for alias in node.names])
        else:
            continue
        (certain if is_certain else possible).update(names)
    return certain, possible


def _statements(node: ast.AST, certain: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue
        yield child, certain
        yield from _statements(child, certain and not isinstance(child, ast.If | ast.Try | ast.TryStar))


def needed_packages(imports: Iterable[str]) -> tuple[Package, ...]:
    """What nodes must have installed for these imports: those that this Python finds itself, which cannot
    be said of the others. Raises UsageError for more than PACKAGES_MAX."""
    modules = {_package_of(name) for name in imports} - {""}
    if len(modules) > PACKAGES_MAX:
        raise UsageError(f"the job's code imports {len(modules)} packages; at most {PACKAGES_MAX} are taken")
    if not modules:
        return ()
    from importlib import metadata  # slow to import, and so is the next line

    owners = metadata.packages_distributions()
    return tuple(_package(module, owners) for module in sorted(modules))


def _package_of(name: str) -> str:
    """The package that has the module: the shortest name in it that belongs to one package alone. "" for
    what needs no look: the standard library, what every node has, what is not found here."""
    parts = name.split(".")
    if parts[0] in sys.stdlib_module_names or parts[0] in NODE_MODULES or parts[0] == "__main__":
        return ""
    for count in range(1, len(parts) + 1):
        part = ".".join(parts[:count])
        place = find(part, sys.path) if all(p.isidentifier() for p in parts[:count]) else None
        if place is None:
            return ""
        if not place.shared:
            return part
    return ""


def _package(module: str, owners: Mapping[str, Sequence[str]]) -> Package:
    requirement = _requirement(module, owners)
    place = None if requirement else find(module, sys.path)
    return Package(module, requirement, place.path if place else "")


def _requirement(module: str, owners: Mapping[str, Sequence[str]]) -> str:
    """What pip installs the module by: ``name==version``; "" for what is installed from a folder of here."""
    from importlib import metadata

    names = dict.fromkeys(owners.get(module.partition(".")[0], ()))
    for name in names:
        found = metadata.distribution(name)
        path = module.replace(".", "/")
        if len(names) == 1 or any(str(f).startswith((f"{path}/", f"{path}.")) for f in found.files or ()):
            here = "file://" in (found.read_text("direct_url.json") or "")
            return "" if here else f"{name}=={found.version}"
    return ""

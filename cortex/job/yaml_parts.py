"""What job.yaml and the file of ``cortex compute`` have in common: files, modules, env, priority, sections of
sizes. `CommonParts` reads them from a `Document` and notes what is wrong, as its subclasses do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from cortex.errors import UsageError
from cortex.job.overrides import absolute_path, parse_priority
from cortex.job.travelling import (
    default_name,
    env_problem,
    file_problem,
    module_name,
    module_problem,
    taken_twice,
)
from cortex.job.yaml_nodes import Document, Scalar

T = TypeVar("T")
Parser = tuple[str, str, Callable[[str, str], Any]]
"""A key, the field that it fills, and what reads its text (text, key)."""


class CommonParts:
    """`folder` is the file's own: relative paths in it start there."""

    def __init__(self, document: Document, folder: str) -> None:
        self.top = document.top
        self.shown = document.shown
        self.folder = folder

    def section(
        self, key: str, example: str, parsers: Sequence[Parser], homes: Mapping[str, str]
    ) -> dict[str, Any]:
        """Field -> value, of the keys that are there and can be read."""
        found = self.top.mapping(key, example)
        if found is None:
            return {}
        values = {}
        for name, field, parse in parsers:
            item = found.scalar(name)
            value = None if item is None else self.tried(item, partial(parse, item.text, name))
            if value is not None:
                values[field] = value
        found.finish(homes)
        return values

    def priority(self) -> int:
        item = self.top.scalar("priority")
        return 0 if item is None else self.tried(item, partial(parse_priority, item.text)) or 0

    def files(self) -> dict[str, str]:
        """Name -> path. A list names each file as it is called; a mapping as it says."""
        top, given = self.top, []
        if top.is_mapping("files"):
            for name, item in top.pairs("files", "{stopwords: data/stopwords.txt}"):
                given.append((name, item))
        else:
            given = [("", item) for item in top.scalars("files")]
        files: dict[str, str] = {}
        for name, item in given:
            path = self.path(item)
            if path is None:
                continue
            name = name or default_name(path)
            problem = file_problem(name, path)
            if problem is None and taken_twice([*files, name]):
                problem = f"two files are named {name!r}", "write files: {NAME: PATH, ...}"
            if problem is not None:
                item.problem(*problem)
            files[name] = path
        return files

    def modules(self) -> tuple[str, ...]:
        modules: dict[str, str] = {}
        for item in self.top.scalars("modules"):
            path = self.path(item)
            if path is None:
                continue
            problem = module_problem(path)
            if problem is None and module_name(path) in modules:
                problem = f"two modules are named {module_name(path)!r}", "rename one of them"
            if problem is not None:
                item.problem(*problem)
            modules[module_name(path)] = path
        return tuple(modules.values())

    def env(self) -> dict[str, str]:
        env = {}
        for name, item in self.top.pairs("env", "{LANG: C.UTF-8}"):
            problem = env_problem(name, item.text)
            if problem is not None:
                item.problem(*problem)
            env[name] = item.text
        return env

    def path(self, item: Scalar) -> str | None:
        return self.tried(item, partial(absolute_path, item.text, self.folder))

    def tried(self, item: Scalar, parse: Callable[[], T]) -> T | None:
        """What `parse` gives; its UsageError is noted at the item."""
        try:
            return parse()
        except UsageError as error:
            item.problem(error.message, error.cure)
            return None

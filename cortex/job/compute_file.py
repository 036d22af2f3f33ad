"""The file of ``cortex compute``: which function, over which arguments, and how. Strict, as job.yaml is (see
`cortex.job.yaml_file`): every problem is reported at once, with its line and its cure.

    function: cortex_function.py    # `cortex_function` in it; or FILE.py:NAME, or PACKAGE.MODULE:NAME
    arguments: {range: [0, 1000]}   # or a list, product, lines, csv, files
    response_mode: ordered          # or stream, collect, none
    output: results.jsonl

`load_compute_file` does not load the function, and reads no argument.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, cast

import yaml

from cortex.errors import UsageError
from cortex.job.argument_sources import (
    COLUMN_TYPES,
    ArgumentSource,
    CsvArguments,
    FilesArguments,
    LinesArguments,
    ListArguments,
    ProductArguments,
    RangeArguments,
)
from cortex.job.overrides import absolute_path, current_folder, parse_slots
from cortex.job.yaml_nodes import Document, Mapping, Scalar
from cortex.job.yaml_parts import CommonParts
from cortex.job.yaml_values import plain_value
from cortex.limits import CALL_RETRIES_MAX, CALL_S_MAX
from cortex.units import format_seconds, parse_bytes, parse_seconds

ResponseMode = Literal["ordered", "stream", "collect", "none"]
RESPONSE_MODES: Final = ("ordered", "stream", "collect", "none")
ErrorMode = Literal["raise", "collect"]
ERROR_MODES: Final = ("raise", "collect")
ValueForm = Literal["json", "repr", "pickle"]
VALUE_FORMS: Final = ("json", "repr", "pickle")


@dataclass(frozen=True, slots=True)
class FunctionName:
    """Where a function is: `file`, absolute, or else the module of this dotted name."""

    file: str
    module: str
    name: str
    text: str
    """As the user wrote it."""


@dataclass(frozen=True, slots=True)
class ComputeOutput:
    """`path` is absolute; "": standard output."""

    path: str = ""
    values: ValueForm = "json"
    """What becomes of a result that JSON does not have: an error (json), its repr, or its pickle."""
    arguments: bool = False
    """Each line has the call's arguments as well."""
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class ComputeFile:
    path: str
    name: str
    function: FunctionName
    arguments: ArgumentSource
    mode: ResponseMode = "ordered"
    output: ComputeOutput = ComputeOutput()
    memory_bytes: int = 0
    slots: int = 0
    retries: int = 0
    timeout_s: float = 0.0
    """Of one call; 0: none."""
    errors: ErrorMode = "raise"
    files: tuple[tuple[str, str], ...] = ()
    modules: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True)
class ComputeOverrides:
    """What the command line says; None: the file's word stands. Paths are relative to the current folder."""

    mode: ResponseMode | None = None
    output: str | None = None
    overwrite: bool | None = None
    values: ValueForm | None = None
    memory_bytes: int | None = None
    slots: int | None = None
    retries: int | None = None
    timeout_s: float | None = None
    errors: ErrorMode | None = None
    priority: int | None = None


def load_compute_file(
    path: str, overrides: ComputeOverrides | None = None, *, cwd: str | None = None
) -> ComputeFile:
    """Read and check the file, then put the options in place.

    Raises JobFileError (all problems, one a line) or UsageError (no such file; bad options). Paths in the
    file are relative to its folder.
    """
    folder = current_folder() if cwd is None else cwd
    whole = os.path.join(folder, os.path.expanduser(path))
    document = Document.read(whole, path)
    found = _Reader(document, os.path.dirname(os.path.abspath(whole))).read(os.path.abspath(whole))
    document.raise_problems()
    assert found is not None
    return _overridden(found, overrides or ComputeOverrides(), folder)


def _overridden(found: ComputeFile, given: ComputeOverrides, folder: str) -> ComputeFile:
    mode = given.mode or found.mode
    path = found.output.path if given.output is None else absolute_path(given.output, folder)
    if mode == "none":
        if given.output is not None:
            raise UsageError(
                "there is nothing to write to --output: response mode none only counts",
                cure="leave one of them out",
            )
        path = ""
    output = replace(
        found.output,
        path=path,
        values=given.values or found.output.values,
        overwrite=found.output.overwrite or bool(given.overwrite),
    )
    plain = {
        "memory_bytes": given.memory_bytes,
        "slots": given.slots,
        "retries": given.retries,
        "timeout_s": given.timeout_s,
        "errors": given.errors,
        "priority": given.priority,
    }
    changes: dict[str, Any] = {key: value for key, value in plain.items() if value is not None}
    return replace(found, mode=mode, output=output, **changes)


def parse_timeout(text: str | float, what: str = "timeout") -> float:
    """Seconds: ``30``, ``1.5`` or ``30s``, ``2m``. Raises UsageError for anything else, and for 0."""
    word = str(text).strip()
    seconds = float(word) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", word) else parse_seconds(word, what)
    if not 0 < seconds <= CALL_S_MAX:
        raise UsageError(
            f"{what}: a call cannot be given {text!r}",
            cure=f"write seconds, more than 0 and at most {format_seconds(CALL_S_MAX)}, such as 30s",
        )
    return seconds


def parse_retries(text: str | int, what: str = "retries") -> int:
    word = "" if isinstance(text, bool) else str(text).strip()
    if word.isascii() and word.isdigit() and len(word) < 6 and int(word) <= CALL_RETRIES_MAX:
        return int(word)
    raise UsageError(
        f"{what}: {text!r} is not a number of retries", cure=f"write a number from 0 to {CALL_RETRIES_MAX}"
    )


_SECTIONS: Final = {
    "arguments": ("list", "range", "product", "lines", "csv", "star", "types", "delimiter"),
    "output": ("path", "values", "overwrite"),
    "resources": ("memory", "slots"),
}
_HOMES: Final = {key: section for section, keys in _SECTIONS.items() for key in keys}
_SOURCES: Final = ("list", "range", "product", "lines", "csv", "files")
_EXAMPLE: Final = "{range: [0, 1000]}, or a list"
_FUNCTION: Final = "write FILE.py, FILE.py:NAME or PACKAGE.MODULE:NAME"
_INT: Final = re.compile(r"-?[0-9]{1,18}")


class _Reader(CommonParts):
    def __init__(self, document: Document, folder: str) -> None:
        super().__init__(document, folder)
        self.document = document

    def read(self, path: str) -> ComputeFile | None:
        """None only where a problem was noted."""
        top = self.top
        function = self._function()
        arguments = self._arguments()
        mode = top.choice("response_mode", RESPONSE_MODES) or "ordered"
        output = self._output(mode)
        resources = self.section(
            "resources",
            "{memory: 2GB, slots: 4}",
            (("memory", "memory_bytes", parse_bytes), ("slots", "slots", parse_slots)),
            _HOMES,
        )
        retries = self._parsed("retries", parse_retries)
        timeout_s = self._parsed("timeout", parse_timeout)
        errors = top.choice("errors", ERROR_MODES) or "raise"
        files, modules, env = self.files(), self.modules(), self.env()
        name = top.text("name") or (function.name.rpartition(".")[2] if function else "")
        priority = self.priority()
        top.finish(_HOMES)
        if function is None or arguments is None:
            return None
        return ComputeFile(
            path=path,
            name=name,
            function=function,
            arguments=arguments,
            mode=cast(ResponseMode, mode),
            output=output,
            retries=retries or 0,
            timeout_s=timeout_s or 0.0,
            errors=cast(ErrorMode, errors),
            files=tuple(files.items()),
            modules=modules,
            env=tuple(env.items()),
            priority=priority,
            **resources,
        )

    def _parsed(self, key: str, parse: Any) -> Any:
        item = self.top.scalar(key)
        return None if item is None else self.tried(item, partial(parse, item.text, key))

    def _function(self) -> FunctionName | None:
        if "function" not in self.top:
            self.top.problem("", "there is no function", "add function: cortex_function.py")
        item = self.top.scalar("function")
        if item is None:
            return None
        text = item.text
        place, colon, name = text.rpartition(":")
        if not colon:
            place, name = text, os.path.splitext(os.path.basename(text))[0]
        if not all(part.isidentifier() for part in name.split(".")):
            item.problem(f"{text!r} does not name a function", _FUNCTION)
            return None
        if place.endswith(".py"):
            path = os.path.normpath(os.path.join(self.folder, os.path.expanduser(place)))
            if not os.path.isfile(path):
                item.problem(f"there is no file {place!r}", "paths in the file are relative to its folder")
                return None
            return FunctionName(path, "", name, text)
        if not colon or not all(part.isidentifier() for part in place.split(".")):
            item.problem(f"{text!r} does not name a function", _FUNCTION)
            return None
        return FunctionName("", place, name, text)

    def _output(self, mode: str) -> ComputeOutput:
        if mode == "none" and "output" in self.top:
            self.top.problem("output", "there is no output in response_mode none", "leave one of them out")
        if self.top.is_scalar("output"):
            item = self.top.scalar("output")
            return ComputeOutput("" if item is None else self.path(item) or "")
        found = self.top.mapping("output", "results.jsonl, or {path: results.jsonl, values: repr}")
        if found is None:
            return ComputeOutput()
        item = found.scalar("path")
        path = None if item is None else self.path(item)
        values = found.choice("values", VALUE_FORMS) or "json"
        arguments, overwrite = found.flag("arguments", False), found.flag("overwrite", False)
        found.finish(_HOMES)
        return ComputeOutput(path or "", cast(ValueForm, values), arguments, overwrite)

    # --- arguments

    def _arguments(self) -> ArgumentSource | None:
        node = self.top.node("arguments")
        if node is None:
            self.top.problem("", "there are no arguments", f"add arguments: {_EXAMPLE}")
            return None
        if isinstance(node, yaml.SequenceNode):
            return self._list(node, spread=False)
        section = self.top.mapping("arguments", _EXAMPLE)
        if section is None:
            return None
        given = [key for key in _SOURCES if key in section]
        source: ArgumentSource | None = None
        if len(given) != 1:
            said = " and ".join(given) or "none"
            self.top.problem("arguments", f"arguments have one source, not {said}", f"write one of {_LISTED}")
            for key in _SOURCES:
                section.node(key)
        else:
            source = getattr(self, f"_{given[0]}_source")(section)
        for key, only in (("star", ("list", "lines", "csv")), ("types", ("csv",)), ("delimiter", ("csv",))):
            section.node(key)
            if key in section and len(given) == 1 and given[0] not in only:
                section.problem(key, f"`{key}` is for {' and '.join(only)}, not {given[0]}", "leave it out")
        section.finish(_HOMES)
        return source

    def _list_source(self, section: Mapping) -> ArgumentSource | None:
        node = section.node("list")
        if isinstance(node, yaml.SequenceNode):
            return self._list(node, section.flag("star", False))
        section.problem("list", "`list` is a list of values", "write list: [a, b]")
        return None

    def _list(self, node: yaml.SequenceNode, spread: bool) -> ListArguments:
        for item in node.value if spread else ():
            if isinstance(item, yaml.ScalarNode):
                cure = "write [a, b] or {name: a}, or leave star out"
                self.document.note_at(item.start_mark, "with star, each entry is a list or a mapping", cure)
        return ListArguments(tuple(plain_value(self.document, item) for item in node.value), spread)

    def _range_source(self, section: Mapping) -> ArgumentSource | None:
        numbers = self._range(section)
        return None if numbers is None else RangeArguments(numbers)

    def _range(self, section: Mapping) -> range | None:
        items = section.scalars("range")
        if any(item.quoted or not _INT.fullmatch(item.text) for item in items) or not 1 <= len(items) <= 3:
            section.problem("range", "a range is one to three whole numbers", "write range: [0, 1000, 10]")
            return None
        ends = [int(item.text) for item in items]
        if len(ends) == 3 and ends[2] == 0:
            items[2].problem("the step of a range is not 0", "write 1, or leave it out")
            return None
        return range(*ends)

    def _product_source(self, section: Mapping) -> ArgumentSource | None:
        node = section.node("product")
        example = "write product: [[1, 2], [a, b]], or product: {x: [1, 2], y: [a, b]}"
        if isinstance(node, yaml.SequenceNode) and node.value:
            return ProductArguments(tuple(self._pool(item, example) for item in node.value))
        named = (
            section.mapping("product", "{x: [1, 2], y: [a, b]}") if section.is_mapping("product") else None
        )
        if named is None or not list(named):
            section.problem("product", "a product is of one or more lists", example)
            return None
        pools = tuple(self._pool(named.node(name), example) for name in named)
        return ProductArguments(pools, tuple(named))

    def _pool(self, node: yaml.Node | None, example: str) -> Sequence[Any]:
        assert node is not None
        if isinstance(node, yaml.SequenceNode):
            return tuple(plain_value(self.document, item) for item in node.value)
        if isinstance(node, yaml.MappingNode):
            inner = Mapping(self.document, node, "product")
            numbers = self._range(inner) if "range" in inner else None
            inner.finish({})
            if numbers is not None:
                return numbers
            if "range" in inner:
                return ()
        self.document.note_at(
            node.start_mark, "each part of a product is a list or {range: [0, 10]}", example
        )
        return ()

    def _lines_source(self, section: Mapping) -> ArgumentSource | None:
        path = self._file(section, "lines")
        return None if path is None else LinesArguments(path, section.flag("star", False))

    def _csv_source(self, section: Mapping) -> ArgumentSource | None:
        path = self._file(section, "csv")
        types = []
        for name, item in section.pairs("types", "{x: int, y: float}"):
            if item.text not in COLUMN_TYPES:
                item.problem(f"there is no type {item.text!r}", f"one of {', '.join(COLUMN_TYPES)}")
            types.append((name, item.text))
        usual = "\t" if (path or "").endswith(".tsv") else ","
        delimiter = section.text("delimiter", usual)
        delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
        if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '\r\n\0"':
            section.problem("delimiter", f"{delimiter!r} is no delimiter", 'write one character, such as ";"')
        return (
            None if path is None else CsvArguments(path, tuple(types), delimiter, section.flag("star", True))
        )

    def _files_source(self, section: Mapping) -> ArgumentSource | None:
        patterns = []
        for item in section.scalars("files"):
            path = self.path(item)
            if path is not None and path.split(os.sep).count("**") > 1:
                item.problem("a glob has `**` once at most", "name the folders below it")
            patterns.append(path or "")
        if section.is_empty_list("files"):
            section.problem("files", "the list of files is empty", 'write files: "photos/*.jpg"')
        return FilesArguments(tuple(patterns))

    def _file(self, section: Mapping, key: str) -> str | None:
        item: Scalar | None = section.scalar(key)
        path = None if item is None else self.path(item)
        if item is not None and path is not None and not os.path.isfile(path):
            item.problem(f"there is no file {item.text!r}", "paths in the file are relative to its folder")
        return path


_LISTED: Final = ", ".join(_SOURCES)

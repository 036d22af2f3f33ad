"""job.yaml: read strictly, every problem reported at once with its line, column and cure.

The file is walked as YAML nodes, never built into objects: so each problem knows its place, duplicate
keys and anchors are seen, and a name or expression is the text the user wrote. (YAML 1.1 would make
``no`` a bool and ``1.10`` a float; here ``select: {no: x}`` is a column named no.) Tags, anchors,
aliases and merge keys are refused: a job says what it means in one place.

`load_job_file` does not load user code; it returns the references for `cortex.api` to load.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from cortex.job.declared import Problem, validate_declared
from cortex.job.overrides import (
    Overrides,
    apply_overrides,
    current_folder,
    dialect_problems,
    input_path,
    parse_reducers,
    parse_slots,
)
from cortex.job.spec import (
    FINGERPRINTS,
    INPUT_FORMATS,
    OUTPUT_FORMATS,
    Combine,
    CsvDialect,
    InputSpec,
    JobSpec,
    MapForm,
    OutputSpec,
    ReduceForm,
    Resources,
)
from cortex.job.types import check_type
from cortex.job.yaml_nodes import Document, Mapping, Scalar
from cortex.job.yaml_parts import CommonParts
from cortex.units import parse_bytes

__all__ = ["JobFile", "Overrides", "load_job_file", "validate_declared"]


@dataclass(frozen=True, slots=True)
class JobFile:
    """A checked job.yaml. Code references are ``/absolute/file.py:name``, or "" where there is none.

    With `job` set, the class brings its own map and reduce: only input, output, resources and name of
    `spec` are the file's word, and of those only what `given` names (``"input.format"``).
    """

    path: str
    spec: JobSpec
    given: frozenset[str]
    job: str = ""
    map: str = ""
    reduce: str = ""
    combine: str = ""
    """A function's reference; for sum, min and max it is "" and `spec.combine` says which."""


def load_job_file(path: str, overrides: Overrides | None = None, *, cwd: str | None = None) -> JobFile:
    """Read and check a job file, then put the options of the command line in place.

    Raises JobFileError (all problems, one a line) or UsageError (no such file; bad options).
    Paths in the file are relative to its folder, those in `overrides` to `cwd`.
    """
    folder = current_folder() if cwd is None else cwd
    whole = os.path.join(folder, os.path.expanduser(path))
    document = Document.read(whole, path)
    options = overrides or Overrides()
    job = _Reader(document, os.path.dirname(os.path.abspath(whole)), options).read()
    document.raise_problems()
    return JobFile(
        os.path.abspath(whole),
        apply_overrides(job.spec, options, folder),
        job.given,
        job.job,
        job.map,
        job.reduce,
        job.combine,
    )


_CODE: Final = "write FILE.py:NAME, such as wordcount.py:WordCount"
_DIALECT: Final = ("delimiter", "quote", "escape", "header", "null_values")
_SECTIONS: Final = {
    "input": ("path", "columns", "encoding", "fingerprint", *_DIALECT),
    "map": ("where", "select"),
    "reduce": ("group_by", "aggregate"),
    "output": ("on", "overwrite"),
    "resources": ("memory", "slots", "reducers", "split_size"),
}
_HOMES: Final = {key: section for section, keys in _SECTIONS.items() for key in keys}
_COMBINES: Final[dict[str, Combine]] = {"sum": "sum", "min": "min", "max": "max"}

_Places = dict[tuple[str, ...], Scalar]
"""Where each part of a declared job is written."""


class _Reader(CommonParts):
    """One pass over the document: fills in what it understands and notes what it does not."""

    def __init__(self, document: Document, folder: str, overrides: Overrides) -> None:
        super().__init__(document, folder)
        self.overrides = overrides

    def read(self) -> JobFile:
        top = self.top
        name = top.text("name") or os.path.splitext(os.path.basename(self.shown))[0]
        job = self._code(top.scalar("job"))
        source = self._input(needed="job" not in top)
        map_code, where, select = self._map()
        reduce_code, group_by, aggregate = self._reduce(select)
        combine, combine_code = self._combine()
        output = self._output()
        resources = self._resources()
        files, modules, env = self.files(), self.modules(), self.env()
        priority = self.priority()
        self._forms(combine, resources)
        top.finish(_HOMES)
        reduce_form: ReduceForm = "none"
        if aggregate:
            reduce_form = "aggregate"
        elif map_code and resources.reducers != 0:
            reduce_form = "fold" if combine and not reduce_code else "rows"
        map_form: MapForm = "rows" if map_code else "declared"
        code_names = [top.text(key) for key in ("job", "map", "reduce") if top.is_scalar(key)]
        spec = JobSpec(
            name=name,
            input=source,
            output=output,
            resources=resources,
            map_form=map_form,
            where=where,
            select=select,
            reduce_form=reduce_form,
            group_by=group_by,
            aggregate=aggregate,
            combine=combine,
            code_name=code_names[0] if code_names else "",
            files=files,
            modules=modules,
            env=env,
            priority=priority,
        )
        return JobFile(self.shown, spec, top.given(), job, map_code, reduce_code, combine_code)

    # --- sections

    def _input(self, needed: bool) -> InputSpec:
        needed = needed and not self.overrides.inputs
        source = self.top.mapping("input", "{path: measurements.csv}")
        if source is None:
            if needed and "input" not in self.top:
                self.top.problem(
                    "", "there is no input", "add input: {path: measurements.csv}, or give --input"
                )
            return InputSpec(())
        items = source.scalars("path")
        paths = tuple(found for item in items if (found := self._input_path(item)) is not None)
        text_format = source.choice("format", INPUT_FORMATS)
        columns = {}
        for name, item in source.pairs("columns", "{station: string, temp: float64}"):
            columns[name] = item.text
            self.tried(item, partial(check_type, item.text))
        dialect = self._dialect(source, text_format)
        encoding = source.choice("encoding", ("utf-8", "bytes")) or "utf-8"
        full = source.choice("fingerprint", FINGERPRINTS) == "full"
        source.finish(_HOMES)
        if needed and "path" not in source:
            source.problem("", "the input has no path", "add path: measurements.csv, or give --input")
        elif needed and source.is_empty_list("path"):
            source.problem("path", "the list of paths is empty", "name at least one file, folder or glob")
        if text_format == "text" and columns:
            source.problem("columns", "text has one column, line", "leave columns out, or read it as csv")
        if encoding == "bytes" and text_format not in ("", "text"):
            source.problem("encoding", f"encoding is for text, not {text_format}", "leave it out")
        return InputSpec(paths, text_format, columns, dialect, encoding, "full" if full else "sampled")

    def _dialect(self, source: Mapping, text_format: str) -> CsvDialect | None:
        delimiter = source.text("delimiter")
        nulls = tuple(item.text for item in source.scalars("null_values"))
        dialect = CsvDialect(
            {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter),
            source.text("quote", '"', empty=True),
            source.text("escape", "", empty=True),
            source.flag("header", True),
            nulls if "null_values" in source else ("",),
        )
        options = [key for key in _DIALECT if key in source]
        if not options:
            return None
        if text_format not in ("", "csv", "tsv"):
            for key in options:
                source.problem(key, f"`{key}` is for csv and tsv, not {text_format}", "leave it out")
            return None
        for key, message, cure in dialect_problems(dialect):
            source.problem(key, message, cure)
        return dialect

    def _output(self) -> OutputSpec:
        output = self.top.mapping("output", "{path: out, format: csv}")
        if output is None:
            return OutputSpec()
        item = output.scalar("path")
        path = None if item is None else self.path(item)
        file_format = output.choice("format", OUTPUT_FORMATS) or "csv"
        on = output.choice("on", ("client", "nodes"))
        overwrite = output.flag("overwrite", False)
        output.finish(_HOMES)
        return OutputSpec(path or "", file_format, overwrite, "nodes" if on == "nodes" else "client")

    def _resources(self) -> Resources:
        parsers: tuple[tuple[str, str, Callable[[str, str], int]], ...] = (
            ("memory", "memory_bytes", parse_bytes),
            ("slots", "slots", parse_slots),
            ("reducers", "reducers", parse_reducers),
            ("split_size", "split_bytes", parse_bytes),
        )
        return Resources(**self.section("resources", "{memory: 512MB}", parsers, _HOMES))

    def _map(self) -> tuple[str, str, dict[str, str]]:
        if self.top.is_scalar("map"):
            return self._code(self.top.scalar("map")), "", {}
        found = self.top.mapping("map", "{where: temp > 0}, or map: FILE.py:FUNCTION")
        if found is None:
            return "", "", {}
        place: _Places = {("where",): condition} if (condition := found.scalar("where")) else {}
        columns = dict(found.pairs("select", "{station: station}"))
        place.update({("select", name): item for name, item in columns.items()})
        where, select = found.text("where"), {name: item.text for name, item in columns.items()}
        found.finish(_HOMES)
        for key in ("select",) if "select" in found and not columns else ():
            if found.is_empty_mapping(key):
                found.problem(key, "`select` is empty", "leave it out to pass all columns")
        self._declared(found, place, where, select, (), {})
        return "", where, select

    def _reduce(self, select: dict[str, str]) -> tuple[str, tuple[str, ...], dict[str, str]]:
        if self.top.is_scalar("reduce"):
            return self._code(self.top.scalar("reduce")), (), {}
        found = self.top.mapping(
            "reduce", "{group_by: [station], aggregate: {rows: count()}}, or reduce: FILE.py:FUNCTION"
        )
        if found is None:
            return "", (), {}
        keys = found.scalars("group_by")
        calls = dict(found.pairs("aggregate", "{rows: count()}"))
        found.finish(_HOMES)
        for key, cure in (
            ("group_by", "add group_by: [station]; [] makes one group of all rows"),
            ("aggregate", "add aggregate: {rows: count()}"),
        ):
            if key not in found:
                found.problem("", f"`reduce` has no {key}", cure)
        if found.is_empty_mapping("aggregate"):
            found.problem("aggregate", "there is nothing to compute", "add {rows: count()}")
        place: _Places = {("group_by", str(index)): item for index, item in enumerate(keys)}
        place.update({("aggregate", name): item for name, item in calls.items()})
        group_by = tuple(item.text for item in keys)
        aggregate = {name: item.text for name, item in calls.items()}
        # select was checked with the map: here only its names count
        self._declared(found, place, "", dict.fromkeys(select, "null"), group_by, aggregate)
        return "", group_by, aggregate

    def _declared(
        self,
        section: Mapping,
        place: _Places,
        where: str,
        select: dict[str, str],
        group_by: tuple[str, ...],
        aggregate: dict[str, str],
    ) -> None:
        problems: list[Problem] = []
        validate_declared(where, select, group_by, aggregate, problems)
        for problem in problems:
            if problem.path in place:
                place[problem.path].problem(problem.message, problem.cure, problem.position)
            elif problem.path[0] in section and not (
                problem.path == ("group_by",) and "aggregate" in section
            ):
                section.problem(problem.path[0], problem.message, problem.cure)

    def _combine(self) -> tuple[Combine, str]:
        item = self.top.scalar("combine")
        if item is None:
            return "", ""
        if item.text in _COMBINES:
            return _COMBINES[item.text], ""
        if ":" not in item.text:
            item.problem(f"{item.text!r} is no combiner", "write sum, min, max or FILE.py:FUNCTION")
            return "", ""
        return "binary", self._code(item)

    def _forms(self, combine: str, resources: Resources) -> None:
        """What cannot go together."""
        top = self.top
        if "job" in top:
            for key in ("map", "reduce", "combine"):
                if key in top:
                    top.problem(
                        key, f"`{key}` stands beside `job`", "the class has its own: leave one of them out"
                    )
            return
        for key in ("files", "modules", "env"):
            if key in top and not top.is_scalar("map"):
                top.problem(key, f"`{key}` is for a job's code, and this one has none", "leave it out")
        given = self.overrides.reducers
        reducers = resources.reducers if given is None else given
        by_code = top.is_scalar("map")
        if "map" not in top and "reduce" not in top:
            top.problem("", "there is nothing to do", "add map, reduce or job")
        if "combine" in top and not by_code:
            top.problem(
                "combine", "`combine` needs a map function", "aggregates combine by themselves: leave it out"
            )
        if top.is_scalar("reduce") and not by_code:
            top.problem(
                "reduce",
                "a reduce function needs a map function, which gives it keys",
                "add map: FILE.py:FUNCTION",
            )
        if by_code and "reduce" in top and not top.is_scalar("reduce"):
            top.problem(
                "reduce",
                "aggregates need declared columns, not a map function",
                "write reduce: FILE.py:FUNCTION, or a class with map_batch and aggregate",
            )
        if reducers == 0 and ("reduce" in top or combine):
            key = "reduce" if "reduce" in top else "combine"
            top.problem(key, f"0 reducers is a map-only job, but it has `{key}`", "leave one of them out")
        if "map" in top and not by_code and top.is_empty_mapping("map"):
            top.problem("map", "the map is empty", "add where or select, or leave map out")

    # --- values

    def _input_path(self, item: Scalar) -> str | None:
        return self.tried(item, partial(input_path, item.text, self.folder))

    def _code(self, item: Scalar | None) -> str:
        """``file.py:name`` -> ``/folder/file.py:name``; what cannot be is noted and returned as it is."""
        if item is None:
            return ""
        file, _, name = item.text.rpartition(":")
        if not file.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            item.problem(f"{item.text!r} does not name code", _CODE)
            return item.text
        path = os.path.normpath(os.path.join(self.folder, os.path.expanduser(file)))
        if not os.path.isfile(path):
            item.problem(f"there is no file {file!r}", "paths in a job file are relative to its folder")
        return f"{path}:{name}"

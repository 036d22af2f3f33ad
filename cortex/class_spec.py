"""From a job class to a `JobSpec`: what its attributes and methods mean, and everything wrong with them.

Which map and reduce form a class means is read from what it overrides:

* map: `map` -> rows; `map_batch` -> batch; neither -> declared (`where`, `select`).
* reduce: `reduce` -> rows; `reduce_batch` -> batch; `aggregate` -> aggregate; a `combine` alone -> fold.
  With none of them, pairs of `map` (and batches of a `map_batch` that has a `key`) are grouped by key and
  output as they are; other jobs, and any with ``reducers = 0``, are map-only.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, cast

from cortex.api import MapReduceJob, plain_function
from cortex.errors import JobFileError, UsageError
from cortex.job.declared import Problem, validate_declared
from cortex.job.overrides import (
    absolute_path,
    current_folder,
    dialect_problems,
    input_path,
    parse_priority,
    parse_reducers,
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
    OutputAt,
    OutputFormat,
    OutputSpec,
    ReduceForm,
    Resources,
)
from cortex.job.travelling import (
    default_name,
    env_problem,
    file_problem,
    module_name,
    module_problem,
    taken_twice,
)
from cortex.job.types import check_type
from cortex.units import parse_bytes

_NEARLY = 0.85  # difflib's ratio: "maap" and "aggregat" are, "mapper" is not
_FOLDS: dict[Any, Combine] = {sum: "sum", min: "min", max: "max"}
_FOLD_NAMES: dict[str, Combine] = {"sum": "sum", "min": "min", "max": "max"}


def overrides(job: MapReduceJob, method: str) -> bool:
    """True if the class (or the object) defines `method` itself."""
    return plain_function(inspect.getattr_static(job, method)) is not vars(MapReduceJob)[method]


def combine_kind(job: MapReduceJob, problems: list[str]) -> Combine:
    """Which combine a job means; "" if none. Adds to `problems` what it cannot be."""
    found = inspect.getattr_static(job, "combine", None)
    combine = plain_function(found)
    if combine is None:
        return ""
    if isinstance(combine, str):
        if combine in _FOLD_NAMES:
            return _FOLD_NAMES[combine]
        problems.append(f"combine: {combine!r} is not sum, min or max")
        return ""
    if not callable(combine):
        problems.append(f"combine: {combine!r} is no function")
        return ""
    if combine in _FOLDS:
        return _FOLDS[combine]
    count = _positional_count(combine)
    if count == 2:
        return "binary"
    bound = not isinstance(found, (staticmethod, classmethod)) and inspect.isfunction(found)
    if count == 3 and bound and "combine" not in vars(job):
        return "method"
    problems.append(
        "combine: it must be sum, min, max, a function of two values, or a method (self, key, values)"
        + ("" if count is None else f"; this one takes {count} arguments")
    )
    return ""


def _positional_count(function: Callable[..., Any]) -> int | None:
    """Number of positional arguments a call gives; None if it cannot be told."""
    if getattr(function, "nin", None) is not None:  # a NumPy ufunc has no signature
        return int(cast(Any, function).nin)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    return len(positional) if len(required) > 2 or len(positional) <= 3 else len(required)


def build_spec(job: MapReduceJob, code_name: str = "") -> JobSpec:
    """What the job asks for. Raises JobFileError with every problem, one a line; warns of attributes that
    are nearly an option's or a method's name, which Python takes for the class's own."""
    _warn_of_misspellings(job)
    return SpecBuilder(job, code_name).build()


def build_compute_spec(options: Any) -> JobSpec:
    """Of a client's calls: `options` has the attributes of a job that such a one takes (`name`, `memory`,
    `slots`, `priority`, `files`, `modules`, `env`). Raises JobFileError with every problem, one a line."""
    return SpecBuilder(options, "cortex.Client").build_compute()


def _warn_of_misspellings(job: MapReduceJob) -> None:
    known = [name for name in vars(MapReduceJob) if not name.startswith("_")]
    classes = [cls for cls in type(job).__mro__ if issubclass(cls, MapReduceJob) and cls is not MapReduceJob]
    own = dict.fromkeys(name for cls in classes for name in vars(cls) if not name.startswith("_"))
    for name in own:
        close = get_close_matches(name.lower(), known, 1, _NEARLY)
        if close and name not in known:
            message = f"{type(job).__name__}.{name} means nothing to cortex; did you mean {close[0]!r}?"
            warnings.warn(message, stacklevel=3)


class SpecBuilder:
    """Checks a job object's options one by one, collecting problems."""

    def __init__(self, job: MapReduceJob, code_name: str) -> None:
        self.job = job
        self.problems: list[str] = []
        self.code_name = code_name or type(job)._code_name or type(job).__qualname__

    def build(self) -> JobSpec:
        job = self.job
        map_form = self._map_form()
        combine = combine_kind(job, self.problems)
        group_by = self._names("group_by", job.group_by)
        aggregate = self._expressions("aggregate", job.aggregate)
        reducers = self._reducers()
        reduce_form = self._reduce_form(map_form, combine, bool(aggregate), reducers)
        keys = self._keys(map_form, reduce_form, group_by)
        select = self._select(map_form)
        where = self._text("where", job.where)
        if where and map_form != "declared":
            self._problem(f"where: it has no effect beside {_MAP_NAMES[map_form]}; filter there instead")
        custom_partition = overrides(job, "partition")
        if custom_partition and (map_form != "rows" or reduce_form == "none"):
            self._problem(
                "partition: it takes the keys of map(); a map-only job, batches and tables have none"
            )
        if map_form == "declared" and reduce_form in ("none", "aggregate"):
            for name in ("setup", "cleanup"):
                if overrides(job, name):
                    self._problem(f"{name}: a declared job runs no code, so it would never be called")
        validate(where, select, keys, aggregate, self.problems)
        spec = JobSpec(
            name=self._text("name", job.name) or type(job).__name__,
            input=self._input(),
            output=self._output(),
            resources=Resources(
                memory_bytes=self._bytes("memory"),
                slots=self._count("slots"),
                reducers=0 if reduce_form == "none" else reducers,
                split_bytes=self._bytes("split_size"),
            ),
            map_form=map_form,
            where=where,
            select=select,
            reduce_form=reduce_form,
            group_by=keys,
            aggregate=aggregate,
            combine=combine,
            custom_partition=custom_partition,
            code_name=self.code_name,
            files=self._files(),
            modules=self._modules(),
            env=self._env(),
            priority=self._priority(),
        )
        if map_form == "declared" and reduce_form in ("none", "aggregate"):
            for option in ("files", "modules", "env"):
                if getattr(spec, option):
                    self._problem(f"{option}: it is for a job's code, and a declared job runs none")
        if self.problems:
            raise JobFileError("\n".join(f"{self.code_name}: {p}" for p in self.problems))
        return spec

    def build_compute(self) -> JobSpec:
        spec = JobSpec(
            name=self._text("name", self.job.name),
            input=InputSpec(()),
            resources=Resources(memory_bytes=self._bytes("memory"), slots=self._count("slots")),
            files=self._files(),
            modules=self._modules(),
            env=self._env(),
            priority=self._priority(),
            compute=True,
        )
        if self.problems:
            raise JobFileError("\n".join(f"{self.code_name}: {p}" for p in self.problems))
        return spec

    # Forms

    def _map_form(self) -> MapForm:
        rows, batch = overrides(self.job, "map"), overrides(self.job, "map_batch")
        if rows and batch:
            self._problem("it has both map() and map_batch(); keep one")
        if rows:
            return "rows"
        if batch:
            return "batch"
        declared = self.job.where or self.job.select or self.job.aggregate or self.job.group_by is not None
        if not (declared or overrides(self.job, "reduce_batch")):
            self._problem("it has no map: define map(self, record), map_batch(self, batch), or where/select")
        return "declared"

    def _reduce_form(self, map_form: MapForm, combine: Combine, aggregate: bool, reducers: int) -> ReduceForm:
        rows, batch = overrides(self.job, "reduce"), overrides(self.job, "reduce_batch")
        given = [
            name
            for name, present in (("reduce()", rows), ("reduce_batch()", batch), ("aggregate", aggregate))
            if present
        ]
        if len(given) > 1:
            self._problem(f"it has {' and '.join(given)}; keep one")
        if reducers == 0:
            if given or combine:
                self._problem(f"reducers: 0 is a map-only job, but it has {(given or ['combine'])[0]}")
            return "none"
        if combine and map_form != "rows":
            self._problem("combine: it folds the values of map(); use aggregate with batches and tables")
        if aggregate:
            if combine:
                self._problem("combine: an aggregate combines by itself; remove it")
            if map_form == "rows":
                self._problem("aggregate: it needs a table; use map_batch() or where/select, not map()")
            return "aggregate"
        if rows:
            if map_form != "rows":
                self._problem("reduce: it takes the pairs of map(); use reduce_batch() or aggregate here")
            return "rows"
        if batch:
            return "batch"
        if map_form == "rows":
            return "fold" if combine else "rows"
        if map_form == "batch" and self.job.key:
            return "batch"  # the inherited reduce_batch passes batches on: rows grouped by key
        if self.job.group_by is not None:
            self._problem("group_by: it needs an aggregate, such as aggregate = {'n': 'count()'}")
        if reducers > 0:
            self._problem(
                "reducers: there is nothing to reduce; define aggregate or reduce_batch(), or leave it"
            )
        return "none"

    def _keys(self, map_form: MapForm, reduce_form: ReduceForm, group_by: tuple[str, ...]) -> tuple[str, ...]:
        """Key columns: `key` and `group_by` are two words for one thing where both could stand."""
        key = self._names("key", self.job.key)
        if key and group_by and key != group_by:
            self._problem("key and group_by name different columns; keep one")
        if map_form == "rows":
            if key or group_by:
                self._problem("key: map() yields (key, value) pairs, so the key has no column names")
            return ()
        if reduce_form == "none":
            return ()
        names = group_by or key
        if not names and reduce_form == "batch":
            self._problem("key: reduce_batch() needs the names of the key columns, such as key = 'station'")
        if not names and reduce_form == "aggregate" and self.job.group_by is None:
            self._problem("group_by: name the columns to group by; () gives one row for the whole input")
        return names

    def _select(self, map_form: MapForm) -> dict[str, str]:
        select = self.job.select
        if select and map_form != "declared":
            self._problem(f"select: it has no effect beside {_MAP_NAMES[map_form]}; compute it there instead")
        if isinstance(select, Mapping):
            return self._expressions("select", select)
        return {name: f"`{name}`" for name in self._names("select", select)}

    # Input, output, resources

    def _input(self) -> InputSpec:
        job = self.job
        paths = input_paths(job.input, self.problems)
        if not paths and job.input is None:
            self._problem("input: there is none; give a file, folder or glob")
        if job.input_format not in ("", *INPUT_FORMATS):
            self._unknown("input_format", job.input_format, INPUT_FORMATS)
        if job.encoding not in ("utf-8", "utf8", "bytes"):
            self._problem(f"encoding: {job.encoding!r} is not 'utf-8' or 'bytes'")
        if job.fingerprint not in FINGERPRINTS:
            self._unknown("fingerprint", job.fingerprint, FINGERPRINTS)
        columns = self._expressions("columns", job.columns)
        self._check_types(columns)
        return InputSpec(
            paths=paths,
            format=str(job.input_format),
            columns=columns,
            dialect=self._dialect(),
            encoding="bytes" if job.encoding == "bytes" else "utf-8",
            fingerprint="full" if job.fingerprint == "full" else "sampled",
        )

    def _check_types(self, columns: dict[str, str]) -> None:
        if not columns:
            return
        for name, type_text in columns.items():
            try:
                check_type(type_text)
            except UsageError as error:
                self._problem(
                    f"columns: {name}: {error.message}" + (f" ({error.cure})" if error.cure else "")
                )

    def _dialect(self) -> CsvDialect | None:
        job = self.job
        given: dict[str, Any] = {
            name: getattr(job, name)
            for name in ("delimiter", "quote", "escape", "header", "null_values")
            if getattr(job, name) is not None
        }
        if not given:
            return None
        before = len(self.problems)
        for name in ("delimiter", "quote", "escape"):
            self._text(name, given.get(name, ""))
        if not isinstance(given.get("header", True), bool):
            self._problem("header: it must be True or False")
        nulls = given.get("null_values", ("",))
        if not isinstance(nulls, (list, tuple)) or not all(isinstance(n, str) for n in nulls):
            self._problem("null_values: it must be a list of strings")
        if len(self.problems) > before:
            return None
        dialect = CsvDialect(**{"delimiter": "", **given, "null_values": tuple(nulls)})
        for name, message, cure in dialect_problems(dialect):
            self._problem(f"{name}: {message}; {cure}")
        return dialect

    def _output(self) -> OutputSpec:
        job = self.job
        paths = absolute_paths(job.output, "output", self.problems)
        if len(paths) > 1:
            self._problem("output: it must be one folder")
        form = job.output_format or "csv"
        if form not in OUTPUT_FORMATS:
            self._unknown("output_format", form, OUTPUT_FORMATS)
        on = job.output_on or "client"
        if on not in ("client", "nodes"):
            self._unknown("output_on", on, ("client", "nodes"))
        return OutputSpec(
            at=cast(OutputAt, on),
            path=paths[0] if paths else "",
            format=cast(OutputFormat, form),
            overwrite=bool(job.overwrite),
        )

    def _reducers(self) -> int:
        value = self.job.reducers
        try:
            return parse_reducers(value)
        except UsageError as error:
            self._problem(f"{error.message}; {error.cure}")
            return -1

    def _priority(self) -> int:
        try:
            return parse_priority(self.job.priority)
        except UsageError as error:
            self._problem(f"{error.message}; {error.cure}")
            return 0

    def _bytes(self, option: str) -> int:
        value = getattr(self.job, option)
        if not value:
            return 0
        try:
            return parse_bytes(value, option)
        except UsageError as error:
            self._problem(error.message)
            return 0

    def _count(self, option: str) -> int:
        value = getattr(self.job, option)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self._problem(f"{option}: {value!r} is not a number of 1 or more")
            return 0
        return value

    # What travels with it

    def _files(self) -> dict[str, str]:
        given = self.job.files
        if isinstance(given, Mapping):
            named = [
                (str(name), absolute_paths(path, "files", self.problems)) for name, path in given.items()
            ]
        else:
            named = [("", (path,)) for path in absolute_paths(given, "files", self.problems)]
        files: dict[str, str] = {}
        for name, paths in named:
            for path in paths:
                name = name or default_name(path)
                problem = file_problem(name, path)
                if problem is None and taken_twice([*files, name]):
                    problem = f"two files are named {name!r}", "give a dict of name: path"
                self._note("files", problem, path)
                files[name] = path
        return files

    def _modules(self) -> tuple[str, ...]:
        modules: dict[str, str] = {}
        for path in absolute_paths(self.job.modules, "modules", self.problems):
            problem = module_problem(path)
            if problem is None and module_name(path) in modules:
                problem = f"two modules are named {module_name(path)!r}", "rename one of them"
            self._note("modules", problem, path)
            modules[module_name(path)] = path
        return tuple(modules.values())

    def _env(self) -> dict[str, str]:
        env = self._expressions("env", self.job.env)
        for name, value in env.items():
            self._note("env", env_problem(name, value))
        return env

    def _note(self, option: str, problem: tuple[str, str] | None, path: str = "") -> None:
        """`path` as it was looked for: what lies beside the class instead is the cure."""
        if problem is None:
            return
        message, cure = problem
        file = getattr(sys.modules.get(type(self.job).__module__), "__file__", None)
        if path and isinstance(file, str) and not os.path.exists(path):
            beside = os.path.join(os.path.dirname(os.path.abspath(file)), os.path.basename(path))
            if os.path.exists(beside):
                cure = f"paths start in the current folder; beside the class there is {beside}"
        self._problem(f"{option}: {message}; {cure}")

    # Kinds of values

    def _text(self, option: str, value: Any) -> str:
        if not isinstance(value, str):
            self._problem(f"{option}: {value!r} is not text")
            return ""
        return value

    def _names(self, option: str, value: Any) -> tuple[str, ...]:
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if isinstance(value, (list, tuple)) and all(isinstance(name, str) and name for name in value):
            return tuple(value)
        self._problem(f"{option}: {value!r} is not a column name or a list of them")
        return ()

    def _expressions(self, option: str, value: Any) -> dict[str, str]:
        if not isinstance(value, Mapping):
            self._problem(f"{option}: {value!r} is not a dict of name: text")
            return {}
        good: dict[str, str] = {}
        for name, text in value.items():
            if isinstance(name, str) and name and isinstance(text, str):
                good[name] = text
            else:
                self._problem(f"{option}: {name!r}: {text!r} must both be text")
        return good

    def _unknown(self, option: str, value: Any, known: Sequence[str]) -> None:
        close = get_close_matches(str(value), known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; one of {', '.join(known)}"
        self._problem(f"{option}: {value!r} is unknown{hint}")

    def _problem(self, text: str) -> None:
        self.problems.append(text)


_MAP_NAMES: dict[MapForm, str] = {"rows": "map()", "batch": "map_batch()", "declared": "select"}


def input_paths(value: Any, problems: list[str]) -> tuple[str, ...]:
    """As `absolute_paths`; names of nodes' files (``data:``) are kept as well."""
    return absolute_paths(value, "input", problems, input_path)


def absolute_paths(
    value: Any, option: str, problems: list[str], absolute: Callable[[str, str], str] = absolute_path
) -> tuple[str, ...]:
    """Path or paths (str or os.PathLike) made absolute from the current folder; globs are kept."""
    if value is None or value == "":
        return ()
    items = [value] if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(items, (list, tuple)):
        problems.append(f"{option}: {value!r} is not a path or a list of paths")
        return ()
    paths = []
    for item in items:
        path = os.fspath(item) if isinstance(item, (str, os.PathLike)) else None
        if not isinstance(path, str):
            problems.append(f"{option}: {item!r} is not a path")
        else:
            try:
                paths.append(absolute(path, current_folder()))
            except UsageError as error:
                problems.append(f"{option}: {error.message}" + (f"; {error.cure}" if error.cure else ""))
    return tuple(paths)


def validate(
    where: str,
    select: Mapping[str, str],
    keys: Sequence[str],
    aggregate: Mapping[str, str],
    problems: list[str],
) -> None:
    """Add what is wrong with expressions and aggregates, each with its caret where it has one."""
    found: list[Problem] = []
    validate_declared(where, select, keys, aggregate, found)
    for problem in found:
        if problem.path == ("group_by",):  # no aggregate: a job class may reduce its keys in other ways
            continue
        text = f"{'.'.join(problem.path)}: {problem.message}" + (f"; {problem.cure}" if problem.cure else "")
        problems.append(text + "".join(f"\n    {line}" for line in problem.shown.splitlines()))

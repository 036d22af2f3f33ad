"""What ``cortex mapreduce TARGET`` may name: a job file, or a class in a Python file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from cortex.api import FunctionJob, MapReduceJob
from cortex.class_spec import build_spec
from cortex.errors import CortexError, UsageError, UserCodeError
from cortex.job.overrides import Overrides
from cortex.job.spec import CsvDialect, JobSpec
from cortex.user_code import load_object, make_importable, user_traceback

if TYPE_CHECKING:
    from cortex.job.yaml_file import JobFile


@dataclass(frozen=True)
class LoadedJob:
    """A validated job. `code` is None when it needs none; `modules` are those it came from."""

    spec: JobSpec
    code: MapReduceJob | None = None
    modules: tuple[str, ...] = ()


def load_target(target: str, options: Overrides) -> LoadedJob:
    """Load and validate; raises UsageError, JobFileError or UserCodeError."""
    if target.endswith((".yaml", ".yml")):
        return load_yaml_job(target, options)
    if ".py:" in target:
        return load_class_job(load_object(target), target, options)
    if target.endswith(".py"):
        raise UsageError(
            f"{target!r} names a file, not a job in it", cure=f"name its class too: {target}:ClassName"
        )
    raise UsageError(
        f"{target!r} is neither a job file nor a class",
        cure="give job.yaml, or file.py:Name such as wordcount.py:WordCount",
    )


def load_yaml_job(path: str, options: Overrides) -> LoadedJob:
    """A job file, with the class or functions it names."""
    from cortex.job.yaml_file import load_job_file  # yaml is slow to import, and a class needs none

    file = load_job_file(path, options)
    make_importable(file.spec.modules)
    if file.job:
        return _class_of_file(file, options)
    if not (file.map or file.reduce):
        return LoadedJob(file.spec)
    functions = {
        name: load_object(ref) for name in ("map", "reduce", "combine") if (ref := getattr(file, name))
    }
    for name, function in functions.items():
        if not callable(function) or isinstance(function, type):
            raise UsageError(f"{path}: {name}: {getattr(file, name)} is no function")
    spec = file.spec
    if spec.resources.reducers == 0 and "reduce" not in functions and not spec.combine:
        spec = msgspec.structs.replace(spec, reduce_form="none")
    job = FunctionJob(
        functions.get("map"), functions.get("reduce"), functions.get("combine") or spec.combine or None
    )
    return LoadedJob(spec, job, tuple(dict.fromkeys(f.__module__ for f in functions.values())))


def _class_of_file(file: JobFile, options: Overrides) -> LoadedJob:
    """The class that `job:` names; what the file says comes before the class, the options before both."""
    target, spec = file.job, file.spec
    job = _job_object(load_object(target), target)
    dialect = spec.input.dialect or CsvDialect()
    said: dict[str, Any] = {
        "name": spec.name,
        "input.path": list(spec.input.paths),
        "input.format": spec.input.format,
        "input.columns": spec.input.columns,
        "input.encoding": spec.input.encoding,
        "input.fingerprint": spec.input.fingerprint,
        "output.path": spec.output.path,
        "output.format": spec.output.format,
        "output.on": spec.output.at,
        "output.overwrite": spec.output.overwrite,
        "resources.memory": spec.resources.memory_bytes,
        "resources.slots": spec.resources.slots,
        "resources.reducers": "auto" if spec.resources.reducers < 0 else spec.resources.reducers,
        "resources.split_size": spec.resources.split_bytes,
        "files": spec.files,
        "modules": spec.modules,
        "env": spec.env,
        "priority": spec.priority,
    } | {f"input.{name}": getattr(dialect, name) for name in CsvDialect.__struct_fields__}
    for key in file.given & said.keys():
        setattr(job, _ATTRIBUTES.get(key, key.rpartition(".")[2]), said[key])
    apply_options(job, options)
    return LoadedJob(build_spec(job, target), job, (type(job).__module__,))


_ATTRIBUTES = {
    "input.path": "input",
    "input.format": "input_format",
    "output.path": "output",
    "output.on": "output_on",
    "output.format": "output_format",
}
"""Attributes of a job class whose name is not the job file's last word."""


def load_class_job(job_class: Any, target: str, options: Overrides) -> LoadedJob:
    """A job object of a MapReduceJob subclass (or the object itself), with the options applied."""
    job = _job_object(job_class, target)
    apply_options(job, options)
    return LoadedJob(build_spec(job, target), job, (type(job).__module__,))


def _job_object(found: Any, target: str) -> MapReduceJob:
    if isinstance(found, type) and issubclass(found, MapReduceJob):
        return _instance(found, target)
    if isinstance(found, MapReduceJob):
        return found
    raise UsageError(
        f"{target} is {'a function' if callable(found) else 'a value'}, not a job class",
        cure="name a subclass of cortex.MapReduceJob; functions go in job.yaml (map: file.py:name)",
    )


def _instance(job_class: type[MapReduceJob], target: str) -> MapReduceJob:
    try:
        return job_class()
    except CortexError:
        raise
    except Exception as error:
        if isinstance(error, TypeError) and error.__traceback__ and error.__traceback__.tb_next is None:
            raise UsageError(
                f"{target} cannot be made without arguments: {error}",
                cure="give the parameters of __init__ defaults, or make them class attributes",
            ) from error
        raise UserCodeError(
            f"{target} cannot be made: {type(error).__name__}: {error}".rstrip(": "),
            cure="its __init__ runs here, without arguments, before the job is sent to the executors",
            details={"traceback": user_traceback(error)},
        ) from error


def apply_options(job: MapReduceJob, options: Overrides) -> None:
    """What the command line says replaces what the class says."""
    given: dict[str, Any] = {
        "input": list(options.inputs) or None,
        "output": options.output,
        "output_on": options.output_on,
        "overwrite": options.overwrite,
        "memory": options.memory_bytes,
        "slots": options.slots,
        "reducers": options.reducers if options.reducers != -1 else "auto",
        "split_size": options.split_bytes,
        "priority": options.priority,
        "input_format": options.input_format,
        "output_format": options.output_format,
        "fingerprint": options.fingerprint,
    }
    for name, value in given.items():
        if value is not None:
            setattr(job, name, value)

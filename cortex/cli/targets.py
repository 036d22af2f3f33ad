"""What ``cortex mapreduce TARGET`` may name: a job file, or a class in a Python file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cortex.api import MapReduceJob
from cortex.class_spec import build_spec
from cortex.cli.options import RunOptions
from cortex.errors import CortexError, UsageError
from cortex.job.spec import JobSpec
from cortex.user_code import load_object


@dataclass(frozen=True)
class LoadedJob:
    """A validated job. `code` is None when it needs none; `modules` are those it came from."""

    spec: JobSpec
    code: MapReduceJob | None = None
    modules: tuple[str, ...] = ()


def load_target(target: str, options: RunOptions) -> LoadedJob:
    """Load and validate; raises UsageError, JobFileError or UserCodeError."""
    if target.endswith((".yaml", ".yml")):
        from cortex.cli.job_files import load_yaml_job

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


def load_class_job(job_class: Any, target: str, options: RunOptions) -> LoadedJob:
    """A job object of a MapReduceJob subclass (or the object itself), with the options applied."""
    if isinstance(job_class, type) and issubclass(job_class, MapReduceJob):
        job = _instance(job_class, target)
    elif isinstance(job_class, MapReduceJob):
        job = job_class
    else:
        raise UsageError(
            f"{target} is {'a function' if callable(job_class) else 'a value'}, not a job class",
            cure="name a subclass of cortex.MapReduceJob; functions go in job.yaml (map: file.py:name)",
        )
    apply_options(job, options)
    return LoadedJob(build_spec(job, target), job, (type(job).__module__,))


def _instance(job_class: type[MapReduceJob], target: str) -> MapReduceJob:
    try:
        return job_class()
    except CortexError:
        raise
    except TypeError as error:
        raise UsageError(
            f"{target} cannot be made without arguments: {error}",
            cure="give the parameters of __init__ defaults, or make them class attributes",
        ) from error


def apply_options(job: MapReduceJob, options: RunOptions) -> None:
    """What the command line says replaces what the class says."""
    given: dict[str, Any] = {
        "input": list(options.inputs) or None,
        "output": options.output,
        "overwrite": options.overwrite or None,
        "memory": options.memory_bytes,
        "slots": options.slots,
        "reducers": options.reducers if options.reducers != -1 else "auto",
        "split_size": options.split_bytes,
        "input_format": options.input_format,
        "output_format": options.output_format,
    }
    for name, value in given.items():
        if value is not None:
            setattr(job, name, value)

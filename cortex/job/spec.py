"""JobSpec: what the user asked for, as validated plain data. User code travels beside it, opaque.

Built by `cortex.job.yaml_file` from job.yaml and by `cortex.api` from a MapReduceJob; read by the
server (which never sees the code) and by the executors.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cortex.limits import PRIORITY_MAX, PRIORITY_MIN

InputFormat = Literal["text", "csv", "tsv", "parquet", "arrow"]
OutputFormat = Literal["csv", "tsv", "jsonl", "parquet", "arrow", "text"]
INPUT_FORMATS: tuple[str, ...] = ("text", "csv", "tsv", "parquet", "arrow")
OutputAt = Literal["client", "nodes", "kept"]
OUTPUT_FORMATS: tuple[str, ...] = ("csv", "tsv", "jsonl", "parquet", "arrow", "text")

Fingerprint = Literal["sampled", "full"]
FINGERPRINTS: tuple[str, ...] = ("sampled", "full")

MapForm = Literal["declared", "rows", "batch"]
ReduceForm = Literal["none", "aggregate", "fold", "rows", "batch"]
Combine = Literal["", "sum", "min", "max", "binary", "method"]


class CsvDialect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a CSV or TSV file is written. `quote` or `escape` "" means there is none.

    `delimiter` "" in a job's spec: none was said, each file has its format's (`formats.input_files`).

    A field is null when it equals one of `null_values`; in a text or bytes column only if it is not quoted.
    """

    delimiter: str = ","
    quote: str = '"'
    escape: str = ""
    header: bool = True
    null_values: tuple[str, ...] = ("",)


class InputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the records are. `paths` are absolute files, folders or globs."""

    paths: tuple[str, ...]
    format: str = ""
    """One of INPUT_FORMATS; "" takes it from each file's ending (then text)."""
    columns: dict[str, str] = {}
    """Column name -> Arrow type name. With ``header: false`` these are the columns, in order."""
    dialect: CsvDialect | None = None
    """None: commas for csv, tabs for tsv, double quotes, a header."""
    encoding: str = "utf-8"
    """Text records: ``utf-8`` gives str, ``bytes`` gives bytes."""
    fingerprint: Fingerprint = "sampled"
    """On a cluster: how much of a file is compared to know whether a node has the same (`full`: all)."""


class OutputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str = ""
    """Absolute folder; "" shows the result instead."""
    format: str = "csv"
    overwrite: bool = False
    at: OutputAt = "client"
    """Where it is put: ``client`` brings it to the machine that submits; ``nodes`` writes to a path that all
    nodes share; ``kept`` (a detached job) leaves it with the nodes, as files for whoever fetches them."""


class Resources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    memory_bytes: int = 0
    """Cap of everything cortex starts; 0: half of what the machine or its cgroup has. On a cluster: cap of
    the job's executors at each node, which has at least as much; 0: as its slots have."""
    slots: int = 0
    """Executors at once; 0: as many as there are processors, fewer under a small cap. On a cluster: slots of
    all nodes together that the job may have; 0: its share."""
    reducers: int = -1
    """-1: from the input's bytes; 0: map-only."""
    split_bytes: int = 0
    """0: 64 MB, less for inputs under 2 GB (`cortex.formats.planning.default_split_bytes`)."""


class JobSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One job. Expressions and aggregates are text here, parsed again (never evaluated) where used.

    * ``map_form``: ``declared`` keeps the rows where `where` holds and computes `select`
      (empty: all columns); ``rows`` calls ``map(record)``; ``batch`` calls ``map_batch(batch)``.
    * ``reduce_form``: ``none`` writes map output; ``aggregate`` groups by `group_by` and computes
      `aggregate`; ``fold`` emits each key with its combined value; ``rows`` calls
      ``reduce(key, values)``; ``batch`` calls ``reduce_batch(batches)``.
    """

    name: str
    input: InputSpec
    output: OutputSpec = OutputSpec()
    resources: Resources = Resources()
    map_form: MapForm = "declared"
    where: str = ""
    select: dict[str, str] = {}
    reduce_form: ReduceForm = "none"
    group_by: tuple[str, ...] = ()
    """Key columns: of an aggregation, or those `map_batch` returns (the class attribute ``key``)."""
    aggregate: dict[str, str] = {}
    """Output column -> aggregate call, such as ``mean(f)``."""
    combine: Combine = ""
    custom_partition: bool = False
    code_name: str = ""
    """How the user named the code (``wordcount.py:WordCount``); "" when there is none."""
    files: dict[str, str] = {}
    """Side files: the name tasks ask for -> the client's absolute path, of a file or a folder."""
    modules: tuple[str, ...] = ()
    """The client's absolute paths of .py files and package folders that tasks import by name."""
    env: dict[str, str] = {}
    """Set in the job's executors before its code is loaded."""
    compute: bool = False
    """No input and no output: functions are called with what the client sends (`cortex compute`)."""
    priority: Annotated[int, msgspec.Meta(ge=PRIORITY_MIN, le=PRIORITY_MAX)] = 0
    """PRIORITY_MIN to PRIORITY_MAX, among the jobs of one user (`cortex.scheduling.fair_share`)."""

"""`MapReduceJob`: a job as a Python class, run from a script, a notebook or the command line.

    import cortex

    class WordCount(cortex.MapReduceJob):
        combine = sum

        def map(self, line):
            for word in line.split():
                yield word, 1

    counts = WordCount(input="docs/*.txt").run()       # a cortex.Result
    for word, count in counts: ...

    if __name__ == "__main__":
        WordCount.main()                               # python wordcount.py 'docs/*.txt' -o counts/

A job has one map form (`map`, `map_batch`, or declared by `where` and `select`) and one reduce form
(`reduce`, `reduce_batch`, declared by `group_by` and `aggregate`, or a `combine` alone). Which ones a class
means is read from what it overrides (see `cortex.class_spec`).

The class is imported by executors too (user classes derive from it), so importing this module must stay
cheap: client, results and the command line are imported where they are used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

from cortex.errors import UsageError
from cortex.limits import RESULTS_S
from cortex.side_files import path_of

if TYPE_CHECKING:
    from cortex.clusters import Client, LocalCluster
    from cortex.job_handle import JobHandle
    from cortex.result import Result
    from cortex.wire.messages import JobProgress

OPTIONS = (
    "name", "input", "output", "output_on", "overwrite", "input_format", "output_format", "encoding",
    "fingerprint",
    "columns", "delimiter", "quote", "escape", "header", "null_values", "key", "where", "select", "group_by",
    "aggregate", "reducers", "memory", "slots", "split_size", "priority", "files", "modules", "env",
)  # fmt: skip
"""Class attributes with a meaning, which `MapReduceJob(...)` takes as keyword arguments too."""


class Counter:
    """A count a job keeps beside its output; executors' counts are summed in ``result.counters``.

    Only finished attempts count, each task once, whatever was retried.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, n: int = 1) -> None:
        self.value += n


class MapReduceJob:
    """Base of a user's job. Class attributes are options; override the methods the job needs.

    Options: `name`; `input` (path, folder, glob or a list of them); `output` (folder; None shows the
    result); `output_on` ("client", or "nodes" for a path that all nodes of a cluster see, and write to);
    `overwrite`; `input_format` (text, csv, tsv, parquet, arrow; "" goes by each file's ending);
    `output_format` (csv, tsv, jsonl, parquet, arrow, text); `encoding` ("utf-8", or "bytes" for bytes
    records of text); `columns` ({name: type}, overrides what is inferred); `delimiter`, `quote`, `escape`,
    `header`, `null_values` (CSV dialect); `fingerprint` ("full": a node's file is compared with the client's
    as a whole, not by samples); `key` (name or names of the key columns that `map_batch` returns); `where`,
    `select`, `group_by`, `aggregate` (declared forms, as in job.yaml); `reducers` ("auto", a number, 0 for a
    map-only job); `memory`, `slots`, `split_size`; `priority` (-2 to 2, among your jobs on a
    cluster); `files` (paths of files and
    folders that tasks open by ``self.file(name)``, or {name: path}); `modules` (.py files and package folders
    that tasks import by name); `env` ({name: text}, environment variables of the tasks).

    `combine` is ``sum``, ``min`` or ``max``, a binary function (`operator.or_`; folded as values arrive) or
    a method ``combine(self, key, values)`` that yields pairs with the same key. It must be associative.
    Sums of ints, floats, complex numbers and Decimals are exact; other values (NumPy arrays, objects of your
    classes) are added with their own ``+``, which must be associative: cortex chooses what is added first.
    Without `reduce` the combined value is the output. Without both, every pair is output, grouped by key;
    with ``reducers = 0`` map's pairs are the output as they come.
    """

    name: str = ""
    input: Any = None
    output: Any = None
    output_on: str = ""
    overwrite: bool = False
    input_format: str = ""
    output_format: str = ""
    encoding: str = "utf-8"
    fingerprint: str = "sampled"
    columns: Mapping[str, str] = {}
    delimiter: str | None = None
    quote: str | None = None
    escape: str | None = None
    header: bool | None = None
    null_values: Sequence[str] | None = None
    key: str | Sequence[str] = ()
    where: str = ""
    select: Mapping[str, str] | Sequence[str] = {}
    group_by: str | Sequence[str] | None = None
    aggregate: Mapping[str, str] = {}
    reducers: int | str = "auto"
    memory: int | str = 0
    slots: int = 0
    split_size: int | str = 0
    priority: int = 0
    files: Any = ()
    modules: Any = ()
    env: Mapping[str, str] = {}
    combine: Any = None

    _code_name: ClassVar[str] = ""

    def __init__(self, input: Any = None, output: Any = None, **overrides: Any) -> None:
        if input is not None:
            self.input = input
        if output is not None:
            self.output = output
        for name, value in overrides.items():
            if name.startswith("_") or not hasattr(type(self), name) or name in METHODS:
                known = [*OPTIONS, *(n for n in vars(type(self)) if not n.startswith("_"))]
                close = get_close_matches(name, known, 1)
                raise UsageError(
                    f"{type(self).__name__} has no option {name!r}",
                    cure=f"did you mean {close[0]!r}?" if close else "set it as a class attribute first",
                )
            setattr(self, name, value)

    # --- what a job may override ------------------------------------------------------------------

    def map(self, record: Any) -> Iterable[tuple[Any, Any]] | None:
        """Yield (key, value) pairs for one record: a line of text (str) or a row of a table."""
        raise UsageError(f"{type(self).__name__} defines no map()")

    def map_batch(self, batch: Any) -> Any:
        """Return a RecordBatch for a RecordBatch, row by row: cortex chooses where batches are cut."""
        raise UsageError(f"{type(self).__name__} defines no map_batch()")

    def reduce(self, key: Any, values: Iterator[Any]) -> Iterable[tuple[Any, Any]]:
        """Yield output pairs for one key. `values` is a stream in input order, read once."""
        for value in values:
            yield key, value

    def reduce_batch(self, batches: Iterator[Any]) -> Iterable[Any]:
        """Yield output batches for bounded, key-ordered batches; a group may span several of them."""
        yield from batches

    def partition(self, key: Any, n: int) -> int:
        """The reducer, in range(n), that gets `key`. Overriding it gives up the promise of row order."""
        raise UsageError(f"{type(self).__name__} defines no partition()")

    def setup(self) -> None:
        """Called once before each task's first record."""

    def cleanup(self) -> None:
        """Called once after each task's last record, unless the task failed."""

    def counter(self, group: str, name: str) -> Counter:
        """The counter of that name; ``self.counter("words", "empty lines").add(1)``."""
        counters: dict[tuple[str, str], Counter] = self.__dict__.setdefault("_counters", {})
        counter = counters.get((group, name))
        if counter is None:
            counter = counters[group, name] = Counter()
        return counter

    def file(self, name: str) -> str:
        """In a task: the path of the side file `name` (see `files`), or of a folder of them. Read-only.

        ``cortex.file(name)`` is the same, for functions and helper modules.
        """
        return path_of(name)

    # --- running ----------------------------------------------------------------------------------

    @overload
    def run(
        self,
        client: Client | LocalCluster | None = None,
        on_progress: Callable[[JobProgress], None] | None = None,
        *,
        detach: Literal[False] = False,
    ) -> Result: ...
    @overload
    def run(
        self,
        client: Client | LocalCluster | None = None,
        on_progress: None = None,
        *,
        detach: Literal[True],
        keep_results: str | float = RESULTS_S,
    ) -> JobHandle: ...

    def run(
        self,
        client: Client | LocalCluster | None = None,
        on_progress: Callable[[JobProgress], None] | None = None,
        *,
        detach: bool = False,
        keep_results: str | float = RESULTS_S,
    ) -> Result | JobHandle:
        """Run the job and return its `Result`: on the client's cluster, else on CORTEX_SERVER's if that is
        set, else on this machine. Raises CortexError subclasses.

        `on_progress` is called in this thread, a few times a second.

        With `detach` the job goes on by itself at the cluster, and its `JobHandle` is returned once its input
        is planned. Its result is kept there for `keep_results` after its end (``"7d"``, or seconds).
        """
        if detach:
            from cortex.job_handle import detach_class_job

            return detach_class_job(self, None if client is None else client.config, keep_results)
        from cortex.local_run import run_class_job

        return run_class_job(self, None if client is None else client.config, on_progress)

    @classmethod
    def main(cls, argv: Sequence[str] | None = None) -> None:
        """The command line of a script: ``python wordcount.py 'docs/*.txt' -o counts/``, then exit."""
        import sys

        from cortex.client.embedded_start import start_early

        arguments = list(sys.argv[1:] if argv is None else argv)
        start_early(arguments)
        from cortex.cli.mapreduce import class_main

        sys.exit(class_main(cls, arguments))

    # --- what executors call besides (see cortex.job.protocol) ------------------------------------

    @property
    def combine_function(self) -> Any:
        return plain_function(inspect.getattr_static(self, "combine"))

    def _take_counters(self) -> dict[str, dict[str, int]]:
        taken: dict[str, dict[str, int]] = {}
        counters: dict[tuple[str, str], Counter] = self.__dict__.get("_counters", {})
        for (group, name), counter in counters.items():
            if counter.value:
                taken.setdefault(group, {})[name] = counter.value
                counter.value = 0
        return taken


METHODS = frozenset(n for n, v in vars(MapReduceJob).items() if inspect.isfunction(v)) | {"main", "combine"}


class FunctionJob(MapReduceJob):
    """The job object for functions named in job.yaml: ``map: mod.py:function`` and so on.

    `map` takes the record, `reduce` the key and its values; `combine` is "sum", "min", "max" or a binary
    function.
    """

    def __init__(
        self,
        map: Callable[..., Any] | None = None,
        reduce: Callable[..., Any] | None = None,
        combine: Any = None,
    ) -> None:
        super().__init__()
        # Instance attributes shadow the methods, so an executor's calls reach the functions directly.
        if map is not None:
            self.map = map  # type: ignore[method-assign]
        if reduce is not None:
            self.reduce = reduce  # type: ignore[method-assign]
        if combine is not None:
            self.combine = combine


def plain_function(found: Any) -> Any:
    """What `inspect.getattr_static` found, without its staticmethod or classmethod wrapper."""
    return found.__func__ if isinstance(found, (staticmethod, classmethod)) else found

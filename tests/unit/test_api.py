"""What a job class means, and what is said about one that means nothing."""

from __future__ import annotations

import operator
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import cortex
from cortex.api import FunctionJob, MapReduceJob
from cortex.class_spec import build_spec
from cortex.errors import JobFileError, UsageError, UserCodeError
from cortex.job.spec import CsvDialect, JobSpec
from cortex.tasks.runner import JobContext
from cortex.wire.messages import MapResult, MapTask, OpenJob, PlanResult, PlanTask


class WordCount(MapReduceJob):
    input = "docs/*.txt"
    combine = sum

    def map(self, line: str) -> Any:
        for word in line.split():
            yield word, 1


class Stations(MapReduceJob):
    input = "m.csv"
    where = "temp > -90"
    select = {"station": "station", "f": "temp * 9 / 5 + 32"}  # noqa: RUF012
    group_by = "station"
    aggregate = {"coldest": "min(f)", "n": "count()"}  # noqa: RUF012


class Batches(MapReduceJob):
    input = "m.csv"
    key = ("a", "b")

    def map_batch(self, batch: Any) -> Any:
        return batch


def spec_of(job_class: type[MapReduceJob] = WordCount, **attributes: Any) -> JobSpec:
    return build_spec(type("Job", (job_class,), attributes)())


def problems_of(job_class: type[MapReduceJob] = WordCount, **attributes: Any) -> str:
    with pytest.raises(JobFileError) as caught:
        spec_of(job_class, **attributes)
    return caught.value.message


def test_row_job_with_a_combine_alone_is_a_fold() -> None:
    spec = build_spec(WordCount())
    assert (spec.map_form, spec.reduce_form, spec.combine) == ("rows", "fold", "sum")
    assert spec.name == "WordCount"
    assert spec.code_name == "WordCount"
    assert spec.input.paths == (os.path.abspath("docs/*.txt"),)
    assert spec.resources.reducers == -1
    assert spec.output.path == ""


def test_declared_job() -> None:
    spec = build_spec(Stations())
    assert (spec.map_form, spec.reduce_form, spec.combine) == ("declared", "aggregate", "")
    assert spec.group_by == ("station",)
    assert spec.aggregate == {"coldest": "min(f)", "n": "count()"}
    assert spec.select == {"station": "station", "f": "temp * 9 / 5 + 32"}


def test_filter_without_aggregate_is_map_only() -> None:
    spec = spec_of(Stations, aggregate={}, group_by=None)
    assert (spec.reduce_form, spec.resources.reducers) == ("none", 0)


def test_reduce_forms_of_rows() -> None:
    def reduce(self: Any, key: Any, values: Any) -> Any:
        yield key, list(values)

    def reduce_batch(self: Any, batches: Any) -> Any:
        return batches

    assert spec_of(reduce=reduce).reduce_form == "rows"
    assert spec_of(reduce=reduce, combine=None).combine == ""
    assert spec_of(reduce_batch=reduce_batch, key=()).reduce_form == "batch"
    assert spec_of(combine=None).reduce_form == "rows"  # pairs grouped by key: the inherited reduce
    assert spec_of(combine=None, reducers=0).reduce_form == "none"


def test_reduce_forms_of_batches() -> None:
    assert build_spec(Batches()).reduce_form == "batch"
    assert build_spec(Batches()).group_by == ("a", "b")
    assert spec_of(Batches, key=()).reduce_form == "none"
    assert spec_of(Batches, aggregate={"n": "count()"}).reduce_form == "aggregate"
    assert spec_of(Batches, aggregate={"n": "count()"}, key=(), group_by=()).group_by == ()


@pytest.mark.parametrize(
    ("combine", "kind"),
    [
        (sum, "sum"),
        (min, "min"),
        (max, "max"),
        ("max", "max"),
        (operator.or_, "binary"),
        (lambda a, b: a + b, "binary"),
        (staticmethod(lambda a, b: a + b), "binary"),
        (np.add, "binary"),
        (lambda self, key, values: [(key, sum(values))], "method"),
        (None, ""),
    ],
)
def test_combine_kinds(combine: Any, kind: str) -> None:
    assert spec_of(combine=combine).combine == kind


def test_the_binary_combine_is_called_with_two_values() -> None:
    job = type("Job", (WordCount,), {"combine": lambda a, b: a * 10 + b})()
    assert job.combine_function(1, 2) == 12


@pytest.mark.parametrize("combine", [lambda: 0, lambda a: a, 7, "avg", staticmethod(lambda a, b, c: a)])
def test_a_combine_that_is_none(combine: Any) -> None:
    assert "combine:" in problems_of(combine=combine)


def test_all_problems_are_reported_together() -> None:
    message = problems_of(
        input=None,
        input_format="cvs",
        output_format="xlsx",
        encoding="latin1",
        delimiter=";;",
        reducers="many",
        memory="lots",
        slots=-1,
        map_batch=lambda self, batch: batch,
        where="x > 1",
        aggregate={"n": "count()"},
    )
    for expected in (
        "input: there is none",
        "did you mean 'csv'",
        "output_format: 'xlsx'",
        "encoding: 'latin1'",
        "delimiter: ';;'",
        "reducers: 'many'",
        "memory: 'lots'",
        "slots: -1",
        "both map() and map_batch()",
        "where: it has no effect",
        "aggregate: it needs a table",
    ):
        assert expected in message
    assert all(line.startswith("Job: ") for line in message.split("\n"))


@pytest.mark.parametrize(
    ("job_class", "attributes", "expected"),
    [
        (MapReduceJob, {"input": "x"}, "it has no map"),
        (Stations, {"group_by": None}, "group_by: name the columns"),
        (Stations, {"aggregate": {}}, "group_by: it needs an aggregate"),
        (Stations, {"reducers": 0}, "map-only"),
        (Stations, {"reduce": lambda self, k, v: ()}, "keep one"),
        (Stations, {"combine": sum}, "an aggregate combines by itself"),
        (Stations, {"partition": lambda self, key, n: 0}, "partition:"),
        (Stations, {"key": "other"}, "name different columns"),
        (Batches, {"key": ("a", "a")}, "named twice"),
        (Stations, {"where": "temp >"}, "where:"),
        (Stations, {"aggregate": {"n": "cuont()"}}, "aggregate.n:"),
        (Stations, {"aggregate": {"n": "min(g)"}}, "'g' is not a column of select"),
        (Batches, {"aggregate": {"n": "cuont()"}}, "aggregate.n:"),
        (Batches, {"partition": lambda self, key, n: 0}, "partition:"),
        (Stations, {"setup": lambda self: None}, "setup: a declared job"),
        (Batches, {"select": {"a": "a"}}, "select: it has no effect"),
        (Batches, {"key": (), "reducers": 2}, "nothing to reduce"),
        (WordCount, {"key": "word"}, "pairs"),
        (WordCount, {"input": ["a", 3]}, "input: 3 is not a path"),
        (WordCount, {"input": "s3://bucket/x"}, "not on this machine"),
        (WordCount, {"output": "caf\udce9"}, "not UTF-8"),
        (WordCount, {"columns": ["a"]}, "columns:"),
        (WordCount, {"output": ["a", "b"]}, "one folder"),
        (WordCount, {"header": "no"}, "header:"),
        (WordCount, {"null_values": "NA"}, "null_values:"),
    ],
)
def test_problems(job_class: type[MapReduceJob], attributes: dict[str, Any], expected: str) -> None:
    assert expected in problems_of(job_class, **attributes)


def test_constructor_overrides_options_and_own_attributes() -> None:
    class Tuned(WordCount):
        least = 3

    job = Tuned(input=["a", "b"], output="out", least=5, reducers=2, memory="64MB")
    assert job.least == 5
    spec = build_spec(job)
    assert len(spec.input.paths) == 2
    assert spec.output.path == os.path.abspath("out")
    assert spec.resources.memory_bytes == 64 * 1024 * 1024
    assert Tuned.least == 3
    with pytest.raises(UsageError, match="reducerz") as caught:
        WordCount(reducerz=3)
    assert "reducers" in caught.value.cure
    for name in ("map", "_counters", "combine"):
        with pytest.raises(UsageError):
            WordCount(**{name: 1})


def test_dialect() -> None:
    assert build_spec(WordCount()).input.dialect is None
    spec = spec_of(delimiter=";", null_values=["", "NA"], header=False)
    assert spec.input.dialect == CsvDialect(delimiter=";", null_values=("", "NA"), header=False)
    assert spec_of(input_format="tsv", quote="").input.dialect == CsvDialect(delimiter="", quote="")


class FailsOnce(MapReduceJob):
    reducers = 0
    failed = False

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        self.counter("lines", "seen").add()
        if line == "b" and not self.failed:
            self.failed = True
            raise ValueError
        yield line, 1


def test_an_attempt_that_failed_leaves_nothing_in_the_counters_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\nb\nc\n")
    job = FailsOnce(str(tmp_path / "in.txt"), str(tmp_path / "out"))
    code, folder = cloudpickle.dumps(job), str(tmp_path)
    context = JobContext(OpenJob("j0", build_spec(job), code, (), folder, folder, 0))
    planned = context.run("j0-plan.0", PlanTask(), print)
    assert isinstance(planned, PlanResult)
    context.planned(planned.plan)
    task = MapTask(0, planned.plan.splits)
    with pytest.raises(UserCodeError):
        context.run("j0-m000000.0", task, print)
    done = context.run("j0-m000000.1", task, print)
    assert isinstance(done, MapResult)
    assert done.counters == {"lines": {"seen": 3}}


def test_counters_are_taken_once_and_stay_usable() -> None:
    job = WordCount()
    kept = job.counter("words", "empty")
    kept.add()
    job.counter("words", "empty").add(4)
    job.counter("words", "never")
    assert job._take_counters() == {"words": {"empty": 5}}
    assert job._take_counters() == {}
    kept.add(2)
    assert job._take_counters() == {"words": {"empty": 2}}
    assert pickle.loads(pickle.dumps(job)).map("a b") is not None


def test_function_job() -> None:
    def mapper(record: Any) -> Any:
        yield record, 1

    job = FunctionJob(map=mapper, combine=operator.add)
    job.input = "x"
    spec = build_spec(job, "job.yaml")
    assert (spec.map_form, spec.reduce_form, spec.combine) == ("rows", "fold", "binary")
    assert list(job.map("r") or ()) == [("r", 1)]
    assert job.combine_function(1, 2) == 3


def test_the_package_exports_lazily() -> None:
    assert cortex.MapReduceJob is MapReduceJob
    assert "MapReduceJob" in dir(cortex)
    with pytest.raises(AttributeError, match="no attribute 'MapReduceJobs'"):
        _ = cortex.MapReduceJobs  # type: ignore[attr-defined]


def test_a_misspelt_attribute_or_method_is_said_aloud() -> None:
    class Misspelt(MapReduceJob):
        input = "x.txt"
        aggregat = {"n": "count()"}  # noqa: RUF012
        mapper = None
        threshold = 3

        def map(self, record: str) -> Any:
            yield record, 1

        def reduc(self, key: str, values: Any) -> Any:
            yield key, sum(values)

    with pytest.warns(UserWarning, match="means nothing to cortex") as caught:
        build_spec(Misspelt())
    assert [str(w.message) for w in caught] == [
        "Misspelt.aggregat means nothing to cortex; did you mean 'aggregate'?",
        "Misspelt.reduc means nothing to cortex; did you mean 'reduce'?",
    ]

"""The promised surface, option by option: what the command line, job files and job classes take."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pytest

import cortex as package
from cortex.api import MapReduceJob
from cortex.class_spec import build_spec
from cortex.cli import mapreduce as command
from cortex.cli import progress as progress_module
from cortex.cli.__main__ import main
from cortex.cli.app import cortex
from cortex.cli.progress import progress_display
from cortex.cli.targets import load_target
from cortex.errors import UsageError
from cortex.formats.planning import plan_inputs
from cortex.job.overrides import Overrides
from cortex.job.spec import CsvDialect, InputSpec
from cortex.shuffle import pieces
from cortex.tasks.budget import Budget
from cortex.wire.messages import JobProgress, StageProgress
from tests.one_process import run_tasks

OPTIONS = [
    *("--input", "a.csv", "-i", "b.csv", "--output", "out", "--overwrite", "--memory", "512MB"),
    *("--slots", "3", "--reducers", "auto", "--split-size", "7MB", "--format", "tsv"),
    *("--output-format", "parquet", "--json", "--quiet", "c.csv"),
]
WANTED = Overrides(
    inputs=("a.csv", "b.csv", "c.csv"),
    output="out",
    overwrite=True,
    memory_bytes=512 << 20,
    slots=3,
    reducers=-1,
    split_bytes=7 << 20,
    input_format="tsv",
    output_format="parquet",
)


class Words(MapReduceJob):
    def map(self, line: str) -> Iterator[tuple[str, int]]:
        for word in line.split():
            yield word, len(word)


# --- the command line -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["cortex mapreduce", "python job.py"])
def test_every_option_reaches_the_job(
    way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def load(target: Any, name: Any, options: Any = None) -> Any:
        seen.append(options or name)
        raise UsageError("seen")

    monkeypatch.setattr(command, "load_target", load)
    monkeypatch.setattr(command, "load_class_job", lambda job_class, name, options: load(job_class, options))
    if way == "cortex mapreduce":
        assert main(["mapreduce", "job.yaml", *OPTIONS]) == 2
    else:
        assert command.class_main(Words, OPTIONS) == 2
    assert seen == [WANTED]
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"  # --json was understood too


def test_json_and_its_kin_are_options_of_every_command_with_a_result() -> None:
    for name, found in cortex.commands.items():
        options = {flag for param in found.params if isinstance(param, click.Option) for flag in param.opts}
        without = {
            "help",
            "server",
            "node",
            "login",
            "cancel",
            "drain",
            "forget",
            "nodes",
            "token",
            "kill-cluster",
            "kill_cluster",
        }
        if name not in without:
            assert "--json" in options, name
        if name == "mapreduce":
            assert {"--quiet", "-q", "-i", "-o"} <= options


def test_ls_splits_reads_as_the_format_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("a\tb\n1\t2\n")
    assert main(["ls-splits", str(tmp_path / "notes.txt"), "--format", "tsv", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [column["name"] for column in plan["columns"]] == ["a", "b"]
    assert plan["files"][0]["format"] == "tsv"


@pytest.mark.parametrize("ending", ["arrow", "feather", "ipc", "FEATHER"])
def test_arrow_files_are_known_by_their_endings(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    table = pa.table({"n": range(9)})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    plan = plan_inputs(InputSpec((str(path),)), used_columns=None, split_bytes=1)
    assert plan.files[0].format == "arrow"
    assert [split.rows for split in plan.splits] == [4, 4, 1]


# --- progress -------------------------------------------------------------------------------------------

STAGES = (
    StageProgress("map", 3, 12, 2, 300 << 20, 1200 << 20, 3_400_000, 3_400_000, 10.0),
    StageProgress("reduce", 0, 4, 0, 0, 0, 0, 0, 0.0),
)
PROGRESS = JobProgress("j0", STAGES, 12 << 20, 310 << 20, 320 << 20, 512 << 20)
FACTS = ("300 MB of 1.17 GB", "3,400,000 rows", "30 MB/s", "30.0 s left", "spilled 12 MB", "310 MB of 512 MB")


def test_a_pipe_gets_whole_lines_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    with progress_display(False) as show:
        assert show is not None
        for now in (9.9, 10.0, 15.0, 20.0):  # noqa: B007  # the clock reads it
            show(PROGRESS)
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2
    assert all(fact in line for line in err.splitlines() for fact in FACTS)


def test_a_terminal_gets_a_bar_for_each_stage_with_every_fact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("TERM", "xterm"), ("COLUMNS", "200"), ("NO_COLOR", "1"), ("LINES", "50")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_display(False) as show:
        assert show is not None
        show(PROGRESS)
    out, err = capsys.readouterr()
    assert out == ""
    for expected in (*FACTS, "map", "3/12", "reduce", "0/4"):
        assert expected in err


# --- job files ------------------------------------------------------------------------------------------

RESOURCES = "resources: {memory: 300MB, slots: 2, reducers: 3, split_size: 5MB}\n"


def test_every_key_of_a_job_file_reaches_a_class_and_a_function(tmp_path: Path) -> None:
    (tmp_path / "surface_job.py").write_text(
        "import cortex\n"
        "class Job(cortex.MapReduceJob):\n    def map(self, line):\n        yield line, 1\n"
        "def words(line):\n    yield line, 1\n"
    )
    yaml = tmp_path / "job.yaml"
    for code in ("job: surface_job.py:Job\n", "map: surface_job.py:words\n"):
        yaml.write_text(
            f"{code}input: {{path: a.txt, format: text, encoding: bytes}}\n"
            f"output: {{path: out, format: jsonl, overwrite: true}}\n{RESOURCES}"
        )
        spec = load_target(str(yaml), Overrides()).spec
        assert (spec.input.format, spec.input.encoding) == ("text", "bytes")
        output = spec.output
        assert (output.path, output.format, output.overwrite) == (str(tmp_path / "out"), "jsonl", True)
        found = spec.resources
        wanted = (300 << 20, 2, 3, 5 << 20)
        assert (found.memory_bytes, found.slots, found.reducers, found.split_bytes) == wanted
        yaml.write_text(
            f"{code}input: {{path: a.csv, delimiter: ';', quote: \"'\", escape: '%', header: false,"
            " null_values: [NA]}\n"
        )
        dialect = CsvDialect(";", "'", "%", False, ("NA",))
        assert load_target(str(yaml), Overrides()).spec.input.dialect == dialect


@pytest.mark.parametrize("name", ["csv", "tsv", "jsonl", "parquet", "arrow", "text"])
def test_every_output_format_may_be_named_in_a_file_an_option_or_a_class(name: str, tmp_path: Path) -> None:
    yaml = tmp_path / "job.yaml"
    yaml.write_text(f"input: {{path: a.csv}}\nmap: {{where: x > 1}}\noutput: {{format: {name}}}\n")
    assert load_target(str(yaml), Overrides()).spec.output.format == name
    yaml.write_text("input: {path: a.csv}\nmap: {where: x > 1}\n")
    assert load_target(str(yaml), Overrides(output_format=name)).spec.output.format == name
    assert build_spec(Words(input="a.txt", output_format=name)).output.format == name


def test_no_text_of_a_job_is_ever_evaluated_as_python() -> None:
    sources = sorted(Path(str(package.__file__)).parent.rglob("*.py"))
    assert len(sources) > 50
    for path in sources:
        text = path.read_text()
        if not any(f"{word}(" in text for word in ("eval", "exec", "compile")):
            continue  # parsing all of them takes a second
        for node in ast.walk(ast.parse(text)):
            name = node.id if isinstance(node, ast.Name) else None
            assert name not in ("eval", "exec", "compile"), f"{path}:{getattr(node, 'lineno', 0)}"


# --- job classes ----------------------------------------------------------------------------------------


def test_options_are_class_attributes() -> None:
    class Table(MapReduceJob):
        input = "x.data"
        input_format = "csv"
        output_format = "parquet"
        columns = {"k": "string", "n": "int64"}  # noqa: RUF012
        where = "n > 1"
        group_by = ("k",)
        aggregate = {"rows": "count()"}  # noqa: RUF012
        reducers = 5
        memory = "64MB"

    class Lines(Words):
        encoding = "bytes"

    spec = build_spec(Table())
    assert (spec.input.format, spec.output.format) == ("csv", "parquet")
    assert spec.input.columns == {"k": "string", "n": "int64"}
    assert (spec.where, spec.group_by, spec.aggregate) == ("n > 1", ("k",), {"rows": "count()"})
    assert (spec.resources.reducers, spec.resources.memory_bytes) == (5, 64 << 20)
    assert build_spec(Lines(input="x.txt")).input.encoding == "bytes"


def pairs(job: MapReduceJob, budget: Budget | None = None) -> list[list[Any]]:
    """The output rows of a job run in this process, written as JSON lines."""
    job.output, job.output_format = "out", "jsonl"
    files = run_tasks(build_spec(job), job, budget=budget).files
    return [list(json.loads(line).values()) for data in files for line in data.splitlines()]


@pytest.mark.parametrize(("combine", "wanted"), [(sum, 6), (min, 1), (max, 3), (lambda a, b: a * b, 6)])
def test_each_combine_folds(combine: Any, wanted: int, tmp_path: Path) -> None:
    class Folded(MapReduceJob):
        def map(self, line: str) -> Iterator[tuple[str, int]]:
            yield "k", int(line)

    (tmp_path / "n.txt").write_text("2\n1\n3\n")
    job = type(
        "Job", (Folded,), {"combine": staticmethod(combine) if combine not in (sum, min, max) else combine}
    )
    for split_size in (1, 100):
        assert pairs(job(input=str(tmp_path / "n.txt"), split_size=split_size)) == [["k", wanted]]


def test_a_combine_method_gets_a_key_and_its_values(tmp_path: Path) -> None:
    class Longest(MapReduceJob):
        def map(self, line: str) -> Iterator[tuple[str, str]]:
            yield line[0], line

        def combine(self, key: str, values: Iterator[str]) -> Iterator[tuple[str, str]]:
            yield key, max(values, key=len)

        def reduce(self, key: str, values: Iterator[str]) -> Iterator[tuple[str, str]]:
            assert iter(values) is values  # a stream, not a list
            yield key, max(values, key=len)

    (tmp_path / "t.txt").write_text("ab\na\nabc\nb\r\nbb\r\n")
    assert sorted(pairs(Longest(input=str(tmp_path / "t.txt"), split_size=4))) == [["a", "abc"], ["b", "bb"]]


def test_a_class_with_where_and_aggregate_needs_no_method(tmp_path: Path) -> None:
    class Declared(MapReduceJob):
        where = "n > 1"
        group_by = "k"
        aggregate = {"total": "sum(n)", "rows": "count()"}  # noqa: RUF012

    (tmp_path / "x.csv").write_text("k,n\na,1\na,2\nb,3\na,4\n")
    assert sorted(pairs(Declared(input=str(tmp_path / "x.csv")))) == [["a", 6, 2], ["b", 3, 1]]


def test_reduce_batch_gets_bounded_batches_in_key_order_and_groups_may_span_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "FOLD_ROWS", 500)

    class Batches(MapReduceJob):
        key = "k"
        reducers = 1

        def map_batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
            return batch

        def reduce_batch(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for number, batch in enumerate(batches):
                yield pa.record_batch({"k": batch["k"], "n": batch["n"], "batch": [number] * batch.num_rows})

    keys = ["hot" if n % 3 else f"k{n}" for n in range(3000)]
    (tmp_path / "x.csv").write_text("k,n\n" + "".join(f"{k},{n}\n" for n, k in enumerate(keys)))
    budget = Budget(block=4096, lines_block=4096, buffer=4096, merge=1024)
    rows = pairs(Batches(input=str(tmp_path / "x.csv"), split_size=9000), budget)
    assert sorted((n, k) for k, n, _ in rows) == list(enumerate(keys))
    runs = [k for before, (k, _, _) in zip([[None], *rows], rows) if before[0] != k]
    assert len(runs) == len(set(keys))  # each key's rows stand together ...
    hot = [(n, batch) for k, n, batch in rows if k == "hot"]
    assert [n for n, _ in hot] == sorted(n for n, _ in hot)  # ... in input order,
    assert len({batch for _, batch in hot}) > 1  # also where they are more than a batch
    sizes = [sum(b == batch for _, _, b in rows) for batch in {b for _, _, b in rows}]
    assert max(sizes) <= 500

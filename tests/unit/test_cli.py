"""The command line without a running job: arguments, help, errors, progress text, ls-splits."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import json
import shutil
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cortex import __version__
from cortex.api import MapReduceJob
from cortex.cli.__main__ import main
from cortex.cli.progress import (
    LINE_S,
    _bars,
    _lines,
    fraction_done,
    progress_display,
    progress_line,
    seconds_left,
    summary,
)
from cortex.cli.rows import print_csv, print_table, printable, shown_cells, text_of
from cortex.cli.targets import load_target
from cortex.cli.terminal import aligned, guarded, print_json
from cortex.client.embedded_start import _surroundings
from cortex.errors import JobFileError, UsageError
from cortex.job.overrides import Overrides
from cortex.job.protocol import FIELD_KIND
from cortex.job.spec import CsvDialect, InputSpec, JobSpec, OutputSpec
from cortex.result import Result
from cortex.wire.messages import JobProgress, JobReport, OutputPart, StageProgress, TaskSummary

MAP = StageProgress("map", 3, 12, 2, 300 << 20, 1200 << 20, 3_400_000, 3_400_000, 10.0)
PLAN = StageProgress("plan", 1, 1, 0, 0, 0, 0, 0, 0.1)
PROGRESS = JobProgress("j0", (PLAN, MAP), 12 << 20, 310 << 20, 320 << 20, 512 << 20)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--version"], f"cortex {__version__}"),
        (["--help"], "cortex mapreduce job.yaml --input big.csv"),
        (["help"], "cortex mapreduce job.yaml --input big.csv"),
        (["help", "ls-splits"], "cortex ls-splits big.csv"),
        (["mapreduce", "--help"], "wordcount.py:WordCount --input 'docs/*.txt' --output counts/"),
        (["ls-splits", "-h"], "--split-size"),
    ],
)
def test_help(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["mapredoce"], "Did you mean 'mapreduce'?"),
        (
            ["help", "x"],
            "Commands: audit, cancel, cluster_status, compute, cortex_compute, doctor, drain, fetch, forget,",
        ),
        (["mapreduce"], "Missing argument 'TARGET'"),
        (["mapreduce", "job.yaml", "--memory", "12Q"], "'12Q' is not a size"),
        (["mapreduce", "job.yaml", "--slots", "0"], "--slots"),
        (["mapreduce", "job.yaml", "--reducers", "-3"], "write auto or a number"),
        (["mapreduce", "job.yaml", "--format", "cvs"], "--format"),
        (["mapreduce", "job.json"], "neither a job file nor a class"),
        (["mapreduce", "job.py"], "name its class too: job.py:ClassName"),
        (["mapreduce", "nowhere.py:Job"], "no such file"),
        (["ls-splits"], "PATH"),
        (["ls-splits", "s3://bucket/x"], "not on this machine"),
        (["ls-splits", "x", "--split-size", "0"], "less than one byte"),
        (["ls-splits", "caf\udce9.csv"], "the path is not UTF-8: b'"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "arguments", [["ls-splits", "x.csv"], ["mapreduce", "job.py:Job"], ["mapreduce", "job.yaml"]]
)
def test_a_folder_that_was_removed_is_named(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "the current folder does not exist any more" in said
    assert "cd to one that does" in said
    assert _surroundings()[""] == ""  # what is started before the command knows is not in its way


# --- targets ------------------------------------------------------------------------------------------


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "cli_job.py"
    path.write_text(
        "import cortex\n"
        "class Count(cortex.MapReduceJob):\n"
        "    combine = sum\n"
        "    memory = '1GB'\n"
        "    def map(self, line):\n"
        "        yield line, 1\n"
        "class Needs(Count):\n"
        "    def __init__(self, x):\n"
        "        super().__init__()\n"
        "ready = Count(input='here')\n"
        "def function(line): pass\n"
    )
    return path


def test_options_replace_what_the_class_says(job_file: Path) -> None:
    options = Overrides(
        inputs=("a", "b"),
        output="out",
        overwrite=True,
        slots=2,
        reducers=0,
        split_bytes=9,
        input_format="text",
    )
    with pytest.raises(JobFileError, match="map-only"):
        load_target(f"{job_file}:Count", options)
    loaded = load_target(
        f"{job_file}:Count", Overrides(inputs=("a",), reducers=3, output="o", overwrite=True)
    )
    assert isinstance(loaded.code, MapReduceJob)
    assert loaded.modules == ("cli_job",)
    spec = loaded.spec
    assert spec.code_name == f"{job_file}:Count"
    assert spec.resources.reducers == 3
    assert spec.resources.memory_bytes == 1 << 30
    assert spec.output.overwrite
    assert [Path(p).name for p in (*spec.input.paths, spec.output.path)] == ["a", "o"]


def test_targets(job_file: Path) -> None:
    assert load_target(f"{job_file}:ready", Overrides()).spec.input.paths[0].endswith("here")
    for name, expected in (
        ("function", "is a function"),
        ("Needs", "without arguments"),
        ("cortex", "a value"),
    ):
        with pytest.raises(UsageError, match=expected):
            load_target(f"{job_file}:{name}", Overrides(inputs=("a",)))


def test_class_main_has_the_same_options(
    job_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = load_target(f"{job_file}:ready", Overrides()).code
    monkeypatch.setattr("sys.argv", ["cli_job.py"])
    for arguments, code, expected in (
        (["--help"], 0, "python cli_job.py 'docs/*.txt' -o out/ --memory 512MB"),
        ([], 2, "input: there is none"),
        (["x", "--memory", "1Q"], 2, "not a size"),
    ):
        with pytest.raises(SystemExit) as caught:
            type(job).main(arguments)  # type: ignore[union-attr]
        assert caught.value.code == code
        captured = capsys.readouterr()
        assert expected in captured.out + captured.err


# --- errors -------------------------------------------------------------------------------------------


def test_errors_are_shown_with_their_cure(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> int:
        raise UsageError("no such thing", cure="make one", details={"file": "x"})

    assert guarded(fails) == 2
    assert capsys.readouterr() == ("", "error: no such thing\n  file: x\n  cure: make one\n")
    assert guarded(fails, as_json=True) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "usage"
    assert error["details"] == {"file": "x"}


def test_interrupt_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert guarded(interrupted) == 130
    assert capsys.readouterr().err == "interrupted\n"


# --- progress -----------------------------------------------------------------------------------------


def test_progress_line_says_where_the_job_is() -> None:
    assert progress_line(PROGRESS) == (
        "cortex: map 3/12 · 300 MB of 1.17 GB · 3,400,000 rows · 30 MB/s · 30.0 s left"
        " | spilled 12 MB · memory 310 MB of 512 MB"
    )
    assert progress_line(JobProgress("j0", (), 0, 0, 0, 1, 0)).startswith("cortex: the cluster has no node")
    assert progress_line(JobProgress("j0", (), 0, 0, 0, 1)).startswith("cortex: spilled")


def test_fractions() -> None:
    assert fraction_done(MAP) == 0.25
    assert seconds_left(MAP) == 30.0
    assert fraction_done(PLAN) == 1.0
    assert seconds_left(PLAN) is None
    by_tasks = StageProgress("reduce", 1, 4, 1, 5, 0, 0, 0, 2.0)
    assert fraction_done(by_tasks) == 0.25
    assert fraction_done(StageProgress("map", 0, 0, 0, 0, 0, 0, 0, 9.0)) == 0.0


def test_lines_come_every_ten_seconds() -> None:
    now = 100.0
    lines: list[str] = []
    show = _lines(lines.append, lambda: now)
    for _ in range(45):
        now += 1.0
        show(PROGRESS)
    assert len(lines) == 4
    assert LINE_S == 10


def test_quiet_shows_nothing_and_a_pipe_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_display(True) as show:
        assert show is None
    with progress_display(False) as show:
        assert show is not None
        show(PROGRESS)
    assert capsys.readouterr() == ("", "")


def test_bars_hold_the_same_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    for name, value in (("TERM", "xterm"), ("COLUMNS", "200"), ("NO_COLOR", "1"), ("LINES", "50")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr", stream)
    with _bars() as show:
        show(PROGRESS)
    drawn = stream.getvalue()
    for expected in ("map", "3/12", "300 MB of 1.17 GB", "3,400,000 rows", "30.0 s left", "310 MB of 512 MB"):
        assert expected in drawn


# --- results ------------------------------------------------------------------------------------------


def result_of(folder: Path, table: pa.Table, **report: Any) -> Result:
    folder.mkdir()
    with pa.OSFile(str(folder / "a"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    part = OutputPart("part-00000.arrow", "a", table.num_rows, 1, tuple((n, "?") for n in table.column_names))
    spec = JobSpec(
        "test", InputSpec(("in",)), OutputSpec(format="arrow"), map_form="rows", reduce_form="rows"
    )
    return Result(
        spec, JobReport("j0", "test", 1.5, **report), [part], str(folder), partial(shutil.rmtree, folder)
    )


def test_summary_has_all_figures(tmp_path: Path) -> None:
    result = result_of(
        tmp_path / "r",
        pa.table({"key": ["a"], "value": [1]}),
        stages=(PLAN, MAP),
        rows_in=1000,
        rows_out=1,
        groups=7,
        bytes_in=2048,
        spilled_bytes=1 << 20,
        shuffled_bytes=512,
        memory_peak_bytes=300 << 20,
        memory_cap_bytes=512 << 20,
        slots=2,
        failed_attempts=1,
        slowest=TaskSummary("t", 0.7, "big.csv at 64"),
        counters={"words": {"empty": 1234}},
        notes=("a.gz cannot be split",),
    )
    text = "\n".join(summary(result))
    for expected in (
        "test: done in 1.50 s",
        "1,000 in · 1 out from 7 groups",
        "2 KB read · 1 MB spilled · 512 B shuffled",
        "peak 300 MB of 512 MB for all processes, 2 slots",
        "plan 0.10 s · map 10.0 s",
        "0.70 s: big.csv at 64",
        "1 attempt failed and ran again",
        "words: empty 1,234",
        "a.gz cannot be split",
    ):
        assert expected in text


def test_table_has_40_rows_and_says_how_many_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"key": [f"k{i:05}" for i in range(1500)][::-1], "value": range(1500)})
    print_table(result_of(tmp_path / "r", table))
    out = capsys.readouterr().out
    assert "k00000" in out
    assert "k00039" in out
    assert "k00040" not in out
    assert "and 1,460 more" in out
    print_table(result_of(tmp_path / "e", table.slice(0, 0)))
    assert "no rows" in capsys.readouterr().out


def test_table_cells_cannot_steer_the_terminal() -> None:
    assert printable("plain é") == "plain é"
    assert printable("a\x1b[31mb\nc") == "a\\x1b[31mb\\nc"


def test_csv_of_python_values(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    key = pa.array([{"f0": 'x"y', "f1": 1}, None])
    field = pa.field("key", key.type, metadata={FIELD_KIND: b"tuple"})
    table = pa.Table.from_arrays([key, pa.array([1, None])], schema=pa.schema([field, ("value", pa.int64())]))
    print_csv(result_of(tmp_path / "r", table))
    assert capfdbinary.readouterr().out == b'key,value\n"[""x\\""y"",1]",1\n,\n'


# --- ls-splits ----------------------------------------------------------------------------------------


def test_ls_splits_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.csv").write_text("a,b\n" + "1,x\n" * 100)
    pq.write_table(pa.table({"a": range(30), "b": ["x"] * 30}), "p.parquet", row_group_size=10)
    assert main(["ls-splits", "m.csv", "p.parquet", "--split-size", "200B"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["split", "file", "offset", "length", "rows", "holder"]
    assert lines[1].split() == ["0", "m.csv", "4", "200", "local"]
    assert lines[2].split() == ["1", "m.csv", "204", "200", "local"]
    assert [line.split()[4] for line in lines if "p.parquet" in line] == ["10", "10", "10"]
    assert "5 splits of 2 files" in out
    assert "columns: a int64, b string" in out


def test_ls_splits_says_what_cannot_be_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"line\n" * 1000))
    assert main(["ls-splits", str(path)]) == 0
    assert "cannot be split: " in capsys.readouterr().out
    assert main(["ls-splits", str(path), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["files"][0]["splittable"] is False
    assert "gzip" in plan["files"][0]["unsplittable"]
    assert plan["splits"] == [
        {
            "split": 0,
            "file": str(path),
            "offset": 0,
            "length": path.stat().st_size,
            "rows": None,
            "holder": "local",
            "holders": ["local"],
        }
    ]


def test_ls_splits_of_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls-splits", "nowhere.csv", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == "input"
    assert "nowhere.csv" in captured.err


def test_json_has_bytes_in_base64_and_nan_as_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"rows": [(b"\xff", float("nan"), Decimal("1.50"))]})
    assert json.loads(capsys.readouterr().out) == {"rows": [["/w==", None, "1.50"]]}
    assert main(["mapreduce", "--help"]) == 0
    assert "bytes in base64, NaN as null" in capsys.readouterr().out


def test_aligned() -> None:
    assert aligned(["a", "bb"], [["1", "x"], ["10", ""]], {0}) == [" a  bb", " 1  x", "10"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "true"),
        (1.0, "1.0"),
        ("a,b", "a,b"),
        (b"\xff", "\\xff"),
        (Decimal("1.50"), "1.50"),
        (dt.datetime(2024, 1, 2, 3), "2024-01-02T03:00:00"),
        ((1, ("a", None)), '[1,["a",null]]'),
        ({"b": {2, 1}, "a": Decimal(1)}, '{"a":"1","b":[1,2]}'),
        ({(1, 2): [3]}, "{(1, 2): [3]}"),
    ],
)
def test_python_values_as_csv_text(value: Any, text: str) -> None:
    assert text_of(value) == text


# --- job files that name code -------------------------------------------------------------------------


def test_job_file_names_a_class(job_file: Path) -> None:
    yaml = job_file.with_name("job.yaml")
    yaml.write_text(
        "name: from-file\n"
        "job: cli_job.py:Count\n"
        "input: {path: data/*.csv, format: csv, delimiter: ';', header: false, columns: {a: string}}\n"
        "output: {format: parquet}\n"
        "resources: {reducers: 3}\n"
    )
    loaded = load_target(str(yaml), Overrides(slots=2, output="here"))
    spec = loaded.spec
    assert spec.name == "from-file"
    assert spec.input.paths == (str(job_file.parent / "data/*.csv"),)
    assert spec.input.columns == {"a": "string"}
    assert spec.input.dialect == CsvDialect(delimiter=";", header=False)
    assert (spec.output.format, Path(spec.output.path).name) == ("parquet", "here")
    assert (spec.resources.reducers, spec.resources.slots, spec.resources.memory_bytes) == (3, 2, 1 << 30)
    assert (spec.map_form, spec.reduce_form, spec.combine) == ("rows", "fold", "sum")


def test_job_file_names_functions(tmp_path: Path) -> None:
    (tmp_path / "cli_functions_job.py").write_text(
        "def words(line):\n    for w in line.split():\n        yield w, 1\n"
        "def add(a, b):\n    return a + b\n"
        "def total(key, values):\n    yield key, sum(values)\n"
        "number = 3\n"
    )
    yaml = tmp_path / "job.yaml"
    yaml.write_text("input: {path: x}\nmap: cli_functions_job.py:words\ncombine: cli_functions_job.py:add\n")
    loaded = load_target(str(yaml), Overrides())
    assert loaded.code is not None
    assert (loaded.spec.map_form, loaded.spec.reduce_form, loaded.spec.combine) == ("rows", "fold", "binary")
    assert list(loaded.code.map("a b") or ()) == [("a", 1), ("b", 1)]
    assert loaded.code.combine_function(1, 2) == 3
    assert loaded.modules == ("cli_functions_job",)
    yaml.write_text("input: {path: x}\nmap: cli_functions_job.py:words\nreduce: cli_functions_job.py:total\n")
    loaded = load_target(str(yaml), Overrides())
    assert loaded.code is not None
    assert list(loaded.code.reduce("a", iter([1, 2]))) == [("a", 3)]
    yaml.write_text("input: {path: x}\nmap: cli_functions_job.py:words\n")
    assert load_target(str(yaml), Overrides()).spec.reduce_form == "rows"
    assert load_target(str(yaml), Overrides(reducers=0)).spec.reduce_form == "none"
    yaml.write_text("input: {path: x}\nmap: cli_functions_job.py:number\n")
    with pytest.raises(UsageError, match="is no function"):
        load_target(str(yaml), Overrides())


def test_declared_job_file_needs_no_code(tmp_path: Path) -> None:
    yaml = tmp_path / "job.yaml"
    yaml.write_text("map: {where: x > 1}\nreduce: {group_by: [x], aggregate: {n: count()}}\n")
    loaded = load_target(str(yaml), Overrides(inputs=("a.csv",)))
    assert loaded.code is None
    assert loaded.spec.reduce_form == "aggregate"


def test_floats_are_shortened_where_the_terminal_is_narrow() -> None:
    rows: list[tuple[Any, ...]] = [("a", 1.9500000000000002, 12), ("b", None, 1234567)]
    wide = [["a", "1.9500000000000002", "12"], ["b", "null", "1234567"]]
    assert shown_cells(rows, ("key", "mean", "rows"), 80) == wide
    assert shown_cells(rows, ("key", "mean", "rows"), 30) == [["a", "1.95", "12"], wide[1]]

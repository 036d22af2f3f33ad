"""``cortex compute`` without a run: lines, plan, progress, functions, options, and its jobs in `status`."""

from __future__ import annotations

import base64
import io
import json
import pickle
import sys
import threading
import tomllib
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cortex.cli.__main__ import main
from cortex.cli.call_progress import (
    CallsSoFar,
    _bar,
    _one_line,
    call_display,
    call_summary,
    calls_text,
    drawing,
    log_lines,
    progress_text,
    rate_text,
)
from cortex.cli.compute_output import Failure, FileLines, HeldLines, line_of, shown
from cortex.cli.compute_plan import Place, place_text, plan_lines
from cortex.cli.functions import load_function
from cortex.cli.job_table import job_lines
from cortex.cli.progress import LINE_S
from cortex.cli.terminal import ForShow
from cortex.errors import (
    ExecutorDied,
    OutputExistsError,
    OutputFailed,
    ResultNotJson,
    UsageError,
    UserCodeError,
)
from cortex.job.argument_sources import LinesArguments, RangeArguments
from cortex.job.compute_spec import ComputeFile, ComputeOutput, FunctionName
from cortex.storage.whole_file import WholeFile
from cortex.wire.messages import JobStatus, StageProgress

ROOT = Path(__file__).parents[2]


class Thing:
    def __repr__(self) -> str:
        return "<Thing>"


# --- lines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (1, "1"),
        ({"a": [1.5, None, True]}, '{"a": [1.5, null, true]}'),
        ((1, "é\n"), '[1, "é\\n"]'),
        (np.int64(7), "7"),
        (np.float64(0.5), "0.5"),
        ([np.bool_(True), np.str_("x")], '[true, "x"]'),
        (Counter("aab"), '{"a": 2, "b": 1}'),
        ({1: 2}, '{"1": 2}'),
    ],
)
def test_a_result_is_a_line_of_json(result: Any, text: str) -> None:
    assert line_of(3, result, "json") == f'{{"call": 3, "result": {text}}}\n'.encode()
    assert json.loads(line_of(3, result, "repr", [1]))["arguments"] == [1]


@pytest.mark.parametrize(
    "result",
    [Thing(), {1, 2}, b"x", float("nan"), [float("inf")], date(2024, 1, 1), np.zeros(2), "\ud800", {(1,): 2}],
    ids=repr,
)
def test_what_json_does_not_have_is_an_error_or_as_chosen(result: Any) -> None:
    with pytest.raises(ResultNotJson, match="its result cannot be written as JSON") as caught:
        line_of(3, result, "json")
    assert "--values" in caught.value.cure
    assert json.loads(line_of(3, result, "repr")) == {"call": 3, "repr": repr(result)}
    (kept,) = [v for k, v in json.loads(line_of(3, result, "pickle")).items() if k == "pickle"]
    assert repr(pickle.loads(base64.b64decode(kept))) == repr(result)


def test_a_result_that_cannot_be_pickled_either() -> None:
    with pytest.raises(ResultNotJson, match="its result cannot be pickled"):
        line_of(0, lambda: 1, "pickle")


def test_arguments_that_json_does_not_have_are_shown() -> None:
    assert json.loads(line_of(0, 1, "json", Thing())) == {"call": 0, "arguments": "<Thing>", "result": 1}


def test_values_are_shown_short() -> None:
    assert len(shown("x" * 10_000)) <= 210
    assert len(shown(list(range(10_000)))) < 100

    class Broken:
        def __repr__(self) -> str:
            raise OSError

    assert shown(Broken()).startswith("<Broken instance at 0x")


def test_a_failure_of_user_code() -> None:
    error = ValueError("bad")
    error.add_note("in call 7 of f")
    failure = Failure(7, [9, "x"], error, "Traceback\n  File\nValueError: bad\n")
    assert failure.short() == "call 7 failed: ValueError: bad"
    assert type(failure.error) is UserCodeError
    assert str(failure.error).splitlines()[:3] == [
        "call 7 failed: ValueError: bad", "  arguments: [9, 'x']", "  traceback:",
    ]  # fmt: skip
    assert json.loads(failure.line()) == {
        "call": 7, "arguments": [9, "x"], "error": "ValueError: bad",
        "traceback": "Traceback\n  File\nValueError: bad\n",
    }  # fmt: skip
    assert json.loads(Failure(0, Thing(), KeyError()).line()) == {
        "call": 0, "arguments": "<Thing>", "error": "KeyError",
    }  # fmt: skip


def test_a_failure_that_cortex_names_stays_what_it_is() -> None:
    failure = Failure(2, 5, ExecutorDied("killed by SIGKILL", cure="less", details={"pid": 3}))
    assert type(failure.error) is ExecutorDied
    assert str(failure.error) == ("call 2 failed: killed by SIGKILL\n  arguments: 5\n  pid: 3\n  cure: less")
    assert json.loads(failure.line())["error"] == "killed by SIGKILL"


# --- where lines go ---------------------------------------------------------------------------------


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.jsonl"
    lines = FileLines(str(path), False)
    lines.write(b"1\n")
    assert not path.exists()
    lines.commit()
    lines.abort()
    assert path.read_bytes() == b"1\n"
    assert hidden(path.parent) == []


def test_a_file_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    file = WholeFile(str(tmp_path / "r"))
    file.write(b"1\n")
    file.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_is_replaced_only_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_text("old")
    with pytest.raises(OutputExistsError, match="exists already"):
        WholeFile(str(path))
    file = WholeFile(str(path), overwrite=True)
    file.write(b"new")
    assert path.read_text() == "old"
    file.commit()
    assert path.read_text() == "new"
    with pytest.raises(OutputFailed, match="is a folder"):
        WholeFile(str(tmp_path), overwrite=True)


def test_a_file_that_came_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "r"
    file = WholeFile(str(path))
    path.write_text("theirs")
    with pytest.raises(OutputExistsError):
        file.commit()
    file.abort()
    assert path.read_text() == "theirs"
    assert hidden(tmp_path) == []


def test_what_a_killed_run_left_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    left = tmp_path / ".r.j0123456789ab.partial"
    left.write_text("half")
    theirs = tmp_path / ".r.notours.partial"
    theirs.write_text("x")
    living = WholeFile(str(tmp_path / "r"))
    other = WholeFile(str(tmp_path / "r"))
    assert not left.exists()
    assert theirs.exists()
    living.write(b"1")
    living.commit()
    other.abort()
    assert (tmp_path / "r").read_bytes() == b"1"


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputFailed, match="cannot be written"):
        WholeFile(str(tmp_path / "f" / "r"))


def test_lines_that_are_held_are_printed_at_the_end(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    lines = HeldLines(str(tmp_path / "spill"))
    lines.write(b"1\n")
    lines.write(b"2\n")
    lines.flush()
    assert capfdbinary.readouterr().out == b""
    lines.commit()
    assert capfdbinary.readouterr().out == b"1\n2\n"
    given_up = HeldLines(str(tmp_path / "spill"))
    given_up.write(b"3\n")
    given_up.abort()
    assert capfdbinary.readouterr().out == b""
    assert list((tmp_path / "spill").iterdir()) == []


# --- functions --------------------------------------------------------------------------------------


def named(file: str = "", module: str = "", name: str = "f") -> FunctionName:
    return FunctionName(file, module, name, f"{file or module}:{name}")


def test_functions_of_files_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine_file.py").write_text(
        "class T:\n    @staticmethod\n    def f(x):\n        return x + 1\n"
    )
    assert load_function(named(str(tmp_path / "mine_file.py"), name="T.f"), str(tmp_path))(1) == 2
    (tmp_path / "mine_package").mkdir()
    (tmp_path / "mine_package" / "inner.py").write_text("def f(x):\n    return x * 2\nnumber = 5\n")
    assert load_function(named(module="mine_package.inner"), str(tmp_path))(3) == 6
    assert load_function(named(module="math", name="sqrt"), str(tmp_path))(9) == 3.0
    for name, said in (
        (named(module="mine_package.inner", name="number"), "is a int, not a function"),
        (named(module="mine_package.inner", name="ff"), "has no 'ff'"),
        (named(module="mine_package.gone"), "there is no module 'mine_package.gone'"),
        (named(module="not_here.at_all"), "there is no module 'not_here'"),
        (named(str(tmp_path / "mine_file.py"), name="g"), "defines no 'g'"),
    ):
        with pytest.raises(UsageError, match=said):
            load_function(name, str(tmp_path))


def test_a_module_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine_broken.py").write_text("1 / 0\n")
    (tmp_path / "mine_needy.py").write_text("import not_installed_here\n")
    with pytest.raises(UserCodeError, match="ZeroDivisionError") as caught:
        load_function(named(module="mine_broken"), str(tmp_path))
    assert "mine_broken.py" in caught.value.details["traceback"]
    with pytest.raises(UserCodeError, match="not_installed_here"):
        load_function(named(module="mine_needy"), str(tmp_path))


# --- plan -------------------------------------------------------------------------------------------


def test_the_plan() -> None:
    file = ComputeFile(
        "/x/c.yaml", "squares", named("/x/f.py", name="square"), RangeArguments(range(0, 9, 2)),
        output=ComputeOutput("/x/r.jsonl"), retries=1, timeout_s=30.0,
    )  # fmt: skip
    assert plan_lines(file, 5, Place("", 1, 2, 2 << 30)) == [
        "squares:",
        "  function   square of /x/f.py",
        "  arguments  5: range 0 to 9 by 2",
        "  mode       ordered (results in the order of the arguments)",
        "  output     /x/r.jsonl",
        "  where      this machine: 2 slots, 2 GB",
        "  each call  30.0 s at most · 1 retry",
        "  a failure  ends the run",
    ]
    other = ComputeFile(
        "/x/c.yaml", "f", named(module="a.b"), LinesArguments("/x/in.jsonl"), mode="stream", errors="collect"
    )
    lines = plan_lines(other, None, Place("head:8786", 3, 24))
    assert lines[1] == "  function   f of a.b"
    assert lines[2] == "  arguments  an unknown number: lines of /x/in.jsonl"
    assert lines[4] == "  output     standard output, a JSON object a line"
    assert lines[5] == "  where      the cluster at head:8786: 3 nodes, 24 slots"
    assert lines[6] == "  a failure  is noted, and the others go on"
    assert (
        place_text(Place("h:1", 2, 8, slots_max=3))
        == "the cluster at h:1: 2 nodes, 8 slots, 3 of them at most"
    )
    assert place_text(Place("head:8786", 0, 0)).endswith("0 slots (calls wait for one: cortex node)")


# --- progress ---------------------------------------------------------------------------------------

SO_FAR = CallsSoFar(done=118, failed=2, sent=130, total=1000, slots=4, seconds=2.0)


def test_progress_says_where_the_calls_are() -> None:
    assert progress_text(SO_FAR) == "120 of 1,000 · 4 running · 2 failed · 60/s · 14.7 s left"
    unknown = CallsSoFar(done=5, failed=0, sent=7, total=None, slots=4, seconds=10.0)
    assert progress_text(unknown) == "5 · 2 running · 30/min"
    assert progress_text(CallsSoFar(0, 0, 3, 10, -1, 0.1)) == "0 of 10 · 3 running"
    alone = progress_text(CallsSoFar(1, 0, 3, 10, 0, 5.0))
    assert alone == "1 of 10 · waiting for a node (start one with: cortex node)"
    assert calls_text(10, 10, 0, 0, 2.0) == "10 of 10 · 5/s"


def test_rates() -> None:
    assert [rate_text(each) for each in (0.05, 0.5, 3.14159, 99.9, 12345.6)] == [
        "3/min", "30/min", "3.14/s", "99.9/s", "12,345/s",
    ]  # fmt: skip


def test_summary() -> None:
    assert call_summary("f", SO_FAR) == "f: 118 calls done, 2 failed in 2.00 s (60/s)"
    assert call_summary("f", CallsSoFar(1, 0, 1, 1, 1, 0.2)) == "f: 1 call done in 0.20 s"


def test_lines_come_every_ten_seconds() -> None:
    now, said = [0.0], []
    draw = log_lines(said.append, lambda: now[0])
    for now[0] in (1.0, LINE_S - 0.1, LINE_S + 0.1, LINE_S + 5, 2 * LINE_S + 0.2):
        draw(SO_FAR)
    assert said == [f"cortex: {progress_text(SO_FAR)}"] * 2


def test_a_notebook_gets_one_line_that_is_written_again() -> None:
    stream = io.StringIO()
    with _one_line(ForShow(stream)) as draw:
        draw(SO_FAR)
        draw(CallsSoFar(1, 0, 1, None, 1, 0.1))
    longest = len(progress_text(SO_FAR))
    assert stream.getvalue().split("\r") == ["", progress_text(SO_FAR), "1".ljust(longest), " " * longest, ""]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    for so_far, bar in ((SO_FAR, True), (CallsSoFar(5, 0, 7, None, 4, 10.0), False)):
        console = Console(file=io.StringIO(), force_terminal=True, width=110)
        console.print(drawing(so_far))
        text = console.file.getvalue()
        assert "running" in text
        assert ("━" in text) == bar
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with _bar() as draw:
        draw(SO_FAR)


def test_the_display_asks_by_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    asked = threading.Event()

    def look() -> CallsSoFar:
        asked.set()
        return SO_FAR

    for show in (True, False):
        flushed = threading.Event()
        with call_display(look, show=show, then=flushed.set):
            assert flushed.wait(10)
            assert asked.wait(10)  # with the first of them
        assert ("120 of 1,000" in capsys.readouterr().err) == show


# --- the command ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["compute", "--help"], 0, "cortex compute cortex_config.yaml --output results.jsonl"),
        (["cortex_compute", "-h"], 0, "--response-mode"),
        (["help", "compute"], 0, "--errors collect"),
        (["help"], 0, "cortex compute cortex_config.yaml"),
        (["help", "compote"], 2, "No such command 'compote'"),
        (["compute"], 2, "Missing argument 'FILE'"),
        (["compute", "gone.yaml"], 2, "the job file 'gone.yaml' cannot be read"),
        (["compute", "c.yaml", "--response-mode", "all"], 2, "'all' is not one of"),
        (["compute", "c.yaml", "--timeout", "soon"], 2, "'soon' is not a time"),
        (["compute", "c.yaml", "--retries", "1000"], 2, "a number from 0 to 100"),
        (["compute", "c.yaml", "--response-mode", "none", "-o", "r"], 2, "nothing to write to --output"),
        (["compute", "c.yaml", "--memory", "1MB"], 2, "too small"),
        (["compute", "c.yaml", "-o", "f.py"], 2, "exists already"),
        (["compute", "c.yaml", "-o", "r"], 2, "r.failed exists already"),
    ],
)
def test_usage(
    arguments: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "f.py").write_text("def f(x):\n    return x\n")
    (tmp_path / "r.failed").write_text("")
    (tmp_path / "c.yaml").write_text("function: f.py\narguments: [1]\n")
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert said in (printed.err if code else printed.out)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "c.yaml", "f.py", "r.failed",
    ]  # fmt: skip


def test_names_that_are_commands_of_their_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import import_module

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name, said in (
        ("cortex_compute", "Call a function for each of many arguments"),
        ("cluster_status", "Show the cluster"),
        ("kill_cluster", "End every node and the server"),
    ):
        module, _, function = scripts[name].partition(":")
        monkeypatch.setattr(sys, "argv", [name, "--help"])
        assert getattr(import_module(module), function)() == 0
        assert said in capsys.readouterr().out


def test_jobs_of_calls_in_status() -> None:
    def status(state: str, open_ended: bool, seconds: float = 4.0) -> str:
        stage = StageProgress("calls", 120, 1000, 70, 0, 0, 20, 120, seconds, open_ended)
        job = JobStatus("j1", "squares", state, "c1", seconds, (stage,), slots=2, slots_wanted=4)
        return job_lines([job])[1]

    assert "calls 120 of 1,000 · 2 running · 20 failed · 30/s · 29.3 s left" in status("running", False)
    assert "calls 120 · 2 running · 20 failed · 30/s  " in status("running", True)
    assert "calls 120 of 1,000 · 20 failed · 30/s" in status("cancelled", True)


def test_a_name_of_many_letters_leaves_room_for_the_others() -> None:
    jobs = [JobStatus("j1", name, "done", "c1", 1.0) for name in ("n" * 500, "m" * 40)]
    _, long, short = job_lines(jobs)
    assert f"  {'n' * 37}...  " in long
    assert f"  {'m' * 40}  " in short

"""What the project says of itself is so: package, commands, documents. Each document is read, not trusted."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from benchmarks.contest import Contender, hold
from benchmarks.measure import Measured
from cortex import limits
from cortex.cli.__main__ import main
from cortex.cli.app import cortex as group
from cortex.config import VARIABLES
from cortex.formats.planning import default_reducers, default_split_bytes
from cortex.job.functions import AGGREGATES
from cortex.storage.run_arrow import ENTRY
from cortex.storage.run_format import MAGIC
from datasets import DATASETS
from tests import conftest

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "cortex").rglob("*.py")
    if path.name != "__init__.py"
)


# --- the package ------------------------------------------------------------------------------------------


def test_the_package_is_named_typed_and_for_its_pythons() -> None:
    assert PROJECT["project"]["name"] == "cortex-mapreduce"
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    versions = {c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if ":: 3." in c}
    assert versions == {"3.11", "3.12", "3.13", "3.14"}
    assert PROJECT["tool"]["mypy"]["strict"] is True
    assert (ROOT / "cortex" / "py.typed").read_bytes() == b""
    # All of the package, and nothing else (tests, data sets), is in the wheel.
    assert PROJECT["tool"]["hatch"]["build"]["targets"] == {"wheel": {"packages": ["cortex"]}}
    version = re.search(r'VERSION = "(.+)"', (ROOT / "cortex" / "version.py").read_text())
    assert version
    assert version[1] == PROJECT["project"]["version"]
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_module_stands_on_a_floor() -> None:
    (floors,) = (c for c in PROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    layered = {name.strip() for layer in floors["layers"] for name in re.split(r"[:|]", layer)}
    missing = [m for m in MODULES if ".".join(m.split(".")[:2]) not in layered]
    assert missing == []


def committed() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: which files are the project's is not known")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    places = [path for path in (Path.home(), ROOT, Path(sys.prefix)) if len(path.parts) > 1]
    assert places
    known = re.compile("|".join(rf"(?<![\w.~/-]){re.escape(str(path))}/" for path in places).encode())
    found = [str(path) for path in committed() if known.search(path.read_bytes())]
    assert found == []


# --- commands ---------------------------------------------------------------------------------------------


WITHOUT_RESULT = {
    "drain",
    "server",
    "node",
    "login",
    "cancel",
    "forget",
    "token",
    "kill-cluster",
    "kill_cluster",
}


@pytest.mark.parametrize("name", sorted(group.commands))
def test_every_command_explains_all_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = group.commands[name]
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.opts
            assert all(option in text for option in parameter.opts), parameter.opts
    if name != "help":
        assert "Examples:" in text
        assert ("--json" in text) is (name not in WITHOUT_RESULT)  # for programs


def test_the_help_says_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = "0 done, 1 the job failed, 2 wrong usage, 130 interrupted"
    assert said in capsys.readouterr().out
    assert said in " ".join((ROOT / "README.md").read_text().split())


# --- documents --------------------------------------------------------------------------------------------


def test_the_architecture_names_what_there_is() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    folders = {path.name for path in (ROOT / "cortex").iterdir() if path.is_dir() and path.name[0] != "_"}
    tops = {m.split(".")[1] for m in MODULES if m.count(".") == 1} - {"__main__"}
    (table,) = re.findall(r"^\| floor .*?\n\n", text, re.M | re.S)
    assert set(re.findall(r"`(\w+)/?`", table.replace("|", " "))) >= folders - {".mypy_cache"} | tops
    for name in re.findall(r"`([a-z_]+/[a-z_]+)`", text):
        assert (ROOT / "cortex" / f"{name}.py").exists() or (ROOT / name).is_dir(), name
    for name in re.findall(r"`(tests/[\w/.]+|test_\w+\.py)`", text):
        assert list(ROOT.glob(name)) or list((ROOT / "tests").rglob(name)), name
    for heading in ("Floors", "A record's life", "Byte formats", "Decisions and their reasons"):
        assert f"\n## {heading}\n" in text


def test_the_architectures_numbers_are_the_codes() -> None:
    text = " ".join((ROOT / "ARCHITECTURE.md").read_text().split())
    mib = limits.MIB
    assert "64 MB a split, less for inputs under 2 GB (a 32nd, 8 MB at least)" in text
    assert default_split_bytes(2048 * mib) == 64 * mib
    assert default_split_bytes(1024 * mib) == 32 * mib
    assert default_split_bytes(mib) == 8 * mib
    assert "a reducer for each 256 MB, four from 64 MB on" in text
    assert [default_reducers(n * mib) for n in (1, 64, 1024, 2560)] == [1, 4, 4, 10]
    assert f"the {limits.ORDER_BYTES_PER_ROW} bytes a row that sorting takes" in text
    assert f"index of {ENTRY.itemsize}-byte entries" in text
    assert f"`{MAGIC.decode()}`" in text


def test_the_readme_names_what_there_is() -> None:
    text = (ROOT / "README.md").read_text()
    (commands,) = re.findall(r"^## Commands\n(.*?)^## ", text, re.M | re.S)
    aliases = {"cluster_status", "cortex_compute", "kill_cluster"}
    assert set(re.findall(r"^cortex ([\w-]+)", commands, re.M)) == set(group.commands) - aliases
    assert all(f"`{alias}`" in commands for alias in aliases)
    every = [*group.commands.values()]
    every += [
        sub for command in every if isinstance(command, click.Group) for sub in command.commands.values()
    ]
    options = {o for c in every for p in c.params for o in p.opts if o.startswith("--")}
    shown = set(re.findall(r"--[a-z-]+", commands))
    assert shown == options - {"--help"}
    assert f"the reduce in words: `{' '.join(AGGREGATES)}`" in text
    assert f"One record may have {limits.RECORD_BYTES_MAX // limits.MIB} MB" in " ".join(text.split())
    assert f"the first {limits.DISPLAY_ROWS} rows by key" in text
    for name in re.findall(r"`?((?:examples|docs)/[\w./-]+\w)", text.replace("docs/*.txt", "")):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"^\| `([a-z_]+)[(`]", text, re.M):
        assert hasattr(__import__("cortex").MapReduceJob, name), name


def test_the_example_settings_are_those_that_are_read() -> None:
    text = (ROOT / ".env.example").read_text()
    assert re.findall(r"^# (CORTEX_\w+)=", text, re.M) == list(VARIABLES)


# --- tests ------------------------------------------------------------------------------------------------


def test_a_missing_hard_cap_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def summary(reason: str, nodeid: str) -> list[str]:
        said.clear()
        monkeypatch.setattr(conftest, "unavailable", lambda: reason)
        reporter = SimpleNamespace(
            stats={"passed": [SimpleNamespace(nodeid=nodeid)]},
            write_line=lambda text, **markup: said.append(text),
        )
        conftest.pytest_terminal_summary(reporter)  # type: ignore[arg-type]
        return said

    memory = "tests/memory/test_under_a_cap.py::test_x"
    assert summary("read-only", memory) == [
        "tests/memory: no hard memory cap here (read-only): memory was only watched"
    ]
    assert summary("", memory) == summary("read-only", "tests/unit/test_x.py::test_x") == []


# --- benchmarks and data sets -----------------------------------------------------------------------------


def test_a_missed_promise_about_speed_fails_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    took = {"cortex": 1.2, "loop": 1.0}

    def run(command: list[str], **options: Any) -> Measured:
        return Measured(took[command[0]], 0.0, 0)

    monkeypatch.setattr("benchmarks.contest.run", run)

    def rows(judge: bool, **promise: float) -> list[str]:
        both = [
            Contender("cortex", lambda out: ["cortex"]),
            Contender("loop", lambda out: ["loop"], **promise),
        ]
        return [r.missed for r in hold("c", both, tmp_path, rounds=1, judge=judge, say=lambda text: None)]

    assert rows(True, ratio_max=1.15) == ["", "promised is x1.15 at most"]
    assert rows(True, ratio_max=1.25) == ["", ""]
    assert rows(True, seconds_max=0.5) == ["", "promised are 0.50 s at most"]
    assert rows(False, ratio_max=1.15) == ["", ""]


def test_the_promised_ratios_are_those_the_benchmark_holds() -> None:
    cases = (ROOT / "benchmarks" / "cases.py").read_text()
    promised = re.findall(r"(?:ratio|seconds)_max=[\d.]+", cases)
    ratios = [f"ratio_max={most}" for most in (1.15, 1.0, 1.5)]
    assert promised == [*ratios, "seconds_max=0.15", "seconds_max=1.2"]
    figures = (ROOT / "docs" / "benchmarks.md").read_text()
    for case in ("csv_stations", "wordcount", "lineitem", "startup", "memory"):
        assert f"`{case}" in figures
        assert f"def {case}(" in cases


@pytest.mark.parametrize("make", DATASETS.values(), ids=DATASETS.keys())
def test_data_sets_of_any_size_are_made_block_by_block(make: Callable[..., Any]) -> None:
    blocks = make(10**9).blocks()
    assert len(next(blocks)) + len(next(blocks)) < 200 << 20

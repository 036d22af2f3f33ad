"""Every job in examples/, as the README says to run it, against plain Python."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(folder: Path, *arguments: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=kept | {"CORTEX_HOME": str(folder / "state"), "PYTHONPATH": str(ROOT), "CORTEX_SLOTS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two visitors; the first comes back after an hour. One line is no request."""
    lines = []
    for visitor, clock, referrer in (
        ("1.1.1.1", "10:00:00", "https://a.example/"),
        ("2.2.2.2", "10:00:30", "-"),
        ("1.1.1.1", "10:05:00", "https://b.example/"),
        ("1.1.1.1", "11:30:00", "https://b.example/"),
    ):
        lines.append(
            f'{visitor} - - [02/Jan/2024:{clock} +0000] "GET /x HTTP/1.1" 200 12 "{referrer}" "agent"'
        )
    path = tmp_path / "access.log"
    path.write_text("\n".join([*lines, "garbage"]) + "\n")
    return path


def test_wordcount_of_the_standard_library(tmp_path: Path) -> None:
    source = Path(os.__file__)
    out = run(tmp_path, str(EXAMPLES / "wordcount.py"), str(source), "--quiet")
    rows = {row["key"]: int(row["value"]) for row in csv.DictReader(out.splitlines())}
    assert rows == Counter(re.findall(r"[^\W\d_]+", source.read_text().lower()))


def test_station_extremes_in_yaml_and_in_batches_agree(tmp_path: Path) -> None:
    readings = [
        ("oslo", -3.5),
        ("lima", 19.0),
        ("test", 70.0),
        ("oslo", 12.25),
        ("lima", -99.0),
        ("oslo", 0.1),
    ]
    (tmp_path / "m.csv").write_text("station,temp\n" + "".join(f"{s},{t}\n" for s, t in readings))
    declared = run(
        tmp_path,
        *("-m", "cortex", "mapreduce", str(EXAMPLES / "station-extremes.yaml")),
        *("--input", "m.csv", "--quiet", "--json"),
    )
    batches = run(tmp_path, str(EXAMPLES / "station_extremes.py"), "m.csv", "--quiet", "--json")
    rows = json.loads(declared)["rows"]
    assert json.loads(batches)["rows"] == rows
    oslo = [t * 9 / 5 + 32 for s, t in readings if s == "oslo"]
    assert rows[0] == ["lima", 19.0 * 9 / 5 + 32, 19.0 * 9 / 5 + 32, 19.0 * 9 / 5 + 32, 1]
    assert rows[1] == ["oslo", min(oslo), pytest.approx(sum(oslo) / 3), max(oslo), 3]


def test_inverted_index(tmp_path: Path) -> None:
    (tmp_path / "pages.tsv").write_text("name\ttext\none\tred blue red\ntwo\tblue\nthree\t\n")
    run(tmp_path, str(EXAMPLES / "inverted_index.py"), "pages.tsv", "-o", "index", "--output-format", "jsonl")
    rows = [json.loads(line) for path in (tmp_path / "index").glob("part-*") for line in path.open()]
    assert {row["key"]: row["value"] for row in rows} == {"red": "one", "blue": "one two"}


def test_sessions(tmp_path: Path, log: Path) -> None:
    answer = json.loads(run(tmp_path, str(EXAMPLES / "sessions.py"), log.name, "--quiet", "--json"))
    assert answer["rows"] == [
        ["1.1.1.1", "2024-01-02T10:00:00+00:00, 300, 2"],
        ["1.1.1.1", "2024-01-02T11:30:00+00:00, 0, 1"],
        ["2.2.2.2", "2024-01-02T10:00:30+00:00, 0, 1"],
    ]
    assert answer["counters"] == {"lines": {"not understood": 1}}


def test_top_referrers(tmp_path: Path, log: Path) -> None:
    out = run(tmp_path, str(EXAMPLES / "top_referrers.py"), log.name)
    assert [line.split() for line in out.splitlines()] == [
        ["2", "https://b.example/"],
        ["1", "https://a.example/"],
    ]


def test_errors_only_is_a_map_only_filter(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.txt").write_text("fine\nERROR one\nalso fine\n")
    (logs / "b.txt").write_text('ERROR two, with "quotes" and\ttabs\n')
    command = ("-m", "cortex", "mapreduce", str(EXAMPLES / "errors-only.yaml"))
    run(tmp_path, *command, "--input", "logs", "--output", "errors")
    kept = "".join(path.read_text() for path in sorted((tmp_path / "errors").glob("part-*.txt")))
    assert kept == 'ERROR one\nERROR two, with "quotes" and\ttabs\n'


def test_keywords_leave_out_what_a_side_file_lists(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat and THE dog\nA cat is not for dogs\n")
    command = ("-m", "cortex", "mapreduce", str(EXAMPLES / "keywords.yaml"))
    out = run(tmp_path, *command, "--input", "a.txt", "--quiet")
    rows = {row["key"]: int(row["value"]) for row in csv.DictReader(out.splitlines())}
    assert rows == {"cat": 2, "dog": 1, "dogs": 1}

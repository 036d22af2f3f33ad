"""``cortex mapreduce`` and ``python job.py`` as a person runs them: real processes, whole jobs."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = """
import cortex

class WordCount(cortex.MapReduceJob):
    combine = sum

    def map(self, line):
        self.counter("lines", "seen").add()
        for word in line.split():
            yield word, 1

if __name__ == "__main__":
    WordCount.main()
"""
TEXT = "the quick brown fox\njumps over the lazy dog\nthe end\n" * 50


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A working folder; afterwards no job has left a temporary file behind."""
    (tmp_path / "job.py").write_text(WORDS)
    (tmp_path / "in.txt").write_text(TEXT)
    yield tmp_path
    spill = tmp_path / "state" / "spill"
    assert not spill.exists() or not list(spill.iterdir())
    assert not list(tmp_path.glob(".*.partial"))


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    return kept | {"CORTEX_HOME": str(home / "state"), "PYTHONPATH": str(ROOT), "CORTEX_SLOTS": "1"}


def cortex(home: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return run(home, "-m", "cortex", *arguments, code=code)


def run(home: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done


def test_piped_result_is_csv_and_the_summary_is_apart(home: Path) -> None:
    done = cortex(home, "mapreduce", "job.py:WordCount", "--input", "*.txt", "--split-size", "400B")
    head, *rows = csv.reader(done.stdout.splitlines())
    assert head == ["key", "value"]
    assert {key: int(value) for key, value in rows} == Counter(TEXT.split())
    assert "150 in · 9 out" in done.stderr
    assert "lines: seen 150" in done.stderr


def test_output_folder_overwrite_and_json(home: Path) -> None:
    arguments = (
        "mapreduce",
        "job.py:WordCount",
        "in.txt",
        "-o",
        "out",
        "--quiet",
        "--output-format",
        "jsonl",
    )
    done = cortex(home, *arguments, "--json", "--reducers", "3")
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer["output"] == str(home / "out")
    assert answer["row_count"] == 9
    assert answer["counters"] == {"lines": {"seen": 150}}
    assert answer["report"]["rows_in"] == 150
    assert 0 < answer["report"]["memory_peak_bytes"] <= answer["report"]["memory_cap_bytes"]
    rows = [json.loads(line) for path in sorted((home / "out").glob("part-*")) for line in path.open()]
    assert {row["key"]: row["value"] for row in rows} == Counter(TEXT.split())
    assert (home / "out" / "_SUCCESS").exists()
    refused = cortex(home, *arguments, code=2)
    assert "exists already" in refused.stderr
    assert "--overwrite" in refused.stderr
    (home / "in.txt").write_text("once\n")
    cortex(home, *arguments, "--overwrite")
    assert [p.read_text() for p in (home / "out").glob("part-*")] == ['{"key":"once","value":1}\n']


def test_declared_job_file(home: Path) -> None:
    (home / "m.csv").write_text("station,temp\n" + "a,1.5\nb,-99\na,2.5\nc,0.5\n" * 30)
    (home / "job.yaml").write_text(
        "name: extremes\n"
        "input: {path: m.csv}\n"
        "map: {where: temp > -90, select: {station: station, f: temp * 2}}\n"
        "reduce: {group_by: [station], aggregate: {low: min(f), mean: mean(f), n: count()}}\n"
    )
    done = cortex(home, "mapreduce", "job.yaml", "--quiet", "--split-size", "100B")
    assert sorted(done.stdout.splitlines()[1:]) == ["a,3.0,4.0,60", "c,1.0,1.0,30"]
    shown = json.loads(cortex(home, "mapreduce", "job.yaml", "--quiet", "--json").stdout)
    assert shown["rows"] == [["a", 3.0, 4.0, 60], ["c", 1.0, 1.0, 30]]
    assert shown["more"] == 0


def test_a_script_is_a_command(home: Path) -> None:
    done = run(home, "job.py", "*.txt", "-o", "counts/")
    assert done.stdout == ""
    rows = [
        line for path in (home / "counts").glob("part-*.csv") for line in path.read_text().splitlines()[1:]
    ]
    assert dict(line.split(",") for line in rows) == {w: str(n) for w, n in Counter(TEXT.split()).items()}


def test_run_from_main_with_closures_helpers_and_python_values(home: Path) -> None:
    (home / "helper_beside.py").write_text("def initial(word):\n    return word[0]\n")
    (home / "script.py").write_text(
        "import cortex, helper_beside\n"
        "def make(least):\n"
        "    class Longest(cortex.MapReduceJob):\n"
        "        def map(self, line):\n"
        "            for w in line.split():\n"
        "                if len(w) >= least:\n"
        "                    yield (helper_beside.initial(w), len(w)), {w}\n"
        "        def reduce(self, key, values):\n"
        "            yield key, sorted(set().union(*values))\n"
        "    return Longest\n"
        "result = make(4)(input='in.txt', slots=1).run()\n"
        "print(sorted(result))\n"
        "print(result.first_rows(1), len(result), result.to_arrow().num_rows)\n"
    )
    done = run(home, "script.py")
    rows, shown = done.stdout.splitlines()
    expected = sorted(((w[0], len(w)), [w]) for w in {"quick", "brown", "jumps", "over", "lazy"})
    assert rows == repr(expected)
    assert shown == repr(([(("b", 5), ["brown"])], 4)) + " 5 5" or shown.endswith(" 5 5")
    assert done.stderr == ""


def test_an_exception_in_user_code_shows_its_frames_and_record(home: Path) -> None:
    (home / "bad.py").write_text(WORDS.replace("yield word, 1", "yield word, 1 / (word != 'lazy')"))
    done = cortex(home, "mapreduce", "bad.py:WordCount", "in.txt", "-o", "out", code=1)
    assert "ZeroDivisionError" in done.stderr
    assert "bad.py" in done.stderr
    assert "jumps over the lazy dog" in done.stderr
    assert "cortex/tasks" not in done.stderr
    assert done.stdout == ""
    assert not (home / "out").exists()


def test_mistakes_are_exit_code_2_and_leave_nothing(home: Path) -> None:
    (home / "job.yaml").write_text("input: {path: in.txt, fromat: text}\nmap: {where: lin == 1 +}\n")
    done = cortex(home, "mapreduce", "job.yaml", code=2)
    assert "job.yaml:1:" in done.stderr
    assert "job.yaml:2:" in done.stderr
    assert "format" in done.stderr
    assert "Traceback" not in done.stderr
    small = cortex(home, "mapreduce", "job.py:WordCount", "in.txt", "--memory", "10MB", code=2)
    assert "--memory" in small.stderr


def test_head_ends_the_command_quietly(home: Path) -> None:
    (home / "many.txt").write_text("\n".join(f"word{i}" for i in range(60_000)))
    command = f"{sys.executable} -m cortex mapreduce job.py:WordCount many.txt --quiet | head -2"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 2


def shell(home: Path, redirected: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and error of ``cortex`` with redirections of a shell."""
    environment_ = {k: v for k, v in environment(home).items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirected}', "sh", sys.executable, "-m", "cortex", *arguments],
        cwd=home,
        env=environment_,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", ">&- 2>&- <&-"])
def test_a_job_does_not_need_standard_error(home: Path, redirected: str) -> None:
    arguments = ("mapreduce", "job.py:WordCount", "in.txt", "-o", "out")
    assert shell(home, redirected, *arguments) == (0, "", "")
    assert (home / "out" / "_SUCCESS").exists()


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_result_that_cannot_be_written_is_a_typed_error(home: Path, as_json: tuple[str, ...]) -> None:
    code, _, said = shell(home, ">/dev/full", "mapreduce", "job.py:WordCount", "in.txt", "--quiet", *as_json)
    assert (code, said.count("\n")) == (1, 2), said
    assert said.startswith("error: standard output cannot be written: No space left on device\n  cure: ")


def test_commands_without_a_job_answer_for_streams_too(home: Path) -> None:
    code, _, said = shell(home, ">/dev/full", "ls-splits", "in.txt")
    assert (code, said.splitlines()[0][:40]) == (1, "error: standard output cannot be written")
    assert shell(home, "2>/dev/full", "mapreduce") == (2, "", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("asked", ["help", "--help", "help mapreduce", "mapreduce -h", "--version"])
def test_help_onto_a_full_disk_is_an_error_of_one_line(home: Path, asked: str) -> None:
    said = "error: standard output cannot be written: No space left on device\n"
    assert shell(home, ">/dev/full", *asked.split()) == (1, "", said)
    assert shell(home, "2>&-", "mapreduce") == (2, "", "")
    code, out, _ = shell(home, "| true", "ls-splits", "nowhere", "--json")
    assert (code, out) == (0, "")


def test_ctrl_c_stops_within_two_seconds_and_removes_everything(home: Path) -> None:
    (home / "slow.py").write_text(
        WORDS.replace(
            "        for word",
            "        import time; open('started', 'a').close(); time.sleep(0.2)\n        for word",
        )
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "cortex", "mapreduce", "slow.py:WordCount", "in.txt", "-o", "deep/out"],
        cwd=home,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (home / "started").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group gets it
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 2.0
    assert process.returncode == 130
    assert (out, err) == ("", "interrupted\n")
    assert not (home / "deep").exists()
    with pytest.raises(ProcessLookupError):  # no process of the job is left
        os.killpg(process.pid, 0)


def test_the_client_does_without_pandas_and_twisted(home: Path) -> None:
    done = run(home, "-X", "importtime", "-m", "cortex", "mapreduce", "job.py:WordCount", "in.txt", "--quiet")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pyarrow.lib" in imported
    assert not imported & {"pandas.core", "twisted.internet", "rich.console"}

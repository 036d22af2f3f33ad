"""What a newcomer gets wrong on the first day, at the command line: the message has to say how to go on."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUMS = "input: {path: x}\nreduce: {group_by: [a], aggregate: {s: sum(b)}}\n"


def cortex(folder: Path, *arguments: str, code: int) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    done = subprocess.run(
        [sys.executable, "-m", "cortex", *arguments],
        cwd=folder,
        env=kept | {"CORTEX_HOME": str(folder / "state"), "PYTHONPATH": str(ROOT), "CORTEX_SLOTS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done


def failure(folder: Path, *arguments: str, code: int = 1) -> str:
    return cortex(folder, *arguments, "--quiet", code=code).stderr


def test_overwrite_does_not_take_the_users_texts(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "novel.csv").write_text("a,b\nx,1\n")
    (tmp_path / "sums.yaml").write_text(SUMS)
    said = failure(tmp_path, "mapreduce", "sums.yaml", "-i", "docs", "-o", "docs", "--overwrite", code=2)
    assert "novel.csv" in said
    assert "--overwrite does not remove it" in said
    assert (tmp_path / "docs" / "novel.csv").read_text() == "a,b\nx,1\n"


def test_what_user_code_printed_is_shown_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import cortex\nclass Job(cortex.MapReduceJob):\n    combine = sum\n    def map(self, line):\n"
        "        print('looking at', line)\n        yield line, 1 / int(line)\n"
    )
    (tmp_path / "in.txt").write_text("".join(f"{n}\n" for n in [*range(900, 1000), 0]))
    said = failure(tmp_path, "mapreduce", "job.py:Job", "-i", "in.txt")
    assert "  last output:\n    looking at 981\n" in said
    assert "    looking at 999\n    looking at 0\n" in said
    assert "looking at 980\n" not in said
    assert "  offset: 400\n" in said


def test_a_job_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import cortex\nclass Job(cortex.MapReduceJob):\n    combine = sum\n"
        "    def __init__(self):\n        super().__init__()\n        self.x = undefined\n"
        "    def map(self, line):\n        yield line, 1\n"
    )
    (tmp_path / "in.txt").write_text("a\n")
    said = failure(tmp_path, "mapreduce", "job.py:Job", "-i", "in.txt")
    assert "job.py:Job cannot be made: NameError: name 'undefined' is not defined" in said
    assert "self.x = undefined" in said
    assert "click" not in said


@pytest.mark.parametrize("text", ["a,b\nx,NA\ny,1\n", "a,b\n", ""])
def test_numbers_taken_for_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "in.csv").write_text(text)
    (tmp_path / "sums.yaml").write_text(SUMS)
    said = failure(tmp_path, "mapreduce", "sums.yaml", "-i", "in.csv")
    assert "sum(b): sum does not take values of type string" in said
    assert "columns: {b: float64}" in said
    (tmp_path / "sums.yaml").write_text(
        SUMS.replace("x}", "x, columns: {b: float64}, null_values: ['', NA]}")
    )
    done = cortex(tmp_path, "mapreduce", "sums.yaml", "-i", "in.csv", "--quiet", code=0)
    assert done.stdout.startswith("a,s\n")


@pytest.mark.parametrize(
    ("name", "data", "cure"),
    [
        ("t.csv", b"PAR1\x15\x04\x15\xf6rest", "read it with format parquet"),
        ("t.csv", gzip.compress(b"a,b\n1,2\n", mtime=0), "a name that ends in .gz"),
        ("t.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        ("t.csv", b"a;b\n1;2\n", "say delimiter: ';'"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, name: str, data: bytes, cure: str) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "sums.yaml").write_text(SUMS)
    said = failure(tmp_path, "mapreduce", "sums.yaml", "-i", name)
    assert f"{tmp_path}/{name}" in said
    assert cure in said


def test_ls_splits_shows_the_splits_that_a_job_uses(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"some words\n" * 2_000_000)
    (tmp_path / "job.py").write_text(
        "import cortex\nclass Job(cortex.MapReduceJob):\n    combine = sum\n"
        "    def map(self, line):\n        yield 'lines', 1\n"
    )
    shown = cortex(tmp_path, "ls-splits", "in.txt", code=0).stdout
    done = cortex(tmp_path, "mapreduce", "job.py:Job", "-i", "in.txt", "--json", code=0)
    tasks = shown.rpartition(" map task")[0].rpartition(" ")[2]
    assert f'"tasks_total": {tasks}' in done.stdout.partition('"map"')[2].partition("}")[0]
    assert int(tasks) > 1


def test_code_that_ends_its_process(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import os\nimport cortex\nclass Job(cortex.MapReduceJob):\n    combine = sum\n"
        "    def map(self, line):\n        print('last words')\n        os._exit(7)\n"
    )
    (tmp_path / "in.txt").write_text("a\n")
    said = failure(tmp_path, "mapreduce", "job.py:Job", "-i", "in.txt")
    assert "exit status 7" in said
    assert "likely: the job's code, or a library it uses, ended the process (os._exit)" in said
    assert "last words" in said
    assert "in.txt" in said


def test_a_node_with_more_memory_than_there_is(tmp_path: Path) -> None:
    line = f"localhost:1/t0123456789ab-{'0' * 16}.{'0' * 64}"
    said = cortex(tmp_path, "node", "--join", line, "--memory", "900TB", code=2).stderr
    assert "a memory cap of 900 TB is more than this machine (or its container) has: " in said
    assert "lower --memory" in said

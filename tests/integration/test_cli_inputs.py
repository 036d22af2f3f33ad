"""Inputs good and bad from the command line: every format, nulls, overflow, and errors that name their place.

A failed job leaves no output folder and no temporary file, whatever it was that failed.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
COUNT = "name: c\ninput: {path: x.csv}\nreduce: {group_by: [k], aggregate: {rows: count(), total: sum(n)}}\n"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "count.yaml").write_text(COUNT)
    yield tmp_path
    spill = tmp_path / "state" / "spill"
    assert not spill.exists() or not list(spill.iterdir())
    assert not list(tmp_path.glob(".*partial*"))


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    return kept | {"CORTEX_HOME": str(home / "state"), "PYTHONPATH": str(ROOT)}


def mapreduce(home: Path, target: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cortex", "mapreduce", target, *arguments, "--quiet"],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done


def rows(home: Path, target: str, *arguments: str) -> list[list[str]]:
    _, *found = csv.reader(io.StringIO(mapreduce(home, target, *arguments).stdout))
    return sorted(found)


def test_every_format_gives_the_same_answer(home: Path) -> None:
    """Folders without their hidden files, globs, gzip, tab-separated, Parquet, Arrow, another dialect."""
    keys, numbers = ["a", "b", "two\nlines", "a"], [1, 2, 3, None]
    plain = 'k,n\na,1\nb,2\n"two\nlines",3\na,\n'
    folder = home / "in"
    folder.mkdir()
    (folder / "x.csv").write_text(plain)
    (folder / "_SUCCESS").write_text("")
    (folder / ".hidden.csv").write_text("no,csv\n")
    (home / "x.csv.gz").write_bytes(gzip.compress(plain.encode()))
    (home / "x.tsv").write_text(plain.replace(",", "\t"))
    table = pa.table({"unused": [{"a": 1}] * 4, "n": pa.array(numbers, pa.int64()), "k": keys})
    pq.write_table(table, home / "x.parquet", row_group_size=1)
    with pa.OSFile(str(home / "x.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    (home / "other.csv").write_text("'a';1\r\nb;2\r\n'two\nlines';3\r\na;-\r\n", newline="")
    (home / "other.yaml").write_text(
        "name: c\ninput: {path: other.csv, delimiter: ';', quote: \"'\", header: false, null_values: ['-'],"
        " columns: {k: string, n: int64}}\n"
        "reduce: {group_by: [k], aggregate: {rows: count(), total: sum(n)}}\n"
    )
    expected = [["a", "2", "1"], ["b", "1", "2"], ["two\nlines", "1", "3"]]
    for given in ("in", "in/*.csv", "x.csv.gz", "x.tsv", "x.parquet", "x.arrow"):
        found = rows(home, "count.yaml", "--input", given, "--split-size", "25B")
        assert found == expected, given
    assert rows(home, "other.yaml") == expected
    (home / "x.data").write_text(plain)
    assert rows(home, "count.yaml", "--input", "x.data", "--format", "csv") == expected


BAD = {
    "a row with a field more": (b"k,n\na,1\nb,2,3\nc,4\n", ["offset: 8\n", "b,2,3", "3"]),
    "a text where a number is": (b"k,n\n" + b"a,1\n" * 99 + b"b,oops\n", ["offset: 400\n", "oops", "n"]),
    "a number too large": (
        b"k,n\n" + b"a,1\n" * 99 + b"b,9223372036854775808\n",
        ["offset: 400\n", "9223372036854775808"],
    ),
    "bytes that are no UTF-8": (b"k,n\n" + b"a,1\n" * 99 + b"\xff\xfe,1\n", ["offset: 400\n", "UTF-8"]),
    "a quote that never ends": (b"k,n\n" + b"a,1\n" * 99 + b'"b,1\nc,1\n', ["offset: 400\n"]),
    "no such column": (b"kk,n\na,1\n", ["'k'", "kk"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_csv_names_file_offset_and_text(home: Path, name: str) -> None:
    data, words = BAD[name]
    (home / "bad.csv").write_bytes(data)
    typed = "name: c\ninput: {path: bad.csv, columns: {n: int64}}\n" + COUNT.partition("x.csv}\n")[2]
    (home / "typed.yaml").write_text(typed)
    done = mapreduce(home, "typed.yaml", "-o", "out", "--split-size", "50B", "--json", code=1)
    error = json.loads(done.stdout)["error"]
    text = re.sub(r"(?<=\d)[,_](?=\d{3}\b)", "", done.stderr)
    assert "bad.csv" in text
    for word in words:
        assert word in text, (word, text)
    assert error["cure"]
    assert "Traceback" not in text
    assert not (home / "out").exists()


def test_damaged_files_are_named(home: Path) -> None:
    whole = io.BytesIO()
    pq.write_table(pa.table({"k": ["a"] * 1000, "n": range(1000)}), whole)
    (home / "cut.parquet").write_bytes(whole.getvalue()[:-100])
    (home / "cut.csv.gz").write_bytes(gzip.compress(b"k,n\n" + os.urandom(3000).hex().encode())[:-20])
    for name in ("cut.parquet", "cut.csv.gz", "missing.csv", "nothing-*.csv"):
        done = mapreduce(home, "count.yaml", "--input", name, "-o", "out", code=1)
        assert name in done.stderr
        assert "Traceback" not in done.stderr
        assert not (home / "out").exists()


def test_an_error_late_in_the_job_leaves_the_old_output_as_it_was(home: Path) -> None:
    (home / "x.csv").write_text("k,n\na,1\n")
    mapreduce(home, "count.yaml", "-o", "out")
    before = {path.name: path.read_bytes() for path in (home / "out").iterdir()}
    (home / "x.csv").write_text("k,n\na,9223372036854775807\nb,2\na,1\n")
    done = mapreduce(home, "count.yaml", "-o", "out", "--overwrite", "--split-size", "5B", code=1)
    assert "9,223,372,036,854,775,808" in done.stderr or "9223372036854775808" in done.stderr  # the exact sum
    assert "total" in done.stderr
    assert "'a'" in done.stderr
    assert {path.name: path.read_bytes() for path in (home / "out").iterdir()} == before


def test_nulls_are_a_group_and_ints_stay_ints(home: Path) -> None:
    (home / "x.csv").write_text('k,n\n,9007199254740993\na,\n"",1\n,2\n')
    (home / "all.yaml").write_text(
        "name: c\ninput: {path: x.csv}\nreduce:\n  group_by: [k]\n"
        "  aggregate: {rows: count(), some: count(n), total: sum(n), low: min(n), high: max(n),\n"
        "    mean: mean(n)}\n"
    )
    mapreduce(home, "all.yaml", "-o", "out", "--output-format", "jsonl", "--reducers", "1")
    (part,) = (home / "out").glob("part-*")
    found = {row["k"]: row for row in map(json.loads, part.read_text().splitlines())}
    assert set(found) == {None, "", "a"}
    big = 9007199254740993
    assert found[None] == {
        "k": None, "rows": 2, "some": 2, "total": big + 2, "low": 2, "high": big, "mean": (big + 2) / 2
    }  # fmt: skip
    assert found["a"] == {
        "k": "a", "rows": 1, "some": 0, "total": None, "low": None, "high": None, "mean": None
    }  # fmt: skip
    assert [type(v) for v in found[""].values()] == [str, int, int, int, int, int, float]


FUNCTIONS = """
def words(line):
    for word in line.split():
        yield word, 1

def total(key, values):
    yield key.upper(), sum(values)

def larger(a, b):
    return a if a > b else b
"""


def test_functions_of_a_module_in_a_job_file(home: Path) -> None:
    (home / "mod.py").write_text(FUNCTIONS)
    (home / "in.txt").write_text("a b a\nb a\n")
    (home / "job.yaml").write_text(
        "name: f\ninput: {path: in.txt}\nmap: mod.py:words\nreduce: mod.py:total\n"
    )
    assert rows(home, "job.yaml", "--split-size", "2B") == [["A", "3"], ["B", "2"]]
    (home / "fold.yaml").write_text(
        "name: f\ninput: {path: in.txt}\nmap: mod.py:words\ncombine: mod.py:larger\n"
    )
    assert rows(home, "fold.yaml") == [["a", "1"], ["b", "1"]]


EVERYTHING = """
import cortex

class Everything(cortex.MapReduceJob):
    encoding = "bytes"
    reducers = 3

    def setup(self):
        self.seen = 0

    def map(self, record):
        assert type(record) is bytes and not record.endswith(b"\\n")
        self.seen += 1
        yield record[:1], len(record)

    def partition(self, key, n):
        return key[0] % n

    def reduce(self, key, values):
        yield key.decode("latin-1"), list(values)

    def cleanup(self):
        self.counter("seen", "records").add(self.seen)
        self.counter("tasks", "ended").add()

class ByRow(cortex.MapReduceJob):
    reducers = 0

    def map(self, row):
        assert row.n == row["n"] == row[1] and len(row) == 2
        yield row[0], row.n + 1
"""


def test_bytes_partition_setup_cleanup_and_rows_by_name_and_position(home: Path) -> None:
    (home / "job.py").write_text(EVERYTHING)
    lines = [b"b\xff\xfe", b"a", b"c12", b"b", b"a123"]
    (home / "in.txt").write_bytes(b"\n".join(lines))
    command = (
        "job.py:Everything",
        "in.txt",
        "-o",
        "out",
        "--output-format",
        "jsonl",
        "--split-size",
        "4B",
        "--json",
    )
    answer = json.loads(mapreduce(home, *command).stdout)
    assert answer["counters"]["seen"] == {"records": 5}
    assert answer["counters"]["tasks"]["ended"] > 3  # three reduces, and the maps
    parts = sorted((home / "out").glob("part-*"))
    found = [json.loads(path.read_text()) for path in parts]  # one row each: a custom partition was asked
    assert [row["key"] for row in found] == [chr(c) for c in sorted(b"abc", key=lambda c: c % 3)]
    assert {row["key"]: row["value"] for row in found} == {"a": [1, 4], "b": [3, 1], "c": [3]}
    (home / "x.csv").write_text("k,n\na,1\nb,2\n")
    assert rows(home, "job.py:ByRow", "x.csv") == [["a", "2"], ["b", "3"]]


def test_code_that_ends_its_process_is_an_error_of_the_code(home: Path) -> None:
    (home / "mod.py").write_text("import sys\n\ndef words(line):\n    yield line, sys.exit(f'no {line}')\n")
    (home / "job.yaml").write_text("name: f\ninput: {path: in.txt}\nmap: mod.py:words\ncombine: sum\n")
    (home / "in.txt").write_text("one\n")
    done = mapreduce(home, "job.yaml", "-o", "out", code=1)
    assert "SystemExit" in done.stderr
    assert "no one" in done.stderr
    assert "mod.py" in done.stderr
    assert "in.txt" in done.stderr
    assert "bug in cortex" not in done.stderr


def test_a_terminal_gets_a_table_and_progress(home: Path) -> None:
    (home / "x.csv").write_text("k,n\n" + "".join(f"key{i:03d},{i}\n" for i in range(60)))
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cortex", "mapreduce", "count.yaml"],
        cwd=home,
        env=environment(home) | {"TERM": "xterm", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=child,
        stderr=child,
    )
    os.close(child)
    shown = b""
    while block := read(parent):
        shown += block
    os.close(parent)
    assert process.wait(10) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert [int(n) for n in re.findall(r"^ ?key(\d+) ", text, re.M)] == list(range(40))
    assert "and 20 more" in text
    assert "memory" in text


SLOW = """
import cortex, time

class Slow(cortex.MapReduceJob):
    combine = sum
    split_size = 2

    def map(self, line):
        time.sleep(0.2)
        yield line, 1
"""
PROGRESS = re.compile(rb"map\s+\S* *\d+/8")


@pytest.mark.parametrize("stays", [True, False])
def test_progress_is_shown_while_the_terminal_is_there(home: Path, stays: bool) -> None:
    (home / "slow.py").write_text(SLOW)
    (home / "in.txt").write_text("x\n" * 8)
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cortex", "mapreduce", "slow.py:Slow", "in.txt", "-o", "out"],
        cwd=home,
        env=environment(home) | {"TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=child,
    )
    os.close(child)
    shown = b""
    while (block := read(parent)) and (stays or not PROGRESS.search(shown)):
        shown += block
    os.close(parent)  # without a signal: it is not the one that controls the process
    assert process.wait(30) == 0
    assert PROGRESS.search(shown), shown
    assert (b"done in" in shown) == stays
    assert (home / "out" / "_SUCCESS").exists()


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def test_settings_come_from_dotenv_the_environment_and_options(home: Path) -> None:
    (home / "x.csv").write_text("k,n\na,1\n")
    (home / ".env").write_text(f"CORTEX_MEMORY=300MB\nCORTEX_SLOTS=1\nCORTEX_SPILL_DIRS={home}/fast\n")

    def report(more: dict[str, str], *options: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "cortex", "mapreduce", "count.yaml", "--json", *options],
            cwd=home,
            env=environment(home) | more,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return json.loads(done.stdout)["report"]

    mb = 1 << 20
    told = report({})
    assert (told["memory_cap_bytes"], told["slots"]) == (300 * mb, 1)
    assert (home / "fast").is_dir()
    told = report({"CORTEX_MEMORY": "400MB", "CORTEX_SLOTS": "2"})
    assert (told["memory_cap_bytes"], told["slots"]) == (400 * mb, 2)
    assert report({"CORTEX_MEMORY": "400MB"}, "--memory", "500MB")["memory_cap_bytes"] == 500 * mb

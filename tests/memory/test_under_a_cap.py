"""Whole jobs with ``--memory 384MB`` over 1 GB of decoded input, in a hard control group of 480 MB.

Each gives the right answer, its whole tree stays below the memory it was given (counted here, not by cortex),
and the kernel kills nothing. Where the machine allows no control group, memory is only watched. The same
jobs at full size are ``python -m benchmarks memory``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.cases import check_copy, check_hotkey, check_stations, check_sums, check_words
from benchmarks.cgroup import unavailable
from benchmarks.contest import environment
from benchmarks.measure import run
from datasets import Dataset, Distinct, HotKey, Stations, Text

MIB = 1 << 20
MEMORY_MB = 384
HARD_CAP_BYTES = 480 * MIB
TEXT_CHARS = 500
LONG_LINES, LONG_CHARS = 2_100, 500_000
LONG_VALUES = """
import cortex

class Long(cortex.MapReduceJob):
    def map(self, line):
        yield line[:6], line

    def reduce(self, key, values):
        for line in values:
            yield key, line
"""
SKEW = """
import cortex

class Skew(cortex.MapReduceJob):
    def map(self, line):
        yield line, "x" * 1_000_000 if line == "BIG" else line

    def reduce(self, key, values):
        yield key, sum(map(len, values))
"""
JOBS = Path(__file__).parents[2] / "benchmarks" / "jobs"

pytestmark = [
    pytest.mark.memory,
    pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's /proc"),
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Not pytest's own, which stays for three runs: these are gigabytes."""
    with tempfile.TemporaryDirectory(prefix="cortex-memory-") as name:
        yield Path(name)


def write(path: Path, made: Dataset, copies: int = 1) -> dict[str, Any]:
    """The rows `copies` times over; the answer is that of one copy."""
    with open(path, "wb", buffering=0) as file:
        file.write(made.header)
        for first in range(0, made.rows, 1 << 17):
            block = made.block(first, min(1 << 17, made.rows - first))
            for _ in range(copies):
                file.write(block)
    return made.answer()


def hold(folder: Path, target: object, path: Path, check: Callable[[Path], str], *more: str) -> None:
    out = folder / "out"
    state = {"CORTEX_HOME": os.fspath(folder / "state")}
    measured = run(
        [
            *(sys.executable, "-m", "cortex", "mapreduce", str(target), "--input", str(path)),
            *("--output", str(out), "--overwrite", "--memory", f"{MEMORY_MB}MB", "--quiet", *more),
        ],
        env=environment() | state,
        cap_bytes=None if unavailable() else HARD_CAP_BYTES,
        watch_memory=True,
        timeout_s=600,
    )
    assert measured.exit_code == 0, measured.error
    assert measured.oom_kills == 0
    assert check(out) == ""
    assert 50 * MIB < measured.peak_tree_bytes <= MEMORY_MB * MIB
    assert not any((folder / "state" / "spill").iterdir())


def test_a_declared_aggregation_of_csv(folder: Path) -> None:
    path = folder / "stations.csv"
    answer = write(path, Stations(15_000_000), copies=4)
    assert path.stat().st_size > 1_000_000_000
    for station in answer["stations"].values():  # four times a float is exact, and the mean is the same
        station["count"] *= 4
        station["sum"] *= 4
    hold(folder, JOBS / "stations.yaml", path, check_stations(answer, exact=True))
    path.unlink()


@pytest.fixture(scope="module")
def hot(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """1 GB, of which nine tenths are one group's."""
    path = folder / "hot.csv"
    answer = write(path, HotKey(2_000_000, text_chars=TEXT_CHARS))
    assert path.stat().st_size > 1_000_000_000
    yield path, answer
    path.unlink()


def test_one_group_larger_than_memory_value_by_value(folder: Path, hot: tuple[Path, dict[str, Any]]) -> None:
    hold(folder, JOBS / "hotkey.py:HotKey", hot[0], check_hotkey(hot[1], TEXT_CHARS))


def test_one_group_larger_than_memory_in_batches(folder: Path, hot: tuple[Path, dict[str, Any]]) -> None:
    hold(folder, JOBS / "hotkey_batches.py:HotKeyBatches", hot[0], check_hotkey(hot[1], TEXT_CHARS))


def test_a_map_only_job_writes_what_it_read(folder: Path, hot: tuple[Path, dict[str, Any]]) -> None:
    hold(folder, JOBS / "copy.yaml", hot[0], check_copy(hot[0]))


def test_word_count_row_by_row_with_a_folded_combine(folder: Path) -> None:
    path, copies = folder / "text.txt", 11
    answer = write(path, Text(2_000_000, octaves=20), copies)
    assert path.stat().st_size > 1_000_000_000
    answer["words"] *= copies
    answer["counts"] = {word: copies * count for word, count in answer["counts"].items()}
    hold(folder, JOBS / "wordcount.py:WordCount", path, check_words(answer))
    path.unlink()


def test_more_groups_than_memory_holds(folder: Path) -> None:
    path = folder / "distinct.csv"
    answer = write(path, Distinct(86_000_000, keys=8_000_000))
    assert path.stat().st_size > 1_000_000_000
    hold(folder, JOBS / "distinct.yaml", path, check_sums(answer, "key", "total"))
    path.unlink()


@pytest.fixture(scope="module")
def long_lines(folder: Path) -> Iterator[Path]:
    """1 GB in lines of 0.5 MB, whose first six characters tell them apart."""
    path = folder / "long.txt"
    with open(path, "wb") as file:
        for number in range(LONG_LINES):
            file.write(b"%06d" % number + b"x" * LONG_CHARS + b"\n")
    assert path.stat().st_size > 1_000_000_000
    yield path
    path.unlink()


@pytest.mark.parametrize("format_", ["csv", "parquet"])
def test_a_map_only_job_writes_long_values(folder: Path, long_lines: Path, format_: str) -> None:
    def check(out: Path) -> str:
        if format_ == "csv":
            size = sum(path.stat().st_size for path in out.glob("part-*"))
            return "" if size > long_lines.stat().st_size else f"{size} bytes"
        found = [pq.read_metadata(path) for path in sorted(out.glob("part-*"))]
        groups = [part.row_group(index).num_rows for part in found for index in range(part.num_row_groups)]
        return "" if sum(groups) == LONG_LINES and max(groups) < 40 else f"groups of {groups}"

    job = folder / "long.yaml"
    job.write_text("name: long\nmap: {select: {line: line}}\n")
    hold(folder, job, long_lines, check, "--split-size", "400MB", "--output-format", format_)


def test_long_values_are_shuffled_and_yielded_one_by_one(folder: Path, long_lines: Path) -> None:
    def check(out: Path) -> str:
        rows = 0
        for path in out.glob("part-*"):
            with open(path, "rb") as file:
                rows += sum(line.endswith(b"x" * 1000 + b"\n") for line in file)
        return "" if rows == LONG_LINES else f"{rows} rows"

    (folder / "long.py").write_text(LONG_VALUES)
    hold(folder, folder / "long.py:Long", long_lines, check, "--split-size", "400MB")


def test_large_values_of_one_key_among_many_small_ones(folder: Path) -> None:
    """1 MB each: one in a thousand, then 200 in a row."""
    path, small = folder / "skew.txt", 200_000
    with open(path, "w") as file:
        for number in range(small):
            file.write(f"key{number}\n" + ("BIG\n" if number % 1000 == 0 else ""))
            file.write("BIG\n" * (200 if number == 150_500 else 0))

    def check(out: Path) -> str:
        found: dict[str, int] = {}
        for part in out.glob("part-*"):
            for line in part.read_text().splitlines()[1:]:
                key, _, value = line.partition(",")
                found[key] = int(value)
        wanted = {f"key{number}": len(f"key{number}") for number in range(small)} | {"BIG": 400_000_000}
        return "" if found == wanted else f"{len(found)} keys, {found.get('BIG')}"

    (folder / "skew.py").write_text(SKEW)
    hold(folder, folder / "skew.py:Skew", path, check)


def test_a_hundred_means_of_many_groups(folder: Path) -> None:
    path, job, groups = folder / "means.csv", folder / "means.yaml", 16_000
    numbers = np.arange(9 * groups)
    with open(path, "w") as file:
        file.write("key,a,b\n")
        file.writelines(f"{n * 7 % groups},{n % 1000 / 8},{n}.5\n" for n in numbers.tolist())
    means = "".join(f", a{i}: mean(a * {i}), b{i}: mean(b + {i})" for i in range(50))
    job.write_text(f"name: means\nreduce: {{group_by: [key], aggregate: {{{means[2:]}}}}}\n")

    def check(out: Path) -> str:
        rows = np.concatenate([np.loadtxt(p, delimiter=",", skiprows=1) for p in out.glob("part-*")])
        rows = rows[np.argsort(rows[:, 0])]
        key = numbers * 7 % groups
        a, b = (np.bincount(key, weights=v) / 9 for v in (numbers % 1000 / 8, numbers + 0.5))
        wanted = np.stack([np.arange(groups), *(v for i in range(50) for v in (a * i, b + i))], axis=1)
        return "" if np.allclose(rows, wanted, rtol=1e-12) else "other means"

    hold(folder, job, path, check, "--split-size", f"{path.stat().st_size // 2 // 1000 + 1}KB")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_texts_that_are_small_in_a_file_and_large_in_memory(folder: Path, kind: str) -> None:
    """5 KB each, ten of them, 200,000 rows: a few hundred KB that decode to 1 GB."""
    texts = pa.DictionaryArray.from_arrays(
        np.arange(200_000, dtype=np.int32) % 10, [f"x{n}" * 2500 for n in range(10)]
    )
    path = folder / f"texts.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"s": texts.cast(pa.string())}), path)
    else:
        with pa.ipc.new_file(path, pa.schema([("s", texts.type)])) as file:
            file.write_table(pa.table({"s": texts}))
    assert path.stat().st_size < 1_000_000
    hold(folder, summed(folder, "length(s)"), path, lambda out: check_total(out, 200_000 * 5000))


def test_a_record_batch_larger_than_memory(folder: Path) -> None:
    path, rows = folder / "batch.arrow", 130_000_000
    with pa.ipc.new_file(path, pa.schema([("n", pa.int64())])) as file:
        file.write_batch(pa.record_batch([np.arange(rows)], names=["n"]))
    assert path.stat().st_size > 1_000_000_000
    hold(folder, summed(folder, "n"), path, lambda out: check_total(out, rows * (rows - 1) // 2))
    path.unlink()


def summed(folder: Path, expression: str) -> Path:
    job = folder / "summed.yaml"
    job.write_text(
        f"name: summed\nmap: {{select: {{n: {expression}}}}}\n"
        "reduce: {group_by: [], aggregate: {total: sum(n)}}\nresources: {reducers: 1}\n"
    )
    return job


def check_total(out: Path, wanted: int) -> str:
    found = "".join(path.read_text() for path in out.glob("part-*"))
    return "" if found == f"total\n{wanted}\n" else found


def test_the_peak_that_cortex_tells_is_the_one_counted_from_outside(folder: Path) -> None:
    path, told = folder / "stations.csv", folder / "told.json"
    write(path, Stations(8_000_000))
    job = f"{JOBS / 'stations.yaml'} --input {path} --memory {MEMORY_MB}MB --json --quiet"
    command = f"exec {sys.executable} -m cortex mapreduce {job} > {told}"
    measured = run(["bash", "-c", command], env=environment(), watch_memory=True)
    assert measured.exit_code == 0, measured.error
    peak_bytes = json.loads(told.read_text())["report"]["memory_peak_bytes"]
    assert abs(peak_bytes - measured.peak_tree_bytes) < 0.25 * measured.peak_tree_bytes

"""One job under other resources, from the command line: the same bytes, or the same rows in order."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cortex.errors import MemoryTooSmall
from cortex.memory_plan import plan_memory
from datasets import Orders

ROOT = Path(__file__).parents[2]
ROWS = 6_000
DECLARED = """
name: notes
input: {path: orders.csv}
map: {where: total > 3, select: {city: city, note: note, total: total, order_id: order_id}}
reduce:
  group_by: [city, note]
  aggregate: {rows: count(), orders: sum(order_id), total: sum(total), mean: mean(total), most: max(total)}
"""
ROW_FORM = """
import cortex

class Notes(cortex.MapReduceJob):
    def map(self, row):
        yield row.note, (row.order_id, row.total)

    def reduce(self, key, values):
        rows = list(values)
        yield key, f"{len(rows)} {rows[:3]} {rows[-1]} {sum(total for _, total in rows)}"
"""
FOLDED = """
import cortex

class Totals(cortex.MapReduceJob):
    combine = sum

    def map(self, row):
        yield row.customer, row.total
"""
LONG = """
import cortex

class Long(cortex.MapReduceJob):
    reducers = 2

    def map(self, row):
        yield row.order_id % 300, row.note or ""

    def reduce(self, key, values):
        yield key, f"{min(values)}{key:03}" * 70_000
"""
RESOURCES = [
    ("--split-size", "64MB", "--memory", "1GB", "--slots", "1"),
    ("--split-size", "64MB", "--memory", "1GB", "--slots", "1"),
    ("--split-size", "17KB", "--memory", "320MB", "--slots", "2", "--reducers", "3"),
    ("--split-size", "1001B", "--memory", "600MB", "--slots", "3", "--reducers", "7"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("determinism")
    Orders(ROWS).write(os.fspath(folder / "orders.csv"))
    (folder / "declared.yaml").write_text(DECLARED)
    (folder / "notes.py").write_text(ROW_FORM)
    (folder / "totals.py").write_text(FOLDED)
    (folder / "long.py").write_text(LONG)
    return folder


def run(home: Path, target: str, *options: str) -> list[bytes]:
    """The part files' bytes, in order."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    out = home / "out"
    command = ["-m", "cortex", "mapreduce", target, "--input", "orders.csv", "--output", "out", "--overwrite"]
    done = subprocess.run(
        [sys.executable, *command, "--quiet", "--json", *options],
        cwd=home,
        env=kept | {"CORTEX_HOME": str(home / "state"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    if "--slots" in options:
        assert report["slots"] == int(options[options.index("--slots") + 1])
    assert report["spilled_bytes"] > 0
    assert report["shuffled_bytes"] > 0
    manifest = json.loads((out / "_manifest.json").read_text())
    parts = sorted(out.glob("part-*"))
    assert len(manifest["files"]) == len(parts)
    return [path.read_bytes() for path in parts]


def rows(parts: list[bytes]) -> list[list[str]]:
    found = []
    for part in parts:
        head, *body = csv.reader(io.StringIO(part.decode(), newline=""))
        assert head
        found += body
    return found


@pytest.mark.parametrize("target", ["declared.yaml", "notes.py:Notes", "totals.py:Totals"])
def test_resources_change_no_row_and_repeating_changes_no_byte(home: Path, target: str) -> None:
    first, again, *others = [run(home, target, *resources) for resources in RESOURCES]
    assert first == again
    assert len(rows(first)) > 10
    for resources, parts in zip(RESOURCES[2:], others, strict=True):
        assert len(parts) == int(resources[-1])
        assert rows(parts) == rows(first)


@pytest.mark.parametrize("format_", ["parquet", "arrow"])
def test_resources_change_no_byte_of_files_whose_values_fill_several_groups(home: Path, format_: str) -> None:
    first, *others = [
        run(home, "long.py:Long", "--output-format", format_, *resources[:6]) for resources in RESOURCES[1:]
    ]
    assert all(parts == first for parts in others)
    for part in map(pa.BufferReader, first):
        if format_ == "parquet":
            assert pq.read_metadata(part).num_row_groups > 1
        else:
            assert pa.ipc.open_file(part).num_record_batches > 1


def test_the_smallest_memory_that_a_refusal_names_is_enough(home: Path) -> None:
    with pytest.raises(MemoryTooSmall) as caught:
        plan_memory(1)
    smallest = caught.value.cure.rpartition(" ")[2]
    parts = run(home, "notes.py:Notes", "--memory", smallest, "--split-size", "100KB")
    assert rows(parts) == rows(run(home, "notes.py:Notes"))


def test_declared_answers_are_the_known_ones(home: Path) -> None:
    """Quoted newlines, quotes in unquoted fields, nulls, empty texts: each as often as it was written."""
    (home / "count.yaml").write_text(
        "name: count\ninput: {path: orders.csv}\n"
        "reduce: {group_by: [note], aggregate: {rows: count(), some: count(note)}}\n"
    )
    made = Orders(ROWS)
    list(made.blocks())
    wanted = {
        (n["note"] or "", n["count"], 0 if n["note"] is None else n["count"]) for n in made.answer()["notes"]
    }
    found = rows(run(home, "count.yaml", "--split-size", "5KB", "--reducers", "2"))
    assert {(note, int(count), int(some)) for note, count, some in found} == wanted
    assert len(found) == len(wanted)

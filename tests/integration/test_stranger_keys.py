"""Keys and values of every type, through every output format, as a script's user gets them back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SCRIPT = """
import datetime as dt
import json
from decimal import Decimal
from pathlib import Path

import cortex


class Keys(cortex.MapReduceJob):
    input_format = "text"

    def map(self, line):
        n = len(line)
        yield (line, (Decimal(n) / 4, n % 2 == 0), dt.date(2024, 1, n), None, 1.5), [n, {"a": "x"}]

    def reduce(self, key, values):
        yield key, next(values)


expected = [
    (("a", (Decimal("0.25"), False), dt.date(2024, 1, 1), None, 1.5), [1, {"a": "x"}]),
    (("bb", (Decimal("0.5"), True), dt.date(2024, 1, 2), None, 1.5), [2, {"a": "x"}]),
]
as_json = [["a", ["0.25", False], "2024-01-01", None, 1.5], ["bb", ["0.5", True], "2024-01-02", None, 1.5]]
with Keys("in.txt").run() as result:
    assert sorted(result) == expected, list(result)
    assert "0.25" in result._repr_html_()
for form in ("csv", "tsv", "jsonl", "text", "parquet", "arrow"):
    result = Keys("in.txt", form, output_format=form).run()
    rows = sorted(result)
    if form in ("parquet", "arrow"):
        assert [key for key, _ in rows] == [key for key, _ in expected], (form, rows)
    else:  # the text of a Decimal is what such a file has
        assert [key[0] for key, _ in rows] == ["a", "bb"]
        assert [key[1] for key, _ in rows] == [("0.25", False), ("0.5", True)]
        assert [key[2:] for key, _ in rows] == [key[2:] for key, _ in expected], (form, rows)
    assert [json.loads(value) for _, value in rows] == [value for _, value in expected], (form, rows)
written = [json.loads(line) for line in Path("jsonl/part-00000.jsonl").read_text().splitlines()]
assert sorted((row["key"], row["value"]) for row in written) == list(zip(as_json, [v for _, v in expected]))
written = [line.split("\\t") for line in Path("text/part-00000.txt").read_text().splitlines()]
assert sorted(json.loads(key) for key, _ in written) == as_json
"""


def test_tuples_dates_and_decimals(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\nbb\n")
    (tmp_path / "keys.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "keys.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr

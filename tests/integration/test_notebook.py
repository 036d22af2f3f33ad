"""A job class typed into a notebook: no file of its own, and an event loop that runs already."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = "the quick fox\nthe end\n" * 20
CELLS = """
import asyncio

cells = ['''
import cortex
import beside
least = 3
class WordCount(cortex.MapReduceJob):
    combine = sum
    def map(self, line):
        for word in line.split():
            if len(word) >= least:
                yield beside.upper(word), 1
''', '''
result = WordCount(input="in.txt", slots=1, split_size="50B").run()
html = result._repr_html_()
''']

async def kernel():
    for number, cell in enumerate(cells):
        exec(compile(cell, f"<ipython-input-{number}>", "exec"), globals())

asyncio.run(kernel())
import pyarrow as pa
assert "<table>" in html and "QUICK" in html
assert pa.table(result).num_rows == len(result) == result.to_arrow().num_rows == len(result.to_pandas())
assert result.report.rows_in == 40 and result.counters == {}
print(dict(sorted(result)))
"""


def test_cells_without_a_file_under_a_running_loop(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text(TEXT)
    (tmp_path / "beside.py").write_text("def upper(word):\n    return word.upper()\n")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    done = subprocess.run(
        [sys.executable, "-"],  # as in a kernel, __main__ has no file
        input=CELLS,
        cwd=tmp_path,
        env=kept | {"CORTEX_HOME": str(tmp_path / "state"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == repr(dict(sorted(Counter(TEXT.upper().split()).items())))
    assert done.stderr == ""

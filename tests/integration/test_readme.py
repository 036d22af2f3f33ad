"""The README's first command, word for word as a person pastes it, but for what sets up the environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


def test_the_first_command_counts_the_words_of_the_standard_library(tmp_path: Path) -> None:
    command, *_ = blocks()
    make, install, job = re.split(r" && ", command)
    assert make == "python3 -m venv .venv"
    assert install == ".venv/bin/pip install -q ."
    programs = tmp_path / ".venv" / "bin"  # as those two lines make it, of this interpreter
    programs.mkdir(parents=True)
    for name, starts in (("cortex", f"{sys.executable} -m cortex"), ("python3", sys.executable)):
        (programs / name).write_text(f'#!/bin/sh\nexec {starts} "$@"\n')
        (programs / name).chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    done = subprocess.run(
        ["bash", "-euc", job],
        cwd=tmp_path,
        env=kept
        | {
            "CORTEX_HOME": str(tmp_path / "state"),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head == "key,value"
    counts = {word: int(count) for word, count in (line.split(",") for line in lines)}
    words: Counter[str] = Counter()
    for path in {path.resolve() for path in Path(os.__file__).parent.glob("*.py")}:  # Debian links one
        words.update(re.findall(r"[^\W\d_]+", path.read_text(encoding="utf-8").lower()))
    assert counts == words
    assert len(counts) > 5_000
    assert "peak" in done.stderr


def test_the_second_command_runs_these_tests_and_ci_runs_it() -> None:
    _, command, *_ = blocks()
    assert command.strip().endswith("pytest")
    ci = (ROOT / ".ci" / "run").read_text()
    assert "block == 2" in ci
    assert "README.md" in ci
    assert re.search(r'^timeout --kill-after=\d+ 900 bash .* "\$commands"$', ci, re.M)  # a quarter of an hour
    assert os.access(ROOT / ".ci" / "run", os.X_OK)

"""Contenders over the same input, interleaved, each answer checked, medians and ratios."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Measured, run
from cortex.units import format_bytes

REPOSITORY = Path(__file__).resolve().parent.parent


def environment(slots: int = 2) -> dict[str, str]:
    """This checkout's cortex, and as many threads for everyone as cortex has slots."""
    path = os.pathsep.join(filter(None, [os.fspath(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    threads = str(slots)
    return {**os.environ, "PYTHONPATH": path, "POLARS_MAX_THREADS": threads, "OMP_NUM_THREADS": "1"}


def cortex(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cortex", *map(str, arguments)]


def peer(name: str, *arguments: object) -> list[str]:
    """A script of `benchmarks/peers`."""
    return [
        sys.executable,
        os.fspath(REPOSITORY / "benchmarks" / "peers" / f"{name}.py"),
        *map(str, arguments),
    ]


@dataclass(frozen=True)
class Contender:
    name: str
    command: Callable[[Path], list[str]]
    """Given where to write its result (a path that does not exist)."""
    check: Callable[[Path], str] = field(default=lambda path: "")
    """Says what is wrong with the result; "" if nothing."""
    ratio_max: float | None = None
    """A promise: cortex's median is at most so many times this one's."""
    seconds_max: float | None = None
    """A promise: this one's own median."""


@dataclass
class Row:
    """One contender's figures in one contest."""

    contest: str
    name: str
    runs: list[Measured]
    problem: str = ""
    """The first thing that went wrong: an exit code, an oom kill, a wrong answer."""
    ratio: float | None = None
    """cortex's median over this contender's: below one, cortex is faster."""
    missed: str = ""
    """The promise that these figures break."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What else was measured, in words of the case."""
    missing: str = ""
    """Why it was not run: what it needs is not here."""

    @property
    def median_s(self) -> float | None:
        return statistics.median(r.seconds for r in self.runs) if self.runs and not self.problem else None

    @property
    def peak_tree_bytes(self) -> int:
        return max((r.peak_tree_bytes for r in self.runs), default=0)

    @property
    def oom_kills(self) -> int:
        return sum(r.oom_kills for r in self.runs)

    def as_dict(self) -> dict[str, Any]:
        return {
            "contest": self.contest,
            "name": self.name,
            "median_s": self.median_s,
            "cortex_ratio": self.ratio,
            "problem": self.problem,
            "missed": self.missed,
            "missing": self.missing,
            "figures": self.figures,
            "runs": [r.as_dict() for r in self.runs],
        }

    def line(self) -> str:
        if self.missing:
            return f"  {self.name:<22} {self.missing}"
        if self.problem:
            first = self.problem.splitlines()[0] if self.problem else ""
            return f"  {self.name:<22} {first}"
        seconds = [r.seconds for r in self.runs]
        text = f"  {self.name:<22} {self.median_s:8.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})"
        text += f"  cpu {statistics.median(r.processor_s for r in self.runs):7.2f} s"
        if self.peak_tree_bytes:
            text += f"  peak {format_bytes(self.peak_tree_bytes)}"
        if any(r.group_peak_bytes for r in self.runs):
            text += f"  oom kills {self.oom_kills}"
        text += f"  cortex is x{self.ratio:.2f}" if self.ratio is not None else ""
        return text + (f"  MISSED: {self.missed}" if self.missed else "")


def hold(
    contest: str,
    contenders: Sequence[Contender],
    scratch: Path,
    *,
    rounds: int = 3,
    slots: int = 2,
    cap_bytes: int | None = None,
    watch_memory: bool = False,
    timeout_s: float = 3600.0,
    judge: bool = False,
    say: Callable[[str], None],
) -> list[Row]:
    """Run every contender `rounds` times, A B C C B A A B C ...; one that fails is not run again.

    `judge`: hold the figures to the contenders' promises.
    """
    rows = {c.name: Row(contest, c.name, []) for c in contenders}
    say(f"{contest}")
    for number in range(rounds):
        for contender in contenders if number % 2 == 0 else list(reversed(contenders)):
            row = rows[contender.name]
            if row.problem:
                continue
            out = scratch / f"{contest}-{contender.name}".replace(" ", "-").replace("/", "-")
            _remove(out)
            measured = run(
                contender.command(out),
                env=environment(slots),
                cap_bytes=cap_bytes,
                watch_memory=watch_memory,
                timeout_s=timeout_s,
            )
            row.runs.append(measured)
            row.problem = _problem(measured, contender, out)
            _remove(out)
    mine = rows["cortex"].median_s if "cortex" in rows else None
    for row in rows.values():
        if mine is not None and row.median_s is not None and row.name != "cortex":
            row.ratio = mine / row.median_s
    for contender in contenders:
        row = rows[contender.name]
        row.missed = _missed(contender, row) if judge else ""
        say(row.line())
    return list(rows.values())


def _missed(contender: Contender, row: Row) -> str:
    if contender.ratio_max is not None and row.ratio is not None and row.ratio > contender.ratio_max:
        return f"promised is x{contender.ratio_max:.2f} at most"
    if (
        contender.seconds_max is not None
        and row.median_s is not None
        and row.median_s > contender.seconds_max
    ):
        return f"promised are {contender.seconds_max:.2f} s at most"
    return ""


def _problem(measured: Measured, contender: Contender, out: Path) -> str:
    if measured.oom_kills:
        return f"killed at the memory cap ({measured.oom_kills} oom kills)\n{measured.error}"
    if measured.exit_code:
        lines = measured.error.splitlines()
        return f"failed ({measured.exit_code}): {lines[-1] if lines else ''}\n{measured.error}"
    wrong = contender.check(out)
    return f"WRONG ANSWER: {wrong}" if wrong else ""


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""Calls of functions: cortex and what a Python person has today, side by side in one run, two slots each.

`benchmarks/peers/calls.py` is one framework's part of a contest, in a process of its own; its start-up, and
the first calls, do not count. Frameworks get as many calls as they make in a few seconds: what is compared
are seconds of a million calls, or of one. Those that are not installed are said by name.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.contest import REPOSITORY, Row, environment
from benchmarks.measure import Measured, run

SLOWEST_S = 600.0
BUSY_MIN = 0.98
OTHERS_RATIO_MAX = 1.05
"""Of the time that the others would take were every slot busy: "a few percent"."""
PACKAGES = {"dask": "distributed", "ray": "ray", "joblib": "joblib"}
_PROGRAM = REPOSITORY / "benchmarks" / "peers" / "calls.py"

Figures = dict[str, Any]


@dataclass(frozen=True)
class Called(Measured):
    figures: Figures = field(default_factory=dict)
    """What the program has measured. `seconds` are what is compared, of those."""


@dataclass(frozen=True)
class Side:
    """One contender of a contest."""

    name: str
    framework: str
    arguments: Sequence[object]
    ratio_max: float | None = None
    """A promise: cortex takes at most so many times what this one takes."""
    judge: Callable[[Figures], str] = lambda figures: ""
    """Says which promise of its own this one breaks; "" if none."""


@dataclass(frozen=True)
class Contest:
    name: str
    measure: str
    seconds: Callable[[Figures], float]
    """What is compared."""
    right: Callable[[Figures, Side], bool]
    say: Callable[[Figures], str]
    sides: Sequence[Side]
    watch_memory: bool = False


@dataclass(frozen=True)
class Terms:
    """How contests are held. `python` has the peers that are an extra of their own."""

    slots: int
    rounds: int
    scratch: Path
    judge: bool
    say: Callable[[str], None]
    python: str = sys.executable

    def interpreter(self, side: Side) -> str:
        return self.python if side.framework in PACKAGES else sys.executable

    def missing(self, side: Side) -> str:
        package = PACKAGES.get(side.framework)
        if package is None:
            return ""
        look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
        found = subprocess.run([self.interpreter(side), "-c", look]).returncode == 0
        return "" if found else f"not installed: pip install {package}"


def hold(contest: Contest, terms: Terms) -> list[Row]:
    """All sides in turn, A B C C B A A B C ...; the first is cortex. One that fails is not run again."""
    terms.say(contest.name)
    rows = {side.name: Row(contest.name, side.name, []) for side in contest.sides}
    for side in contest.sides:
        rows[side.name].missing = terms.missing(side)
    for number in range(terms.rounds):
        for side in contest.sides if number % 2 == 0 else list(reversed(contest.sides)):
            row = rows[side.name]
            if not row.missing and not row.problem:
                found = _measure(contest, side, terms)
                row.runs.append(found)
                row.problem = f"failed ({found.exit_code}): {found.error}" if found.exit_code else ""
    first = rows[contest.sides[0].name]
    for side in contest.sides:
        row = rows[side.name]
        if row.median_s is not None:
            row.figures = _middle(row)
            if terms.judge:
                row.missed = side.judge(row.figures)
            if row is not first and first.median_s is not None:
                row.ratio = first.median_s / row.median_s
                if terms.judge and side.ratio_max is not None and row.ratio > side.ratio_max:
                    row.missed = f"promised is x{side.ratio_max:.2f} at most"
        terms.say(_line(contest, row))
    return list(rows.values())


def _measure(contest: Contest, side: Side, terms: Terms) -> Called:
    out = terms.scratch / "calls.json"
    out.unlink(missing_ok=True)
    command = [terms.interpreter(side), _PROGRAM, contest.measure, side.framework, terms.slots, out]
    taken = run(
        [str(word) for word in (*command, *side.arguments)],
        env=environment(terms.slots),
        watch_memory=contest.watch_memory,
        timeout_s=SLOWEST_S,
    )
    found = Called(**taken.as_dict())
    if found.exit_code:
        last = found.error.splitlines()
        return replace(found, error=last[-1] if last else "")
    figures = json.loads(out.read_text())
    if not contest.right(figures, side):
        return replace(found, exit_code=1, error=f"WRONG ANSWER: {figures}")
    return replace(found, seconds=contest.seconds(figures), figures=figures)


def _middle(row: Row) -> Figures:
    """Of the run in the middle."""
    runs = [each for each in row.runs if isinstance(each, Called)]
    middle = statistics.median_low(each.seconds for each in runs)
    return next(each.figures for each in runs if each.seconds == middle)


def _line(contest: Contest, row: Row) -> str:
    if row.missing or row.problem:
        return row.line()
    text = f"  {row.name:<22} {contest.say(row.figures)}"
    if row.peak_tree_bytes:
        text += f"  peak {row.peak_tree_bytes / 2**20:.0f} MB"
    text += f"  cortex is x{row.ratio:.3f}" if row.ratio is not None else ""
    return text + (f"  MISSED: {row.missed}" if row.missed else "")


# --- contests -------------------------------------------------------------------------------------


def _per_call(figures: Figures) -> float:
    return float(figures["seconds"]) / int(figures["calls"])


def _sums(figures: Figures, side: Side) -> bool:
    calls = int(str(side.arguments[0]))
    return bool(figures["calls"] == calls and figures["total"] == calls * (calls - 1) // 2)


def noop(calls: int, pool: int, others: int) -> Contest:
    """`calls` are cortex's and those of a pool with large chunks, `pool` those of one without, `others` of
    frameworks that take about a millisecond for one."""
    sides = [
        Side("cortex", "cortex", (calls, 1)),
        Side("pool, one by one", "pool", (pool, 1), ratio_max=1 / 10),
        *(
            Side(f"pool, chunks of {size}", "pool", (calls, size), ratio_max=2.0)
            for size in (100, 1000, 10_000)
        ),
        Side("ProcessPoolExecutor", "executor", (max(1, pool // 4), 1)),
        Side("cortex, cluster", "cluster", (calls, 1)),
        Side("Dask distributed", "dask", (others, max(1, others // 10)), ratio_max=1 / 50),
        Side("Ray", "ray", (others, 1), ratio_max=1 / 50),
    ]
    return Contest(
        "calls, no-op",
        "noop",
        lambda figures: 1e6 * _per_call(figures),
        _sums,
        lambda figures: f"{1 / _per_call(figures):12,.0f} calls/s",
        sides,
    )


def single(calls: int, others: int) -> Contest:
    def within(limit_s: float) -> Callable[[Figures], str]:
        def judge(figures: Figures) -> str:
            return (
                ""
                if figures["median_s"] < limit_s
                else f"promised is less than {1000 * limit_s:.0f} ms at the median"
            )

        return judge

    sides = [
        Side("cortex", "cortex", (calls,), judge=within(0.001)),
        Side("cortex, cluster", "cluster", (calls,), judge=within(0.002)),
        Side("pool", "pool", (calls,)),
        Side("ProcessPoolExecutor", "executor", (calls,)),
        Side("Dask distributed", "dask", (others,)),
        Side("Ray", "ray", (others,)),
    ]
    return Contest(
        "calls, one by one",
        "single",
        lambda figures: float(figures["median_s"]),
        _sums,
        lambda figures: f"{1e6 * figures['median_s']:8.0f} µs, p99 {1e6 * figures['p99_s']:8.0f}",
        sides,
    )


def busy(seconds: float, calls: int) -> Contest:
    def judge(figures: Figures) -> str:
        few = figures["busy"] < BUSY_MIN
        return f"promised are {100 * BUSY_MIN:.0f} % of the slots' time" if few else ""

    sides = [
        Side("cortex", "cortex", (calls, seconds), judge=judge),
        Side("cortex, cluster", "cluster", (calls, seconds), judge=judge),
        Side("pool, one by one", "pool", (calls, seconds)),
    ]
    return Contest(
        f"calls of {seconds:g} s",
        "busy",
        lambda figures: float(figures["seconds"]),
        lambda figures, side: figures["calls"] == calls and figures["least_s"] >= seconds,
        lambda figures: f"{figures['seconds']:8.2f} s, {100 * figures['busy']:.1f} % in the function",
        sides,
    )


def one_slow(calls: int, seconds: float) -> Contest:
    def judge(figures: Figures) -> str:
        late = figures["others_s"] > OTHERS_RATIO_MAX * figures["ideal_s"]
        return f"promised is x{OTHERS_RATIO_MAX:.2f} at most" if late else ""

    sides = [
        Side("cortex", "cortex", (calls, seconds), judge=judge),
        Side("cortex, cluster", "cluster", (calls, seconds), judge=judge),
        Side("pool, one by one", "pool", (calls, seconds)),
    ]
    return Contest(
        "calls, one is slow",
        "slow",
        lambda figures: float(figures["others_s"]),
        lambda figures, side: figures["calls"] == calls,
        lambda figures: (
            f"{figures['others_s']:8.2f} s for the others,"
            f" x{figures['others_s'] / figures['ideal_s']:.3f} of what it takes at least"
        ),
        sides,
    )


def arrays(count: int, size_bytes: int) -> Contest:
    sides = [
        Side("cortex", "cortex", (count, size_bytes)),
        Side("cortex, cluster", "cluster", (count, size_bytes)),
        Side("pool", "pool", (count, size_bytes)),
        Side("joblib, loky", "joblib", (count, size_bytes)),
    ]
    return Contest(
        f"calls, {size_bytes / 1e6:g} MB",
        "arrays",
        lambda figures: float(figures["seconds"]),
        lambda figures, side: figures["right"] == figures["calls"] == count,
        lambda figures: (
            f"{figures['seconds']:8.2f} s,"
            f" {figures['bytes'] / figures['seconds'] / 1e6:8.0f} MB/s there and back"
        ),
        sides,
        watch_memory=True,
    )


def keep_best_chunks(rows: Sequence[Row]) -> None:
    """cortex is held to the pool's best chunk size only."""
    chunked = [row for row in rows if row.name.startswith("pool, chunks") and row.median_s is not None]
    best = min(chunked, key=lambda row: row.median_s or 0.0, default=None)
    for row in chunked:
        if row is not best:
            row.missed = ""

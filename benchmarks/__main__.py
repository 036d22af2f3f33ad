"""``python -m benchmarks [name ...] [--scale tiny|small|full]``: run, print ratios, write JSON.

Exits with 1 when anything failed, answered wrongly, or broke a promise about speed (judged at full scale,
and at any scale for start-up) or memory.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Setting, scratch_name
from benchmarks.cgroup import unavailable
from benchmarks.contest import REPOSITORY, Row
from benchmarks.inputs import Inputs


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    versions = {}
    for name in ("pyarrow", "numpy", "polars", "duckdb", "twisted", "msgspec", "cloudpickle"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "memory_bytes": memory,
        "versions": versions,
    }


def table(rows: list[Row]) -> str:
    """Ratios of medians: cortex's time over the other's."""
    lines = [f"{'contest':<20} {'contender':<22} {'median s':>9} {'cortex is':>10} {'peak MB':>8} {'oom':>4}"]
    for row in rows:
        median = "-" if row.median_s is None else _short(row.median_s)
        ratio = "" if row.ratio is None else f"x{_short(row.ratio)}"
        peak = f"{row.peak_tree_bytes / 2**20:.0f}" if row.peak_tree_bytes else ""
        oom = str(row.oom_kills) if any(r.group_peak_bytes for r in row.runs) else ""
        lines.append(f"{row.contest:<20} {row.name:<22} {median:>9} {ratio:>10} {peak:>8} {oom:>4}")
        if row.missing:
            lines.append(f"    {row.missing}")
        if row.problem:
            lines.append(f"    {row.problem.splitlines()[0]}")
        if row.missed:
            lines.append(f"    MISSED: {row.missed}")
    return "\n".join(lines)


def _short(number: float) -> str:
    return f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"


def main(argv: list[str] | None = None) -> int:
    about = "\n".join(f"  {name:<14} {(case.__doc__ or '').splitlines()[0]}" for name, case in CASES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run cortex and its peers side by side: interleaved, answers checked, medians.",
        epilog=f"cases:\n{about}\n\nscales: tiny proves that it runs; small takes minutes and 5 GB of disk; "
        "full is what the figures are for and takes an hour for memory alone, and 75 GB of disk.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="case", help="which cases (default: all)")
    parser.add_argument("--scale", choices=["tiny", "small", "full"], default="small")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender (3)")
    parser.add_argument(
        "--slots", type=int, default=min(2, os.cpu_count() or 1), help="for cortex and peers (2)"
    )
    parser.add_argument(
        "--data", type=Path, default=REPOSITORY / "build" / "benchmarks", help="inputs are kept here"
    )
    parser.add_argument(
        "--peers-python",
        default=sys.executable,
        metavar="PYTHON",
        help="the interpreter that has Dask, Ray and joblib (this one)",
    )
    parser.add_argument("--json", type=Path, help="where to write the figures (default: beside the inputs)")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.names) - set(CASES))
    if unknown:
        parser.error(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    reason = unavailable()
    if reason:
        say(f"no hard memory cap here ({reason}): memory is only watched")
    inputs = Inputs(options.data, say)
    scratch = options.data / scratch_name()
    scratch.mkdir()
    setting = Setting(
        options.scale,
        inputs,
        scratch,
        options.rounds,
        options.slots,
        not reason,
        say,
        options.peers_python,
    )
    rows: list[Row] = []
    try:
        for name in options.names or CASES:
            rows += CASES[name](setting)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if rows:
            found = {
                "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "scale": options.scale,
                "slots": options.slots,
                "machine": machine(),
                "hard_cap": not reason,
                "rows": [row.as_dict() for row in rows],
            }
            path = options.json or options.data / "results.json"
            path.write_text(json.dumps(found, indent=1) + "\n")
            print(table(rows))
            say(f"figures in {path}")
    return 1 if any(row.problem or row.missed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

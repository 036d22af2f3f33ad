"""Maps where the bytes are, on a cluster of real processes whose nodes have data roots of their own.

Two jobs over the same rows. `spread`: each file lies on one node. `straggler`: each lies on two, and one node
is stopped nine tenths of the time. Both must give the known sums; the first must read nearly everything on
the node that runs the map, the second must not wait for the slow one. ``python -m benchmarks locality``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cortex

LOCAL_SHARE_MIN = 0.95
"""The promise about maps on a node that has their input."""
STRAGGLER_S_MAX = 15.0
"""The promise about a slow holder: what it costs more. It may have leased two maps, and runs a tenth as
fast."""
_KEYS = 7
_STOPPED_S, _RUNNING_S = 0.9, 0.1


class Sums(cortex.MapReduceJob):
    group_by = "key"
    aggregate = {"n": "count()", "total": "sum(value)"}  # noqa: RUF012


def write_file(path: Path, number: int, rows: int) -> None:
    lines = "".join(f"k{i % _KEYS},{number * rows + i}\n" for i in range(rows))
    path.write_text("key,value\n" + lines)


def expected(files: int, rows: int) -> dict[str, tuple[int, int]]:
    """key -> (rows, sum of values)."""
    found = {}
    for key in range(_KEYS):
        count = len(range(key, rows, _KEYS))
        first = sum(range(key, rows, _KEYS))
        found[f"k{key}"] = count * files, sum(first + count * number * rows for number in range(files))
    return found


@contextlib.contextmanager
def slowed(pid: int) -> Iterator[None]:
    """This process, and all of its group, is stopped most of the time."""
    ending = threading.Event()

    def slow() -> None:
        while not ending.is_set():
            os.killpg(pid, signal.SIGSTOP)
            ending.wait(_STOPPED_S)
            os.killpg(pid, signal.SIGCONT)
            ending.wait(_RUNNING_S)

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def measure(nodes: int, files_per_node: int, rows: int) -> dict[str, Any]:
    files = nodes * files_per_node
    with tempfile.TemporaryDirectory() as folder:
        roots = [Path(folder) / f"root{number}" for number in range(nodes)]
        for root in roots:
            (root / "spread").mkdir(parents=True)
            (root / "twice").mkdir()
        for number in range(files):
            path = roots[number % nodes] / "spread" / f"{number:04d}.csv"
            write_file(path, number, rows)
            for copy in (number, number + 1):
                os.link(path, roots[copy % nodes] / "twice" / path.name)
        wanted = expected(files, rows)
        with cortex.LocalCluster(nodes=nodes, data=roots, memory="400MB") as cluster:
            Sums(input="data:spread/0000.csv").run(cluster)  # executors are forked, pages are in the cache
            figures: dict[str, Any] = {"files": files, "bytes": sum(p.stat().st_size for p in _all(roots))}
            for name, pattern, slow in (
                ("spread", "spread", ""),
                ("twice", "twice", ""),
                ("straggler", "twice", "node1"),
            ):
                with slowed(cluster.nodes[slow].pid) if slow else contextlib.nullcontext():
                    began = time.monotonic()
                    result = Sums(input=f"data:{pattern}/*.csv").run(cluster)
                    seconds = time.monotonic() - began
                rows_found = {key: (n, total) for key, n, total in result}
                assert rows_found == wanted, f"{name}: wrong sums"
                found = result.report.locality
                maps = found.local_maps + found.streamed_maps + found.client_maps
                figures[name] = {
                    "seconds": round(seconds, 2),
                    "maps": maps,
                    "local": round(found.local_maps / maps, 4),
                    "streamed_bytes": found.streamed_bytes,
                    "client_bytes": found.client_bytes,
                }
    return figures


def _all(roots: list[Path]) -> Iterator[Path]:
    for root in roots:
        yield from (root / "spread").iterdir()


def missed(figures: dict[str, Any]) -> str:
    """The promise that the figures break; "" if none."""
    if figures["spread"]["local"] < LOCAL_SHARE_MIN:
        return f"promised are {LOCAL_SHARE_MIN:.0%} of the maps on nodes with their input"
    if figures["straggler"]["seconds"] > figures["twice"]["seconds"] + STRAGGLER_S_MAX:
        return f"promised is that a slow holder costs {STRAGGLER_S_MAX:.0f} s at most"
    return ""


def in_short(figures: dict[str, Any]) -> str:
    lines = [
        f"{name}: {each['maps']} maps in {each['seconds']} s, {each['local']:.1%} of them node-local"
        for name, each in figures.items()
        if isinstance(each, dict)
    ]
    return "\n".join(f"    {line}" for line in lines)


def main(argv: list[str] | None = None) -> int:
    """Run the jobs and write the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.locality", description=__doc__)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--files-per-node", type=int, default=10)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each file")
    parser.add_argument("--json", type=Path, help="where to write the figures (default: standard output)")
    options = parser.parse_args(argv)
    text = json.dumps(measure(options.nodes, options.files_per_node, options.rows), indent=1)
    if options.json is None:
        print(text)
    else:
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

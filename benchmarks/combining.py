"""Map outputs combined at their nodes, and not: bytes between three nodes for a word count, and its seconds.

The nodes are processes of one machine, so a byte between them costs a memory copy: what combining saves of a
real network does not show in the seconds, only what it costs. ``python -m benchmarks.combining``.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import cortex

_NODES = 3


class Words(cortex.MapReduceJob):
    combine = sum
    reducers = 6

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        for word in line.split():
            yield word, 1


class Combined(cortex.LocalCluster):
    settings: ClassVar[dict[str, str]] = {}

    def _start(self, name: str, *arguments: str, **environment: str) -> Any:
        metrics = ("--metrics", "127.0.0.1:0")
        return super()._start(name, *arguments, *metrics, **environment, **self.settings)

    def fetched_bytes(self) -> int:
        """By all nodes, from each other, since they began."""
        return sum(self._metric(name, "cortex_node_fetched_bytes_total") for name in self.nodes)

    def _metric(self, name: str, metric: str) -> int:
        port = re.search(r"metrics for clients of the cluster: https://[^:]*:(\d+)/", self._output(name))
        assert port is not None
        identity = next((self.folder / "server").glob("admin/identity.pem"))
        context = ssl.create_default_context(cafile=str(identity))
        context.load_cert_chain(identity)
        context.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", int(port[1]), context=context)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return int(float(re.search(rf"^{metric} (.*)$", text, re.M)[1]))  # type: ignore[index]


class Plain(Combined):
    settings: ClassVar[dict[str, str]] = {"CORTEX_COMBINE": "off"}


def write_text(path: Path, lines: int, words: int) -> None:
    """Words as common as their place in a list allows, as in a language."""
    rng = random.Random(1)
    vocabulary = [f"word{i:06}" for i in range(words)]
    weights = [1 / (i + 10) for i in range(words)]
    with path.open("w") as file:
        for _ in range(lines // 1000):
            chosen = rng.choices(vocabulary, weights, k=10_000)
            file.writelines(" ".join(chosen[i : i + 10]) + "\n" for i in range(0, 10_000, 10))


def measure(lines: int, words: int, rounds: int, split_bytes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "in.txt"
        write_text(data, lines, words)
        figures: dict[str, Any] = {"bytes": data.stat().st_size, "maps": data.stat().st_size // split_bytes}
        outputs = set()
        with Combined(nodes=_NODES, memory="400MB") as combined, Plain(nodes=_NODES, memory="400MB") as plain:
            taken: dict[str, list[tuple[float, int]]] = {"combined": [], "plain": []}
            for number in range(rounds + 1):
                for name, cluster in (("combined", combined), ("plain", plain)):
                    out = Path(folder) / f"{name}{number}"
                    before = cluster.fetched_bytes()
                    began = time.monotonic()
                    Words(input=str(data), output=str(out), split_size=split_bytes).run(cluster)
                    seconds = time.monotonic() - began
                    if number:  # the first forks executors
                        taken[name].append((seconds, cluster.fetched_bytes() - before))
                    outputs.add(b"".join(path.read_bytes() for path in sorted(out.glob("part-*"))))
        assert len(outputs) == 1, "combining changed the output"
        for name, found in taken.items():
            figures[name] = {
                "seconds": round(statistics.median(seconds for seconds, _ in found), 2),
                "fetched_bytes": round(statistics.median(size for _, size in found)),
            }
        return figures


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.combining", description=__doc__)
    parser.add_argument("--lines", type=int, default=600_000)
    parser.add_argument("--words", type=int, default=50_000, help="that there are")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--split-bytes", type=int, default=500_000)
    options = parser.parse_args(argv)
    print(json.dumps(measure(options.lines, options.words, options.rounds, options.split_bytes), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m datasets stations --rows 1_000_000 -o stations.csv``: the rows, and the answer beside them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from cortex.errors import CortexError
from cortex.units import format_bytes, parse_bytes
from datasets import DATASETS


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m datasets", description="Write test data with a known answer."
    )
    parser.add_argument("name", choices=sorted(DATASETS))
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--rows", type=lambda text: int(text.replace(",", "")), help="such as 1_000_000")
    size.add_argument("--size", help="about this many bytes, such as 2GB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", required=True, help="the file to write; - is standard output")
    parser.add_argument("--answer", help="also write the answer here, as JSON")
    parser.add_argument("--octaves", type=int, help="text: 2**N - 1 different words (20)")
    parser.add_argument("--keys", type=int, help="distinct: how many keys (as many as rows)")
    parser.add_argument("--kind", choices=["int", "string"], help="distinct: type of the keys (int)")
    parser.add_argument(
        "--clustered", action="store_true", default=None, help="distinct: equal keys side by side"
    )
    parser.add_argument("--shuffled", action="store_true", default=None, help="lineitem: orders in no order")
    parser.add_argument("--hot-percent", type=int, help="hotkey: rows of the hot key (90)")
    options = vars(parser.parse_args(argv))
    cls = DATASETS[options["name"]]
    named = ("octaves", "keys", "kind", "clustered", "shuffled", "hot_percent")
    extra: dict[str, Any] = {key: options[key] for key in named if options[key] is not None}
    try:
        rows = options["rows"]
        if rows is None:
            rows = max(1, round(parse_bytes(options["size"], "--size") / cls.row_bytes))
        dataset = cls(rows, options["seed"], **extra)
    except (TypeError, ValueError, CortexError) as error:
        parser.error(f"{options['name']}: {error}")
    started, written = time.monotonic(), 0
    out = sys.stdout.buffer if options["output"] == "-" else open(options["output"], "wb")  # noqa: SIM115
    with out:
        for block in dataset.blocks():
            written += out.write(block)
    seconds = time.monotonic() - started
    print(
        f"{rows:,} rows, {format_bytes(written)} in {seconds:.1f} s ({format_bytes(written / seconds)}/s)",
        file=sys.stderr,
    )
    if options["answer"]:
        with open(options["answer"], "w", encoding="utf-8") as file:
            json.dump(dataset.answer(), file, ensure_ascii=False, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

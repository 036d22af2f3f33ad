"""Every file in examples/compute, as it says to run it, against plain Python."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.integration.test_cli_examples import EXAMPLES, run

FOLDER = EXAMPLES / "compute"


def test_primes(tmp_path: Path) -> None:
    config = str(FOLDER / "cortex_config.yaml")
    out = run(tmp_path, "-m", "cortex", "compute", config, "--quiet")
    run(tmp_path, "-m", "cortex", "compute", config, "--output", "primes.jsonl", "--yes")
    assert (tmp_path / "primes.jsonl").read_text() == out
    answers = [json.loads(line) for line in out.splitlines()]
    assert [each["call"] for each in answers] == list(range(20))
    sieve = bytearray([0, 0] + [1] * 199_998)
    for number in range(2, 448):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, 200_000, number)))
    assert [each["result"] for each in answers] == [
        sum(sieve[start : start + 10_000]) for start in range(0, 200_000, 10_000)
    ]


def test_sweep(tmp_path: Path) -> None:
    lines = run(tmp_path, str(FOLDER / "sweep.py")).splitlines()
    sys.path.insert(0, str(FOLDER))
    try:
        import sweep  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(FOLDER))
    expected = [
        f"{coins:3} coins, {chance:.0%}: {sweep.rounds_until_ruin(coins, chance):.1f} rounds"
        for coins in (5, 10, 20)
        for chance in (0.3, 0.4, 0.45)
    ]
    assert lines == [*expected, f"and 40 coins, 48%: {sweep.rounds_until_ruin(40, 0.48):.1f} rounds"]

"""``key,value`` with `rows` rows over exactly `keys` distinct keys, each as often as the others.

Integer keys or strings; shuffled (equal keys far apart) or clustered (side by side).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from datasets.dataset import Dataset, digits, join_columns
from datasets.randomness import below, mix, random_bits


class Distinct(Dataset):
    header = b"key,value\n"
    row_bytes = 13.0

    def __init__(
        self,
        rows: int,
        seed: int = 0,
        keys: int = 0,
        kind: Literal["int", "string"] = "int",
        clustered: bool = False,
    ) -> None:
        """`keys` 0: as many as rows."""
        super().__init__(rows, seed)
        self.keys = min(keys or rows, rows)
        if self.keys >= 2**31:
            raise ValueError(f"{self.keys} keys: at most {2**31 - 1}")
        self.kind, self.clustered = kind, clustered
        step = int(self.keys * 0.6180339887) | 1
        while math.gcd(step, self.keys) != 1:
            step += 2
        self._step = step
        self._rows = self._sum = self._weighted = 0

    def key_numbers(self, first: int, count: int) -> Any:
        row = np.arange(first, first + count, dtype=np.int64)
        if self.clustered:
            return row * self.keys // self.rows  # rows and keys are below 2**31: no overflow
        # Multiplication by a number prime to `keys` visits every key once a round.
        return row % self.keys * self._step % self.keys

    def block(self, first: int, count: int) -> memoryview:
        key = self.key_numbers(first, count)
        value = below(random_bits(self.seed, 30, first, count), 1000)
        self._rows += count
        self._sum += int(value.sum())
        weights = mix(key.astype(np.uint64)) * value.astype(np.uint64)
        self._weighted = (self._weighted + int(weights.sum(dtype=np.uint64))) % 2**64
        prefix = ["key-"] if self.kind == "string" else []
        return join_columns([*prefix, digits(key), ",", digits(value), "\n"])

    def answer(self) -> dict[str, Any]:
        """`weighted`: `weighted_sum` of the right output, so that every group's sum is checked."""
        return {"rows": self._rows, "groups": self.keys, "sum": self._sum, "weighted": self._weighted}


def weighted_sum(keys: Any, sums: Any) -> int:
    """Of an output's key numbers and sums: the sum of mix(key) * sum, modulo 2**64."""
    product = mix(np.asarray(keys).astype(np.uint64)) * np.asarray(sums).astype(np.uint64)
    return int(product.sum(dtype=np.uint64))

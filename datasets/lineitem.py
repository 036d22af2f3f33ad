"""Rows shaped like TPC-H's lineitem (16 columns, about 120 bytes): one to seven lines an order.

Clustered by order as TPC-H's own file is, or shuffled: a group-by of the first kind is easy on caches
and on engines that combine early, and proves little alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from datasets.dataset import Dataset, choose, digits, join_columns, two_decimals
from datasets.randomness import below, mix, random_bits

LINES = 4
"""Lines an order: each has the four numbered 1 to 4, so that orders = rows / 4."""

_COLUMNS = (
    "l_orderkey,l_partkey,l_suppkey,l_linenumber,l_quantity,l_extendedprice,l_discount,l_tax,l_returnflag,"
    "l_linestatus,l_shipdate,l_commitdate,l_receiptdate,l_shipinstruct,l_shipmode,l_comment"
)
_DATES = [str(d) for d in np.arange(np.datetime64("1992-01-01"), np.datetime64("1998-12-31"))]
_INSTRUCT = [",COLLECT COD", ",DELIVER IN PERSON", ",NONE", ",TAKE BACK RETURN"]
_MODES = [",AIR", ",FOB", ",MAIL", ",RAIL", ",REG AIR", ",SHIP", ",TRUCK"]
_WORDS = [
    *("carefully", "final", "deposits", "sleep", "quickly", "above", "the"),
    *("furious", "ironic", "accounts", "haggle", "blithely", "even"),
]


class LineItem(Dataset):
    header = _COLUMNS.encode() + b"\n"
    row_bytes = 124.0

    def __init__(self, rows: int, seed: int = 0, shuffled: bool = False) -> None:
        super().__init__(rows, seed)
        self.shuffled = shuffled
        step = int(rows * 0.6180339887) | 1
        while math.gcd(step, rows) != 1:
            step += 2
        self._step = step
        self._hundredths = two_decimals(10_000)
        size = len(_WORDS)
        self._comments = [
            "," + " ".join(_WORDS[(i * 7 + j * (1 + i % 5)) % size] for j in range(2 + i % 5)) + "\n"
            for i in range(4096)
        ]
        self._flags = [f",{a},{b}," for a in "ANR" for b in "FO"]
        self._rates = [f",0.{d:02d},0.{t:02d}" for d in range(11) for t in range(9)]
        self._rows = self._quantity = self._weighted = 0

    def block(self, first: int, count: int) -> memoryview:
        row = np.arange(first, first + count, dtype=np.int64)
        if self.shuffled:
            row = row * self._step % self.rows
        order = row // LINES
        bits = random_bits(self.seed, 40, first, count)
        more = random_bits(self.seed, 41, first, count)
        quantity = 1 + below(bits, 50)
        self._rows += count
        self._quantity += int(quantity.sum())
        weights = mix(order.astype(np.uint64)) * quantity.astype(np.uint64)
        self._weighted = (self._weighted + int(weights.sum(dtype=np.uint64))) % 2**64
        part = 1 + below(more, 200_000)
        low = (bits & np.uint64(0xFFFFFFFF)).astype(np.int64)
        low2 = (more & np.uint64(0xFFFFFFFF)).astype(np.int64)
        shipped = low2 % (len(_DATES) - 90)
        columns = [digits(order), ",", digits(part), ",", digits(1 + part % 10_000), ","]
        columns += [choose([f"{i + 1}," for i in range(LINES)], row % LINES), digits(quantity), ","]
        columns += [
            digits(9 + part % 900 * quantity),
            choose([d[1:] for d in self._hundredths[:100]], part % 100),
        ]
        columns += [choose(self._rates, low % len(self._rates)), choose(self._flags, low // 128 % 6)]
        columns += [choose(_DATES, shipped), ",", choose(_DATES, shipped + low // 1024 % 60), ","]
        columns += [choose(_DATES, shipped + 1 + low // 65536 % 30), choose(_INSTRUCT, low // 8 % 4)]
        columns += [choose(_MODES, low // 32 % 7), choose(self._comments, low2 // 4096 % 4096)]
        return join_columns(columns)

    def answer(self) -> dict[str, Any]:
        """`weighted`: `datasets.distinct.weighted_sum` of orderkey and sum of quantity."""
        orders = (self.rows + LINES - 1) // LINES
        return {"rows": self._rows, "groups": orders, "quantity": self._quantity, "weighted": self._weighted}

"""``key,value,text`` where one key has most of the bytes: a group larger than memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from datasets.dataset import Dataset, choose, digits, join_columns
from datasets.randomness import below, random_bits

HOT = "hot"
COLD_KEYS = 1000
_TEXTS = 256


class HotKey(Dataset):
    """`hot_percent` of the rows have the key ``hot``, the others one of 1,000."""

    header = b"key,value,text\n"
    row_bytes = 98.0

    def __init__(self, rows: int, seed: int = 0, hot_percent: int = 90, text_chars: int = 88) -> None:
        super().__init__(rows, seed)
        self.row_bytes = 10.0 + text_chars
        self.hot_percent = hot_percent
        self._keys = [HOT, *(f"k{i}" for i in range(COLD_KEYS))]
        self._counts = np.zeros(len(self._keys), np.int64)
        self._sums = np.zeros(len(self._keys), np.int64)
        alphabet = "abcdefghijklmnopqrstuvwxyz "
        letters = below(random_bits(seed, 20, 0, _TEXTS * text_chars), len(alphabet))
        letters = letters.reshape(_TEXTS, text_chars)
        self._texts = ["," + "".join(alphabet[i] for i in row) + "\n" for row in letters]

    def block(self, first: int, count: int) -> memoryview:
        bits = random_bits(self.seed, 21, first, count)
        cold = 1 + below(random_bits(self.seed, 22, first, count), COLD_KEYS)
        key = np.where(below(bits, 100) < self.hot_percent, 0, cold)
        value = below(random_bits(self.seed, 23, first, count), 10_000)
        self._counts += np.bincount(key, minlength=len(self._keys))
        # Exact: a block's sum of a key is far below 2**53.
        self._sums += np.bincount(key, weights=value, minlength=len(self._keys)).astype(np.int64)
        text = choose(self._texts, (bits & np.uint64(_TEXTS - 1)).astype(np.int64))
        return join_columns([choose(self._keys, key), ",", digits(value), text])

    def answer(self) -> dict[str, Any]:
        keys = {
            k: {"count": int(n), "sum": int(s)}
            for k, n, s in zip(self._keys, self._counts, self._sums, strict=True)
            if n
        }
        return {"rows": int(self._counts.sum()), "keys": keys}

"""Lines of words whose frequencies follow Zipf's law. Words are pronounceable, the commonest the shortest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.dataset import Dataset
from datasets.randomness import below, random_bits, random_bits_at, zipf_ranks

_SYLLABLES = np.frombuffer(
    b"".join(bytes([c, v]) for c in b"tnshrdlmcfgpwbkvjzqxy" for v in b"eaoiu"), np.uint8
).reshape(-1, 2)
_BASE = len(_SYLLABLES)
_DIGITS = 4
OCTAVES_MAX = 24  # 16 M words: their letters take 200 MB
_LINES_AT_ONCE = 1 << 13


def spell(ranks: NDArray[np.int64]) -> pa.StringArray:
    """The words of these ranks, each with a space behind it; distinct for distinct ranks.

    A rank is spelled in syllables as digits of base 105, least first: one for the 105 commonest, at
    most four. Numbers of n digits begin where those of n - 1 end, so that no two are spelled alike.
    """
    letters = np.full((len(ranks), 2 * _DIGITS + 1), ord(" "), np.uint8)
    shown = np.ones(letters.shape, np.bool_)
    rest = ranks.astype(np.int32)
    for digit in range(_DIGITS):
        here = slice(2 * digit, 2 * digit + 2)
        letters[:, here] = _SYLLABLES[rest % _BASE]
        shown[:, here] = (rest >= 0)[:, None]
        rest = np.where(rest < _BASE, -1, rest // _BASE - 1)
    offsets = np.zeros(len(ranks) + 1, np.int32)
    np.cumsum(np.count_nonzero(shown, axis=1), out=offsets[1:])
    return pa.StringArray.from_buffers(len(ranks), pa.py_buffer(offsets), pa.py_buffer(letters[shown]))


def word(rank: int) -> str:
    return str(spell(np.array([rank]))[0].as_py()).strip()


class Text(Dataset):
    """`rows` lines of 1 to 19 words out of ``2**octaves - 1``."""

    row_bytes = 50.0
    suffix = ".txt"

    def __init__(self, rows: int, seed: int = 0, octaves: int = 20) -> None:
        super().__init__(rows, seed)
        if not 1 <= octaves <= OCTAVES_MAX:
            raise ValueError(f"octaves: {octaves} is not in 1 to {OCTAVES_MAX}")
        self.octaves = octaves
        words = 2**octaves - 1
        self.counts = np.zeros(words, np.int64)
        """By rank; `word(rank)` spells it."""
        blocks = [spell(np.arange(at, min(at + 65_536, words))) for at in range(0, words, 65_536)]
        self._vocabulary = pa.concat_arrays(blocks)
        self._lines = 0

    def block(self, first: int, count: int) -> memoryview:
        end = first + count
        parts = [
            self._lines_from(at, min(_LINES_AT_ONCE, end - at)) for at in range(first, end, _LINES_AT_ONCE)
        ]
        return memoryview(b"".join(parts))

    def _lines_from(self, first: int, count: int) -> memoryview:
        lengths = 1 + below(random_bits(self.seed, 0, first, count), 19)
        ends_at = np.cumsum(lengths)
        total = int(ends_at[-1])
        # A word's number is line * 32 + place, so that a line does not depend on those before it.
        lines = np.repeat(np.arange(first, first + count, dtype=np.int64), lengths)
        places = np.arange(total) - np.repeat(ends_at - lengths, lengths)
        at = (lines * 32 + places).astype(np.uint64)
        ranks = zipf_ranks(random_bits_at(self.seed, 1, at), random_bits_at(self.seed, 2, at), self.octaves)
        np.add.at(self.counts, ranks, 1)
        self._lines += count
        words = self._vocabulary.take(pa.array(ranks))
        offsets = np.frombuffer(words.buffers()[1], np.int32)[: total + 1]
        text = np.array(np.frombuffer(words.buffers()[2], np.uint8)[: offsets[-1]])
        text[offsets[ends_at] - 1] = ord("\n")  # in place of the space behind the line's last word
        return text.data

    def answer(self) -> dict[str, Any]:
        """Lines, words, distinct words, and the counts of the 100 commonest ranks."""
        return {
            "rows": self._lines,
            "words": int(self.counts.sum()),
            "distinct": int(np.count_nonzero(self.counts)),
            "counts": {word(r): int(self.counts[r]) for r in range(min(100, len(self.counts)))},
        }

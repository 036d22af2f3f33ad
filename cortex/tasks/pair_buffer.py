"""Pairs held as Python objects until there are enough of them to become columns.

How many are held is decided by what they weigh, looked at while they come: there may be one of 30 MB or
65,536 small ones, and one record may give millions.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

PAIRS_AT_ONCE: Final = 65_536
_PAIR_BYTES: Final = 180  # of a tuple and two small objects
LOOK_PAIRS: Final = 256  # pairs between two looks: 5 us each, or 20 ns a pair
_FIRST_LOOKS: Final = (1, 16)  # a first pair of 30 MB is not followed by 255 others
_SAMPLE: Final = 8
_SMALL: Final = frozenset((bool, int, float, type(None)))


def bytes_of(part: Any) -> int:
    """About what a key or a value takes: as an object, and once more as what is sent."""
    kind = type(part)
    if kind is str or kind is bytes:
        return 2 * len(part)
    if kind in _SMALL:
        return 16
    try:
        return 4 * len(pickle.dumps(part, protocol=5))
    except Exception:  # encode_values says what cannot be sent, and why
        return 1024


class PairBuffer:
    """`bytes_max` bounds about what the pairs weigh; `send(pairs)` is given them when they are enough.

    `look_pairs` pairs, which may all be large after small ones, come between two looks.
    """

    def __init__(
        self, bytes_max: int, send: Callable[[list[Any]], None], *, look_pairs: int = LOOK_PAIRS
    ) -> None:
        self.pairs: list[Any] = []
        self._bytes_max = bytes_max
        self._send = send
        self._look_pairs = look_pairs
        self._weighed = 0
        """How many of `pairs` `_bytes` counts."""
        self._bytes = 0

    def take(self, source: Iterator[Any]) -> None:
        """Take every pair of `source`; at the end some are held."""
        while True:
            wanted = max(0, self._look_at() - len(self.pairs))
            before = len(self.pairs)
            self.pairs.extend(islice(source, wanted))
            if len(self.pairs) - before < wanted:
                return
            if self._enough():
                self.send()

    def _look_at(self) -> int:
        """The number of pairs at which the next look is due."""
        for first in _FIRST_LOOKS:
            if self._weighed < first:
                return first
        return min(self._weighed + self._look_pairs, PAIRS_AT_ONCE)

    def _enough(self) -> bool:
        """Weigh what has come since the last look."""
        # One less than an even step: every second pair, or every third, may be a large one.
        step = max(1, (len(self.pairs) - self._weighed) // _SAMPLE - 1)
        fresh = self.pairs[self._weighed :: step]
        total = sum(_PAIR_BYTES + sum(map(bytes_of, pair)) for pair in fresh if type(pair) in (tuple, list))
        if fresh:
            self._bytes += total * (len(self.pairs) - self._weighed) // len(fresh)
        self._weighed = len(self.pairs)
        return self._bytes >= self._bytes_max or len(self.pairs) >= PAIRS_AT_ONCE

    def send(self) -> None:
        """Hand on what is held, whether it is enough or not."""
        pairs, self.pairs = self.pairs, []
        self._weighed = self._bytes = 0
        if pairs:
            self._send(pairs)

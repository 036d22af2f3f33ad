"""Pairs held as Python objects until there are enough of them to become columns.

How many are held is decided by what they weigh: there may be one of 30 MB or 65,536 small ones, one in a
thousand may be large, and one record may give millions. Each is weighed, a few at once, while they come.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final

PAIRS_AT_ONCE: Final = 65_536
_PAIR_BYTES: Final = 180  # of a tuple and two small objects
LOOK_PAIRS: Final = 32  # pairs between two looks: 32 of 1 MB may follow small ones
_OVERSHOT: Final = 2  # pairs that turned out to weigh so many times what they may are sent in parts
_SMALL: Final = frozenset((bool, int, float, type(None)))
_SHORT_CHARS: Final = 64  # on average: how wide characters are is not looked at in texts this short
_ITEMS: Final = 1024  # of containers, looked at; of more, a part
_NESTED: Final = 3  # containers in containers are looked into so deep
_SAMPLE: Final = 8  # of other objects


def bytes_of(part: Any) -> int:
    """About what a key or a value takes: as an object, and once more as what is sent."""
    return weight_of((part,))


def weight_of(parts: Sequence[Any], depth: int = _NESTED) -> int:
    """The same of many, together."""
    kinds = set(map(type, parts))
    if len(kinds) == 1:
        return _weight(kinds.pop(), parts, depth)
    return sum(_weight(kind, [part for part in parts if type(part) is kind], depth) for kind in kinds)


def _weight(kind: type, parts: Sequence[Any], depth: int) -> int:
    """Of parts of one type."""
    count = len(parts)
    if kind in _SMALL:
        return 16 * count
    if kind is bytes:
        return 2 * sum(map(len, parts))
    if kind is str:
        chars = sum(map(len, parts))
        if chars <= _SHORT_CHARS * count:
            return 2 * chars
        held = sum(map(sys.getsizeof, parts))
        # Other than ASCII: up to four bytes a character, and the UTF-8 form stays with the object, too.
        return (2 if held < chars + 64 * count else 3) * held
    if depth and kind in (tuple, list, set, frozenset, dict):
        return 64 * count + 2 * _weight_of_items(kind, parts, depth - 1)  # as objects, and pickled
    some = parts[:: max(1, count // _SAMPLE)]
    return sum(map(_pickled_bytes, some)) * count // len(some)


def _weight_of_items(kind: type, parts: Sequence[Any], depth: int) -> int:
    count = sum(map(len, parts))
    if not count:
        return 0
    items: Iterable[Any] = chain.from_iterable(parts)
    if kind is dict:
        items, count = chain(items, chain.from_iterable(map(dict.values, parts))), 2 * count
    some = list(islice(items, 0, None, max(1, count // _ITEMS)))
    return (16 * len(some) + weight_of(some, depth)) * count // len(some)


def _pickled_bytes(part: Any) -> int:
    try:
        return 4 * len(pickle.dumps(part, protocol=5))
    except Exception:  # encode_values says what cannot be sent, and why
        return 1024


def _weight_of_pairs(pairs: Sequence[Any]) -> int:
    try:
        return _PAIR_BYTES * len(pairs) + sum(map(weight_of, zip(*pairs)))
    except TypeError:  # no pairs, which is said where they are sent
        return _PAIR_BYTES * len(pairs)


class PairBuffer:
    """`bytes_max` bounds about what the pairs weigh; `send(pairs)` is given them when they are enough.

    Up to `LOOK_PAIRS` pairs, which may all be large after small ones, come between two looks.
    """

    def __init__(self, bytes_max: int, send: Callable[[list[Any]], None]) -> None:
        self.pairs: list[Any] = []
        self._bytes_max = bytes_max
        self._send = send
        self._bytes = 0
        self._each_bytes = max(1, bytes_max)
        """Of a pair, as those were that came last."""

    def take(self, source: Iterator[Any]) -> None:
        """Take every pair of `source`; at the end some are held."""
        while True:
            fit = (self._bytes_max - self._bytes) // self._each_bytes + 1
            wanted = max(1, min(fit, LOOK_PAIRS, PAIRS_AT_ONCE - len(self.pairs)))
            fresh = list(islice(source, wanted))
            ended = len(fresh) < wanted
            self.hold(fresh)
            del fresh
            if self._bytes >= self._bytes_max or len(self.pairs) >= PAIRS_AT_ONCE:
                self.send()
            if ended:
                return

    def hold(self, fresh: Sequence[Any]) -> None:
        """Keep these and weigh them, whether they are enough or not."""
        if fresh:
            weight = _weight_of_pairs(fresh)
            self._bytes += weight
            self._each_bytes = weight // len(fresh)
            self.pairs += fresh

    def send(self) -> None:
        """Hand on what is held, whether it is enough or not."""
        pairs, overshot = self.pairs, self._bytes > _OVERSHOT * self._bytes_max
        self.clear()
        while overshot and pairs:
            some = pairs[: self._fitting(pairs)]
            del pairs[: len(some)]
            self._send(some)
        if pairs:
            self._send(pairs)

    def clear(self) -> None:
        """Forget what is held."""
        self.pairs, self._bytes = [], 0

    def _fitting(self, pairs: Sequence[Any]) -> int:
        """How many of the first pairs fit: one at least."""
        weight = 0
        for count, pair in enumerate(pairs):
            weight += _weight_of_pairs((pair,))
            if count and weight > self._bytes_max:
                return count
        return len(pairs)

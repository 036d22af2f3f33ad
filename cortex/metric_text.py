"""Figures of a process as Prometheus reads them: families of samples, histograms, and their text. Pure.

The text is the exposition format 0.0.4, which every scraper takes: of each family a HELP and a TYPE line,
then its samples. Names end in their unit; those of counters in `_total`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
Kind = Literal["counter", "gauge", "histogram"]
Labels = Mapping[str, str]
_NONE: Final[Labels] = {}


@dataclass(frozen=True, slots=True)
class Family:
    """Samples of one name: (suffix, labels, value); the suffix is a histogram's."""

    name: str
    kind: Kind
    about: str
    samples: Sequence[tuple[str, Labels, float]]


def gauge(name: str, about: str, value: float) -> Family:
    return Family(name, "gauge", about, (("", _NONE, value),))


def counter(name: str, about: str, value: float) -> Family:
    return Family(name, "counter", about, (("", _NONE, value),))


def by_label(
    name: str, kind: Kind, about: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]
) -> Family:
    """One sample for each combination of labels' values."""
    return Family(name, kind, about, [("", dict(zip(labels, key)), value) for key, value in values])


class Histogram:
    """How often a figure was at most each of `bounds`, which ascend; and its sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, about: str) -> Family:
        samples: list[tuple[str, Labels, float]] = []
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts):
            total += count
            samples.append(("_bucket", {"le": _number(bound)}, total))
        samples += [("_sum", _NONE, self._sum), ("_count", _NONE, total)]
        return Family(name, "histogram", about, samples)


def text_of(families: Iterable[Family]) -> str:
    lines: list[str] = []
    for family in families:
        lines.append(f"# HELP {family.name} {_escaped(family.about)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for suffix, labels, value in family.samples:
            pairs = ",".join(f'{name}="{_quoted(text)}"' for name, text in labels.items())
            where = f"{{{pairs}}}" if pairs else ""
            lines.append(f"{family.name}{suffix}{where} {_number(value)}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')

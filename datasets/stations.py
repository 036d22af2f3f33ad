"""Station readings: ``station,temp``, 413 stations, one decimal, as in the one-billion-row challenge."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from datasets.dataset import Dataset, choose, join_columns
from datasets.randomness import bell, below, mix, random_bits

STATIONS = 413
_TENTHS = 999  # temperatures lie in [-99.9, 99.9]

_FIRST = [
    *("Abha", "Accra", "Bergen", "Bogotá", "Cairo", "Denver", "Dunedin", "Erbil", "Fresno", "Gagnoa"),
    *("Hanoi", "Harare", "Irkutsk", "Jos", "Kano", "Košice", "Lagos", "Lodwar", "Luanda", "Malé"),
    *("Nuuk", "Odesa", "Oslo", "Panamá", "Perth", "Quito", "Riga", "Roseau", "Split", "Tabora"),
    *("Tunis", "Ürümqi", "Vaduz", "Wau", "Xi'an", "Yakutsk", "Zürich"),
]
_SECOND = [
    "",
    " Bay",
    " City",
    " Falls",
    " Harbour",
    " Heights",
    " Island",
    " North",
    " Point",
    " River",
    " South",
    " Valley",
]


def station_names() -> list[str]:
    """413 distinct names of 3 to 16 letters, some not ASCII."""
    return [_FIRST[i % len(_FIRST)] + _SECOND[i // len(_FIRST)] for i in range(STATIONS)]


class Stations(Dataset):
    header = b"station,temp\n"
    row_bytes = 17.0

    def __init__(self, rows: int, seed: int = 0) -> None:
        super().__init__(rows, seed)
        self.names = station_names()
        self._keys = [name + "," for name in self.names]
        self._temps = [
            f"{'-' if t < 0 else ''}{abs(t) // 10}.{abs(t) % 10}\n" for t in range(-_TENTHS, _TENTHS + 1)
        ]
        climate = mix(np.arange(STATIONS, dtype=np.uint64))
        self._mean_tenths = below(climate, 400) - 80
        self._histogram = np.zeros(STATIONS * len(self._temps), np.int64)

    def block(self, first: int, count: int) -> memoryview:
        station = below(random_bits(self.seed, 0, first, count), STATIONS)
        spread = bell(random_bits(self.seed, 1, first, count)) * 100 // 37_837  # ten degrees
        temp = np.clip(self._mean_tenths[station] + spread, -_TENTHS, _TENTHS) + _TENTHS
        self._histogram += np.bincount(station * len(self._temps) + temp, minlength=len(self._histogram))
        return join_columns([choose(self._keys, station), choose(self._temps, temp)])

    def answer(self) -> dict[str, Any]:
        """For each station: count, min, max (as printed), the exact sum in tenths, and `sum`: that of
        the doubles nearest to the printed numbers, rounded once."""
        table = self._histogram.reshape(STATIONS, -1)
        tenths = np.arange(-_TENTHS, _TENTHS + 1)
        stations = {}
        for name, counts in zip(self.names, table, strict=True):
            seen = np.flatnonzero(counts)
            if not len(seen):
                continue
            exact = sum((Fraction(int(tenths[i]) / 10) * int(counts[i]) for i in seen), Fraction(0))
            stations[name] = {
                "count": int(counts.sum()),
                "min": int(tenths[seen[0]]) / 10,
                "max": int(tenths[seen[-1]]) / 10,
                "sum_tenths": int(counts @ tenths),
                "sum": float(exact),
            }
        return {"rows": int(table.sum()), "stations": stations}

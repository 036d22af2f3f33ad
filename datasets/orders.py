"""Orders and their items: what CSV readers get wrong (quoted newlines, quotes, unicode, nulls, skew).

`customer` is skewed by Zipf's law over 65,535 customers. `note` is null (an empty field), the empty
text (``""``), or a text with commas, doubled quotes, line ends of both kinds or a quote in the middle
of an unquoted field. `quantity` is null in one row of 16. Rows end in ``\\n``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from datasets.dataset import Dataset, choose, digits, join_columns, two_decimals
from datasets.randomness import below, random_bits, zipf_ranks

CUSTOMER_OCTAVES = 16

NOTES: list[tuple[str, str | None]] = [
    ("", None),
    ("plain", "plain"),
    ('""', ""),
    ('"a, b"', "a, b"),
    ('"line one\nline two"', "line one\nline two"),
    ('"he said ""no"""', 'he said "no"'),
    ('"\n"', "\n"),
    ('"""\n"""', '"\n"'),
    ('"windows\r\nline"', "windows\r\nline"),
    ('"ends with a comma,"', "ends with a comma,"),
    ('5" pipe', '5" pipe'),
    ("naïve café 東京 🚚", "naïve café 東京 🚚"),
    ('"東京,\n""大阪"""', '東京,\n"大阪"'),
    ("leave at the door", "leave at the door"),
    ('"1,2\n3,4\n5,6\n"', "1,2\n3,4\n5,6\n"),
    (" spaces kept ", " spaces kept "),
]
"""Each note as it is written, and as it is read."""

CITIES = ["Oslo", "Zürich", "São Paulo", "東京", "'s-Hertogenbosch", "New York"]
PRODUCTS = [f"product {i}" if i % 7 else f'"product ""{i}"", large"' for i in range(1000)]


class Orders(Dataset):
    header = b"order_id,customer,city,note,total\n"
    row_bytes = 40.0

    def __init__(self, rows: int, seed: int = 0) -> None:
        super().__init__(rows, seed)
        self.customer_counts = np.zeros(2**CUSTOMER_OCTAVES - 1, np.int64)
        self._note_counts = np.zeros(len(NOTES), np.int64)
        self._city_cents = [0] * len(CITIES)
        self._cents = two_decimals(100_000)

    def block(self, first: int, count: int) -> memoryview:
        bits = random_bits(self.seed, 0, first, count)
        customer = zipf_ranks(bits, random_bits(self.seed, 1, first, count), CUSTOMER_OCTAVES)
        note = below(random_bits(self.seed, 2, first, count), len(NOTES))
        city = below(random_bits(self.seed, 3, first, count), len(CITIES))
        cents = below(random_bits(self.seed, 4, first, count), len(self._cents))
        self.customer_counts += np.bincount(customer, minlength=len(self.customer_counts))
        self._note_counts += np.bincount(note, minlength=len(NOTES))
        for i in range(len(CITIES)):
            self._city_cents[i] += int(cents[city == i].sum())
        order = np.arange(first, first + count)
        columns = [digits(order), ",c", digits(customer), ",", choose(CITIES, city), ","]
        columns += [choose([n[0] for n in NOTES], note), ",", choose(self._cents, cents), "\n"]
        return join_columns(columns)

    def answer(self) -> dict[str, Any]:
        """Rows, customers and their counts, how often each note (as read) occurs, cents by city."""
        notes = [
            {"note": text, "count": int(n)} for (_, text), n in zip(NOTES, self._note_counts, strict=True)
        ]
        seen = np.flatnonzero(self.customer_counts)
        return {
            "rows": int(self._note_counts.sum()),
            "customers": len(seen),
            "customer_counts": {f"c{i}": int(self.customer_counts[i]) for i in seen[:1000]},
            "notes": notes,
            "city_cents": dict(zip(CITIES, self._city_cents, strict=True)),
        }


class Items(Dataset):
    """Items of the orders [0, rows / 4): an order has four lines on average, some none at all."""

    header = b"order_id,product,quantity,price\n"
    row_bytes = 28.5

    def __init__(self, rows: int, seed: int = 0) -> None:
        super().__init__(rows, seed)
        self._prices = two_decimals(50_000)
        self._rows = self._nulls = self._quantity = self._cents = 0
        self._product_rows = np.zeros(len(PRODUCTS), np.int64)

    def block(self, first: int, count: int) -> memoryview:
        orders = max(1, self.rows // 4)
        order = below(random_bits(self.seed, 10, first, count), orders)
        # The square of a uniform number: few products make most of the rows.
        uniform = below(random_bits(self.seed, 11, first, count), 1 << 20)
        product = uniform * uniform * len(PRODUCTS) >> 40
        quantity = below(random_bits(self.seed, 12, first, count), 16)
        cents = below(random_bits(self.seed, 13, first, count), len(self._prices))
        self._rows += count
        self._nulls += int(np.count_nonzero(quantity == 0))
        self._quantity += int(quantity.sum())
        self._cents += int(cents.sum())
        self._product_rows += np.bincount(product, minlength=len(PRODUCTS))
        written = choose(["", *map(str, range(1, 16))], quantity)
        columns = [digits(order), ",", choose(PRODUCTS, product), ",", written, ","]
        return join_columns([*columns, choose(self._prices, cents), "\n"])

    def answer(self) -> dict[str, Any]:
        return {
            "rows": self._rows,
            "quantity_nulls": self._nulls,
            "quantity_sum": self._quantity,
            "price_cents": self._cents,
            "product_rows": self._product_rows.tolist(),
        }

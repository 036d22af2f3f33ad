"""The generators: the same bytes for ever, and answers that a plain reading of the rows confirms."""

from __future__ import annotations

import collections
import csv
import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from datasets import DATASETS, Distinct, HotKey, Items, LineItem, Orders, Stations, Text
from datasets.__main__ import main
from datasets.dataset import Dataset
from datasets.distinct import weighted_sum
from datasets.orders import NOTES, PRODUCTS
from datasets.stations import station_names
from datasets.text import word

SHA256_OF_FIRST_MB = {
    "distinct": "e37b3f3477796a7c",
    "hotkey": "b2cf55fdcd64a752",
    "items": "2e44e07bc48bbc56",
    "lineitem": "9e8b1f174cf49d0c",
    "orders": "b881155d66ad2e7b",
    "stations": "a1a25087ad807425",
    "text": "f60b7be2d863bf2e",
}


def data(dataset: Dataset) -> bytes:
    return b"".join(dataset.blocks())


def rows(dataset: Dataset) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data(dataset).decode(), newline="")))


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_the_first_megabyte_never_changes(name: str) -> None:
    cls = DATASETS[name]
    first = data(cls(int(1.6e6 / cls.row_bytes)))[: 1 << 20]
    assert len(first) == 1 << 20
    assert hashlib.sha256(first).hexdigest()[:16] == SHA256_OF_FIRST_MB[name]


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_rows_do_not_depend_on_blocks(name: str) -> None:
    whole, cut = DATASETS[name](1000, 7), DATASETS[name](1000, 7)
    in_parts = whole.header + b"".join(
        bytes(cut.block(at, min(300, 1000 - at))) for at in range(0, 1000, 300)
    )
    assert data(whole) == in_parts
    assert whole.answer() == cut.answer()
    assert json.loads(json.dumps(whole.answer())) == whole.answer()


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"distinct"}))
def test_another_seed_gives_other_rows(name: str) -> None:
    assert data(DATASETS[name](100, 0)) != data(DATASETS[name](100, 1))


def test_stations() -> None:
    made = Stations(20_000)
    found: dict[str, list[float]] = collections.defaultdict(list)
    for row in rows(made):
        assert row["temp"] == f"{float(row['temp']):.1f}"
        found[row["station"]].append(float(row["temp"]))
    answer = made.answer()
    assert answer["rows"] == 20_000
    assert len(set(station_names())) == len(found) == 413
    for station, temps in found.items():
        tenths = sum(round(t * 10) for t in temps)
        assert answer["stations"][station] == {
            "count": len(temps),
            "min": min(temps),
            "max": max(temps),
            "sum_tenths": tenths,
            "sum": math.fsum(temps),
        }


def test_text() -> None:
    made = Text(2000, octaves=12)
    lines = data(made).decode().split("\n")
    assert lines.pop() == ""
    words = [w for line in lines for w in line.split(" ")]
    assert all(words)
    counts = collections.Counter(words)
    answer = made.answer()
    assert (answer["rows"], answer["words"], answer["distinct"]) == (2000, len(words), len(counts))
    assert answer["counts"] == {w: counts[w] for w in answer["counts"]}
    assert counts.most_common(1)[0][0] == word(0)
    assert counts[word(0)] > 6 * counts[word(9)] > 0


def test_words_are_distinct_where_they_grow_longer() -> None:
    edges = [*range(400), *range(11_000, 12_000), *range(1_168_000, 1_170_000)]
    assert len({word(rank) for rank in edges}) == len(edges)


def test_orders() -> None:
    made = Orders(5000)
    read = rows(made)
    answer = made.answer()
    assert [row["order_id"] for row in read] == [str(i) for i in range(5000)]
    customers = collections.Counter(row["customer"] for row in read)
    assert answer["customers"] == len(customers)
    assert answer["customer_counts"].items() <= customers.items()
    assert max(customers.values()) > 200  # skewed
    notes = collections.Counter(row["note"] for row in read)
    by_text: collections.Counter[str] = collections.Counter()
    for entry in answer["notes"]:
        by_text[entry["note"] or ""] += entry["count"]  # Python's reader cannot tell null from empty
    assert notes == by_text
    assert {text for _, text in NOTES if text} <= notes.keys()
    cents: collections.Counter[str] = collections.Counter()
    for row in read:
        cents[row["city"]] += round(float(row["total"]) * 100)
    assert answer["city_cents"] == cents


def test_items() -> None:
    made = Items(5000)
    read = rows(made)
    products = collections.Counter(row["product"] for row in read)
    answer = made.answer()
    plain = [next(csv.reader([p]))[0] for p in PRODUCTS]
    assert products == {p: n for p, n in zip(plain, answer["product_rows"], strict=True) if n}
    assert answer["quantity_nulls"] == sum(row["quantity"] == "" for row in read) > 0
    assert answer["quantity_sum"] == sum(int(row["quantity"] or 0) for row in read)
    assert answer["price_cents"] == sum(round(float(row["price"]) * 100) for row in read)
    assert {int(row["order_id"]) < 1250 for row in read} == {True}


def test_hotkey() -> None:
    made = HotKey(5000)
    found: dict[str, dict[str, int]] = {}
    for row in rows(made):
        group = found.setdefault(row["key"], {"count": 0, "sum": 0})
        group["count"] += 1
        group["sum"] += int(row["value"])
    assert made.answer() == {"rows": 5000, "keys": found}
    assert 0.87 < found["hot"]["count"] / 5000 < 0.93


@pytest.mark.parametrize("kind", ["int", "string"])
@pytest.mark.parametrize("clustered", [True, False])
@pytest.mark.parametrize("keys", [0, 1, 999, 1000])
def test_distinct(kind: Any, clustered: bool, keys: int) -> None:
    made = Distinct(3000, keys=keys, kind=kind, clustered=clustered)
    sums: dict[int, int] = {}
    order = []
    for row in rows(made):
        key = int(row["key"].removeprefix("key-" if kind == "string" else ""))
        order.append(key)
        sums[key] = sums.get(key, 0) + int(row["value"])
    assert sorted(sums) == list(range(keys or 3000))
    assert (order == sorted(order)) == (clustered or keys == 1)
    weighted = weighted_sum(list(sums), list(sums.values()))
    assert made.answer() == {
        "rows": 3000,
        "groups": keys or 3000,
        "sum": sum(sums.values()),
        "weighted": weighted,
    }


@pytest.mark.parametrize("shuffled", [True, False])
def test_lineitem(shuffled: bool) -> None:
    made = LineItem(4001, shuffled=shuffled)
    sums: dict[int, int] = {}
    read = rows(made)
    for row in read:
        assert None not in row.values()
        assert None not in row
        sums[int(row["l_orderkey"])] = sums.get(int(row["l_orderkey"]), 0) + int(row["l_quantity"])
    weighted = weighted_sum(list(sums), list(sums.values()))
    answer = {"rows": 4001, "groups": len(sums), "quantity": sum(sums.values()), "weighted": weighted}
    assert made.answer() == answer
    keys = [int(row["l_orderkey"]) for row in read]
    assert (keys == sorted(keys)) == (not shuffled)


def test_the_command_writes_rows_and_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, answer = tmp_path / "f.csv", tmp_path / "a.json"
    arguments = ["distinct", "--rows", "1_000", "--keys", "10", "-o", str(out), "--answer", str(answer)]
    assert main(arguments) == 0
    assert len(out.read_text().splitlines()) == 1001
    assert json.loads(answer.read_text())["groups"] == 10
    assert main(["stations", "--size", "1MB", "-o", str(out)]) == 0
    assert 0.9e6 < out.stat().st_size < 1.2e6
    with pytest.raises(SystemExit) as caught:
        main(["stations", "--rows", "10", "--keys", "3", "-o", str(out)])
    assert caught.value.code == 2
    assert "stations:" in capsys.readouterr().err

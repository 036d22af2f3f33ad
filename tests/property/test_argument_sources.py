"""Arguments of `cortex compute` are what was written, whatever that is."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cortex.job.argument_sources import CsvArguments, LinesArguments, ProductArguments, range_length
from cortex.job.yaml_nodes import Document
from cortex.job.yaml_values import plain_value

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
YAML_TEXTS = st.text(  # as much of it as YAML takes without an escape
    st.characters(
        codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co", "Zl", "Zp"), exclude_characters="\ufeff"
    ),
    max_size=20,
)


def values(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    plain = (
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
    )
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=12,
    )


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)  # 1, 1.0 and True are equal, and not the same


@given(st.lists(values(YAML_TEXTS), max_size=5))
def test_json_in_a_job_file_is_what_it_is_in_json(written: list[Any]) -> None:
    document = Document(f"arguments: {json.dumps(written, ensure_ascii=False)}\n", "c.yaml")
    node = document.top.node("arguments")
    assert node is not None
    read = plain_value(document, node)
    document.raise_problems()
    assert same(read, written)


@given(st.lists(values(TEXTS), max_size=8), st.booleans())
def test_lines_are_what_json_wrote(written: list[Any], escaped: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        path.write_bytes("".join(json.dumps(v, ensure_ascii=escaped) + "\n" for v in written).encode())
        source = LinesArguments(str(path))
        assert same(list(source), written)
        assert source.count() == len(written)


@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(TEXTS, min_size=width, max_size=width), min_size=1, max_size=6)
    )
)
def test_rows_are_what_csv_wrote(rows: list[list[str]]) -> None:
    names = [f"column {n}" for n in range(len(rows[0]))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.csv"
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([names, *rows])
        source = CsvArguments(str(path))
        assert list(source) == [((), dict(zip(names, row))) for row in rows]
        assert source.count() == len(rows)


@given(st.lists(st.lists(st.integers(0, 3), max_size=3) | st.builds(range, st.integers(0, 3)), max_size=4))
def test_a_product_is_that_of_itertools(pools: list[Any]) -> None:
    from itertools import product

    source = ProductArguments(tuple(pools))
    assert list(source) == list(product(*pools))
    assert source.count() == len(list(product(*pools)))


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-9, 9).filter(bool))
def test_the_length_of_a_range(start: int, stop: int, step: int) -> None:
    assert range_length(range(start, stop, step)) == len(range(start, stop, step))

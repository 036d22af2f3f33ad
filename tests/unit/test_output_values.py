"""Row-form output: what a value becomes in a file, and that a result that is printed shows the same."""

from __future__ import annotations

import datetime as dt
import shutil
import uuid
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cortex.cli.rows import print_csv
from cortex.errors import ValueTypeError
from cortex.job.spec import InputSpec, JobSpec, OutputSpec
from cortex.result import Result
from cortex.tasks.part_output import PairWriter, PartWriter
from cortex.wire.messages import JobReport

PARIS = dt.timezone(dt.timedelta(hours=1))
NOON = dt.datetime(2026, 1, 2, 12, 30, tzinfo=PARIS)


def write(
    folder: Path, pairs: list[tuple[Any, Any]], form: str, *, shown: bool = False, chunk: int = 100
) -> Result:
    """The pairs as one part; `shown`: as those of a job without an output folder."""
    folder.mkdir(exist_ok=True)
    writer = PairWriter(PartWriter(str(folder), form, 0, form), form, shown)
    for at in range(0, len(pairs), chunk):
        writer.write_pairs(pairs[at : at + chunk], "map()")
    parts = writer.finish()
    spec = JobSpec("t", InputSpec(("in",)), OutputSpec(format=form), map_form="rows", reduce_form="none")  # type: ignore[arg-type]
    return Result(spec, JobReport("j0", "t", 1.0), parts, str(folder), partial(shutil.rmtree, folder))


def text(folder: Path, pairs: list[tuple[Any, Any]], form: str = "csv") -> str:
    with write(folder, pairs, form):
        (path,) = folder.iterdir()
        return path.read_text()


CELLS: list[tuple[list[Any], list[str]]] = [
    ([Decimal("2.50"), None, Decimal("1E+5")], ["2.50", "", "1E+5"]),
    ([NOON, None], ["2026-01-02T11:30:00.000000Z", ""]),
    ([dt.datetime(2026, 1, 2, 3, fold=1), None], ["2026-01-02T03:00:00.000000", ""]),
    ([dt.time(1, 2)], ["01:02:00"]),
    ([uuid.UUID(int=1)], ["00000000-0000-0000-0000-000000000001"]),
    ([("a", Decimal("1.50")), None], ['"[""a"",""1.50""]"', ""]),
    ([{"b": {2, 1}, "a": 1}], ['"{""a"":1,""b"":[1,2]}"']),
]


@pytest.mark.parametrize(("values", "cells"), CELLS)
def test_a_value_is_the_same_text_in_a_file_and_printed(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], values: list[Any], cells: list[str]
) -> None:
    pairs = list(enumerate(values))
    written = text(tmp_path / "csv", pairs)
    assert written.splitlines() == ["key,value", *(f"{n},{cell}" for n, cell in enumerate(cells))]
    with write(tmp_path / "arrow", pairs, "arrow", shown=True) as result:
        print_csv(result)
    assert capfdbinary.readouterr().out.decode() == written


@pytest.mark.parametrize("key", [Decimal("0.1"), NOON, dt.datetime(2026, 1, 2), 1e20, ("é", NOON, None)])
def test_a_key_is_the_same_text_in_a_file_and_printed(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], key: Any
) -> None:
    pairs = [(key, [1])]
    with write(tmp_path / "arrow", pairs, "arrow", shown=True) as result:
        print_csv(result)
    assert capfdbinary.readouterr().out.decode() == text(tmp_path / "csv", pairs)


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_decimals_and_instants_come_back_from_typed_files(tmp_path: Path, form: str) -> None:
    values = [Decimal("2.50"), None, Decimal("1E+5")]
    found = [value for _, value in write(tmp_path / "d", list(enumerate(values)), form)]
    assert [repr(value) for value in found] == [repr(value) for value in values]
    with write(tmp_path / "t", [(0, NOON), (1, None)], form) as result:
        assert [value for _, value in result] == [NOON, None]
        assert result.schema.field("value").type == pa.timestamp("us", "UTC")


def test_json_lines_hold_their_text(tmp_path: Path) -> None:
    assert text(tmp_path, [(0, Decimal("2.50"))], "jsonl") == '{"key":0,"value":"2.50"}\n'


def test_values_of_a_shown_result_keep_what_they_are(tmp_path: Path) -> None:
    for n, value in enumerate([Decimal("2.50"), uuid.UUID(int=1), dt.time(1), {"a": (1,)}]):
        with write(tmp_path / f"{n}", [(0, value)], "arrow", shown=True) as result:
            ((_, found),) = result
            assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([Decimal(1), (1,)], "Decimal"),
        ([Decimal(1), 1], "Decimal"),
        ([NOON, dt.datetime(2026, 1, 2)], "datetime"),
    ],
)
def test_mixed_values_are_an_error_however_they_come(
    tmp_path: Path, values: list[Any], said: str, chunk: int
) -> None:
    for shown in (False, True):
        with pytest.raises(ValueTypeError, match="values of different types") as caught:
            write(tmp_path, list(enumerate(values)), "arrow", shown=shown, chunk=chunk)
        assert said in caught.value.message

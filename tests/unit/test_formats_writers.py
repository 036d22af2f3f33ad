"""Writers: what each format looks like, what fails and what is left behind."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cortex.errors import ColumnError, OutputFailed, UsageError, ValueTypeError
from cortex.formats import columnar_writers
from cortex.formats.writers import open_writer, output_extension
from cortex.job.spec import OUTPUT_FORMATS
from cortex.kernels.wider import widened_batch, wider_schema
from tests.arrow_memory import arrow_peak


def _written(tmp_path: Path, format_: str, **columns: object) -> str:
    table = pa.table(columns)
    path = tmp_path / "out"
    writer = open_writer(str(path), format_, table.schema)
    for batch in table.to_batches():
        writer.write(batch)
    rows, size = writer.close()
    assert (rows, size) == (table.num_rows, path.stat().st_size)
    return path.read_text()


def test_csv_quotes_only_what_must_be(tmp_path: Path) -> None:
    text = _written(
        tmp_path, "csv", **{"plain": ["a b", "a,b", 'a"b', "a\nb", "a\rb", "", None, "é"], "n,": [1] * 8}
    )
    want = 'plain,"n,"\na b,1\n"a,b",1\n"a""b",1\n"a\nb",1\n"a\rb",1\n"",1\n,1\né,1\n'
    assert text.encode() == want.encode() or text == want.replace("\r", "\n")
    assert (tmp_path / "out").read_bytes() == want.encode()


def test_tsv_quotes_tabs_and_not_commas(tmp_path: Path) -> None:
    assert _written(tmp_path, "tsv", a=["x,y", "x\ty"], b=[1, 2]) == 'a\tb\nx,y\t1\n"x\ty"\t2\n'


def test_text_is_the_line_or_tabs(tmp_path: Path) -> None:
    assert _written(tmp_path, "text", a=['say "hi", ok', None]) == 'say "hi", ok\n\n'
    assert _written(tmp_path, "text", a=["x", None], b=[1, 2.5]) == "x\t1.0\n\t2.5\n"


@pytest.mark.parametrize(
    ("value", "type_", "want"),
    [
        (1.0, pa.float64(), "1.0"),
        (-0.0, pa.float64(), "-0.0"),
        (0.1, pa.float64(), "0.1"),
        (0.1, pa.float32(), "0.1"),
        (1e22, pa.float64(), "1e+22"),
        (123456.0, pa.float64(), "123456.0"),
        (12345678.0, pa.float64(), "12345678.0"),
        (float("nan"), pa.float64(), "nan"),
        (float("-inf"), pa.float64(), "-inf"),
        (2.0, pa.float16(), "2.0"),
        (True, pa.bool_(), "true"),
        (2**64 - 1, pa.uint64(), "18446744073709551615"),
        (decimal.Decimal("1.50"), pa.decimal128(5, 2), "1.50"),
        (datetime.date(2024, 2, 29), pa.date32(), "2024-02-29"),
        (datetime.datetime(2024, 2, 29, 1, 2, 3), pa.timestamp("s"), "2024-02-29T01:02:03"),
        (datetime.datetime(2024, 2, 29, 1, 2, 3), pa.timestamp("s", "UTC"), "2024-02-29T01:02:03Z"),
        (datetime.time(1, 2), pa.time32("s"), "01:02:00"),
        (datetime.timedelta(seconds=5), pa.duration("s"), "5"),
        (b"raw", pa.binary(), "raw"),
        ([1, None], pa.list_(pa.int64()), "[1,null]"),
        ({"x": "é"}, pa.struct([("x", pa.string())]), '{"x":"é"}'),
        (None, pa.null(), ""),
    ],
)
def test_values_as_text(tmp_path: Path, value: object, type_: pa.DataType, want: str) -> None:
    assert _written(tmp_path, "text", a=pa.array([value], type_)) == want + "\n"


def test_json_lines(tmp_path: Path) -> None:
    text = _written(
        tmp_path,
        "jsonl",
        **{
            'k"ey': pa.array(['a"\\\n\x01é', None], pa.string()),
            "f": [float("nan"), 1.0],
            "i": pa.array([1, None], pa.int64()),
            "m": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(5, 2)),
            "l": [[{"x": float("inf")}], None],
            "t": [datetime.date(2024, 1, 2), None],
        },
    )
    assert text == (
        '{"k\\"ey":"a\\"\\\\\\n\\u0001é","f":null,"i":1,"m":"1.50","l":[{"x":null}],"t":"2024-01-02"}\n'
        '{"k\\"ey":null,"f":1.0,"i":null,"m":null,"l":null,"t":null}\n'
    )


@pytest.mark.parametrize("format_", ["csv", "tsv", "jsonl", "text"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, format_: str) -> None:
    for column in (pa.array([b"\xff"]), pa.array([[b"\xff"]])):
        with pytest.raises(ValueTypeError, match="'a'"):
            _written(tmp_path, format_, a=column)


_FAR = pa.array([2**30, None], pa.int32())


@pytest.mark.parametrize("format_", ["csv", "tsv", "jsonl", "text"])
@pytest.mark.parametrize(
    "column",
    [
        _FAR.view(pa.date32()),
        _FAR.view(pa.time32("s")),
        _FAR.view(pa.date32()).dictionary_encode(),
        pa.array([None, -(2**55)], pa.timestamp("ms")),
        pa.array([2**55], pa.timestamp("ms", "Europe/Berlin")),
        pa.array([7], pa.timestamp("ms", "Mars/Phobos")),
        pa.array([[2**55]], pa.list_(pa.timestamp("ms"))),
    ],
    ids=lambda column: str(column.type),
)
def test_a_time_that_no_text_can_say_is_refused(tmp_path: Path, column: pa.Array, format_: str) -> None:
    with pytest.raises(ValueTypeError, match="cannot be written as text") as caught:
        _written(tmp_path, format_, a=column)
    assert "'a'" in caught.value.message
    assert "parquet" in caught.value.cure


@pytest.mark.parametrize("format_", OUTPUT_FORMATS)
def test_no_rows_make_a_whole_file(tmp_path: Path, format_: str) -> None:
    path = tmp_path / "out"
    schema = pa.schema([("a", pa.int64()), ("b", pa.string())])
    rows, size = open_writer(str(path), format_, schema).close()
    assert (rows, size) == (0, path.stat().st_size)
    if format_ == "parquet":
        assert pq.read_table(path).schema == schema
    elif format_ == "arrow":
        assert pa.ipc.open_file(path).read_all().schema == schema
    else:
        assert path.read_text() == {"csv": "a,b\n", "tsv": "a\tb\n"}.get(format_, "")


@pytest.mark.parametrize("format_", OUTPUT_FORMATS)
def test_an_aborted_or_failed_file_is_removed(tmp_path: Path, format_: str) -> None:
    path = tmp_path / "out"
    batch = pa.record_batch({"a": [1, 2]})
    writer = open_writer(str(path), format_, batch.schema)
    writer.write(batch)
    writer.abort()
    writer.abort()
    assert not path.exists()
    with contextlib.suppress(ZeroDivisionError), open_writer(str(path), format_, batch.schema) as writer:
        writer.write(batch)
        raise ZeroDivisionError
    assert not path.exists()


PAIR = pa.struct([("f0", pa.int64()), ("f1", pa.string())])


@pytest.mark.parametrize("format_", OUTPUT_FORMATS)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.nulls(3), pa.array([1, None], pa.int64())),
        (pa.nulls(3), pa.array(["", None])),
        (pa.array([0.5, None]), pa.nulls(2)),
        (
            pa.array([{"f0": 1, "f1": None}, None]).cast(pa.struct([("f0", pa.int64()), ("f1", pa.null())])),
            pa.array([{"f0": None, "f1": "x"}, None], PAIR),
        ),
        (pa.array([{"f0": None, "f1": "x"}]), pa.array([{"f0": 1, "f1": None}])),
    ],
)
def test_a_column_without_a_value_takes_the_type_of_the_first_value(
    tmp_path: Path, format_: str, first: pa.Array, second: pa.Array
) -> None:
    batches = [pa.record_batch({"k": [str(i) for i in range(len(x))], "x": x}) for x in (first, second)]
    schema = wider_schema(batches[0].schema, batches[1].schema)
    assert schema == wider_schema(batches[1].schema, batches[0].schema)
    writer = open_writer(str(tmp_path / "out"), format_, batches[0].schema)
    writer.write(batches[0])
    writer.widen(schema)
    writer.write(widened_batch(batches[1], schema))
    rows, size = writer.close()
    assert rows == len(first) + len(second)
    assert os.listdir(tmp_path) == ["out"]
    known = open_writer(str(tmp_path / "known"), format_, schema)
    for batch in batches:
        known.write(widened_batch(batch, schema))
    assert known.close() == (rows, size)
    assert (tmp_path / "known").read_bytes() == (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("format_", OUTPUT_FORMATS)
def test_a_file_that_was_widened_can_be_aborted(tmp_path: Path, format_: str) -> None:
    writer = open_writer(str(tmp_path / "out"), format_, pa.schema([("x", pa.null())]))
    writer.write(pa.record_batch({"x": pa.nulls(3)}))
    writer.widen(pa.schema([("x", pa.int8())]))
    writer.abort()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "second",
    [
        pa.schema([("x", pa.int32())]),
        pa.schema([("y", pa.int64())]),
        pa.schema([]),
        pa.schema([("x", pa.int64()), ("y", pa.int64())]),
        pa.schema([("x", PAIR)]),
    ],
)
def test_other_columns_are_not_widened(second: pa.Schema) -> None:
    first = pa.schema([("x", pa.int64())])
    for schemas in ((first, second), (second, first)):
        with pytest.raises(ColumnError, match="different columns"):
            wider_schema(*schemas)


def test_what_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    schema = pa.schema([("a", pa.int64())])
    with pytest.raises(OutputFailed) as caught:
        open_writer(str(tmp_path / "none" / "out"), "csv", schema)
    assert caught.value.details["file"].endswith("out")
    with pytest.raises(UsageError, match="xlsx"):
        open_writer(str(tmp_path / "out"), "xlsx", schema)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("format_", ["csv", "arrow", "parquet"])
def test_a_full_disk_is_a_typed_error(tmp_path: Path, format_: str) -> None:
    path = tmp_path / "out"
    path.symlink_to("/dev/full")  # a link, as abort removes what it is given
    batch = pa.record_batch({"a": list(range(300_000))})
    writer = open_writer(str(path), format_, batch.schema)
    many = pa.Table.from_batches([batch] * 20).combine_chunks().to_batches()[0]
    with pytest.raises(OutputFailed, match="No space left"):
        writer.write(many)
    writer.abort()
    assert not path.is_symlink()


def test_extensions() -> None:
    assert [output_extension(f) for f in OUTPUT_FORMATS] == [
        ".csv", ".tsv", ".jsonl", ".parquet", ".arrow", ".txt",
    ]  # fmt: skip


def test_wide_rows_make_small_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar_writers, "_GROUP_BYTES", 100_000)
    table = pa.table({"s": ["x" * 1000] * 1000 + ["y"] * 70_000})
    files = []
    for size in (7, 1000, 71_000):
        path = tmp_path / f"{size}.parquet"
        writer = open_writer(str(path), "parquet", table.schema)
        for batch in table.to_batches(max_chunksize=size):
            writer.write(batch)
        writer.close()
        files.append(path.read_bytes())
    assert files[0] == files[1] == files[2]
    metadata = pq.read_metadata(tmp_path / "7.parquet")
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups[:2] == [100, 100]
    assert sum(groups) == 71_000
    assert max(groups) <= 65_536
    assert pq.read_table(tmp_path / "7.parquet").equals(table)


@pytest.mark.parametrize("format_", ["parquet", "arrow"])
@pytest.mark.parametrize("batch_rows", [1, 7, 600])
def test_a_group_ends_at_the_row_that_fills_it(tmp_path: Path, format_: str, batch_rows: int) -> None:
    """Long values do not wait for a number of rows."""
    table = pa.table({"i": range(600), "s": ["x" * 100_000 + str(i) for i in range(600)]})
    path = tmp_path / "out"
    writer = open_writer(str(path), format_, table.schema)
    for batch in table.to_batches(max_chunksize=batch_rows):
        writer.write(batch)
    writer.close()
    if format_ == "parquet":
        metadata = pq.read_metadata(path)
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    else:
        file = pa.ipc.open_file(path)
        groups = [file.get_batch(i).num_rows for i in range(file.num_record_batches)]
    assert groups == [84] * 7 + [12]
    assert [batch.num_rows for batch in columnar_writers.reread(str(path), format_)] == groups


@pytest.mark.parametrize("format_", ["parquet", "arrow"])
def test_long_maps_end_a_group_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str) -> None:
    monkeypatch.setattr(columnar_writers, "_GROUP_BYTES", 10_000)
    kind = pa.map_(pa.string(), pa.string())
    table = pa.table({"m": pa.array([[("k", "x" * 999)], None, [], [("k", None), ("l", "")]] * 100, kind)})
    with open_writer(str(tmp_path / "out"), format_, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=33):
            writer.write(batch)
    groups = list(columnar_writers.reread(str(tmp_path / "out"), format_))
    assert [batch.num_rows for batch in groups] == [37] + [40] * 9 + [3]
    assert pa.Table.from_batches(groups).equals(table)


@pytest.mark.parametrize("format_", ["csv", "tsv", "jsonl", "text"])
def test_a_batch_of_long_values_is_made_text_piece_by_piece(tmp_path: Path, format_: str) -> None:
    batch = pa.record_batch({"s": ['"' + "x" * 500_000] * 100})
    writer = open_writer(str(tmp_path / "out"), format_, batch.schema)
    with arrow_peak() as peak:
        writer.write(batch)
    _, size = writer.close()
    assert size >= 50_000_000
    assert peak.bytes < 30_000_000

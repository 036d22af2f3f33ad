"""Readers: projection, bounds, bad input named with file, offset, line, cause and cure."""

from __future__ import annotations

import datetime
import gzip
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cortex.errors import CortexError, InputChanged, InputError, InternalError, RecordTooLarge
from cortex.formats import arrow_file, blocks
from cortex.formats.planning import plan_inputs
from cortex.formats.readers import Reader, open_reader
from cortex.job.plan import UNKNOWN, InputPlan, Split
from cortex.job.spec import CsvDialect, InputSpec
from tests.arrow_memory import arrow_peak

Make = Callable[..., InputPlan]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def write(data: bytes, name: str = "f.csv", used: list[str] | None = None, **spec: Any) -> InputPlan:
        path = tmp_path / name
        path.write_bytes(data)
        return plan_inputs(InputSpec(paths=(str(path),), **spec), used_columns=used)

    return write


def _open(plan: InputPlan, block_bytes: int = 1 << 20, as_lines: bool = False) -> Reader:
    return open_reader(
        plan.files[0], plan.splits[0], plan.columns, block_bytes=block_bytes, as_lines=as_lines
    )


def _rows(plan: InputPlan, **how: Any) -> list[Any]:
    with _open(plan, **how) as reader:
        return [row for batch in reader for row in batch.to_pylist()]


def _error(plan: InputPlan, kind: type[CortexError] = InputError, **how: Any) -> CortexError:
    with pytest.raises(kind) as caught:
        _rows(plan, **how)
    return caught.value


_TYPES = {"a": "int64", "b": "string"}
_GOOD = b"a,b\n" + b"1,x\n" * 999


@pytest.mark.parametrize(
    ("line", "cause", "cure"),
    [
        (b"7", "expected 2 columns, got 1", "delimiter and quote"),
        (b"7,y,z", "expected 2 columns, got 3", "delimiter and quote"),
        (b"seven,y", "'seven' is not int64 (column 'a')", "columns: {a: string}"),
        (b"7.5,y", "'7.5' is not int64 (column 'a')", "columns: {a: float64}"),
        (b"99999999999999999999999,y", "is not int64", "columns: {a: string}"),
        (b"NA,y", "'NA' is not int64 (column 'a')", "null_values: ['', 'NA']"),
        (b'"7.5",y', "'7.5' is not int64 (column 'a')", "columns: {a: float64}"),
        (b"0x10,y", "'0x10' is not int64 (column 'a')", "columns: {a: string}"),
        (b" 0XFFFFFFFFFFFFFFFF,y", "' 0XFFFFFFFFFFFFFFFF' is not int64", "columns: {a: string}"),
        (b"+7,y", "'+7' is not int64 (column 'a')", "columns: {a: float64}"),
        (b"1_000,y", "'1_000' is not int64 (column 'a')", "columns: {a: string}"),
        (b"7,\xff", "invalid UTF-8 in column 'b'", "columns: {b: binary}"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
def test_a_bad_csv_record_is_named(make: Make, line: bytes, cause: str, cure: str, block_bytes: int) -> None:
    plan = make(_GOOD, columns=_TYPES)
    with open(plan.files[0].path, "wb") as file:
        file.write(_GOOD + line + b"\n" + b"2,y\n" * 50)
    broken = _replanned(plan)
    error = _error(broken, block_bytes=block_bytes)
    assert cause in error.message
    assert cure in error.cure
    assert error.details["file"] == plan.files[0].path
    assert error.details["offset"] == str(len(_GOOD))
    assert error.details["line"] == line.decode("utf-8", "backslashreplace")


@pytest.mark.parametrize(
    ("kind", "value", "cure"),
    [
        ("decimal(5,2)", "99999", "'decimal(7, 2)'"),
        ("decimal(5,2)", "1.005", "'decimal(6, 3)'"),
        ("decimal(5,2)", "1" * 50, "string"),
        ("decimal(5,2)", "x", "string"),
        ("decimal(38,2)", "9" * 38, "string"),
        ("float32", "1e50", "float64"),
        ("float64", "-1e999", "string"),
        ("float64", "9" * 310, "string"),
        ("int8", "0xFF", "string"),
        ("uint64", "0x7f", "string"),
        ("timestamp[us]", "2020-01-01T00:00:00+02:00", "'timestamp[us, tz=UTC]'"),
        ("timestamp[us]", "2020-01-01 00:00Z", "'timestamp[us, tz=UTC]'"),
        ("timestamp[us, tz=UTC]", "2020-01-01", "string"),
        ("timestamp[s, tz=+02:00]", "2020-01-01T00:00:00.5+02", "'timestamp[us, tz=+02:00]'"),
        ("timestamp[ns]", "1600-01-01", "'timestamp[us]'"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_a_number_or_time_that_its_type_does_not_hold_is_named(
    make: Make, kind: str, value: str, cure: str, block_bytes: int
) -> None:
    good = "2020-01-01T00:00:00" if "time" in kind else "-inf" if "float" in kind else "5"
    good += "Z" if "tz" in kind else ""
    head = f"v,t\n{good},0x10\n,x\n"
    data = f"{head}{value},inf\n{good},\n{value},\n"
    plan = make(data.encode(), columns={"v": kind, "t": "string"})
    error = _error(plan, block_bytes=block_bytes)
    shown = value if len(value) <= 100 else value[:99] + "…"
    assert error.message == f"{shown!r} is not {plan.columns[0][1]} (column 'v')"
    assert error.cure == f"columns: {{v: {cure}}}"
    assert (error.details["offset"], error.details["line"]) == (str(len(head)), f"{value},inf")
    assert error.details["file"] == plan.files[0].path


def test_numbers_as_they_are_written_are_not_refused(make: Make) -> None:
    data = "f,g,d,i,s\ninf,-Infinity,999.99,16,0x1\nnan, +INF,-999.99,-0,x0X\n"
    data += "1e308,3e38,,00,0xFF\n1e308,3e38,1e2,,\n"
    types = {"f": "float64", "g": "float32", "d": "decimal(5,2)", "i": "int64", "s": "string"}
    rows = _rows(make(data.encode(), columns=types))
    assert [row["i"] for row in rows] == [16, 0, 0, None]
    assert [row["s"] for row in rows] == ["0x1", "x0X", "0xFF", None]
    assert [str(row["d"]) for row in rows] == ["999.99", "-999.99", "None", "100.00"]
    assert [row["f"] for row in rows[2:]] == [1e308, 1e308]


def _replanned(plan: InputPlan) -> InputPlan:
    """The same plan for a file that now has other bytes (bad ones, that planning would refuse)."""
    status = os.stat(plan.files[0].path)
    file = msgspec.structs.replace(
        plan.files[0], size_bytes=status.st_size, modified_ns=status.st_mtime_ns, inode=status.st_ino
    )
    split = msgspec.structs.replace(plan.splits[0], length=status.st_size - plan.splits[0].offset)
    return msgspec.structs.replace(plan, files=(file,), splits=(split,))


@pytest.mark.parametrize(
    ("first", "second", "cure"),
    [
        ("2024-01-02", "2024-01-02 03:04:05", "timestamp[us]"),
        ("2024-01-02 03:04:05", "2024-01-02T03:04:05.123", "timestamp[us]"),
        ("2024-01-02 03:04:05", "2024-01-02T03:04:05.123456789", "timestamp[ns]"),
        ("2024-01-02", "soon", "string"),
        ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05", "string"),
        ("true", "perhaps", "string"),
    ],
)
def test_the_cure_for_a_misfit_is_a_type_that_takes_both(
    make: Make, first: str, second: str, cure: str
) -> None:
    plan = make(f"a\n{first}\n".encode())
    with open(plan.files[0].path, "wb") as file:
        file.write(f"a\n{first}\n{second}\n".encode())
    shown = f"'{cure}'" if "[" in cure else cure  # brackets inside braces end a plain word of YAML
    assert _error(_replanned(plan)).cure == f"columns: {{a: {shown}}}"
    declared = make(f"a\n{first}\n{second}\n".encode(), columns={"a": cure})
    assert len(_rows(declared)) == 2


def test_without_a_quote_character_quotes_are_text(make: Make) -> None:
    data = b'"a",b\n"x,1\r"y"z,2\r\n"",3\n'
    plan = make(data, dialect=CsvDialect(quote=""))
    assert plan.columns == (('"a"', "string"), ("b", "int64"))
    want = [('"x', 1), ('"y"z', 2), ('""', 3)]
    for block_bytes in (1, 1 << 20):
        assert [tuple(row.values()) for row in _rows(plan, block_bytes=block_bytes)] == want


def test_a_bad_value_in_an_unread_column_is_not_looked_at(make: Make) -> None:
    plan = make(b"a,b\n1,x\nNA,y\n", used=["b"], columns=_TYPES)
    assert _rows(plan) == [{"b": "x"}, {"b": "y"}]


def test_columns_come_in_the_order_asked_for_with_their_types(make: Make) -> None:
    plan = make(b"a,b,c\n1,2,x\n", used=["c", "a"], columns={"a": "float32"})
    with _open(plan) as reader:
        (batch,) = reader
    assert batch.schema == pa.schema([("c", pa.string()), ("a", pa.float32())])


def test_null_is_unquoted_only_and_null_values_hold_for_every_type(make: Make) -> None:
    plan = make(b'a,b\nNA,NA\n1,"NA"\n2,""\n3,\n', dialect=CsvDialect(null_values=("", "NA")), columns=_TYPES)
    assert [tuple(row.values()) for row in _rows(plan)] == [(None, None), (1, "NA"), (2, ""), (3, None)]


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_a_quoted_empty_field_is_null_but_in_a_column_of_text(make: Make, block_bytes: int) -> None:
    data = b'i,s,t,y,u\n"1","a","2020-01-01",x,1\n"","","","",""\n"2",b,,,\n'
    plan = make(data, columns={"y": "binary"})
    assert [kind for _, kind in plan.columns] == ["int64", "string", "date32", "binary", "int64"]
    rows = [tuple(row.values()) for row in _rows(plan, block_bytes=block_bytes)]
    day = datetime.date(2020, 1, 1)
    assert rows == [(1, "a", day, b"x", 1), (None, "", None, b"", None), (2, "b", None, None, None)]
    assert [row["u"] for row in _rows(make(data, used=["u"]), block_bytes=block_bytes)] == [1, None, None]
    assert [row["s"] for row in _rows(make(data, used=["s"]), block_bytes=block_bytes)] == ["a", "", "b"]
    assert _rows(make(b'a\n"1"\n""\n\n'), block_bytes=block_bytes) == [{"a": 1}, {"a": None}, {"a": None}]


@pytest.mark.parametrize("block_bytes", [1, 10, 20, 1 << 20])
def test_a_null_word_that_could_be_a_value_is_null_in_every_block(make: Make, block_bytes: int) -> None:
    data = b'i,s\n"-9","-9"\n"1","x"\n"",""\n-9,-9\n'
    plan = make(data, dialect=CsvDialect(null_values=("", "-9")), columns={"i": "int64", "s": "string"})
    rows = [tuple(row.values()) for row in _rows(plan, block_bytes=block_bytes)]
    assert rows == [(None, "-9"), (1, "x"), (None, ""), (None, None)]


def test_a_bad_value_beside_a_quoted_null_is_named(make: Make) -> None:
    error = _error(make(b'a,b\n"",""\n"x",""\n', columns={"a": "int64", "b": "string"}))
    assert error.message == "'x' is not int64 (column 'a')"
    assert error.details["offset"] == "10"


def test_blank_lines_are_rows_only_in_a_file_of_one_column(make: Make) -> None:
    assert _rows(make(b"a\n1\n\n2\n\n", columns={"a": "int64"})) == [{"a": v} for v in (1, None, 2, None)]
    assert _rows(make(b"a,b\n\n1,x\n\r\n\n")) == [{"a": 1, "b": "x"}]


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_an_unclosed_quote_is_an_error_not_a_field(make: Make, block_bytes: int) -> None:
    error = _error(make(b'a,b\n1,x\n2,"y\n3,z\n', columns=_TYPES), block_bytes=block_bytes)
    assert "never closed" in error.message
    assert (error.details["offset"], error.details["line"]) == ("8", '2,"y\n3,z')


def test_a_header_with_an_unclosed_quote_is_an_error(make: Make) -> None:
    with pytest.raises(InputError, match="never closed"):
        make(b'a,"b\n1,x\n')


def test_a_byte_order_mark_inside_the_file_is_text(make: Make) -> None:
    plan = make(b"a\nx\n\xef\xbb\xbfy\n")
    assert _rows(plan, block_bytes=1) == _rows(plan) == [{"a": "x"}, {"a": "\ufeffy"}]


def test_escaped_delimiters_newlines_and_quotes(make: Make) -> None:
    plan = make(b'a,b\n1,x\\,y\n2,x\\\ny\n3,\\"z\n4,"p\\"q\n"\n', dialect=CsvDialect(escape="\\"))
    want = ["x,y", "x\ny", '"z', 'p"q\n']
    for block_bytes in (1, 5, 1 << 20):
        assert [row["b"] for row in _rows(plan, block_bytes=block_bytes)] == want


def test_a_record_larger_than_the_limit_is_a_typed_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "RECORD_BYTES_MAX", 64)
    fits = b"a\n" + b"x" * 60 + b"\n" + b"z\n" * 100
    for block_bytes in (1, 1 << 20):
        assert len(_rows(make(fits), block_bytes=block_bytes)) == 101
    for name in ("f.csv", "f.txt"):
        plan = make(b"a\nb\n" + b"x" * 200 + b"\n", name=name)
        error = _error(plan, RecordTooLarge, block_bytes=7)
        assert error.details["offset"] == "4"
        assert error.details["line"].startswith("xxx")


def test_batches_are_bounded(make: Make) -> None:
    plan = make(b"a\n" + b"1\n" * 200_000)
    with _open(plan, block_bytes=300_000) as reader:
        sizes = [batch.num_rows for batch in reader]
    assert sum(sizes) == 200_000
    assert max(sizes) <= 65_536
    plan = make(b"line\n" * 200_000, name="f.txt")
    with _open(plan, block_bytes=100_000) as reader:
        sizes = [batch.num_rows for batch in reader]
    assert sum(sizes) == 200_000
    assert max(sizes) <= 20_000


@pytest.mark.parametrize("block_bytes", [1, 10, 1 << 20])
def test_any_record_can_be_described(make: Make, block_bytes: int) -> None:
    data = b'a,b\n1,x\n\n\r\n2,"y\nz"\n3,w'
    want = [(4, "1,x"), (11, '2,"y\nz"'), (19, "3,w")]
    for name, bytes_ in (("f.csv", data), ("f.csv.gz", gzip.compress(data))):
        got = []
        with _open(make(bytes_, name=name), block_bytes=block_bytes) as reader:
            for batch in reader:
                got += [reader.describe(i) for i in range(batch.num_rows)]
        assert got == want
    for as_lines in (True, False):
        got = []
        with _open(make(b"a\r\n\nbc\nd", name="f.txt"), block_bytes=block_bytes, as_lines=as_lines) as reader:
            for part in reader:
                got += [reader.describe(i) for i in range(len(part) if as_lines else part.num_rows)]
        assert got == [(0, "a"), (3, ""), (4, "bc"), (7, "d")]


def test_text_that_is_not_utf8_is_named_with_offset_and_line(make: Make) -> None:
    plan = make(b"fine\nb\xc3\x28d\n", name="f.txt")
    for how in ({"as_lines": True}, {"as_lines": False}):
        with (
            pytest.raises(InputError, match="invalid UTF-8: byte 0xc3") as caught,
            _open(plan, **how) as reader,
        ):
            list(reader)
        assert (caught.value.details["offset"], caught.value.details["line"]) == ("6", "b\\xc3(d")
    with _open(make(b"b\xc3\x28d\r\n", name="f.txt", encoding="bytes"), as_lines=True) as reader:
        assert list(reader) == [[b"b\xc3\x28d"]]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "bytes"])
def test_a_long_line_is_read_by_itself(make: Make, encoding: str, end: str) -> None:
    short, long = "short" * 100 + end, "x" * 20_000_000 + end
    data = (short * 1000 + long + short * 30_000).encode()
    plan = _replanned(make(data, name="a.txt", encoding=encoding))  # as one split
    del data
    reader, lines, longest = _open(plan, as_lines=True), 0, 0
    tracemalloc.start()
    try:
        for block in reader:
            lines += len(block)
            longest = max(longest, *map(len, block))
            assert len(block) == 1 or max(map(len, block)) == 500
            if len(block) == 1:
                assert tracemalloc.get_traced_memory()[0] < 22_000_000  # the line alone
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        reader.close()
    assert (lines, longest) == (31_001, 20_000_000)
    assert peak < 75_000_000  # a buffer of 32 MB, with the smaller one before it or the line after it
    assert after < 12_000_000


def test_gzip_members_are_one_stream(make: Make) -> None:
    data = gzip.compress(b"a,b\n1,x\n") + gzip.compress(b"") + b"\0" * 9 + gzip.compress(b'2,"y\n"\n')
    assert _rows(make(data, name="f.csv.gz"), block_bytes=3) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y\n"}]


@pytest.mark.parametrize("name", ["f.csv.gz", "f.txt.gz"])
def test_a_damaged_gzip_file_is_an_error(make: Make, name: str) -> None:
    whole = gzip.compress(b"a,b\n" + bytes(range(48, 58)) * 50_000 + os.urandom(200_000).hex().encode())
    for broken, cause in (
        (whole[:-5], "cut short"),
        (whole[:150_000], "cut short"),
        (b"PK" + whole, "damaged"),
    ):
        with pytest.raises(InputError, match=cause):
            _rows(make(broken, name=name, used=[]))


@pytest.mark.parametrize("name", ["f.csv", "f.txt", "f.parquet", "f.arrow"])
def test_a_file_that_changes_is_noticed(make: Make, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "f.parquet":
        pq.write_table(pa.table({"a": [1]}), path)
    elif name == "f.arrow":
        with (
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, pa.schema([("a", pa.int64())])) as writer,
        ):
            writer.write_table(pa.table({"a": [1]}))
    else:
        path.write_bytes(b"a\n1\n2\n")
    plan = plan_inputs(InputSpec(paths=(str(path),)), used_columns=None)
    os.utime(path, ns=(1, 1))
    assert "modification time" in _error(plan, InputChanged).message
    plan = plan_inputs(InputSpec(paths=(str(path),)), used_columns=None)
    with _open(plan) as reader:
        batches = iter(reader)
        next(batches)
        os.utime(path, ns=(2, 2))
        with pytest.raises(InputChanged):
            next(batches)
    path.unlink()
    assert "cannot be opened" in _error(plan).message


def test_a_csv_split_of_unknown_state_is_refused(make: Make) -> None:
    plan = make(b"a\n1\n2\n")
    with pytest.raises(InternalError):
        open_reader(plan.files[0], Split(0, 0, 3, 2, start_state=UNKNOWN), plan.columns, block_bytes=10)
    with pytest.raises(InternalError):
        _open(plan, as_lines=True)


def test_bytes_read_of_all_splits_are_the_data(make: Make) -> None:
    path = make(b"a,b\n" + b"1,x\n" * 1000).files[0].path
    plan = plan_inputs(
        InputSpec(paths=(path,), dialect=CsvDialect(quote="")), used_columns=None, split_bytes=300
    )
    total = 0
    for split in plan.splits:
        with open_reader(plan.files[0], split, plan.columns, block_bytes=64) as reader:
            for _ in reader:
                pass
            total += reader.bytes_read
    assert total == 4000


# --- Parquet and Arrow ---


def _arrow(path: Path, table: pa.Table, rows: int) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columnar_files_are_projected_decoded_and_cast(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"f.{kind}"
    table = pa.table(
        {
            "d": pa.array(["x", None, "y"]).dictionary_encode(),
            "i": pa.array([1, 2, 3], pa.int32()),
            "l": pa.array(["p", "q", "r"], pa.large_string()),
            "unread": [[1], [2], [3]],
        }
    )
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        _arrow(path, table, 2)
    spec = InputSpec(paths=(str(path),), columns={"i": "float64"})
    plan = plan_inputs(spec, used_columns=["l", "i", "d"])
    with _open(plan) as reader:
        got = list(reader)
        assert reader.describe(0) == (-1, "row 2 of the file")
    assert got[0].schema == pa.schema([("l", pa.string()), ("i", pa.float64()), ("d", pa.string())])
    assert [tuple(row.values()) for batch in got for row in batch.to_pylist()] == [
        ("p", 1.0, "x"),
        ("q", 2.0, None),
        ("r", 3.0, "y"),
    ]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("values", "wanted", "said"),
    [
        (pa.array([1.0, None, 1.5, 2.5]), "int64", "cannot be read as int64"),
        (pa.array(["+16", None, "0x10", "x"]), "int64", "cannot be read as int64"),
        (pa.array(["1", "2", "0xFF", "x"]), "int8", "cannot be read as int8"),
        (pa.array([1e30, float("inf"), 1e300, 1e300]), "float32", "1e+300 is too large for float32"),
        (pa.array(["1e30", "-Inf", "1e999", "x"]), "float64", "1e999 is too large for float64"),
        (pa.array([1, None, 2**55, 2**56]).view(pa.timestamp("ms")), "string", f"{2**55} is out of range"),
        (pa.array([b"a", "é".encode(), b"a\xff", b"\xff"]).view(pa.string()), "string", "invalid UTF-8"),
        (
            pa.array([b"a", "é".encode(), b"a\xff"], pa.large_binary()).view(pa.large_string()),
            "string",
            "UTF-8",
        ),
        (
            pa.array([[b"a", b"b"], None, [b"c", b"\xff"], [b"\xff"]]).view(pa.list_(pa.string())),
            "list<string>",
            "UTF-8",
        ),
        (
            pa.array([{"s": b"a"}, None, {"s": b"\xff"}, {"s": b"\xff"}]).view(
                pa.struct([("s", pa.string())])
            ),
            "struct<s: string>",
            "UTF-8",
        ),
        (
            pa.array([[1], [2, None], [1, 100_000], [100_000]], pa.list_(pa.decimal128(9, 0))).view(
                pa.list_(pa.decimal128(5, 0))
            ),
            "list<decimal(5)>",
            "does not fit in precision",
        ),
        (
            pa.array([1, None, 100_000], pa.decimal128(9, 0)).view(pa.decimal128(5, 0)),
            "decimal(5)",
            "does not fit in precision",
        ),
    ],
)
def test_a_value_that_its_type_does_not_hold_is_named(
    tmp_path: Path, kind: str, values: pa.Array, wanted: str, said: str
) -> None:
    path = tmp_path / f"f.{kind}"
    table = pa.table({"x": values})
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        _arrow(path, table, 100)
    plan = plan_inputs(InputSpec(paths=(str(path),), columns={"x": wanted}), used_columns=None)
    error = _error(plan)
    assert "'x'" in error.message
    assert said in error.message
    assert (error.details["file"], error.details["row"]) == (str(path), "row 2 of the file")
    assert error.cure


@pytest.mark.parametrize("batch_rows", [3, 1000])
@pytest.mark.parametrize(
    ("column", "type_"),
    [
        (lambda texts: texts, "binary"),
        (lambda texts: pa.DictionaryArray.from_arrays(np.arange(1000, dtype=np.int16), texts), "binary"),
        (lambda texts: pa.ListArray.from_arrays(np.arange(1001, dtype=np.int32), texts), "'list<binary>'"),
    ],
)
def test_invalid_text_is_said_with_its_row_wherever_batches_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int, column: Any, type_: str
) -> None:
    monkeypatch.setattr(arrow_file, "BATCH_ROWS_MAX", 100)
    texts = pa.array([b"ok"] * 789 + [b"\xff"] * 211).view(pa.string())
    _arrow(tmp_path / "f.arrow", pa.table({"x": column(texts)}), batch_rows)
    error = _error(plan_inputs(InputSpec(paths=(str(tmp_path / "f.arrow"),)), used_columns=None))
    assert error.message == "invalid UTF-8 in column 'x'"
    assert error.details["row"] == "row 789 of the file"
    assert error.cure.endswith(f"columns: {{x: {type_}}}")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_text_that_is_not_utf8_can_be_read_as_bytes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"f.{kind}"
    table = pa.table({"x": pa.array([b"a\xff"]).view(pa.string())})
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        _arrow(path, table, 100)
    spec = InputSpec(paths=(str(path),), columns={"x": "binary"})
    assert _rows(plan_inputs(spec, used_columns=None)) == [{"x": b"a\xff"}]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("keep", [0, 4, 30, -1, -20])
def test_a_truncated_columnar_file_is_an_error(tmp_path: Path, kind: str, keep: int) -> None:
    path = tmp_path / f"f.{kind}"
    table = pa.table({"x": list(range(1000)), "s": [str(i) for i in range(1000)]})
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        _arrow(path, table, 100)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError) as caught:
        plan_inputs(InputSpec(paths=(str(path),)), used_columns=None)
    assert caught.value.details["file"] == str(path)


def test_damaged_pages_of_a_parquet_file_are_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"x": list(range(100_000))}), path, compression="zstd")
    plan = plan_inputs(InputSpec(paths=(str(path),)), used_columns=None)
    with open(path, "r+b") as file:
        file.seek(plan.splits[0].offset + 30)
        file.write(b"\xff" * 2000)
    error = _error(_replanned_columnar(plan))
    assert error.details["file"] == str(path)


def test_columns_that_a_job_does_not_use_are_not_read_from_parquet(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    table = pa.table({"a": range(1000), "b": [f"text {n}" for n in range(1000)]})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[data.find(b"text 500")] ^= 1
    path.write_bytes(data)
    used, both = (
        plan_inputs(InputSpec(paths=(str(path),)), used_columns=names) for names in (["a"], ["a", "b"])
    )
    assert [row["a"] for row in _rows(used)] == list(range(1000))
    assert "CRC" in _error(both).message


def test_the_checksums_of_parquet_pages_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    table = pa.table({"x": list(range(1000))})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    plan = plan_inputs(InputSpec(paths=(str(path),)), used_columns=None)
    data = bytearray(path.read_bytes())
    data[data.find((500).to_bytes(8, "little"))] ^= 1  # a value still, but another
    path.write_bytes(data)
    error = _error(_replanned_columnar(plan))
    assert "CRC" in error.message
    assert error.details["file"] == str(path)


def test_a_damaged_footer_of_a_parquet_file_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"columnname": [1]}), path, store_schema=False)
    data = bytearray(path.read_bytes())
    data[data.rfind(b"columnname")] = 0x8E  # in the row group's path; the schema has its own
    path.write_bytes(data)
    error = _error(plan_inputs(InputSpec(paths=(str(path),)), used_columns=None))
    assert error.details["file"] == str(path)


def _replanned_columnar(plan: InputPlan) -> InputPlan:
    file = msgspec.structs.replace(plan.files[0], modified_ns=os.stat(plan.files[0].path).st_mtime_ns)
    return msgspec.structs.replace(plan, files=(file,))


def test_an_arrow_stream_is_told_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f.arrow"
    table = pa.table({"x": [1]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="ARROW1") as caught:
        plan_inputs(InputSpec(paths=(str(path),)), used_columns=None)
    assert "new_file" in caught.value.cure


def test_arrow_record_batches_lie_where_the_footer_says(tmp_path: Path) -> None:
    path = tmp_path / "f.arrow"
    _arrow(path, pa.table({"x": list(range(1000))}), 100)
    plan = plan_inputs(InputSpec(paths=(str(path),)), used_columns=None, split_bytes=1)
    data = path.read_bytes()
    assert [split.rows for split in plan.splits] == [100] * 10
    for split in plan.splits:
        message = pa.ipc.read_message(pa.py_buffer(data[split.offset : split.offset + split.length]))
        assert message.type == "record batch"
    tops = [split.offset + split.length for split in plan.splits]
    assert tops[:-1] == [split.offset for split in plan.splits[1:]]


def test_row_groups_larger_than_a_block_come_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"x": list(range(100_000))}), path)
    plan = plan_inputs(InputSpec(paths=(str(path),)), used_columns=None)
    with _open(plan, block_bytes=100_000) as reader:
        batches = list(reader)
    assert max(batch.nbytes for batch in batches) <= 200_000
    assert [v for batch in batches for v in batch.column(0).to_pylist()] == list(range(100_000))


def _few_long_texts(rows: int) -> pa.Table:
    """One row in eight has a text of 5 KB, of which there are ten."""
    texts = [f"text-{n % 10}-" * 700 if n % 8 == 0 else "short" for n in range(rows)]
    return pa.table({"n": range(rows), "text": texts})


def test_texts_that_are_small_in_a_parquet_file_are_not_decoded_all_at_once(tmp_path: Path) -> None:
    path, table = tmp_path / "f.parquet", _few_long_texts(100_000)
    pq.write_table(table, path, row_group_size=50_000)
    assert path.stat().st_size < 1_000_000
    plan = plan_inputs(InputSpec(paths=(str(path),)), used_columns=None)
    rows, sizes = 0, []
    with arrow_peak() as peak, _open(plan, block_bytes=1 << 20) as reader:
        for batch in reader:
            assert batch.equals(table.slice(rows, batch.num_rows).to_batches()[0])
            assert reader.describe(3) == (-1, f"row {rows + 3} of the file")
            rows += batch.num_rows
            sizes.append(batch.nbytes)
    assert rows == 100_000
    assert max(sizes) < 3 << 20
    assert peak.bytes < 20 << 20  # decoded at once they take 65 MB
    assert len(sizes) < 120  # and not in crumbs


def test_long_texts_after_short_ones_are_read_in_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit in memory is read again, fewer rows at once."""
    path = tmp_path / "f.parquet"
    texts = ["short"] * 100_000 + [f"text-{n % 10}-" * 10_000 for n in range(5000)] + ["short"] * 20_000
    table = pa.table({"n": range(125_000), "text": texts})
    pq.write_table(table, path, row_group_size=1 << 20)
    plan = plan_inputs(InputSpec(paths=(str(path),)), used_columns=None)
    read, failed = pq.ParquetFile.iter_batches, []

    def tight(self: pq.ParquetFile, **how: Any) -> Any:
        for batch in read(self, **how):
            if batch.nbytes > 100 << 20:
                failed.append(batch.num_rows)
                raise pa.ArrowMemoryError("malloc of size 1 failed")
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", tight)
    rows = 0
    with _open(plan) as reader:
        for batch in reader:
            assert batch.equals(table.slice(rows, batch.num_rows).combine_chunks().to_batches()[0])
            assert reader.describe(0) == (-1, f"row {rows} of the file")
            assert batch.nbytes < 3 << 20
            rows += batch.num_rows
    assert rows == 125_000
    assert 1 <= len(failed) <= 3


def test_a_parquet_row_that_does_not_fit_in_memory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"n": range(5000)}), path, row_group_size=1000)
    plan = plan_inputs(InputSpec(paths=(str(path),)), used_columns=None)

    def never(self: pq.ParquetFile, **how: Any) -> Any:
        raise pa.ArrowMemoryError("malloc of size 1 failed")
        yield

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", never)
    error = _error(plan)
    assert isinstance(error.__cause__, MemoryError)
    assert (error.details["file"], error.details["row group"]) == (str(path), "0 of 5")
    assert "--memory" in error.cure


def test_dictionaries_of_long_texts_are_decoded_piece_by_piece(tmp_path: Path) -> None:
    table = _few_long_texts(100_000)
    table = table.set_column(1, "text", table.column(1).dictionary_encode())
    for name in ("f.arrow", "f.parquet"):
        path = tmp_path / name
        if name == "f.arrow":
            _arrow(path, table, 100_000)
        else:
            pq.write_table(table, path)
        plan = plan_inputs(InputSpec(paths=(str(path),)), used_columns=None)
        with arrow_peak() as peak, _open(plan, block_bytes=1 << 20) as reader:
            sizes = [batch.nbytes for batch in reader]
        assert max(sizes) < 3 << 20
        assert peak.bytes < 20 << 20

"""Parts of a file, whatever their size: together they have the file's records, each begins at one."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import resource
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.errors import InputError, PutFailed, UsageError
from cortex.formats import file_parts
from cortex.formats.file_parts import FileParts
from cortex.job.spec import CsvDialect, InputSpec

FIELD = st.text(st.sampled_from('ab,"\n\r 5;é'), max_size=12)


def cut(path: str, part_bytes: int, folder: str, spec: InputSpec | None = None) -> list[bytes]:
    parts = FileParts(path, spec or InputSpec((path,)), part_bytes, folder)
    found = []
    try:
        for number, part in enumerate(parts):
            with open(part.path, "rb") as file:
                file.seek(part.offset)
                data = part.head + file.read(part.length)
            assert len(data) == part.size_bytes
            assert hashlib.sha256(data).hexdigest() == part.sha256
            if not path.endswith(".gz"):
                again = parts.again(number, part)
                assert (again.size_bytes, again.sha256) == (part.size_bytes, part.sha256)
            found.append(data)
    finally:
        parts.close()
    return found


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_parts, "PUT_BLOCK_BYTES_MIN", 1)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(FIELD, min_size=2, max_size=2), max_size=30),
    st.integers(1, 400),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
)
def test_csv(rows: list[list[str]], part_bytes: int, end: str, zipped: bool, header: bool) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator=end).writerows([["x", "y\nz"], *rows])
    data = text.getvalue().encode()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "in.csv.gz" if zipped else "in.csv")
        Path(path).write_bytes(gzip.compress(data, 1) if zipped else data)
        found = cut(path, part_bytes, folder, InputSpec((path,), dialect=CsvDialect(header=header)))
    head = f'"x","y\nz"{end}'.encode() if header else b""
    assert all(part.startswith(head) for part in found)
    assert head + b"".join(part.removeprefix(head) for part in found) == data
    read: list[list[str]] = []
    for part in found:
        records = list(csv.reader(io.StringIO(part.decode(), newline="")))
        read += records[1:] if header else records
    assert read == (rows if header else [["x", "y\nz"], *rows])
    if part_bytes >= 150:
        assert len(found) <= 1 + 2 * len(data) // (part_bytes - 100)


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=500), st.integers(1, 100))
def test_text(data: bytes, part_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "in.log")
        Path(path).write_bytes(data)
        found = cut(path, part_bytes, folder)
    assert b"".join(found) == data
    assert all(part.endswith(b"\n") for part in found[:-1])


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow-lz4"])
@pytest.mark.parametrize("part_bytes", [1, 3000, 1 << 30])
def test_columnar(kind: str, part_bytes: int, tmp_path: Path) -> None:
    table = pa.table(
        {
            "n": range(500),
            "d": pa.array([str(number % 7) for number in range(500)]).dictionary_encode(),
            "l": [[number, None] for number in range(500)],
        }
    ).replace_schema_metadata({"made": "here"})
    path = tmp_path / f"in.{kind.partition('-')[0]}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=50)
    else:
        options = pa.ipc.IpcWriteOptions(compression="lz4" if "-" in kind else None)
        with pa.ipc.new_file(path, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=50)
    found = cut(str(path), part_bytes, str(tmp_path))
    assert len(found) == {1: 10, 1 << 30: 1}.get(part_bytes, len(found))
    read = pq.read_table if kind == "parquet" else lambda data: pa.ipc.open_file(data).read_all()
    tables = [read(pa.BufferReader(part)) for part in found]
    assert pa.concat_tables(tables).equals(table)
    assert tables[0].schema.metadata[b"made"] == b"here"
    if len(found) == 1 and "arrow" in kind:
        assert abs(len(found[0]) - path.stat().st_size) < 2000  # as well compressed


def test_a_file_of_no_rows_is_one_part(tmp_path: Path) -> None:
    (tmp_path / "head.csv").write_text("a,b\n")
    assert cut(str(tmp_path / "head.csv"), 10, str(tmp_path)) == [b"a,b\n"]
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "none.parquet")
    (part,) = cut(str(tmp_path / "none.parquet"), 10, str(tmp_path))
    assert pq.read_table(pa.BufferReader(part)).schema.names == ["a"]


@pytest.mark.parametrize("kind", ["csv.gz", "parquet", "arrow"])
def test_no_room_for_a_temporary_part_is_said_with_its_folder(kind: str, tmp_path: Path) -> None:
    table = pa.table({"a": [os.urandom(1000).hex() for _ in range(200)]})
    path = tmp_path / f"in.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_bytes(gzip.compress(("a\n" + "\n".join(table["a"].to_pylist())).encode()))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(PutFailed, match="File too large") as found:
            cut(str(path), 1 << 20, str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path) in found.value.message


def test_gzip_is_not_read_from_its_middle(tmp_path: Path) -> None:
    path = tmp_path / "in.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 100))
    parts = FileParts(str(path), InputSpec((str(path),)), 100, str(tmp_path))
    made = list(parts)
    with pytest.raises(InputError, match="from its beginning"):
        parts.again(0, made[0])


def test_what_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    for name, data, error in (
        ("none.csv", b"", InputError),
        ("x.csv.bz2", b"BZh9", UsageError),
        ("x.parquet", b"PAR1 and no more", InputError),
        ("twice.csv", b"a,a\n1,2\n", InputError),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(error):
            cut(str(tmp_path / name), 100, str(tmp_path))
    spec = InputSpec((str(tmp_path / "twice.csv"),), dialect=CsvDialect(escape="\\"))
    with pytest.raises(UsageError, match="escape"):
        cut(str(tmp_path / "twice.csv"), 100, str(tmp_path), spec)


@pytest.mark.parametrize(
    ("name", "format_", "ending"),
    [
        ("a.csv", "", ".csv"),
        ("a.dat", "csv", ".csv"),
        ("a.csv", "text", ".txt"),
        ("a.jsonl.gz", "", ".jsonl"),
        ("a", "", ".txt"),
        ("a.TSV", "", ".tsv"),
    ],
)
def test_parts_end_so_that_they_are_taken_for_what_the_file_was(
    name: str, format_: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"x\n") if name.endswith(".gz") else b"x\n")
    assert FileParts(str(path), InputSpec((str(path),), format_), 100, str(tmp_path)).ending == ending

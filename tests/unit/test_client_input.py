"""Files that only the client has, through an executor's real readers: the same rows, bytes bounded.

The client's real answers come over a socket of this process (`tests.client_door`); what is between them on a
cluster has tests of its own.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.client.client_files import FoundFiles
from cortex.errors import CortexError, InputChanged, InputError, NotAllowed
from cortex.formats.input_bytes import LocalBytes, announced
from cortex.job.plan import ClientFile, InputFile
from cortex.job.spec import InputSpec, JobSpec, Resources
from cortex.limits import (
    INPUT_AHEAD_BYTES,
    INPUT_FILES_AHEAD,
    INPUT_KEPT_BYTES,
    INPUT_READ_BYTES,
    INPUT_STREAMS_MAX,
)
from cortex.tasks import client_input, input_link
from cortex.tasks.client_input import ClientBytes, ClientInput
from cortex.wire import messages as m
from tests.client_door import ELSEWHERE, Door, client_door
from tests.one_process import JOB, Outcome, run_tasks


def _table(rows: int) -> pa.Table:
    chance = random.Random(7)
    names = [f'n "{chance.randrange(50)}"\nof many' for _ in range(rows)]
    return pa.table({"name": names, "value": [chance.randrange(1000) for _ in range(rows)], "spare": names})


def _csv(table: pa.Table) -> bytes:
    lines = ["name,value,spare\n"]
    for row in table.to_pylist():
        name = '"' + row["name"].replace('"', '""') + '"'
        lines.append(f"{name},{row['value']},{name}\n")
    return "".join(lines).encode()


def _write(folder: Path, kind: str) -> str:
    table, path = _table(20_000), folder / f"in.{kind}"
    if kind == "csv":
        path.write_bytes(_csv(table))
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(_csv(table), 1))
    elif kind == "parquet":
        pq.write_table(table, path, row_group_size=3000, compression="zstd")
    elif kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=3000)
    return str(path)


def _spec(path: str, split_bytes: int = 100_000, **rest: Any) -> JobSpec:
    resources = Resources(split_bytes=split_bytes, reducers=3)
    aggregation: dict[str, Any] = {
        "reduce_form": "aggregate",
        "group_by": ("name",),
        "aggregate": {"n": "count()", "total": "sum(value)"},
    }
    return JobSpec("job", InputSpec((path,)), resources=resources, **{**aggregation, **rest})


def _far(path: str, spec: JobSpec, code: Any = None) -> tuple[Outcome, Door]:
    with client_door((path,), JOB) as door:
        return run_tasks(spec, code, client_files=door.listed, input_socket=door.socket_path), door


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "arrow"])
@pytest.mark.parametrize("columns", [(), ("name", "value")])
def test_a_file_of_the_clients_gives_the_same_bytes(
    tmp_path: Path, kind: str, columns: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_input, "INPUT_READ_BYTES", 10_000)
    monkeypatch.setattr(client_input, "INPUT_AHEAD_BYTES", 50_000)
    monkeypatch.setattr(client_input, "INPUT_KEPT_BYTES", 1000)
    path = _write(tmp_path, kind)
    rest: dict[str, Any] = {}
    if not columns:
        rest = {"reduce_form": "none", "group_by": (), "aggregate": {}}
    near = run_tasks(_spec(path, **rest))
    far, door = _far(path, _spec(path, **rest))
    assert far.files == near.files
    assert len(far.data) > 1000
    assert far.plan.splits == near.plan.splits
    assert far.plan.files[0].path == os.path.join(ELSEWHERE, path.lstrip("/"))
    assert door.reads
    assert max(read.length for read in door.reads) <= 10_000


class Lines:
    def map(self, line: str) -> Iterator[tuple[str, int]]:
        yield line, 1

    def setup(self) -> None: ...
    def cleanup(self) -> None: ...
    def _take_counters(self) -> dict[str, dict[str, int]]:
        return {}


@pytest.mark.parametrize("split_bytes", [1 << 20, 30_000, 100])
def test_lines_of_text_are_the_same_for_any_split(tmp_path: Path, split_bytes: int) -> None:
    path = tmp_path / "in.txt"
    size = 3000 if split_bytes == 100 else 200_000
    path.write_bytes(b"\xef\xbb\xbf" + "".join(f"{i * i} lïne\r\n" for i in range(size // 10)).encode())
    spec = _spec(str(path), split_bytes, map_form="rows", reduce_form="fold", combine="sum", group_by=())
    spec = msgspec.structs.replace(spec, aggregate={})
    far, _ = _far(str(path), spec, Lines())
    assert far.files == run_tasks(spec, Lines()).files


def test_text_is_asked_for_about_once(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"".join(b"%d some line of text\n" % i for i in range(1_000_000)))
    spec = _spec(str(path), 8 << 20, map_form="rows", reduce_form="fold", combine="sum", group_by=())
    spec = msgspec.structs.replace(spec, aggregate={})
    far, door = _far(str(path), spec, Lines())
    size = path.stat().st_size
    splits = len(far.plan.splits)
    assert splits > 2
    assert sum(read.length for read in door.reads) < size + splits * 200_000
    assert sum(read.length for read in door.reads) >= size


def test_csv_without_quotes_is_not_sent_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scan asks the client where quotes are. One near the end is found, and only it is looked at."""
    monkeypatch.setattr(client_input, "INPUT_FIND_BYTES", 1 << 20)
    path = tmp_path / "in.csv"
    rows = b"".join(b"n%d,%d,some text that is not quoted\n" % (i % 10, i) for i in range(400_000))
    for last in (b"", b'"n\n1",7,x\n'):
        path.write_bytes(b"name,value,spare\n" + rows + last + rows[:100])
        spec = _spec(str(path), 4 << 20)
        far, door = _far(str(path), spec)
        assert far.files == run_tasks(spec).files
        size, splits = path.stat().st_size, len(far.plan.splits)
        assert splits > 3
        assert sum(read.length for read in door.reads) < size + (1 << 20) + splits * 200_000
        assert sum(read.find_bytes for read in door.reads) >= size * 3 // 4
        assert max(read.find_bytes for read in door.reads) == 1 << 20


def test_files_are_announced_before_their_turn_and_come_in_order() -> None:
    heard: list[InputFile] = []
    files = [InputFile(i, f"/{i}", "text", 0, 0, 0) for i in range(100)]
    for place, file in enumerate(announced(files, lambda file: file, heard.append)):
        assert file is files[place]
        assert heard == files[1 : place + INPUT_FILES_AHEAD + 1]
    assert place == 99
    assert list(announced(files[:1], lambda file: file, heard.append)) == files[:1]
    assert len(heard) == 99


def test_small_files_are_read_once_and_their_beginnings_before_their_turn(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(200):
        (folder / f"{i:03d}.txt").write_text(f"line of file {i}\n" * (i % 7))
    (folder / "100.txt").write_text("a longer file\n" * 10_000)
    spec = _spec(str(folder), 1 << 20, map_form="rows", reduce_form="fold", combine="sum", group_by=())
    spec = msgspec.structs.replace(spec, aggregate={})
    with client_door((str(folder),), JOB) as door:
        far = run_tasks(spec, Lines(), client_files=door.listed, input_socket=door.socket_path)
    assert far.files == run_tasks(spec, Lines()).files
    assert len(far.plan.splits) > 160
    whole = sum(path.stat().st_size for path in folder.iterdir())
    assert sum(read.length for read in door.reads) <= 2 * whole + INPUT_KEPT_BYTES  # the plan, then the maps
    assert 3 not in [
        read.length for read in door.reads
    ]  # what a plan looks at, of a file it did not announce
    checks = [read for read in door.reads if not read.length]
    assert len(checks) <= 2 * 29  # of the files that are empty


def test_a_file_that_is_here_as_well_is_read_in_place(tmp_path: Path) -> None:
    path = _write(tmp_path, "csv")
    with client_door((path,), JOB) as door:
        listed = FoundFiles.find((path,)).listed
        run_tasks(_spec(path), client_files=listed, input_socket=door.socket_path)
        assert door.reads == []
        # the same name and size, but another file: the client's is the one that is meant
        os.utime(path, ns=(1, 1))
    with client_door((path,), JOB) as door:
        listed = ((ClientFile(path, os.path.getsize(path), 2),),)
        run_tasks(_spec(path), client_files=listed, input_socket=door.socket_path)
        assert door.reads
    # and the same time, but other bytes
    with client_door((path,), JOB) as door:
        ((true,),) = FoundFiles.find((path,)).listed
        listed = ((msgspec.structs.replace(true, fingerprint=b"of another file"),),)
        run_tasks(_spec(path), client_files=listed, input_socket=door.socket_path)
        assert door.reads
    with client_door((path,), JOB) as door:  # what is compared as a whole is not compared by each executor
        spec = msgspec.structs.replace(_spec(path), input=InputSpec((path,), fingerprint="full"))
        run_tasks(
            spec, client_files=FoundFiles.find((path,), full=True).listed, input_socket=door.socket_path
        )
        assert door.reads


def test_a_bad_record_is_told_with_the_clients_name_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    rows = b"".join(b"k%d,%d,x\n" % (i % 10, i) for i in range(200_000))
    path.write_bytes(b"name,value,spare\n" + rows + b"k1,not a number,x\n" + rows)
    with pytest.raises(InputError) as near:
        run_tasks(_spec(str(path), 1 << 20))
    with pytest.raises(InputError) as far:
        _far(str(path), _spec(str(path), 1 << 20))
    assert far.value.message == near.value.message
    assert far.value.cure == near.value.cure
    assert far.value.details.pop("file") == os.path.join(ELSEWHERE, str(path).lstrip("/"))
    assert near.value.details.pop("file") == str(path)
    assert far.value.details == near.value.details


@pytest.mark.parametrize("how", ["time", "longer", "shorter", "another file"])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path, how: str) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"some line of text\n" * 1_000_000)
    spec = _spec(str(path), 4 << 20, map_form="rows", reduce_form="fold", combine="sum", group_by=())
    spec = msgspec.structs.replace(spec, aggregate={})
    with client_door((str(path),), JOB) as door:

        def change(_read: m.ReadInput) -> None:
            if len(door.reads) == 5:
                if how == "time":
                    os.utime(path, ns=(1, 1))
                elif how == "longer":
                    with path.open("ab") as file:
                        file.write(b"x")
                elif how == "shorter":
                    os.truncate(path, 100)
                else:
                    before = path.stat()
                    other = tmp_path / "other"
                    other.write_bytes(path.read_bytes())
                    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
                    os.replace(other, path)

        door.before_answer = change
        if how == "another file":  # the open one is read on; it was found when the job began
            run_tasks(spec, Lines(), client_files=door.listed, input_socket=door.socket_path)
            return
        with pytest.raises(InputChanged) as found:
            run_tasks(spec, Lines(), client_files=door.listed, input_socket=door.socket_path)
    assert found.value.details["file"] == str(path)


def test_a_file_that_is_replaced_before_it_is_read_is_found_by_its_inode(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"a line\n")
    before = path.stat()
    with client_door((str(path),), JOB) as door:
        (tmp_path / "other").write_bytes(b"b line\n")
        os.utime(tmp_path / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(tmp_path / "other", path)
        with pytest.raises(InputChanged, match="inode"):
            run_tasks(_spec(str(path)), client_files=door.listed, input_socket=door.socket_path)


def test_a_file_that_is_gone_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"a line\n")
    with client_door((str(path),), JOB) as door:
        path.unlink()
        with pytest.raises(InputError, match="cannot be opened"):
            run_tasks(_spec(str(path)), client_files=door.listed, input_socket=door.socket_path)


def test_files_of_another_number_or_job_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"a line\n")
    file = InputFile(0, "/nowhere", "text", 7, 0, 0, client_file=1)
    with client_door((str(path),), JOB) as door:
        way = ClientInput(door.socket_path, JOB, lambda: None)
        with pytest.raises(NotAllowed, match="1 is none of the job's 1 input files"):
            way.open(file).read(7, 0)
        mine = way.open(msgspec.structs.replace(file, client_file=0))
        assert mine.read(7, 0) == b"a line\n"
        way._link._job = "j000000000000"
        other = way.open(msgspec.structs.replace(file, client_file=0))
        with pytest.raises(NotAllowed, match="j000000000000"):
            other.check()
        way.close()


def test_a_read_that_waits_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_link, "INPUT_WAIT_S", 0.01)
    path = tmp_path / "in.txt"
    path.write_bytes(b"a line\n")
    waits: list[float] = []
    let_go = threading.Event()
    with client_door((str(path),), JOB) as door:
        door.before_answer = lambda _read: (let_go.wait(10), None)[1]

        def waiting() -> None:
            waits.append(time.monotonic())
            if len(waits) == 3:
                let_go.set()

        way = ClientInput(door.socket_path, JOB, waiting)
        assert way.open(InputFile(0, "/nowhere", "text", 7, 0, 0, client_file=0)).read(7, 0) == b"a line\n"
        way.close()
    assert len(waits) >= 3


def test_when_the_node_is_gone_a_read_ends_and_one_that_is_back_is_dialed(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"a line\n")
    file = InputFile(0, "/nowhere", "text", 7, 0, 0, client_file=0)
    with client_door((str(path),), JOB) as door:
        way = ClientInput(door.socket_path, JOB, lambda: None)
        assert way.open(file).read(7, 0) == b"a line\n"

        def cut(_read: m.ReadInput) -> None:
            door.before_answer = lambda read: None
            raise ConnectionResetError

        door.before_answer = cut
        far = way.open(file)
        with pytest.raises(CortexError, match="cut off"):
            far.read(7, 0)
        assert far.read(7, 0) == b"a line\n"
        way.close()
    with pytest.raises(CortexError, match="cut off"):
        way.open(file).read(7, 0)


# --- reading ahead ---------------------------------------------------------------------------------


class _FakeLink:
    """Answers at once; counts what was asked for and not yet given out."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []
        self.held: dict[int, int] = {}
        self.held_most = 0

    def ask(self, _file: int, offset: int, length: int) -> tuple[int, int]:
        assert length <= INPUT_READ_BYTES
        assert offset + length <= len(self.data)
        self.asked.append((offset, length))
        self.held[len(self.asked)] = length
        self.held_most = max(self.held_most, sum(self.held.values()))
        return len(self.asked), offset

    def wait(self, answer: tuple[int, int]) -> m.InputBytes:
        number, offset = answer
        return m.InputBytes(number, self.data[offset : offset + self.held.pop(number, 0)])

    def forget(self, answers: Any) -> None:
        for number, _ in answers:
            self.held.pop(number, None)


_SIZE = 40_000_000
_DATA = random.Random(3).randbytes(_SIZE)


def _bytes() -> tuple[ClientBytes, _FakeLink]:
    way = _FakeLink(_DATA)
    return ClientBytes(InputFile(0, "/x", "text", _SIZE, 0, 0, client_file=0), way), way  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, _SIZE), st.integers(0, _SIZE)).map(sorted), max_size=5),
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, _SIZE), st.integers(0, 6_000_000)),
        min_size=1,
        max_size=20,
    ),
)
def test_any_reads_give_the_files_bytes_and_little_more_is_asked_for(
    expected: list[list[int]], reads: list[tuple[int, int, int]]
) -> None:
    """A read goes on where one of the last ended, a little before, or anywhere."""
    data, way = _bytes()
    data.expect((low, high) for low, high in expected)
    ends, total = [0, 0, 0], 0
    for place, offset, length in reads:
        if place < 3:
            offset = max(0, ends[place] - offset % 1000)
            ends[place] = min(_SIZE, offset + length)
        assert data.read(length, offset) == _DATA[offset : offset + length]
        total += min(length, max(0, _SIZE - offset))
    assert way.held_most <= 2 * INPUT_AHEAD_BYTES + INPUT_READ_BYTES
    assert sum(length for _, length in way.asked) <= total + len(reads) * INPUT_AHEAD_BYTES
    data.close()
    assert way.held == {}


def test_a_file_read_from_end_to_end_is_asked_for_once_and_ahead() -> None:
    data, way = _bytes()
    data.expect([(0, _SIZE)])
    position = 0
    while position < _SIZE:
        got = data.read(300_000, max(0, position - 100))
        position += len(got) - (100 if position else 0)
        assert (
            position == _SIZE
            or sum(way.held.values()) >= INPUT_AHEAD_BYTES // 2 - INPUT_READ_BYTES
            or (sum(length for _, length in way.asked) == _SIZE)
        )
    assert sum(length for _, length in way.asked) == _SIZE
    assert len(way.asked) < 2 * _SIZE / INPUT_READ_BYTES


def test_nothing_is_asked_for_that_nobody_expects() -> None:
    data, way = _bytes()
    for offset in range(0, 10_000_000, 100_000):
        data.read(100_000, offset)
    assert way.held == {}
    assert sum(length for _, length in way.asked) == 10_000_000


def test_many_columns_read_by_turns_hold_little() -> None:
    data, way = _bytes()
    columns = [(column * 400_000, column * 400_000 + 400_000) for column in range(100)]
    data.expect(columns)
    for step in range(0, 400_000, 20_000):
        for low, _ in columns[:40]:
            assert data.read(20_000, low + step) == _DATA[low + step : low + step + 20_000]
    assert sum(length for _, length in way.asked) == 40 * 400_000
    kept = sum(len(piece.data) for stream in data._streams for piece in stream.pieces)
    assert kept <= INPUT_AHEAD_BYTES + INPUT_STREAMS_MAX * 2 * INPUT_KEPT_BYTES
    assert way.held_most <= INPUT_AHEAD_BYTES + 20_000


def test_arrow_reads_it_like_a_file(tmp_path: Path) -> None:
    file = io.BytesIO()
    pq.write_table(_table(100), file)
    (tmp_path / "x").write_bytes(file.getvalue())
    status = (tmp_path / "x").stat()
    listed = InputFile(0, str(tmp_path / "x"), "parquet", status.st_size, status.st_mtime_ns, status.st_ino)
    with client_door((str(tmp_path / "x"),), JOB) as door:
        way = ClientInput(door.socket_path, JOB, lambda: None)
        far = way.open(msgspec.structs.replace(listed, client_file=0, path="/nowhere"))
        near = LocalBytes(listed)
        with far.native() as there, near.native() as here:
            assert there.size() == here.size()
            assert there.read() == here.read()
            there.seek(-4, 2)
            assert (there.tell(), there.read(10)) == (status.st_size - 4, b"PAR1")
        far.close()
        near.close()
        way.close()

"""One suite over the map output store on a disk and in memory; and what only a disk can do wrong."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cortex.errors import CorruptRun, Fault, InternalError, SpillFull, TooManyOpenFiles, UsageError
from cortex.storage import filesystem
from cortex.storage.filesystem import Filesystem, LocalFilesystem, is_memory_backed, refuse_memory_backed
from cortex.storage.map_output_store import MapOutputStore
from cortex.storage.run_arrow import ENTRY
from cortex.storage.run_reader import OpenFiles, RunFileReader
from cortex.storage.run_writer import RunFileWriter
from cortex.storage.spill_quota import SpillQuota
from tests.faulty_filesystem import FaultyFilesystem
from tests.memory_filesystem import MemoryFilesystem

ATTEMPT = "j0123456789ab-m000001.0"
OTHER = "j0123456789ab-m000002.0"
SCHEMA = pa.schema([("h", pa.uint64()), ("v", pa.string())])


def batch(first: int, rows: int, text: str = "x") -> pa.RecordBatch:
    hashes = np.arange(first, first + rows, dtype=np.uint64)
    return pa.record_batch([pa.array(hashes), pa.array([text] * rows)], schema=SCHEMA)


def fill(writer: RunFileWriter) -> None:
    for _ in range(2):
        writer.begin_run(SCHEMA)
        writer.append(0, batch(0, 10), 0, 9)
        writer.append(0, batch(10, 5), 10, 14)
        writer.append(3, batch(2**40, 7), 2**40, 2**40 + 6)
        writer.end_run()


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> MapOutputStore:
    fs: Filesystem = LocalFilesystem() if request.param == "disk" else MemoryFilesystem()
    if isinstance(fs, MemoryFilesystem):
        fs.folders.add(str(tmp_path))
    return MapOutputStore(fs, str(tmp_path / "job"))


def test_what_is_committed_is_read_back(store: MapOutputStore) -> None:
    writer = store.create(ATTEMPT)
    fill(writer)
    assert store.committed() == []
    summary = store.commit(writer, ATTEMPT)
    assert store.committed() == [ATTEMPT]
    assert (summary.rows, summary.partition_rows, summary.runs) == (44, (30, 0, 0, 14), 2)
    reader = store.open(ATTEMPT)
    assert [len(run.all_entries) for run in reader.runs] == [3, 3]
    assert [entries["rows"].tolist() for entries in reader.entries(0)] == [[10, 5], [10, 5]]
    assert [len(entries) for entries in reader.entries(1)] == [0, 0]
    assert reader.runs[1].schema == SCHEMA
    assert list(reader.runs[1].batches(0)) == [batch(0, 10), batch(10, 5)]
    assert list(reader.runs[0].batches(3)) == [batch(2**40, 7)]
    assert (reader.rows(), reader.rows(3), reader.rows(9)) == (44, 14, 0)


def test_a_reader_of_one_partition_holds_only_its_entries(store: MapOutputStore) -> None:
    writer = store.create(ATTEMPT)
    fill(writer)
    store.commit(writer, ATTEMPT)
    run = store.open(ATTEMPT, partition=3).runs[0]
    assert run.all_entries["partition"].tolist() == [3]
    assert run.all_entries.base is None  # no view that keeps the whole index
    assert list(run.batches(3)) == [batch(2**40, 7)]


def test_a_missing_output_is_lost_not_fatal(store: MapOutputStore) -> None:
    with pytest.raises(CorruptRun) as caught:
        store.open(ATTEMPT)
    assert caught.value.fault is Fault.LOST
    assert ATTEMPT in caught.value.message


def test_an_uncommitted_output_cannot_be_opened(store: MapOutputStore) -> None:
    fill(store.create(ATTEMPT))
    with pytest.raises(CorruptRun):
        store.open(ATTEMPT)


def test_a_second_try_begins_anew(store: MapOutputStore) -> None:
    fill(store.create(ATTEMPT))
    writer = store.create(ATTEMPT)
    assert store.commit(writer, ATTEMPT).rows == 0
    assert store.open(ATTEMPT).rows() == 0


def test_discard_and_remove_all(store: MapOutputStore) -> None:
    for attempt in (ATTEMPT, OTHER):
        writer = store.create(attempt)
        fill(writer)
        store.commit(writer, attempt)
    store.open(ATTEMPT)
    store.discard(ATTEMPT)
    store.discard(ATTEMPT)
    assert store.committed() == [OTHER]
    store.open(OTHER)
    store.remove_all()
    store.remove_all()
    with pytest.raises(CorruptRun):
        store.open(OTHER)


def test_an_attempt_id_cannot_name_another_file(store: MapOutputStore) -> None:
    for bad in ("../x", "j0123456789ab-m000001.0/../y", ""):
        with pytest.raises(InternalError):
            store.open(bad)


def test_wrong_use_is_an_error(store: MapOutputStore) -> None:
    writer = store.create(ATTEMPT)
    with pytest.raises(InternalError, match="no run"):
        writer.append(0, batch(0, 1), 0, 0)
    writer.begin_run(SCHEMA)
    with pytest.raises(InternalError, match="run is open"):
        writer.begin_run(SCHEMA)
    with pytest.raises(InternalError, match="run is open"):
        writer.close()
    writer.append(2, batch(5, 2), 5, 6)
    with pytest.raises(InternalError, match="out of order"):
        writer.append(1, batch(9, 1), 9, 9)
    with pytest.raises(InternalError, match="out of order"):
        writer.append(2, batch(4, 1), 4, 4)
    with pytest.raises(InternalError, match="run is of"):
        writer.append(3, pa.record_batch({"other": [1]}), 9, 9)


@pytest.mark.parametrize(
    "kind",
    [
        pa.dictionary(pa.int32(), pa.string()),
        pa.string_view(),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
        pa.struct([("a", pa.binary_view())]),
    ],
)
def test_types_that_a_block_cannot_hold_are_refused(store: MapOutputStore, kind: pa.DataType) -> None:
    with pytest.raises(InternalError, match="'c'"):
        store.create(ATTEMPT).begin_run(pa.schema([("c", kind)]))


# --- on a disk ------------------------------------------------------------------------------------


def write_file(fs: Filesystem, path: Path, compression: str | None = "lz4") -> None:
    writer = RunFileWriter(fs, str(path), compression)  # type: ignore[arg-type]
    fill(writer)
    writer.close()


def read_all(fs: Filesystem, path: Path) -> list[pa.RecordBatch]:
    reader = RunFileReader(fs, str(path))
    try:
        return [batch for run in reader.runs for p in (0, 3) for batch in run.batches(p)]
    finally:
        reader.close()


def test_files_are_private(tmp_path: Path) -> None:
    store = MapOutputStore(LocalFilesystem(), str(tmp_path / "job"))
    store.commit(store.create(ATTEMPT), ATTEMPT)
    assert stat.S_IMODE(os.stat(store.work_dir).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(store.path(ATTEMPT)).st_mode) == 0o600


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("x")
    (tmp_path / "run").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        RunFileWriter(LocalFilesystem(), str(tmp_path / "run"))
    with pytest.raises(CorruptRun):
        RunFileReader(LocalFilesystem(), str(tmp_path / "run"))
    assert (tmp_path / "victim").read_text() == "x"


@pytest.mark.parametrize("compression", ["lz4", None])
def test_every_flipped_bit_is_found(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "run"
    write_file(LocalFilesystem(), path, compression)
    whole = path.read_bytes()
    assert len(read_all(LocalFilesystem(), path)) == 6
    rng = np.random.default_rng(0)
    for at in {
        *range(64),
        *range(8 * len(whole) - 400, 8 * len(whole)),
        *rng.integers(0, 8 * len(whole), 400),
    }:
        path.unlink()
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << int(at) % 8
        path.write_bytes(damaged)
        with pytest.raises(CorruptRun) as caught:
            read_all(LocalFilesystem(), path)
        assert caught.value.details["file"] == str(path)


def test_a_damaged_file_is_not_left_open(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_file(LocalFilesystem(), path)
    path.write_bytes(path.read_bytes()[:-1])
    kept = []
    for _ in range(20):
        with pytest.raises(CorruptRun) as caught:
            RunFileReader(LocalFilesystem(), str(path))
        kept.append(caught.value)  # as long as somebody has the error, its frames have the reader
    links = (os.readlink(f"/dev/fd/{fd}") for fd in os.listdir("/dev/fd") if os.path.exists(f"/dev/fd/{fd}"))
    assert str(path) not in links


def test_every_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_file(LocalFilesystem(), path)
    whole = path.read_bytes()
    for length in [*range(64), *range(64, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptRun):
            RunFileReader(LocalFilesystem(), str(path))


def test_a_file_cut_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_file(LocalFilesystem(), path)
    reader = RunFileReader(LocalFilesystem(), str(path))
    os.truncate(path, 100)
    with pytest.raises(CorruptRun, match="missing") as caught:
        list(reader.runs[1].batches(3))
    assert int(caught.value.details["offset"]) > 100


def test_a_disk_that_cannot_read_loses_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_file(LocalFilesystem(), path)
    fs = FaultyFilesystem()
    read_all(fs, path)
    for n in range(len(fs.calls)):
        with pytest.raises(CorruptRun):
            read_all(FaultyFilesystem(fail_at=n), path)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    fs = FaultyFilesystem(capacity_bytes=1_000)
    store = MapOutputStore(fs, str(tmp_path / "job"), quota=SpillQuota(fs, str(tmp_path), -(2**30)))
    writer = store.create(ATTEMPT)
    fill(writer)
    with pytest.raises(SpillFull) as caught:
        store.commit(writer, ATTEMPT)
    assert caught.value.details["folder"] == str(tmp_path / "job")
    assert int(caught.value.details["bytes"]) > 0
    assert "free space" in caught.value.cure
    assert os.listdir(store.work_dir) == []  # the half-written file is gone


def test_a_disk_that_is_full_from_the_start_leaves_no_file_and_no_descriptor(tmp_path: Path) -> None:
    fs = LocalFilesystem()
    store = MapOutputStore(fs, str(tmp_path / "job"), quota=SpillQuota(fs, str(tmp_path), 1 << 60))
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    with pytest.raises(SpillFull):
        store.create(ATTEMPT)
    assert os.listdir(store.work_dir) == []
    again = os.open(os.devnull, os.O_RDONLY)
    os.close(again)
    assert again == probe


def test_the_reserve_is_not_taken(tmp_path: Path) -> None:
    fs = FaultyFilesystem(capacity_bytes=10_000)
    quota = SpillQuota(fs, str(tmp_path), reserve_bytes=6_000)
    quota.take(3_000)
    with pytest.raises(SpillFull, match="no space") as caught:
        quota.take(5_000)
    assert "kept free" in caught.value.details["cause"]


def test_free_space_is_not_asked_for_at_each_write(tmp_path: Path) -> None:
    fs = FaultyFilesystem()
    quota = SpillQuota(fs, str(tmp_path))
    for _ in range(1000):
        quota.take(100_000)
    assert 5 <= len(fs.calls) <= 7


def test_other_disk_errors_are_not_dressed_up(tmp_path: Path) -> None:
    fs = FaultyFilesystem(fail_at=2, error=errno.EIO)  # create, free_bytes, then the first write
    with pytest.raises(OSError, match="Input/output"):
        write_file(fs, tmp_path / "run")


def test_few_descriptors_serve_many_runs(tmp_path: Path) -> None:
    fs = FaultyFilesystem()
    files = OpenFiles(fs, files_max=3)
    readers = []
    for i in range(10):
        write_file(fs, tmp_path / str(i))
        readers.append(RunFileReader(fs, str(tmp_path / str(i)), files))
    assert len(files) == 3
    for reader in readers:
        assert list(reader.runs[0].batches(3)) == [batch(2**40, 7)]
    assert len(files) == 3
    files.close()
    assert len(files) == 0


def test_what_lz4_does_not_shorten_is_stored_as_it_is(tmp_path: Path) -> None:
    noise = pa.record_batch({"h": np.random.default_rng(0).integers(0, 2**63, 5000)})
    writer = RunFileWriter(LocalFilesystem(), str(tmp_path / "run"))
    writer.begin_run(noise.schema)
    writer.append(0, noise, 0, 1)
    writer.append(1, pa.record_batch({"h": np.zeros(5000, np.int64)}), 1, 1)
    writer.end_run()
    writer.close()
    entries = RunFileReader(LocalFilesystem(), str(tmp_path / "run")).runs[0].all_entries
    assert entries["stored_bytes"][0] == entries["raw_bytes"][0]
    assert entries.dtype == ENTRY


def test_memory_disks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.path.isdir("/dev/shm") and os.path.exists("/proc/self/mountinfo"):
        assert is_memory_backed("/dev/shm")
    assert is_memory_backed("/proc") is False
    monkeypatch.setattr(filesystem, "is_memory_backed", lambda path: True)
    with pytest.raises(UsageError, match="tmpfs"):
        refuse_memory_backed(str(tmp_path))


def test_a_low_limit_of_open_files_is_kept_to(tmp_path: Path) -> None:
    """Where a process may open fewer files than a merge has runs, good files are not taken for damaged."""

    class Limited(LocalFilesystem):
        allowed, opened = 5, 0

        def open(self, path: str) -> Any:
            if self.opened == self.allowed:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
            self.opened += 1
            file, fs = super().open(path), self

            class Counted:
                size_bytes = file.size_bytes

                def pread(self, length: int, offset: int) -> bytes:
                    return file.pread(length, offset)

                def close(self) -> None:
                    fs.opened -= 1
                    file.close()

            return Counted()

    fs = Limited()
    store = MapOutputStore(fs, str(tmp_path / "job"))
    names = [f"j0123456789ab-m{index:06d}.0" for index in range(20)]
    for name in names:
        writer = store.create(name)
        fill(writer)
        store.commit(writer, name)
    readers = [store.open(name, 0) for name in names]
    for _ in range(3):
        assert sum(b.num_rows for r in readers for run in r.runs for b in run.batches(0)) == 20 * 30
    store.close()
    assert fs.opened == 0
    fs.allowed = 0
    with pytest.raises(TooManyOpenFiles, match="cannot be opened"):
        store.open(names[0], 0)

"""Segments: planned and cut out of run files, received under private names, checked and committed."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cortex.errors import CorruptRun, Fault, InternalError, SpillFull, TooManyOpenFiles
from cortex.storage import filesystem
from cortex.storage.fetched_segments import FetchedSegments
from cortex.storage.file_names import segment_path
from cortex.storage.filesystem import LocalFilesystem
from cortex.storage.map_output_store import MapOutputStore
from cortex.storage.run_format import MAGIC, Combined, RunInfo, StandsFor, encode_footer
from cortex.storage.run_reader import RunFileReader
from cortex.storage.run_writer import RunFileWriter
from cortex.storage.segment_file import SegmentCutter, check_segment, plan_segment
from cortex.storage.spill_quota import SpillQuota
from tests.faulty_filesystem import FaultyFilesystem

ATTEMPT = "j0123456789ab-m000001.0"
SCHEMA = pa.schema([("h", pa.uint64()), ("v", pa.string())])
OTHER_SCHEMA = pa.schema([("h", pa.uint64()), ("n", pa.int64())])
FS = LocalFilesystem()


def batch(first: int, rows: int, text: str = "x") -> pa.RecordBatch:
    hashes = np.arange(first, first + rows, dtype=np.uint64)
    return pa.record_batch([pa.array(hashes), pa.array([text] * rows)], schema=SCHEMA)


def numbers(first: int, rows: int) -> pa.RecordBatch:
    hashes = np.arange(first, first + rows, dtype=np.uint64)
    noise = np.random.default_rng(first).integers(0, 2**62, rows)
    return pa.record_batch([pa.array(hashes), pa.array(noise)], schema=OTHER_SCHEMA)


def write_run_file(path: Path) -> None:
    """Partition 0 in every run, 1 in none, 2 in the last, 3 in the first and the last."""
    writer = RunFileWriter(FS, str(path))
    writer.begin_run(SCHEMA)
    writer.append(0, batch(0, 500), 0, 499)
    writer.append(0, batch(500, 5), 500, 504)
    writer.append(3, batch(2**40, 7), 2**40, 2**40 + 6)
    writer.end_run()
    writer.begin_run(SCHEMA)
    writer.append(0, batch(7, 9, "longer text"), 7, 15)
    writer.end_run()
    writer.begin_run(OTHER_SCHEMA)
    writer.append(0, numbers(1, 4000), 1, 4000)
    writer.append(2, numbers(2, 3), 2, 4)
    writer.append(3, numbers(3, 30), 3, 32)
    writer.end_run()
    writer.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "whole.run"
    write_run_file(path)
    return path


def read_on(cutter: SegmentCutter, bytes_max: int, given: bytearray) -> None:
    while not cutter.ended:
        some = cutter.read(bytes_max)
        assert some
        given += b"".join(some)


def cut(path: Path, partition: int, bytes_max: int = 1 << 20) -> bytes:
    given = bytearray()
    read_on(SegmentCutter(FS, plan_segment(FS, str(path), partition)), bytes_max, given)
    return bytes(given)


def content(path: Path, partition: int) -> list[tuple[pa.Schema, list[pa.RecordBatch]]]:
    runs = RunFileReader(FS, str(path)).runs
    return [(run.schema, list(run.batches(partition))) for run in runs if len(run.entries(partition))]


@pytest.mark.parametrize("partition", [0, 1, 2, 3, 4095])
@pytest.mark.parametrize("bytes_max", [1, 100, 5_000, 1 << 20])
def test_a_segment_is_a_run_file_of_one_partition(
    source: Path, tmp_path: Path, partition: int, bytes_max: int
) -> None:
    plan = plan_segment(FS, str(source), partition)
    segment = tmp_path / "segment"
    segment.write_bytes(cut(source, partition, bytes_max))
    assert segment.stat().st_size == plan.size_bytes
    assert check_segment(FS, str(segment), partition) == plan.rows
    assert (
        RunFileReader(FS, str(segment)).rows() == plan.rows == RunFileReader(FS, str(source)).rows(partition)
    )
    assert content(segment, partition) == content(source, partition)


def test_pieces_are_bounded_and_blocks_that_fit_stay_whole(source: Path) -> None:
    plan = plan_segment(FS, str(source), 0)
    for bytes_max in (10, 1000, 40_000):
        cutter = SegmentCutter(FS, plan)
        while not cutter.ended:
            around = len(MAGIC) + len(plan.tail)
            assert sum(map(len, cutter.read(bytes_max))) <= bytes_max + around


def test_every_flipped_bit_of_a_segments_blocks_is_found_before_it_is_given(source: Path) -> None:
    plan = plan_segment(FS, str(source), 3)
    good = cut(source, 3)
    whole = source.read_bytes()
    blocks = [entry for run in RunFileReader(FS, str(source)).runs for entry in run.entries(3)]
    for begin, size in ((int(block["offset"]), int(block["stored_bytes"])) for block in blocks):
        for at, bytes_max in itertools.product((begin, begin + size // 2, begin + size - 1), (50, 1 << 20)):
            damaged = bytearray(whole)
            damaged[at] ^= 4
            source.write_bytes(damaged)
            cutter, given = SegmentCutter(FS, plan), bytearray()
            with pytest.raises(CorruptRun) as caught:
                read_on(cutter, bytes_max, given)
            cutter.close()
            assert int(caught.value.details["offset"]) == begin
            assert given == good[: len(given)] or bytes_max < size
    source.write_bytes(whole)
    assert cut(source, 3) == good


def test_a_damaged_missing_or_short_source_is_lost(source: Path, tmp_path: Path) -> None:
    whole = source.read_bytes()
    for length in (0, 7, 60, len(whole) // 2, len(whole) - 1):
        source.write_bytes(whole[:length])
        with pytest.raises(CorruptRun) as caught:
            plan_segment(FS, str(source), 0)
        assert caught.value.fault is Fault.LOST
    with pytest.raises(CorruptRun):
        plan_segment(FS, str(tmp_path / "none"), 0)
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(CorruptRun):
        plan_segment(FS, str(tmp_path / "link"), 0)
    source.write_bytes(whole)
    plan = plan_segment(FS, str(source), 0)
    os.truncate(source, 1000)
    cutter = SegmentCutter(FS, plan)
    with pytest.raises(CorruptRun, match="missing"):
        read_on(cutter, 1 << 20, bytearray())


def test_an_entry_that_points_outside_is_corrupt(source: Path) -> None:
    entry = np.zeros(1, [("p", "<u4"), ("rows", "<u4"), ("at", "<u8"), ("rest", "<u4", 8)])
    for offset in (0, 2**63):
        entry["at"] = offset
        source.write_bytes(MAGIC + encode_footer(entry.tobytes(), [RunInfo(b"", 1)]))
        with pytest.raises(CorruptRun, match="outside"):
            plan_segment(FS, str(source), 0)


def test_a_limit_of_open_files_is_not_taken_for_damage(source: Path) -> None:
    for error in (errno.EMFILE, errno.ENFILE):
        with pytest.raises(TooManyOpenFiles):
            plan_segment(FaultyFilesystem(fail_at=0, error=error), str(source), 0)


def test_a_disk_that_cannot_read_loses_the_run(source: Path) -> None:
    def cut_from(fs: FaultyFilesystem) -> None:
        cutter = SegmentCutter(fs, plan_segment(fs, str(source), 0))
        while not cutter.ended:
            cutter.read(3000)

    whole = FaultyFilesystem()
    cut_from(whole)
    for n in range(len(whole.calls)):
        with pytest.raises(CorruptRun):
            cut_from(FaultyFilesystem(fail_at=n))


# --- received ---------------------------------------------------------------------------------------


def receive(store: FetchedSegments, data: bytes, partition: int = 3, size_bytes: int | None = None) -> int:
    incoming = store.create(ATTEMPT, partition, len(data) if size_bytes is None else size_bytes)
    try:
        for at in range(0, len(data), 1000):
            incoming.write([data[at : at + 500], data[at + 500 : at + 1000]])
        return incoming.commit()
    except BaseException:
        incoming.abort()
        raise


def test_a_received_segment_is_read_as_the_run_file_would_be(source: Path, tmp_path: Path) -> None:
    store = MapOutputStore(FS, str(tmp_path / "job"))
    fetched = FetchedSegments(FS, store.work_dir)
    incoming = fetched.create(ATTEMPT, 3, len(cut(source, 3)))
    incoming.write([cut(source, 3)])
    with pytest.raises(CorruptRun, match=r"m000001.0.run"):
        store.open(ATTEMPT, 3)  # not before it is committed
    assert incoming.commit() == 37
    reader = store.open(ATTEMPT, 3)
    assert reader.path == incoming.path == f"{store.work_dir}/{ATTEMPT}.p00003.segment"
    assert [list(run.batches(3)) for run in reader.runs] == [batches for _, batches in content(source, 3)]
    assert store.committed() == []
    with pytest.raises(CorruptRun):
        store.open(ATTEMPT, 2)
    with pytest.raises(CorruptRun):
        store.open(ATTEMPT)
    fetched.remove(fetched.set_aside(ATTEMPT, 3))
    assert fetched.set_aside(ATTEMPT, 3) == ""
    assert os.listdir(store.work_dir) == []


def test_the_nodes_own_run_file_comes_before_a_segment(source: Path, tmp_path: Path) -> None:
    store = MapOutputStore(FS, str(tmp_path / "job"))
    receive(FetchedSegments(FS, store.work_dir), cut(source, 3))
    os.rename(source, store.path(ATTEMPT))
    assert store.open(ATTEMPT, 3).path == store.path(ATTEMPT)


def test_what_is_not_the_segment_that_was_asked_for_is_refused(source: Path, tmp_path: Path) -> None:
    store = FetchedSegments(FS, str(tmp_path))
    good = cut(source, 3)
    before = set(os.listdir(tmp_path))
    for data, partition, size in (
        (good[:-1], 3, None),
        (good, 3, len(good) + 1),
        (good, 2, None),
        (source.read_bytes(), 3, None),
        (good[:8] + good[9:], 3, None),
        (b"", 3, None),
    ):
        with pytest.raises(CorruptRun):
            receive(store, data, partition, size)
        assert set(os.listdir(tmp_path)) == before


def test_any_flip_in_a_received_footer_is_found(source: Path, tmp_path: Path) -> None:
    store = FetchedSegments(FS, str(tmp_path))
    good = cut(source, 3)
    for at in range(len(good) - len(plan_segment(FS, str(source), 3).tail), len(good)):
        damaged = bytearray(good)
        damaged[at] ^= 1
        with pytest.raises(CorruptRun):
            receive(store, bytes(damaged))


def test_only_attempt_ids_and_partitions_name_segments(tmp_path: Path) -> None:
    store = FetchedSegments(FS, str(tmp_path))
    for attempt in ("../x", "", f"{ATTEMPT}/../y", f"{ATTEMPT}\n", f"{ATTEMPT}.p00001"):
        with pytest.raises(InternalError):
            store.create(attempt, 0, 1)
        with pytest.raises(InternalError):
            store.set_aside(attempt, 0)
    for partition in (-1, 4096, 10**9):
        with pytest.raises(InternalError):
            segment_path("/x", ATTEMPT, partition)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_named_and_nothing_is_left(source: Path, tmp_path: Path) -> None:
    data, folder = cut(source, 0), tmp_path / "job"
    folder.mkdir()
    for fs, quota in (
        (FaultyFilesystem(capacity_bytes=2_500), None),
        (FaultyFilesystem(capacity_bytes=2_500), -(2**30)),
        (FaultyFilesystem(capacity_bytes=10_000), 9_000),
    ):
        reserve = SpillQuota(fs, str(folder)) if quota is None else SpillQuota(fs, str(folder), quota)
        with pytest.raises(SpillFull):
            receive(FetchedSegments(fs, str(folder), reserve), data, 0)
        assert os.listdir(folder) == []


def test_a_disk_that_fails_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    data, folder = cut(source, 3), tmp_path / "job"
    folder.mkdir()
    counting = FaultyFilesystem()
    receive(FetchedSegments(counting, str(folder)), data)
    for n, (name, _) in enumerate(counting.calls):
        for left in folder.iterdir():
            left.unlink()
        with pytest.raises((OSError, CorruptRun)):
            receive(FetchedSegments(FaultyFilesystem(fail_at=n), str(folder)), data)
        assert list(folder.iterdir()) == [], name


def test_two_tries_of_one_segment_do_not_meet(source: Path, tmp_path: Path) -> None:
    store = FetchedSegments(FS, str(tmp_path / "job"))
    (tmp_path / "job").mkdir()
    data = cut(source, 3)
    stuck = store.create(ATTEMPT, 3, len(data))
    stuck.write([data[:10]])
    assert receive(store, data) == 37
    stuck.abort()
    stuck.abort()
    assert os.listdir(store.work_dir) == [f"{ATTEMPT}.p00003.segment"]


def test_segments_are_received_by_several_threads(source: Path, tmp_path: Path) -> None:
    store = FetchedSegments(FS, str(tmp_path / "job"))
    (tmp_path / "job").mkdir()
    data = cut(source, 3)
    rows: list[int] = []

    def receive_some() -> None:
        for _ in range(20):
            rows.append(receive(store, data))

    threads = [threading.Thread(target=receive_some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows == [37] * 80
    assert os.listdir(store.work_dir) == [f"{ATTEMPT}.p00003.segment"]


@pytest.mark.parametrize("short", [False, True])
def test_any_number_of_pieces_is_written_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    writev = os.writev
    if short:  # as a disk that is about to be full, or a signal, makes it
        monkeypatch.setattr(os, "writev", lambda fd, pieces: writev(fd, [b"".join(pieces)[:1_000]]))
    pieces = [bytes([i % 251]) * (i % 7) for i in range(3_000)]
    file = FS.create(str(tmp_path / "file"))
    assert file.write_all(pieces) == sum(map(len, pieces)) == file.tell()
    assert file.write_all([]) == 0
    file.close()
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


def test_what_is_in_the_page_cache_is_read_without_waiting(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, into = FS.open(str(source)), bytearray(1_000)
    if file.read_cached(memoryview(into), 500):  # a system or a disk may not be able to tell
        assert into == source.read_bytes()[500:1_500]
    assert not file.read_cached(memoryview(into), source.stat().st_size - 999)
    monkeypatch.setattr(filesystem, "_NO_WAIT", None)
    assert not file.read_cached(memoryview(into), 0)
    file.close()
    assert not file.read_cached(memoryview(into), 0)


def test_pieces_from_the_page_cache_are_those_of_the_disk(source: Path) -> None:
    plan, scratch = plan_segment(FS, str(source), 0), memoryview(bytearray(70_000))
    cutter, given, cached = SegmentCutter(FS, plan), bytearray(), 0
    assert cutter.read_cached(scratch) == []  # its file's ends are for threads
    while not cutter.ended:
        pieces = cutter.read_cached(scratch)
        cached += len(pieces)
        given += b"".join(pieces or cutter.read(400))
    assert given == cut(source, 0)
    assert cached > 0 or not hasattr(os, "RWF_NOWAIT")


def test_a_node_needs_neither_numpy_nor_arrow_for_it() -> None:
    code = (
        "import sys, cortex.transfer.segment_fetcher, cortex.transfer.segment_server\n"
        "from cortex.transfer.buffers import keep_freed_buffers\n"
        "keep_freed_buffers()\n"
        "sys.exit(bool({'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- what a combined file stands for ---

MEMBERS = tuple(f"j0123456789ab-m00000{index}.0" for index in (1, 4, 7))


def write_combined_file(path: Path) -> Combined:
    combined = Combined(MEMBERS, {0: StandsFor(90, 9000, 0b111), 3: StandsFor(2**40, 2**50, 0b101)})
    writer = RunFileWriter(FS, str(path))
    writer.begin_run(SCHEMA)
    writer.append(0, batch(0, 50), 0, 49)
    writer.append(3, batch(2**40, 7), 2**40, 2**40 + 6)
    writer.end_run()
    writer.close(combined)
    return combined


def test_a_combined_file_says_what_it_stands_for_and_so_do_its_segments(tmp_path: Path) -> None:
    source, segment = tmp_path / "combined.run", tmp_path / "segment"
    assert RunFileReader(FS, str(source_of(tmp_path))).combined is None
    combined = write_combined_file(source)
    assert RunFileReader(FS, str(source)).combined == combined
    segment.write_bytes(cut(source, 3))
    assert plan_segment(FS, str(source), 3).members == (MEMBERS[0], MEMBERS[2])
    found = RunFileReader(FS, str(segment)).combined
    assert found == Combined((MEMBERS[0], MEMBERS[2]), {3: StandsFor(2**40, 2**50, 0b11)})
    assert check_segment(FS, str(segment), 3, (MEMBERS[0], MEMBERS[2])) == 7
    assert plan_segment(FS, str(source), 1).members == ()  # nobody has rows of it


def source_of(tmp_path: Path) -> Path:
    path = tmp_path / "plain.run"
    write_run_file(path)
    return path


@pytest.mark.parametrize("members", [(), MEMBERS[:1], (MEMBERS[2], MEMBERS[0]), MEMBERS])
def test_a_segment_that_stands_for_other_outputs_is_refused(tmp_path: Path, members: tuple[str, ...]) -> None:
    source, segment = tmp_path / "combined.run", tmp_path / "segment"
    write_combined_file(source)
    segment.write_bytes(cut(source, 3))
    with pytest.raises(CorruptRun, match="stands for 2 map outputs"):
        check_segment(FS, str(segment), 3, members)
    plain = tmp_path / "plain"
    plain.write_bytes(cut(source_of(tmp_path), 3))
    if members:
        with pytest.raises(CorruptRun, match="stands for 0 map outputs"):
            check_segment(FS, str(plain), 3, members)

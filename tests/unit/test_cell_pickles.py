"""Pickles of cells, and files of those that are large."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest

from cortex.errors import ErrorReport, OutputFailed, SpillFull, UserCodeError
from cortex.limits import ATTACH_BYTES, ATTACHED_ALIGN_BYTES, CELL_BUFFER_BYTES_MIN
from cortex.tasks import attached_files
from cortex.tasks.attached_files import map_attached, new_name, offsets, write_attached
from cortex.tasks.cell_pickles import dump_list, load_exception, load_list
from cortex.wire.messages import CallFailed


def test_buffers_stand_beside_the_pickle_uncopied_and_small_ones_in_it() -> None:
    large, small = np.arange(10_000.0), np.arange(4.0)
    pickled = dump_list([large, small])
    (buffer,) = pickled.buffers
    assert np.shares_memory(np.frombuffer(buffer), large)
    assert small.nbytes < CELL_BUFFER_BYTES_MIN < large.nbytes
    assert pickled.size_bytes == len(pickled.data) + large.nbytes
    for array in load_list(*pickled.inline()):
        array[0] = 1.0  # writable


def test_an_array_that_is_not_in_one_piece() -> None:
    array = np.arange(20_000.0).reshape(100, 200)[:, ::2]
    (back,) = load_list(*dump_list([array]).inline())
    assert np.array_equal(back, array)
    assert back.flags.writeable


def test_arrow_tables() -> None:
    table = pa.table({"x": np.arange(100_000)})
    pickled = dump_list([table])
    assert len(pickled.data) < 10_000
    (back,) = load_list(*pickled.inline())
    assert back.equals(table)


def test_what_a_plain_pickle_does_not_take() -> None:
    (back,) = load_list(*dump_list([lambda x: x + 1]).inline())
    assert back(1) == 2
    with pytest.raises(TypeError, match="lock"):
        dump_list([threading.Lock()])


def test_exceptions_come_back_as_themselves_or_in_words() -> None:
    class Odd(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(one)

    report = ErrorReport("user-code", "in words")
    assert load_exception(CallFailed(0, cloudpickle.dumps(KeyError("k")), report)).args == ("k",)
    for pickled in (b"", cloudpickle.dumps(Odd(1, 2)), cloudpickle.dumps("no exception"), b"garbage"):
        error = load_exception(CallFailed(0, pickled, report))
        assert isinstance(error, UserCodeError)
        assert error.message == "in words"


@pytest.mark.parametrize("sizes", [(1,), (64, 64), (1, 0, 65, 3)])
def test_parts_of_an_attachment_are_aligned(sizes: tuple[int, ...]) -> None:
    begins, end = offsets(sizes)
    assert all(begin % ATTACHED_ALIGN_BYTES == 0 for begin in begins)
    assert all(a + size <= b for a, size, b in zip(begins, sizes, begins[1:]))
    assert end == begins[-1] + sizes[-1]


def test_an_attachment_is_mapped_copy_on_write(tmp_path: Path) -> None:
    array = np.arange(ATTACH_BYTES // 8 + 5)
    pickled = dump_list([array, array[:1000] + 1])
    assert pickled.is_large
    path = str(tmp_path / new_name("a"))
    write_attached(path, pickled)
    before = Path(path).read_bytes()
    parts = map_attached(path, pickled.sizes)
    back, other = load_list(parts[0], parts[1:])
    back[0] = 99
    assert other[0] == 1
    assert back[1:].tolist() == array[1:].tolist()
    assert Path(path).read_bytes() == before
    again = map_attached(path, pickled.sizes, unlink=True)
    assert not os.path.exists(path)
    assert load_list(again[0], again[1:])[0][0] == 0


def test_an_attachment_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 99)
    with pytest.raises(OSError, match="fewer than the 100 bytes"):
        map_attached(str(path), (100,))


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, part: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a"
    monkeypatch.setattr(attached_files.os, "write", full)
    with pytest.raises(SpillFull, match="no space"):
        write_attached(str(path), dump_list([1]))
    assert not path.exists()


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(OutputFailed, match="could not be written"):
        write_attached(str(tmp_path / "gone" / "a"), dump_list([1]))


def test_names_differ() -> None:
    assert len({new_name("a") for _ in range(100)}) == 100

"""What the client finds behind a job's names, and what the plan of a node makes of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cortex.client import client_files
from cortex.client.client_files import FileReads, FoundFiles
from cortex.errors import InputChanged, InputError, NotAllowed
from cortex.formats.input_files import find_files
from cortex.formats.planning import plan_inputs
from cortex.job.plan import ClientFile
from cortex.job.spec import InputSpec


def _tree(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}\n")


def test_the_client_finds_what_a_plan_on_its_machine_would(tmp_path: Path) -> None:
    _tree(
        tmp_path, "a.txt", "d/z.txt", "d/b.txt", "d/_SUCCESS", "d/.git/x", "d/sub/c.txt", "e/2.txt", "e/1.txt"
    )
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    names = ("d", "e/*.txt", "link.txt", "a.txt", "d/z.txt")
    paths = tuple(str(tmp_path / name) for name in names)
    found = FoundFiles.find(paths)
    spec = InputSpec(paths)
    planned = list(find_files(spec))
    assert [file.path for file in found.files()] == [file.path for file in planned]
    assert [os.path.relpath(file.path, tmp_path) for file in found.files()] == [
        "d/b.txt", "d/sub/c.txt", "d/z.txt", "e/1.txt", "e/2.txt", "link.txt"
    ]  # fmt: skip
    assert [None if names is None else len(names) for names in found.listed] == [3, 2, 1, 0, 0]
    assert found.inodes == tuple(file.inode for file in planned)
    theirs = list(find_files(spec, found.listed))
    assert [file.client_file for file in theirs] == list(range(6))
    for file, here in zip(theirs, planned):
        assert (file.index, file.path, file.size_bytes, file.modified_ns) == (
            here.index, here.path, here.size_bytes, here.modified_ns
        )  # fmt: skip


def test_names_that_the_client_has_nothing_for_are_left_to_the_nodes(tmp_path: Path) -> None:
    _tree(tmp_path, "here/b.txt", "here/a.txt")
    paths = (str(tmp_path / "shared*"), str(tmp_path / "here"), str(tmp_path / "gone.txt"))
    found = FoundFiles.find(paths)
    assert [None if names is None else len(names) for names in found.listed] == [None, 2, None]
    _tree(tmp_path, "shared/2.txt", "shared/1.txt", "gone.txt", "here/c.txt")
    files = list(find_files(InputSpec(paths), found.listed))
    assert [os.path.relpath(file.path, tmp_path) for file in files] == [
        "shared/1.txt", "shared/2.txt", "here/a.txt", "here/b.txt", "gone.txt"
    ]  # fmt: skip
    assert [file.client_file for file in files] == [-1, -1, 0, 1, -1]
    assert [file.index for file in files] == list(range(5))


def test_a_name_that_nobody_has_is_an_error_of_the_plan(tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere.csv")
    assert FoundFiles.find((path,)).listed == (None,)
    with pytest.raises(InputError, match="input does not exist"):
        plan_inputs(InputSpec((path,)), used_columns=None)
    with pytest.raises(InputError, match="pattern matches no input file"):
        plan_inputs(InputSpec((path + "*",)), used_columns=None)
    with pytest.raises(InputError, match="folder has no input files"):
        plan_inputs(InputSpec((str(tmp_path),)), used_columns=None)


def test_what_is_no_file_is_refused_by_the_client(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="no regular file"):
        FoundFiles.find((str(tmp_path / "fifo"),))


def test_a_clients_files_are_looked_up_once_though_named_twice(tmp_path: Path) -> None:
    listed = ((ClientFile("/c/a.txt", 5, 1),), (ClientFile("/c/b.txt", 6, 2),), ())
    files = list(find_files(InputSpec(("/c/a.txt", "/c", "/c/a.txt")), listed))
    assert [(file.path, file.size_bytes, file.modified_ns, file.inode) for file in files] == [
        ("/c/a.txt", 5, 1, 0), ("/c/b.txt", 6, 2, 0)
    ]  # fmt: skip


def test_a_plan_for_several_machines_has_no_inodes(tmp_path: Path) -> None:
    _tree(tmp_path, "a.txt")
    spec = InputSpec((str(tmp_path / "a.txt"),))
    assert plan_inputs(spec, used_columns=None, one_machine=False).files[0].inode == 0
    assert plan_inputs(spec, used_columns=None).files[0].inode == os.stat(tmp_path / "a.txt").st_ino


def test_reads_are_of_listed_files_alone_and_few_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_files, "INPUT_OPEN_FILES_MAX", 3)
    monkeypatch.setattr(client_files, "_FIND_BYTES", 4)
    _tree(tmp_path, *(f"{i:02d}.txt" for i in range(10)))
    before = len(os.listdir("/proc/self/fd"))
    reads = FileReads(FoundFiles.find((str(tmp_path),)))
    for number in (*range(10), 9, 8, 0, 5):
        assert reads.read(number, 8, 100) == f"{number:02d}.txt\n".encode()
        assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert reads.read(3, 0, 0) == b""
    assert [reads.without(3, offset, 100, b"t") for offset in (0, 1, 4, 9)] == [0, 2, 7, 2]
    assert [reads.without(3, 1, length, b"t") for length in (0, 1, 2, 3)] == [0, 1, 2, 2]
    assert reads.without(3, 2, 100, b"?") == 13
    for number in (-1, 10):
        with pytest.raises(NotAllowed):
            reads.read(number, 0, 1)
    reads.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_changed_is_found_with_every_read(tmp_path: Path) -> None:
    _tree(tmp_path, "a.txt", "b.txt")
    reads = FileReads(FoundFiles.find((str(tmp_path),)))
    assert reads.read(0, 0, 4) == b"text"
    for name in ("a.txt", "b.txt"):  # one that is open, one that is not yet
        with open(tmp_path / name, "a") as file:
            file.write("more")
    for number, name in enumerate(("a.txt", "b.txt")):
        for length in (4, 0):
            with pytest.raises(InputChanged, match="its size was 14 and is now 18") as found:
                reads.read(number, 0, length)
            assert found.value.details == {"file": str(tmp_path / name)}
    reads.close()

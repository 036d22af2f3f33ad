"""Parts on a node's disk: hidden until they are named, never outside the root, and undone whole."""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cortex.errors import DataIncomplete, OutputExistsError, PartDamaged, PutFailed
from cortex.formats.data_roots import DataRoots
from cortex.formats.input_files import find_files
from cortex.job.plan import ClientFile
from cortex.job.put_names import is_put_name, part_name
from cortex.job.spec import InputSpec
from cortex.storage.put_folder import PutFolder, remove_left_over
from cortex.wire import messages as m

PUT, OTHER = "p0123456789ab", "pba9876543210"
Opened = Callable[..., PutFolder]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.fixture
def opened(root: Path) -> Iterator[Opened]:
    folders: list[PutFolder] = []

    def make(put: str = PUT, name: str = "big", overwrite: bool = False, owner: str = "n1") -> PutFolder:
        folders.append(PutFolder([str(root)], put, name, owner, overwrite))
        return folders[-1]

    yield make
    for folder in folders:
        folder.keep()


def keep(folder: PutFolder, part: int, data: bytes) -> None:
    incoming = folder.receive(part, len(data), hashlib.sha256(data).hexdigest())
    incoming.write(data[:3])
    incoming.write(data[3:])
    incoming.finish()


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def sums(root: Path, name: str = "big") -> dict[str, bytes]:
    """What `_SHA256SUMS` says is there, checked as sha256sum would."""
    found = {}
    for line in (root / name / "_SHA256SUMS").read_text().splitlines():
        sha256, called = line.split("  ")
        found[f"{name}/{called}"] = (root / name / called).read_bytes()
        assert hashlib.sha256(found[f"{name}/{called}"]).hexdigest() == sha256
    return found


def test_parts_have_no_name_before_all_have(root: Path, opened: Opened) -> None:
    folder = opened()
    keep(folder, 1, b"second")
    keep(folder, 0, b"first!")
    assert list(DataRoots([str(root)]).list_files("data:*")) == []
    assert list(DataRoots([str(root)]).list_files("data:**")) == []
    folder.name_parts(3, ".csv")
    named = {"big/part-00000-of-00003.csv": b"first!", "big/part-00001-of-00003.csv": b"second"}
    assert named.items() <= tree(root).items()
    folder.keep()
    assert sums(root) == named
    assert set(tree(root)) == {*named, "big/_SHA256SUMS"}
    assert [name for name, _ in DataRoots([str(root)]).list_files("data:big/*")] == [
        "data:big/part-00000-of-00003.csv",
        "data:big/part-00001-of-00003.csv",
    ]


def test_undo_leaves_nothing_whenever_it_comes(root: Path, opened: Opened) -> None:
    for named in (False, True):
        folder = opened()
        keep(folder, 0, b"some bytes")
        folder.receive(1, 100, "0" * 64).write(b"half")
        if named:
            folder.name_parts(2, "")
        folder.undo()
        assert os.listdir(root) == []


def test_what_is_replaced_comes_back_with_undo_and_goes_with_keep(root: Path, opened: Opened) -> None:
    first = opened()
    keep(first, 0, b"old")
    first.name_parts(1, ".csv")
    first.keep()
    old = tree(root)
    with pytest.raises(OutputExistsError, match="is there already"):
        opened(OTHER)
    assert tree(root) == old

    second = opened(OTHER, overwrite=True)
    keep(second, 0, b"new")
    assert old.items() <= tree(root).items()
    second.name_parts(1, ".csv")
    assert (root / "big" / part_name(0, 1, ".csv")).read_bytes() == b"new"
    second.undo()
    assert tree(root) == old

    third = opened(OTHER, overwrite=True)  # it gets no part: what it replaces goes all the same
    third.name_parts(1, ".csv")
    third.keep()
    assert os.listdir(root) == []


def test_only_what_was_put_is_replaced(root: Path, opened: Opened) -> None:
    (root / "big").mkdir()
    (root / "big" / "mine.csv").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="not replaced"):
        opened(overwrite=True)
    (root / "own").mkdir()
    (root / "own" / part_name(0, 1, ".csv")).write_bytes(b"called like a part, and not put")
    with pytest.raises(OutputExistsError, match="not replaced"):
        opened(name="own", overwrite=True)
    (root / "linked").symlink_to(root / "big")
    with pytest.raises(OutputExistsError, match="not replaced"):
        opened(name="linked", overwrite=True)
    assert tree(root)["big/mine.csv"] == b"mine"
    assert sorted(os.listdir(root)) == ["big", "linked", "own"]


def test_a_damaged_part_is_refused_and_leaves_nothing(root: Path, opened: Opened) -> None:
    folder = opened()
    for data, size in ((b"other", 5), (b"good", 5), (b"goods", 4)):
        incoming = folder.receive(0, size, hashlib.sha256(b"goods").hexdigest())
        incoming.write(data)
        with pytest.raises(PartDamaged) as found:
            incoming.finish()
        assert found.value.cure
        incoming.abort()
    keep(folder, 0, b"goods")  # and may come again


def test_a_full_disk_is_said_with_its_folder(root: Path, opened: Opened) -> None:
    folder = opened()
    with pytest.raises(PutFailed, match="no space") as found:
        folder.receive(0, 1 << 60, "0" * 64)
    assert found.value.details["free"]
    incoming = folder.receive(0, 1 << 20, "0" * 64)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(PutFailed, match="cannot be written"):
            incoming.write(bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        incoming.abort()


def test_two_nodes_with_one_root_do_not_both_take_parts(root: Path, opened: Opened, tmp_path: Path) -> None:
    opened()
    with pytest.raises(PutFailed) as found:
        opened(owner="n2")
    assert "another node" in found.value.details[str(root)]
    other = tmp_path / "other"
    other.mkdir()
    both = PutFolder([str(root), str(other)], PUT, "big", "n2", False)
    keep(both, 0, b"bytes")
    both.name_parts(1, "")
    both.keep()
    assert os.listdir(other) == ["big"]
    assert sorted(os.listdir(root)) == [f".cortex-put-{PUT}"]


def test_a_root_that_is_a_link_by_now_is_not_followed(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    root.rename(elsewhere)
    root.symlink_to(elsewhere)
    with pytest.raises(PutFailed):
        PutFolder([str(root)], PUT, "big", "n1", False)
    assert os.listdir(elsewhere) == []


def test_what_a_dead_node_left_is_removed_when_it_starts_again(root: Path) -> None:
    PutFolder([str(root)], PUT, "big", "n1", False)  # and neither kept nor undone
    PutFolder([str(root)], OTHER, "big", "n2", False)
    (root / ".cortex-put-mine").mkdir()
    remove_left_over([str(root)], "n1")
    assert sorted(os.listdir(root)) == [".cortex-put-mine", f".cortex-put-{OTHER}"]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/a", ".a", "_a", "-a", "a*", "a?", "a[b]", "a\0", "a\n", "x" * 101],
)
def test_names_that_lead_anywhere_are_no_message(name: str) -> None:
    assert not is_put_name(name)
    for message in (m.OpenPut(PUT, name, False), m.BeginPut(name, ".csv")):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))


@pytest.mark.parametrize("ending", ["/../x", ".", "csv", "..csv", ".a/b", ".csv\n", "." + "x" * 17])
def test_endings_that_lead_anywhere_are_no_message(ending: str) -> None:
    for message in (m.NameParts(PUT, 1, ending), m.BeginPut("big", ending)):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))


def test_ids_and_numbers_that_lead_anywhere_are_no_message() -> None:
    for message in (
        m.OpenPut("../p", "big", False),
        m.KeepPart(PUT, -1, 0, "0" * 64),
        m.KeepPart(PUT, 0, -1, "0" * 64),
        m.EndPut("p0123456789ab/..", True),
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))


def test_data_that_lacks_parts_is_an_error_for_who_asks_for_all() -> None:
    def files(name: str, *parts: tuple[int, int]) -> list[str]:
        listed = tuple(ClientFile(f"data:big/{part_name(*each, '.csv')}", 1, 0) for each in parts)
        return [file.path for file in find_files(InputSpec((name,)), data_files=(listed,))]

    assert len(files("data:big/*", (0, 2), (1, 2))) == 2
    for name in ("data:big/*", "data:big", "data:big/", "data:b*/*.csv", "data:**/part-*", "data:**"):
        with pytest.raises(DataIncomplete, match="1 of its 3 parts") as found:
            files(name, (0, 3), (2, 3))
        assert "number 1" in found.value.message
        assert found.value.cure
    with pytest.raises(DataIncomplete, match="of 2 and of 3 parts"):
        files("data:big/*", (0, 2), (1, 2), (0, 3))
    assert len(files("data:big/part-00000*", (0, 3))) == 1
    assert len(files("data:big/*", (1, 2), (2, 2))) == 2  # nothing of ours: counted from 1
    assert len(files("data:big/*", (1, 2), (2, 2), (1, 1))) == 3
    assert len(files("data:big/part-00002-of-00003.csv", (2, 3))) == 1
    assert len(files("data:big/part-0000[02]*", (0, 3), (2, 3))) == 2

"""What a node may read: files below its data roots, and nothing that a link leads to outside of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cortex.errors import InputError, UsageError
from cortex.formats.data_roots import DataRoots
from cortex.job.overrides import input_path
from cortex.job.plan import ClientFile
from cortex.limits import FINGERPRINT_BLOCK_BYTES, FINGERPRINT_BLOCKS
from cortex.node.held_inputs import FileReads, HeldInputs
from cortex.storage.fingerprint import fingerprint_of
from cortex.wire.messages import (
    DataListed,
    FindInput,
    InputBytes,
    InputFound,
    InputUnread,
    ListData,
    ReadInput,
)

JOB = "j0123456789ab"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "logs" / "deep").mkdir(parents=True)
    (folder / "logs" / "b.csv").write_text("b")
    (folder / "logs" / "a.csv").write_text("aa")
    (folder / "logs" / "deep" / "c.csv").write_text("c")
    (folder / "logs" / ".hidden.csv").write_text("no")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.csv").write_text("secret")
    return folder


def names(roots: DataRoots, name: str) -> list[str]:
    return [found for found, _ in roots.list_files(name)]


def test_names_are_relative_to_the_roots(root: Path) -> None:
    roots = DataRoots([str(root)])
    assert names(roots, "data:logs/*.csv") == ["data:logs/a.csv", "data:logs/b.csv"]
    assert names(roots, "data:logs") == ["data:logs/a.csv", "data:logs/b.csv", "data:logs/deep/c.csv"]
    assert names(roots, "data:.") == ["data:logs/a.csv", "data:logs/b.csv", "data:logs/deep/c.csv"]
    assert names(roots, "data:logs/**/c.csv") == ["data:logs/deep/c.csv"]
    assert names(roots, "data:nowhere") == []


@pytest.mark.parametrize(
    "name", ["data:../outside/secret.csv", "data:/etc/passwd", "data:a/../../b", "data:\0"]
)
def test_no_name_leads_out(root: Path, name: str) -> None:
    with pytest.raises(UsageError):
        input_path(name, "/")
    with pytest.raises(UsageError):  # whoever sends it has not looked
        names(DataRoots([str(root)]), name)


def test_links_are_followed_within_the_roots_alone(root: Path, tmp_path: Path) -> None:
    (root / "in").symlink_to("logs/deep")
    assert names(DataRoots([str(root)]), "data:in/*.csv") == ["data:in/c.csv"]
    (root / "out").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="link out of it"):
        names(DataRoots([str(root)]), "data:out/*.csv")
    assert names(DataRoots([str(root), str(tmp_path / "outside")]), "data:out/*.csv") == [
        "data:out/secret.csv"
    ]
    roots = DataRoots([str(root)])
    assert roots.find(str(root / "out" / "secret.csv")) is None
    assert roots.find(str(tmp_path / "outside" / "secret.csv")) is None
    found = roots.find(str(root / "in" / "c.csv"))
    assert found is not None
    assert found.below == "logs/deep/c.csv"


def test_a_link_that_was_put_in_the_way_since_is_not_followed(root: Path, tmp_path: Path) -> None:
    found = DataRoots([str(root)]).find(str(root / "logs" / "deep" / "c.csv"))
    assert found is not None
    os.close(found.open())
    (tmp_path / "outside" / "c.csv").write_text("x")
    (root / "logs" / "deep").rename(root / "logs" / "was")
    (root / "logs" / "deep").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        found.open()


def test_a_root_is_a_folder(root: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        DataRoots([str(root / "logs" / "a.csv")])


def test_a_fingerprint_is_of_samples_or_of_all(tmp_path: Path) -> None:
    size = 4 * FINGERPRINT_BLOCKS * FINGERPRINT_BLOCK_BYTES
    one, two = tmp_path / "one", tmp_path / "two"
    data = bytearray(os.urandom(size))
    one.write_bytes(data)
    between = FINGERPRINT_BLOCK_BYTES + 10  # behind the head, before the next sample
    data[between] ^= 1
    two.write_bytes(data)
    assert fingerprint_of(str(one), size) == fingerprint_of(str(two), size)
    assert fingerprint_of(str(one), size, full=True) != fingerprint_of(str(two), size, full=True)
    for place in (0, size - 1):
        data[place] ^= 1
        two.write_bytes(data)
        assert fingerprint_of(str(one), size) != fingerprint_of(str(two), size)
        data[place] ^= 1
    small = tmp_path / "small"
    small.write_bytes(b"x" * 1000 + b"y")
    before = fingerprint_of(str(small), 1001)
    small.write_bytes(b"x" * 999 + b"zy")
    assert fingerprint_of(str(small), 1001) != before


class Held:
    """A node's held input without threads."""

    def __init__(self, root: Path) -> None:
        self.sent: list[Any] = []

        def now(function: Any, *arguments: Any) -> None:
            function(*arguments)

        self.held = HeldInputs("n1", DataRoots([str(root)]), self.sent.append, now, now)

    def find(self, *files: ClientFile, full: bool = False) -> list[bool]:
        self.held.find(FindInput(JOB, files, full))
        answer = self.sent.pop()
        assert isinstance(answer, InputFound)
        return [bool(answer.held[i >> 3] >> (i & 7) & 1) for i in range(len(files))]


def of_client(path: Path, mark: bytes | None = None) -> ClientFile:
    size = path.stat().st_size
    return ClientFile(str(path), size, 0, fingerprint_of(str(path), size) if mark is None else mark)


def test_a_node_has_a_file_only_if_it_is_the_same(root: Path, tmp_path: Path) -> None:
    held = Held(root)
    a, b = root / "logs" / "a.csv", root / "logs" / "b.csv"
    same = of_client(a)
    named = ClientFile("data:logs/a.csv", 2, 0, same.fingerprint)
    other = ClientFile(str(a), 2, 0, fingerprint_of(str(b), 1))
    longer = ClientFile(str(a), 3, 0, same.fingerprint)
    outside = of_client(tmp_path / "outside" / "secret.csv")
    nowhere = ClientFile(str(root / "x"), 2, 0, same.fingerprint)
    found = held.find(same, other, longer, outside, nowhere, named)
    assert found == [True, False, False, False, False, True]
    assert held.find(same, full=True) == [False]  # samples were compared with all of it
    (tmp_path / "link").symlink_to(a)
    led = ClientFile(str(tmp_path / "nothing"), 2, 0, same.fingerprint, str(tmp_path / "link"))
    assert held.find(led) == [True]


def test_what_a_name_stands_for_is_listed_with_fingerprints(root: Path) -> None:
    held = Held(root)
    held.held.list_data(ListData(JOB, ("data:logs/*.csv", "data:x"), False))
    answer = held.sent.pop()
    assert isinstance(answer, DataListed)
    assert [file.path for file in answer.found[0]] == ["data:logs/a.csv", "data:logs/b.csv"]
    assert answer.found[0][0].fingerprint == of_client(root / "logs" / "a.csv").fingerprint
    assert answer.found[1] == ()
    held.held.list_data(ListData(JOB, ("data:../x",), False))
    assert held.sent.pop().error.code == UsageError.code


def test_others_read_by_number_and_only_what_is_still_the_same(root: Path) -> None:
    held, path = Held(root), root / "logs" / "a.csv"
    path.write_text("0123456789")
    assert held.find(of_client(path)) == [True]
    reads = FileReads(held.held)
    assert reads.answer(ReadInput(1, JOB, 0, 2, 3)) == InputBytes(1, b"234")
    assert reads.answer(ReadInput(2, JOB, 0, 2, 0, b"5", 8)) == InputBytes(2, b"", 3)
    for job, file in ((JOB, 1), ("j0123456789ac", 0)):
        refused = reads.answer(ReadInput(3, job, file, 0, 1))
        assert isinstance(refused, InputUnread)
        assert refused.error.code == "not-allowed"
    path.write_text("9876543210")
    os.utime(path, ns=(1, 1))
    changed = reads.answer(ReadInput(4, JOB, 0, 0, 4))
    assert isinstance(changed, InputUnread)
    assert (changed.error.code, changed.error.details["node"]) == ("input-changed", "n1")
    held.held.close_job(JOB)
    assert isinstance(FileReads(held.held).answer(ReadInput(5, JOB, 0, 0, 4)), InputUnread)
    reads.close()

"""Files with secrets: replaced whole or not at all, and refused when others can reach them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cortex.errors import StateFailed, UsageError
from cortex.limits import PRIVATE_FILE_BYTES_MAX
from cortex.private_files import make_private_folder, read_private, remove_private, write_private


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "home" / "secret"


def test_what_is_written_is_read_and_nobody_else_can(path: Path) -> None:
    old = os.umask(0)
    try:
        write_private(str(path), b"one")
    finally:
        os.umask(old)
    assert read_private(str(path)) == b"one"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    write_private(str(path), b"two")
    assert read_private(str(path)) == b"two"
    assert os.listdir(path.parent) == ["secret"]
    remove_private(str(path))
    remove_private(str(path))
    assert read_private(str(path)) is None


def test_what_is_not_there_is_none(path: Path) -> None:
    assert read_private(str(path)) is None
    assert not path.parent.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_open_is_refused(path: Path, mode: int) -> None:
    write_private(str(path), b"x")
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"mode 0{mode:o}") as caught:
        read_private(str(path))
    assert f"chmod 600 {path}" in caught.value.cure


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_folder_that_others_can_enter_is_refused(path: Path, mode: int) -> None:
    write_private(str(path), b"x")
    path.parent.chmod(mode)
    for attempt in (read_private, lambda p: write_private(p, b"y")):
        with pytest.raises(UsageError, match=f"mode 0{mode:o}") as caught:
            attempt(str(path))
        assert caught.value.cure == f"chmod 700 {path.parent}"


@pytest.mark.parametrize("of", ["file", "folder"])
def test_what_belongs_to_another_user_is_refused(
    path: Path, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_private(str(path), b"x")
    ours = os.geteuid()
    if of == "folder":
        monkeypatch.setattr(os, "geteuid", lambda: ours + 1)
    else:
        answers = iter([ours, ours + 1, ours + 1])
        monkeypatch.setattr(os, "geteuid", lambda: next(answers))
    with pytest.raises(UsageError, match=f"belongs to user {ours}"):
        read_private(str(path))


def test_links_and_other_things_are_not_followed(path: Path) -> None:
    write_private(str(path), b"x")
    (path.parent / "link").symlink_to(path)
    with pytest.raises(StateFailed, match="cannot be read"):
        read_private(str(path.parent / "link"))
    os.mkfifo(path.parent / "pipe", 0o600)
    with pytest.raises(UsageError, match="not a file"):
        read_private(str(path.parent / "pipe"))
    (path.parent.parent / "other").symlink_to(path.parent)
    with pytest.raises(UsageError, match="not a folder"):
        read_private(str(path.parent.parent / "other" / "secret"))


def test_a_huge_file_is_not_read(path: Path) -> None:
    write_private(str(path), b"x" * (PRIVATE_FILE_BYTES_MAX + 1))
    with pytest.raises(StateFailed, match="not a file of cortex"):
        read_private(str(path))


@pytest.mark.parametrize("call", ["rename", "fsync", "open"])
def test_a_write_that_fails_leaves_the_old_bytes_and_no_rest(
    path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_private(str(path), b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StateFailed, match="No space left"):
            write_private(str(path), b"new")
    assert read_private(str(path)) == b"old"
    assert os.listdir(path.parent) == ["secret"]


def test_the_rest_of_a_write_that_was_killed_is_removed(path: Path) -> None:
    write_private(str(path), b"old")
    (path.parent / ".secret.0badf00d.part").write_bytes(b"ne")
    (path.parent / ".secretive").write_bytes(b"mine")
    write_private(str(path), b"new")
    assert sorted(os.listdir(path.parent)) == [".secretive", "secret"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateFailed, match="cannot be made"):
        make_private_folder(str(tmp_path / "file" / "home"))

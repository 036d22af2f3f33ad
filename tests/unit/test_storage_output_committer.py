"""The output folder: refused, replaced, committed whole or not at all, whichever call fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

import pytest

from cortex.errors import InternalError, OutputExistsError, OutputFailed
from cortex.storage.filesystem import LocalFilesystem
from cortex.storage.output_committer import (
    MANIFEST,
    SUCCESS,
    StagedOutput,
    abort_output,
    commit_output,
    remove_stale,
    stage_output,
)
from tests.faulty_filesystem import Crash, FaultyFilesystem

JOB, OTHER = "j000000000001", "j000000000002"


class Part(NamedTuple):
    name: str
    staged_as: str
    rows: int
    size_bytes: int
    columns: tuple[tuple[str, str], ...] = (("k", "string"),)


def write_parts(staged: StagedOutput, *texts: str) -> list[Part]:
    parts = []
    for i, text in enumerate(texts):
        name = f"j-r{i:06d}.0.csv"
        Path(staged.path, name).write_text(text)
        parts.append(Part(f"part-{i:05d}.csv", name, text.count("\n"), len(text.encode())))
    return parts


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir() if p.name != MANIFEST}


def run(fs: object, output: Path, *texts: str, overwrite: bool = False) -> None:
    staged = stage_output(fs, str(output), JOB, overwrite)  # type: ignore[arg-type]
    try:
        parts = write_parts(staged, *texts)
    except BaseException:
        abort_output(fs, staged)  # type: ignore[arg-type]
        raise
    commit_output(fs, staged, parts, {"job": JOB})  # type: ignore[arg-type]


NEW = {"part-00000.csv": "a\nb\n", "part-00001.csv": "c\n", SUCCESS: ""}
OLD = {"part-00000.csv": "old\n", SUCCESS: ""}


def test_commit_leaves_parts_manifest_and_success(tmp_path: Path) -> None:
    run(LocalFilesystem(), tmp_path / "deep" / "out", "a\nb\n", "c\n")
    out = tmp_path / "deep" / "out"
    assert contents(out) == NEW
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["job"] == JOB
    assert manifest["rows"] == 3
    assert manifest["files"][1] == {
        "name": "part-00001.csv",
        "rows": 1,
        "bytes": 2,
        "columns": [["k", "string"]],
    }
    assert os.listdir(out.parent) == ["out"]


def test_staging_is_private_and_the_output_is_not(tmp_path: Path) -> None:
    fs = LocalFilesystem()
    mask = os.umask(0o022)
    try:
        staged = stage_output(fs, str(tmp_path / "out"), JOB)
        assert stat.S_IMODE(os.stat(staged.path).st_mode) == 0o700
        os.close(os.open(os.path.join(staged.path, "p.0"), os.O_CREAT, 0o600))
        commit_output(fs, staged, [Part("part-0", "p.0", 0, 0)], {})
    finally:
        os.umask(mask)
    assert stat.S_IMODE(os.stat(tmp_path / "out").st_mode) == 0o755
    assert stat.S_IMODE(os.stat(tmp_path / "out" / "part-0").st_mode) == 0o644


def test_what_losing_attempts_left_is_dropped(tmp_path: Path) -> None:
    fs = LocalFilesystem()
    staged = stage_output(fs, str(tmp_path / "out"), JOB)
    parts = write_parts(staged, "a\n")
    Path(staged.path, "j-r000000.1.csv").write_text("loser")
    Path(staged.path, "folder").mkdir()
    commit_output(fs, staged, parts, {})
    assert contents(tmp_path / "out") == {"part-00000.csv": "a\n", SUCCESS: ""}


def test_names_may_be_permuted(tmp_path: Path) -> None:
    fs = LocalFilesystem()
    staged = stage_output(fs, str(tmp_path / "out"), JOB)
    Path(staged.path, "x").write_text("1")
    Path(staged.path, "y").write_text("2")
    commit_output(fs, staged, [Part("y", "x", 1, 1), Part("x", "y", 1, 1)], {})
    assert contents(tmp_path / "out") == {"y": "1", "x": "2", SUCCESS: ""}


@pytest.mark.parametrize("name", ["../x", ".x", "_SUCCESS", "a/b", ""])
def test_a_part_cannot_be_named_outside(tmp_path: Path, name: str) -> None:
    staged = stage_output(LocalFilesystem(), str(tmp_path / "out"), JOB)
    with pytest.raises(InternalError):
        commit_output(LocalFilesystem(), staged, [Part(name, "x", 0, 0)], {})
    assert os.listdir(tmp_path) == []


def test_an_existing_output_is_refused_at_the_start(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(OutputExistsError, match="exists already") as caught:
        run(LocalFilesystem(), out, "a\n")
    assert caught.value.exit_code == 2
    assert "--overwrite" in caught.value.cure
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_that_appears_meanwhile_is_refused_at_commit(tmp_path: Path) -> None:
    fs = LocalFilesystem()
    staged = stage_output(fs, str(tmp_path / "out"), JOB)
    parts = write_parts(staged, "a\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(OutputExistsError):
        commit_output(fs, staged, parts, {})
    assert contents(tmp_path / "out") == {"mine": "x"}
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run(LocalFilesystem(), tmp_path / "out", "a\nb\n", "c\n")
    assert contents(tmp_path / "out") == NEW


@pytest.mark.parametrize("can_exchange", [True, False])
def test_overwrite_replaces_all_of_the_old(tmp_path: Path, can_exchange: bool) -> None:
    fs = FaultyFilesystem(can_exchange=can_exchange)
    run(fs, tmp_path / "out", "1\n", "2\n", "3\n")
    run(fs, tmp_path / "out", "a\nb\n", "c\n", overwrite=True)
    assert contents(tmp_path / "out") == NEW
    assert os.listdir(tmp_path) == ["out"]


def test_overwrite_does_not_remove_what_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = LocalFilesystem()
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputExistsError, match="is a file"):
        stage_output(fs, str(tmp_path / "file"), JOB, overwrite=True)
    (tmp_path / "home" / "photos").mkdir(parents=True)
    with pytest.raises(OutputExistsError, match="photos"):
        stage_output(fs, str(tmp_path / "home"), JOB, overwrite=True)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "novel.txt").write_text("x")
    with pytest.raises(OutputExistsError, match=r"novel\.txt"):
        stage_output(fs, str(tmp_path / "texts"), JOB, overwrite=True)
    run(fs, tmp_path / "out", "a\nb\n")
    (tmp_path / "out" / "notes.md").write_text("x")
    with pytest.raises(OutputExistsError, match=r"notes\.md"):
        stage_output(fs, str(tmp_path / "out"), JOB, overwrite=True)
    (tmp_path / "out" / "notes.md").rename(tmp_path / "out" / ".DS_Store")
    run(fs, tmp_path / "out", "a\nb\n", overwrite=True)
    (tmp_path / "here").mkdir()
    run(fs, tmp_path / "here", "a\nb\n")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputExistsError, match="you are in"):
        stage_output(fs, ".", JOB, overwrite=True)


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    run(LocalFilesystem(), tmp_path / "out", "a\nb\n", "c\n")
    assert (tmp_path / "out").is_symlink()
    assert contents(tmp_path / "disk") == NEW


def test_a_part_of_another_size_is_not_committed(tmp_path: Path) -> None:
    staged = stage_output(LocalFilesystem(), str(tmp_path / "out"), JOB)
    parts = write_parts(staged, "abc\n")
    Path(staged.path, parts[0].staged_as).write_text("ab")
    with pytest.raises(OutputFailed, match="2 bytes"):
        commit_output(LocalFilesystem(), staged, parts, {})
    assert os.listdir(tmp_path) == []


def test_a_parent_without_rights_is_named(tmp_path: Path) -> None:
    for code, cure in [(errno.EACCES, "folder of yours"), (errno.ENOSPC, "free space")]:
        fs = FaultyFilesystem()
        fs.fail_at, fs.error = 1, code
        with pytest.raises(OutputFailed) as caught:
            stage_output(fs, str(tmp_path / "a" / "out"), JOB)  # type: ignore[arg-type]
        assert str(tmp_path) in caught.value.message
        assert cure in caught.value.cure
    assert os.listdir(tmp_path) == []


def test_abort_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    fs = LocalFilesystem()
    staged = stage_output(fs, str(tmp_path / "made" / "out"), JOB)
    write_parts(staged, "a\n")
    abort_output(fs, staged)
    abort_output(fs, staged)
    assert os.listdir(tmp_path) == []


def test_abort_removes_what_is_written_while_it_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Executors that are being killed: one makes a file, one removes its own, then they are gone."""
    staged = stage_output(LocalFilesystem(), str(tmp_path / "made" / "out"), "j0123456789ab")
    write_parts(staged, "a\n")
    remove = shutil.rmtree
    errors = [OSError(errno.ENOTEMPTY, "not empty"), FileNotFoundError(errno.ENOENT, "gone")]

    def removing(path: str) -> None:
        if errors:
            raise errors.pop(0)
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", removing)
    abort_output(LocalFilesystem(), staged)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_job_left_is_removed_and_a_living_one_is_not(tmp_path: Path) -> None:
    fs = LocalFilesystem()
    living = stage_output(fs, str(tmp_path / "out"), JOB)
    killed = stage_output(fs, str(tmp_path / "out"), OTHER)
    other = tmp_path / f".out.more.{JOB}.partial"  # of an output named out.more
    other.mkdir()
    assert killed.lock is not None
    killed.lock.close()
    assert remove_stale(fs, str(tmp_path / "out")) == [killed.path]
    assert Path(living.path).is_dir()
    assert other.is_dir()
    abort_output(fs, living)


@pytest.mark.parametrize(
    "name", [".out.v1.partial", ".out.2024.old", ".out.j1.old", f".out.{JOB}x.partial", f".out.{JOB}.PARTIAL"]
)
def test_hidden_folders_of_the_user_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("x")
    run(LocalFilesystem(), tmp_path / "out", "a\nb\n", "c\n")
    assert contents(tmp_path / "out") == NEW
    assert contents(tmp_path / name) == {"thesis.txt": "x"}


def test_an_old_output_is_put_back_only_when_it_is_one(tmp_path: Path) -> None:
    aside = tmp_path / f".out.{JOB}.old"
    run(LocalFilesystem(), tmp_path / "out", "a\nb\n", "c\n")
    (tmp_path / "out").rename(aside)
    assert remove_stale(LocalFilesystem(), str(tmp_path / "out")) == [str(aside)]
    assert contents(tmp_path / "out") == NEW
    (tmp_path / "out").rename(aside)
    (aside / MANIFEST).unlink()
    remove_stale(LocalFilesystem(), str(tmp_path / "out"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("nonce", ["", "v1", "j1", "j00000000000g", "../j000000000001"])
def test_only_a_job_id_names_a_staging_folder(tmp_path: Path, nonce: str) -> None:
    with pytest.raises(InternalError, match="no job id"):
        stage_output(LocalFilesystem(), str(tmp_path / "out"), nonce)


def _calls_of(overwrite: bool, can_exchange: bool, folder: Path) -> int:
    fs = FaultyFilesystem(can_exchange=can_exchange)
    if overwrite:
        run(LocalFilesystem(), folder / "out", "old\n")
    run(fs, folder / "out", "a\nb\n", "c\n", overwrite=overwrite)
    return len(fs.calls)


@pytest.mark.parametrize("crash", [True, False])
@pytest.mark.parametrize(("overwrite", "can_exchange"), [(False, True), (True, True), (True, False)])
def test_whichever_call_fails_the_output_is_the_old_or_the_new(
    tmp_path: Path, overwrite: bool, can_exchange: bool, crash: bool
) -> None:
    (tmp_path / "count").mkdir()
    calls = _calls_of(overwrite, can_exchange, tmp_path / "count")
    assert calls > 15
    seen = set()
    for n in range(calls):
        folder = tmp_path / str(n)
        folder.mkdir()
        out = folder / "out"
        if overwrite:
            run(LocalFilesystem(), out, "old\n")
        fs = FaultyFilesystem(fail_at=n, crash=crash, can_exchange=can_exchange)
        failed = False
        try:
            run(fs, out, "a\nb\n", "c\n", overwrite=overwrite)
        except (Crash, OutputFailed):
            failed = True
        fs.end_process()  # and then the next job comes
        remove_stale(LocalFilesystem(), str(out))
        left = contents(out) if out.exists() else None
        allowed = [OLD if overwrite else None, NEW] if failed else [NEW]
        assert left in allowed, (n, fs.calls[n], left)
        assert os.listdir(folder) == (["out"] if out.exists() else []), (n, fs.calls[n])
        seen.add(left is not None and left == NEW)
    assert seen == {True, False}

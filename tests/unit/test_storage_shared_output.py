"""Output on a path that nodes share: committed whole, whichever call fails and whoever commits as well."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cortex.errors import InternalError, OutputExistsError, OutputFailed
from cortex.storage.filesystem import LocalFilesystem
from cortex.storage.output_committer import MANIFEST, SUCCESS
from cortex.storage.shared_output import (
    attempts_folder,
    begin_shared,
    commit_shared,
    is_committed,
    remove_shared,
    shared_folder,
    staging_of,
)
from tests.faulty_filesystem import Crash, FaultyFilesystem
from tests.unit.test_storage_output_committer import Part, run

JOB = "j00000000000a"
OLD = {"part-00000.csv": "old\n", SUCCESS: ""}
NEW = {"part-00000.csv": "a\nb\n", "part-00001.csv": "c\n", SUCCESS: ""}
LOCAL = LocalFilesystem()


def written(out: Path, overwrite: bool = False) -> list[Part]:
    """What attempts leave: the accepted ones, and one that lost."""
    begin_shared(LOCAL, str(out), JOB, overwrite)
    begin_shared(LOCAL, str(out), JOB, overwrite)  # the plan ran twice
    folder = Path(attempts_folder(str(out), JOB))
    parts = []
    for index, text in enumerate(("a\nb\n", "c\n")):
        name = f"{JOB}-r{index:06d}.1.csv"
        (folder / name).write_text(text)
        parts.append(Part(f"part-{index:05d}.csv", name, text.count("\n"), len(text)))
    (folder / f"{JOB}-r000000.0.csv").write_text("half a li")
    return parts


def commit(fs: object, out: Path, parts: list[Part], overwrite: bool = False, attempt: str = "c0") -> None:
    commit_shared(fs, str(out), JOB, overwrite, parts, {"job": "x"}, attempt)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir() if p.name != MANIFEST}


def check(out: Path) -> None:
    assert contents(out) == NEW
    manifest = json.loads((out / MANIFEST).read_text())
    assert (manifest["id"], manifest["job"], manifest["rows"]) == (JOB, "x", 3)
    assert [file["name"] for file in manifest["files"]] == ["part-00000.csv", "part-00001.csv"]
    assert os.listdir(out.parent) == [out.name]


def test_it_is_invisible_until_it_is_committed_and_can_be_committed_again(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    parts = written(out)
    assert os.listdir(out.parent) == [f".out.{JOB}.shared"]
    assert not is_committed(LOCAL, str(out), JOB)
    for attempt in ("c0", "c1"):
        commit(LOCAL, out, parts, attempt=attempt)
        check(out)
    assert is_committed(LOCAL, str(out), JOB)
    assert (out.stat().st_mode & 0o777) == 0o777 & ~_umask()
    remove_shared(LOCAL, str(out), JOB)  # nothing is left to remove
    check(out)


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_an_output_that_exists_is_refused_at_both_ends(tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts = written(out)
    run(LOCAL, out, "old\n")
    with pytest.raises(OutputExistsError):
        commit(LOCAL, out, parts)
    assert contents(out) == OLD
    with pytest.raises(OutputExistsError):
        begin_shared(LOCAL, str(out), "j00000000000b", False)
    assert not os.path.exists(shared_folder(str(out), "j00000000000b"))
    commit(LOCAL, out, parts, overwrite=True)
    check(out)


def test_a_part_that_is_gone_or_cut_short_is_no_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts = written(out)
    path = Path(attempts_folder(str(out), JOB), parts[1].staged_as)
    path.write_text("c")
    with pytest.raises(OutputFailed, match="has 1 bytes"):
        commit(LOCAL, out, parts)
    Path(shared_folder(str(out), JOB), "part-00001.csv").unlink()
    with pytest.raises(OutputFailed, match="is gone from"):
        commit(LOCAL, out, parts)
    assert not out.exists()
    remove_shared(LOCAL, str(out), JOB)
    assert os.listdir(tmp_path) == []


def test_only_a_folder_of_attempts_is_removed(tmp_path: Path) -> None:
    folder = shared_folder("/shared/out", JOB)
    assert staging_of(attempts_folder("/shared/out", JOB)) == folder == f"/shared/.out.{JOB}.shared"
    for wrong in ("", "/", "/shared/out", "/shared/out/attempts", folder):
        with pytest.raises(InternalError):
            staging_of(wrong)


WAYS = [(False, True), (True, True), (True, False)]


def calls_of(folder: Path, overwrite: bool, can_exchange: bool) -> int:
    folder.mkdir()
    fs = FaultyFilesystem(can_exchange=can_exchange)
    parts = prepared(folder / "out", overwrite)
    commit(fs, folder / "out", parts, overwrite)
    check(folder / "out")
    return len(fs.calls)


def prepared(out: Path, overwrite: bool) -> list[Part]:
    if overwrite:
        run(LOCAL, out, "old\n")
    return written(out, overwrite)


@pytest.mark.parametrize("crash", [True, False])
@pytest.mark.parametrize(("overwrite", "can_exchange"), WAYS)
def test_whichever_call_fails_another_commit_ends_it(
    tmp_path: Path, overwrite: bool, can_exchange: bool, crash: bool
) -> None:
    calls = calls_of(tmp_path / "count", overwrite, can_exchange)
    assert calls > 15
    for n in range(calls):
        folder = tmp_path / str(n)
        folder.mkdir()
        out = folder / "out"
        parts = prepared(out, overwrite)
        fs = FaultyFilesystem(fail_at=n, crash=crash, can_exchange=can_exchange)
        with contextlib.suppress(Crash, OutputFailed):
            commit(fs, out, parts, overwrite)
        if out.exists():
            assert contents(out) in (OLD, NEW), fs.calls[n]
        fs.end_process()
        commit(FaultyFilesystem(can_exchange=can_exchange), out, parts, overwrite, "c1")
        check(out)


class Interrupted(FaultyFilesystem):
    """Before its n-th call somebody else does something."""

    def __init__(self, at: int, then: Callable[[], None], can_exchange: bool) -> None:
        super().__init__(can_exchange=can_exchange)
        self._at, self._then = at, then

    def count(self, name: str, path: str) -> None:
        if len(self.calls) == self._at:
            self._at = -1
            self._then()
        super().count(name, path)


@pytest.mark.parametrize(("overwrite", "can_exchange"), WAYS)
def test_two_may_commit_at_the_same_time(tmp_path: Path, overwrite: bool, can_exchange: bool) -> None:
    """One was given up as lost, and is not: at whichever of its calls the other does all of its own."""
    for n in range(calls_of(tmp_path / "count", overwrite, can_exchange)):
        folder = tmp_path / str(n)
        folder.mkdir()
        out = folder / "out"
        parts = prepared(out, overwrite)
        other = FaultyFilesystem(can_exchange=can_exchange)

        def meanwhile(out: Path = out, parts: list[Part] = parts, other: FaultyFilesystem = other) -> None:
            commit(other, out, parts, overwrite, "c1")
            check(out)

        fs = Interrupted(n, meanwhile, can_exchange)
        commit(fs, out, parts, overwrite)
        check(out)

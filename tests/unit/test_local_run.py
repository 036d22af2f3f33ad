"""The client's end of a job: commit, temporary results and what earlier processes left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cortex.client.client import LocalSession
from cortex.config import load_config
from cortex.errors import OutputExistsError, OutputFailed, UsageError, UserCodeError
from cortex.job.spec import InputSpec, JobSpec, OutputSpec
from cortex.local_run import PackedJob, _temporary_folder, needs_code, open_session, run_job
from cortex.private_folders import runtime_parent
from cortex.storage import filesystem
from cortex.wire.messages import JobDone, JobReport, OutputPart


class Session:
    """Stands in for a `LocalSession`: "runs" a job by writing one part, or does what `run` says."""

    def __init__(self, act: Callable[[str], None] = lambda staging: None) -> None:
        self.act = act
        self.specs: list[JobSpec] = []
        self.acknowledged: list[str] = []

    def run(
        self, spec: JobSpec, code: bytes, sys_path: Any, staging: str, on_progress: Any, *_: Any
    ) -> JobDone:
        self.specs.append(spec)
        Path(staging, "attempt.1.csv").write_text("key,value\na,1\n")
        Path(staging, "attempt.0.csv").write_text("of an attempt that lost")
        self.act(staging)
        part = OutputPart("part-00000.csv", "attempt.1.csv", 1, 14, (("key", "string"), ("value", "int64")))
        return JobDone("j0", JobReport("j0", "test", 1.0), (part,))

    def received(self, job: str) -> None:
        self.acknowledged.append(job)


def job(output: Path | str = "", overwrite: bool = False) -> JobSpec:
    return JobSpec("test", InputSpec(("in",)), OutputSpec(str(output), "csv", overwrite), map_form="rows")


def run(session: Session, spec: JobSpec, home: Path) -> Any:
    return run_job(session, spec, PackedJob(), None, str(home))  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_output_is_committed_then_acknowledged(tmp_path: Path) -> None:
    session = Session()
    result = run(session, job(tmp_path / "out"), tmp_path / "home")
    assert names(tmp_path / "out") == ["_SUCCESS", "_manifest.json", "part-00000.csv"]
    assert list(result) == [("a", 1)]
    assert result.path == str(tmp_path / "out")
    assert session.acknowledged == ["j0"]
    with pytest.raises(OutputExistsError):
        run(session, job(tmp_path / "out"), tmp_path / "home")
    assert len(session.specs) == 1
    run(session, job(tmp_path / "out", overwrite=True), tmp_path / "home")


@pytest.mark.parametrize("error", [UserCodeError("bad"), KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("to_folder", [True, False])
def test_nothing_is_left_of_a_job_that_ends_early(
    tmp_path: Path, error: BaseException, to_folder: bool
) -> None:
    def fail(staging: str) -> None:
        raise error

    home = tmp_path / "home"
    home.mkdir()
    with pytest.raises(type(error)):
        run(Session(fail), job(tmp_path / "deep" / "out" if to_folder else ""), home)
    assert names(tmp_path) == ["home"]
    assert names(home) == []


def test_a_commit_that_fails_is_acknowledged_too(tmp_path: Path) -> None:
    session = Session(lambda staging: os.unlink(Path(staging, "attempt.1.csv")))
    with pytest.raises(OutputFailed):
        run(session, job(tmp_path / "out"), tmp_path)
    assert session.acknowledged == ["j0"]
    assert names(tmp_path) == []


def test_a_result_without_output_is_kept_as_arrow_in_a_private_folder(tmp_path: Path) -> None:
    session = Session()
    result = run(session, job(), tmp_path)
    assert session.specs[0].output.format == "arrow"
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert names(folder) == ["attempt.1.csv", "owner.lock"]
    assert result.path is None
    result.close()
    assert names(tmp_path) == []


HOLDER = """
import sys, time
from cortex.private_folders import PrivateFolder, new_name
print(PrivateFolder(new_name(sys.argv[1])).path, flush=True)
time.sleep(60)
"""


def test_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    dead, alive = (Path(holder.stdout.readline().strip()) for holder in holders if holder.stdout)
    holders[0].kill()
    holders[0].wait()
    (tmp_path / "cortex-abc").mkdir()  # not one of ours
    mine = [_temporary_folder(str(tmp_path))]
    assert dead.exists()  # too young to be judged
    monkeypatch.setattr("cortex.private_folders._SETTLED_S", 0.0)
    mine.append(_temporary_folder(str(tmp_path)))
    assert names(tmp_path) == sorted([alive.name, "cortex-abc", *(Path(each.path).name for each in mine)])
    for folder in mine:
        folder.remove()
    holders[1].kill()
    for holder in holders:
        holder.communicate()


def test_a_spill_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = load_config(
        {"CORTEX_SPILL_DIRS": str(tmp_path / "file" / "x"), "HOME": str(tmp_path)}, str(tmp_path)
    )
    with pytest.raises(OutputFailed, match="temporary files") as caught:
        open_session(job().resources, config)
    assert "CORTEX_SPILL_DIRS" in caught.value.cure


def test_folders_whose_names_are_not_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd, good = str(tmp_path / "caf\udce9"), str(tmp_path / "é")
    os.mkdir(odd)
    os.mkdir(good)
    monkeypatch.setattr(tempfile, "tempdir", odd)
    with pytest.raises(UsageError, match=r"spill folder is not UTF-8: b'.*caf\\xe9/") as caught:
        LocalSession()
    assert "rename" in caught.value.cure
    monkeypatch.setenv("XDG_RUNTIME_DIR", odd)
    assert runtime_parent(1000) == "/tmp"  # sockets go elsewhere
    monkeypatch.setenv("XDG_RUNTIME_DIR", good)
    assert runtime_parent(1000) == good


def test_a_spill_folder_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "is_memory_backed", lambda path: path == str(tmp_path / "spill"))
    config = load_config({"CORTEX_SPILL_DIRS": str(tmp_path / "spill"), "HOME": str(tmp_path)}, str(tmp_path))
    with pytest.raises(UsageError, match=r"tmpfs.*memory cap") as caught:
        open_session(job().resources, config)
    assert "CORTEX_SPILL_DIRS" in caught.value.cure


def test_declared_jobs_send_no_code() -> None:
    declared = JobSpec("t", InputSpec(("in",)), reduce_form="aggregate")
    assert not needs_code(declared)
    assert needs_code(job())

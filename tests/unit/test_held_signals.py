"""Ctrl-C while something is removed."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cortex import private_folders
from cortex.held_signals import held_signals
from cortex.ids import new_job_id
from cortex.private_folders import remove_folder
from cortex.storage.filesystem import LocalFilesystem
from cortex.storage.output_committer import abort_output, stage_output


def interrupted(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The removal of folders, with Ctrl-C pressed before it."""
    remove: Callable[..., Any] = shutil.rmtree

    def rmtree(path: str) -> None:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", rmtree)


@pytest.mark.parametrize("times", [1, 3])
def test_staging_is_removed_whole_and_then_the_job_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    fs = LocalFilesystem()
    staged = stage_output(fs, str(tmp_path / "made" / "out"), new_job_id())
    (Path(staged.path) / "part").write_text("x")
    interrupted(monkeypatch, times)
    with pytest.raises(KeyboardInterrupt):
        abort_output(fs, staged)
    assert list(tmp_path.iterdir()) == []
    assert staged.lock is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_removal_that_takes_too_long_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_folders, "REMOVE_S_MAX", 0.0)
    interrupted(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(str(tmp_path))
    assert tmp_path.exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_first_handler_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with held_signals(60), held_signals(60):
            signal.raise_signal(signal.SIGTERM)
            assert seen == []
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_holds_nothing() -> None:
    found: list[Any] = []

    def hold() -> None:
        with held_signals(60):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]

"""A message that the node cannot take ends the session with its cause: the job could not go on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

import cortex
from cortex.class_spec import build_spec
from cortex.client.client import LocalSession
from cortex.errors import SpillFull


class Lines(cortex.MapReduceJob):
    def map(self, line: str) -> Iterator[tuple[str, int]]:
        yield line, 1


def test_a_spill_folder_that_is_gone_is_named_as_the_cause(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    (tmp_path / "staging").mkdir()
    job = Lines(input=str(tmp_path / "in.txt"), output=str(tmp_path / "out"))
    with LocalSession(slots=1) as session:
        shutil.rmtree(session.wait_ready().work_dir)
        with pytest.raises(SpillFull, match="cannot make a folder for spilled data"):
            session.run(build_spec(job), cloudpickle.dumps(job), [], str(tmp_path / "staging"))

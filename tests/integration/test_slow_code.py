"""Slow user code is not taken for code that hangs: progress is seen record by record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

import cortex
from cortex.class_spec import build_spec
from cortex.client.client import LocalSession
from cortex.errors import TaskTimeout
from cortex.limits import PULSE_S

SILENCE_S = PULSE_S * 2


class Slow(cortex.MapReduceJob):
    def map(self, line: str) -> Iterator[tuple[str, int]]:
        time.sleep(PULSE_S / 2 if line == "slow" else 60 if line == "hangs" else 0)
        yield line, 1

    def reduce(self, key: str, values: Iterator[int]) -> Iterator[tuple[str, int]]:
        total = 0
        for value in values:
            time.sleep(PULSE_S / 2 if key == "slow" else 0)
            total += value
        yield key, total


def run(folder: Path, lines: list[str]) -> bytes:
    (folder / "in.txt").write_text("\n".join(lines))
    (folder / "staging").mkdir()
    job = Slow(input=str(folder / "in.txt"), output=str(folder / "out"), reducers=1)
    with LocalSession(slots=1, task_silence_s_max=SILENCE_S) as session:
        done = session.run(
            build_spec(job), cloudpickle.dumps(job), [str(Path(__file__).parents[2])], str(folder / "staging")
        )
    return (folder / "staging" / done.parts[0].staged_as).read_bytes()


def test_a_task_may_take_long_if_its_records_do_not(tmp_path: Path) -> None:
    started = time.monotonic()
    assert run(tmp_path, ["slow"] * 6) == b"key,value\nslow,6\n"
    assert time.monotonic() - started > 2 * SILENCE_S  # map and reduce were each longer than the silence


def test_a_record_that_hangs_is_stopped_with_its_stack(tmp_path: Path) -> None:
    with pytest.raises(TaskTimeout) as caught:
        run(tmp_path, ["quick", "hangs"])
    assert "in map" in caught.value.details["stack"]

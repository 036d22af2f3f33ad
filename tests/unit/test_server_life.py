"""A server's memory, and what it keeps on its disk, are the same after 10,000 jobs as after 1,500."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.server_life import KINDS, Life
from cortex.limits import AUDIT_FILE_BYTES, JOBS_REMEMBERED, KIB, MIB

AT_ONCE = 100
JOBS = 10_000


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    memory = Path("/dev/shm")  # on a disk each commit would wait for it, which is not what is asked here
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        made = Life(Path(folder))
        yield made
        made.end()


def test_what_a_server_holds_is_flat_over_ten_thousand_jobs(life: Life) -> None:
    while life.jobs < JOBS_REMEMBERED + 5 * AT_ONCE:  # so many ended jobs are still shown
        life.round(AT_ONCE)
    before = life.figures()
    while life.jobs < JOBS:
        life.round(AT_ONCE)
    after = life.figures()
    assert set(life.ends) == {"done", "user-code", "cancelled", "deserted", "unfetched"}
    assert life.ends["done"] == JOBS * sum(k in ("done", "retried", "back", "file") for k in KINDS) / len(
        KINDS
    )
    assert before["held_bytes"] < 2 * MIB
    assert after["held_bytes"] < before["held_bytes"] + 64 * KIB
    assert after["objects"] < before["objects"] + 1000
    assert after["process_bytes"] < before["process_bytes"] + 8 * MIB
    assert after["timers"] == before["timers"]
    assert after["files"] == before["files"]
    assert after["journal_bytes"] < before["journal_bytes"] + 1 * MIB
    assert after["audit_bytes"] < AUDIT_FILE_BYTES

"""A node's guard of its memory: when the tree is measured as a whole, on processes that there really are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cortex.limits import MEMORY_WHOLE_SAMPLES, MIB
from cortex.memory_plan import MemoryPlan
from cortex.node import memory_guard
from cortex.node.memory_guard import MemoryGuard
from cortex.process_memory import proportional_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

HOLD = (
    "import sys\n"
    "held = []\n"
    "print('up', flush=True)\n"
    "for line in sys.stdin:\n"
    "    held.append(bytearray(b'x') * (int(line) << 20))\n"
    "    print('held', flush=True)\n"
)


class Child:
    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", HOLD], **pipes)  # type: ignore[call-overload]
        assert self.process.stdout.readline() == "up\n"

    def hold(self, megabytes: int) -> None:
        self.process.stdin.write(f"{megabytes}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "held\n"

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.end()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Processes of which the share of the whole was read."""
    found: list[int] = []

    def proportional(pid: int) -> int:
        found.append(pid)
        return proportional_bytes(pid)

    monkeypatch.setattr(memory_guard, "proportional_bytes", proportional)
    return found


def guard(cap_bytes: int = 1 << 40) -> MemoryGuard:
    return MemoryGuard(MemoryPlan(cap_bytes, 1, 100 * MIB))


def test_what_has_not_grown_is_not_read_again(child: Child, read: list[int]) -> None:
    made = guard()
    made.sample(())
    assert set(read) >= {os.getpid(), child.process.pid}
    before = made.now_bytes
    read.clear()
    for _ in range(MEMORY_WHOLE_SAMPLES - 1):
        made.sample(())
        assert made.now_bytes == before
    assert read == []
    made.sample(())
    assert read, "now and then in any case: what was shared may have been written to"


def test_what_grows_is_read_at_once(child: Child, read: list[int]) -> None:
    made = guard()
    made.sample(())
    before = made.now_bytes
    read.clear()
    child.hold(30)
    made.sample(())
    assert 28 * MIB < made.now_bytes - before < 45 * MIB
    assert made.peak_bytes == made.now_bytes


def test_a_process_that_comes_or_goes_is_noticed(read: list[int]) -> None:
    made = guard()
    made.sample(())
    before = made.now_bytes
    other = Child()
    other.hold(30)
    made.sample(())
    assert made.now_bytes - before > 28 * MIB
    other.end()
    made.sample(())
    assert made.now_bytes - before < 15 * MIB
    assert made.peak_bytes - before > 28 * MIB


def test_near_the_cap_and_above_it_every_sample_is_whole(child: Child, read: list[int]) -> None:
    made = guard(cap_bytes=10 * MIB)
    for _ in range(3):
        read.clear()
        made.sample(())
        assert child.process.pid in read
        assert made.decide(()) is None
        assert made.paused

"""Memory figures of this very process and of made-up cgroups; the plan that divides a cap."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from cortex.errors import MemoryTooSmall, UsageError
from cortex.limits import (
    CLIENT_BYTES,
    DATA_SLACK_BYTES,
    EMBEDDED_BYTES,
    EXECUTOR_UNSHARED_BYTES,
    MIB,
    TEMPLATE_BYTES,
)
from cortex.memory_plan import plan_memory, refuse_beyond_machine, smallest_cap_bytes
from cortex.process_memory import (
    cgroup_memory_bytes,
    cgroup_processors,
    descendant_pids,
    own_anonymous_bytes,
    peak_anonymous_bytes,
    proportional_bytes,
    reset_peak,
    usable_memory_bytes,
    usable_processors,
)
from cortex.tasks import memory_limits
from cortex.tasks.environment import template_environment

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_anonymous_memory_counts_what_is_touched() -> None:
    before, before_pss = own_anonymous_bytes(), proportional_bytes(os.getpid())
    block = bytearray(b"x") * (64 * MIB)
    grown, grown_pss = own_anonymous_bytes() - before, proportional_bytes(os.getpid()) - before_pss
    assert 56 * MIB < grown < 80 * MIB
    assert 56 * MIB < grown_pss < 80 * MIB
    assert len(block) == 64 * MIB


@linux
def test_the_peak_is_remembered_and_can_be_reset() -> None:
    reset_peak()
    before = peak_anonymous_bytes()
    block = bytearray(b"x") * (96 * MIB)
    del block
    peak = peak_anonymous_bytes()
    assert peak - before > 80 * MIB
    reset_peak()
    assert peak_anonymous_bytes() < peak - 60 * MIB


@linux
def test_shared_pages_of_a_fork_count_once() -> None:
    block = bytearray(b"x") * (64 * MIB)
    one = proportional_bytes(os.getpid())
    ready, tell = os.pipe()
    hold, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(release)
        os.write(tell, b"x")
        os.read(hold, 1)
        os._exit(0)
    try:
        os.read(ready, 1)
        assert pid in descendant_pids(os.getpid())
        both = proportional_bytes(os.getpid()) + proportional_bytes(pid)
        assert both - one < 32 * MIB  # not 64 and more
        assert own_anonymous_bytes(pid) > 64 * MIB
    finally:
        os.close(release)
        os.waitpid(pid, 0)
        for fd in (ready, tell, hold):
            os.close(fd)
    assert len(block) == 64 * MIB


def test_a_process_that_is_gone_holds_nothing() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert proportional_bytes(pid) == own_anonymous_bytes(pid) == 0


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_cgroup_v2_limits_are_read_up_to_the_root(tmp_path: Path) -> None:
    own = "0::/user/app\n"
    write(tmp_path / "user" / "app" / "memory.max", "max")
    write(tmp_path / "user" / "memory.max", str(512 * MIB))
    write(tmp_path / "user" / "app" / "cpu.max", "150000 100000")
    write(tmp_path / "user" / "cpu.max", "max 100000")
    assert cgroup_memory_bytes(tmp_path, own) == 512 * MIB
    assert cgroup_processors(tmp_path, own) == 1.5


def test_cgroup_v1_limits_are_read_and_unlimited_is_none(tmp_path: Path) -> None:
    own = "4:memory:/box\n2:cpu,cpuacct:/box\n"
    write(tmp_path / "memory" / "box" / "memory.limit_in_bytes", str(256 * MIB))
    write(tmp_path / "memory" / "memory.limit_in_bytes", "9223372036854771712")
    write(tmp_path / "cpu,cpuacct" / "box" / "cpu.cfs_quota_us", "200000")
    write(tmp_path / "cpu,cpuacct" / "box" / "cpu.cfs_period_us", "100000")
    assert cgroup_memory_bytes(tmp_path, own) == 256 * MIB
    assert cgroup_processors(tmp_path, own) == 2.0
    write(tmp_path / "memory" / "box" / "memory.limit_in_bytes", "9223372036854771712")
    write(tmp_path / "cpu,cpuacct" / "box" / "cpu.cfs_quota_us", "-1")
    assert cgroup_memory_bytes(tmp_path, own) == 0
    assert cgroup_processors(tmp_path, own) == 0.0


def test_the_machine_has_something() -> None:
    assert usable_memory_bytes() > 128 * MIB
    assert 1 <= usable_processors() <= (os.cpu_count() or 1)


def test_slots_shrink_to_fit_the_cap() -> None:
    assert plan_memory(384 * MIB, 2).slots == 2
    assert plan_memory(256 * MIB, 2).slots >= 1
    assert plan_memory(4096 * MIB, 2).slots == 2
    assert plan_memory(smallest_cap_bytes(), 8).slots == 1
    for cap in range(smallest_cap_bytes(), 4096 * MIB, 50 * MIB):
        for slots in (1, 2, 7, 64):
            plan = plan_memory(cap, slots)
            unshared = plan.executor_bytes - (TEMPLATE_BYTES - EXECUTOR_UNSHARED_BYTES)
            assert CLIENT_BYTES + EMBEDDED_BYTES + TEMPLATE_BYTES + plan.slots * unshared <= cap
            assert 1 <= plan.slots <= slots


def test_a_cap_too_small_names_the_smallest() -> None:
    smallest = smallest_cap_bytes()
    with pytest.raises(MemoryTooSmall) as caught:
        plan_memory(smallest - 1, 1)
    assert f"--memory {smallest // MIB}MB" in caught.value.cure
    assert plan_memory(smallest, 1).slots == 1
    assert smallest <= 256 * MIB


def test_a_node_is_refused_what_its_machine_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.memory_plan.usable_memory_bytes", lambda: 1000 * MIB)
    refuse_beyond_machine(0)
    refuse_beyond_machine(1000 * MIB)
    with pytest.raises(UsageError) as caught:
        refuse_beyond_machine(2000 * MIB)
    assert "1.95 GB is more than this machine" in caught.value.message
    assert "--memory (or CORTEX_MEMORY) to 1000MB" in caught.value.cure


def test_the_default_is_half_of_the_machine() -> None:
    plan = plan_memory()
    assert plan.cap_bytes == max(usable_memory_bytes() // 2, smallest_cap_bytes())
    assert plan.slots <= usable_processors()


@linux
def test_a_limit_that_is_lifted_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.append(pair[0]))
    reserved = iter([80 * MIB, 300 * MIB, 900 * MIB])  # more each time, as after tasks that ran out of it
    monkeypatch.setattr(memory_limits, "own_data_bytes", lambda: next(reserved))
    monkeypatch.setattr(memory_limits, "own_anonymous_bytes", lambda: 50 * MIB)
    limit = memory_limits.MemoryLimit(100 * MIB)
    limit.set()
    for _ in range(2):
        limit.lift()
        limit.set()
    assert limits[::2] == [(100 + 30) * MIB + DATA_SLACK_BYTES] * 3
    none = memory_limits.MemoryLimit(0)
    none.lift()
    none.set()
    assert len(limits) == 5


def test_executors_do_not_see_secrets_and_hash_alike() -> None:
    got = template_environment({"CORTEX_JOIN": "secret", "PATH": "/bin", "OMP_NUM_THREADS": "8"})
    assert "CORTEX_JOIN" not in got
    assert got["PATH"] == "/bin"
    assert (got["PYTHONHASHSEED"], got["OMP_NUM_THREADS"], got["ARROW_DEFAULT_MEMORY_POOL"]) == (
        "0",
        "1",
        "jemalloc",
    )

"""A node's account of what may be spilled, what takes from it, and the meter that sets it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from cortex.errors import Fault, SpillFailed, SpillFull
from cortex.limits import SPILL_CHECK_BYTES, SPILL_MEASURE_S, SPILL_RESERVE_BYTES
from cortex.node.spill_meter import SpillMeter, spilled_bytes
from cortex.storage.filesystem import LocalFilesystem
from cortex.storage.spill_account import SpillAccount
from cortex.storage.spill_quota import SpillQuota


def test_a_writer_takes_what_it_wants_and_a_portion_more(tmp_path: Path) -> None:
    path = str(tmp_path / "account")
    account = SpillAccount.create(path, 1000)
    assert account.take(100) == 100
    assert account.take(1) == 56  # a sixteenth of what is left
    assert account.left() == 844
    assert SpillAccount(path).take(845) == 0
    assert SpillAccount(path).take(844) == 844
    assert (account.take(1), account.take(0)) == (0, 1)
    account.set_left(1 << 40)
    assert account.take(1) == SPILL_CHECK_BYTES
    account.set_left(-5)
    assert account.take(1) == 0
    assert os.stat(path).st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        SpillAccount.create(path, 1)


def test_writers_at_once_never_take_more_than_there_is(tmp_path: Path) -> None:
    path = str(tmp_path / "account")
    SpillAccount.create(path, 100_000)
    taken: list[int] = []

    def take() -> None:
        own = SpillAccount(path)
        while granted := own.take(7):
            taken.append(granted)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert 100_000 - 7 < sum(taken) <= 100_000


def test_a_spill_beyond_the_quota_is_refused_before_it_is_written(tmp_path: Path) -> None:
    path = str(tmp_path / "account")
    account = SpillAccount.create(path, 1000)
    quota = SpillQuota(LocalFilesystem(), str(tmp_path), reserve_bytes=0, account=path)
    for _ in range(10):
        quota.take(100)
    with pytest.raises(SpillFull) as raised:
        quota.take(1)
    assert raised.value.details["cause"] == "the node's quota is used up: 0 B are left of it"
    assert "--spill-quota" in raised.value.cure
    account.set_left(10)
    quota.take(10)


def test_an_account_that_is_gone_is_a_typed_error_of_the_attempt(tmp_path: Path) -> None:
    quota = SpillQuota(LocalFilesystem(), str(tmp_path), reserve_bytes=0, account=str(tmp_path / "gone"))
    with pytest.raises(SpillFailed) as raised:
        quota.take(1)
    assert raised.value.fault is Fault.TASK
    assert str(tmp_path / "gone") in raised.value.message
    with pytest.raises(SpillFull):
        SpillMeter(Reactor(), [str(tmp_path / "gone")])


def test_what_lies_in_spill_folders_is_counted_with_all_folders_below(tmp_path: Path) -> None:
    (tmp_path / "a" / "j1" / "output").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "j1" / "x.run").write_bytes(b"x" * 100)
    (tmp_path / "a" / "j1" / "output" / "part").write_bytes(b"x" * 30)
    (tmp_path / "b" / "log").write_bytes(b"x" * 7)
    (tmp_path / "b" / "link").symlink_to("/etc/services")
    link = len("/etc/services")
    folders = [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "gone")]
    assert spilled_bytes(folders) == 137 + link


class Reactor:
    """Calls from threads at once; keeps what is to be called later."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Any]] = []

    def callLater(self, seconds: float, function: Any) -> Any:
        self.later.append((seconds, function))
        return self

    def callFromThread(self, function: Any, *arguments: Any) -> None:
        function(*arguments)

    def active(self) -> bool:
        return True

    def cancel(self) -> None:
        self.later.clear()


def test_the_meter_sets_the_account_to_what_is_left_of_quota_and_disk(tmp_path: Path) -> None:
    reactor, free = Reactor(), [SPILL_RESERVE_BYTES + 5000]
    meter = SpillMeter(reactor, [str(tmp_path)], 1000, lambda folders: free[0])
    account = SpillAccount(meter.account_path)
    assert (meter.limit_bytes, account.left()) == (1000, 1000)
    (tmp_path / "x").write_bytes(b"x" * 392)
    meter._walk()  # what the thread does
    assert (meter.used_bytes, meter.limit_bytes, account.left()) == (400, 1000, 600)  # with the account's 8
    assert reactor.later[-1][0] == SPILL_MEASURE_S
    free[0] = SPILL_RESERVE_BYTES + 100  # others fill the disk
    meter._walk()
    assert (meter.limit_bytes, account.left()) == (500, 100)
    free[0] = 0
    meter._walk()
    assert (meter.limit_bytes, account.left()) == (400, 0)
    free[0] = -1  # nobody knows
    meter._walk()
    assert account.left() == 0
    meter.stop()
    meter._walk()
    assert reactor.later == []

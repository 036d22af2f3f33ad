"""Parts of a result on their way from their node: as far as credit reaches, and each end is told once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cortex.limits import PART_CHUNK_BYTES
from cortex.transfer.part_streams import PartStreams
from cortex.wire import messages as m

JOB = "j" + "1" * 12


class Node:
    """Streams whose thread does its work when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: list[Any] = []
        self.work: deque[Callable[[], None]] = deque()
        self.streams = PartStreams("n1", self.sent.append, self._in_thread, lambda function, *a: function(*a))

    def _in_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        self.work.append(lambda: function(*arguments))

    def begin(self, number: int, name: str, credit_bytes: int, offset: int = 0) -> None:
        self.streams.begin(m.SendPart(number, JOB, name, credit_bytes, offset), str(self.folder))

    def do(self) -> list[Any]:
        while self.work:
            self.work.popleft()()
        sent, self.sent[:] = list(self.sent), []
        return sent


def test_a_part_is_sent_as_far_as_credit_reaches(tmp_path: Path) -> None:
    node = Node(tmp_path)
    data = bytes(range(256)) * (PART_CHUNK_BYTES // 128)
    (tmp_path / "part").write_bytes(data)
    node.begin(1, "part", PART_CHUNK_BYTES + 10)
    first = node.do()
    assert [len(each.data) for each in first] == [PART_CHUNK_BYTES, 10]
    node.streams.credit(1, len(data))
    rest = node.do()
    assert b"".join(each.data for each in first + rest) == data
    assert [each.last for each in first + rest] == [False, False, True]
    node.streams.credit(1, 5)  # comes after the end
    assert node.do() == []


def test_a_part_that_goes_on_after_a_lost_link_is_not_ended_by_its_earlier_stream(tmp_path: Path) -> None:
    """A read that fails when its stream was dropped says nothing of the one that has its number now."""
    node = Node(tmp_path)
    node.begin(1, "part", 100)
    node.streams.drop_all()
    reading = node.work.popleft()
    node.begin(1, "part", 100)
    reading()  # there is no such file yet
    assert node.sent == []
    (tmp_path / "part").write_bytes(b"all of it")
    assert node.do() == [m.PartChunk("n1", 1, b"all of it", True)]


def test_what_cannot_be_read_is_told_once(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.begin(1, "part", 100)
    node.begin(2, "../part", 100)
    node.streams.begin(m.SendPart(3, JOB, "part", 100, 0), None)
    told = node.do()
    assert sorted(each.stream for each in told) == [1, 2, 3]
    assert all(isinstance(each, m.PartUnread) and each.error.code == "results-lost" for each in told)

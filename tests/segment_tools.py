"""For tests of the transfer: map outputs to move, and stand-ins for reactor, threads and transport."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from cortex.storage.file_names import run_path
from cortex.storage.filesystem import LocalFilesystem
from cortex.storage.run_format import Combined, StandsFor
from cortex.storage.run_writer import RunFileWriter
from cortex.storage.segment_file import SegmentCutter, plan_segment

JOB, OTHER_JOB = "j0123456789ab", "jba9876543210"
FS = LocalFilesystem()


def attempt(index: int, job: str = JOB) -> str:
    return f"{job}-m{index:06d}.0"


def write_run(
    folder: str,
    name: str,
    *,
    partitions: int = 2,
    blocks: int = 3,
    block_bytes: int = 2000,
    runs: int = 2,
    combined: Combined | None = None,
) -> str:
    """A committed run file of incompressible blocks, no two alike; its path."""
    path = run_path(folder, name)
    writer = RunFileWriter(FS, path, None)
    rng = np.random.default_rng(int(name[15:21]))
    for _ in range(runs):
        schema = pa.schema([("h", pa.uint64()), ("v", pa.int64())])
        writer.begin_run(schema)
        rows = max(1, block_bytes // 16)
        for partition in range(partitions) if combined is None else sorted(combined.partitions):
            for at in range(blocks):
                values = rng.integers(0, 2**62, (2, rows))
                batch = pa.record_batch([values[0].astype(np.uint64), values[1]], schema=schema)
                writer.append(partition, batch, at, at)
        writer.end_run()
    writer.close(combined)
    return path


def write_combined(folder: str, name: str, members: dict[str, set[int]], **options: int) -> str:
    """A file that says of itself that it was combined from these attempts, each with rows of some partitions;
    its path."""
    order = sorted(members)
    partitions = sorted(set().union(*members.values()))
    made_of = {
        p: StandsFor(100, 1000, sum(1 << i for i, each in enumerate(order) if p in members[each]))
        for p in partitions
    }
    return write_run(
        folder, name, partitions=max(partitions) + 1, combined=Combined(tuple(order), made_of), **options
    )


def segment_bytes(path: str, partition: int) -> bytes:
    """What a receiver should end up with."""
    cutter = SegmentCutter(FS, plan_segment(FS, path, partition))
    data = bytearray()
    while not cutter.ended:
        data += b"".join(cutter.read(1 << 20))
    return bytes(data)


def damage(path: str, offset: int) -> None:
    """Flip a bit; a negative offset counts from the end."""
    with open(path, "r+b") as file:
        at = offset % os.path.getsize(path)
        byte = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), at)


class FakeReactor(Clock):
    """A clock that tests move; what threads say is heard at once."""

    def callFromThread(self, function: Callable[..., Any], *arguments: Any) -> None:
        function(*arguments)


class Threads:
    """Work waits until the test lets it run."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()

    def callInThread(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.waiting.append((function, arguments))

    def run(self) -> None:
        while self.waiting:
            function, arguments = self.waiting.popleft()
            function(*arguments)


class SlowTransport(StringTransport):
    """Pauses its producer as Twisted's transports do: above 64 KiB, until `drain` took everything."""

    def __init__(self) -> None:
        super().__init__()
        self.unsent_bytes = 0
        self.aborted = False
        self.reading = True

    def write(self, data: bytes) -> None:
        super().write(data)
        self.unsent_bytes += len(data)
        if self.unsent_bytes > 1 << 16 and self.producer is not None:
            self.producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def drain(self) -> None:
        full, self.unsent_bytes = self.unsent_bytes > 1 << 16, 0
        if full and self.producer is not None:
            self.producer.resumeProducing()

    def abortConnection(self) -> None:
        self.aborted = True

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

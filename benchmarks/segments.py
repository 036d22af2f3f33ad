"""Segments between two processes over loopback, against the barest Twisted pair over the same connection;
and read in place, as on the maps' own node, against a bare loop of reads and that pair.

`benchmarks/peers/segment_pair.py` is one end of either. The time is the receiver's, from its first call
to the last file in place, so start-up does not count; processor time is of both sides.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.certificates import make_certificates
from benchmarks.contest import Row, environment, peer
from benchmarks.inputs import warm
from benchmarks.measure import Measured
from cortex.storage.file_names import run_path
from cortex.storage.filesystem import LocalFilesystem
from cortex.storage.run_writer import RunFileWriter

MAPS = 16
BLOCK_BYTES = 128 << 10
RATIO_MAX = 1 / 0.9


@dataclass(frozen=True)
class Transferred(Measured):
    moved_bytes: int = 0
    sender_s: float = 0.0
    receiver_s: float = 0.0

    def line(self) -> str:
        giga = self.moved_bytes / 1e9
        if not self.sender_s:
            return f"{giga / self.seconds:.2f} GB/s; CPU-s per GB: {self.receiver_s / giga:.2f}"
        spent = f"{self.sender_s / giga:.2f} + {self.receiver_s / giga:.2f}"
        return f"{giga / self.seconds:.2f} GB/s; CPU-s per GB, sender + receiver: {spent}"


@dataclass(frozen=True)
class Shape:
    """`MAPS` run files of `partitions` segments of `segment_bytes` each, in one run."""

    partitions: int
    segment_bytes: int

    def make(self, folder: Path) -> None:
        folder.mkdir()
        rows = min(BLOCK_BYTES, self.segment_bytes) // 16
        noise = np.random.default_rng(0).integers(0, 2**62, (2, rows))
        block = pa.record_batch({"hash": noise[0].astype(np.uint64), "value": noise[1]})
        for index in range(MAPS):
            writer = RunFileWriter(
                LocalFilesystem(), run_path(str(folder), f"j0123456789ab-m{index:06d}.0"), None
            )
            writer.begin_run(block.schema)
            for partition in range(self.partitions):
                for at in range(max(1, self.segment_bytes // (16 * rows))):
                    writer.append(partition, block, at, at)
            writer.end_run()
            writer.close()
        for path in folder.iterdir():
            warm(path)


def transfer(
    contender: str, wire: str, sink: str, source: Path, certificates: Path, shape: Shape
) -> Transferred:
    """Move all of `source` once."""
    out = source.parent / "received"
    out.mkdir()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()}
    send = peer("segment_pair", "send", contender, wire, source, certificates)
    with subprocess.Popen(send, stdin=subprocess.PIPE, text=True, **pipes) as sender:
        assert sender.stdin is not None
        assert sender.stdout is not None
        try:
            port = sender.stdout.readline().strip()
            receive = peer(
                "segment_pair",
                "receive",
                contender,
                wire,
                sink,
                out,
                certificates,
                port,
                MAPS,
                shape.partitions,
            )
            done = subprocess.run(receive, text=True, **pipes)
            sender.stdin.close()
            said = sender.stdout.readline()
        finally:
            sender.kill()
            files = list(out.iterdir())
            shutil.rmtree(out)
    if done.returncode or not said:
        return Transferred(0.0, 0.0, done.returncode or 1, error=done.stderr[-2000:])
    received, sent = json.loads(done.stdout), json.loads(said)
    expected = {"cortex": MAPS * shape.partitions, "bare": 1}[contender] if sink == "file" else 0
    wrong = "" if len(files) == expected else f"{len(files)} files, not {expected}"
    return Transferred(
        seconds=received["seconds"],
        processor_s=received["processor_s"] + sent["processor_s"],
        exit_code=1 if wrong else 0,
        error=wrong,
        moved_bytes=received["bytes"],
        sender_s=sent["processor_s"],
        receiver_s=received["processor_s"],
    )


def read_in_place(contender: str, source: Path, shape: Shape) -> Transferred:
    """Read all of `source` once, in a process of its own."""
    command = peer("segment_pair", "read", contender, source, MAPS, shape.partitions)
    done = subprocess.run(command, text=True, capture_output=True, env=environment())
    if done.returncode:
        return Transferred(0.0, 0.0, done.returncode, error=done.stderr[-2000:])
    found = json.loads(done.stdout)
    wanted = MAPS * shape.partitions * shape.segment_bytes
    wrong = "" if found["bytes"] >= wanted else f"{found['bytes']} bytes, not {wanted}"
    return Transferred(
        seconds=found["seconds"],
        processor_s=found["processor_s"],
        exit_code=1 if wrong else 0,
        error=wrong,
        moved_bytes=found["bytes"],
        receiver_s=found["processor_s"],
    )


def contest(
    name: str, wire: str, sink: str, shape: Shape, scratch: Path, *, rounds: int, judge: bool, say: Any
) -> list[Row]:
    """cortex and the bare pair in turn; without a `wire`, read in place. `judge`: 0.9 of the bare
    pair's speed is promised."""
    say(name)
    source, certificates = scratch / "segments", scratch / "certificates"
    make_certificates(certificates)
    shape.make(source)
    rows = {who: Row(name, who, []) for who in ("cortex", "bare")}
    try:
        for number in range(rounds):
            for who in list(rows) if number % 2 == 0 else reversed(list(rows)):
                if wire:
                    found = transfer(who, wire, sink, source, certificates, shape)
                else:
                    found = read_in_place(who, source, shape)
                rows[who].runs.append(found)
                rows[who].problem = rows[who].problem or (found.error if found.exit_code else "")
    finally:
        shutil.rmtree(source)
    cortex, bare = rows["cortex"], rows["bare"]
    if cortex.median_s is not None and bare.median_s is not None:
        bare.ratio = cortex.median_s / bare.median_s
        if judge and bare.ratio > RATIO_MAX:
            bare.missed = f"promised is x{RATIO_MAX:.2f} at most"
    for row in rows.values():
        say(row.line())
        runs = [run for run in row.runs if isinstance(run, Transferred) and run.moved_bytes]
        if runs:
            middle = statistics.median_low(run.seconds for run in runs)
            say(f"    {next(run for run in runs if run.seconds == middle).line()}")
    return list(rows.values())

"""How long a server takes to go on with a large job after its death: reading its journal and replaying it.

    python -m benchmarks.journal_replay [--maps 100000] [--partitions 100] [--json FILE]

The journal is of one job whose maps are all done on 100 nodes. Timed is `JournalDesk.read` with
`Scheduler.handle(Restored)`, by processor time: all that a server does before its port opens.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.task import Clock

from cortex.ids import JobId
from cortex.job.plan import InputFile, InputPlan, Split, SplitGroups, SplitsMade
from cortex.job.spec import InputSpec, JobSpec
from cortex.scheduling.records import AttemptEnded
from cortex.scheduling.scheduler import Scheduler
from cortex.server.journal_desk import JournalDesk
from cortex.storage.journal import Change, JobAdded, Journal, NodeKnown, RecordAdded
from cortex.wire import messages as m

JOB = JobId("j0123456789ab")
_NODES = [m.OutputNode(f"n{number:012x}", f"10.0.0.{number}:8787") for number in range(100)]
_BATCH = 10_000
_encode = msgspec.msgpack.Encoder().encode


def _plan(maps: int, partitions: int) -> InputPlan:
    splits = SplitsMade()
    for number in range(maps):
        splits.add(Split(number, 0, number * 64, 64))
    file = InputFile(0, "/in/a", "text", maps * 64, 0, 1)
    groups = SplitGroups.of(range(number, number + 1) for number in range(maps))
    return InputPlan((file,), splits.done(), groups, (("line", "string"),), maps * 64, partitions)


def _records(maps: int, partitions: int) -> Iterator[AttemptEnded]:
    planned = m.TaskFinished(f"{JOB}-plan.0", m.PlanResult(_plan(maps, partitions)), 1.0, 1)
    yield AttemptEnded(_NODES[0], planned, 0.5)
    rows = tuple(range(1000, 1000 + partitions))
    stats = m.TaskStats(1000, 64_000, 500, 30_000, 100, 100, 10)
    for index in range(maps):
        done = m.TaskFinished(f"{JOB}-m{index:06d}.0", m.MapResult(index, stats, rows, 7 + index), 1.5, 1)
        yield AttemptEnded(_NODES[index % len(_NODES)], done, 1.0 + index * 0.01)


def write_journal(folder: Path, maps: int, partitions: int) -> None:
    """What a server leaves that dies when all maps of the job are done."""
    journal = Journal(str(folder))
    bare = _encode(m.SubmitJob(JobSpec("a job", InputSpec(("/in/a",)), reduce_form="aggregate"), b"", (), ""))
    changes: list[Change] = [JobAdded(JOB, "c" + "0" * 12, time.time(), bare, b"code")]
    changes += [NodeKnown(node.node, "1") for node in _NODES]
    for record in _records(maps, partitions):
        changes.append(RecordAdded(JOB, _encode(record)))
        if len(changes) >= _BATCH:
            journal.write(changes)
            changes.clear()
    journal.write(changes)
    journal.close()


def replay(folder: Path) -> tuple[Scheduler, float]:
    """(the scheduler of the next life, processor seconds that it took)."""
    began = time.process_time()
    journal = Journal(str(folder))
    desk = JournalDesk(Clock(), journal, lambda *_: None, time.time)  # type: ignore[arg-type, return-value]
    scheduler = Scheduler(journalled=True)
    scheduler.handle(desk.read().restored, 100.0)
    spent_s = time.process_time() - began
    journal.close()
    return scheduler, spent_s


def measure(folder: Path, maps: int, partitions: int) -> dict[str, Any]:
    write_journal(folder, maps, partitions)
    size_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    scheduler, spent_s = replay(folder)
    done = scheduler.jobs[JOB].progress.stages["map"].table.done
    if done != maps:
        raise AssertionError(f"{done} of {maps} maps are done after the replay")
    return {
        "maps": maps,
        "partitions": partitions,
        "journal_bytes": size_bytes,
        "spent_s": round(spent_s, 3),
        "us_per_record": round(spent_s / maps * 1e6, 2),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.journal_replay", description=__doc__)
    parser.add_argument("--maps", type=int, default=100_000)
    parser.add_argument("--partitions", type=int, default=100)
    parser.add_argument("--json", type=Path, help="where to write the figures (default: standard output)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(measure(Path(folder), options.maps, options.partitions))
    if options.json is None:
        print(text)
    else:
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

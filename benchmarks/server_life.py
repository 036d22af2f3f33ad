"""A server's long life: thousands of small jobs through the real `Server`, its journal, audit log and files.

`Life` plays nodes and clients without sockets: jobs that end well, fail, are cancelled, retried, whose client
comes back or never does, which bring a file; nodes whose links break, and nodes that are lost. Between rounds
nothing is under way, so what is held then is what the server keeps for good: that must not grow.

    python -m benchmarks.server_life [--jobs 10000] [--at-once 100] [--folder DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import queue
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from benchmarks.scheduler_scale import held_bytes
from cortex.errors import ErrorReport, Fault
from cortex.ids import Role
from cortex.job.bundle import NO_BUNDLE, Bundle, BundleFile
from cortex.job.plan import InputFile, InputPlan, Split, SplitGroups, Splits
from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import CLIENT_RETURN_S, NODE_AWAY_S, PROGRESS_S
from cortex.process_memory import own_anonymous_bytes
from cortex.server.audit_desk import AuditDesk
from cortex.server.journal_desk import JournalDesk
from cortex.server.server import Server
from cortex.storage.audit_log import AuditLog
from cortex.storage.journal import Journal
from cortex.wire import messages as m
from cortex.wire.authority import Peer
from cortex.wire.versions import local_versions

CLUSTER = "k" + "0" * 12
KINDS = ("done", "done", "done", "failed", "retried", "cancelled", "deserted", "unfetched", "back", "file")
"""What becomes of jobs, in turn."""
_PATIENCE_S = 60.0
_VERSIONS = local_versions()
_PLAN = InputPlan(
    (InputFile(0, "/in/a", "text", 20, 0, 1),),
    Splits.of([Split(0, 0, 0, 10), Split(1, 0, 10, 10)]),
    SplitGroups.of([(0,), (1,)]),
    (),
    20,
    1,
)


class Time(Clock):
    """A clock whose threads' answers come when it is advanced."""

    def __init__(self) -> None:
        super().__init__()
        self._from_threads: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()

    def callFromThread(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._from_threads.put(lambda: function(*arguments))

    def turn(self) -> None:
        while not self._from_threads.empty():
            self._from_threads.get()()
        self.advance(0)


class Node:
    """Answers leases as `Life` says, in the next turn."""

    def __init__(self, life: Life, name: str) -> None:
        self.life = life
        self.name = name
        self.incarnation = 0
        self.jobs: set[str] = set()
        self.leased: deque[m.RunTask] = deque()
        self.say: Any = None

    def join(self, anew: bool = True) -> None:
        if anew:
            self.incarnation += 1
            self.jobs.clear()
            self.leased.clear()
        self.say = self.life.server.attach_node(self)
        self.say(
            m.NodeHello(
                self.name,
                str(self.incarnation),
                8,
                1 << 30,
                _VERSIONS,
                f"{self.name}:8787",
                tuple(sorted(self.jobs)),
                {run.attempt: getattr(run.task, "version", 0) for run in self.leased},
            )
        )
        self.beat()

    def beat(self) -> None:
        self.say(m.Heartbeat(self.name, str(self.incarnation), (), 1 << 20, 1 << 20))

    def send(self, message: m.ToNode) -> None:
        if isinstance(message, m.StartJob):
            self.jobs.add(message.job)
        elif isinstance(message, m.EndJob):
            self.jobs.discard(message.job)
        elif isinstance(message, m.Lease):
            self.leased.extend(message.tasks)
        elif isinstance(message, m.Revoke):
            self.leased = deque(run for run in self.leased if run.attempt not in message.attempts)
        elif isinstance(message, m.SendPart):
            self.say(m.PartChunk(self.name, message.stream, b"a part", True))

    def work(self) -> None:
        leased, self.leased = self.leased, deque()
        for run in leased:
            end = self.life.end_of(run)
            if isinstance(end, m.TaskFinished):
                self.say(m.AttemptFinished(self.name, str(self.incarnation), end))
            else:
                self.say(m.AttemptFailed(self.name, str(self.incarnation), end))


class Client:
    """One connection, one job."""

    congested = False

    def __init__(self, life: Life, number: int, peer: Peer) -> None:
        self.life = life
        self.number = number
        self.kind = KINDS[number % len(KINDS)]
        self.peer = peer
        self.job = f"j{number:012x}"
        self.ended = ""
        self.gone = False
        content = f"file of {number}".encode()
        file = BundleFile("file", "a.txt", hashlib.sha256(content).hexdigest(), len(content))
        self.content = content
        self.bundle = Bundle((file,)) if self.kind == "file" else NO_BUNDLE

    def accept(self) -> None: ...

    def close(self, last: Any = None) -> None:
        assert last is None, last

    def say(self, message: Any) -> None:
        self.life.server.client_said(self, message, self.peer)  # type: ignore[arg-type]

    def leave(self) -> None:
        self.gone = True
        self.life.server.client_lost(self, None)  # type: ignore[arg-type]

    def begin(self) -> None:
        self.say(m.ClientHello(_VERSIONS))
        if self.bundle.files:
            self.say(m.OfferBlobs(self.bundle.blobs()))
        else:
            self.submit()

    def submit(self) -> None:
        code = b"code %d" % (self.number % 50)
        spec = JobSpec(f"job {self.number}", InputSpec(("/in/a",)), reduce_form="aggregate")
        self.say(m.SubmitJob(spec, code, (), "", self.bundle, job=self.job))

    def send(self, message: Any) -> None:
        """What the server tells: a real client would answer in a later turn, and so does this one."""
        self.life.said.append((self, message))

    def hear(self, message: Any) -> None:
        if self.gone:
            return
        if isinstance(message, m.BlobsWanted):
            (sha256,) = message.blobs
            self.say(m.PutBlob(sha256, self.content, True))
        elif isinstance(message, m.BlobsTaken):
            if message.stored:
                self.submit()
        elif isinstance(message, m.JobAccepted):
            if self.kind == "cancelled":
                self.say(m.CancelJob(self.job))
            elif self.kind == "deserted":
                self.leave()
            elif self.kind == "back":
                self.leave()
                again = Client(self.life, self.number, self.peer)
                again.kind = "done"
                self.life.clients[self.job] = again
                again.say(m.ClientHello(_VERSIONS))
                again.say(m.AttachJob(self.job))
        elif isinstance(message, m.JobDone):
            if self.kind == "unfetched":
                self.leave()
            else:
                self.say(m.FetchPart(self.job, message.parts[0].staged_as, 1 << 20))
        elif isinstance(message, m.JobFailed):
            self.ended = message.error.code
            self.say(m.JobReceived(self.job))
        elif isinstance(message, m.PartBytes):
            self.ended = "done"
            self.say(m.JobReceived(self.job))
        elif isinstance(message, m.JobForgotten):
            self.leave()
        else:
            assert not isinstance(message, m.Refused | m.PartLost), message


class Life:
    """See the module. Journal, audit log and files are in `folder`; call `end` when done."""

    def __init__(self, folder: Path, nodes: int = 4) -> None:
        self.folder = folder
        self.clock = Time()
        self.clock.advance(1_764_000_000)
        self._blocked: deque[Callable[[], None]] = deque()
        self.journal = Journal(str(folder / "journal"))
        self.desk = JournalDesk(self.clock, self.journal, self.run, self.clock.seconds)
        self.audit = AuditDesk(AuditLog(str(folder / "audit")), self.run, self.clock.seconds)
        self.server = Server(
            self.clock,
            self.clock.seconds,
            CLUSTER,
            self.desk,
            blob_folder=str(folder / "blobs"),
            audit=self.audit.note,
        )
        self.clients: dict[str, Client] = {}
        self.said: deque[tuple[Client, Any]] = deque()
        """By the server, and not heard yet."""
        self.ends: Counter[str] = Counter()
        self.jobs = 0
        self.rounds = 0
        self.nodes = [Node(self, f"n{number:012x}") for number in range(nodes)]
        for node in self.nodes:
            node.join()
        self.turn()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """As the journal's thread, which is done with a piece of work by the next turn."""
        result: Deferred[Any] = Deferred()
        self._blocked.append(lambda: maybeDeferred(function, *arguments).chainDeferred(result))
        return result

    def turn(self) -> None:
        for _ in range(len(self._blocked)):
            self._blocked.popleft()()
        self.clock.turn()
        for _ in range(len(self.said)):
            client, message = self.said.popleft()
            client.hear(message)

    def end_of(self, run: m.RunTask) -> m.TaskFinished | m.TaskFailed:
        job = run.attempt.partition("-")[0]
        kind = KINDS[int(job[1:], 16) % len(KINDS)]
        stats = m.TaskStats(10, 1000, 5, 500, 100, 100, 5)
        result: m.Result
        if isinstance(run.task, m.PlanTask):
            result = m.PlanResult(_PLAN)
        elif isinstance(run.task, m.MapTask):
            if kind == "failed" or (kind == "retried" and run.attempt.endswith(".0")):
                fault = Fault.FATAL if kind == "failed" else Fault.TASK
                error = ErrorReport("user-code", f"{run.attempt} failed", fault=fault.value)
                return m.TaskFailed(run.attempt, error, 0.1, 1)
            result = m.MapResult(run.task.map_index, stats, (5,), 7, (), {"mine": {"records": 10}})
        else:
            assert isinstance(run.task, m.ReduceTask)
            part = m.OutputPart("part-00000.csv", f"{run.attempt}.csv", 10, 6, (("k", "string"),))
            result = m.ReduceResult(0, m.TaskStats(rows_in=10, bytes_in=1000, rows_out=10), (part,))
        return m.TaskFinished(run.attempt, result, 0.1, 1)

    def round(self, jobs: int) -> None:
        """So many jobs at once, from their clients' first word to the end of all that they leave behind."""
        self.rounds += 1
        for number in range(self.jobs, self.jobs + jobs):
            peer = Peer(Role.CLIENT, f"c{number % 500:012x}", CLUSTER, 1, 1e12)
            client = Client(self, number, peer)
            self.clients[client.job] = client
            client.begin()
        self.jobs += jobs
        self._wait(lambda: all(client.gone for client in self.clients.values()))
        self.ends.update(client.ended or client.kind for client in self.clients.values())
        self.clients.clear()
        node = self.nodes[self.rounds % len(self.nodes)]
        self.server.detach_node(node.name)
        if self.rounds % 3 == 0:  # lost; else it is back as it was
            self._pass(NODE_AWAY_S + 1)
        node.join(anew=self.rounds % 3 == 0)
        self._pass(CLIENT_RETURN_S + 1)  # those who did not come back
        self._wait(lambda: not any(node.jobs for node in self.nodes))
        assert not self.server.scheduler.jobs
        assert not self.server.scheduler.kept

    def _wait(self, so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not so() or self._blocked or self.said:
            assert time.monotonic() < deadline, [vars(c) for c in self.clients.values() if not c.gone][:1]
            for node in self.nodes:
                node.work()
            self.turn()
            self.clock.advance(PROGRESS_S / 4)

    def _pass(self, seconds: float) -> None:
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            for node in self.nodes:
                if node.name in self.server._nodes:
                    node.beat()
            self.turn()
            self.clock.advance(1.0)

    def figures(self) -> dict[str, int]:
        """What is held and kept now, with nothing under way."""
        gc.collect()
        sizes = {path: path.stat().st_size for path in self.folder.rglob("*") if path.is_file()}
        return {
            "jobs": self.jobs,
            "held_bytes": held_bytes([self.server, self.desk, self.audit]),
            "objects": len(gc.get_objects()),
            "process_bytes": own_anonymous_bytes(os.getpid()),
            "timers": len(self.clock.getDelayedCalls()),
            "journal_bytes": sum(size for path, size in sizes.items() if "journal" in path.parts),
            "audit_bytes": sum(size for path, size in sizes.items() if "audit" in path.parts),
            "files": len(sizes),
        }

    def end(self) -> None:
        self.server.stop()
        self.audit.stop()
        self.desk.stop()
        while self._blocked:
            self.turn()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server_life", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where the server's files are (default: temporary)")
    parser.add_argument("--json", type=Path, help="where to write the figures (default: standard output)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        life = Life(Path(folder))
        began = time.process_time()
        held = []
        report = max(options.at_once, options.jobs // 10)
        while life.jobs < options.jobs:
            life.round(min(options.at_once, options.jobs - life.jobs))
            if life.jobs % report == 0 or life.jobs == options.jobs:
                held.append(life.figures())
        spent_s = time.process_time() - began
        life.end()
    figures = {"held": held, "ends": life.ends, "ms_per_job": round(spent_s / life.jobs * 1000, 3)}
    if options.json is None:
        print(json.dumps(figures, indent=1))
    else:
        options.json.write_text(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

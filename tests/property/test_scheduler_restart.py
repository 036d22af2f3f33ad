"""A server that dies at any moment and starts again: its jobs end as if it had not.

The simulation of `test_scheduler`, with a journal whose last records a crash may lose, with nodes that keep
what they hold and what was not acknowledged, and with links that end without a node's or the server's death.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cortex.limits import LEASE_S, NODE_AWAY_S, NODE_RETURN_S
from cortex.scheduling import events
from cortex.scheduling.records import AttemptEnded, JobRecord
from cortex.scheduling.scheduler import Scheduler
from cortex.wire import messages as m
from tests.property.test_scheduler import FakeNode, Simulation


class LinkedNode(FakeNode):
    """A node whose link may end: it works on, and keeps its reports until they are acknowledged."""

    def __init__(self, name: str, slots: int, life: int) -> None:
        super().__init__(name, slots, life)
        self.away = False
        self.back_at = 0.0
        self.reports: dict[str, m.AttemptFinished | m.AttemptFailed] = {}
        self.versions: dict[str, int] = {}

    def hello(self) -> events.NodeJoined:
        address = f"{self.incarnation}:8787"
        held = {attempt: self.versions[attempt] for attempt in self.reports}
        held |= {run.attempt: self.versions[run.attempt] for run in self.queue}
        jobs = tuple(sorted(self.jobs))
        return events.NodeJoined(
            m.NodeHello(
                self.name, self.incarnation, self.slots, 1 << 30, {}, address, jobs, held, data_roots=1
            )
        )


class Journal:
    """What was written, in order, and how much of it is on the disk."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, str, object]] = []
        self.requests: dict[str, m.SubmitJob] = {}
        self.records: dict[str, list[JobRecord]] = {}
        self.began: dict[str, float] = {}
        self.lives: Counter[str] = Counter()
        self.nodes: dict[str, str] = {}

    def commit(self) -> list[AttemptEnded]:
        ended = []
        for kind, name, what in self.waiting:
            if kind == "record" and name in self.records:
                self.records[name].append(what)  # type: ignore[arg-type]
            if isinstance(what, AttemptEnded):
                ended.append(what)
            elif kind == "node":
                self.nodes[name] = str(what)
            elif kind == "gone":
                self.nodes.pop(name, None)
            elif kind == "end":
                self.records.pop(name, None)
        self.waiting.clear()
        return ended


class RestartSimulation(Simulation):
    def __init__(self, seed: int, jobs: int, nodes: int, faults: int, restarts: int, ends: int) -> None:
        self.journal = Journal()
        self.restarts, self.link_ends = restarts, ends
        self.restarted = 0
        self.ran: Counter[str] = Counter()
        super().__init__(seed, jobs, nodes, faults)

    def make_scheduler(self) -> Scheduler:
        return Scheduler(journalled=True)

    def join(self, name: str) -> None:
        self.lives += 1
        node = self.nodes[name] = LinkedNode(name, self.rng.randint(1, 3), self.lives)
        self.say_hello(node)

    def say_hello(self, node: LinkedNode) -> None:
        node.away = False
        for table in node.tables.values():
            table.__init__()  # type: ignore[misc]
        hello = node.hello()
        self.tell(hello)
        self.journal.waiting.append(("node", node.name, node.incarnation))
        self.commit()
        if self.link_ends > 0 and self.rng.random() < 0.2:  # it breaks again before it has told all
            self.link_ends -= 1
            self.end_link(node)
            self.tell(events.NodeAway(node.name))
            return
        for event in list(node.reports.values()):
            self.tell(event)
        self.heartbeat(node)

    def submit(self, job: str, request: m.SubmitJob) -> None:
        self.journal.requests[job], self.journal.records[job] = request, []
        self.journal.began[job] = self.now
        super().submit(job, request)

    def tell(self, event: events.Event) -> None:
        if isinstance(event, m.AttemptFinished | m.AttemptFailed):
            self.old.append(event)
        instructions = self.scheduler.handle(event, self.now)
        self.slots_max = max(self.slots_max, self.scheduler.leases.slots)
        for instruction in instructions:
            if isinstance(instruction, events.WriteDown):
                self.journal.waiting.append(("record", instruction.job, instruction.record))
            elif isinstance(instruction, events.GiveUpNode):
                self.journal.waiting.append(("gone", instruction.node, None))
            elif isinstance(instruction, events.SendToClient):
                if isinstance(instruction.message, m.JobFailed):
                    self.journal.waiting.append(("end", instruction.job, None))
                if isinstance(instruction.message, m.JobDone | m.JobFailed):
                    self.commit()
                self.client(instruction.job, instruction.message)
            elif instruction.node in self.nodes and not self.linked(instruction.node).away:
                self.node(self.linked(instruction.node), instruction.message)

        if isinstance(event, m.JobReceived):
            self.journal.waiting.append(("end", event.job, None))

    def client(self, job: str, message: object) -> None:
        if job not in self.ends:
            super().client(job, message)
        elif isinstance(message, m.JobDone):  # that its client has it was not on the disk
            self.tell(events.CancelRequested(job))

    def fetch(self, job: str) -> None:
        nodes = [self.nodes.get(part.node) for part in self.done[job].parts]
        if not any(isinstance(node, LinkedNode) and node.away for node in nodes):
            super().fetch(job)

    def linked(self, name: str) -> LinkedNode:
        node = self.nodes[name]
        assert isinstance(node, LinkedNode)
        return node

    def commit(self) -> None:
        for record in self.journal.commit():
            node = self.nodes.get(record.node.node)
            if isinstance(node, LinkedNode) and not node.away:
                node.reports.pop(record.end.attempt, None)

    def node(self, node: FakeNode, message: object) -> None:
        assert isinstance(node, LinkedNode)
        gone: set[str] = set()
        if isinstance(message, m.ReportsKept | m.Revoke):
            gone = set(message.attempts)
        elif isinstance(message, m.EndJob):
            gone = {attempt for attempt in node.reports if attempt.startswith(message.job)}
        for attempt in gone:
            node.reports.pop(attempt, None)
        if isinstance(message, m.Lease):
            for run in message.tasks:
                version = run.task.version if isinstance(run.task, m.ReduceTask) else 0
                node.versions[run.attempt] = version
        if not isinstance(message, m.ReportsKept):
            super().node(node, message)

    def report(self, node: FakeNode, event: m.AttemptFinished | m.AttemptFailed) -> None:
        assert isinstance(node, LinkedNode)
        end = event.done if isinstance(event, m.AttemptFinished) else event.failed
        node.reports[end.attempt] = event
        if "-s" not in end.attempt:
            self.ran[end.attempt.partition(".")[0]] += 1
        if not node.away:
            self.tell(event)

    def answers(self, node: FakeNode) -> bool:
        assert isinstance(node, LinkedNode)
        return super().answers(node) and not node.away

    def heartbeat(self, node: FakeNode) -> None:
        assert isinstance(node, LinkedNode)
        if not node.away:
            super().heartbeat(node)

    def step(self) -> None:
        rng = self.rng
        if rng.random() < 0.3:
            self.commit()
        if self.restarts > 0 and rng.random() < 0.1:
            self.restarts -= 1
            self.restart()
        if self.link_ends > 0 and rng.random() < 0.1:
            self.link_ends -= 1
            node = self.linked(rng.choice(sorted(self.nodes)))
            if not node.away:
                self.end_link(node)
                self.tell(events.NodeAway(node.name))
        for name in sorted(self.nodes):
            node = self.linked(name)
            if node.away and self.now >= node.back_at:
                self.say_hello(node)
        super().step()

    def end_link(self, node: LinkedNode) -> None:
        node.away = True
        node.back_at = self.now + self.rng.random() * NODE_AWAY_S * 0.8
        if self.fault(0.2):
            node.back_at += 2 * LEASE_S

    def restart(self) -> None:
        """The server dies, with what was not on the disk, and starts again."""
        self.restarted += 1
        journal = self.journal
        journal.waiting.clear()
        for name in self.nodes:
            self.end_link(self.linked(name))
            node = self.linked(name)
            node.back_at = min(node.back_at, self.now + NODE_RETURN_S * self.rng.random() * 0.9)
            if self.fault(0.2):
                node.back_at += 2 * LEASE_S
        self.scheduler = self.make_scheduler()
        jobs = []
        for job, records in journal.records.items():
            journal.lives[job] += 1
            age_s = self.now - journal.began[job]
            jobs.append(events.JobKept(job, journal.requests[job], age_s, journal.lives[job], tuple(records)))
        self.tell(events.Restored(tuple(jobs), dict(journal.nodes)))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([0, 3, 10, 40]),
    st.integers(0, 4),
    st.integers(0, 4),
)
@example(0, 3, 3, 200, 4, 4)
def test_every_job_ends_and_ends_right_across_the_servers_deaths(
    seed: int, jobs: int, nodes: int, faults: int, restarts: int, link_ends: int
) -> None:
    simulation = RestartSimulation(seed, jobs, nodes, faults, restarts, link_ends)
    simulation.run()
    assert simulation.ends.keys() == simulation.worlds.keys()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 5), st.integers(0, 3))
def test_nothing_finished_or_under_way_is_done_again(
    seed: int, nodes: int, restarts: int, link_ends: int
) -> None:
    """No plan, map or reduce runs twice, whether its end was on the disk or not."""
    simulation = RestartSimulation(seed, 2, nodes, 0, restarts, link_ends)
    simulation.run()
    assert all(isinstance(end, m.JobDone) for end in simulation.ends.values())
    assert set(simulation.ran.values()) <= {1}, simulation.ran

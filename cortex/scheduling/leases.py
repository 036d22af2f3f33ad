"""Leases: which node has which attempts, how much room it has, and when it was last heard.

A node's incarnation is checked here, so that nothing from an earlier life of a node, or about an
attempt it no longer holds, gets any further.
"""

from __future__ import annotations

from collections.abc import Iterable

from cortex.ids import AttemptId
from cortex.limits import LEASE_S, LEASES_AHEAD_PER_SLOT
from cortex.wire.messages import NodeHello, Task, TaskStats

PLAN, SCAN, MAP, REDUCE = "plan", "scan", "map", "reduce"
NO_STATS = TaskStats()


class Running:
    """One leased attempt: queued or running at a node."""

    __slots__ = ("attempt", "expected_rows", "index", "job", "node", "number", "stage", "stats", "task")

    def __init__(
        self, attempt: AttemptId, job: str, stage: str, index: int, number: int, node: str, task: Task
    ) -> None:
        self.attempt = attempt
        self.job = job
        self.stage = stage
        self.index = index
        self.number = number
        self.node = node
        self.task = task
        self.stats = NO_STATS
        """As of its last heartbeat."""
        self.expected_rows = 0
        """A reduce: rows that the maps say it will read."""


class Node:
    """A node as the scheduler sees it. Silent: its lease has expired, but its link is still there."""

    __slots__ = (
        "held", "hello", "jobs", "memory_bytes", "memory_peak_bytes", "planned", "renewed_at", "silent"
    )  # fmt: skip

    def __init__(self, hello: NodeHello, now: float) -> None:
        self.hello = hello
        self.renewed_at = now
        self.silent = False
        self.held: dict[AttemptId, Running] = {}
        self.jobs: set[str] = set()
        """Jobs it was told of (StartJob) and not told to end."""
        self.planned: set[str] = set()
        """Those of them whose plan it has."""
        self.memory_bytes = 0
        self.memory_peak_bytes = 0

    @property
    def name(self) -> str:
        return self.hello.node

    @property
    def room(self) -> int:
        """Attempts it may still be given: its slots and a short queue, so that no slot waits for us."""
        if self.silent:
            return 0
        return self.hello.slots * (1 + LEASES_AHEAD_PER_SLOT) - len(self.held)


class LeaseBook:
    """All nodes and what they hold."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def join(self, hello: NodeHello, now: float) -> Node:
        node = self.nodes[hello.node] = Node(hello, now)
        return node

    def leave(self, name: str) -> Node | None:
        return self.nodes.pop(name, None)

    def current(self, name: str, incarnation: str, now: float) -> Node | None:
        """The node that this message is from, with its leases renewed; None if the sender is stale."""
        node = self.nodes.get(name)
        if node is None or node.hello.incarnation != incarnation:
            return None
        node.renewed_at = now
        return node

    def expired(self, now: float) -> list[Node]:
        """Nodes silent for longer than LEASE_S that are not yet marked so."""
        return [n for n in self.nodes.values() if not n.silent and now - n.renewed_at > LEASE_S]

    def forgive(self, seconds: float) -> None:
        """The server itself stood still for `seconds`: it heard nobody, which says nothing of them."""
        for node in self.nodes.values():
            node.renewed_at += seconds

    def roomiest(self) -> Node | None:
        """The node with the most room for its size; None when all are full."""
        best = max(self.nodes.values(), key=lambda n: n.room / n.hello.slots, default=None)
        return best if best is not None and best.room > 0 else None

    @property
    def slots(self) -> int:
        return sum(n.hello.slots for n in self.nodes.values() if not n.silent)

    @property
    def cap_bytes(self) -> int:
        return sum(n.hello.memory_bytes for n in self.nodes.values())

    def release(self, attempts: Iterable[Running]) -> None:
        for running in attempts:
            node = self.nodes.get(running.node)
            if node is not None:
                node.held.pop(running.attempt, None)

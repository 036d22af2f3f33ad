"""Leases: which node has which attempts, how much room it has, and when it was last heard.

A node's incarnation is checked here, so that nothing from an earlier life of a node, or about an
attempt it no longer holds, gets any further. Sums over all nodes are kept, not made: no question but
`expired` costs more with a thousand nodes than with one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import msgspec

from cortex.ids import AttemptId
from cortex.limits import (
    HEARTBEAT_S,
    LEASE_S,
    LEASES_AHEAD_PER_SLOT,
    NODE_AWAY_S,
    PROGRESS_BEATS_PER_S_MAX,
    PROGRESS_S,
    SPILL_PORTION_FRACTION,
    SPILL_REST_S,
    SPILL_REST_S_MAX,
)
from cortex.scheduling.node_state import UP, Duty, NodeEvent, Presence, next_node_state
from cortex.wire.messages import NodeHello, OutputNode, Task, TaskStats

PLAN, SCAN, MAP, REDUCE = "plan", "scan", "map", "reduce"
NO_STATS = TaskStats()


class Running(msgspec.Struct, gc=False, eq=False):  # part of no cycle, and there are thousands
    """One leased attempt: queued or running at a node."""

    attempt: AttemptId
    job: str
    stage: str
    index: int
    number: int
    output_node: OutputNode
    task: Task
    stats: TaskStats = NO_STATS
    """As of its last heartbeat."""
    expected_rows: int = 0
    """A reduce: rows that the maps say it will read."""
    outputs_version: int = 0
    """A reduce: which state of the map outputs it was leased with."""

    @property
    def node(self) -> str:
        return self.output_node.node


class Told:
    """What a node knows of a job that it was sent tasks of."""

    __slots__ = ("ahead", "holders", "locations", "plan")

    def __init__(self) -> None:
        self.plan = False
        self.ahead = False
        """Told which inputs to fetch while maps run."""
        self.holders = -1
        """The version of the survey as the node was last told of it (`JobRun.input_holders`)."""
        self.locations = (0, 0)
        """(version, nodes): see `MapOutputs.news`."""


class Node:
    """A node as the scheduler sees it; for its `state` see `node_state`."""

    __slots__ = (
        "away_at", "disk_free_bytes", "drain_until", "held", "hello", "memory_bytes", "memory_peak_bytes",
        "offer", "output_node", "renewed_at", "rest_by", "rest_s", "rest_until", "serial", "spill_bytes",
        "spill_limit_bytes", "state", "told", "wanted_by",
    )  # fmt: skip

    def __init__(self, hello: NodeHello, serial: int, now: float) -> None:
        self.hello = hello
        self.output_node = OutputNode(hello.node, hello.data_address)
        self.serial = serial
        """Which joined first: who is as good is served in this order."""
        self.renewed_at = now
        self.state = UP
        self.away_at = 0.0
        self.drain_until = 0.0
        """While it is draining: when its time is over."""
        self.wanted_by: frozenset[str] = frozenset()
        """Jobs that no other node can run: it works for them though it is draining."""
        self.held: dict[AttemptId, Running] = {}
        self.offer = 0.0
        """The part of its slots that it has room for, as `LeaseBook.roomiest` knows it."""
        self.told: dict[str, Told] = {}
        """Jobs it was told of (StartJob) and not told to end."""
        self.memory_bytes = 0
        self.memory_peak_bytes = 0
        self.disk_free_bytes = -1
        self.spill_bytes = -1
        self.spill_limit_bytes = -1
        self.rest_s = 0.0
        """How long it was left alone last, for it had no room to spill; 0: it has had since."""
        self.rest_until: float | None = None
        self.rest_by = 0.0

    @property
    def name(self) -> str:
        return self.hello.node

    @property
    def silent(self) -> bool:
        """Its leases have expired, but its link is still there."""
        return self.state.presence is Presence.SILENT

    @property
    def away(self) -> bool:
        """Its link has ended, a moment ago."""
        return self.state.presence is Presence.AWAY

    @property
    def is_here(self) -> bool:
        return self.state.presence is Presence.HERE

    @property
    def draining(self) -> bool:
        return self.state.duty is not Duty.WORKING

    @property
    def takes_work(self) -> bool:
        """Of any job."""
        return self.state.takes_work

    def works_for(self, job: str) -> bool:
        return not self.draining or job in self.wanted_by

    @property
    def full(self) -> bool:
        """What it may still spill is less than one writer takes at once."""
        limit = self.spill_limit_bytes
        return limit >= 0 and self.spill_bytes >= limit * (1 - SPILL_PORTION_FRACTION)

    @property
    def room(self) -> int:
        """Attempts it may still be given: its slots and a short queue, so that no slot waits for us."""
        if not self.is_here or (self.draining and not self.wanted_by) or self.rest_until is not None:
            return 0
        return self.hello.slots * (1 + LEASES_AHEAD_PER_SLOT) - len(self.held)

    @property
    def wants(self) -> bool:
        """Half of its queue is used up: now is the time for the next lease, of several tasks at once."""
        return self.room >= max(1, self.hello.slots * LEASES_AHEAD_PER_SLOT // 2)


class LeaseBook:
    """All nodes and what they hold. Every change of a node's room goes through here."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.slots = 0
        """Of all nodes that take work."""
        self.cap_bytes = 0
        self.memory_bytes = 0
        self.memory_peak_bytes = 0
        self.wanting = 0
        """Nodes that want a lease."""
        self._joined = 0
        self._by_room: list[tuple[float, int, str]] = []
        """A heap of (-offer, serial, name); an entry that is not the node's offer any more is void."""

    # --- nodes ---

    def join(self, hello: NodeHello, now: float) -> Node:
        self._joined += 1
        node = self.nodes[hello.node] = Node(hello, self._joined, now)
        self.slots += hello.slots
        self.cap_bytes += hello.memory_bytes
        if hello.draining_s >= 0:  # since an earlier life of the server
            self.drain(node, now + hello.draining_s)
        self._room_changed(node)
        return node

    def rejoin(self, node: Node, hello: NodeHello, now: float) -> None:
        """It is back, the same as before: it keeps its leases, and goes on draining."""
        self.slots -= hello.slots if node.takes_work else 0
        self.cap_bytes += hello.memory_bytes - node.hello.memory_bytes
        node.hello, node.output_node = hello, OutputNode(hello.node, hello.data_address)
        node.renewed_at = now
        node.state = next_node_state(node.state, NodeEvent.RETURN)
        self.slots += hello.slots if node.takes_work else 0
        self._room_changed(node)

    def leave(self, name: str) -> Node | None:
        node = self.nodes.pop(name, None)
        if node is not None:
            self.slots -= node.hello.slots if node.takes_work else 0
            self._offer(node, 0.0)
            self.cap_bytes -= node.hello.memory_bytes
            self.measured(node, 0, 0)
        return node

    def _apply(self, node: Node, event: NodeEvent) -> None:
        counted = node.takes_work
        node.state = next_node_state(node.state, event)
        self.slots += node.hello.slots * (node.takes_work - counted)
        self._room_changed(node)

    def silence(self, node: Node) -> None:
        """Its leases have expired: nothing is leased to it until it is heard again."""
        self._apply(node, NodeEvent.EXPIRE)

    def send_away(self, node: Node, now: float) -> None:
        """Its link has ended: nothing is leased to it until it is back."""
        node.away_at = now
        self._apply(node, NodeEvent.UNLINK)

    def revive(self, node: Node) -> None:
        self._apply(node, NodeEvent.HEAR)

    def drain(self, node: Node, until: float) -> None:
        """Nothing is leased to it from now on, but of jobs that want it (`wanted_by`)."""
        node.drain_until = until
        self._apply(node, NodeEvent.DRAIN)

    def stop_waiting_for(self, node: Node) -> None:
        """The time of its drain is over."""
        self._apply(node, NodeEvent.TIME_OVER)

    def empty(self, node: Node) -> None:
        """Nothing of it is needed any more: it may go."""
        self._apply(node, NodeEvent.EMPTY)

    def keep(self, node: Node) -> None:
        """It is drained no more."""
        node.wanted_by = frozenset()
        self._apply(node, NodeEvent.UNDO)

    def want(self, node: Node, jobs: frozenset[str]) -> None:
        if jobs != node.wanted_by:
            node.wanted_by = jobs
            self._room_changed(node)

    def rest(self, node: Node, now: float) -> None:
        """It had no room to spill: nothing is leased to it for a while, longer each time. Jobs that end give
        room; and other nodes may have some."""
        if node.rest_until is None:
            node.rest_s = min(SPILL_REST_S_MAX, 2 * node.rest_s) if node.rest_s else SPILL_REST_S
            node.rest_until, node.rest_by = now + node.rest_s, now + SPILL_REST_S_MAX
            self._room_changed(node)

    def had_room(self, node: Node) -> None:
        """An attempt there has ended well: its next rest is a short one."""
        if node.rest_until is None:
            node.rest_s = 0.0

    def end_rests(self, now: float) -> None:
        """Nodes that are still full rest on while there is another that is not: for SPILL_REST_S_MAX, as the
        others may not be able to run what waits."""
        for node in [n for n in self.nodes.values() if n.rest_until is not None and now >= n.rest_until]:
            others = (n for n in self.nodes.values() if n.takes_work and n.rest_until is None)
            if node.full and now < node.rest_by and any(not other.full for other in others):
                node.rest_until = now + SPILL_REST_S
            else:
                node.rest_until = None
                self._room_changed(node)

    def measured(self, node: Node, memory_bytes: int, memory_peak_bytes: int) -> None:
        self.memory_bytes += memory_bytes - node.memory_bytes
        self.memory_peak_bytes += memory_peak_bytes - node.memory_peak_bytes
        node.memory_bytes, node.memory_peak_bytes = memory_bytes, memory_peak_bytes

    def current(self, name: str, incarnation: str, now: float) -> Node | None:
        """The node that this message is from, with its leases renewed; None if the sender is stale."""
        node = self.nodes.get(name)
        if node is None or node.hello.incarnation != incarnation:
            return None
        node.renewed_at = now
        return node

    def expired(self, now: float) -> list[Node]:
        """Nodes with a link, silent for longer than LEASE_S, that are not yet marked so."""
        here = Presence.HERE
        return [n for n in self.nodes.values() if n.state[0] is here and now - n.renewed_at > LEASE_S]

    def not_back(self, now: float) -> list[Node]:
        """Nodes away for longer than NODE_AWAY_S."""
        away = Presence.AWAY
        return [n for n in self.nodes.values() if n.state[0] is away and now - n.away_at > NODE_AWAY_S]

    def forgive(self, seconds: float) -> None:
        """The server itself stood still for `seconds`: it heard nobody, which says nothing of them."""
        for node in self.nodes.values():
            node.renewed_at += seconds
            node.away_at += seconds

    @property
    def progress_s(self) -> float:
        """How often a node should tell of its running attempts."""
        return min(HEARTBEAT_S, max(PROGRESS_S, len(self.nodes) / PROGRESS_BEATS_PER_S_MAX))

    # --- leases ---

    def hold(self, node: Node, leased: Iterable[Running]) -> None:
        node.held.update((running.attempt, running) for running in leased)
        self._room_changed(node)

    def take(self, node: Node, attempt: str) -> Running | None:
        """The attempt, held by the node no more; None if it did not hold it."""
        running = node.held.pop(attempt, None)  # type: ignore[call-overload]
        if running is not None:
            self._room_changed(node)
        return running  # type: ignore[no-any-return]

    def take_all(self, node: Node) -> list[Running]:
        held = list(node.held.values())
        node.held.clear()
        self._room_changed(node)
        return held

    def release(self, attempts: Iterable[Running]) -> None:
        for running in attempts:
            node = self.nodes.get(running.node)
            if node is not None:
                self.take(node, running.attempt)

    def roomiest(self) -> Node | None:
        """The node with the most room for its size, of those that want a lease; None when none does."""
        heap = self._by_room
        while heap:
            negative, serial, name = heap[0]
            node = self.nodes.get(name)
            if node is not None and node.serial == serial and node.offer == -negative:
                return node
            heapq.heappop(heap)
        return None

    def set_aside(self, node: Node) -> None:
        """`roomiest` does not give this node until it is put back."""
        self._offer(node, 0.0)

    def put_back(self, node: Node) -> None:
        self._room_changed(node)

    def _room_changed(self, node: Node) -> None:
        self._offer(node, node.room / node.hello.slots if node.wants else 0.0)

    def _offer(self, node: Node, offer: float) -> None:
        if offer == node.offer:
            return
        self.wanting += (offer > 0.0) - (node.offer > 0.0)
        node.offer = offer
        if offer:
            heapq.heappush(self._by_room, (-offer, node.serial, node.name))
            if len(self._by_room) > 4 * len(self.nodes) + 16:  # mostly void: begin anew
                self._by_room = [(-n.offer, n.serial, n.name) for n in self.nodes.values() if n.offer]
                heapq.heapify(self._by_room)

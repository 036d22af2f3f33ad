"""Leases: which node has which attempts, how much room it has, and when it was last heard.

A node has slots, and beside each a *successor*: an attempt that waits there and takes the slot when the
attempt before it has ended, if both are of one job. So slots stay with jobs without being asked about, and
change jobs by successors not being leased, or recalled. Which job has how many of a node's slots is counted
here by the rule by which the node gives them out.

A node's incarnation is checked here, so that nothing from an earlier life of a node, or about an
attempt it no longer holds, gets any further. Sums over all nodes are kept, not made: no question but
`expired` costs more with a thousand nodes than with one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Final

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

PLAN, SCAN, MAP, REDUCE, COMMIT, CALLS = "plan", "scan", "map", "reduce", "commit", "calls"
NO_STATS = TaskStats()
CONDITIONS: Final = ("up", "full", "away", "silent", "draining", "leaving")


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
        "away_at", "busy", "disk_free_bytes", "drain_until", "free_counted", "held", "held_of", "hello",
        "limits", "memory_bytes", "memory_peak_bytes", "offer", "output_node", "recalling", "renewed_at",
        "rest_by", "rest_s", "rest_until", "serial", "slots_of", "spare", "spill_bytes",
        "spill_limit_bytes", "state", "told", "turn_at", "wanted_by",
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
        self.held_of: dict[str, int] = {}
        """Job -> attempts of it among them."""
        self.slots_of: dict[str, int] = {}
        """Job -> slots that it has here."""
        self.turn_at: dict[str, float] = {}
        """Job -> since when it has any."""
        self.limits: dict[str, int] = {}
        """Job -> slots that it may have here, where it says less memory than the node has."""
        self.busy = 0
        """Slots that jobs have; more than there are when some jobs' reduces wait for their inputs."""
        self.spare = 0
        """Slots that the node says stand idle all the same."""
        self.recalling = False
        """It was asked for leases that have not begun, and has not answered yet."""
        self.free_counted = 0
        """Its free slots as `LeaseBook.free_slots` knows them."""
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
    def condition(self) -> str:
        """For people: one of CONDITIONS."""
        return "full" if self.takes_work and self.rest_until is not None else self.state.word

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
        if not self._takes_leases:
            return 0
        ahead = self.hello.slots * (1 + LEASES_AHEAD_PER_SLOT) - len(self.held)
        return max(ahead, self.hello.slots + self.spare if self.spare else 0)

    @property
    def free_slots(self) -> int:
        """Slots that no job has, or that stand idle."""
        if not self._takes_leases:
            return 0
        return max(0, self.hello.slots - self.busy) + self.spare

    @property
    def _takes_leases(self) -> bool:
        leaves = self.draining and not self.wanted_by
        return self.is_here and not leaves and self.rest_until is None

    def may_take_slot(self, job: str) -> bool:
        return job not in self.limits or self.slots_of.get(job, 0) < self.limits[job]

    def waiting(self, job: str) -> int:
        """Attempts of the job that wait here for a slot."""
        return self.held_of.get(job, 0) - self.slots_of.get(job, 0)

    def successors_wanted(self, job: str) -> int:
        """Attempts that may wait here for the slots that the job has."""
        if self.busy > self.hello.slots:
            return 0
        return self.slots_of.get(job, 0) * (1 + LEASES_AHEAD_PER_SLOT) - self.held_of.get(job, 0)

    @property
    def has_successors(self) -> bool:
        return len(self.held) > self.busy

    def begin(self, running: Running, now: float) -> list[tuple[str, int]]:
        """It is leased: it takes a slot that is free, or waits for one of its job's. Gives what changed, as
        (job, how many slots more)."""
        job = running.job
        self.held[running.attempt] = running
        self.held_of[job] = self.held_of.get(job, 0) + 1
        if not self.may_take_slot(job):
            return [(job, 0)]
        if self.busy >= self.hello.slots:
            if not self.spare:
                return [(job, 0)]
            self.spare -= 1
        return [self._slot_to(job, now)]

    def end(self, running: Running, now: float) -> list[tuple[str, int]]:
        """It is over: its slot is its successor's, or free."""
        job = running.job
        left = self.held_of[job] - 1
        self.held_of[job] = left
        changed = [(job, 0)]
        if self.slots_of.get(job, 0) > left:
            self.busy -= 1
            self.slots_of[job] = left
            changed = [(job, -1)]
        if not left:
            for kept in (self.held_of, self.slots_of, self.turn_at, self.limits):
                kept.pop(job, None)
        return changed

    def settle(self, now: float) -> list[tuple[str, int]]:
        """Slots that nobody was leased anything for go to what waits here."""
        changed = []
        while self.busy < self.hello.slots and self.has_successors:
            heirs = (each for each in self.held_of if self.waiting(each) and self.may_take_slot(each))
            heir = next(heirs, None)
            if heir is None:
                break
            changed.append(self._slot_to(heir, now))
        return changed

    def _slot_to(self, job: str, now: float) -> tuple[str, int]:
        self.busy += 1
        self.turn_at.setdefault(job, now)
        self.slots_of[job] = self.slots_of.get(job, 0) + 1
        return job, 1

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
        self.free_slots = 0
        """Of all nodes."""
        self.now = 0.0
        """Of the event that is handled."""
        self.slots_of: dict[str, int] = {}
        """Job -> slots that it has at all nodes."""
        self.changed: dict[str, None] = {}
        """Jobs whose leases changed, until somebody has looked."""
        self._unsettled: dict[str, Node] = {}
        """Nodes with free slots where attempts wait."""
        self.with_successors: dict[str, Node] = {}
        """Nodes where attempts wait for slots."""
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
        node.renewed_at, node.recalling, node.spare = now, False, 0
        node.state = next_node_state(node.state, NodeEvent.RETURN)
        self.slots += hello.slots if node.takes_work else 0
        self._room_changed(node)

    def leave(self, name: str) -> Node | None:
        node = self.nodes.pop(name, None)
        if node is not None:
            self.slots -= node.hello.slots if node.takes_work else 0
            self._offer(node, 0.0)
            self.free_slots -= node.free_counted
            self.with_successors.pop(name, None)
            self._unsettled.pop(name, None)
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
        for running in leased:
            self.lease(node, running)
        self._room_changed(node)

    def lease(self, node: Node, running: Running) -> bool:
        """One of several: `put_back` the node after the last. True if it has a slot, and is no successor."""
        changes = node.begin(running, self.now)
        self._count(changes)
        return changes[0][1] > 0

    def take(self, node: Node, attempt: str) -> Running | None:
        """The attempt, held by the node no more; None if it did not hold it."""
        running = node.held.pop(attempt, None)  # type: ignore[call-overload]
        if running is not None:
            self._count(node.end(running, self.now))
            self._room_changed(node)
        return running  # type: ignore[no-any-return]

    def take_all(self, node: Node) -> list[Running]:
        held = list(node.held.values())
        for running in held:
            self._count([(running.job, -node.slots_of.pop(running.job, 0))])
        for kept in (node.held, node.held_of, node.turn_at, node.limits):
            kept.clear()
        node.busy = node.spare = 0
        node.recalling = False
        self._room_changed(node)
        return held

    def _count(self, changes: Iterable[tuple[str, int]]) -> None:
        for job, more in changes:
            self.changed[job] = None
            if more:
                self.slots_of[job] = self.slots_of.get(job, 0) + more
                if not self.slots_of[job]:
                    del self.slots_of[job]

    def settle(self) -> None:
        """All that is to be leased now is: what nodes do by themselves with slots that are free."""
        for node in list(self._unsettled.values()):
            self._count(node.settle(self.now))
            self._room_changed(node)
        self._unsettled.clear()

    def stands_idle(self, node: Node, slots: int) -> None:
        """The node says that so many slots stand idle, though reduces wait for their inputs there."""
        spare = max(0, slots - max(0, node.hello.slots - node.busy))
        if spare != node.spare:
            node.spare = spare
            self._room_changed(node)

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
        if self.nodes.get(node.name) is not node:  # it has left: so have its slots
            return
        self._offer(node, node.room / node.hello.slots if node.wants else 0.0)
        free = node.free_slots
        self.free_slots += free - node.free_counted
        node.free_counted = free
        if node.has_successors:
            self.with_successors[node.name] = node
            if node.busy < node.hello.slots:
                self._unsettled[node.name] = node
        else:
            self.with_successors.pop(node.name, None)

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

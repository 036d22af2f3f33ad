"""Nodes that are drained: what each is still needed for, and when it may go. Pure.

A node that is drained gets no more work and finishes what it has; what it keeps for jobs stays until they do
not need it, or its time is over: then that is made elsewhere. Beyond its time only what nobody else has, or
can do, keeps it. That it drains is its state in the `LeaseBook`.
"""

from __future__ import annotations

from cortex.scheduling.events import DrainRequested, Instruction, SendToNode
from cortex.scheduling.job_book import JobBook
from cortex.scheduling.leases import LeaseBook, Node
from cortex.scheduling.node_state import Duty
from cortex.scheduling.run import Run
from cortex.units import counted
from cortex.wire.messages import Drain, Revoke


class Drains:
    def __init__(self, leases: LeaseBook, book: JobBook) -> None:
        self._leases = leases
        self._book = book

    def request(self, event: DrainRequested, now: float) -> list[Instruction]:
        node = self._leases.nodes.get(event.node)
        if node is None:
            return []
        if event.undo:
            self._leases.keep(node)
        else:
            self._leases.drain(node, now + event.seconds)
            for job in self._book.under_way.values():
                job.leave_node(node.name)
        return [SendToNode(node.name, Drain(-1.0 if event.undo else event.seconds))]

    def under_way(self) -> list[Node]:
        """Nodes that are drained and can be reached."""
        return [node for node in self._leases.nodes.values() if node.draining and not node.away]

    def look_at(self, node: Node, now: float) -> list[Instruction]:
        """What it is to work for though it drains, and whether its time is over."""
        jobs = self._book.under_way.values()
        wanted = frozenset(job.job for job in jobs if job.unfit and self._only_node_for(job, node))
        self._leases.want(node, wanted)
        if now >= node.drain_until and node.state.duty is Duty.DRAINING and not wanted:
            return self._end_work_at(node)
        return []

    def _end_work_at(self, node: Node) -> list[Instruction]:
        """Its time is over: what it still runs, and what it keeps for jobs under way, is made elsewhere, but
        for jobs whose input only this node has. A finished result stays until it is fetched: its input may be
        gone."""
        said: list[Instruction] = []
        self._leases.stop_waiting_for(node)
        taken = self._leases.take_all(node)
        for running in taken:
            self._book.under_way[running.job].abandoned(running)
        if taken:
            said.append(SendToNode(node.name, Revoke(tuple(running.attempt for running in taken))))
        for job in list(self._book.under_way.values()):
            if job.needs_of(node.name) and not job.survey.has_alone(node.name):
                said += self._book.lose(job, node.name)
                job.holder_lost(node.name)
        return said

    def waits_for(self, node: Node) -> tuple[str, ...]:
        """What a node that is drained is still needed for, in words; nothing: it may end."""
        tasks = [counted(len(node.held), "task")] if node.held else []
        sole = [f"it is the only node that can run {job}" for job in sorted(node.wanted_by)]
        needs = ((job.job, job.needs_of(node.name)) for job in self._book.all())
        return (*tasks, *sole, *(f"{what} of {job}" for job, what in needs if what))

    def _only_node_for(self, job: Run, node: Node) -> bool:
        others = (n.name for n in self._leases.nodes.values() if n is not node and n.takes_work)
        return node.name not in job.unfit and all(name in job.unfit for name in others)

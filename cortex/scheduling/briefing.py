"""What nodes are told of a job, and asked about it: each thing once, and before what needs it. Pure.

What a node knows stands in its `Node.told`, which is changed nowhere else but where a node comes back and
says what it still knows. Every method gives the messages in the order in which they are to be sent.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from cortex.scheduling.events import Instruction, SendToNode
from cortex.scheduling.leases import REDUCE, LeaseBook, Node, Running, Told
from cortex.scheduling.run import Run
from cortex.wire.messages import DropMapOutputs, EndJob


class Briefing:
    def __init__(self, leases: LeaseBook) -> None:
        self._leases = leases

    # --- told ---

    def introduce(self, node: Node, job: Run, running: Running | None = None) -> Sequence[Instruction]:
        """A node hears of a job, of its plan and of its map outputs before its first task that needs them."""
        said: list[Instruction] = []
        told = node.told.get(job.job)
        if told is None:
            told = node.told[job.job] = Told()
            said.append(SendToNode(node.name, job.start_message(self._leases.progress_s)))
        if job.planned_message is not None and not told.plan:
            told.plan = True
            said.append(SendToNode(node.name, job.planned_message))
        if running is not None and job.may_read_from_afar(running):
            holders = job.input_holders(told.holders, self._leases.nodes)
            if holders is not None:
                told.holders = job.survey.version
                said.append(SendToNode(node.name, holders))
        if running is not None and running.stage == REDUCE:
            locations = job.locations(*told.locations)
            if locations is not None:
                told.locations = job.locations_known()
                said.append(SendToNode(node.name, locations))
        return said

    def prefetch(self, job: Run, live: list[Node]) -> list[Instruction]:
        """Nodes that others fetch from may fetch as well, while maps run."""
        said: list[Instruction] = []
        nodes = [n for n in live if n.name not in job.unfit] if job.unfit else live
        for node, ahead, locations in job.prefetch(nodes):
            said += self.introduce(node, job)
            told = node.told[job.job]
            if not told.ahead:
                told.ahead = True
                said.append(SendToNode(node.name, ahead))
            told.locations = job.locations_known()
            said.append(SendToNode(node.name, locations))
        return said

    def drop_maps(self, job: str) -> list[Instruction]:
        """To those that may have some."""
        return [SendToNode(node.name, DropMapOutputs(job)) for node in self._reached(job)]

    def end(self, job: str, drop_output: bool = False) -> list[Instruction]:
        """The job is over for all that were told of it and can be reached; a silent one hears it when it is
        heard again (`end_all_but`)."""
        message, nodes = EndJob(job, drop_output), self._reached(job)
        for node in nodes:
            del node.told[job]
        return [SendToNode(node.name, message) for node in nodes]

    def end_all_but(self, known: Container[str], node: Node) -> list[Instruction]:
        """What was over while the node was silent."""
        over = sorted(job for job in node.told if job not in known)
        for job in over:
            del node.told[job]
        return [SendToNode(node.name, EndJob(job)) for job in over]

    def _reached(self, job: str) -> list[Node]:
        return [node for node in self._leases.nodes.values() if job in node.told and not node.silent]

    # --- asked ---

    def ask(self, job: Run, node: Node) -> list[Instruction]:
        """What the node has of the job's input, if it has data roots and was not asked yet."""
        question = job.ask(node.name) if node.hello.data_roots and node.is_here else None
        if question is None:
            return []
        return [*self.introduce(node, job), SendToNode(node.name, question)]

    def ask_all(self, job: Run) -> list[Instruction]:
        return [said for node in self._leases.nodes.values() for said in self.ask(job, node)]

    def look_for_data(self, job: Run) -> list[Instruction]:
        """Ask the nodes with data roots what they have of the job's input, as far as they were not asked
        yet. One that is away may be back with some of it, and is waited for. The job may end by it."""
        said = self.ask_all(job)
        nodes = self._leases.nodes.values()
        absent = [node for node in nodes if node.hello.data_roots and not node.is_here]
        if job.look_for_data(sorted(node.name for node in nodes if node.is_here), absent):
            said += self.ask_all(job)
        self._leases.changed[job.job] = None
        return said

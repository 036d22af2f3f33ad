"""Who gets what: the free slots of nodes go to the jobs under way, each in its turn. Pure.

A slot goes to the job whose turn it is (`cortex.scheduling.fair_share`), and which task of it a node gets,
the job says. The node with the most room is served first, with as many tasks as are its share of those that
wait, and then not before half of its queue is used up: leases are of neighbouring tasks, in few messages.
What a decision may lease is bounded; the next one goes on.

A job keeps the slots it has by successors (`cortex.scheduling.leases`). One that has more than its share
while another waits for a slot gets none, and those that have not begun are recalled: so the next of its
tasks to end gives a slot away, and nothing that runs is stopped for it.

Who owns the jobs under way says which there are (`add`, `remove`). The Scheduler asks for decisions after
each event (`dispatch`), and tells when time has passed (`look_again`). Whatever else has changed, the
`LeaseBook` and the jobs know. A compute job's workers are told to end through its desk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

from cortex.limits import (
    GRANTS_PER_DECISION_MAX,
    NODES_DECLINED_MAX,
    NODES_IN_VAIN_MAX,
    RECALL_JOBS_MAX,
    RECALL_NODES_MAX,
    RECALLS_AT_ONCE,
    SLOT_TURN_S,
)
from cortex.scheduling.briefing import Briefing
from cortex.scheduling.compute_run import ComputeRun
from cortex.scheduling.events import Instruction, SendToNode
from cortex.scheduling.fair_share import FairShares
from cortex.scheduling.job_state import JobState
from cortex.scheduling.leases import LeaseBook, Node, Running
from cortex.scheduling.run import Run
from cortex.wire.messages import Lease, Recall, RunTask


class Dispatcher:
    """`user_weights`: of those that have another than 1."""

    def __init__(
        self, leases: LeaseBook, briefing: Briefing, user_weights: Mapping[str, float] | None = None
    ) -> None:
        self._leases = leases
        self._briefing = briefing
        self.shares = FairShares(user_weights)
        """Of the slots, among the jobs under way."""
        self._jobs: dict[str, Run] = {}
        self._serving: dict[str, ComputeRun] = {}
        """Those that run calls."""
        self._slots_seen = 0
        self._choosy: set[str] = set()
        """Jobs that have left a free slot to others: they do not wait for one."""
        self._recall_due = False
        self._no_successors_until: dict[str, float] = {}
        """Jobs that gave some back: what is leased to be recalled again is of no use."""
        self._passed_over: list[Node] = []
        """They found nothing that they may have now: asked again when there is something new, and on a
        tick."""
        self._openings: dict[str, int] = {}
        """Of the jobs: changes when there is something new to lease."""
        self._is_news = False

    # --- which jobs there are ---

    def add(self, job: Run, user: str) -> None:
        """It is under way from now on, and part of its user's share."""
        self._jobs[job.job] = job
        if isinstance(job, ComputeRun):
            self._serving[job.job] = job
        self.shares.add(job.job, user, job.request.spec.priority)
        self._leases.changed[job.job] = None

    def remove(self, name: str) -> None:
        """It is not under way any more, and holds nothing."""
        del self._jobs[name]
        self._serving.pop(name, None)
        self.shares.remove(name)
        self._choosy.discard(name)
        self._no_successors_until.pop(name, None)
        self._openings.pop(name, None)
        self._is_news = True  # others may have its turn now

    def gave_back(self, name: str, now: float) -> None:
        """A lease that was recalled of it has not begun."""
        self._no_successors_until[name] = now + SLOT_TURN_S

    def look_again(self) -> None:
        """Time has passed: nodes may be given what they were not before, and jobs be due."""
        self._recall_due = True
        self._ask_passed_over()

    def _ask_passed_over(self) -> None:
        for node in self._passed_over:
            self._leases.put_back(node)
        self._passed_over.clear()
        self._is_news = False

    # --- leases ---

    def dispatch(self, now: float) -> list[Instruction]:
        """Give nodes what they have room for, the roomiest first, each a share of what waits; recall leases
        for a job that waits for a slot."""
        self._count_shares()
        if self._is_news:
            self._ask_passed_over()
        said: list[Instruction] = []
        granted: dict[str, tuple[list[RunTask], list[RunTask]]] = {}
        left = GRANTS_PER_DECISION_MAX
        declined = in_vain = 0
        while (
            left > 0 and self.shares.ready and declined < NODES_DECLINED_MAX and in_vain < NODES_IN_VAIN_MAX
        ):
            node = self._leases.roomiest()
            if node is None:
                break
            share = max(1, self.shares.ready // self._leases.wanting)
            leased = self._lease(node, min(left, share, node.room), now)
            if leased:
                left -= len(leased)
                lists = granted.setdefault(node.name, ([], []))
                for running, has_slot in leased:
                    said += self._briefing.introduce(node, self._jobs[running.job], running)
                    lists[not has_slot].append(RunTask(running.attempt, running.task))
            else:
                self._passed_over.append(node)
                self._leases.set_aside(node)
                declined += not node.free_slots
                in_vain += 1
        for name, (begin, succeed) in granted.items():
            said.append(SendToNode(name, Lease((*begin, *succeed), len(succeed))))
        self._leases.settle()
        if self._recall_due and left > 0:
            self._recall_due = False
            said += self._recall(now)
        return said

    def _count_shares(self) -> None:
        """What jobs hold and want has changed where their leases have, or the number of slots."""
        changed: Iterable[str] = self._leases.changed
        if self._leases.slots != self._slots_seen:
            self._slots_seen = self._leases.slots
            changed = self._jobs
        for name in changed:
            self._count_share(name)
        self._leases.changed.clear()

    def _count_share(self, name: str) -> None:
        job = self._jobs.get(name)
        if job is None:
            return
        slots, openings = self._leases.slots, job.openings
        if self._openings.get(name) != openings:
            self._openings[name] = openings
            self._is_news = True
        held = self._leases.slots_of.get(name, 0)
        ready = 0 if job.state is JobState.PLANNING else job.ready_tasks(slots)
        ready = ready or int(job.has_ready(slots))
        most = job.request.spec.resources.slots
        if 0 < most < slots:  # it asked for no more; with them it has no successors, which a node might begin
            ready = min(ready, max(0, most - held))
        if self.shares.change(name, held, ready):
            self._recall_due = True

    def _lease(self, node: Node, count: int, now: float) -> list[tuple[Running, bool]]:
        """Up to `count` tasks for one node: its free slots to the jobs whose turn it is, then successors to
        those that have slots there. Each with whether it has a slot."""
        leased: list[tuple[Running, bool]] = []
        passed_over: set[str] = set()
        while len(leased) < count and node.free_slots:
            job = self._next_job(node, passed_over)
            if job is None:
                break
            if self._lease_one(node, job, leased, now):
                self._choosy.discard(job.job)
            else:
                passed_over.add(job.job)
        if len(leased) < count and node.busy:
            waiting = self._waits_for_slot(self._leases.free_slots - node.free_counted + node.free_slots)
            for name in list(node.slots_of):
                while (
                    len(leased) < count
                    and node.successors_wanted(name) > 0
                    and not self._jobs[name].serves
                    and self.shares.wants(name)
                    and now >= self._no_successors_until.get(name, 0.0)
                    and not (waiting is not None and self._gives_way(node, name, waiting, now))
                    and self._lease_one(node, self._jobs[name], leased, now)
                ):
                    pass
        if leased:
            self._leases.put_back(node)
        return leased

    def _next_job(self, node: Node, passed_over: set[str]) -> Run | None:
        """Whose turn it is to have a slot of this node."""
        for name in self.shares.in_order():
            if name in passed_over:
                continue
            job = self._jobs[name]
            limit = job.slots_at(node)
            if limit < node.hello.slots:
                node.limits[name] = limit
            if node.name not in job.unfit and node.may_take_slot(name):
                return job
            passed_over.add(name)
            self._choosy.add(name)
        return None

    def _lease_one(self, node: Node, job: Run, leased: list[tuple[Running, bool]], now: float) -> bool:
        """Lease the job's next task to the node, if it has one for it."""
        name, slots = job.job, self._leases.slots
        running = job.next_task(node, slots, now)
        if running is None:
            if job.has_ready(slots):
                self._choosy.add(name)
            else:
                self.shares.change(name, self._leases.slots_of.get(name, 0), 0)
            return False
        self.shares.served(name)
        has_slot = self._leases.lease(node, running)
        ready = self.shares.ready_of(name) - 1
        if ready > 0:
            self.shares.change(name, self._leases.slots_of.get(name, 0), ready)
        else:
            self._count_share(name)
        leased.append((running, has_slot))
        return True

    # --- slots change jobs ---

    def _waits_for_slot(self, free_slots: int) -> str | None:
        """The job whose turn is first, of those that would take a slot; None while there are free ones."""
        if free_slots:
            return None
        return next((name for name in self.shares.in_order() if name not in self._choosy), None)

    def _gives_way(self, node: Node, name: str, waiting: str, now: float) -> bool:
        """Is the job to leave the slots it has at this node, when its tasks there end, to `waiting`, whose
        turn it is, or to another job of its own user?"""
        if now - node.turn_at[name] < SLOT_TURN_S:
            return False
        if self.shares.holds_too_much(name, waiting):
            return True
        rivals = (job for job in self.shares.in_order_of_user(name) if job not in self._choosy)
        rival = next(rivals, None)
        return rival is not None and self.shares.holds_too_much(name, rival)

    def _recall(self, now: float) -> list[Instruction]:
        """Ask for leases that have not begun, for a job that waits for a slot: from a few nodes, as any of
        them may be the next where a task ends. Those not looked at are, at the next tick."""
        waiting = self._waits_for_slot(self._leases.free_slots)
        if waiting is None:
            return []
        first = islice(self.shares.in_order(), RECALL_JOBS_MAX)
        wanted = sum(self.shares.lacks(name, self._leases.slots) for name in first)
        in_turn = not self.shares.slots_of(waiting)  # it is due, however few slots others have
        self._end_workers(waiting, max(wanted, in_turn), in_turn, now)
        wanted = max(RECALLS_AT_ONCE, 2 * wanted) if wanted else 0  # whose next task ends first is not known
        said: list[Instruction] = []
        for name in list(islice(self._leases.with_successors, RECALL_NODES_MAX)):
            node = self._leases.with_successors.pop(name)
            self._leases.with_successors[name] = node  # the last of all, next time
            if not node.is_here or node.recalling:
                wanted -= node.recalling
                continue
            for job in list(node.slots_of):
                more = min(wanted, node.waiting(job))
                if (
                    more > 0
                    and job in self._jobs
                    and (in_turn or self.shares.has_too_many(job, self._leases.slots))
                    and self._gives_way(node, job, waiting, now)
                ):
                    node.recalling = True
                    wanted -= more
                    said.append(SendToNode(name, Recall(job, more)))
            if wanted <= 0:
                break
        return said

    def _end_workers(self, waiting: str, wanted: int, in_turn: bool, now: float) -> None:
        """Have workers end for a job that waits for a slot: idle ones of any job, others of jobs that have
        too many."""
        for name, job in self._serving.items():
            if name == waiting or not job.running:
                continue
            job.desk.end_workers(len(job.running), idle_only=True)
            more = wanted - job.desk.ending
            if more <= 0 or not (in_turn or self.shares.has_too_many(name, self._leases.slots)):
                continue
            for node in dict.fromkeys(running.node for running in job.running.values()):
                held = self._leases.nodes[node]
                if more > 0 and self._gives_way(held, name, waiting, now):
                    more -= job.desk.end_workers(more, node=node)

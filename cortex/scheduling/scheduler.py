"""The scheduler: all jobs and all nodes, and one function, `handle(event, now) -> instructions`.

Pure: the same events at the same times give the same instructions. `now` is a monotonic time in
seconds that never goes back. A slot goes to the job whose turn it is (`cortex.scheduling.fair_share`), and
which task of it a node gets, the job says. The node with the most room is served first, with as many tasks as
are its share of those that wait, and then not before half of its queue is used up: leases are of
neighbouring tasks, in few messages. What a decision may lease is bounded; the next one goes on.

A job keeps the slots it has by successors (`cortex.scheduling.leases`). One that has more than its share
while another waits for a slot gets none, and those that have not begun are recalled: so the next of its
tasks to end gives a slot away, and nothing that runs is stopped for it.

An attempt is leased to one node and ends in exactly one way: finished, failed, or abandoned (its node is
lost, silent for too long, or its job is over). Whatever arrives about an attempt after that is stale and
dropped, so at most one attempt of a task is ever accepted.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, get_args

from cortex.errors import Cancelled, CortexError, InternalError, SpillFull
from cortex.ids import AttemptId, JobId, job_of
from cortex.limits import (
    GRANTS_PER_DECISION_MAX,
    JOBS_TOLD_MAX,
    LIVES_MAX,
    NODE_RETURN_S,
    NODES_DECLINED_MAX,
    NODES_IN_VAIN_MAX,
    PROGRESS_S,
    RECALL_JOBS_MAX,
    RECALL_NODES_MAX,
    RECALLS_AT_ONCE,
    SERVER_STALL_S,
    SLOT_TURN_S,
)
from cortex.scheduling.compute_run import ComputeRun
from cortex.scheduling.events import (
    CancelRequested,
    DrainRequested,
    Event,
    FromSubmitter,
    GiveUpNode,
    Instruction,
    JobKept,
    JobSubmitted,
    MapsNotKept,
    NodeAway,
    NodeJoined,
    NodeLost,
    PartUnreadable,
    Restored,
    SendToClient,
    SendToNode,
    Tick,
    WriteDown,
)
from cortex.scheduling.fair_share import FairShares
from cortex.scheduling.job_run import JobRun
from cortex.scheduling.job_state import JobState
from cortex.scheduling.leases import REDUCE, LeaseBook, Node, Running, Told
from cortex.scheduling.node_state import Duty
from cortex.scheduling.progress import BYTES_IN, BYTES_OUT, GROUPS, ROWS_IN, ROWS_OUT, SHUFFLED, SPILLED
from cortex.scheduling.records import AttemptEnded, JobRecord, MapsDropped, NodeGone, PartGone
from cortex.scheduling.run import Run
from cortex.scheduling.tally import Tally
from cortex.units import counted
from cortex.wire.messages import (
    AttemptFailed,
    AttemptFinished,
    CannotServe,
    DataListed,
    Drain,
    DropMapOutputs,
    EndJob,
    FunctionCode,
    GivenBack,
    Heartbeat,
    InputFound,
    JobDone,
    JobFailed,
    JobProgress,
    JobReceived,
    JobReport,
    Lease,
    NodeHello,
    Recall,
    ReportsKept,
    Revoke,
    RunTask,
    ScanTask,
    ShutDown,
    SubmitJob,
    TaskFailed,
    TaskFinished,
    WorkerHolds,
    WorkerSaid,
)


class _Claim:
    """An attempt of the server's earlier life that a node says it holds, and whose task is not ready yet."""

    __slots__ = ("node", "report", "version")

    def __init__(self, node: str, version: int) -> None:
        self.node = node
        self.version = version
        self.report: AttemptFinished | AttemptFailed | None = None


def _new_run(job: str, request: SubmitJob, now: float, lives: int = 0) -> Run:
    kind = ComputeRun if request.spec.compute else JobRun
    return kind(JobId(job), request, now, lives)


class Scheduler:
    """Feed it events in the order they happened; carry out its instructions in order.

    `journalled`: say what is to be written down (`WriteDown`). `user_weights`: of those that have another
    than 1.
    """

    def __init__(self, journalled: bool = False, user_weights: Mapping[str, float] | None = None) -> None:
        self._journalled = journalled
        self.expected: dict[str, str] = {}
        """Nodes of an earlier life that are not back yet: name -> incarnation."""
        self.expected_until = 0.0
        self._restoring = False
        """Its jobs wait for them."""
        self._returning: set[str] = set()
        """Those that are back, but have not told again what was not acknowledged: a heartbeat follows it."""
        self._claims: dict[str, _Claim] = {}
        self.leases = LeaseBook()
        self.jobs: dict[str, Run] = {}
        """Jobs under way; one that has ended is forgotten once its client is told."""
        self.kept: dict[str, Run] = {}
        """Jobs done, until their client has committed the result (or is gone): nodes keep what they have.
        One whose result is lost before goes on."""
        self._serving: dict[str, ComputeRun] = {}
        """Those under way that run calls."""
        self.stale_messages = 0
        self.tally = Tally()
        self.shares = FairShares(user_weights)
        """Of the slots, among the jobs under way."""
        self._users: dict[str, str] = {}
        """Job under way, or kept -> its user."""
        self._slots_seen = 0
        self._choosy: set[str] = set()
        """Jobs that have left a free slot to others: they do not wait for one."""
        self._recall_due = False
        self._no_successors_until: dict[str, float] = {}
        """Jobs that gave some back: what is leased to be recalled again is of no use."""
        self._told_from = 0
        self._passed_over: list[Node] = []
        """They found nothing that they may have now: asked again when there is something new, and on a
        tick."""
        self._openings: dict[str, int] = {}
        """Of the jobs under way: changes when there is something new to lease."""
        self._is_news = False
        self._ticked_at: float | None = None
        self._out: list[Instruction] = []
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            JobSubmitted: self._job_submitted,
            Restored: self._restored,
            NodeJoined: self._node_joined,
            NodeAway: self._node_away,
            NodeLost: self._node_lost,
            AttemptFinished: self._attempt_finished,
            AttemptFailed: self._attempt_failed,
            Heartbeat: self._heartbeat,
            CannotServe: self._cannot_serve,
            MapsNotKept: self._maps_not_kept,
            GivenBack: self._given_back,
            DrainRequested: self._drain_requested,
            CancelRequested: self._cancel_requested,
            PartUnreadable: self._part_lost,
            JobReceived: self._job_received,
            **dict.fromkeys(get_args(FromSubmitter), self._client_said),
            WorkerSaid: self._worker_said,
            WorkerHolds: self._worker_holds,
            DataListed: self._data_listed,
            InputFound: self._input_found,
            Tick: self._tick,
        }

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """What to do about `event`, in order. Raises InternalError for what cannot be (a bug)."""
        self._out = []
        self.leases.now = now
        self._handlers[type(event)](event, now)
        self._dispatch(now)
        for run in self._serving.values():
            if run.desk.said:
                self._out += run.take_said()
        return self._out

    def may_return(self, name: str) -> bool:
        """Is the node one that is away, and not given up?"""
        node = self.leases.nodes.get(name)
        return name in self.expected or (node is not None and node.away)

    # --- events ---

    def _job_submitted(self, event: JobSubmitted, now: float) -> None:
        if event.job in self.jobs:
            raise InternalError(f"job {event.job} was submitted twice")
        self.tally.jobs_submitted += 1
        job = _new_run(event.job, event.request, now)
        self._take_in(job, event.user)
        self._look_for_data(job, now)

    def _take_in(self, job: Run, user: str) -> None:
        """It is under way from now on."""
        self.jobs[job.job], self._users[job.job] = job, user
        if isinstance(job, ComputeRun):
            self._serving[job.job] = job
        self.shares.add(job.job, user, job.request.spec.priority)
        self.leases.changed[job.job] = None
        for node in self.leases.nodes.values() if job.request.spec.resources.memory_bytes else ():
            job.meet(node)

    def _take_out(self, job: Run) -> None:
        """It is not under way any more, and holds nothing."""
        self.leases.release(job.running.values())
        del self.jobs[job.job]
        run = self._serving.pop(job.job, None)
        if run is not None:
            self.tally.calls += run.desk.counts.delivered
            self.tally.calls_failed += run.desk.counts.delivered_failed
        self.shares.remove(job.job)
        self._choosy.discard(job.job)
        self._no_successors_until.pop(job.job, None)
        self._openings.pop(job.job, None)
        self._is_news = True  # others may have its turn now

    def _restored(self, event: Restored, now: float) -> None:
        self.expected = dict(event.nodes)
        self.expected_until = now + NODE_RETURN_S
        self._restoring = True
        for kept in event.jobs:
            self._restore(kept, now)
        self._settle(now)

    def _restore(self, kept: JobKept, now: float) -> None:
        job = _new_run(kept.job, kept.request, now - kept.age_s, kept.lives)
        job.hold_back()
        self._take_in(job, kept.user)
        nodes: set[str] = set()
        at = now
        try:
            if kept.lives > LIVES_MAX:
                raise InternalError(f"the server has started {LIVES_MAX} times since the job began")
            for record in kept.records:
                if isinstance(record, AttemptEnded):
                    nodes.add(record.node.node)
                    at = job.began_at + record.at_s
                job.replay(record)
        except Exception as error:
            if not isinstance(error, CortexError):  # what nobody foresaw: the other jobs go on
                said = f"job {kept.job} could not be taken up again: {error}"
                error = InternalError(said, details={"traceback": traceback.format_exc()})
            if not job.ended:
                job.fail(error.report())
        for name in sorted(nodes - self.expected.keys()):
            self._lose(job, name)
        self._after(job, at)  # if it had ended, then with its last record

    def _node_joined(self, event: NodeJoined, now: float) -> None:
        hello = event.hello
        node = self.leases.nodes.get(hello.node)
        expected = self.expected.pop(hello.node, None)
        if node is not None and node.hello.incarnation == hello.incarnation:
            self.leases.rejoin(node, hello, now)
        else:
            self._drop_node(hello.node, now)  # its earlier life, if we still believed in it
            if expected not in (None, hello.incarnation):
                self._lose_results(hello.node, now)
            node = self.leases.join(hello, now)
        for job in (*self.jobs.values(), *self.kept.values()):
            job.meet(node)
        self._compare(node, hello, expected == hello.incarnation, now)
        if node.draining or hello.draining_s >= 0:  # either of the two may have changed while it was away
            left_s = max(0.0, node.drain_until - now) if node.draining else -1.0
            self._out.append(SendToNode(node.name, Drain(left_s)))
        self._settle(now)
        for job in list(self.jobs.values()):
            job.survey.is_back(hello.node)
            self._look_for_data(job, now)

    def _compare(self, node: Node, hello: NodeHello, expected: bool, now: float) -> None:
        """What the node says it holds with what we know: the two are the same afterwards."""
        node.told.clear()  # but for StartJob, it is told everything anew
        for job in hello.jobs:
            if self._is_known(job):
                node.told[job] = Told()
                if job in self.kept and self.kept[job].maps_dropped:
                    self._out.append(SendToNode(node.name, DropMapOutputs(job)))
            else:
                self._out.append(SendToNode(node.name, EndJob(job)))
        for running in [each for each in node.held.values() if each.attempt not in hello.attempts]:
            self.leases.take(node, running.attempt)  # the lease has not reached it
            self.jobs[running.job].abandoned(running)
        ours = node.held.keys() | self._claims.keys()
        others = [attempt for attempt in hello.attempts if attempt not in ours]
        if expected:
            self._returning.add(node.name)
            self._claims.update((a, _Claim(node.name, hello.attempts[a])) for a in others)
            self._take_up_claims(now)
        elif others:
            self._out.append(SendToNode(node.name, Revoke(tuple(others))))

    def _take_up_claims(self, now: float) -> bool:
        """Lease anew what nodes hold of ready tasks; False if there was nothing."""
        taken_up = False
        for attempt, claim in list(self._claims.items()):
            job = self.jobs.get(job_of(AttemptId(attempt)))
            node = self.leases.nodes.get(claim.node)
            if job is None or node is None:
                continue
            running = job.resume(attempt, node.output_node, claim.version, now)
            if running is None:
                continue
            taken_up = True
            del self._claims[attempt]
            self.leases.hold(node, [running])
            if claim.report is not None:
                self._handlers[type(claim.report)](claim.report, now)
        return taken_up

    def _settle(self, now: float) -> None:
        """Every node of the earlier life is back or given up: its jobs go on."""
        if not self._restoring or self.expected or self._returning:
            return
        self._restoring = False
        while self._take_up_claims(now):
            pass  # a report that waited may have made others ready
        for attempt, claim in self._claims.items():
            self._out.append(SendToNode(claim.node, Revoke((attempt,))))
        self._claims.clear()
        for job in (*self.jobs.values(), *self.kept.values()):
            job.held_back = False
            self.leases.changed[job.job] = None
        for job in list(self.jobs.values()):
            job.place()
            self._look_for_data(job, now)

    def _node_away(self, event: NodeAway, now: float) -> None:
        node = self.leases.nodes.get(event.node)
        if node is not None and node.silent:
            self._give_up(node.name, now)  # it had nothing any more
        elif node is not None:
            self.leases.send_away(node, now)
            for job in self._serving.values():
                job.node_away(node.name)

    def _give_up(self, name: str, now: float) -> None:
        self._drop_node(name, now)
        self._out.append(GiveUpNode(name))

    def _node_lost(self, event: NodeLost, now: float) -> None:
        self._drop_node(event.node, now)

    def _drop_node(self, name: str, now: float) -> None:
        self._returning.discard(name)
        if self._claims:
            self._claims = {a: claim for a, claim in self._claims.items() if claim.node != name}
        node = self.leases.leave(name)
        if node is not None:
            self._lose_work(node, now)

    def _lose_work(self, node: Node, now: float) -> None:
        """The node's attempts are abandoned and what it kept of map output is gone."""
        for running in self.leases.take_all(node):
            self.jobs[running.job].abandoned(running)
            self.tally.abandoned[running.stage] += 1
        self.tally.nodes_lost += node.state.duty is not Duty.LEFT
        self._lose_results(node.name, now)

    def _lose_results(self, name: str, now: float) -> None:
        for job in (*self.jobs.values(), *self.kept.values()):
            self._lose(job, name)
            job.holder_lost(name)  # a job that has failed by it ends on the next tick
        self._reopen(now)

    def _lose(self, job: Run, name: str) -> None:
        job.node_lost(name)
        self.leases.changed[job.job] = None
        self._write_down(job, NodeGone(name))

    def _part_lost(self, event: PartUnreadable, now: float) -> None:
        job = self.jobs.get(event.job) or self.kept.get(event.job)
        if job is not None:
            job.part_lost(event.staged_as)
            self.leases.changed[job.job] = None
            self._write_down(job, PartGone(event.staged_as))
            self._reopen(now)

    def _reopen(self, now: float) -> None:
        """Jobs that were done, and are not any more, go on, or have failed."""
        for job in [job for job in self.kept.values() if job.state is not JobState.DONE]:
            del self.kept[job.job]
            self._take_in(job, self._users[job.job])
            if not job.ended:
                job.place()  # as it is now: nobody asked while it was done
                self._ask_all(job)
            self._after(job, now)

    def _write_down(self, job: Run, record: JobRecord) -> None:
        if self._journalled:
            self._out.append(WriteDown(job.job, record))

    def _write_end(self, job: Run, running: Running, end: TaskFinished | TaskFailed, now: float) -> None:
        if self._journalled:
            scan = running.task if isinstance(running.task, ScanTask) else None
            at_s = now - job.began_at
            record = AttemptEnded(running.output_node, end, at_s, scan, running.outputs_version)
            self._out.append(WriteDown(job.job, record))

    def _attempt_finished(self, event: AttemptFinished, now: float) -> None:
        if self._is_claimed(event, event.done.attempt):
            return
        running = self._held(event.node, event.incarnation, event.done.attempt, now)
        if running is not None:
            job = self.jobs[running.job]
            self.leases.had_room(self.leases.nodes[event.node])
            job.finished(running, event.done, now)
            self.tally.task_finished(running.stage, event.done)
            self._write_end(job, running, event.done, now)
            self._after(job, now)

    def _attempt_failed(self, event: AttemptFailed, now: float) -> None:
        if self._is_claimed(event, event.failed.attempt):
            return
        running = self._held(event.node, event.incarnation, event.failed.attempt, now)
        if running is not None:
            job = self.jobs[running.job]
            if event.failed.error.code == SpillFull.code:
                self.leases.rest(self.leases.nodes[event.node], now)
            job.failed(running, event.failed, now)
            self.tally.task_failed(running.stage, event.failed.error)
            self._write_end(job, running, event.failed, now)
            self._after(job, now)

    def _is_claimed(self, event: AttemptFinished | AttemptFailed, attempt: str) -> bool:
        """It is not known yet whether its task is ready: keep the report until then."""
        claim = self._claims.get(attempt)
        if claim is None or claim.node != event.node:
            return False
        claim.report = event
        return True

    def _held(self, name: str, incarnation: str, attempt: str, now: float) -> Running | None:
        """The attempt, released from its node; None if the message is stale."""
        node = self._hear(name, incarnation, now)
        running = None if node is None else self.leases.take(node, attempt)
        if running is None:
            self.stale_messages += 1
            if self._journalled:
                self._out.append(SendToNode(name, ReportsKept((attempt,))))
        return running

    def _hear(self, name: str, incarnation: str, now: float) -> Node | None:
        """The node is alive. One whose leases had expired may work again, with new ones."""
        node = self.leases.current(name, incarnation, now)
        if node is not None and node.silent:
            self.leases.revive(node)
            for each in self.jobs.values():
                self._ask(each, node)
            for job in sorted(node.told.keys() - self.jobs.keys() - self.kept.keys()):
                del node.told[job]
                self._out.append(SendToNode(name, EndJob(job)))
        return node

    def _heartbeat(self, event: Heartbeat, now: float) -> None:
        node = self._hear(event.node, event.incarnation, now)
        if node is None:
            self.stale_messages += 1
            return
        self.tally.heartbeats += 1
        peak_bytes = max(node.memory_peak_bytes, event.memory_peak_bytes, event.memory_bytes)
        self.leases.measured(node, event.memory_bytes, peak_bytes)
        node.disk_free_bytes = event.disk_free_bytes
        node.spill_bytes, node.spill_limit_bytes = event.spill_bytes, event.spill_limit_bytes
        self.leases.stands_idle(node, event.idle_slots)
        if self._returning:
            self._returning.discard(node.name)
            self._settle(now)
        not_ours = []
        for progress in event.running:
            running = node.held.get(progress.attempt)  # type: ignore[call-overload]
            if running is not None:
                self.jobs[running.job].heard(running, progress)
            elif progress.attempt not in self._claims and self._is_known(progress.attempt.partition("-")[0]):
                not_ours.append(progress.attempt)
        if not_ours:
            self._out.append(SendToNode(node.name, Revoke(tuple(not_ours))))

    def _cannot_serve(self, event: CannotServe, now: float) -> None:
        """The job goes on without the node; what it was leased of it costs no attempt."""
        node = self._hear(event.node, event.incarnation, now)
        job = self.jobs.get(event.job)
        if node is None or job is None:
            self.stale_messages += 1
            return
        given_back = [running for running in node.held.values() if running.job == event.job]
        self.leases.release(given_back)
        for running in given_back:
            job.abandoned(running)
        job.cannot_run_on(node.name, event.error)
        job.look_for_fit_nodes(self._live_nodes(), now, wait=False)
        self._after(job, now)

    # --- calls ---

    def _client_said(self, event: FromSubmitter, now: float) -> None:
        job = self._serving.get(event.job)
        if job is not None:  # else it has just ended
            job.client_said(event)
            self._calls_changed(job, now)

    def _worker_said(self, event: WorkerSaid, now: float) -> None:
        node = self._hear(event.node, event.incarnation, now)
        job = self._serving.get(job_of(AttemptId(event.attempt)))
        if node is None or job is None:
            self.stale_messages += 1
            return
        job.worker_said(node, event.attempt, event.said)
        self._calls_changed(job, now)

    def _worker_holds(self, event: WorkerHolds, now: float) -> None:
        node = self._hear(event.node, event.incarnation, now)
        job = self._serving.get(job_of(AttemptId(event.attempt)))
        if node is None or job is None:
            self.stale_messages += 1
            return
        job.worker_holds(event)
        self._calls_changed(job, now)

    def calls(self) -> tuple[int, int]:
        """Calls whose result was delivered, and those of them that failed, of all compute jobs."""
        counts = [run.desk.counts for run in self._serving.values()]
        return (
            self.tally.calls + sum(each.delivered for each in counts),
            self.tally.calls_failed + sum(each.delivered_failed for each in counts),
        )

    def has_function(self, code: FunctionCode) -> bool:
        """Whether the compute job has it already."""
        job = self._serving.get(code.job)
        return job is not None and job.desk.has_function(code.function)

    def attached_at(self, job: str, name: str) -> str | None:
        """The node where this large result of a compute job lies."""
        run = self._serving.get(job)
        return None if run is None else run.desk.attached_at(name)

    def _calls_changed(self, job: ComputeRun, now: float) -> None:
        self.leases.changed[job.job] = None
        self._after(job, now)

    def _end_workers(self, waiting: str, wanted: int, in_turn: bool, now: float) -> None:
        """Have workers end for a job that waits for a slot: idle ones of any job, others of jobs that have
        too many."""
        for name, job in self._serving.items():
            if name == waiting or not job.running:
                continue
            job.desk.end_workers(len(job.running), idle_only=True)
            more = wanted - job.desk.ending
            if more <= 0 or not (in_turn or self.shares.has_too_many(name, self.leases.slots)):
                continue
            for node in {running.node for running in job.running.values()}:
                held = self.leases.nodes[node]
                if more > 0 and self._gives_way(held, name, waiting, now):
                    more -= job.desk.end_workers(more, node=node)

    # --- input ---

    def _data_listed(self, event: DataListed, now: float) -> None:
        job = self.jobs.get(event.job)
        if job is not None:
            job.listed(event)
            self.leases.changed[job.job] = None
            self._look_for_data(job, now)

    def _input_found(self, event: InputFound, now: float) -> None:
        job = self.jobs.get(event.job)
        if job is not None:
            job.found(event)
            self.leases.changed[job.job] = None

    def _look_for_data(self, job: Run, now: float) -> None:
        """Ask the nodes with data roots what they have of the job's input, as far as they were not asked
        yet. One that is away may be back with some of it, and is waited for."""
        self._ask_all(job)
        absent = [n for n in self.leases.nodes.values() if n.hello.data_roots and not n.is_here]
        if job.look_for_data(self._nodes_here(), absent):
            self._ask_all(job)
        self.leases.changed[job.job] = None
        if job.ended:
            self._after(job, now)

    def _ask_all(self, job: Run) -> None:
        for node in self.leases.nodes.values():
            self._ask(job, node)

    def _ask(self, job: Run, node: Node) -> None:
        question = job.ask(node.name) if node.hello.data_roots and node.is_here else None
        if question is not None:
            self._introduce(node, job)
            self._out.append(SendToNode(node.name, question))

    def _nodes_here(self) -> list[str]:
        return sorted(node.name for node in self.leases.nodes.values() if node.is_here)

    # --- nodes that are drained ---

    def _drain_requested(self, event: DrainRequested, now: float) -> None:
        node = self.leases.nodes.get(event.node)
        if node is None:
            return
        if event.undo:
            self.leases.keep(node)
        else:
            self.leases.drain(node, now + event.seconds)
            for job in self.jobs.values():
                job.leave_node(node.name)
        self._out.append(SendToNode(node.name, Drain(-1.0 if event.undo else event.seconds)))

    def _given_back(self, event: GivenBack, now: float) -> None:
        """Recalled, or of a node that drains, and not begun: it costs no attempt."""
        node = self._hear(event.node, event.incarnation, now)
        if node is None:
            self.stale_messages += 1
            return
        recalled, node.recalling = node.recalling, False
        for attempt in event.attempts:
            self._claims.pop(attempt, None)
            running = self.leases.take(node, attempt)
            if running is not None:
                self.jobs[running.job].abandoned(running)
                if recalled:
                    self._no_successors_until[running.job] = now + SLOT_TURN_S

    def _look_at_drains(self, now: float) -> None:
        """Nodes that nothing needs any more are told to end: none while it is not known what nodes hold."""
        for node in [n for n in self.leases.nodes.values() if n.draining and not n.away]:
            wanted = [job.job for job in self.jobs.values() if job.unfit and self._only_node_for(job, node)]
            self.leases.want(node, frozenset(wanted))
            if now >= node.drain_until and node.state.duty is Duty.DRAINING and not wanted:
                self._end_work_at(node)
            if not self.waits_for(node):
                self.leases.empty(node)
                self._out.append(SendToNode(node.name, ShutDown()))
                self._drop_node(node.name, now)
                self._out.append(GiveUpNode(node.name, drained=True))

    def _end_work_at(self, node: Node) -> None:
        """Its time is over: what it still runs, and what it keeps for jobs under way, is made elsewhere, but
        for jobs whose input only this node has. A finished result stays until it is fetched: its input may be
        gone."""
        self.leases.stop_waiting_for(node)
        taken = self.leases.take_all(node)
        for running in taken:
            self.jobs[running.job].abandoned(running)
        if taken:
            self._out.append(SendToNode(node.name, Revoke(tuple(running.attempt for running in taken))))
        for job in list(self.jobs.values()):
            if job.needs_of(node.name) and not job.survey.has_alone(node.name):
                self._lose(job, node.name)
                job.holder_lost(node.name)

    def waits_for(self, node: Node) -> tuple[str, ...]:
        """What a node that is drained is still needed for, in words; nothing: it may end."""
        tasks = [counted(len(node.held), "task")] if node.held else []
        sole = [f"it is the only node that can run {job}" for job in sorted(node.wanted_by)]
        needs = ((job.job, job.needs_of(node.name)) for job in (*self.jobs.values(), *self.kept.values()))
        return (*tasks, *sole, *(f"{what} of {job}" for job, what in needs if what))

    def _only_node_for(self, job: Run, node: Node) -> bool:
        others = (n.name for n in self.leases.nodes.values() if n is not node and n.takes_work)
        return node.name not in job.unfit and all(name in job.unfit for name in others)

    def _live_nodes(self) -> list[str]:
        return [node.name for node in self.leases.nodes.values() if not node.silent]

    def _maps_not_kept(self, event: MapsNotKept, now: float) -> None:
        job = self.kept.get(event.job)
        if job is None or job.map_only or job.maps_dropped:
            return
        job.drop_maps()
        self._write_down(job, MapsDropped())
        for node in self.leases.nodes.values():
            if job.job in node.told and not node.silent:
                self._out.append(SendToNode(node.name, DropMapOutputs(job.job)))

    def _cancel_requested(self, event: CancelRequested, now: float) -> None:
        job = self.jobs.get(event.job)
        if job is not None:
            job.cancel(Cancelled(event.reason).report())
            self._after(job, now)
        elif event.job in self.kept:
            error = Cancelled(event.reason).report()
            report = self._report(self.kept.pop(event.job), now)
            self._users.pop(event.job)
            self._end_at_nodes(event.job)
            self._out.append(SendToClient(event.job, JobFailed(event.job, error, report)))

    def _job_received(self, event: JobReceived, now: float) -> None:
        job = self.jobs.get(event.job)
        if job is not None and not job.was_done:  # a client that lets go of a job under way gives it up
            self._cancel_requested(CancelRequested(event.job, "the client gave the job up"), now)
            return
        if job is not None:  # it had all before some was lost
            self._take_out(job)
        if job is not None or self.kept.pop(event.job, None) is not None:
            self._users.pop(event.job)
            self._end_at_nodes(event.job)

    def _tick(self, event: Tick, now: float) -> None:
        late_s = 0.0 if self._ticked_at is None else now - self._ticked_at - PROGRESS_S
        self._ticked_at = now
        if late_s > SERVER_STALL_S:
            self.leases.forgive(late_s)
        self.leases.end_rests(now)
        for node in self.leases.not_back(now):
            self._give_up(node.name, now)
        for node in self.leases.expired(now):
            self.leases.silence(node)
            self._lose_work(node, now)
        self._recall_due = True
        if self._restoring:
            self._wait_for_nodes(now)
        else:
            self._look_at_drains(now)
        self._ask_passed_over()
        fetching = [n for n in self.leases.nodes.values() if n.takes_work and n.hello.data_address]
        for job in list(self.jobs.values()):
            if job.unfit:
                job.look_for_fit_nodes(self._live_nodes(), now, wait=True)
            if not job.ended and job.look_for_answers(now):
                self.leases.changed[job.job] = None
            if not job.ended and job.survey.data_files is None:
                self._look_for_data(job, now)
                if job.ended:
                    continue
            if not job.ended:
                job.look_for_holders(now)
            if job.ended:
                self._after(job, now)
            else:
                self._prefetch(job, fetching)
        for job in self._whose_progress():
            self._out.append(SendToClient(job.job, self._progress(job, now)))

    def _whose_progress(self) -> list[Run]:
        """All jobs, or where there are many some of them, in turns."""
        jobs = list(self.jobs.values())
        if len(jobs) <= JOBS_TOLD_MAX:
            return jobs
        first = self._told_from % len(jobs)
        self._told_from = first + JOBS_TOLD_MAX
        return (jobs[first:] + jobs[:first])[:JOBS_TOLD_MAX]

    def _wait_for_nodes(self, now: float) -> None:
        if now >= self.expected_until:
            lost, self.expected = sorted(self.expected), {}
            self._returning.clear()
            for name in lost:
                self._lose_results(name, now)
                self._out.append(GiveUpNode(name))
        self._settle(now)  # also when one was lost again before it had told all

    # --- what follows ---

    def _after(self, job: Run, now: float) -> None:
        """Carry out what a job has decided; take leave of it when it has ended."""
        if isinstance(job, ComputeRun):
            self._out += job.take_said()
        revoked = job.take_revoked()
        if job.state is JobState.DONE:
            for running in list(job.running.values()):  # a lost map's redo, which no reduce needed
                job.abandoned(running)
                revoked.append(running)
        self.leases.release(revoked)
        for running in revoked:
            self._out.append(SendToNode(running.node, Revoke((running.attempt,))))
        if not job.ended:
            return
        self._take_out(job)
        report = self._report(job, now)
        if not job.was_done:
            self.tally.jobs_ended[job.state.value] += 1
        if job.state is JobState.DONE:
            self.kept[job.job] = job
            job.was_done = True
            if job.request.plan_only:
                self._out.append(SendToClient(job.job, job.plan_made()))
            self._out.append(SendToClient(job.job, JobDone(job.job, report, job.parts())))
        else:
            assert job.error is not None
            self._users.pop(job.job)
            self._end_at_nodes(job.job, job.commits)
            self._out.append(SendToClient(job.job, JobFailed(job.job, job.error, report)))

    def _is_known(self, job: str) -> bool:
        return job in self.jobs or job in self.kept

    def _end_at_nodes(self, job: str, drop_output: bool = False) -> None:
        end = EndJob(job, drop_output)
        for node in self.leases.nodes.values():
            if job in node.told and not node.silent:
                del node.told[job]
                self._out.append(SendToNode(node.name, end))

    # --- who gets what ---

    def _ask_passed_over(self) -> None:
        for node in self._passed_over:
            self.leases.put_back(node)
        self._passed_over.clear()
        self._is_news = False

    def _dispatch(self, now: float) -> None:
        """Give nodes what they have room for, the roomiest first, each a share of what waits; recall leases
        for a job that waits for a slot."""
        self._count_shares()
        if self._is_news:
            self._ask_passed_over()
        granted: dict[str, tuple[list[RunTask], list[RunTask]]] = {}
        left = GRANTS_PER_DECISION_MAX
        declined = in_vain = 0
        while (
            left > 0 and self.shares.ready and declined < NODES_DECLINED_MAX and in_vain < NODES_IN_VAIN_MAX
        ):
            node = self.leases.roomiest()
            if node is None:
                break
            share = max(1, self.shares.ready // self.leases.wanting)
            leased = self._lease(node, min(left, share, node.room), now)
            if leased:
                left -= len(leased)
                lists = granted.setdefault(node.name, ([], []))
                for running, has_slot in leased:
                    lists[not has_slot].append(RunTask(running.attempt, running.task))
            else:
                self._passed_over.append(node)
                self.leases.set_aside(node)
                declined += not node.free_slots
                in_vain += 1
        for name, (begin, succeed) in granted.items():
            self._out.append(SendToNode(name, Lease((*begin, *succeed), len(succeed))))
        self.leases.settle()
        if self._recall_due and left > 0:
            self._recall_due = False
            self._recall(now)

    def _count_shares(self) -> None:
        """What jobs hold and want has changed where their leases have, or the number of slots."""
        changed: Iterable[str] = self.leases.changed
        if self.leases.slots != self._slots_seen:
            self._slots_seen = self.leases.slots
            changed = self.jobs
        for name in changed:
            self._count_share(name)
        self.leases.changed.clear()

    def _count_share(self, name: str) -> None:
        job = self.jobs.get(name)
        if job is None:
            return
        slots, openings = self.leases.slots, job.openings
        if self._openings.get(name) != openings:
            self._openings[name] = openings
            self._is_news = True
        held = self.leases.slots_of.get(name, 0)
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
            waiting = self._waits_for_slot(self.leases.free_slots - node.free_counted + node.free_slots)
            for name in list(node.slots_of):
                while (
                    len(leased) < count
                    and node.successors_wanted(name) > 0
                    and not self.jobs[name].serves
                    and self.shares.wants(name)
                    and now >= self._no_successors_until.get(name, 0.0)
                    and not (waiting is not None and self._gives_way(node, name, waiting, now))
                    and self._lease_one(node, self.jobs[name], leased, now)
                ):
                    pass
        if leased:
            self.leases.put_back(node)
        return leased

    def _next_job(self, node: Node, passed_over: set[str]) -> Run | None:
        """Whose turn it is to have a slot of this node."""
        for name in self.shares.in_order():
            if name in passed_over:
                continue
            job = self.jobs[name]
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
        name, slots = job.job, self.leases.slots
        running = job.next_task(node, slots, now)
        if running is None:
            if job.has_ready(slots):
                self._choosy.add(name)
            else:
                self.shares.change(name, self.leases.slots_of.get(name, 0), 0)
            return False
        self.shares.served(name)
        has_slot = self.leases.lease(node, running)
        ready = self.shares.ready_of(name) - 1
        if ready > 0:
            self.shares.change(name, self.leases.slots_of.get(name, 0), ready)
        else:
            self._count_share(name)
        leased.append((running, has_slot))
        self._introduce(node, job, running)
        return True

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

    def _recall(self, now: float) -> None:
        """Ask for leases that have not begun, for a job that waits for a slot: from a few nodes, as any of
        them may be the next where a task ends. Those not looked at are, at the next tick."""
        waiting = self._waits_for_slot(self.leases.free_slots)
        if waiting is None:
            return
        first = islice(self.shares.in_order(), RECALL_JOBS_MAX)
        wanted = sum(self.shares.lacks(name, self.leases.slots) for name in first)
        in_turn = not self.shares.slots_of(waiting)  # it is due, however few slots others have
        self._end_workers(waiting, max(wanted, in_turn), in_turn, now)
        wanted = max(RECALLS_AT_ONCE, 2 * wanted) if wanted else 0  # whose next task ends first is not known
        for name in list(islice(self.leases.with_successors, RECALL_NODES_MAX)):
            node = self.leases.with_successors.pop(name)
            self.leases.with_successors[name] = node  # the last of all, next time
            if not node.is_here or node.recalling:
                wanted -= node.recalling
                continue
            for job in list(node.slots_of):
                more = min(wanted, node.waiting(job))
                if (
                    more > 0
                    and job in self.jobs
                    and (in_turn or self.shares.has_too_many(job, self.leases.slots))
                    and self._gives_way(node, job, waiting, now)
                ):
                    node.recalling = True
                    wanted -= more
                    self._out.append(SendToNode(name, Recall(job, more)))
            if wanted <= 0:
                return

    def _prefetch(self, job: Run, live: list[Node]) -> None:
        """Nodes that others fetch from may fetch as well, while maps run."""
        nodes = [n for n in live if n.name not in job.unfit] if job.unfit else live
        for node, ahead, locations in job.prefetch(nodes):
            told = self._introduce(node, job)
            if not told.ahead:
                told.ahead = True
                self._out.append(SendToNode(node.name, ahead))
            told.locations = job.locations_known()
            self._out.append(SendToNode(node.name, locations))

    def _introduce(self, node: Node, job: Run, running: Running | None = None) -> Told:
        """A node hears of a job, of its plan and of its map outputs before its first task that needs them."""
        told = node.told.get(job.job)
        if told is None:
            told = node.told[job.job] = Told()
            self._out.append(SendToNode(node.name, job.start_message(self.leases.progress_s)))
        if job.planned_message is not None and not told.plan:
            told.plan = True
            self._out.append(SendToNode(node.name, job.planned_message))
        if running is not None and job.may_read_from_afar(running):
            holders = job.input_holders(told.holders, self.leases.nodes)
            if holders is not None:
                told.holders = job.survey.version
                self._out.append(SendToNode(node.name, holders))
        if running is not None and running.stage == REDUCE:
            locations = job.locations(*told.locations)
            if locations is not None:
                told.locations = job.locations_known()
                self._out.append(SendToNode(node.name, locations))
        return told

    # --- what the client is told ---

    def _progress(self, job: Run, now: float) -> JobProgress:
        self._note_peak(job)
        return JobProgress(
            job.job,
            job.progress.stage_messages(now),
            job.progress.total(SPILLED, live=True),
            self.leases.memory_bytes,
            job.memory_peak_bytes,
            self.leases.cap_bytes,
            self.leases.slots,
        )

    def _note_peak(self, job: Run) -> None:
        job.memory_peak_bytes = max(job.memory_peak_bytes, self.leases.memory_peak_bytes)

    def _report(self, job: Run, now: float) -> JobReport:
        self._note_peak(job)
        source, final = job.totals()
        return JobReport(
            job=job.job,
            name=job.request.spec.name,
            seconds=now - job.began_at,
            stages=job.progress.stage_messages(now),
            rows_in=source[ROWS_IN],
            bytes_in=source[BYTES_IN],
            rows_out=final[ROWS_OUT],
            bytes_out=final[BYTES_OUT],
            groups=job.progress.total(GROUPS) if job.map_only else final[GROUPS],
            spilled_bytes=job.progress.total(SPILLED),
            shuffled_bytes=job.progress.total(SHUFFLED),
            memory_peak_bytes=job.memory_peak_bytes,
            memory_cap_bytes=self.leases.cap_bytes,
            slots=self.leases.slots,
            failed_attempts=job.progress.failed_attempts,
            slowest=job.progress.slowest,
            counters=job.progress.counters,
            locality=job.locality,
            notes=(*(job.plan.notes if job.plan is not None else ()), *job.unfit_notes()),
        )

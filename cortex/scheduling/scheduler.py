"""The scheduler: all jobs and all nodes, and one function, `handle(event, now) -> instructions`.

Pure: the same events at the same times give the same instructions. `now` is a monotonic time in
seconds that never goes back.

Here is decided what each event means for jobs and nodes; who gets what after it, the `Dispatcher` decides.
Jobs are in the `JobBook`, nodes and their leases in the `LeaseBook`, what nodes were told in the `Briefing`,
nodes that are drained are looked after by `Drains`, and what an earlier life of the server has left is the
`EarlierLife`. None of them calls the scheduler: they give instructions, or say what is to be done.

An attempt is leased to one node and ends in exactly one way: finished, failed, or abandoned (its node is
lost, silent for too long, or its job is over). Whatever arrives about an attempt after that is stale and
dropped, so at most one attempt of a task is ever accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from cortex.errors import SpillFull
from cortex.ids import AttemptId, job_of
from cortex.limits import PROGRESS_S, SERVER_STALL_S
from cortex.scheduling.briefing import Briefing
from cortex.scheduling.compute_run import ComputeRun
from cortex.scheduling.dispatcher import Dispatcher
from cortex.scheduling.drains import Drains
from cortex.scheduling.earlier_life import EarlierLife, run_again
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
    SendToNode,
    Tick,
)
from cortex.scheduling.job_book import JobBook, new_run
from cortex.scheduling.job_reports import Reports
from cortex.scheduling.leases import LeaseBook, Node, Running, Told
from cortex.scheduling.run import Run
from cortex.scheduling.tally import Tally
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
    JobReceived,
    NodeHello,
    ReportsKept,
    Revoke,
    ShutDown,
    WorkerHolds,
    WorkerSaid,
)


class Scheduler:
    """Feed it events in the order they happened; carry out its instructions in order.

    `journalled`: say what is to be written down (`WriteDown`). `user_weights`: of those that have another
    than 1. `tally`: goes on counting where the scheduler before this one ended.
    """

    def __init__(
        self,
        journalled: bool = False,
        user_weights: Mapping[str, float] | None = None,
        tally: Tally | None = None,
    ) -> None:
        self._journalled = journalled
        self.stale_messages = 0
        self.tally = tally or Tally()
        self.leases = LeaseBook()
        self.earlier_life = EarlierLife()
        self._briefing = Briefing(self.leases)
        self._reports = Reports(self.leases)
        self._dispatcher = Dispatcher(self.leases, self._briefing, user_weights)
        self.shares = self._dispatcher.shares
        self._book = JobBook(
            self.leases, self._dispatcher, self._briefing, self._reports, self.tally, journalled
        )
        self.jobs = self._book.under_way
        self.kept = self._book.kept
        self._serving = self._book.serving
        self._drains = Drains(self.leases, self._book)
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
        self._out += self._dispatcher.dispatch(now)
        for run in self._serving.values():
            if run.desk.said:
                self._out += run.take_said()
        return self._out

    def may_return(self, name: str) -> bool:
        """Is the node one that is away, and not given up?"""
        node = self.leases.nodes.get(name)
        return name in self.earlier_life.expected or (node is not None and node.away)

    def waits_for(self, node: Node) -> tuple[str, ...]:
        """What a node that is drained is still needed for, in words; nothing: it may end."""
        return self._drains.waits_for(node)

    def calls(self) -> tuple[int, int]:
        """Calls whose result was delivered, and those of them that failed, of all compute jobs."""
        return self._book.calls()

    def has_function(self, code: FunctionCode) -> bool:
        """Whether the compute job has it already."""
        job = self._serving.get(code.job)
        return job is not None and job.desk.has_function(code.function)

    def attached_at(self, job: str, name: str) -> str | None:
        """The node where this large result of a compute job lies."""
        run = self._serving.get(job)
        return None if run is None else run.desk.attached_at(name)

    # --- jobs ---

    def _job_submitted(self, event: JobSubmitted, now: float) -> None:
        job = new_run(event.job, event.request, now)
        self._book.take_in(job, event.user)
        self.tally.jobs_submitted += 1
        self._look_for_data(job, now)

    def _cancel_requested(self, event: CancelRequested, now: float) -> None:
        self._out += self._book.cancel(event.job, now, event.reason)

    def _job_received(self, event: JobReceived, now: float) -> None:
        self._out += self._book.received(event.job, now)

    def _maps_not_kept(self, event: MapsNotKept, now: float) -> None:
        self._out += self._book.drop_maps(event.job)

    def _part_lost(self, event: PartUnreadable, now: float) -> None:
        self._out += self._book.part_lost(event.job, event.staged_as, now)

    # --- an earlier life ---

    def _restored(self, event: Restored, now: float) -> None:
        self.earlier_life.begin(event.nodes, now)
        for kept in event.jobs:
            self._restore(kept, now)
        self._settle(now)

    def _restore(self, kept: JobKept, now: float) -> None:
        job, nodes, at = run_again(kept, now)
        self._book.take_in(job, kept.user)
        for name in sorted(nodes - self.earlier_life.expected.keys()):
            self._out += self._book.lose(job, name)
        self._out += self._book.after(job, at)  # if it had ended, then with its last record

    def _take_up_claims(self, now: float) -> bool:
        """Lease anew what nodes hold of ready tasks; False if there was nothing."""
        taken_up = False
        for report in self.earlier_life.take_up(self.jobs, self.leases, now):
            taken_up = True
            if report is not None:
                self._handlers[type(report)](report, now)
        return taken_up

    def _wait_for_nodes(self, now: float) -> None:
        for name in self.earlier_life.give_up(now):
            self._out += self._book.lose_results(name, now)
            self._out.append(GiveUpNode(name))
        self._settle(now)  # also when one was lost again before it had told all

    def _settle(self, now: float) -> None:
        """Every node of the earlier life is back or given up: its jobs go on."""
        if not self.earlier_life.is_over:
            return
        while self._take_up_claims(now):
            pass  # a report that waited may have made others ready
        for node, attempt in self.earlier_life.end():
            self._out.append(SendToNode(node, Revoke((attempt,))))
        for job in self._book.all():
            job.held_back = False
            self.leases.changed[job.job] = None
        for job in list(self.jobs.values()):
            job.place()
            self._look_for_data(job, now)

    # --- nodes come and go ---

    def _node_joined(self, event: NodeJoined, now: float) -> None:
        hello = event.hello
        node = self.leases.nodes.get(hello.node)
        expected = self.earlier_life.joined(hello.node)
        if node is not None and node.hello.incarnation == hello.incarnation:
            self.leases.rejoin(node, hello, now)
        else:
            self._drop_node(hello.node, now)  # its earlier life, if we still believed in it
            if expected not in (None, hello.incarnation):
                self._out += self._book.lose_results(hello.node, now)
            node = self.leases.join(hello, now)
        for job in self._book.all():
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
            if job in self._book:
                node.told[job] = Told()
                if job in self.kept and self.kept[job].maps_dropped:
                    self._out.append(SendToNode(node.name, DropMapOutputs(job)))
            else:
                self._out.append(SendToNode(node.name, EndJob(job)))
        for running in [each for each in node.held.values() if each.attempt not in hello.attempts]:
            self.leases.take(node, running.attempt)  # the lease has not reached it
            self.jobs[running.job].abandoned(running)
        others = {
            attempt: version
            for attempt, version in hello.attempts.items()
            if attempt not in node.held and not self.earlier_life.is_claimed(attempt)
        }
        if expected:
            self.earlier_life.claim(node.name, others)
            self._take_up_claims(now)
        elif others:
            self._out.append(SendToNode(node.name, Revoke(tuple(others))))

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
        self.earlier_life.lose(name)
        node = self.leases.leave(name)
        if node is not None:
            self._out += self._book.lose_work(node, now)

    def _hear(self, name: str, incarnation: str, now: float) -> Node | None:
        """The node is alive. One whose leases had expired may work again, with new ones."""
        node = self.leases.current(name, incarnation, now)
        if node is not None and node.silent:
            self.leases.revive(node)
            for each in self.jobs.values():
                self._out += self._briefing.ask(each, node)
            self._out += self._briefing.end_all_but(self._book, node)
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
        if self.earlier_life.has_told_all(node.name):
            self._settle(now)
        not_ours = []
        for progress in event.running:
            attempt = progress.attempt
            running = node.held.get(attempt)  # type: ignore[call-overload]
            if running is not None:
                self.jobs[running.job].heard(running, progress)
            elif not self.earlier_life.is_claimed(attempt) and attempt.partition("-")[0] in self._book:
                not_ours.append(attempt)
        if not_ours:
            self._out.append(SendToNode(node.name, Revoke(tuple(not_ours))))

    def _drain_requested(self, event: DrainRequested, now: float) -> None:
        self._out += self._drains.request(event, now)

    def _look_at_drains(self, now: float) -> None:
        """Nodes that nothing needs any more are told to end: none while it is not known what nodes hold."""
        for node in self._drains.under_way():
            self._out += self._drains.look_at(node, now)
            if not self._drains.waits_for(node):
                self.leases.empty(node)
                self._out.append(SendToNode(node.name, ShutDown()))
                self._drop_node(node.name, now)
                self._out.append(GiveUpNode(node.name, drained=True))

    # --- attempts ---

    def _attempt_finished(self, event: AttemptFinished, now: float) -> None:
        if self.earlier_life.keeps(event, event.done.attempt):
            return
        running = self._held(event.node, event.incarnation, event.done.attempt, now)
        if running is not None:
            job = self.jobs[running.job]
            self.leases.had_room(self.leases.nodes[event.node])
            job.finished(running, event.done, now)
            self.tally.task_finished(running.stage, event.done)
            self._out += self._book.ended(job, running, event.done, now)

    def _attempt_failed(self, event: AttemptFailed, now: float) -> None:
        if self.earlier_life.keeps(event, event.failed.attempt):
            return
        running = self._held(event.node, event.incarnation, event.failed.attempt, now)
        if running is not None:
            job = self.jobs[running.job]
            if event.failed.error.code == SpillFull.code:
                self.leases.rest(self.leases.nodes[event.node], now)
            job.failed(running, event.failed, now)
            self.tally.task_failed(running.stage, event.failed.error)
            self._out += self._book.ended(job, running, event.failed, now)

    def _held(self, name: str, incarnation: str, attempt: str, now: float) -> Running | None:
        """The attempt, released from its node; None if the message is stale."""
        node = self._hear(name, incarnation, now)
        running = None if node is None else self.leases.take(node, attempt)
        if running is None:
            self.stale_messages += 1
            if self._journalled:
                self._out.append(SendToNode(name, ReportsKept((attempt,))))
        return running

    def _given_back(self, event: GivenBack, now: float) -> None:
        """Recalled, or of a node that drains, and not begun: it costs no attempt."""
        node = self._hear(event.node, event.incarnation, now)
        if node is None:
            self.stale_messages += 1
            return
        recalled, node.recalling = node.recalling, False
        for attempt in event.attempts:
            self.earlier_life.given_back(attempt)
            running = self.leases.take(node, attempt)
            if running is not None:
                self.jobs[running.job].abandoned(running)
                if recalled:
                    self._dispatcher.gave_back(running.job, now)

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
        self._out += self._book.after(job, now)

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

    def _calls_changed(self, job: ComputeRun, now: float) -> None:
        self.leases.changed[job.job] = None
        self._out += self._book.after(job, now)

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
        self._out += self._briefing.look_for_data(job)
        if job.ended:
            self._out += self._book.after(job, now)

    # --- time passes ---

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
            self._out += self._book.lose_work(node, now)
        if self.earlier_life.matters:
            self._wait_for_nodes(now)
        else:
            self._look_at_drains(now)
        self._dispatcher.look_again()
        fetching = [n for n in self.leases.nodes.values() if n.takes_work and n.hello.data_address]
        for job in list(self.jobs.values()):
            self._look_at(job, fetching, now)
        self._out += self._reports.progress(self.jobs.values(), now)

    def _look_at(self, job: Run, fetching: list[Node], now: float) -> None:
        """What time alone changes of a job; `fetching`: nodes that may fetch from others."""
        if job.unfit:
            job.look_for_fit_nodes(self._live_nodes(), now, wait=True)
        if not job.ended and job.look_for_answers(now):
            self.leases.changed[job.job] = None
        if not job.ended and job.survey.data_files is None:
            self._look_for_data(job, now)
            if job.ended:
                return
        if not job.ended:
            job.look_for_holders(now)
        if job.ended:
            self._out += self._book.after(job, now)
        else:
            self._out += self._briefing.prefetch(job, fetching)

    def _live_nodes(self) -> list[str]:
        return [node.name for node in self.leases.nodes.values() if not node.silent]

"""Which jobs there are, from when they are taken until their clients have their results. Pure.

A job is *under way*, and has its part of the slots; once done it is *kept*, as nodes keep its result, until
its client has that or gives it up. One that loses some of it before is under way again. A job that has
failed, or was cancelled, is forgotten once its client is told.

Every method that changes a job ends with what follows of it: what is to be revoked, to be written down for a
later life of the server, and who is told. The instructions are given in their order.
"""

from __future__ import annotations

from cortex.errors import Cancelled, InternalError
from cortex.ids import JobId
from cortex.scheduling.briefing import Briefing
from cortex.scheduling.compute_run import ComputeRun
from cortex.scheduling.dispatcher import Dispatcher
from cortex.scheduling.events import CANCELLED, Instruction, SendToClient, SendToNode, WriteDown
from cortex.scheduling.job_reports import Reports
from cortex.scheduling.job_run import JobRun
from cortex.scheduling.job_state import JobState
from cortex.scheduling.leases import LeaseBook, Node, Running
from cortex.scheduling.node_state import Duty
from cortex.scheduling.records import AttemptEnded, JobRecord, MapsDropped, NodeGone, PartGone
from cortex.scheduling.run import Run
from cortex.scheduling.tally import Tally
from cortex.wire.messages import JobDone, JobFailed, Revoke, ScanTask, SubmitJob, TaskFailed, TaskFinished


def new_run(job: str, request: SubmitJob, now: float, lives: int = 0) -> Run:
    kind = ComputeRun if request.spec.compute else JobRun
    return kind(JobId(job), request, now, lives)


class JobBook:
    """`journalled`: say what is to be written down (`WriteDown`)."""

    def __init__(
        self,
        leases: LeaseBook,
        dispatcher: Dispatcher,
        briefing: Briefing,
        reports: Reports,
        tally: Tally,
        journalled: bool,
    ) -> None:
        self._leases = leases
        self._dispatcher = dispatcher
        self._briefing = briefing
        self._reports = reports
        self._tally = tally
        self._journalled = journalled
        self.under_way: dict[str, Run] = {}
        """One that has ended is forgotten once its client is told."""
        self.kept: dict[str, Run] = {}
        """Jobs done, until their client has committed the result (or is gone): nodes keep what they have.
        One whose result is lost before goes on."""
        self.serving: dict[str, ComputeRun] = {}
        """Those under way that run calls."""
        self._users: dict[str, str] = {}
        """Job under way, or kept -> its user."""

    def __contains__(self, job: object) -> bool:
        return job in self.under_way or job in self.kept

    def all(self) -> tuple[Run, ...]:
        return (*self.under_way.values(), *self.kept.values())

    def calls(self) -> tuple[int, int]:
        """Calls whose result was delivered, and those of them that failed, of all compute jobs."""
        counts = [run.desk.counts for run in self.serving.values()]
        return (
            self._tally.calls + sum(each.delivered for each in counts),
            self._tally.calls_failed + sum(each.delivered_failed for each in counts),
        )

    # --- they come and go ---

    def take_in(self, job: Run, user: str) -> None:
        """It is under way from now on."""
        if job.job in self.under_way:
            raise InternalError(f"job {job.job} was submitted twice")
        self.under_way[job.job], self._users[job.job] = job, user
        if isinstance(job, ComputeRun):
            self.serving[job.job] = job
        self._dispatcher.add(job, user)
        for node in self._leases.nodes.values() if job.request.spec.resources.memory_bytes else ():
            job.meet(node)

    def _take_out(self, job: Run) -> None:
        """It is not under way any more, and holds nothing."""
        self._leases.release(job.running.values())
        del self.under_way[job.job]
        run = self.serving.pop(job.job, None)
        if run is not None:
            self._tally.calls += run.desk.counts.delivered
            self._tally.calls_failed += run.desk.counts.delivered_failed
        self._dispatcher.remove(job.job)

    def after(self, job: Run, now: float) -> list[Instruction]:
        """Carry out what a job has decided; take leave of it when it has ended."""
        said = job.take_said() if isinstance(job, ComputeRun) else []
        revoked = job.take_revoked()
        if job.state is JobState.DONE:
            for running in list(job.running.values()):  # a lost map's redo, which no reduce needed
                job.abandoned(running)
                revoked.append(running)
        self._leases.release(revoked)
        for running in revoked:
            said.append(SendToNode(running.node, Revoke((running.attempt,))))
        if not job.ended:
            return said
        self._take_out(job)
        report = self._reports.of_end(job, now)
        if not job.was_done:
            self._tally.jobs_ended[job.state.value] += 1
        if job.state is JobState.DONE:
            self.kept[job.job] = job
            job.was_done = True
            if job.request.plan_only:
                said.append(SendToClient(job.job, job.plan_made()))
            said.append(SendToClient(job.job, JobDone(job.job, report, job.parts())))
        else:
            assert job.error is not None
            self._users.pop(job.job)
            said += self._briefing.end(job.job, job.commits)
            said.append(SendToClient(job.job, JobFailed(job.job, job.error, report)))
        return said

    def cancel(self, name: str, now: float, reason: str = CANCELLED) -> list[Instruction]:
        """Nothing where it has just ended."""
        error = Cancelled(reason).report()
        job = self.under_way.get(name)
        if job is not None:
            job.cancel(error)
            return self.after(job, now)
        if name not in self.kept:
            return []
        report = self._reports.of_end(self.kept.pop(name), now)
        self._users.pop(name)
        return [*self._briefing.end(name), SendToClient(name, JobFailed(name, error, report))]

    def received(self, name: str, now: float) -> list[Instruction]:
        """The client has the result. One that lets go of a job under way gives it up."""
        job = self.under_way.get(name)
        if job is not None and not job.was_done:
            return self.cancel(name, now, "the client gave the job up")
        if job is not None:  # it had all before some was lost
            self._take_out(job)
        if job is None and self.kept.pop(name, None) is None:
            return []
        self._users.pop(name)
        return self._briefing.end(name)

    # --- attempts end ---

    def ended(
        self, job: Run, running: Running, end: TaskFinished | TaskFailed, now: float
    ) -> list[Instruction]:
        """The job has taken the end of an attempt."""
        said: list[Instruction] = []
        if self._journalled:
            scan = running.task if isinstance(running.task, ScanTask) else None
            at_s = now - job.began_at
            record = AttemptEnded(running.output_node, end, at_s, scan, running.outputs_version)
            said.append(WriteDown(job.job, record))
        return said + self.after(job, now)

    # --- what is lost ---

    def lose_work(self, node: Node, now: float) -> list[Instruction]:
        """The node's attempts are abandoned and what it kept of map output is gone."""
        for running in self._leases.take_all(node):
            self.under_way[running.job].abandoned(running)
            self._tally.abandoned[running.stage] += 1
        self._tally.nodes_lost += node.state.duty is not Duty.LEFT
        return self.lose_results(node.name, now)

    def lose_results(self, node: str, now: float) -> list[Instruction]:
        """Of all jobs; and nobody can read their input from there."""
        said: list[Instruction] = []
        for job in self.all():
            said += self.lose(job, node)
            job.holder_lost(node)  # a job that has failed by it ends on the next tick
        return said + self._reopen(now)

    def lose(self, job: Run, node: str) -> list[Instruction]:
        """What one job had there."""
        job.node_lost(node)
        self._leases.changed[job.job] = None
        return self._written_down(job, NodeGone(node))

    def part_lost(self, name: str, staged_as: str, now: float) -> list[Instruction]:
        job = self.under_way.get(name) or self.kept.get(name)
        if job is None:
            return []
        job.part_lost(staged_as)
        self._leases.changed[job.job] = None
        return self._written_down(job, PartGone(staged_as)) + self._reopen(now)

    def _reopen(self, now: float) -> list[Instruction]:
        """Jobs that were done, and are not any more, go on, or have failed."""
        said: list[Instruction] = []
        for job in [job for job in self.kept.values() if job.state is not JobState.DONE]:
            del self.kept[job.job]
            self.take_in(job, self._users[job.job])
            if not job.ended:
                job.place()  # as it is now: nobody asked while it was done
                said += self._briefing.ask_all(job)
            said += self.after(job, now)
        return said

    def drop_maps(self, name: str) -> list[Instruction]:
        """Of a kept job that has some: what is lost of its result is lost for good from now on."""
        job = self.kept.get(name)
        if job is None or job.map_only or job.maps_dropped:
            return []
        job.drop_maps()
        return self._written_down(job, MapsDropped()) + self._briefing.drop_maps(name)

    def _written_down(self, job: Run, record: JobRecord) -> list[Instruction]:
        return [WriteDown(job.job, record)] if self._journalled else []

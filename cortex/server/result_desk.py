"""The results of jobs: who is given their parts, and what is done of those that are kept for nobody.

A part is fetched from the node that has it, by the job's client or, of a detached job, by whoever follows it
and may. A detached job that has ended is kept until it expires or is forgotten; its map outputs not so long,
and not at all where the output lies elsewhere. What it may keep, and until when, `KeptResults` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from cortex.errors import CortexError, InputError, ResultsLost, UsageError
from cortex.scheduling.events import MapsNotKept
from cortex.server.audit_desk import REFUSED, Audit, actor_of
from cortex.server.client_jobs import ClientJobs
from cortex.server.clients import Client
from cortex.server.decisions import Decisions
from cortex.server.job_ends import JobEnds
from cortex.server.job_ledger import JobLedger
from cortex.server.kept_results import KeptResults
from cortex.server.part_relay import PartRelay, results_lost
from cortex.wire.messages import FetchPart, JobFollowed, JobForgotten, JobReceived, NodeReads, PartLost


class ResultDesk:
    """`wall_clock` is seconds since 1970. `nodes`: the names of those that are here. `let_go(job)`: nothing
    that was kept for whoever wants it is needed any more."""

    def __init__(
        self,
        wall_clock: Callable[[], float],
        decisions: Decisions,
        ledger: JobLedger,
        results: KeptResults,
        ends: JobEnds,
        jobs: ClientJobs,
        parts: PartRelay,
        nodes: Container[str],
        audit: Audit,
        let_go: Callable[[str], None],
    ) -> None:
        self._wall_clock = wall_clock
        self._decisions = decisions
        self._ledger = ledger
        self._results = results
        self._ends = ends
        self._jobs = jobs
        self._parts = parts
        self._nodes = nodes
        self._audit = audit
        self._let_go = let_go

    # --- parts ---

    def may_fetch(self, client: Client, job: str) -> bool:
        """Though the job is not the client's."""
        return job in self._results and self._results.follows(client, job)

    def fetch_part(self, client: Client, message: FetchPart) -> None:
        scheduler = self._decisions.scheduler
        node = self._parts.node_of(message.job, message.staged_as)
        node = node or scheduler.attached_at(message.job, message.staged_as)
        if node is not None and (node in self._nodes or scheduler.may_return(node)):
            self._parts.fetch(client, message, node)
        else:  # lost meanwhile: the job goes on, and says so when it is done again
            error = results_lost(node or "", message.staged_as)
            client.link.send(PartLost(message.job, message.staged_as, error))

    # --- detached jobs ---

    def follow(self, client: Client, job: str) -> None:
        """Of any job of the client's: one that ends with its client it only watches."""
        if not self._jobs.owns(client, job):
            self._audit(actor_of(client.link), "fetch", job, REFUSED)
            return
        scheduler = self._decisions.scheduler
        run = scheduler.jobs.get(job) or scheduler.kept.get(job)
        answer = None if job in scheduler.jobs else self._ends.answer(job)
        if run is None and answer is None and not self._ends.is_being_written(job):
            client.refuse(self._nothing_kept(job))
            return
        self._audit(actor_of(client.link), "fetch", job)
        self._results.follow(job, client)
        spec = None if run is None else run.request.spec
        client.link.send(JobFollowed(job, job in self._results, spec))
        if answer is not None:
            client.answer(answer)

    def forget(self, client: Client, job: str) -> None:
        """Before it expires."""
        if not self._jobs.owns(client, job):
            self._audit(actor_of(client.link), "forget", job, REFUSED)
            return
        if job in self._decisions.scheduler.jobs or self._ends.is_being_written(job):
            client.refuse(UsageError(f"{job} is under way", cure=f"cortex cancel {job} ends it"))
        elif job not in self._results:
            client.refuse(self._nothing_kept(job))
        else:
            self._audit(actor_of(client.link), "forget", job)
            self._drop(job, lambda: client.link.send(JobForgotten(job)))

    def look(self) -> None:
        """What has expired goes."""
        now = self._wall_clock()
        for job in self._results.expired(now):
            under_way = job in self._decisions.scheduler.jobs or self._ends.is_being_written(job)
            if not under_way:  # else when it is done again
                self._drop(job)
        scheduler = self._decisions.scheduler
        kept = {job: run for job, run in scheduler.kept.items() if not run.maps_dropped}
        needless = [job for job, run in kept.items() if run.is_elsewhere and job in self._results]
        for job in (*needless, *self._results.maps_not_kept(kept, now)):
            self._decisions.handle(MapsNotKept(job))

    def no_client(self, message: NodeReads) -> CortexError:
        """A node has not an input file of a detached job as its client had it."""
        read = message.asked
        run = self._decisions.scheduler.jobs.get(read.job)
        listed = run.request.client_files if run is not None else ()
        files = [file for found in listed if found is not None for file in found]
        path = files[read.file].path if 0 <= read.file < len(files) else f"number {read.file}"
        return InputError(
            f"input file {path} is not at node {message.node} as it is at the client, which a detached job"
            " does not read from",
            cure="name a path that all nodes see, or leave --detach out: the files then come from here",
            details={"file": path, "node": message.node},
        )

    # --- inside ---

    def _drop(self, job: str, then: Callable[[], None] = lambda: None) -> None:
        """What is kept of a detached job that has ended is kept no more."""
        for follower in self._results.unfollow(job):
            follower.link.send(JobForgotten(job))
        self._results.forget(job)
        self._decisions.handle(JobReceived(job))
        self._let_go(job)
        self._ends.taken(job, then)

    def _nothing_kept(self, job: str) -> CortexError:
        status = self._ledger.status(job)
        if status is None or status.state == "done":
            return ResultsLost(
                f"no result of {job} is kept: it went to its client, was forgotten, or has expired",
                cure="run the job again; --detach --keep-results 30d keeps its result longer",
            )
        return ResultsLost(f"{job} has no result: it is {status.state}", details={"error": status.error})

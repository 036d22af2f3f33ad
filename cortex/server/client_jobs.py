"""Which client has which job, from its acceptance until the client has the job's end.

A job is its one client's, who hears of it over the connection that submitted it, or attached to it later
(AttachJob, or the same SubmitJob again). On one machine a client whose connection ends takes its jobs with
it. Where there is a journal it may come back for CLIENT_RETURN_S: until then its jobs are deserted, and go
on; after that they are cancelled, and ends that were not taken are kept no longer. A detached job is
nobody's: who asks for it follows it (`cortex.server.kept_results`), and is told the same.
"""

from __future__ import annotations

from collections.abc import Callable

from cortex.errors import NotAllowed
from cortex.ids import Role
from cortex.limits import CLIENT_RETURN_S
from cortex.scheduling.events import CancelRequested
from cortex.server.clients import Client, Clients
from cortex.server.decisions import Decisions
from cortex.server.input_relay import InputRelay
from cortex.server.job_ends import JobEnds
from cortex.server.job_ledger import JobLedger
from cortex.server.kept_results import KeptResults
from cortex.server.part_relay import PartRelay
from cortex.units import format_seconds
from cortex.wire.messages import FromServer, JobAccepted, JobDone, JobFailed, JobProgress


class ClientJobs:
    """`may_return`: clients may come back for their jobs. `let_go(job)`: nothing that was kept for its client
    is needed any more."""

    def __init__(
        self,
        clock: Callable[[], float],
        clients: Clients,
        decisions: Decisions,
        ledger: JobLedger,
        results: KeptResults,
        ends: JobEnds,
        input_relay: InputRelay,
        parts: PartRelay,
        *,
        may_return: bool,
        let_go: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._clients = clients
        self._decisions = decisions
        self._ledger = ledger
        self._results = results
        self._ends = ends
        self._input = input_relay
        self._parts = parts
        self._may_return = may_return
        self._let_go = let_go
        self._client_of: dict[str, Client] = {}
        self._deserted: dict[str, float] = {}
        """Jobs whose client is not connected -> when it is not waited for any more."""

    def owns(self, client: Client, job: str) -> bool:
        """Is it the client's job, over whichever link? If not it is refused. An admin owns all."""
        owner = self._ledger.owner(job)
        peer = client.peer
        if owner is not None and (peer is None or peer.role is Role.ADMIN or owner == peer.id):
            return True
        client.refuse(NotAllowed(f"{job} is no job of yours", cure="list them: cortex jobs"))
        return False

    # --- coming ---

    def give(self, job: str, client: Client) -> None:
        """The job is this client's, if that is still here; one that is detached it follows."""
        if job in self._results:
            if self._clients.is_here(client):
                self._results.follow(job, client)
        elif self._clients.is_here(client):
            client.jobs.add(job)
            self._client_of[job] = client
            if not isinstance(self._ends.answer(job), JobFailed):
                self._input.client_here(job, client)
            self._deserted.pop(job, None)
        else:
            self.desert(job)

    def attach(self, client: Client, job: str) -> None:
        """The client goes on with a job that another connection had, in this life or an earlier one."""
        under_way = job in self._decisions.scheduler.jobs
        if job in self._results:  # its submission comes again, its answer was lost
            if self.owns(client, job):
                self._go_on(client, job, under_way)
            return
        known = under_way or self._ends.answer(job) is not None or self._ends.is_being_written(job)
        owner = self._ledger.submitter(job) if known else None
        if client.peer is None or owner is None or owner != client.peer.id:
            error = NotAllowed(f"{job} is no job of yours, or has ended", cure="list them: cortex jobs")
            client.refuse(error)
            return
        before = self._client_of.get(job)
        if before is not None:  # its end has not reached us yet
            before.jobs.discard(job)
        self._go_on(client, job, under_way)

    def _go_on(self, client: Client, job: str, under_way: bool) -> None:
        client.link.send(JobAccepted(job))  # before what waits for the client: reads of its files
        self.give(job, client)
        answer = None if under_way else self._ends.answer(job)
        if answer is not None:
            client.answer(answer)

    # --- going ---

    def desert(self, job: str) -> None:
        """Its client is not here."""
        self._deserted[job] = self._clock() + CLIENT_RETURN_S

    def lost(self, client: Client) -> None:
        """Its connection has ended."""
        for job in sorted(client.jobs):
            if self._may_return:
                self._client_of.pop(job, None)
                self.desert(job)
            else:
                self.forget(client, job)
                self._decisions.handle(CancelRequested(job, "the client's connection ended"))

    def forget(self, client: Client, job: str) -> None:
        """It is the client's no more."""
        client.jobs.discard(job)
        self._client_of.pop(job, None)
        self._let_go(job)

    def give_up(self) -> None:
        """Jobs whose client has not come back are cancelled, and their results not kept any longer."""
        now = self._clock()
        for job in [job for job, until in self._deserted.items() if now >= until]:
            del self._deserted[job]
            scheduler = self._decisions.scheduler
            if job in scheduler.jobs or job in scheduler.kept:
                reason = f"its client did not come back within {format_seconds(CLIENT_RETURN_S)}"
                self._parts.drop_job(job)
                self._decisions.handle(CancelRequested(job, reason))
            else:
                self._ends.taken(job)

    # --- telling ---

    def tell(self, job: str, message: FromServer) -> None:
        """The job's client, if it is here, and who follows it."""
        own = self._client_of.get(job)
        for client in [*([] if own is None else [own]), *self._results.followers(job)]:
            # one that reads slowly needs no progress: the next says the same and more
            if not (client.link.congested and isinstance(message, JobProgress)):
                client.answer(message)

    def tell_end(self, answer: JobDone | JobFailed) -> None:
        self.tell(answer.job, answer)

    def end_kept(self, job: str) -> None:
        """It has ended, and the answer waits until its client has it: if it is not here, for a while."""
        if job not in self._results and job not in self._client_of and job not in self._deserted:
            self.desert(job)

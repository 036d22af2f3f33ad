"""From a client's SubmitJob to its JobAccepted, or to why not.

A job that is taken is written down first, where there is a journal, and only then accepted and given to the
scheduler: whoever was told so may count on it. Until then it is nobody's; it may be submitted once more (its
client lost its connection) and cancelled. A job that is known already is attached to instead.
"""

from __future__ import annotations

import hashlib

from twisted.logger import Logger

from cortex.errors import CortexError, NotAllowed, ProtocolError, UsageError
from cortex.ids import new_job_id
from cortex.scheduling.admission import refusal
from cortex.scheduling.events import CancelRequested, JobSubmitted
from cortex.server.audit_desk import DONE, REFUSED, Audit, actor_of
from cortex.server.blob_desk import BlobDesk
from cortex.server.client_jobs import ClientJobs
from cortex.server.clients import Client
from cortex.server.decisions import Decisions
from cortex.server.job_ledger import JobLedger
from cortex.server.journal_desk import JournalDesk
from cortex.server.kept_results import KeptResults
from cortex.sharing_policy import SharingPolicy
from cortex.storage.shared_output import attempts_folder
from cortex.wire.messages import JobAccepted, SubmitJob

_log = Logger()


class Acceptance:
    """`sharing` None: all jobs are taken. `in_cluster`: whose parts of results lie at their nodes."""

    def __init__(
        self,
        decisions: Decisions,
        ledger: JobLedger,
        results: KeptResults,
        jobs: ClientJobs,
        journal: JournalDesk | None,
        blobs: BlobDesk,
        audit: Audit,
        sharing: SharingPolicy | None,
        *,
        in_cluster: bool,
    ) -> None:
        self._decisions = decisions
        self._ledger = ledger
        self._results = results
        self._jobs = jobs
        self._journal = journal
        self._blobs = blobs
        self._audit = audit
        self._sharing = sharing
        self._in_cluster = in_cluster
        self._accepting: dict[str, Client] = {}
        """Jobs that are being written down -> the client to tell."""
        self._unwanted: dict[str, str] = {}
        """Those of them that were cancelled meanwhile -> why."""

    def submit(self, client: Client, request: SubmitJob) -> None:
        job = request.job or new_job_id()
        if self._ledger.owner(job) is not None:  # the answer was lost, with its connection or an earlier life
            self._jobs.attach(client, job)
            return
        if job in self._accepting:  # not on the disk yet
            if client.owner and client.owner == self._accepting[job].owner:
                self._accepting[job] = client
            else:
                client.refuse(NotAllowed(f"{job} is no job of yours"))
            return
        error = self._refusal(client, request)
        if error is not None:
            client.refuse(error)
            return
        self._blobs.submitted(client, job, request.bundle)
        self._accepting[job] = client
        self._write_down(client, job, request)

    def cancel(self, client: Client, job: str, why: str) -> bool:
        """It is to be cancelled as soon as it is accepted; False if it is not this client's here."""
        if self._accepting.get(job) is not client:
            return False
        self._audit(actor_of(client.link), "cancel", job)
        self._unwanted[job] = why
        return True

    def _write_down(self, client: Client, job: str, request: SubmitJob) -> None:
        actor, owner = actor_of(client.link), client.owner
        code = hashlib.sha256(request.code).hexdigest()  # opaque here: its hash tells it apart
        about = {"name": request.spec.name, "code": code}

        def refuse(error: CortexError) -> None:
            self._audit(actor, "submit", job, REFUSED, {**about, "error": error.message})
            self._blobs.job_ended(job)
            self._unwanted.pop(job, None)
            self._accepting.pop(job).refuse(error)

        def accept() -> None:
            client = self._accepting.pop(job)
            self._audit(actor, "submit", job, DONE, about)
            if actor.id:
                name = repr(request.spec.name)
                _log.info("client {id} submits {name}, code {code}", id=actor.id, name=name, code=code)
            self._ledger.accepted(job, request.spec.name, owner)
            if request.detached:
                self._results.accepted(job, request.keep_s)
            self._jobs.give(job, client)
            client.link.send(JobAccepted(job))
            self._decisions.handle(JobSubmitted(job, request, owner))
            if job in self._unwanted:
                self._decisions.handle(CancelRequested(job, self._unwanted.pop(job)))

        if self._journal is None:
            accept()
        else:
            self._journal.accepted(job, owner, request, accept, refuse)

    def _refusal(self, client: Client, request: SubmitJob) -> CortexError | None:
        error = self._wrong_folder(request) or (self._not_detached() if request.detached else None)
        if self._sharing is None or error is not None:
            return error
        accepting = sum(each.owner == client.owner for each in self._accepting.values())
        return refusal(request, client.owner, accepting, self._decisions.scheduler, self._sharing)

    def _wrong_folder(self, request: SubmitJob) -> CortexError | None:
        """On a cluster parts lie at their nodes, or beside the output: nodes make and remove that folder, and
        no other."""
        output = request.spec.output
        on_nodes = output.at == "nodes"
        wanted = attempts_folder(output.path, request.job) if on_nodes else ""
        good = request.staging_dir == wanted and (not on_nodes or (request.job and output.path[:1] == "/"))
        if good or not self._in_cluster:
            return None
        return ProtocolError("a job names a wrong folder for its parts")

    def _not_detached(self) -> CortexError | None:
        """Why no detached job can be taken."""
        if self._journal is None:
            return UsageError("a job on one machine ends with its client", cure="leave --detach out")
        return self._results.no_room()

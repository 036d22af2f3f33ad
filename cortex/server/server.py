"""The server: takes jobs from clients, lets the scheduler decide, and passes its decisions on.

It never unpickles anything: a job's code is opaque bytes on its way to the nodes. It holds no
reactor of its own and blocks nowhere. Clients connect through `client_factory`; a node attaches through a
`NodeLink`: on one machine it is in the same process, joined by a `LocalLink`.

On one machine a client whose connection ends takes its jobs with it. With a journal, a client may come back
for its job (AttachJob) and a node with what it holds, for a while, and a later life of the server goes on.
A detached job has no client: those that follow it (FollowJob) come and go, and its result is kept until it
expires or is forgotten (`cortex.server.kept_results`).
"""

from __future__ import annotations

import hashlib
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from cortex.errors import (
    CortexError,
    InputError,
    InternalError,
    NotAllowed,
    ProtocolError,
    ResultsLost,
    UsageError,
    VersionMismatch,
)
from cortex.ids import Role, new_job_id
from cortex.job.bundle import Bundle
from cortex.limits import CLIENT_RETURN_S, LOGS_S_MAX, PROGRESS_S
from cortex.metric_text import Histogram
from cortex.scheduling.admission import refusal
from cortex.scheduling.events import (
    CANCELLED,
    CancelRequested,
    DrainRequested,
    Event,
    FromSubmitter,
    GiveUpNode,
    JobSubmitted,
    MapsNotKept,
    NodeAway,
    NodeJoined,
    NodeLost,
    PartUnreadable,
    SendToClient,
    SendToNode,
    Tick,
    WriteDown,
)
from cortex.scheduling.scheduler import Scheduler
from cortex.scheduling.status import expected_statuses, job_statuses, node_statuses
from cortex.scheduling.tally import Tally
from cortex.server.audit_desk import DONE, REFUSED, Audit, actor_of, no_audit
from cortex.server.blob_desk import BlobDesk
from cortex.server.input_relay import InputRelay
from cortex.server.job_ledger import JobLedger
from cortex.server.journal_desk import JournalDesk
from cortex.server.kept_results import KeptResults
from cortex.server.log_desk import LogDesk
from cortex.server.part_relay import PartRelay, results_lost
from cortex.server.put_desk import PutDesk
from cortex.sharing_policy import SharingPolicy
from cortex.storage.blob_store import BlobStore
from cortex.storage.shared_output import attempts_folder
from cortex.transfer.work_thread import WorkThread
from cortex.units import format_seconds
from cortex.wire.messages import (
    AttachJob,
    BeginPut,
    BlobTaken,
    CancelJob,
    ClientHello,
    ClusterStatus,
    EndJob,
    FetchBlob,
    FetchPart,
    FinishPut,
    FollowJob,
    ForgetResult,
    FromNode,
    FromServer,
    FunctionCode,
    GetLogs,
    GetStatus,
    Goodbye,
    InputBytes,
    InputUnread,
    JobAccepted,
    JobDone,
    JobFailed,
    JobFollowed,
    JobForgotten,
    JobProgress,
    JobReceived,
    JobReport,
    NodeHello,
    NodeLog,
    NodeReads,
    OfferBlobs,
    OfferPart,
    PartChunk,
    PartLost,
    PartsNamed,
    PartStored,
    PartTaken,
    PartUnread,
    PutBlob,
    PutOpened,
    Refused,
    ReportsKept,
    ServerHello,
    SubmitJob,
    ToNode,
    ToServer,
)
from cortex.wire.transports import MessageProtocol
from cortex.wire.versions import check_versions, local_versions

if TYPE_CHECKING:  # the certificates' library is not needed on one machine
    from cortex.wire.authority import Peer

_log = Logger()
M = TypeVar("M")
DECISION_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5)
"""Seconds: a decision is promised to take 10 ms at most."""


class NodeLink(Protocol):
    """The way to a node."""

    def send(self, message: ToNode) -> None: ...


class LocalLink(Generic[M]):
    """Hands messages to `deliver` in order, each batch in a later turn of the reactor.

    So two ends in one process never call into each other while they decide.
    """

    def __init__(self, reactor: Any, deliver: Callable[[M], None]) -> None:
        self._reactor = reactor
        self._deliver = deliver
        self._waiting: deque[M] = deque()

    def send(self, message: M) -> None:
        if not self._waiting:
            self._reactor.callLater(0, self._drain)
        self._waiting.append(message)

    def _drain(self) -> None:
        # What is sent meanwhile has a turn of its own, or two ends could spin without the reactor.
        batch, self._waiting = self._waiting, deque()
        for message in batch:
            try:
                self._deliver(message)
            except Exception:
                _log.failure("a {kind} could not be handled", kind=type(message).__name__)


class _Client:
    """A connected client and its jobs that have not been acknowledged."""

    def __init__(self, link: MessageProtocol[Any], peer: Peer | None) -> None:
        self.link = link
        self.peer = peer
        """None: a process of this machine's user, over a unix socket."""
        self.greeted = False
        self.welcomed = False
        self.jobs: set[str] = set()

    @property
    def owner(self) -> str:
        """Of its jobs: the id in its certificate, "" on one machine."""
        return "" if self.peer is None else self.peer.id


class Server:
    """`clock` is monotonic seconds; `reactor` needs `callLater` (and should time it by the same clock).
    `cluster` "": the server of one machine, which answers no hello before its node is there. It begins with
    what an earlier life left in `journal`, which the caller stops after it. Raises StateFailed for a journal
    that makes no sense.
    `wall_clock` is seconds since 1970: results expire by it.
    `audit`: notes who did what.
    `blob_folder`: its own, where the files that travel with jobs are kept (on one machine not beyond its
    end, so not durably); "" in tests without any. `certificate_expiry(node)`: seconds since 1970, 0 unknown.
    `sharing`: among its users; None where there is one, whose jobs are all taken.

    Call `stop` when done: until then a tick every PROGRESS_S renews leases and tells progress.
    """

    def __init__(
        self,
        reactor: Any,
        clock: Callable[[], float],
        cluster: str = "",
        journal: JournalDesk | None = None,
        *,
        blob_folder: str = "",
        wall_clock: Callable[[], float] = time.time,
        audit: Audit = no_audit,
        sharing: SharingPolicy | None = None,
        certificate_expiry: Callable[[str], float] = lambda node: 0.0,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._wall_clock = wall_clock
        self._cluster = cluster
        self._journal = journal
        self._audit = audit
        self.decision_seconds = Histogram(DECISION_BOUNDS)
        self._sharing = sharing
        self._certificate_expiry = certificate_expiry
        self._scheduler = self._new_scheduler()
        self._versions = local_versions()
        self._nodes: dict[str, tuple[NodeHello, NodeLink]] = {}
        self._clients: dict[MessageProtocol[Any], _Client] = {}
        self._results = KeptResults()
        self._ledger = JobLedger(lambda job: job in self._results)
        self._parts: dict[str, dict[str, str]] = {}
        """Of jobs that are done: a part's staged name -> the node that has it."""
        self._relay = PartRelay(self._to_node, lambda client, message: client.link.send(message))
        self._blobs = BlobDesk(
            BlobStore(blob_folder, durable=bool(cluster)),
            WorkThread(reactor, "blobs"),
            self._to_node,
            lambda client, message: client.link.send(message),
            lambda client, error: client.link.close(Refused(error.report())),
        )
        self._logs = LogDesk(self._to_node, lambda client, message: client.link.send(message))
        self._input = InputRelay(
            self._to_node,
            lambda client, message: client.link.send(message),
            lambda job: job in self._scheduler.jobs or job in self._scheduler.kept,
        )
        self._puts = PutDesk(
            clock,
            self._input,
            self._to_node,
            lambda client, message: client.link.send(message),
            lambda client, refused: client.link.close(refused),
            self._note_put,
        )
        self._client_of: dict[str, _Client] = {}
        self._accepting: dict[str, _Client] = {}
        """Jobs that are being written down -> the client to tell."""
        self._unwanted: dict[str, str] = {}
        """Those of them that were cancelled meanwhile -> why."""
        self._answers: dict[str, JobDone | JobFailed] = {}
        """Ends that are in the journal, until their clients have them."""
        self._told_before: dict[str, JobDone] = {}
        self._ending: set[str] = set()
        """Jobs whose end is being written."""
        self._deserted: dict[str, float] = {}
        """Jobs whose client is not connected -> when it is not waited for any more."""
        self._timer = reactor.callLater(PROGRESS_S, self._tick)
        if journal is not None:
            journal.reports_kept = lambda node, attempts: self._to_node(node, ReportsKept(attempts))
            self._restore(journal)

    @property
    def cluster(self) -> str:
        return self._cluster

    @property
    def scheduler(self) -> Scheduler:
        """To look at."""
        return self._scheduler

    @property
    def relayed_result_bytes(self) -> int:
        return self._relay.relayed_bytes

    @property
    def relayed_input_bytes(self) -> int:
        return self._input.relayed_bytes

    def _new_scheduler(self, tally: Tally | None = None) -> Scheduler:
        weights = None if self._sharing is None else self._sharing.weights
        return Scheduler(journalled=self._journal is not None, user_weights=weights, tally=tally)

    def keep_files_of(self, jobs: dict[str, Bundle]) -> None:
        """On the start, before clients come: of the files that travelled with jobs of an earlier life of
        this server keep those that `jobs`, which go on, need."""
        self._blobs.open(jobs)

    def stop(self) -> None:
        """Stop the tick and close every client. Nodes belong to whoever attached them."""
        if self._timer.active():
            self._timer.cancel()
        self._blobs.stop()
        for client in list(self._clients.values()):
            client.link.close()

    def cancel_all(self, reason: str) -> None:
        """Every job ends here and now: no later life goes on with it."""
        for job in list(self._scheduler.jobs):
            self._handle(CancelRequested(job, reason))
        for job in list(self._scheduler.kept):
            self._parts.pop(job, None)
            self._handle(CancelRequested(job, reason))

    # --- nodes ---

    def attach_node(self, link: NodeLink) -> Callable[[FromNode], None]:
        """Attach a node by the way to it; gives the way from it, which may be called at any time.

        Its first message is its NodeHello. What it sends is handled in a later turn of the reactor.
        """
        return LocalLink[FromNode](self._reactor, lambda message: self._from_node(link, message)).send

    def detach_node(self, node_name: str, for_good: bool = False) -> None:
        """The node is gone: its attempts run elsewhere, and what it held is lost. With a journal, it may
        come back for a moment, unless it is gone for good."""
        if self._nodes.pop(node_name, None) is None:
            return
        self._blobs.node_lost(node_name)  # it asks again
        self._puts.node_lost(node_name)
        self._input.node_lost(node_name)
        self._logs.node_lost(node_name)
        if self._journal is not None and not for_good:
            self._handle(NodeAway(node_name))
            return
        self._relay.node_lost(node_name)
        self._handle(NodeLost(node_name))
        if self._journal is not None:
            self._journal.node_dropped(node_name)

    def _from_node(self, link: NodeLink, message: FromNode) -> None:
        if isinstance(message, NodeHello):
            if message.slots < 1:
                raise ProtocolError(f"node {message.node!r} has {message.slots} slots")
            self._nodes[message.node] = message, link
            self._handle(NodeJoined(message))
            if self._journal is not None:  # after what its earlier life has lost
                self._journal.node_known(message.node, message.incarnation)
            self._relay.node_back(message.node)
            for client in list(self._clients.values()):
                self._welcome(client)
        elif isinstance(message, PartChunk):
            self._relay.chunk(message)
        elif isinstance(message, PartUnread):
            lost = self._relay.unread(message)
            if lost is not None:
                self._handle(PartUnreadable(*lost))
        elif isinstance(message, FetchBlob):
            self._blobs.fetch(message)
        elif isinstance(message, BlobTaken):
            self._blobs.taken(message)
        elif isinstance(message, NodeReads):
            known = self._nodes.get(message.node)
            if known is None or known[1] is not link:
                pass  # it has come back meanwhile, and asks again
            elif message.asked.job in self._results:
                link.send(InputUnread(message.asked.read, self._no_client(message).report()))
            else:
                self._puts.node_reads(message.node, message.asked.job)
                self._input.read(message)
        elif isinstance(message, NodeLog):
            self._logs.answered(message)
        elif isinstance(message, PutOpened | PartStored | PartsNamed):
            self._puts.node_said(message)
        elif isinstance(message, Goodbye):
            known = self._nodes.get(message.node)
            if known is not None and known[0].incarnation == message.incarnation:
                self.detach_node(message.node, for_good=True)
        else:
            self._handle(message)

    def drain(self, node: str, seconds: float, undo: bool = False) -> bool:
        """Have a node finish what it does and end, or stay after all; False if there is no such node."""
        if node not in self._scheduler.leases.nodes:
            return False
        self._handle(DrainRequested(node, seconds, undo))
        return True

    # --- clients ---

    def client_factory(self) -> Factory:
        """A Twisted factory to listen with (see `cortex.wire.transports.listen_unix`)."""
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = self._build_client  # type: ignore[method-assign,assignment]
        return factory

    def _build_client(self, _address: Any) -> MessageProtocol[ToServer]:
        return MessageProtocol(self._reactor, ToServer, self.client_said, self.client_lost)

    def client_said(self, link: MessageProtocol[Any], message: Any, peer: Peer | None = None) -> None:
        """A message of a client's link, in `ToServer`. Raises ProtocolError for one out of turn."""
        client = self._clients.get(link)
        if client is None:
            client = self._clients[link] = _Client(link, peer)
        if isinstance(message, ClientHello):
            self._greet(client, message)
        elif not client.greeted:
            raise ProtocolError(f"a {type(message).__name__} came before the hello")
        elif isinstance(message, OfferBlobs):
            self._blobs.offer(client, message)
        elif isinstance(message, PutBlob):
            self._blobs.put(client, message)
        elif isinstance(message, SubmitJob):
            self._submit(client, message)
        elif isinstance(message, AttachJob):
            self._attach(client, message.job)
        elif isinstance(message, FollowJob):
            self._follow(client, message.job)
        elif isinstance(message, ForgetResult):
            self._forget_result(client, message.job)
        elif isinstance(message, InputBytes | InputUnread):
            self._input.answer(client, message)
        elif isinstance(message, GetStatus):
            link.send(self._status())
        elif isinstance(message, CancelJob):
            self._cancel(client, message.job)
        elif isinstance(message, GetLogs):
            self._send_logs(client, message.job)
        elif isinstance(message, BeginPut):
            self._begin_put(client, message)
        elif isinstance(message, OfferPart | FinishPut):
            self._puts.said(client, message)
        elif message.job not in client.jobs and not (
            isinstance(message, FetchPart | PartTaken) and self._may_fetch(client, message.job)
        ):
            raise ProtocolError(f"{type(message).__name__} names a job that is not this client's")
        elif isinstance(message, FetchPart):
            self._fetch_part(client, message)
        elif isinstance(message, PartTaken):
            self._relay.taken(client, message)
        elif isinstance(message, FromSubmitter):
            self._client_calls(client, message)
        else:
            self._handle(message)
            self._forget(client, message.job)
            self._take_answer(message.job, lambda: link.send(JobForgotten(message.job)))

    def _client_calls(self, client: _Client, message: FromSubmitter) -> None:
        if isinstance(message, FunctionCode) and not self._scheduler.has_function(message):
            about = {"name": message.name, "code": message.function}
            self._audit(actor_of(client.link), "function", message.job, DONE, about)
        self._handle(message)

    def _greet(self, client: _Client, hello: ClientHello) -> None:
        if client.greeted:
            raise ProtocolError("a second hello came")
        try:
            check_versions(hello.versions, self._versions, "the client")
        except VersionMismatch as error:
            client.link.close(Refused(error.report()))
            return
        client.greeted = True
        client.link.accept()
        self._welcome(client)

    def _welcome(self, client: _Client) -> None:
        """Answer a hello once there is a node, so that the answer can say what can be used."""
        if client.greeted and not client.welcomed and (self._nodes or self._cluster):
            client.welcomed = True
            hellos = [hello for hello, _ in self._nodes.values()]
            slots, memory_bytes = sum(h.slots for h in hellos), sum(h.memory_bytes for h in hellos)
            client.link.send(ServerHello(self._versions, slots, memory_bytes))

    def _submit(self, client: _Client, request: SubmitJob) -> None:
        job = request.job or new_job_id()
        if self._ledger.owner(job) is not None:  # the answer was lost, with its connection or an earlier life
            self._attach(client, job)
            return
        owner = client.owner
        if job in self._accepting:  # not on the disk yet
            if owner and owner == self._accepting[job].owner:
                self._accepting[job] = client
            else:
                client.link.send(Refused(NotAllowed(f"{job} is no job of yours").report()))
            return
        error = self._wrong_folder(request) or (self._not_detached() if request.detached else None)
        if self._sharing is not None and error is None:
            accepting = sum(each.owner == owner for each in self._accepting.values())
            error = refusal(request, owner, accepting, self._scheduler, self._sharing)
        if error is not None:
            client.link.send(Refused(error.report()))
            return
        self._blobs.submitted(client, job, request.bundle)
        self._accepting[job] = client
        actor = actor_of(client.link)
        code = hashlib.sha256(request.code).hexdigest()  # opaque here: its hash tells it apart
        about = {"name": request.spec.name, "code": code}

        def refuse(error: CortexError) -> None:
            self._audit(actor, "submit", job, REFUSED, {**about, "error": error.message})
            self._blobs.job_ended(job)
            self._unwanted.pop(job, None)
            self._accepting.pop(job).link.send(Refused(error.report()))

        def accept() -> None:
            client = self._accepting.pop(job)
            self._audit(actor, "submit", job, DONE, about)
            if actor.id:
                name = repr(request.spec.name)
                _log.info("client {id} submits {name}, code {code}", id=actor.id, name=name, code=code)
            self._ledger.accepted(job, request.spec.name, owner)
            if request.detached:
                self._results.accepted(job, request.keep_s)
            self._give(job, client)
            client.link.send(JobAccepted(job))
            self._handle(JobSubmitted(job, request, owner))
            if job in self._unwanted:
                self._handle(CancelRequested(job, self._unwanted.pop(job)))

        if self._journal is None:
            accept()
        else:
            self._journal.accepted(job, owner, request, accept, refuse)

    def _attach(self, client: _Client, job: str) -> None:
        """The client goes on with a job that another connection had, in this life or an earlier one."""
        if job in self._results:  # its submission comes again, its answer was lost
            if self._owns(client, job):
                client.link.send(JobAccepted(job))
                self._give(job, client)
                answer = None if job in self._scheduler.jobs else self._answers.get(job)
                if answer is not None:
                    self._send_answer(client, answer)
            return
        under_way = job in self._scheduler.jobs
        known = under_way or job in self._answers or job in self._ending
        owner = self._ledger.submitter(job) if known else None
        if client.peer is None or owner is None or owner != client.peer.id:
            error = NotAllowed(f"{job} is no job of yours, or has ended", cure="list them: cortex jobs")
            client.link.send(Refused(error.report()))
            return
        before = self._client_of.get(job)
        if before is not None:  # its end has not reached us yet
            before.jobs.discard(job)
        client.link.send(JobAccepted(job))  # before what waits for the client: reads of its files
        self._give(job, client)
        answer = self._answers.get(job)
        if answer is not None and not under_way:
            self._send_answer(client, answer)

    def _give(self, job: str, client: _Client) -> None:
        """The job is this client's, if that is still here; one that is detached it follows."""
        if job in self._results:
            if self._clients.get(client.link) is client:
                self._results.follow(job, client)
        elif self._clients.get(client.link) is client:
            client.jobs.add(job)
            self._client_of[job] = client
            if not isinstance(self._answers.get(job), JobFailed):
                self._input.client_here(job, client)
            self._deserted.pop(job, None)
        else:
            self._deserted[job] = self._clock() + CLIENT_RETURN_S

    # --- detached jobs and their results ---

    def _keeps_result(self, job: str) -> bool:
        run = self._scheduler.kept.get(job)
        return job in self._results and run is not None and not run.is_elsewhere

    def _wrong_folder(self, request: SubmitJob) -> CortexError | None:
        """On a cluster parts lie at their nodes, or beside the output: nodes make and remove that folder, and
        no other."""
        output = request.spec.output
        on_nodes = output.at == "nodes"
        wanted = attempts_folder(output.path, request.job) if on_nodes else ""
        good = request.staging_dir == wanted and (not on_nodes or (request.job and output.path[:1] == "/"))
        return (
            None if good or not self._cluster else ProtocolError("a job names a wrong folder for its parts")
        )

    def _not_detached(self) -> CortexError | None:
        """Why no detached job can be taken."""
        if self._journal is None:
            return UsageError("a job on one machine ends with its client", cure="leave --detach out")
        return self._results.no_room()

    def _no_client(self, message: NodeReads) -> CortexError:
        """A node has not an input file of a detached job as its client had it."""
        read = message.asked
        run = self._scheduler.jobs.get(read.job)
        listed = run.request.client_files if run is not None else ()
        files = [file for found in listed if found is not None for file in found]
        path = files[read.file].path if 0 <= read.file < len(files) else f"number {read.file}"
        return InputError(
            f"input file {path} is not at node {message.node} as it is at the client, which a detached job"
            " does not read from",
            cure="name a path that all nodes see, or leave --detach out: the files then come from here",
            details={"file": path, "node": message.node},
        )

    def _follow(self, client: _Client, job: str) -> None:
        if not self._owns(client, job):
            self._audit(actor_of(client.link), "fetch", job, REFUSED)
            return
        run = self._scheduler.jobs.get(job) or self._scheduler.kept.get(job)
        answer = None if job in self._scheduler.jobs else self._answers.get(job)
        if run is None and answer is None and job not in self._ending:
            client.link.send(Refused(self._nothing_kept(job).report()))
            return
        self._audit(actor_of(client.link), "fetch", job)
        self._results.follow(job, client)
        spec = None if run is None else run.request.spec
        client.link.send(JobFollowed(job, job in self._results, spec))
        if answer is not None:
            self._send_answer(client, answer)

    def _nothing_kept(self, job: str) -> CortexError:
        status = self._ledger.status(job)
        if status is None or status.state == "done":
            return ResultsLost(
                f"no result of {job} is kept: it went to its client, was forgotten, or has expired",
                cure="run the job again; --detach --keep-results 30d keeps its result longer",
            )
        return ResultsLost(f"{job} has no result: it is {status.state}", details={"error": status.error})

    def _may_fetch(self, client: _Client, job: str) -> bool:
        return job in self._results and self._results.follows(client, job)

    def _forget_result(self, client: _Client, job: str) -> None:
        if not self._owns(client, job):
            self._audit(actor_of(client.link), "forget", job, REFUSED)
            return
        if job in self._scheduler.jobs or job in self._ending:
            error = UsageError(f"{job} is under way", cure=f"cortex cancel {job} ends it")
            client.link.send(Refused(error.report()))
        elif job not in self._results:
            client.link.send(Refused(self._nothing_kept(job).report()))
        else:
            self._audit(actor_of(client.link), "forget", job)
            self._drop_result(job, lambda: client.link.send(JobForgotten(job)))

    def _drop_result(self, job: str, then: Callable[[], None] = lambda: None) -> None:
        """What is kept of a detached job that has ended is kept no more."""
        for follower in self._results.unfollow(job):
            follower.link.send(JobForgotten(job))
        self._results.forget(job)
        self._handle(JobReceived(job))
        self._input.close_job(job)
        self._parts.pop(job, None)
        self._blobs.job_ended(job)
        self._take_answer(job, then)

    def _look_at_results(self) -> None:
        now = self._wall_clock()
        for job in self._results.expired(now):
            if job not in self._scheduler.jobs and job not in self._ending:  # else when it is done again
                self._drop_result(job)
        kept = {job: run for job, run in self._scheduler.kept.items() if not run.maps_dropped}
        needless = [job for job, run in kept.items() if run.is_elsewhere and job in self._results]
        for job in (*needless, *self._results.maps_not_kept(kept, now)):
            self._handle(MapsNotKept(job))

    def _fetch_part(self, client: _Client, message: FetchPart) -> None:
        node = self._parts.get(message.job, {}).get(message.staged_as)
        node = node or self._scheduler.attached_at(message.job, message.staged_as)
        if node is not None and (node in self._nodes or self._scheduler.may_return(node)):
            self._relay.fetch(client, message, node)
        else:  # lost meanwhile: the job goes on, and says so when it is done again
            error = results_lost(node or "", message.staged_as)
            client.link.send(PartLost(message.job, message.staged_as, error))

    def _cancel(self, client: _Client, job: str) -> None:
        """A client ends its own jobs, over whichever link; an admin ends all."""
        by = f"job {job} was cancelled by {client.peer}" if client.peer is not None else CANCELLED
        waiting = self._accepting.get(job)
        if waiting is client:
            self._audit(actor_of(client.link), "cancel", job)
            self._unwanted[job] = by
            return
        if job not in client.jobs and not self._owns(client, job):
            self._audit(actor_of(client.link), "cancel", job, REFUSED)
            return
        self._audit(actor_of(client.link), "cancel", job)
        if job not in self._results or job in self._scheduler.jobs:  # a result is forgotten, not cancelled
            self._handle(CancelRequested(job, by))
        if job not in client.jobs:
            client.link.send(self._status())

    def _owns(self, client: _Client, job: str) -> bool:
        """Is it the client's job, over whichever link? If not it is refused."""
        owner = self._ledger.owner(job)
        peer = client.peer
        if owner is not None and (peer is None or peer.role is Role.ADMIN or owner == peer.id):
            return True
        error = NotAllowed(f"{job} is no job of yours", cure="list them: cortex jobs")
        client.link.send(Refused(error.report()))
        return False

    def _send_logs(self, client: _Client, job: str) -> None:
        if self._owns(client, job):
            number = self._logs.ask(client, job, self._nodes)
            self._reactor.callLater(LOGS_S_MAX, self._logs.give_up, number)

    def _begin_put(self, client: _Client, request: BeginPut) -> None:
        nodes = self._scheduler.leases.nodes.values()
        able = [node.name for node in nodes if node.hello.data_roots and node.state.takes_work]
        self._puts.begin(client, request, [name for name in able if name in self._nodes])

    def _note_put(self, client: _Client, request: BeginPut, error: str) -> None:
        details: dict[str, Any] = {"overwrite": request.overwrite, "copies": request.copies}
        if error:
            details |= {"error": error}
        outcome = REFUSED if error else DONE
        self._audit(actor_of(client.link), "put", f"data:{request.name}", outcome, details)

    def _status(self) -> ClusterStatus:
        now = self._clock()
        running = job_statuses(self._scheduler, self._ledger.owners, now)
        ended = [
            msgspec.structs.replace(job, kept_until=self._results.expires_at(job.job))
            if job.state == "done" and self._keeps_result(job.job)
            else job
            for job in self._ledger.ended
            if job.job not in self._scheduler.jobs
        ]
        nodes = [
            msgspec.structs.replace(node, certificate_expires_at=self._certificate_expiry(node.node))
            for node in node_statuses(self._scheduler, now)
        ]
        expected = expected_statuses(self._scheduler, now)
        return ClusterStatus(self._cluster, tuple(nodes), (*ended, *running), expected)

    def client_lost(self, link: MessageProtocol[Any], error: CortexError | None) -> None:
        client = self._clients.pop(link, None)
        if error is not None:
            _log.warn("a client's connection was closed: {error}", error=error.message)
        if client is None:
            return
        self._relay.client_lost(client)
        self._blobs.client_lost(client)
        self._puts.client_lost(client)
        self._input.client_lost(client)
        self._logs.client_lost(client)
        self._results.client_lost(client)
        for job in sorted(client.jobs):
            if self._journal is not None:
                self._client_of.pop(job, None)
                self._deserted[job] = self._clock() + CLIENT_RETURN_S
            else:
                self._forget(client, job)
                self._handle(CancelRequested(job, "the client's connection ended"))

    def _forget(self, client: _Client, job: str) -> None:
        client.jobs.discard(job)
        self._client_of.pop(job, None)
        self._input.close_job(job)
        self._parts.pop(job, None)
        self._blobs.job_ended(job)

    def _take_answer(self, job: str, then: Callable[[], None] = lambda: None) -> None:
        """The client has the job's end, with the result if there is one: it is history. `then()` when that is
        in the journal; not without one."""
        answer, status = self._answers.pop(job, None), self._ledger.status(job)
        if self._journal is None:
            return
        if isinstance(answer, JobDone) and status is not None:
            self._journal.ended(status, None, then)
        else:
            if answer is not None:
                self._journal.answer_taken(job)
            then()

    def _give_up_clients(self) -> None:
        """Jobs whose client has not come back are cancelled, and their results not kept any longer."""
        now = self._clock()
        for job in [job for job, until in self._deserted.items() if now >= until]:
            del self._deserted[job]
            if job in self._scheduler.jobs or job in self._scheduler.kept:
                reason = f"its client did not come back within {format_seconds(CLIENT_RETURN_S)}"
                self._parts.pop(job, None)
                self._handle(CancelRequested(job, reason))
            else:
                self._take_answer(job)

    # --- the scheduler ---

    def _tick(self) -> None:
        self._timer = self._reactor.callLater(PROGRESS_S, self._tick)
        self._handle(Tick())
        self._puts.tick()
        if self._deserted:
            self._give_up_clients()
        self._look_at_results()

    def _restore(self, journal: JournalDesk) -> None:
        """Go on where an earlier life of the server ended."""
        kept, now = journal.read(), self._clock()
        self._ledger.restore(kept.ended)
        self._answers.update(kept.answers)
        for job, failed in kept.answers.items():
            if failed.expires_at:
                self._results.accepted(job, 0.0, failed.expires_at, failed=True)
        for each in kept.restored.jobs:
            self._ledger.accepted(each.job, each.request.spec.name, kept.owners[each.job])
            if each.request.detached:
                before = kept.done.get(each.job)
                expires_at = 0.0 if before is None else before.expires_at
                self._results.accepted(each.job, each.request.keep_s, expires_at)
        self.keep_files_of({each.job: each.request.bundle for each in kept.restored.jobs})
        for job in (*kept.answers, *kept.owners):
            if job not in self._results:
                self._deserted[job] = now + CLIENT_RETURN_S
        self._told_before = kept.done
        self._handle(kept.restored)
        self._told_before = {}

    def _handle(self, event: Event) -> None:
        began_at = self._clock()
        try:
            instructions = self._scheduler.handle(event, began_at)
        except Exception:
            self._start_over(traceback.format_exc())
            return
        self.decision_seconds.add(self._clock() - began_at)
        for instruction in instructions:
            if isinstance(instruction, SendToNode):
                self._to_node(instruction.node, instruction.message)
            elif isinstance(instruction, SendToClient):
                self._to_client(instruction.job, instruction.message)
            elif isinstance(instruction, WriteDown):
                assert self._journal is not None
                self._journal.record(instruction.job, instruction.record)
            else:
                self._give_up_node(instruction)

    def _give_up_node(self, instruction: GiveUpNode) -> None:
        what = "is drained, and leaves" if instruction.drained else "did not come back"
        _log.info("{node} {what}", node=instruction.node, what=what)
        self._relay.node_lost(instruction.node)
        if self._journal is not None:
            self._journal.node_dropped(instruction.node)

    def _to_node(self, name: str, message: ToNode) -> None:
        node = self._nodes.get(name)
        if node is not None:
            node[1].send(message)

    def _to_client(self, job: str, message: FromServer) -> None:
        if isinstance(message, JobDone):
            before = self._told_before.get(job)
            if before is not None and before.parts == message.parts:
                message = before  # the report of the life that has seen all of it
            self._parts[job] = {part.staged_as: part.node for part in message.parts if part.node}
        if isinstance(message, JobDone | JobFailed):
            message = self._results.stamped(message, self._wall_clock())
        if isinstance(message, JobFailed):  # one that is done may need its files to make lost parts anew
            self._blobs.job_ended(job)
            self._input.close_job(job)
        if isinstance(message, JobDone | JobFailed):
            self._ended(job, message)
            return
        for client in self._listeners(job):
            # one that reads slowly needs no progress: the next says the same and more
            if not (client.link.congested and isinstance(message, JobProgress)):
                self._send_answer(client, message)

    def _listeners(self, job: str) -> list[_Client]:
        """The job's client, if it is here, and who follows it."""
        own = self._client_of.get(job)
        return [*([] if own is None else [own]), *self._results.followers(job)]

    def _ended(self, job: str, message: JobDone | JobFailed) -> None:
        status = self._ledger.ended_with(job, message)
        if self._journal is None or status is None:
            for client in self._listeners(job):
                self._send_answer(client, message)
            return
        self._ending.add(job)
        if isinstance(message, JobDone):
            self._journal.done(message, lambda: self._answer_kept(message))
        else:
            self._journal.ended(status, message, lambda: self._answer_kept(message))

    def _answer_kept(self, message: JobDone | JobFailed) -> None:
        """A job's end is in the journal: now its client may know."""
        self._ending.discard(message.job)
        self._answers[message.job] = message
        job = message.job
        for client in self._listeners(job):
            self._send_answer(client, message)
        if job not in self._results and job not in self._client_of and job not in self._deserted:
            self._deserted[message.job] = self._clock() + CLIENT_RETURN_S

    def _send_answer(self, client: _Client, message: FromServer) -> None:
        try:
            client.link.send(message)
        except ProtocolError as error:  # too large for a frame
            assert isinstance(message, JobDone | JobFailed)
            job, report = message.job, message.report
            client.link.send(JobFailed(job, error.report(), JobReport(job, report.name, report.seconds)))

    def _start_over(self, cause: str) -> None:
        """The scheduler broke (a bug): every job fails by name, rather than hang. Nodes stay."""
        _log.critical("the scheduler failed: {cause}", cause=cause)
        error = InternalError("the scheduler failed", details={"traceback": cause}).report()
        jobs, kept = self._scheduler.jobs, self._scheduler.kept
        self._scheduler = self._new_scheduler(self._scheduler.tally)
        for job in (*jobs, *kept):
            for _, link in self._nodes.values():
                link.send(EndJob(job))
        for job, run in (jobs | kept).items():
            report = JobReport(job, run.request.spec.name, self._clock() - run.began_at)
            self._to_client(job, JobFailed(job, error, report))
        for hello, _ in self._nodes.values():
            self._scheduler.handle(NodeJoined(hello), self._clock())

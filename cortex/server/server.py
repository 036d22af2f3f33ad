"""The server: takes jobs from clients, lets the scheduler decide, and passes its decisions on.

It never unpickles anything: a job's code is opaque bytes on its way to the nodes. It holds no
reactor of its own and blocks nowhere. Clients connect through `client_factory`; a node attaches through a
`NodeLink`: on one machine it is in the same process, joined by a `LocalLink`.

This module has the nodes that are here, gives each message to the object whose matter it is, and carries out
the instructions of `Decisions`. Of those objects

- `Clients` greets, and answers; `ClientJobs` knows which client has which job;
- `Acceptance` has a job from its submission until it is accepted, `JobEnds` from its end until that is taken;
- `ResultDesk` gives parts of results, and sees to those that are kept;
- the relays and desks pass bytes on between clients and nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import Factory
from twisted.logger import Logger

from cortex.errors import CortexError, ErrorReport, ProtocolError
from cortex.job.bundle import Bundle
from cortex.limits import LOGS_S_MAX, PROGRESS_S
from cortex.metric_text import Histogram
from cortex.scheduling.events import (
    CANCELLED,
    CancelRequested,
    DrainRequested,
    Event,
    FromSubmitter,
    GiveUpNode,
    Instruction,
    NodeAway,
    NodeJoined,
    NodeLost,
    PartUnreadable,
    SendToClient,
    SendToNode,
    Tick,
    WriteDown,
)
from cortex.scheduling.run import Run
from cortex.scheduling.scheduler import Scheduler
from cortex.scheduling.tally import Tally
from cortex.server.acceptance import Acceptance
from cortex.server.audit_desk import DONE, REFUSED, Audit, actor_of, no_audit
from cortex.server.blob_desk import BlobDesk
from cortex.server.client_jobs import ClientJobs
from cortex.server.clients import Client, Clients
from cortex.server.decisions import Decisions
from cortex.server.input_relay import InputRelay
from cortex.server.job_ends import JobEnds
from cortex.server.job_ledger import JobLedger
from cortex.server.journal_desk import JournalDesk
from cortex.server.kept_results import KeptResults
from cortex.server.local_link import LocalLink, NodeLink
from cortex.server.log_desk import LogDesk
from cortex.server.part_relay import PartRelay
from cortex.server.put_desk import PutDesk
from cortex.server.result_desk import ResultDesk
from cortex.server.status import cluster_status
from cortex.sharing_policy import SharingPolicy
from cortex.storage.blob_store import BlobStore
from cortex.transfer.work_thread import WorkThread
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
    JobDone,
    JobFailed,
    JobForgotten,
    JobReport,
    NodeHello,
    NodeLog,
    NodeReads,
    OfferBlobs,
    OfferPart,
    PartChunk,
    PartsNamed,
    PartStored,
    PartTaken,
    PartUnread,
    PutBlob,
    PutOpened,
    Refused,
    ReportsKept,
    SubmitJob,
    ToNode,
    ToServer,
)
from cortex.wire.transports import MessageProtocol

if TYPE_CHECKING:  # the certificates' library is not needed on one machine
    from cortex.wire.authority import Peer

_log = Logger()


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
        self._sharing = sharing
        self._certificate_expiry = certificate_expiry
        self._nodes: dict[str, tuple[NodeHello, NodeLink]] = {}
        self._decisions = Decisions(
            clock,
            self._new_scheduler,
            self._carry_out,
            self._broken,
            lambda: [hello for hello, _ in self._nodes.values()],
        )
        self._clients = Clients(self._room)
        self._results = KeptResults()
        self._ledger = JobLedger(lambda job: job in self._results)

        def to_client(client: Client, message: FromServer) -> None:
            client.link.send(message)

        self._relay = PartRelay(self._to_node, to_client)
        self._blobs = BlobDesk(
            BlobStore(blob_folder, durable=bool(cluster)),
            WorkThread(reactor, "blobs"),
            self._to_node,
            to_client,
            lambda client, error: client.link.close(Refused(error.report())),
        )
        self._logs = LogDesk(self._to_node, to_client)
        self._input = InputRelay(
            self._to_node,
            to_client,
            lambda job: job in self.scheduler.jobs or job in self.scheduler.kept,
        )
        self._puts = PutDesk(
            clock,
            self._input,
            self._to_node,
            to_client,
            lambda client, refused: client.link.close(refused),
            self._note_put,
        )
        self._ends = JobEnds(
            self._ledger,
            journal,
            lambda answer: self._jobs.tell_end(answer),
            lambda job: self._jobs.end_kept(job),
        )
        self._jobs = ClientJobs(
            clock,
            self._clients,
            self._decisions,
            self._ledger,
            self._results,
            self._ends,
            self._input,
            self._relay,
            may_return=journal is not None,
            let_go=self._let_go,
        )
        self._acceptance = Acceptance(
            self._decisions,
            self._ledger,
            self._results,
            self._jobs,
            journal,
            self._blobs,
            audit,
            sharing,
            in_cluster=bool(cluster),
        )
        self._desk = ResultDesk(
            wall_clock,
            self._decisions,
            self._ledger,
            self._results,
            self._ends,
            self._jobs,
            self._relay,
            self._nodes,
            audit,
            self._let_go,
        )
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
        return self._decisions.scheduler

    @property
    def decision_seconds(self) -> Histogram:
        return self._decisions.seconds

    @property
    def relayed_result_bytes(self) -> int:
        return self._relay.relayed_bytes

    @property
    def relayed_input_bytes(self) -> int:
        return self._input.relayed_bytes

    def _new_scheduler(self, tally: Tally | None) -> Scheduler:
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
        self._clients.close()

    def cancel_all(self, reason: str) -> None:
        """Every job ends here and now: no later life goes on with it."""
        for job in list(self.scheduler.jobs):
            self._handle(CancelRequested(job, reason))
        for job in list(self.scheduler.kept):
            self._relay.drop_job(job)
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
            self._clients.welcome()
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
                link.send(InputUnread(message.asked.read, self._desk.no_client(message).report()))
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
        if node not in self.scheduler.leases.nodes:
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
        client = self._clients.of(link, peer)
        if isinstance(message, ClientHello):
            self._clients.greet(client, message)
        elif not client.greeted:
            raise ProtocolError(f"a {type(message).__name__} came before the hello")
        elif isinstance(message, OfferBlobs):
            self._blobs.offer(client, message)
        elif isinstance(message, PutBlob):
            self._blobs.put(client, message)
        elif isinstance(message, SubmitJob):
            self._acceptance.submit(client, message)
        elif isinstance(message, AttachJob):
            self._jobs.attach(client, message.job)
        elif isinstance(message, FollowJob):
            self._desk.follow(client, message.job)
        elif isinstance(message, ForgetResult):
            self._desk.forget(client, message.job)
        elif isinstance(message, InputBytes | InputUnread):
            self._input.answer(client, message)
        elif isinstance(message, GetStatus):
            link.send(self.status())
        elif isinstance(message, CancelJob):
            self._cancel(client, message.job)
        elif isinstance(message, GetLogs):
            self._send_logs(client, message.job)
        elif isinstance(message, BeginPut):
            self._begin_put(client, message)
        elif isinstance(message, OfferPart | FinishPut):
            self._puts.said(client, message)
        elif message.job not in client.jobs and not (
            isinstance(message, FetchPart | PartTaken) and self._desk.may_fetch(client, message.job)
        ):
            raise ProtocolError(f"{type(message).__name__} names a job that is not this client's")
        elif isinstance(message, FetchPart):
            self._desk.fetch_part(client, message)
        elif isinstance(message, PartTaken):
            self._relay.taken(client, message)
        elif isinstance(message, FromSubmitter):
            self._client_calls(client, message)
        else:
            self._handle(message)
            self._jobs.forget(client, message.job)
            self._ends.taken(message.job, lambda: link.send(JobForgotten(message.job)))

    def _client_calls(self, client: Client, message: FromSubmitter) -> None:
        if isinstance(message, FunctionCode) and not self.scheduler.has_function(message):
            about = {"name": message.name, "code": message.function}
            self._audit(actor_of(client.link), "function", message.job, DONE, about)
        self._handle(message)

    def client_lost(self, link: MessageProtocol[Any], error: CortexError | None) -> None:
        client = self._clients.lost(link)
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
        self._jobs.lost(client)

    def _room(self) -> tuple[int, int] | None:
        """What clients may use: slots and memory."""
        if not self._nodes and not self._cluster:
            return None
        hellos = [hello for hello, _ in self._nodes.values()]
        return sum(hello.slots for hello in hellos), sum(hello.memory_bytes for hello in hellos)

    def _let_go(self, job: str) -> None:
        """Nobody needs what was kept for the job's client."""
        self._input.close_job(job)
        self._relay.drop_job(job)
        self._blobs.job_ended(job)

    def _cancel(self, client: Client, job: str) -> None:
        """A client ends its own jobs, over whichever link; an admin ends all."""
        by = f"job {job} was cancelled by {client.peer}" if client.peer is not None else CANCELLED
        if self._acceptance.cancel(client, job, by):
            return
        if job not in client.jobs and not self._jobs.owns(client, job):
            self._audit(actor_of(client.link), "cancel", job, REFUSED)
            return
        self._audit(actor_of(client.link), "cancel", job)
        if job not in self._results or job in self.scheduler.jobs:  # a result is forgotten, not cancelled
            self._handle(CancelRequested(job, by))
        if job not in client.jobs:
            client.link.send(self.status())

    def _send_logs(self, client: Client, job: str) -> None:
        if self._jobs.owns(client, job):
            number = self._logs.ask(client, job, self._nodes)
            self._reactor.callLater(LOGS_S_MAX, self._logs.give_up, number)

    def _begin_put(self, client: Client, request: BeginPut) -> None:
        nodes = self.scheduler.leases.nodes.values()
        able = [node.name for node in nodes if node.hello.data_roots and node.state.takes_work]
        self._puts.begin(client, request, [name for name in able if name in self._nodes])

    def _note_put(self, client: Client, request: BeginPut, error: str) -> None:
        details: dict[str, Any] = {"overwrite": request.overwrite, "copies": request.copies}
        if error:
            details |= {"error": error}
        outcome = REFUSED if error else DONE
        self._audit(actor_of(client.link), "put", f"data:{request.name}", outcome, details)

    def status(self) -> ClusterStatus:
        return cluster_status(
            self._cluster,
            self.scheduler,
            self._ledger,
            self._results,
            self._certificate_expiry,
            self._clock(),
        )

    # --- the scheduler ---

    def _tick(self) -> None:
        self._timer = self._reactor.callLater(PROGRESS_S, self._tick)
        self._handle(Tick())
        self._puts.tick()
        self._jobs.give_up()
        self._desk.look()

    def _restore(self, journal: JournalDesk) -> None:
        """Go on where an earlier life of the server ended."""
        kept = journal.read()
        self._ledger.restore(kept.ended)
        self._ends.restore(kept.answers, kept.done)
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
                self._jobs.desert(job)
        self._handle(kept.restored)
        self._ends.restored()

    def _handle(self, event: Event) -> None:
        self._decisions.handle(event)

    def _carry_out(self, instruction: Instruction) -> None:
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
            message = self._ends.as_told(message)
            self._relay.job_done(message)
        if isinstance(message, JobFailed):  # one that is done may need its files to make lost parts anew
            self._blobs.job_ended(job)
            self._input.close_job(job)
        if isinstance(message, JobDone | JobFailed):
            self._ends.ended(self._results.stamped(message, self._wall_clock()))
        else:
            self._jobs.tell(job, message)

    def _broken(self, runs: Mapping[str, Run], error: ErrorReport) -> None:
        """The scheduler that had these jobs is gone."""
        for job in runs:
            for _, link in self._nodes.values():
                link.send(EndJob(job))
        for job, run in runs.items():
            report = JobReport(job, run.request.spec.name, self._clock() - run.began_at)
            self._to_client(job, JobFailed(job, error, report))

"""The server: takes jobs from clients, lets the scheduler decide, and passes its decisions on.

It never unpickles anything: a job's code is opaque bytes on its way to the nodes. It holds no
reactor of its own and blocks nowhere. Clients connect through `client_factory`; a client whose
connection ends takes its jobs with it. A node attaches through a `NodeLink`; today that is one node
in the same process, joined by a `LocalLink`.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from twisted.internet.protocol import Factory
from twisted.logger import Logger

from cortex.blob_desk import BlobDesk
from cortex.errors import CortexError, InternalError, NotAllowed, ProtocolError, VersionMismatch
from cortex.ids import Role, new_job_id
from cortex.input_relay import InputRelay
from cortex.job.bundle import Bundle
from cortex.job_ledger import JobLedger
from cortex.job_logs import LogDesk
from cortex.limits import LOGS_S_MAX, PROGRESS_S
from cortex.part_relay import PartRelay, results_lost
from cortex.scheduling.events import (
    CancelRequested,
    Event,
    JobSubmitted,
    NodeJoined,
    NodeLost,
    PartUnreadable,
    SendToNode,
    Tick,
)
from cortex.scheduling.scheduler import Scheduler
from cortex.scheduling.status import job_statuses, node_statuses
from cortex.storage.blob_store import BlobStore
from cortex.transfer.work_thread import WorkThread
from cortex.wire.messages import (
    BlobTaken,
    CancelJob,
    ClientHello,
    ClusterStatus,
    EndJob,
    FetchBlob,
    FetchPart,
    FromNode,
    FromServer,
    GetLogs,
    GetStatus,
    InputBytes,
    InputUnread,
    JobAccepted,
    JobDone,
    JobFailed,
    JobProgress,
    JobReport,
    NodeHello,
    NodeLog,
    NodeReads,
    OfferBlobs,
    PartChunk,
    PartLost,
    PartTaken,
    PartUnread,
    PutBlob,
    Refused,
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


class Server:
    """`clock` is monotonic seconds; `reactor` needs `callLater` (and should time it by the same clock).
    `cluster` "": the server of one machine, which answers no hello before its node is there.
    `blob_folder`: its own, where the files that travel with jobs are kept (on one machine not beyond its
    end, so not durably); "" in tests without any.

    Call `stop` when done: until then a tick every PROGRESS_S renews leases and tells progress.
    """

    def __init__(
        self, reactor: Any, clock: Callable[[], float], cluster: str = "", *, blob_folder: str = ""
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._cluster = cluster
        self._scheduler = Scheduler()
        self._versions = local_versions()
        self._nodes: dict[str, tuple[NodeHello, NodeLink]] = {}
        self._clients: dict[MessageProtocol[Any], _Client] = {}
        self._ledger = JobLedger()
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
        self._client_of: dict[str, _Client] = {}
        self._timer = reactor.callLater(PROGRESS_S, self._tick)

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

    # --- nodes ---

    def attach_node(self, link: NodeLink) -> Callable[[FromNode], None]:
        """Attach a node by the way to it; gives the way from it, which may be called at any time.

        Its first message is its NodeHello. What it sends is handled in a later turn of the reactor.
        """
        return LocalLink[FromNode](self._reactor, lambda message: self._from_node(link, message)).send

    def detach_node(self, node_name: str) -> None:
        """The node is gone: its attempts run elsewhere, and what it held is lost."""
        if self._nodes.pop(node_name, None) is not None:
            self._relay.node_lost(node_name)
            self._blobs.node_lost(node_name)
            self._input.node_lost(node_name)
            self._logs.node_lost(node_name)
            self._handle(NodeLost(node_name))

    def _from_node(self, link: NodeLink, message: FromNode) -> None:
        if isinstance(message, NodeHello):
            if message.slots < 1:
                raise ProtocolError(f"node {message.node!r} has {message.slots} slots")
            self._nodes[message.node] = message, link
            self._handle(NodeJoined(message))
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
            self._input.read(message)
        elif isinstance(message, NodeLog):
            self._logs.answered(message)
        else:
            self._handle(message)

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
            job = new_job_id()
            self._blobs.submitted(client, job, message.bundle)
            client.jobs.add(job)
            self._client_of[job] = client
            self._input.client_here(job, client)
            self._ledger.accepted(job, message.spec.name, peer.id if peer else "", self._clock())
            link.send(JobAccepted(job))
            self._handle(JobSubmitted(job, message))
        elif isinstance(message, InputBytes | InputUnread):
            self._input.answer(client, message)
        elif isinstance(message, GetStatus):
            link.send(self._status())
        elif isinstance(message, CancelJob):
            self._cancel(client, message.job)
        elif isinstance(message, GetLogs):
            self._send_logs(client, message.job)
        elif message.job not in client.jobs:
            raise ProtocolError(f"{type(message).__name__} names a job that is not this client's")
        elif isinstance(message, FetchPart):
            self._fetch_part(client, message)
        elif isinstance(message, PartTaken):
            self._relay.taken(client, message)
        else:
            self._handle(message)
            self._forget(client, message.job)

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

    def _fetch_part(self, client: _Client, message: FetchPart) -> None:
        node = self._parts.get(message.job, {}).get(message.staged_as)
        if node is not None and node in self._nodes:
            self._relay.fetch(client, message, node)
        else:  # lost meanwhile: the job goes on, and says so when it is done again
            error = results_lost(node or "", message.staged_as)
            client.link.send(PartLost(message.job, message.staged_as, error))

    def _cancel(self, client: _Client, job: str) -> None:
        """A client ends its own jobs, over whichever link; an admin ends all."""
        if job not in client.jobs and not self._owns(client, job):
            return
        self._handle(CancelRequested(job))
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

    def _status(self) -> ClusterStatus:
        now = self._clock()
        running = job_statuses(self._scheduler, self._ledger.owners, now)
        ended = [job for job in self._ledger.ended if job.job not in self._scheduler.jobs]
        return ClusterStatus(self._cluster, node_statuses(self._scheduler, now), (*ended, *running))

    def client_lost(self, link: MessageProtocol[Any], error: CortexError | None) -> None:
        client = self._clients.pop(link, None)
        if error is not None:
            _log.warn("a client's connection was closed: {error}", error=error.message)
        if client is None:
            return
        self._relay.client_lost(client)
        self._blobs.client_lost(client)
        self._input.client_lost(client)
        self._logs.client_lost(client)
        for job in sorted(client.jobs):
            self._forget(client, job)
            self._handle(CancelRequested(job, "the client's connection ended"))

    def _forget(self, client: _Client, job: str) -> None:
        client.jobs.discard(job)
        self._client_of.pop(job, None)
        self._input.close_job(job)
        self._parts.pop(job, None)
        self._blobs.job_ended(job)

    # --- the scheduler ---

    def _tick(self) -> None:
        self._timer = self._reactor.callLater(PROGRESS_S, self._tick)
        self._handle(Tick())

    def _handle(self, event: Event) -> None:
        try:
            instructions = self._scheduler.handle(event, self._clock())
        except Exception:
            self._start_over(traceback.format_exc())
            return
        for instruction in instructions:
            if isinstance(instruction, SendToNode):
                self._to_node(instruction.node, instruction.message)
            else:
                self._to_client(instruction.job, instruction.message)

    def _to_node(self, name: str, message: ToNode) -> None:
        node = self._nodes.get(name)
        if node is not None:
            node[1].send(message)

    def _to_client(self, job: str, message: FromServer) -> None:
        if isinstance(message, JobDone):
            self._parts[job] = {part.staged_as: part.node for part in message.parts if part.node}
        if isinstance(message, JobDone | JobFailed):
            self._ledger.ended_with(job, message, self._clock())
        if isinstance(message, JobFailed):  # one that is done may need its files to make lost parts anew
            self._blobs.job_ended(job)
            self._input.close_job(job)
        client = self._client_of.get(job)
        if client is None or (client.link.congested and isinstance(message, JobProgress)):
            return  # it is gone; or it reads slowly, and the next progress says the same and more
        try:
            client.link.send(message)
        except ProtocolError as error:  # too large for a frame
            report = message.report if isinstance(message, JobDone | JobFailed) else JobReport(job, "", 0.0)
            client.link.send(JobFailed(job, error.report(), JobReport(job, report.name, report.seconds)))

    def _start_over(self, cause: str) -> None:
        """The scheduler broke (a bug): every job fails by name, rather than hang. Nodes stay."""
        _log.critical("the scheduler failed: {cause}", cause=cause)
        error = InternalError("the scheduler failed", details={"traceback": cause}).report()
        jobs, kept = self._scheduler.jobs, self._scheduler.kept
        self._scheduler = Scheduler()
        for job in (*jobs, *kept):
            for _, link in self._nodes.values():
                link.send(EndJob(job))
        for job, run in (jobs | kept).items():
            report = JobReport(job, run.request.spec.name, self._clock() - run.began_at)
            self._to_client(job, JobFailed(job, error, report))
        for hello, _ in self._nodes.values():
            self._scheduler.handle(NodeJoined(hello), self._clock())

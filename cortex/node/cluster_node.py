"""A node of a cluster: a `Node` with its data port, its part in the shuffle, and its link to the server.

The link is dialed again, with growing rests, for as long as the node lives. Meanwhile the node works on, and
says what it holds when it is back: to the same server or to a later life of it. After SERVER_SILENCE_S_MAX it
drops its jobs, and comes back as a new one. Before its server has welcomed it, and UNTRUSTED_S after it has
lost it, it serves no other node: somebody may have been put out meanwhile.

The certificate is renewed over the link when two thirds of its life are over.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from cortex.errors import CortexError, NotAllowed, VersionMismatch, from_report
from cortex.formats.data_roots import DataRoots
from cortex.ids import server_name
from cortex.limits import REDIAL_FIRST_S, REDIAL_S_MAX, SERVER_SILENCE_S_MAX, UNTRUSTED_S
from cortex.machine_report import MachineReport, examine_machine
from cortex.memory_plan import MemoryPlan
from cortex.metric_text import Family
from cortex.node.examination import Examination
from cortex.node.held_inputs import FileReads
from cortex.node.node import Node
from cortex.node.node_metrics import node_families
from cortex.node.spill_meter import SpillMeter
from cortex.storage.filesystem import LocalFilesystem, is_memory_backed
from cortex.transfer.data_port import DataPort
from cortex.transfer.input_fetcher import InputFetcher
from cortex.transfer.segment_fetcher import SegmentFetcher
from cortex.transfer.segment_server import SegmentServer
from cortex.transfer.shuffle_agent import Addresses, ShuffleAgent
from cortex.transfer.work_thread import WorkThread
from cortex.wire import tls
from cortex.wire.gate import Members, Strangers
from cortex.wire.identity import Identity, save_identity
from cortex.wire.join import Endpoint, parse_endpoint
from cortex.wire.messages import (
    CertificateRenewed,
    Examine,
    Goodbye,
    Message,
    PeersRevoked,
    Refused,
)
from cortex.wire.peers import DialedProtocol, dial
from cortex.wire.permissions import union_to
from cortex.wire.renewal import Renewal, look_again_s
from cortex.wire.versions import local_versions

if TYPE_CHECKING:
    from cortex.wire.metrics_port import MetricsPort

_log = Logger()
_FINAL = (NotAllowed.code, VersionMismatch.code)  # what a server refuses us with for good


class ClusterNode:
    """See the module. `template` is the template's connected socket, `folder` where `identity` is kept.

    `metrics`: where its figures are told (`cortex.wire.metrics_port`); None: nowhere.
    `failed(error)` is called once when the node can go on no more, `ended()` when an admin has ended the
    cluster, or the node is drained; in both cases the caller calls `stop`. `reactor` times by the monotonic
    `clock`; certificates go by `wall_clock`. Raises UsageError for an address that cannot be listened on.
    """

    def __init__(
        self,
        reactor: Any,
        identity: Identity,
        folder: str,
        *,
        listen: Endpoint,
        advertise: str,
        plan: MemoryPlan,
        spill_dirs: Sequence[str],
        spill_quota_bytes: int = 0,
        data_roots: DataRoots | None = None,
        failed: Callable[[CortexError], None],
        ended: Callable[[], None],
        combine: bool = True,
        metrics: Endpoint | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._reactor = reactor
        self._identity = identity
        self._folder = folder
        self._failed = failed
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._members = Members(identity.cluster)
        self._addresses = Addresses()
        self._settings = tls.Renewable(tls.data_port(identity))
        self._data = DataPort(reactor, wall_clock, self._members, lambda: self._identity, self._addresses.of)
        self._data.trust(False)
        serving = SegmentServer(
            reactor,
            clock,
            LocalFilesystem(),
            self._data.identify,
            inputs=self._input_reads if data_roots else None,
        )
        self._serving = serving
        self._port = self._data.listen(listen, self._settings, Strangers(), serving)
        self.address = Endpoint(advertise, int(self._port.getHost().port))

        meter = SpillMeter(reactor, spill_dirs, spill_quota_bytes)

        def fetcher(landed: Any, lost: Any) -> SegmentFetcher:
            return SegmentFetcher(
                reactor,
                clock,
                LocalFilesystem(),
                self._data.connect,
                landed,
                lost,
                self._data.check,
                spill_account=meter.account_path,
            )

        self._node = Node(
            reactor,
            clock,
            self._send,
            name=identity.id,
            plan=plan,
            spill_dirs=spill_dirs,
            versions=local_versions(),
            failed=self._fail,
            shut_down=ended,
            data_address=str(self.address),
            shuffle=lambda ready, failed: ShuffleAgent(serving, fetcher, self._addresses, ready, failed),
            keep_reports=True,
            combine=combine,
            data_roots=data_roots,
            input_fetcher=lambda answered, failed: InputFetcher(
                reactor, clock, self._data.connect, self._data.check, answered, failed
            ),
            host=socket.gethostname(),
            meter=meter,
        )
        self._link: DialedProtocol[Any] | None = None
        self._dialing: Deferred[Any] | None = None
        self._open = False
        self._welcome = False
        self._starting_over = False
        self._rest_s = 0.0
        self._stopping = False
        self._said_lost = False
        self._renewing: Renewal | None = None
        self._disk = WorkThread(reactor, "identity")
        self._timers: dict[str, Any] = {}
        folders = [("home", folder), *(("spill", each) for each in spill_dirs)]

        def report() -> MachineReport:
            return examine_machine(
                wall_clock(),
                local_versions(),
                folders,
                is_memory_backed,
                memory_cap_bytes=plan.cap_bytes,
                certificate_expires_at=self._identity.expires_at,
            )

        self._examination = Examination(reactor, identity.id, report, self._send, wall_clock)
        self._metrics: MetricsPort | None = None
        if metrics is not None:
            from cortex.wire.metrics_port import MetricsPort  # and with it twisted.web

            self._metrics = MetricsPort(
                reactor, metrics, self._settings, self._members, self._families, self._ailing, wall_clock
            )

    def start(self, template: Any, socket_path: str) -> None:
        """Start the executors, and dial the server until it answers."""
        inputs = os.path.join(os.path.dirname(socket_path), "input.sock")
        self._node.start(template, socket_path=socket_path, input_socket=inputs)
        self._dial()
        self._look_at_certificate()

    def stop(self, gone: Callable[[], None]) -> None:
        """Say goodbye, kill what runs and remove what was spilled; `gone()` when that is done."""
        self._stopping = True
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        self._port.stopListening()
        self._disk.stop()
        if self._metrics is not None:
            self._metrics.stop()
        self._data.stop()
        self._examination.stop()
        if self._dialing is not None:
            self._dialing.cancel()
        if self._link is not None:  # its work moves at once: nobody waits for this node to come back
            self._link.close(Goodbye(self._identity.id, self._node.incarnation) if self._welcome else None)
        self._node.stop(gone)

    @property
    def metrics_port(self) -> int:
        """0: none."""
        return 0 if self._metrics is None else self._metrics.port

    def _families(self) -> Iterable[Family]:
        serving = self._serving
        return node_families(
            self._node.figures(),
            self._welcome,
            serving.sent_bytes,
            len(serving.connections),
            self._identity.expires_at,
        )

    def _ailing(self) -> list[str]:
        return [] if self._welcome else [f"no link to the server at {self._identity.server}"]

    def _input_reads(self) -> FileReads:
        assert self._node.held is not None
        return FileReads(self._node.held)

    # --- the link to the server ---

    def _dial(self) -> None:
        identity = self._identity
        link: DialedProtocol[Any] = DialedProtocol(
            self._reactor,
            server_name(identity.cluster),
            union_to(identity.role),
            self._opened,
            self._received,
            self._lost,
        )
        self._link = link
        self._welcome = False
        server = parse_endpoint(identity.server, "the server")
        self._dialing = dial(self._reactor, server, identity, server_name(identity.cluster), link)

    def _opened(self, _link: Any) -> None:
        self._open = True
        self._node.hello()

    def _send(self, message: Message) -> None:
        if self._link is not None and self._open:  # never before the hello
            self._link.send(message)

    def _received(self, link: DialedProtocol[Any], message: Message) -> None:
        if link is not self._link or self._stopping:
            return
        if isinstance(message, Refused):
            self._refused(from_report(message.error))
        elif isinstance(message, PeersRevoked):
            self._welcomed(link)
            for peer in message.peers:
                self._data.put_out(peer)
        elif isinstance(message, CertificateRenewed):
            self._renewed(message)
        elif isinstance(message, Examine):
            self._examination.examine(message)
        else:
            self._node.receive(message)  # type: ignore[arg-type]  # the link's decoder gives no other

    def _welcomed(self, link: DialedProtocol[Any]) -> None:
        """The server's first word after a good hello."""
        if self._welcome:
            return
        self._welcome, self._rest_s, self._said_lost = True, 0.0, False
        link.accept()
        self._cancel("untrusted")
        self._cancel("silence")
        self._data.trust(True)
        self._look_at_certificate()
        _log.info(
            "node {node} of cluster {cluster} is connected to {server}, and serves others at {address}",
            node=self._identity.id,
            cluster=self._identity.cluster,
            server=self._identity.server,
            address=str(self.address),
        )

    def _refused(self, error: CortexError) -> None:
        if error.code in _FINAL:
            self._fail(error)
        else:
            self._renewing = None  # if that was refused it is tried again
            _log.warn("the server refused the node: {error}", error=error.message)

    def _lost(self, link: DialedProtocol[Any], error: CortexError | None) -> None:
        if link is not self._link or self._stopping:
            return
        self._link = self._dialing = self._renewing = None
        self._open = False
        if error is not None and error.code in _FINAL:
            self._fail(error)
            return
        if not self._said_lost:
            self._said_lost = True
            why = error.message if error is not None else "it closed the connection"
            _log.warn(
                "no link to the server at {server}: {why}; trying again",
                server=self._identity.server,
                why=why,
            )
        if self._welcome:
            self._welcome = False
            self._after("untrusted", UNTRUSTED_S, lambda: self._data.trust(False))
            self._after("silence", SERVER_SILENCE_S_MAX, self._start_over)
            self._node.server_lost()
        self._redial()

    def _start_over(self) -> None:
        """The server does not come back for what this node holds."""
        _log.warn("no server for {seconds:g} s: its jobs are dropped", seconds=SERVER_SILENCE_S_MAX)

        def ready() -> None:
            self._starting_over = False
            self._redial()

        self._starting_over = True
        self._cancel("redial")
        if self._dialing is not None:
            self._dialing.cancel()
        if self._link is not None:
            self._link.close()
        self._node.start_over(ready)

    def _redial(self) -> None:
        if self._stopping or self._link is not None or self._starting_over:
            return
        self._rest_s = min(REDIAL_S_MAX, max(REDIAL_FIRST_S, 2 * self._rest_s))
        self._after("redial", self._rest_s * (0.5 + self._jitter()), self._dial)

    def _fail(self, error: CortexError) -> None:
        if not self._stopping:
            self._stopping = True
            self._failed(error)

    # --- its own certificate ---

    def _look_at_certificate(self) -> None:
        again_s = look_again_s([self._identity], self._wall_clock())
        self._after("certificate", again_s, self._look_at_certificate)
        if self._welcome and self._renewing is None and self._identity.renew_due(self._wall_clock()):
            self._renewing = Renewal(self._identity)
            assert self._link is not None
            self._link.send(self._renewing.request)

    def _renewed(self, message: CertificateRenewed) -> None:
        """It counts once it is on the disk; one that could not be put there is asked for again."""
        renewing = self._renewing
        if renewing is None:
            return

        def save() -> Identity:
            renewed = renewing.finish(message)
            save_identity(self._folder, renewed)
            return renewed

        self._disk.run(save, self._saved, self._not_saved)

    def _saved(self, renewed: Identity) -> None:
        self._identity = renewed
        self._settings.options = tls.data_port(renewed)
        _log.info("the node's certificate was renewed")
        self._look_at_certificate_later()

    def _not_saved(self, error: CortexError) -> None:
        _log.warn("the node's certificate could not be renewed: {error}", error=error.message)
        self._look_at_certificate_later()

    def _look_at_certificate_later(self) -> None:
        self._renewing = None
        if self._stopping:
            return
        self._after(
            "certificate", look_again_s([self._identity], self._wall_clock()), self._look_at_certificate
        )

    # --- time ---

    def _after(self, name: str, seconds: float, function: Callable[[], None]) -> None:
        self._cancel(name)
        self._timers[name] = self._reactor.callLater(seconds, function)

    def _cancel(self, name: str) -> None:
        timer = self._timers.get(name)
        if timer is not None and timer.active():
            timer.cancel()

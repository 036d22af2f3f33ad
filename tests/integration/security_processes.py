"""The processes of `test_cluster_security`: a server with a node's data port, and a node that dials.

    python -m tests.integration.security_processes serve HOME HELLO_S_MAX
    python -m tests.integration.security_processes dial FOLDER NAME HOST:PORT

``serve`` says its two ports on standard output, and appends every message that got through to
HOME/heard. ``dial`` says how each step of its link went.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThreadPool
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.python.threadpool import ThreadPool

from cortex.errors import CortexError
from cortex.ids import Role, peer_name
from cortex.storage.token_store import TokenStore
from cortex.wire import messages as m
from cortex.wire import peers, tls, transports
from cortex.wire.authority import make_key
from cortex.wire.door import Door, Link
from cortex.wire.gate import Members, Strangers
from cortex.wire.identity import load_identity, make_identity
from cortex.wire.join import Endpoint, parse_endpoint
from cortex.wire.join_desk import JoinDesk
from cortex.wire.permissions import union_to
from cortex.wire.server_home import open_server_home
from cortex.wire.versions import local_versions

reactor: Any = _reactor
NODE = "n0123456789ab"


def serve(home: str, hello_s_max: float) -> None:
    transports.HELLO_S_MAX = peers.HELLO_S_MAX = hello_s_max  # type: ignore[misc]
    made = open_server_home(home, Endpoint("127.0.0.1", 1), time.time())
    store = TokenStore(os.path.join(home, "tokens"))
    pool = ThreadPool(0, 1, name="journal")
    pool.start()
    strangers = Strangers()
    members = Members(made.authority.cluster, store.revoked_peers())
    heard = open(os.path.join(home, "heard"), "a", buffering=1)  # noqa: SIM115 (as long as the process)

    def note(link: Any, message: m.Message) -> None:
        print(str(link.peer), type(message).__name__, file=heard)
        link.accept()

    def received(link: Link, message: m.Message) -> None:
        note(link, message)
        if isinstance(message, m.KillCluster):
            link.close(m.AdminDone())
        elif isinstance(message, m.CancelJob):
            link.send(m.JobAccepted(message.job))
        elif isinstance(message, m.NodeHello):
            link.send(m.PeersRevoked(()))
        else:
            link.send(m.ServerHello(local_versions(), 1, 1))

    desk = JoinDesk(made.authority, store, local_versions())
    run = partial(deferToThreadPool, reactor, pool)
    door = Door(reactor, members, desk, run, received, lambda *_: None)
    settings = tls.Renewable(tls.cluster_port(made.server))
    here = Endpoint("127.0.0.1", 0)
    cluster_port = peers.listen_tls(reactor, here, settings, strangers, door.factory())

    key = make_key()
    certificate = made.authority.issue(key.public_key(), Role.NODE, NODE, time.time())
    node = make_identity(key, certificate, made.authority.certificate, "h:1")

    def admit(link: Any) -> Any:
        members.check(link.peer, (Role.NODE,))
        return m.NodeHello

    def node_received(link: Any, message: m.Message) -> None:
        note(link, message)
        link.send(m.PeersRevoked(()))

    data = Factory()
    data.buildProtocol = lambda _: peers.AcceptedProtocol(  # type: ignore[method-assign,assignment]
        reactor, admit, node_received, lambda *_: None, time.time
    )
    data_port = peers.listen_tls(reactor, here, tls.Renewable(tls.data_port(node)), strangers, data)
    ports = json.dumps([cluster_port.getHost().port, data_port.getHost().port])
    reactor.callWhenRunning(print, ports, flush=True)
    reactor.addSystemEventTrigger("after", "shutdown", pool.stop)
    reactor.run()


def dial(folder: str, name: str, endpoint: Endpoint) -> None:
    identity = load_identity(folder)
    assert identity is not None

    def opened(link: Any) -> None:
        print(f"opened {link.peer}", flush=True)
        link.send(m.NodeHello(identity.id, "1", 1, 1, {}))

    def received(link: Any, message: m.Message) -> None:
        print(f"received {type(message).__name__}", flush=True)
        link.accept()
        link.close()

    def lost(_: object, error: CortexError | None) -> None:
        print(f"lost {'' if error is None else error.code}", flush=True)
        reactor.callLater(0, reactor.stop)

    full = peer_name(identity.cluster, Role.NODE, NODE) if name == "node" else name
    union = union_to(Role.NODE)
    protocol: Any = peers.DialedProtocol(reactor, full, union, opened, received, lost)
    peers.dial(reactor, endpoint, identity, full, protocol)
    reactor.run()


if __name__ == "__main__":
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    transports.use_monotonic_clock(reactor)
    command, *rest = sys.argv[1:]
    try:
        if command == "serve":
            serve(rest[0], float(rest[1]))
        else:
            dial(rest[0], rest[1], parse_endpoint(rest[2]))
    except CortexError as refusal:
        print(refusal, file=sys.stderr)
        sys.exit(refusal.exit_code)

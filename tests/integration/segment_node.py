"""A process that serves segments, or one that fetches them, as a node would: for tests that kill it.

segment_node.py serve FOLDER PORT POLICY      says ``ready <port>``; each line on its standard input
                                              is answered with what it holds, in JSON
segment_node.py fetch FOLDER PORT WANTED      says ``landed <attempt> <partition>`` of each
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.endpoints import TCP4ClientEndpoint

from cortex.storage.filesystem import LocalFilesystem
from cortex.transfer.fetch_queue import FetchPolicy, Wanted
from cortex.transfer.segment_fetcher import SegmentFetcher
from cortex.transfer.segment_server import SegmentServer, ServePolicy
from cortex.wire.transports import use_monotonic_clock

JOB = "j0123456789ab"
reactor: Any = installed_reactor


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def serve(folder: str, port: str, policy: str) -> None:
    server = SegmentServer(
        reactor,
        time.monotonic,
        LocalFilesystem(),
        lambda transport: "peer",
        ServePolicy(**json.loads(policy)),
    )
    server.register_job(JOB, folder)
    listening = reactor.listenTCP(int(port), server, interface="127.0.0.1")

    def tell() -> None:
        held = {
            "held_bytes": server.held_bytes,
            "peak_bytes": server.held_bytes_peak,
            "connections": len(server.connections),
            "modules": sorted({"numpy", "pyarrow"} & set(sys.modules)),  # a node has neither loaded
        }
        say(json.dumps(held))

    def listen() -> None:
        for _ in sys.stdin:
            reactor.callFromThread(tell)
        reactor.callFromThread(reactor.stop)

    threading.Thread(target=listen, daemon=True).start()
    say(f"ready {listening.getHost().port}")
    reactor.run()


def fetch(folder: str, port: str, wanted: str) -> None:
    fetcher = SegmentFetcher(
        reactor,
        time.monotonic,
        LocalFilesystem(),
        lambda holder: TCP4ClientEndpoint(reactor, "127.0.0.1", int(port)),
        lambda one, size, rows, others: say(f"landed {one.attempt} {one.partition}"),
        lambda one, error: say(f"failed {one.attempt} {one.partition} {error.code}"),
        policy=FetchPolicy(batch_bytes=64 << 10),
    )
    fetcher.open_job(JOB, folder)
    fetcher.fetch([Wanted(JOB, "peer", attempt, partition) for attempt, partition in json.loads(wanted)])
    reactor.run()


if __name__ == "__main__":
    use_monotonic_clock(reactor)
    {"serve": serve, "fetch": fetch}[sys.argv[1]](*sys.argv[2:])
    os._exit(0)

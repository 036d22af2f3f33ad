"""The process of ``cortex server``: a reactor, its log, and a `ClusterServer` until it is to end."""

from __future__ import annotations

import signal
import sys
from typing import Any

from cortex.errors import EXIT_DONE
from cortex.server.cluster_server import ClusterServer
from cortex.sharing_policy import SharingPolicy
from cortex.wire.join import Endpoint
from cortex.wire.transports import begin_log, use_monotonic_clock


def run_server(
    home: str,
    listen: Endpoint,
    advertised: Endpoint,
    sharing: SharingPolicy,
    log_file: str = "",
    metrics: Endpoint | None = None,
) -> int:
    """Serve until SIGTERM, SIGINT or KillCluster; gives the exit code. Says on standard output where it
    listens, and on the first start how to join. Raises UsageError."""
    from twisted.internet import reactor as _reactor

    reactor: Any = _reactor
    use_monotonic_clock(reactor)
    begin_log(log_file)

    def stop(*_: Any) -> None:
        reactor.callFromThread(_stop)

    def _stop() -> None:
        server.stop()
        reactor.stop()

    server = ClusterServer(reactor, home, listen, advertised, stop, metrics=metrics, sharing=sharing)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    endpoint = Endpoint(advertised.host, server.port)
    print(f"cortex server of cluster {server.cluster} listens on {Endpoint(listen.host, server.port)}")
    if metrics is not None:
        print(
            "metrics for clients of the cluster:"
            f" https://{Endpoint(metrics.host, server.metrics_port)}/metrics"
        )
    if not server.invited_before:
        print(
            "a node joins with (24 hours, 50 uses; more: cortex token create):\n"
            f"  cortex node --join {server.invite()}\n"
            f"commands here: cortex status --server {endpoint}"
        )
    sys.stdout.flush()
    reactor.run(installSignalHandlers=False)
    return EXIT_DONE

"""A node looks at its machine, and tries the ports of other nodes, when its server asks for `cortex doctor`.

Disks are asked in a thread; ports are dialed over TCP alone, a few seconds each at most.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from cortex.errors import CortexError
from cortex.limits import EXAMINE_DIAL_S_MAX, EXAMINED_PORTS_MAX
from cortex.machine_report import MachineReport
from cortex.transfer.work_thread import WorkThread
from cortex.wire.join import parse_endpoint
from cortex.wire.messages import Examine, Examined, OutputNode, PortClosed


class _HangUp(Protocol):
    transport: Any

    def connectionMade(self) -> None:
        self.transport.loseConnection()


class Examination:
    """`report()` is called in a thread; `send` takes the answers; `wall_clock` is seconds since 1970."""

    def __init__(
        self,
        reactor: Any,
        node: str,
        report: Callable[[], MachineReport],
        send: Callable[[Examined], None],
        wall_clock: Callable[[], float],
    ) -> None:
        self._reactor = reactor
        self._node = node
        self._report = report
        self._send = send
        self._wall_clock = wall_clock
        self._thread = WorkThread(reactor, "examine")

    def stop(self) -> None:
        self._thread.stop()

    def examine(self, message: Examine) -> None:
        done = partial(self._reported, message)
        self._thread.run(self._report, done, partial(self._not_reported, message))

    def _not_reported(self, message: Examine, error: CortexError) -> None:
        self._send(Examined(self._node, message.request, self._wall_clock(), None, (), error.message))

    def _reported(self, message: Examine, report: MachineReport) -> None:
        others = message.others[:EXAMINED_PORTS_MAX]
        closed: list[PortClosed] = []
        left = len(others)

        def one_less(_: Any = None) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                told = tuple(sorted(closed, key=lambda each: each.node))
                self._send(Examined(self._node, message.request, self._wall_clock(), report, told))

        def failed(failure: Failure, other: OutputNode) -> None:
            closed.append(PortClosed(other.node, other.data_address, failure.getErrorMessage()))

        if not others:
            one_less()
        for other in others:
            self._dial(other).addErrback(failed, other).addCallback(one_less)

    def _dial(self, other: OutputNode) -> Any:
        from twisted.internet.defer import maybeDeferred

        def dial() -> Any:
            at = parse_endpoint(other.data_address, f"the address of node {other.node}")
            endpoint: Any = HostnameEndpoint(self._reactor, at.host, at.port, timeout=EXAMINE_DIAL_S_MAX)
            factory = Factory.forProtocol(_HangUp)
            factory.noisy = False
            return endpoint.connect(factory)

        return maybeDeferred(dial)

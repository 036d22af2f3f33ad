"""The server's part in `cortex doctor`: it asks every node, and answers the client once. Pure.

Nodes that do not answer in time are told of as such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cortex.limits import EXAMINED_PORTS_MAX
from cortex.machine_report import MachineReport
from cortex.wire.messages import Diagnosis, Examine, Examined, NodeDiagnosis, OutputNode


@dataclass(eq=False)
class _Request:
    link: Any
    addresses: dict[str, str]
    server: MachineReport | None = None
    found: dict[str, NodeDiagnosis] = field(default_factory=dict)


class Examinations:
    """`wall_clock` is seconds since 1970; `ports()` those that the server means to listen on."""

    def __init__(self, wall_clock: Callable[[], float], ports: Callable[[], tuple[int, ...]]) -> None:
        self._wall_clock = wall_clock
        self._ports = ports
        self._requests: dict[int, _Request] = {}
        self._next = 0

    def begin(self, link: Any, addresses: dict[str, str], nodes: Mapping[str, Any]) -> int:
        """Ask those of `addresses` (node -> its data address) that have a link in `nodes`. Gives the
        request's number: `reported` and, in the end, `give_up` are due."""
        self._next += 1
        self._requests[self._next] = _Request(link, addresses)
        names = sorted(addresses)
        for place, name in enumerate(names):
            if name in nodes:  # each tries the next few: all ports are tried by somebody
                after = [*names[place + 1 :], *names[:place]][:EXAMINED_PORTS_MAX]
                others = tuple(OutputNode(n, addresses[n]) for n in after if addresses[n])
                nodes[name].send(Examine(self._next, others))
        return self._next

    def reported(self, number: int, server: MachineReport) -> None:
        request = self._requests.get(number)
        if request is not None:
            request.server = server
            self._check(number, request)

    def answered(self, message: Examined) -> None:
        request = self._requests.get(message.request)
        if request is not None and message.node in request.addresses:
            address = request.addresses[message.node]
            ahead_s = message.now - self._wall_clock()
            request.found[message.node] = NodeDiagnosis(
                message.node, address, message.report, ahead_s, message.closed, message.error
            )
            self._check(message.request, request)

    def give_up(self, number: int) -> None:
        """Answer with what has come. Nothing happens when that was all."""
        request = self._requests.get(number)
        if request is not None:
            for node, address in request.addresses.items():
                silent = NodeDiagnosis(node, address, error="it did not answer")
                request.found.setdefault(node, silent)
            self._check(number, request)

    def _check(self, number: int, request: _Request) -> None:
        if request.server is not None and len(request.found) == len(request.addresses):
            del self._requests[number]
            nodes = tuple(request.found[name] for name in sorted(request.found))
            request.link.send(Diagnosis(self._wall_clock(), request.server, nodes, self._ports()))

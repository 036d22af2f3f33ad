"""A cluster, as `cortex doctor` looks at it: the way to its server, what that answers, and its nodes."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping

from cortex.client.cluster_client import ClusterConnection, own_identity
from cortex.client.findings import Finding, failed, ok, problem, warning
from cortex.client.report_checks import check_clock, check_expiry, check_machine
from cortex.errors import CortexError, VersionMismatch
from cortex.limits import DIAL_S_MAX
from cortex.wire.identity import Identity
from cortex.wire.join import Endpoint, parse_endpoint
from cortex.wire.messages import Diagnosis, GetDiagnosis, NodeDiagnosis
from cortex.wire.versions import check_versions

SERVER = "the server"


def check_cluster(home: str, server: str, versions: Mapping[str, str]) -> Iterator[Finding]:
    """`server` "": the one that this machine's identity was made at. It ends where no more can be asked."""
    try:
        identity, _ = own_identity(home)
        endpoint = parse_endpoint(server or identity.server, "the server")
    except CortexError as error:
        yield failed("identity", SERVER, error)
        return
    reached = _reach(endpoint)
    yield reached
    if reached.cure:
        return
    yield _closed(endpoint)
    try:
        with ClusterConnection(home, server) as connection:
            yield ok(
                "handshake", SERVER, f"TLS 1.3 both ways, as {connection.identity.role.value} {identity.id}"
            )
            before = time.time()
            diagnosis = connection.ask(GetDiagnosis(), Diagnosis)
            after = time.time()
    except CortexError as error:
        yield failed("handshake", SERVER, error)
        return
    yield _own_clock(diagnosis.now, before, after)
    yield from _server(diagnosis)
    if not diagnosis.nodes:
        yield warning(
            "nodes", SERVER, "no node is connected: jobs wait", "cortex node --join LINE, on each machine"
        )
    for node in diagnosis.nodes:
        yield from _node(node, diagnosis)
    yield from _ports(diagnosis)


def check_way_to_server(identity: Identity) -> Iterator[Finding]:
    """From a machine that is a node and no client: it may ask the server nothing, but look for its port."""
    try:
        yield _reach(parse_endpoint(identity.server, "the server"))
    except CortexError as error:
        yield failed("port", SERVER, error)


def _reach(endpoint: Endpoint) -> Finding:
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout=DIAL_S_MAX):
            return ok("port", SERVER, f"{endpoint} can be connected to")
    except OSError as error:
        said = f"no connection to {endpoint}: {error.strerror or error}"
        cure = "is the server running there (systemctl status cortex-server), and is the way open?"
        return problem("port", SERVER, said, cure)


def _closed(endpoint: Endpoint) -> Finding:
    """Nobody speaks anything older than TLS 1.3 there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        with (
            socket.create_connection((endpoint.host, endpoint.port), timeout=DIAL_S_MAX) as plain,
            context.wrap_socket(plain) as secure,
        ):
            said = (
                f"{endpoint} speaks {secure.version()}: that is no cortex server, or something stands between"
            )
            return problem(
                "security", SERVER, said, "connect to the server itself, without a proxy that ends TLS"
            )
    except OSError:
        return ok("security", SERVER, "anything older than TLS 1.3 is refused")


def _own_clock(now: float, before: float, after: float) -> Finding:
    ahead_s = after - now if now > after else before - now if now < before else 0.0
    return check_clock(ahead_s, "this machine")


def _server(diagnosis: Diagnosis) -> Iterator[Finding]:
    report = diagnosis.server
    yield from check_machine(report, SERVER, runs_jobs=False)
    needed = 2 * len(diagnosis.nodes) + 256
    if report.descriptors_max < needed:
        said = f"at most {report.descriptors_max} open files, for {len(diagnosis.nodes)} nodes"
        yield warning(
            "descriptors", SERVER, said, f"raise it to {needed} or more: LimitNOFILE= in the systemd unit"
        )
    cure = "is its clock right? it renews its own certificate once a day: see its log"
    yield check_expiry(report.certificate_expires_at, diagnosis.now, SERVER, cure)
    others = [each for each in report.listeners if int(each.rpartition(":")[2]) not in diagnosis.ports]
    if others:
        said = f"it listens on {', '.join(others)}, which cortex has not opened"
        yield problem("listeners", SERVER, said, "end it, and look for what was loaded into it")
    elif report.listeners:
        yield ok("listeners", SERVER, f"it listens on {', '.join(report.listeners)} alone, over TLS")


def _node(node: NodeDiagnosis, diagnosis: Diagnosis) -> Iterator[Finding]:
    subject = f"node {node.node}"
    report = node.report
    if report is None:
        cure = (
            "is its machine overloaded, or a disk of it stuck? see the node's log (journalctl -u cortex-node)"
        )
        yield problem("answer", subject, node.error or "it said nothing", cure)
        return
    yield check_clock(node.clock_ahead_s, subject)
    try:
        check_versions(report.versions, diagnosis.server.versions, subject)
    except VersionMismatch as error:
        yield failed("versions", subject, error)
    else:
        said = ", ".join(f"{name} {report.versions[name]}" for name in ("python", "cloudpickle", "pyarrow"))
        yield ok("versions", subject, said)
    cure = "it renews its own when two thirds are over: see its log; or join again: cortex node --join LINE"
    yield check_expiry(report.certificate_expires_at, diagnosis.now, subject, cure)
    yield from check_machine(report, subject)


def _ports(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Ports where nodes fetch from each other, as the others see them."""
    closed: dict[str, list[tuple[str, str]]] = {}
    for node in diagnosis.nodes:
        for each in node.closed:
            closed.setdefault(each.node, []).append((node.node, each.why))
    cure = (
        "open the port between the nodes (cortex node --listen), and let the node tell an address that the"
        " others reach (--advertise)"
    )
    for node in diagnosis.nodes:
        subject = f"node {node.node}"
        if node.node in closed:
            from_where = "; ".join(f"from {other}: {why}" for other, why in closed[node.node])
            yield problem("data port", subject, f"no connection to {node.data_address} {from_where}", cure)
        elif len(diagnosis.nodes) > 1 and node.data_address:
            yield ok("data port", subject, f"other nodes reach {node.data_address}")

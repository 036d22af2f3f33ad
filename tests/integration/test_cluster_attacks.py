"""Members of a real cluster that do what they may not: each is refused, and the cluster works on.

What strangers try is in `test_cluster_security`; here everybody has a good certificate.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import cortex
from cortex.client.cluster_client import ClusterConnection
from cortex.errors import NotAllowed, ProtocolError
from cortex.ids import Role, peer_name
from cortex.job.spec import InputSpec, JobSpec
from cortex.wire import messages as m
from cortex.wire.blocking_tls import connect
from cortex.wire.framing import BlockingConnection, FrameDecoder, encode_frame
from cortex.wire.identity import Identity, load_identity
from cortex.wire.join import parse_endpoint
from cortex.wire.joiner import join_cluster
from cortex.wire.permissions import union_to
from cortex.wire.versions import local_versions

PATIENCE_S = 30.0
NOT_OURS = "j0123456789ab"


@pytest.fixture(scope="module")
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=1, memory="400MB") as found:
        yield found


@pytest.fixture(autouse=True)
def it_works_on(cluster: cortex.LocalCluster, tmp_path: Path) -> Iterator[None]:
    yield
    (tmp_path / "after.txt").write_text("a b a\n")
    assert dict(Words(input=str(tmp_path / "after.txt")).run(cluster)) == {"a": 2, "b": 1}
    assert cluster.server is not None
    assert cluster.server.poll() is None
    assert all(process.poll() is None for process in cluster.nodes.values())


class Words(cortex.MapReduceJob):
    combine = sum

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        for word in line.split():
            yield word, 1


def member(cluster: cortex.LocalCluster, role: Role, folder: Path) -> Identity:
    """A new member, which has come in as everybody does."""
    with ClusterConnection(str(cluster.folder / "server"), cluster.address) as admin:
        line = admin.ask(m.CreateToken(role, 600.0, 1), m.TokenCreated).join_line
    return join_cluster(line, str(folder), local_versions(), (role,), time.time())


def dialed(identity: Identity, folder: Path, cluster: cortex.LocalCluster) -> BlockingConnection[Any]:
    sock = connect(identity, str(folder), parse_endpoint(cluster.address))
    return BlockingConnection[Any](sock, union_to(identity.role))


def last_word(connection: BlockingConnection[Any]) -> Any:
    """What it said last before it closed the connection; None: nothing."""
    said, word = None, None
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            word = connection.receive(deadline - time.monotonic())
        except (OSError, ProtocolError):
            return said
        if word is None:
            return said
        said = word
    raise AssertionError("the connection was not closed")


def hello(node: str, slots: int = 1) -> m.NodeHello:
    return m.NodeHello(node, "1", slots, 1 << 30, local_versions(), "127.0.0.1:1")


def test_a_node_speaks_for_itself_alone(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    identity = member(cluster, Role.NODE, tmp_path)
    other = cluster.client.status().nodes[0].node
    connection = dialed(identity, tmp_path, cluster)
    connection.send(hello(other))
    assert isinstance(last_word(connection), m.Refused)
    for message in (
        m.Heartbeat(other, "1", (), 1, 1),
        m.AttemptFinished(other, "1", m.TaskFinished(f"{NOT_OURS}-plan.0", m.ScanResult(()), 1.0, 1)),
        m.PartChunk(other, 1, b"x", True),
    ):
        connection = dialed(identity, tmp_path, cluster)
        connection.send(hello(identity.id))
        connection.send(message)
        refused = last_word(connection)
        assert isinstance(refused, m.Refused), message
        assert "spoke for" in refused.error.message or "may not" in refused.error.message, refused
    wait_until_alone(cluster)


def wait_until_alone(cluster: cortex.LocalCluster) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(cluster.client.status().nodes) != 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("slots", [0, -3])
def test_a_node_without_slots_is_refused(cluster: cortex.LocalCluster, tmp_path: Path, slots: int) -> None:
    identity = member(cluster, Role.NODE, tmp_path)
    connection = dialed(identity, tmp_path, cluster)
    connection.send(hello(identity.id, slots))
    assert isinstance(last_word(connection), m.Refused)


def test_a_node_is_no_client_and_a_client_no_node_and_no_admin(
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    spec = JobSpec("x", InputSpec(("/etc/passwd",)), reduce_form="none")
    attempts: dict[Role, list[m.Message]] = {
        Role.NODE: [m.ClientHello(local_versions()), m.SubmitJob(spec, b"", (), ""), m.KillCluster()],
        Role.CLIENT: [hello("n0123456789ab"), m.KillCluster(), m.CreateToken(Role.ADMIN, 60.0, 1)],
    }
    for role, messages in attempts.items():
        identity = member(cluster, role, tmp_path / role.value)
        for message in messages:
            connection = dialed(identity, tmp_path / role.value, cluster)
            connection.send(message)
            refused = last_word(connection)
            assert isinstance(refused, m.Refused)
            assert refused.error.code == NotAllowed.code
            assert f"may not send {type(message).__name__}" in refused.error.message


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "..", "", "x\0y", "part-00000.csv"])
def test_names_that_a_client_sends_open_no_files(
    cluster: cortex.LocalCluster, tmp_path: Path, name: str
) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    with ClusterConnection(str(cluster.folder / "server"), cluster.address) as connection:
        spec = JobSpec("x", InputSpec((str(tmp_path / "in.txt"),)), map_form="declared", reduce_form="none")
        job = connection.ask(m.SubmitJob(spec, b"", (), ""), m.JobAccepted).job
        while not isinstance(said := connection.receive(PATIENCE_S), m.JobDone | m.JobFailed):
            pass
        assert isinstance(said, m.JobDone), said
        connection.send(m.FetchPart(job, name, 1 << 20))
        lost = connection.receive(PATIENCE_S)
        assert isinstance(lost, m.PartLost)
        connection.send(m.JobReceived(job))


def answer_to(message: m.Message, identity: Identity, folder: Path, cluster: cortex.LocalCluster) -> Any:
    """What the server says to a client whose first message this is."""
    connection = dialed(identity, folder, cluster)
    try:
        connection.send(m.ClientHello(local_versions()))
        connection.send(message)
        said: Any = connection.receive(PATIENCE_S)
        assert isinstance(said, m.ServerHello)
        return connection.receive(PATIENCE_S)
    finally:
        connection.close()


def test_a_job_of_another_client_is_out_of_reach(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    identity = member(cluster, Role.CLIENT, tmp_path / "client")
    with ClusterConnection(str(cluster.folder / "server"), cluster.address) as owner:
        spec = JobSpec("x", InputSpec((str(tmp_path / "in.txt"),)), map_form="declared", reduce_form="none")
        job = owner.ask(m.SubmitJob(spec, b"", (), ""), m.JobAccepted).job
        while not isinstance(done := owner.receive(PATIENCE_S), m.JobDone | m.JobFailed):
            pass
        assert isinstance(done, m.JobDone)
        for message in (
            m.FetchPart(job, done.parts[0].staged_as, 1 << 20),
            m.PartTaken(job, done.parts[0].staged_as, 1 << 20),
            m.JobReceived(job),
            m.CancelJob(job),
            m.GetLogs(job),
        ):
            assert isinstance(answer_to(message, identity, tmp_path / "client", cluster), m.Refused), message
        owner.send(m.FetchPart(job, done.parts[0].staged_as, 1 << 20))
        part = owner.receive(PATIENCE_S)
        assert isinstance(part, m.PartBytes)
        assert b"a" in part.data
        owner.send(m.JobReceived(job))


def test_the_calls_of_another_client_are_out_of_reach(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    identity = member(cluster, Role.CLIENT, tmp_path / "client")
    with cluster.client as owner:
        results = owner.map(abs, itertools.count())
        assert next(results) == 0
        job = owner._calls().job
        function = m.FunctionCode(job, "a" * 32, "theirs", b"code")
        for message in (
            function,
            m.SendCells(job, (m.Cell(10**9, "a" * 32, 1, m.CallForm.ONE, b"d"),)),
            m.DropCells(job, tuple(range(1000))),
            m.CellsTaken(job, (m.Piece("", 1, 0, 1),)),
            m.ForgetFunctions(job, ("a" * 32,)),
            m.EndCalls(job),
            m.AttachJob(job),
        ):
            assert isinstance(answer_to(message, identity, tmp_path / "client", cluster), m.Refused), message
        assert list(itertools.islice(results, 5000)) == list(range(1, 5001))
        results.close()


def test_calls_are_opened_by_executors_and_their_own_client_alone(
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    with cluster.client as client:
        result = client.submit(lambda bomb: bomb, Bomb(str(tmp_path / "opened"))).result(PATIENCE_S)
        assert result is None  # what makedirs gave, in the executor
    opened = {int(path.name) for path in (tmp_path / "opened").iterdir()}
    template = [pid for node in cluster.nodes.values() for pid in child_pids(node.pid)]
    assert cluster.server is not None
    others = {cluster.server.pid, *template, *(node.pid for node in cluster.nodes.values()), os.getpid()}
    assert opened
    assert not opened & others


class Bomb:
    """Where it is unpickled it leaves a folder named by the process."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return eval, (f"__import__('os').makedirs({self.path!r} + '/' + str(__import__('os').getpid()))",)


def test_neither_server_nor_node_unpickles_what_passes_through_them(
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    bomb = cloudpickle.dumps(Bomb(str(tmp_path / "opened")))
    with ClusterConnection(str(cluster.folder / "server"), cluster.address) as connection:
        spec = JobSpec("x", InputSpec((str(tmp_path / "in.txt"),)), map_form="declared", reduce_form="none")
        job = connection.ask(m.SubmitJob(spec, bomb, (), ""), m.JobAccepted).job
        while not isinstance(connection.receive(PATIENCE_S), m.JobDone | m.JobFailed):
            pass
        connection.send(m.JobReceived(job))
    opened = {int(path.name) for path in (tmp_path / "opened").iterdir()}
    assert opened  # by executors, which run a client's code
    template = [pid for node in cluster.nodes.values() for pid in child_pids(node.pid)]
    assert cluster.server is not None
    assert not opened & {cluster.server.pid, *template, *(node.pid for node in cluster.nodes.values())}


def child_pids(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def to_data_port(identity: Identity, folder: Path, cluster: cortex.LocalCluster) -> ssl.SSLSocket:
    status = cluster.client.status().nodes[0]
    endpoint = parse_endpoint(status.data_address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=identity.authority_pem)
    context.load_cert_chain(str(folder / "identity.pem"))
    sock = socket.create_connection((endpoint.host, endpoint.port), 10)
    name = peer_name(identity.cluster, Role.NODE, status.node)
    return context.wrap_socket(sock, server_hostname=name)


@pytest.mark.parametrize(
    ("job", "attempt"),
    [
        (NOT_OURS, f"{NOT_OURS}-m000000.0"),
        ("../..", "../../../../etc/passwd"),
        (NOT_OURS, "../../../../../etc/passwd"),
        ("", ""),
        (NOT_OURS, f"{NOT_OURS}-r000000.0"),
    ],
)
def test_a_node_serves_segments_of_its_jobs_alone(
    cluster: cortex.LocalCluster, tmp_path: Path, job: str, attempt: str
) -> None:
    identity = member(cluster, Role.NODE, tmp_path)
    with to_data_port(identity, tmp_path, cluster) as sock:
        sock.sendall(encode_frame(m.FetchSegment(1, job, attempt, 0)))
        sock.settimeout(PATIENCE_S)
        decoder: FrameDecoder[Any] = FrameDecoder(m.FromSegmentServer)
        answers: list[Any] = []
        while not answers and (data := sock.recv(65536)):
            answers += decoder.feed(data)
    assert all(isinstance(answer, m.SegmentRefused) for answer in answers)
    assert not any("root:" in str(answer) for answer in answers)


def test_a_client_gets_nothing_from_a_nodes_data_port(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    identity = member(cluster, Role.CLIENT, tmp_path)
    with to_data_port(identity, tmp_path, cluster) as sock:
        sock.sendall(encode_frame(m.FetchSegment(1, NOT_OURS, f"{NOT_OURS}-m000000.0", 0)))
        sock.settimeout(PATIENCE_S)
        with contextlib.suppress(OSError):  # cut off
            assert sock.recv(65536) == b""


def test_who_is_put_out_is_out_at_once(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    identity = member(cluster, Role.NODE, tmp_path)
    connection = dialed(identity, tmp_path, cluster)
    connection.send(hello(identity.id))
    assert isinstance(connection.receive(PATIENCE_S), m.PeersRevoked)
    with ClusterConnection(str(cluster.folder / "server"), cluster.address) as admin:
        admin.ask(m.RevokePeer(identity.id), m.AdminDone)
    refused = last_word(connection)
    assert isinstance(refused, m.Refused)
    assert "revoked" in refused.error.message
    with to_data_port(identity, tmp_path, cluster) as sock:
        sock.sendall(encode_frame(m.FetchSegment(1, NOT_OURS, f"{NOT_OURS}-m000000.0", 0)))
        sock.settimeout(PATIENCE_S)
        with contextlib.suppress(OSError):
            assert sock.recv(65536) == b""
    again = dialed(identity, tmp_path, cluster)
    again.send(hello(identity.id))
    assert isinstance(last_word(again), m.Refused)
    wait_until_alone(cluster)


def test_nothing_of_a_cluster_can_be_read_by_others(cluster: cortex.LocalCluster) -> None:
    """Homes, spill folders, sockets and logs: nobody but their user may look."""
    seen = 0
    for name in ("server", *cluster.nodes):
        for folder, _, files in os.walk(cluster.folder / name):
            assert stat.S_IMODE(os.lstat(folder).st_mode) == 0o700, folder
            for secret in [each for each in files if each.endswith((".pem", ".sqlite"))]:
                assert stat.S_IMODE(os.lstat(os.path.join(folder, secret)).st_mode) == 0o600, secret
                seen += 1
    assert seen >= 5
    sockets = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    own = [path for path in sockets if "/cortex-" in path and os.path.exists(path)]
    assert own
    for path in own:
        with contextlib.suppress(FileNotFoundError):  # another test's, which has ended
            assert not os.lstat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO), path
            assert not os.lstat(os.path.dirname(path)).st_mode & (stat.S_IRWXG | stat.S_IRWXO), path


def test_an_identity_is_of_no_use_to_another_user(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    identity = member(cluster, Role.CLIENT, tmp_path)
    assert load_identity(str(tmp_path)) == identity
    os.chmod(tmp_path / "identity.pem", 0o640)
    with pytest.raises(cortex.CortexError, match="others could"):
        load_identity(str(tmp_path))

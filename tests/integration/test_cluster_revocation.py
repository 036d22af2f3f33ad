"""Who is put out of a cluster of processes is out everywhere; a node that cannot know serves nobody."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cortex.clusters import LocalCluster
from cortex.ids import Role, peer_name
from cortex.wire import blocking_tls
from cortex.wire.framing import HEADER
from cortex.wire.identity import Identity, load_identity
from cortex.wire.join import Endpoint, parse_endpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2) as made:
        yield made


def cortex(cluster: LocalCluster, home: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    return subprocess.run(
        [sys.executable, "-m", "cortex", *arguments],
        env=kept | {"CORTEX_HOME": str(cluster.folder / home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def identity_of(cluster: LocalCluster, home: str, folder: str) -> Identity:
    found = load_identity(str(cluster.folder / home / folder))
    assert found is not None
    return found


def port_of(cluster: LocalCluster, name: str) -> Endpoint:
    """Where a node serves others: the last that it said, or the server has."""
    return parse_endpoint(cluster.output(name).rpartition("serves others at ")[2].split()[0])


def served(cluster: LocalCluster, caller: str, holder: str, at: Endpoint) -> bool:
    """Whether one node takes a connection with the certificate of another: it waits for more then."""
    context = blocking_tls._context(
        identity_of(cluster, caller, "node"), str(cluster.folder / caller / "node")
    )
    peer = identity_of(cluster, holder, "node")
    raw = socket.create_connection((at.host, at.port), 10)
    with context.wrap_socket(raw, server_hostname=peer_name(peer.cluster, Role.NODE, peer.id)) as sock:
        sock.settimeout(1.0)
        sock.sendall(HEADER.pack(100))  # a request begins
        try:
            sock.recv(1)  # a refusal, or the end
            return False
        except TimeoutError:
            return True
        except OSError:
            return False


def wait_for(what: Callable[[], bool], said: Callable[[], str]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)


def test_a_client_that_is_put_out_is_refused_and_told_so(cluster: LocalCluster) -> None:
    line = cortex(cluster, "server", "token", "create", "--role", "client").stdout.split()[-1]
    assert cortex(cluster, "ann", "login", line).returncode == 0
    assert cortex(cluster, "ann", "status").returncode == 0
    ann = identity_of(cluster, "ann", "client").id
    refused = cortex(cluster, "ann", "token", "revoke", ann)
    assert refused.returncode != 0
    assert "is you" in refused.stderr
    done = cortex(cluster, "server", "token", "revoke", ann)
    assert (done.returncode, done.stdout) == (0, f"{ann} is revoked\n")
    refused = cortex(cluster, "ann", "status")
    assert refused.returncode != 0
    assert f"client {ann} was revoked" in refused.stderr
    assert "cortex token create" in refused.stderr


def test_a_token_that_is_revoked_lets_nobody_in_and_an_unknown_id_is_said(cluster: LocalCluster) -> None:
    line = cortex(cluster, "server", "token", "create", "--role", "client").stdout.split()[-1]
    token = line.partition("/")[2][:13]
    assert cortex(cluster, "server", "token", "revoke", token).returncode == 0
    refused = cortex(cluster, "bob", "login", line)
    assert refused.returncode != 0
    assert "revoked" in refused.stderr
    for nobody in ("t000000000000", "x1", "s0123456789ab"):
        refused = cortex(cluster, "server", "token", "revoke", nobody)
        assert refused.returncode != 0, nobody
        assert "error: " in refused.stderr


def test_a_node_that_is_put_out_ends_and_no_other_node_serves_it(cluster: LocalCluster) -> None:
    name = cluster.add_node()
    out, at = identity_of(cluster, name, "node").id, port_of(cluster, "node1")
    assert served(cluster, name, "node1", at)
    assert cortex(cluster, "server", "token", "revoke", out).returncode == 0
    process = cluster.nodes.pop(name)
    assert process.wait(20) != 0
    assert f"node {out} was revoked" in cluster.output(name)
    nodes = json.loads(cortex(cluster, "server", "status", "--json").stdout)["nodes"]
    assert out not in [node["node"] for node in nodes]
    assert not served(cluster, name, "node1", at)
    assert served(cluster, "node2", "node1", at)


def test_a_node_that_has_not_reached_its_server_serves_nobody(cluster: LocalCluster) -> None:
    assert cluster.server is not None
    node = cluster.nodes["node1"]
    node.send_signal(signal.SIGTERM)
    assert node.wait(20) == 0
    cluster.server.send_signal(signal.SIGTERM)
    assert cluster.server.wait(20) == 0
    with socket.socket() as sock:  # the port is not said before the server is reached: choose one
        sock.bind(("127.0.0.1", 0))
        at = Endpoint("127.0.0.1", sock.getsockname()[1])
    command = [sys.executable, "-m", "cortex", "node", "--listen", str(at), "--memory", "768MB"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CORTEX_HOME": str(cluster.folder / "node1")}
    log = cluster.folder / "alone.log"
    with open(log, "wb") as file:
        alone = subprocess.Popen([*command, "--slots", "1"], env=environment, stderr=file, stdout=file)
    try:
        wait_for(lambda: "no link to the server" in log.read_text(), log.read_text)
        assert not served(cluster, "node2", "node1", at)
        cluster.start_server()
        wait_for(lambda: "serves others at" in log.read_text(), log.read_text)
        assert served(cluster, "node2", "node1", at)
    finally:
        alone.terminate()
        alone.wait(20)

"""`cortex doctor` on real clusters: all is well, and then one thing after the other is broken."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex.ids import Role, new_peer_id
from cortex.wire.authority import Authority, make_key
from cortex.wire.identity import load_identity, make_identity, save_identity

PATIENCE_S = 60.0
_AHEAD_S = 2400
_CLOCK = f"import time; now = time.time; time.time = lambda: now() + {_AHEAD_S}; "
_MAIN = "import sys; sys.argv[0] = 'cortex'; from cortex.cli.__main__ import main; sys.exit(main())"


class Cluster(cortex.LocalCluster):
    """node2's clock is ahead, and its port is not where it says."""

    def _command(self, name: str) -> list[str]:
        return [sys.executable, "-P", "-c", _CLOCK + _MAIN] if name == "node2" else super()._command(name)

    def _start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        more = ("--advertise", "127.0.0.9") if name == "node2" else ()
        return super()._start(name, *arguments, *more, **environment)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=2, memory="400MB") as found:
        yield found


def doctor(
    *options: str, home: Path, cwd: Path, **environment: str
) -> tuple[int, dict[tuple[str, str], Any]]:
    """The exit code, and what was found: (subject, check) -> finding; the last of several."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    done = subprocess.run(
        [sys.executable, "-m", "cortex", "doctor", "--json", "--home", str(home), *options],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=kept | environment,
        timeout=PATIENCE_S,
    )
    assert done.stdout, done.stderr
    return done.returncode, {(each["subject"], each["check"]): each for each in json.loads(done.stdout)}


def test_a_cluster_is_looked_at_and_each_problem_is_told_with_its_cure(
    cluster: Cluster, tmp_path: Path
) -> None:
    code, found = doctor("--server", cluster.address, home=cluster.folder / "server", cwd=tmp_path)
    addresses = {node.data_address.partition(":")[0]: node.node for node in cluster.client.status().nodes}
    well, broken = f"node {addresses['127.0.0.1']}", f"node {addresses['127.0.0.9']}"
    assert code == 1
    problems = {key for key, each in found.items() if each["verdict"] == "problem"}
    assert problems == {(broken, "clock"), (broken, "data port")}
    assert all(found[key]["cure"] for key in problems)
    assert f"{_AHEAD_S // 60} m 0 s ahead" in found[broken, "clock"]["said"]
    assert "chrony" in found[broken, "clock"]["cure"]
    assert "no connection to 127.0.0.9:" in found[broken, "data port"]["said"]
    assert "--advertise" in found[broken, "data port"]["cure"]
    checks = {"clock", "versions", "certificate", "descriptors", "memory", "shared memory", "home folder"}
    for node in (well, broken):
        assert {check for subject, check in found if subject == node} >= {
            *checks,
            "spill folder",
            "data port",
        }
    server = {check for subject, check in found if subject == "the server"}
    assert server >= {
        "port",
        "security",
        "handshake",
        "descriptors",
        "home folder",
        "certificate",
        "listeners",
    }
    assert found["the server", "listeners"]["said"] == f"it listens on {cluster.address} alone, over TLS"


def test_without_problems_the_exit_code_is_0_and_every_line_begins_with_ok(
    cluster: Cluster, tmp_path: Path
) -> None:
    """On one machine, without a server."""
    done = subprocess.run(
        [sys.executable, "-m", "cortex", "doctor", "--home", str(tmp_path / "home")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")},
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) >= 10
    assert all(line.startswith(("ok       this machine: ", "warning  this machine: ")) for line in lines)


def test_a_node_that_says_nothing(cluster: Cluster, tmp_path: Path) -> None:
    process = cluster.nodes["node1"]
    identity = load_identity(str(cluster.folder / "node1" / "node"))
    assert identity is not None
    process.send_signal(signal.SIGSTOP)
    try:
        code, found = doctor("--server", cluster.address, home=cluster.folder / "server", cwd=tmp_path)
    finally:
        process.send_signal(signal.SIGCONT)
    assert code == 1
    silent = found[f"node {identity.id}", "answer"]
    assert (silent["verdict"], silent["said"]) == ("problem", "it did not answer")


def test_a_machine_that_is_not_logged_in(cluster: Cluster, tmp_path: Path) -> None:
    code, found = doctor("--server", cluster.address, home=tmp_path / "home", cwd=tmp_path)
    assert code == 1
    assert "cortex login" in found["the server", "identity"]["cure"]


def test_a_port_where_nobody_listens(cluster: Cluster, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        server = f"127.0.0.1:{taken.getsockname()[1]}"
        code, found = doctor("--server", server, home=cluster.folder / "server", cwd=tmp_path)
    assert code == 1
    assert f"no connection to {server}" in found["the server", "port"]["said"]
    assert ("the server", "handshake") not in found


def test_a_machine_that_is_a_node_and_no_client(cluster: Cluster, tmp_path: Path) -> None:
    code, found = doctor(home=cluster.folder / "node1", cwd=tmp_path)
    assert code == 0
    assert found["the server", "port"]["said"] == f"{cluster.address} can be connected to"
    assert any(check == "certificate" and "'s node n" in subject for subject, check in found)


def test_another_clusters_member(cluster: Cluster, tmp_path: Path) -> None:
    save_identity(str(tmp_path / "home" / "client"), member_of_nobody(Role.CLIENT, cluster.address))
    code, found = doctor(home=tmp_path / "home", cwd=tmp_path)
    assert code == 1
    refused = found["the server", "handshake"]
    assert refused["verdict"] == "problem"
    assert refused["cure"]


def member_of_nobody(role: Role, server: str) -> Any:
    import time

    authority = Authority.make("k" + "9" * 12, time.time())
    key = make_key()
    certificate = authority.issue(key.public_key(), role, new_peer_id(role), time.time())
    return make_identity(key, certificate, authority.certificate, server)


def test_something_that_speaks_an_older_tls_in_its_place(cluster: Cluster, tmp_path: Path) -> None:
    impostor = member_of_nobody(Role.SERVER, "h:1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    pem = tmp_path / "impostor.pem"
    pem.write_text(impostor.key_pem + impostor.certificate_pem)
    context.load_cert_chain(pem)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    plain, _ = listening.accept()
                    with context.wrap_socket(plain, server_side=True) as secure:
                        secure.recv(1)
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        server = f"127.0.0.1:{listening.getsockname()[1]}"
        code, found = doctor("--server", server, home=cluster.folder / "server", cwd=tmp_path)
    assert code == 1
    assert "TLSv1.2" in found["the server", "security"]["said"]
    assert found["the server", "handshake"]["verdict"] == "problem"

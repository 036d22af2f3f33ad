"""Certificates that live for seconds, on a cluster of real processes: all are renewed, and nothing stops."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex.client.cluster_client import ClusterConnection
from cortex.errors import StateFailed
from cortex.wire import blocking_tls
from cortex.wire.framing import BlockingConnection
from cortex.wire.identity import load_identity
from cortex.wire.join import parse_endpoint
from cortex.wire.messages import ClientHello
from cortex.wire.permissions import union_to
from cortex.wire.versions import local_versions
from tests.integration.test_cluster import Running, wait_for

LIFE_S = 9.0
_SHORT = f"""
import sys
from cortex.wire import authority
authority.CERTIFICATE_BACKDATE_S, authority.AUTHORITY_S = 0.0, 100 * 86400.0
authority.LIFE_S.update(dict.fromkeys(authority.LIFE_S, {LIFE_S}))
from cortex.cli.__main__ import main
sys.exit(main())
"""


class ShortLived(cortex.LocalCluster):
    """Its server signs certificates of LIFE_S, its own among them."""

    def _command(self, name: str) -> list[str]:
        return [sys.executable, "-P", "-c", _SHORT] if name == "server" else super()._command(name)


class Long(cortex.MapReduceJob):
    """Its maps wait for the file `gate`; segments go between nodes before and after the renewals."""

    gate = ""
    reducers = 4

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        while line > "line03" and not os.path.exists(self.gate):
            time.sleep(0.02)
        for i in range(50):
            yield f"key{i}", 1

    def reduce(self, key: str, values: Any) -> Iterator[tuple[str, int]]:
        yield key, sum(values)


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CORTEX_")}
    return subprocess.run(
        [sys.executable, "-m", "cortex", *arguments, "--home", str(home)],
        env=kept, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def expires_at(folder: Path) -> float:
    found = load_identity(str(folder))
    assert found is not None
    return found.expires_at


def test_all_certificates_are_renewed_and_links_and_jobs_go_on(tmp_path: Path) -> None:
    with ShortLived(nodes=2) as cluster:
        began = time.time()
        home = tmp_path / "home"
        token = command(cluster.folder / "server", "token", "create", "--role", "client").stdout
        assert command(home, "login", token.split()[-1]).returncode == 0
        (tmp_path / "in.txt").write_text("".join(f"line{i:02}\n" for i in range(8)))
        job = Long(input=str(tmp_path / "in.txt"), split_size=7, gate=str(tmp_path / "gate"))
        running = Running(job, cluster)
        links = cluster.output("server").count(" is here, with")
        while time.time() - began < 1.6 * LIFE_S:
            assert command(home, "status").returncode == 0  # a command now and then keeps its certificate
            time.sleep(0.5)
        now = time.time()
        folders = [cluster.folder / name / "node" for name in cluster.nodes]
        folders += [cluster.folder / "server" / who for who in ("server", "admin")]
        assert all(expires_at(folder) > now for folder in (*folders, home / "client"))
        for name in cluster.nodes:
            assert cluster.output(name).count("the node's certificate was renewed") >= 2
        nodes = json.loads(command(home, "nodes", "list", "--json").stdout)
        assert all(node["certificate_expires_at"] > now for node in nodes)
        said = cluster.output("server")
        assert "is gone" not in said  # the nodes' links are those of the beginning
        assert said.count(" is here, with") == links == 2
        assert "the cluster's authority ends on 2" in said  # in a hundred days, which is soon
        (tmp_path / "gate").touch()
        result = running.result()
        assert dict(result) == {f"key{i}": 8 for i in range(50)}
        assert result.report.failed_attempts == 0
        cluster.add_node()  # the authority is the same: joins, and links to all nodes, work


def test_a_link_whose_owner_does_not_renew_ends_with_its_certificate_and_the_cure_is_said(
    tmp_path: Path,
) -> None:
    with ShortLived(nodes=1) as cluster:
        home = tmp_path / "home"
        token = command(cluster.folder / "server", "token", "create", "--role", "client").stdout
        assert command(home, "login", token.split()[-1]).returncode == 0
        identity = load_identity(str(home / "client"))
        assert identity is not None
        sock = blocking_tls.connect(identity, str(home / "client"), parse_endpoint(cluster.address))
        with BlockingConnection[Any](sock, union_to(identity.role)) as connection:
            connection.send(ClientHello(local_versions()))
            assert type(connection.receive(10)).__name__ == "ServerHello"
            refused = connection.receive(3 * LIFE_S)
            assert "has expired" in refused.error.message
        time.sleep(max(0.0, identity.expires_at - time.time()) + 0.1)
        late = command(home, "status")
        assert late.returncode == 1
        assert "has expired" in late.stderr
        assert "cortex login" in late.stderr


_DUE = """
import sys
from cortex.wire import authority, join_desk
authority.CERTIFICATE_BACKDATE_S = 4 * 3600.0
authority.LIFE_S.update(dict.fromkeys(authority.LIFE_S, 3600.0))
if %r:
    def renew(self, *_):
        raise OSError("no space left")
    join_desk.JoinDesk.renew = renew
from cortex.cli.__main__ import main
sys.exit(main())
"""


class Due(cortex.LocalCluster):
    """More than two thirds of the life of its certificates are over when they are issued."""

    broken = False

    def _command(self, name: str) -> list[str]:
        return (
            [sys.executable, "-P", "-c", _DUE % self.broken] if name == "server" else super()._command(name)
        )


class Broken(Due):
    """And it cannot renew any."""

    broken = True


def test_a_certificate_that_cannot_be_kept_is_said_and_the_command_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Due(nodes=1) as cluster:
        home = tmp_path / "home"
        token = command(cluster.folder / "server", "token", "create", "--role", "client").stdout
        assert command(home, "login", token.split()[-1]).returncode == 0
        before = expires_at(home / "client")
        time.sleep(1.1)  # what is issued now ends later

        def fails(folder: str, identity: Any) -> None:
            raise StateFailed(f"{folder} is read-only")

        with monkeypatch.context() as patched:
            patched.setattr("cortex.wire.identity.save_identity", fails)
            with ClusterConnection(str(home)) as connection:
                assert connection.identity.expires_at > before
        assert "could not be kept" in capsys.readouterr().err
        assert expires_at(home / "client") == before
        with ClusterConnection(str(home)) as connection:
            assert connection.identity.expires_at == expires_at(home / "client") > before
        assert capsys.readouterr().err == ""


def test_a_server_that_cannot_renew_a_certificate_keeps_nobody_from_working(tmp_path: Path) -> None:
    with Broken(nodes=1) as cluster:
        home = tmp_path / "home"
        token = command(cluster.folder / "server", "token", "create", "--role", "client").stdout
        assert command(home, "login", token.split()[-1]).returncode == 0
        shown = command(home, "status")
        assert shown.returncode == 0, shown.stderr
        assert "the certificate was not renewed: the server could not answer" in shown.stderr
        (tmp_path / "in.txt").write_text("line00\n")
        job = Long(input=str(tmp_path / "in.txt"))
        assert dict(job.run(cortex.Client(cluster.address, home=home))) == {f"key{i}": 1 for i in range(50)}
        wait_for(
            lambda: "the server refused the node: the server could not answer" in cluster.output("node1")
        )
        assert cluster.nodes["node1"].poll() is None


_TOLD = """
import sys, threading
from cortex.node import cluster_node
from cortex.wire import renewal
renewal.RENEW_RETRY_S = 0.5
save = cluster_node.save_identity
def told(folder, identity):
    print("it is saved in the thread", threading.current_thread().name, file=sys.stderr, flush=True)
    return save(folder, identity)
cluster_node.save_identity = told
from cortex.cli.__main__ import main
sys.exit(main())
"""


class Told(ShortLived):
    """Its nodes say where they save a certificate, and try again soon."""

    def _command(self, name: str) -> list[str]:
        return super()._command(name) if name == "server" else [sys.executable, "-P", "-c", _TOLD]


def test_a_node_whose_certificate_cannot_be_saved_tries_again_and_never_on_the_reactors_thread() -> None:
    with Told(nodes=1) as cluster:
        folder = cluster.folder / "node1" / "node"
        before = expires_at(folder)
        (folder / "identity.pem").rename(folder / "aside")
        (folder / "identity.pem").mkdir()  # in the way of what is to be renamed there
        wait_for(lambda: cluster.output("node1").count("could not be renewed") >= 2)
        assert "was renewed" not in cluster.output("node1")
        (folder / "identity.pem").rmdir()
        (folder / "aside").rename(folder / "identity.pem")
        wait_for(lambda: "the node's certificate was renewed" in cluster.output("node1"))
        assert expires_at(folder) > before
        said = cluster.output("node1")
        assert (
            said.count("it is saved in the thread identity") == said.count("it is saved in the thread") >= 3
        )

"""A real server refuses, with the cure, whoever could not exchange pickles with its cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex.errors import CortexError, VersionMismatch
from cortex.ids import Role
from cortex.wire import blocking_tls
from cortex.wire import messages as m
from cortex.wire.framing import BlockingConnection
from cortex.wire.join import parse_endpoint
from cortex.wire.joiner import join_cluster
from cortex.wire.permissions import union_to
from cortex.wire.versions import local_versions

OTHER = {**local_versions(), "python": "3.99.1", "pyarrow": "1.0.0"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=1) as made:
        yield made


def said_to(cluster: Any, folder: Path, hello: Any) -> Any:
    """What the server answers a member that says hello, whose join was in order."""
    identity = join_cluster(cluster._join_line, str(folder), local_versions(), (Role.NODE,), time.time())
    endpoint = parse_endpoint(cluster.address)
    sock = blocking_tls.connect(identity, str(folder), endpoint)
    with BlockingConnection[Any](sock, union_to(identity.role)) as connection:
        connection.send(hello(identity))
        return connection.receive(10)


def test_at_the_join(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(VersionMismatch) as raised:
        join_cluster(cluster._join_line, str(tmp_path / "n"), OTHER, (Role.NODE,), time.time())
    refusal(raised.value, "the joining node")


def test_at_the_hello_of_a_node_that_was_installed_anew(cluster: Any, tmp_path: Path) -> None:
    def hello(versions: dict[str, str]) -> Any:
        return lambda identity: m.NodeHello(identity.id, "1", 1, 1 << 30, versions, "127.0.0.1:1")

    answer = said_to(cluster, tmp_path / "other", hello(OTHER))
    assert isinstance(answer, m.Refused)
    assert answer.error.message.startswith("node n")
    assert "python 3.99.1 there" in answer.error.message
    welcome = said_to(cluster, tmp_path / "same", hello(local_versions()))
    assert isinstance(welcome, m.PeersRevoked)
    deadline = time.monotonic() + 10
    while len(cluster.client.status().nodes) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(cluster.client.status().nodes) == 1  # both are gone


def test_at_the_submit(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.client.cluster_client.local_versions", lambda: OTHER)
    (tmp_path / "in.txt").write_text("a\n")
    with pytest.raises(VersionMismatch) as raised:
        Job(input=tmp_path / "in.txt").run(cluster)
    refusal(raised.value, "the client")


class Job(cortex.MapReduceJob):
    def map(self, line: str) -> Any:
        yield line, 1


def refusal(error: CortexError, who: str) -> None:
    ours = local_versions()
    assert f"{who} has other versions: python 3.99.1 there, {ours['python']} here" in error.message
    minor = ours["python"].rpartition(".")[0]
    assert (
        error.cure
        == f"run {who} with Python {minor}, and for {who}: pip install 'pyarrow=={ours['pyarrow']}'"
    )

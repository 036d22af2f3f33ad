"""The rule of docs/operating.md, "Upgrading", with real processes: other versions are refused or served, and
nothing crashes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import cortex
from cortex.ids import Role
from cortex.wire import blocking_tls
from cortex.wire import messages as m
from cortex.wire.framing import HEADER, BlockingConnection
from cortex.wire.join import parse_endpoint
from cortex.wire.joiner import join_cluster
from cortex.wire.permissions import union_to
from cortex.wire.versions import PROTOCOL_VERSION, local_versions

OLDER, NEWER = str(int(PROTOCOL_VERSION) - 1), str(int(PROTOCOL_VERSION) + 1)


def patched(protocol: str = PROTOCOL_VERSION, version: str = cortex.__version__) -> list[str]:
    """The command of a cortex of other versions."""
    text = f"""
import sys
from cortex.wire import versions
versions.PROTOCOL_VERSION, versions.VERSION = {protocol!r}, {version!r}
from cortex.cli.__main__ import main
sys.exit(main())
"""
    return [sys.executable, "-P", "-c", text]


class MixedCluster(cortex.LocalCluster):
    """`commands`: name -> what its process runs, from its next start on."""

    def __init__(self, **rest: Any) -> None:
        self.commands: dict[str, list[str]] = {}
        super().__init__(**rest)

    def _command(self, name: str) -> list[str]:
        return self.commands.get(name) or super()._command(name)


class Words(cortex.MapReduceJob):
    combine = sum

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        yield line, 1


def works(cluster: cortex.LocalCluster, folder: Path) -> bool:
    (folder / "in.txt").write_text("a\nb\na\n")
    return dict(Words(input=str(folder / "in.txt"), split_size=2).run(cluster)) == {"a": 2, "b": 1}


def command(command: list[str], cluster: cortex.LocalCluster) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CORTEX_")}
    return subprocess.run(
        [*command, "status", "--home", str(cluster.folder / "server")],
        env=kept, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[MixedCluster]:
    with MixedCluster(nodes=1) as made:
        yield made


@pytest.mark.parametrize("protocol", [OLDER, NEWER], ids=["older", "newer"])
def test_a_node_of_another_protocol_is_refused_with_the_cure_at_its_join_and_after(
    cluster: MixedCluster, tmp_path: Path, protocol: str
) -> None:
    name = f"node{80 + int(protocol)}"
    said = f"other versions: protocol {protocol} there, {PROTOCOL_VERSION} here"
    cluster.commands[name] = patched(protocol)
    cluster.start_node(name)
    assert cluster.nodes.pop(name).wait(60) == 1
    assert said in cluster.output(name)
    assert "install the same version of cortex on both sides" in cluster.output(name)

    name = cluster.add_node()  # one that has joined, and is then installed anew
    cluster.nodes[name].terminate()
    assert cluster.nodes[name].wait(60) == 0
    cluster.commands[name] = patched(protocol)
    cluster.start_node(name)
    assert cluster.nodes.pop(name).wait(60) == 1
    assert said in cluster.output(name)
    del cluster.commands[name]
    assert cluster.server is not None
    assert cluster.server.poll() is None
    assert works(cluster, tmp_path)


@pytest.mark.parametrize("protocol", [OLDER, NEWER], ids=["older", "newer"])
def test_a_client_of_another_protocol_is_refused_with_the_cure(cluster: MixedCluster, protocol: str) -> None:
    refused = command(patched(protocol), cluster)
    assert refused.returncode == 1
    assert f"the client has other versions: protocol {protocol} there" in refused.stderr
    assert "cure: install the same version" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert command(patched(), cluster).returncode == 0


def test_another_patch_release_is_served(cluster: MixedCluster, tmp_path: Path) -> None:
    patch = ".".join([*cortex.__version__.split(".")[:2], "99"])
    cluster.commands["node90"] = patched(version=patch)
    cluster.start_node("node90")
    deadline = time.monotonic() + 60
    while len(nodes := cluster.client.status().nodes) < 2:
        assert time.monotonic() < deadline, cluster.output("node90")
        time.sleep(0.05)
    assert patch in [node.versions["cortex"] for node in nodes]
    assert works(cluster, tmp_path)
    assert command(patched(version=patch), cluster).returncode == 0
    cluster.nodes.pop("node90").terminate()


def test_a_server_that_is_upgraded_first_refuses_its_nodes_until_they_are_as_well(tmp_path: Path) -> None:
    with MixedCluster(nodes=1) as cluster:
        assert works(cluster, tmp_path)
        assert cluster.server is not None
        cluster.server.terminate()
        assert cluster.server.wait(60) == 0
        cluster.commands.update(server=patched(NEWER), node1=patched(NEWER))
        cluster.start_server()
        assert cluster.nodes["node1"].wait(60) == 1  # it has dialed, and is told
        assert f"protocol {PROTOCOL_VERSION} there, {NEWER} here" in cluster.output("node1")
        cluster.start_node("node1")
        deadline = time.monotonic() + 60
        while not shown(cluster):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert command(patched(PROTOCOL_VERSION), cluster).returncode == 1


def shown(cluster: MixedCluster) -> bool:
    return "1 node, 0 of 1 slot busy" in command(patched(NEWER), cluster).stdout


def raw(message: m.Message, **fields: Any) -> bytes:
    body = msgspec.msgpack.decode(msgspec.msgpack.encode(message)) | fields
    data = msgspec.msgpack.encode(body)
    return HEADER.pack(len(data)) + data


def test_what_a_newer_or_older_peer_may_say_otherwise_is_taken_or_refused_by_name(
    cluster: MixedCluster, tmp_path: Path
) -> None:
    identity = join_cluster(cluster._join_line, str(tmp_path), local_versions(), (Role.NODE,), time.time())
    hello = m.NodeHello(identity.id, "1", 1, 1 << 30, local_versions(), "127.0.0.1:1")

    def answers(*frames: bytes) -> list[Any]:
        sock = blocking_tls.connect(identity, str(tmp_path), parse_endpoint(cluster.address))
        with BlockingConnection[Any](sock, union_to(identity.role)) as connection:
            got = []
            for frame in frames:
                sock.sendall(frame)
                got.append(connection.receive(10))
            return got

    (taken,) = answers(raw(hello, colour="red"))  # a field that only a later version has
    assert isinstance(taken, m.PeersRevoked)
    older = msgspec.msgpack.decode(msgspec.msgpack.encode(hello))
    for field in ("draining_s", "host"):  # fields that only this version has
        del older[field]
    data = msgspec.msgpack.encode(older)
    (taken,) = answers(HEADER.pack(len(data)) + data)
    assert isinstance(taken, m.PeersRevoked)
    _, refused = answers(raw(hello), raw(m.GetStatus(), type="BeHappy"))  # a message of a later version
    assert isinstance(refused, m.Refused)
    assert "same version of cortex" in refused.error.cure
    (refused,) = answers(raw(hello, slots="many"))  # a hello that has changed its meaning
    assert isinstance(refused, m.Refused)
    assert "same version of cortex" in refused.error.cure
    assert works(cluster, tmp_path)


_NEWER_SERVER = """
import sys
from cortex.server.cluster_server import ClusterServer
from cortex.wire.messages import Message
class Praise(Message, frozen=True):
    text: str
welcome = ClusterServer._node_hello
def hello(self, link, message):
    welcome(self, link, message)
    self._reactor.callLater(0.2, link.send, Praise("well done"))
ClusterServer._node_hello = hello
from cortex.cli.__main__ import main
sys.exit(main())
"""


def test_a_node_that_hears_what_it_does_not_know_says_so_and_lives(tmp_path: Path) -> None:
    with MixedCluster(nodes=1) as cluster:
        assert cluster.server is not None
        cluster.server.terminate()
        assert cluster.server.wait(60) == 0
        cluster.commands["server"] = [sys.executable, "-P", "-c", _NEWER_SERVER]
        cluster.start_server()
        deadline = time.monotonic() + 60
        while "is no message" not in cluster.output("node1"):
            assert time.monotonic() < deadline, cluster.output("node1")
            time.sleep(0.05)
        assert cluster.nodes["node1"].poll() is None
        cluster.server.terminate()
        assert cluster.server.wait(60) == 0
        del cluster.commands["server"]
        cluster.start_server()
        while command(patched(), cluster).returncode:
            assert time.monotonic() < deadline + 60
        assert works(cluster, tmp_path)
        assert "Traceback" not in cluster.output("node1")

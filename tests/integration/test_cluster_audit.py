"""A cluster's audit log: what members and strangers did is in it, and nothing secret."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex.cli.__main__ import main
from cortex.client.cluster_client import ClusterConnection
from cortex.errors import CortexError
from cortex.ids import Role
from cortex.wire import messages as m
from cortex.wire.framing import encode_frame
from cortex.wire.join import parse_join_line
from cortex.wire.joiner import join_cluster
from cortex.wire.versions import local_versions

PATIENCE_S = 30.0
ANYONE = (Role.CLIENT,)


@pytest.fixture(scope="module")
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=1, memory="400MB") as found:
        yield found


class Words(cortex.MapReduceJob):
    combine = sum

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        for word in line.split():
            yield word, 1


def entries(cluster: cortex.LocalCluster) -> list[dict[str, Any]]:
    text = (cluster.folder / "server" / "audit" / "audit.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def entry(cluster: cortex.LocalCluster, **wanted: str) -> dict[str, Any]:
    """The last with these values, when it is there."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = [e for e in entries(cluster) if all(e[name] == value for name, value in wanted.items())]
        if found:
            return found[-1]
        time.sleep(0.05)
    raise AssertionError(f"{wanted} is not among {entries(cluster)}")


def test_what_members_do_is_there(
    cluster: cortex.LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(cluster.folder / "server")
    (tmp_path / "text.txt").write_text("a b a\n")
    result = Words(input=str(tmp_path / "text.txt")).run(cluster)
    submitted = entry(cluster, action="submit", object=result.report.job)
    assert submitted["outcome"] == "done"
    assert submitted["details"]["name"] == "Words"
    assert submitted["actor"]["role"] in ("admin", "client")
    assert submitted["actor"]["address"] == "127.0.0.1"

    with ClusterConnection(home, cluster.address) as admin:
        made = admin.ask(m.CreateToken(Role.CLIENT, 600.0, 1), m.TokenCreated)
        assert entry(cluster, action="create-token", object=made.token_id)["actor"]["id"] == admin.identity.id
        identity = join_cluster(made.join_line, str(tmp_path / "c" / "client"), local_versions(), ANYONE, 0.0)
        joined = entry(cluster, action="join", object=identity.id)
        assert (joined["outcome"], joined["details"]) == ("done", {"token": made.token_id})
        assert joined["actor"]["id"] == ""
        with pytest.raises(CortexError, match="used up"):
            join_cluster(made.join_line, str(tmp_path / "d"), local_versions(), ANYONE, 0.0)
        refused = entry(cluster, action="join", outcome="refused")
        assert "used up" in refused["details"]["error"]

        client = ClusterConnection(str(tmp_path / "c"), cluster.address)
        with pytest.raises(CortexError):
            client.ask(m.CancelJob(result.report.job), m.ClusterStatus)
        assert entry(cluster, action="cancel", outcome="refused")["actor"]["id"] == identity.id
        with pytest.raises(CortexError):
            client.ask(m.FollowJob(result.report.job), m.JobFollowed)
        assert entry(cluster, action="fetch", outcome="refused")["object"] == result.report.job
        with pytest.raises(CortexError, match="may not send"):
            client.ask(m.GetAudit(1), m.AuditTail)
        assert "GetAudit" in entry(cluster, action="ask", outcome="refused")["details"]["error"]
        client.close()

        admin.ask(m.RevokeToken(made.token_id), m.AdminDone)
        assert entry(cluster, action="revoke-token", object=made.token_id)["outcome"] == "done"
        admin.ask(m.RevokePeer(identity.id), m.AdminDone)
        assert entry(cluster, action="revoke-peer", object=identity.id)["outcome"] == "done"
        with pytest.raises(CortexError, match="revoked"):
            ClusterConnection(str(tmp_path / "c"), cluster.address)
        assert entry(cluster, action="connect", outcome="refused")["actor"]["id"] == identity.id

    assert main(["audit", "--home", home, "--last", "1000", "--server", cluster.address]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["time", "who", "from", "action", "of", "outcome"]
    assert any("a stranger" in line and "refused: the join token" in line for line in shown)
    assert main(["audit", "--home", home, "--last", "2", "--json", "--server", cluster.address]) == 0
    assert [json.loads(line)["outcome"] for line in capsys.readouterr().out.splitlines()] == [
        "done",
        "refused",
    ]
    secret = parse_join_line(made.join_line).secret
    assert secret.hex() in made.join_line
    assert secret.hex() not in (cluster.folder / "server" / "audit" / "audit.jsonl").read_text()


def test_a_stranger_who_asks_for_more_than_to_join_is_there(cluster: cortex.LocalCluster) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = cluster.address.rpartition(":")
    with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain) as secure:
        secure.sendall(encode_frame(m.KillCluster()))
        secure.settimeout(PATIENCE_S)
        while secure.recv(4096):
            pass
    refused = entry(cluster, action="ask", outcome="refused")
    while refused["actor"]["id"]:  # of the test before
        refused = entry(cluster, action="ask", outcome="refused")
    assert refused["actor"] == {"id": "", "role": "", "address": "127.0.0.1"}
    assert "KillCluster" in refused["details"]["error"]

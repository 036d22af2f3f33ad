"""Metrics and health of a cluster's processes: what a scraper reads, and who may not."""

from __future__ import annotations

import http.client
import re
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import cortex
from cortex.client.cluster_client import ClusterConnection
from cortex.ids import Role, server_name
from cortex.wire import messages as m
from cortex.wire.identity import Identity
from cortex.wire.joiner import join_cluster
from cortex.wire.versions import local_versions

PATIENCE_S = 30.0


class Watched(cortex.LocalCluster):
    def _start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        return super()._start(name, *arguments, "--metrics", "127.0.0.1:0", **environment)

    def watched(self, name: str) -> int:
        """The port where a process tells its figures."""
        said = re.search(
            r"metrics for clients of the cluster: https://127\.0\.0\.1:(\d+)/metrics", self._output(name)
        )
        assert said is not None
        return int(said[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Watched]:
    with Watched(nodes=2, memory="400MB") as found:
        yield found


class Words(cortex.MapReduceJob):
    split_size = "1KB"
    reducers = 2

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        for word in line.split():
            if word == "poison":
                raise ValueError("poison")
            yield word, 1

    def reduce(self, key: str, values: Iterator[int]) -> Iterator[tuple[str, int]]:
        yield key, sum(values)


def member(cluster: Watched, role: Role, folder: Path) -> Identity:
    with ClusterConnection(str(cluster.folder / "server"), cluster.address) as admin:
        line = admin.ask(m.CreateToken(role, 600.0, 1), m.TokenCreated).join_line
    return join_cluster(line, str(folder), local_versions(), (role,), time.time())


def ask(
    port: int, folder: Path, path: str = "/metrics", method: str = "GET", body: bytes = b""
) -> tuple[int, str]:
    """As Prometheus and curl are told to: the identity file is authority, certificate and key."""
    identity = folder / "identity.pem"
    context = ssl.create_default_context(cafile=str(identity))
    context.load_cert_chain(identity)
    context.check_hostname = False  # the name is checked in the test with curl
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=PATIENCE_S)
    connection.request(method, path, body or None)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def read(connection: http.client.HTTPConnection) -> str:
    connection.request("GET", "/metrics")
    return connection.getresponse().read().decode()


def scraped(text: str) -> dict[str, Any]:
    """name{labels} -> value, as Prometheus' own parser reads it."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type != "unknown"
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in found
            found[key] = sample.value
    return found


def test_a_scraper_reads_what_the_cluster_does(cluster: Watched, tmp_path: Path) -> None:
    member(cluster, Role.MONITOR, tmp_path / "c")
    port = cluster.watched("server")
    (tmp_path / "text.txt").write_text("one two three four five\n" * 400)
    before = scraped(ask(port, tmp_path / "c")[1])
    Words(input=str(tmp_path / "text.txt")).run(cluster)
    (tmp_path / "bad.txt").write_text("poison\n")
    with pytest.raises(cortex.CortexError):
        Words(input=str(tmp_path / "bad.txt")).run(cluster)
    with cluster.client as client:
        results = list(client.map(int, ["1", "2", "three"], errors="return"))
        assert results[:2] == [1, 2]
        assert "cortex_calls_total 3" in ask(port, tmp_path / "c")[1]
    after = scraped(ask(port, tmp_path / "c")[1])

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert grown("cortex_jobs_submitted_total") == 3
    assert grown("cortex_jobs_ended_total{state=done}") == 2
    assert (grown("cortex_calls_total"), grown("cortex_calls_failed_total")) == (3, 1)
    assert grown("cortex_jobs_ended_total{state=failed}") == 1
    assert grown("cortex_attempts_finished_total{stage=map}") >= 9
    assert grown("cortex_attempts_finished_total{stage=reduce}") == 2
    assert grown("cortex_attempts_failed_total{cause=user-code,stage=map}") >= 1
    assert grown("cortex_rows_in_total{stage=map}") >= 400
    assert grown("cortex_read_bytes_total{stage=map}") >= 9600
    assert (
        grown("cortex_shuffled_bytes_total{stage=map}") + grown("cortex_shuffled_bytes_total{stage=reduce}")
        > 0
    )
    assert grown("cortex_journal_written_total") > 10
    assert grown("cortex_decision_seconds_count") > 10
    assert grown("cortex_audit_entries_total") >= 2
    assert grown("cortex_heartbeats_total") > 0
    assert after["cortex_decision_seconds_bucket{le=+Inf}"] == after["cortex_decision_seconds_count"]
    assert after["cortex_nodes{state=up}"] == 2
    assert after["cortex_slots{state=used}"] + after["cortex_slots{state=free}"] == 2
    assert after["cortex_connections{role=node}"] == 2
    assert after["cortex_journal_failing"] == 0
    for of in ("server", "authority", "admin"):
        assert after[f"cortex_certificate_expiry_timestamp_seconds{{certificate={of}}}"] > time.time()
    assert after["process_resident_memory_bytes"] > 10_000_000
    assert 0 < after["process_open_fds"] < after["process_max_fds"]
    assert after["process_cpu_seconds_total"] > 0


def test_a_node_tells_its_own(cluster: Watched, tmp_path: Path) -> None:
    member(cluster, Role.MONITOR, tmp_path / "c")
    (tmp_path / "text.txt").write_text("one two three four five\n" * 400)
    Words(input=str(tmp_path / "text.txt")).run(cluster)
    found = [scraped(ask(cluster.watched(name), tmp_path / "c")[1]) for name in cluster.nodes]
    for each in found:
        assert each["cortex_node_connected"] == 1
        assert each["cortex_node_slots{state=used}"] + each["cortex_node_slots{state=free}"] == 1
        assert each["cortex_node_spill_free_bytes"] > 0
        assert each["cortex_certificate_expiry_timestamp_seconds{certificate=node}"] > time.time()
    assert sum(each["cortex_node_attempts_total{outcome=finished}"] for each in found) >= 12
    sent = sum(each["cortex_node_sent_bytes_total"] for each in found)
    fetched = sum(each["cortex_node_fetched_bytes_total"] for each in found)
    assert sent >= fetched > 0  # headers are sent as well
    for name in cluster.nodes:
        assert ask(cluster.watched(name), tmp_path / "c", "/healthz") == (200, "ok\n")


def test_who_may_not_read_is_told_or_cut_off(cluster: Watched, tmp_path: Path) -> None:
    client = member(cluster, Role.MONITOR, tmp_path / "c")
    member(cluster, Role.NODE, tmp_path / "n")
    ports = [cluster.watched(name) for name in ("server", *cluster.nodes)]
    for port in ports:
        status, text = ask(port, tmp_path / "n")
        assert (status, "is for a monitor or client or admin" in text) == (403, True)
        assert ask(port, tmp_path / "c", "/healthz") == (200, "ok\n")
        assert ask(port, tmp_path / "c", "/metrics", "HEAD") == (200, "")
        assert ask(port, tmp_path / "c", "/metrics", "POST", b"x" * 200_000)[0] == 405
        assert ask(port, tmp_path / "c", "/etc/passwd")[0] == 404
        nobody = ssl.create_default_context(cafile=str(tmp_path / "c" / "identity.pem"))
        nobody.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=nobody, timeout=PATIENCE_S)
        with pytest.raises((OSError, http.client.HTTPException)):
            read(connection)
        plain = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        with pytest.raises((OSError, http.client.HTTPException)):
            read(plain)
    with ClusterConnection(str(cluster.folder / "server"), cluster.address) as admin:
        admin.ask(m.RevokePeer(client.id), m.AdminDone)
    deadline = time.monotonic() + PATIENCE_S
    for port in ports:
        while (answer := ask(port, tmp_path / "c"))[0] != 403:  # nodes are told a moment later
            assert time.monotonic() < deadline
        assert "was revoked" in answer[1]


def test_curl_reads_them_by_the_name_that_the_manual_says(cluster: Watched, tmp_path: Path) -> None:
    client = member(cluster, Role.MONITOR, tmp_path / "c")
    identity, port = str(tmp_path / "c" / "identity.pem"), cluster.watched("server")
    name = server_name(client.cluster)
    done = subprocess.run(
        [
            *("curl", "-sS", "--cacert", identity, "--cert", identity, "--key", identity),
            *("--connect-to", f"{name}:{port}:127.0.0.1:{port}", f"https://{name}:{port}/healthz"),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_listeners_are_those_that_were_asked_for(cluster: Watched) -> None:
    shown = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    assert cluster.server is not None
    processes = {"server": cluster.server, **cluster.nodes}
    data = {node.data_address for node in cluster.client.status().nodes}
    for name, process in processes.items():
        found = {line.split()[3] for line in shown.splitlines() if f"pid={process.pid}," in line}
        assert f"127.0.0.1:{cluster.watched(name)}" in found
        (own,) = found - {f"127.0.0.1:{cluster.watched(name)}"}
        assert own in ({cluster.address} if name == "server" else data)


def test_a_monitor_looks_and_does_nothing_else(cluster: Watched, tmp_path: Path) -> None:
    identity = member(cluster, Role.MONITOR, tmp_path / "home" / "client")
    client = cortex.Client(cluster.address, home=tmp_path / "home")
    assert len(client.status().nodes) == 2
    (tmp_path / "text.txt").write_text("a b\n")
    with pytest.raises(cortex.CortexError, match=r"a monitor may not send (SubmitJob|OfferBlobs)") as caught:
        Words(input=str(tmp_path / "text.txt")).run(client)
    assert "role client" in caught.value.cure
    for message in (m.CancelJob("j0123456789ab"), m.GetLogs("j0123456789ab"), m.GetAudit(1), m.KillCluster()):
        with ClusterConnection(str(tmp_path / "home"), cluster.address) as connection:
            connection.send(message)
            with pytest.raises(cortex.CortexError, match=f"a monitor may not send {type(message).__name__}"):
                connection.receive(PATIENCE_S)
    assert identity.id[0] == "m"


def test_a_node_without_its_server_is_not_well(cluster: Watched, tmp_path: Path) -> None:
    member(cluster, Role.MONITOR, tmp_path / "c")
    port = cluster.watched("node1")
    assert cluster.server is not None
    cluster.server.kill()
    cluster.server.wait()
    deadline = time.monotonic() + PATIENCE_S
    while (answer := ask(port, tmp_path / "c", "/healthz"))[0] != 503:
        assert time.monotonic() < deadline
    assert "no link to the server" in answer[1]
    cluster.start_server()
    deadline = time.monotonic() + PATIENCE_S
    while ask(port, tmp_path / "c", "/healthz")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)

"""What a newcomer gets wrong with a cluster: the message has to say what, where and how to go on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex.clusters import _free_port
from cortex.errors import Cancelled
from cortex.limits import HEARTBEAT_S
from tests.integration.test_cluster import Running, Words, slow, wait_for

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=1) as found:
        yield found


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CORTEX_")}
    return kept | {"PYTHONUNBUFFERED": "1"} | more


def command(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cortex", *arguments],
        cwd=folder,
        env=environment(CORTEX_HOME=str(folder / "state")) | more,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def join_line(cluster: cortex.LocalCluster, role: str = "node") -> str:
    made = command(cluster.folder, "token", "create", "--role", role, *of(cluster))
    assert made.returncode == 0, made.stderr
    return made.stdout.split()[-1]


def members(cluster: cortex.LocalCluster) -> set[str]:
    return {each.node for each in cluster.client.status().nodes}


def of(cluster: cortex.LocalCluster) -> tuple[str, ...]:
    return "--server", cluster.address, "--home", str(cluster.folder / "server")


@contextmanager
def running(folder: Path, *arguments: str, **more: str) -> Iterator[list[str]]:
    """A process that goes on; its lines, both streams together, as they come."""
    lines: list[str] = []
    home = {} if (folder / ".env").exists() else {"CORTEX_HOME": str(folder / "state")}
    with subprocess.Popen(
        [sys.executable, "-m", "cortex", *arguments],
        cwd=folder,
        env=environment(**home) | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        reading = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
        reading.start()
        try:
            yield lines
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
            reading.join(PATIENCE_S)


def said(lines: list[str], *words: str) -> str:
    """The line that has all of `words`, once it has come."""
    return str(wait_for(lambda: next((line for line in lines if all(word in line for word in words)), None)))


# --- addresses --------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_named_with_the_way_out(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    for arguments in (
        ("server", "--listen", cluster.address),
        ("node", "--join", join_line(cluster), "--listen", cluster.address),
    ):
        ran = command(tmp_path, *arguments)
        assert ran.returncode == 2
        assert f"error: cannot listen on {cluster.address}: Address already in use\n" in ran.stderr
        assert "another process listens there" in ran.stderr
        assert "--listen ADDRESS:PORT" in ran.stderr


def test_an_address_of_another_machine_is_not_listened_on(tmp_path: Path) -> None:
    ran = command(tmp_path, "server", "--listen", "192.0.2.77:8786")
    assert ran.returncode == 2
    assert "this machine has no such address: write 0.0.0.0" in ran.stderr


@pytest.mark.parametrize("name", ["server", "node"])
@pytest.mark.parametrize("host", ["10.0.0.5:8786", "a b", "http://head", "[::1", ""])
def test_what_is_advertised_is_a_host(tmp_path: Path, name: str, host: str) -> None:
    ran = command(tmp_path, name, "--listen", "127.0.0.1:1", "--advertise", host or "[]")
    assert ran.returncode == 2
    assert f"the address to advertise: {host or '[]'!r} is not a host" in ran.stderr
    assert "without a port" in ran.stderr


def test_a_server_that_is_given_as_a_url(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    ran = command(tmp_path, "status", *of(cluster)[2:], "--server", f"https://{cluster.address}/")
    assert ran.returncode == 2
    assert "is a URL" in ran.stderr
    assert f"cure: write HOST:PORT: {cluster.address}\n" in ran.stderr


def test_where_they_listen_is_set_by_flag_before_environment_before_dotenv(
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    """Of a server and of a node; a client's CORTEX_SERVER is tested in test_cluster.py."""
    first, second, third = (_free_port() for _ in range(3))
    (tmp_path / ".env").write_text(f"CORTEX_LISTEN=127.0.0.1:{first}\nCORTEX_ADVERTISE=head.example.org\n")
    with running(tmp_path, "server", "--home", "a") as lines:
        said(lines, f"listens on 127.0.0.1:{first}")
        said(lines, "cortex node --join", f" head.example.org:{first}/")
    with running(tmp_path, "server", "--home", "b", CORTEX_LISTEN=f"127.0.0.1:{second}") as lines:
        said(lines, f"listens on 127.0.0.1:{second}")
    flag = f"127.0.0.1:{third}"
    with running(
        tmp_path, "server", "--home", "c", "--listen", flag, "--advertise", "me", CORTEX_LISTEN="nonsense"
    ) as lines:
        said(lines, f"listens on {flag}")
        said(lines, "cortex node --join", f" me:{third}/")
    (tmp_path / ".env").write_text(
        f"CORTEX_LISTEN=127.0.0.1:{first}\nCORTEX_ADVERTISE=localhost\nCORTEX_SLOTS=1\n"
        f"CORTEX_MEMORY=400MB\nCORTEX_JOIN={join_line(cluster)}\nCORTEX_HOME=n\n"
        f"CORTEX_SPILL_DIRS=s1:{tmp_path}/s2\n"
    )
    with running(tmp_path, "node") as lines:
        assert ": 1 slot, 400 MB, spills to " in said(lines, "cortex node n")
        said(lines, f"spills to {tmp_path}/s1, {tmp_path}/s2")
        said(lines, "is connected to", f"serves others at localhost:{first}")
        assert all(list((tmp_path / name).glob("cortex-*")) for name in ("s1", "s2"))
    with running(tmp_path, "node", CORTEX_LISTEN=f"127.0.0.1:{second}", CORTEX_SLOTS="2") as lines:
        assert ": 2 slots, " in said(lines, "cortex node n")
        said(lines, f"serves others at localhost:{second}")
    with running(
        tmp_path, "node", "--spill", "s3", "--spill", "s4", "--slots", "3", CORTEX_SLOTS="2"
    ) as lines:
        assert ": 3 slots, " in said(lines, "cortex node n", f"spills to {tmp_path}/s3, {tmp_path}/s4")
    assert (tmp_path / "n" / "node" / "identity.pem").exists()


# --- who may come in --------------------------------------------------------------------------------------


def test_a_client_logs_in_with_a_line_that_no_process_list_shows(
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    none = command(tmp_path, "login")
    assert none.returncode == 2
    assert "cure: give it behind login, or as CORTEX_JOIN" in none.stderr
    (tmp_path / ".env").write_text(f"CORTEX_JOIN={join_line(cluster, 'client')}\n")
    ran = command(tmp_path, "login")
    assert ran.returncode == 0, ran.stderr
    assert members(cluster) & set(command(tmp_path, "status").stdout.split())


def test_a_member_that_was_put_out_is_back_by_the_cure(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    line = join_line(cluster)
    arguments = ("node", "--join", line, "--listen", "127.0.0.1:0", "--slots", "1", "--memory", "400MB")
    with running(tmp_path, *arguments) as lines:
        node = said(lines, "is connected to").partition("] node ")[2].split()[0]
        assert command(tmp_path, "token", "revoke", node, *of(cluster)).returncode == 0
        said(lines, "error:", f"node {node} was revoked")
        assert "remove the folder 'node' in its home, and join again" in said(lines, "cure:")
    again = command(tmp_path, *arguments)
    assert again.returncode == 1
    assert f"node {node} was revoked" in again.stderr
    shutil.rmtree(tmp_path / "state" / "node")
    with running(tmp_path, *arguments) as lines:
        assert node not in said(lines, "is connected to")
    client_line = join_line(cluster, "client")
    client = command(tmp_path, "login", client_line).stdout.split()[-1]
    assert command(tmp_path, "token", "revoke", client, *of(cluster)).returncode == 0
    refused = command(tmp_path, "status")
    assert refused.returncode == 1
    assert "remove the folder 'client' in its home" in refused.stderr
    shutil.rmtree(tmp_path / "state" / "client")
    assert command(tmp_path, "login", client_line).returncode == 0
    assert command(tmp_path, "status").returncode == 0


def test_whoever_has_a_server_here_is_a_client_of_another_as_well(
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    here = f"127.0.0.1:{_free_port()}"
    with running(tmp_path, "server", "--listen", here) as lines:
        said(lines, "cortex node --join")
        assert command(tmp_path, "login", join_line(cluster, "client")).returncode == 0
        assert "0 nodes, " in command(tmp_path, "status").stdout
        assert "0 nodes, " in command(tmp_path, "status", "--server", here).stdout
        assert members(cluster) & set(command(tmp_path, "status", "--server", cluster.address).stdout.split())


def test_an_id_that_is_none_is_told_where_ids_are(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    ran = command(tmp_path, "token", "revoke", "everyone", *of(cluster))
    assert ran.returncode == 2
    assert "'everyone' is not the id of a token, node, client or admin" in ran.stderr
    assert "cortex token list" in ran.stderr


# --- jobs -------------------------------------------------------------------------------------------------


def test_whose_job_is_cancelled_hears_which_and_by_whom(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    job = Running(slow(tmp_path, 2), cluster)
    wait_for(lambda: list((tmp_path / "marks").glob("line*")))
    name = next(each.job for each in cluster.client.status().jobs if each.state == "mapping")
    assert command(tmp_path, "cancel", name, *of(cluster)).returncode == 0
    outcome: Any = job.result()
    assert isinstance(outcome, Cancelled)
    assert outcome.message.startswith(f"job {name} was cancelled by admin a")


NOTEBOOK = """
import sys, cortex
cells = ["import cortex\\nleast = 2\\n"
         "class Words(cortex.MapReduceJob):\\n    combine = sum\\n    def map(self, line):\\n"
         "        for word in line.split():\\n            if len(word) >= least: yield word, 1\\n",
         "found = Words(input='in.txt').run(cortex.Client(sys.argv[1], home=sys.argv[2]))"]
for number, cell in enumerate(cells):
    exec(compile(cell, f"<ipython-input-{number}>", "exec"), globals())
print(dict(found))
"""


def test_a_class_typed_into_a_notebook_runs_on_the_cluster(
    cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("aa b aa\n")
    done = subprocess.run(
        [sys.executable, "-", cluster.address, str(cluster.folder / "server")],  # __main__ has no file
        input=NOTEBOOK,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.stdout, done.stderr) == ("{'aa': 2}\n", "")


def test_status_tells_for_how_long_a_node_was_not_heard(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    process = cluster.nodes["node1"]
    own = wait_for(lambda: members(cluster) if len(members(cluster)) == 1 else None)  # others' nodes are gone

    def heard_s() -> float:
        return next(node.heard_s for node in cluster.client.status().nodes if node.node in own)

    process.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: heard_s() > 2 * HEARTBEAT_S)
        shown = command(tmp_path, "status", *of(cluster)).stdout
        assert int(shown.split(" s ago")[0].split()[-1]) >= 2 * HEARTBEAT_S - 1
    finally:
        process.send_signal(signal.SIGCONT)
    wait_for(lambda: heard_s() < HEARTBEAT_S)


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("server", "node"):
        ran = command(tmp_path, name, "--home", "file/home", "--listen", "127.0.0.1:1")
        assert ran.returncode == 1
        assert f"the folder '{tmp_path}/file/home' cannot be made: " in ran.stderr
        assert "cure: name another" in ran.stderr


def test_the_cluster_runs_jobs_after_all_this(cluster: cortex.LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a b a\n")
    assert dict(Words(input=str(tmp_path / "in.txt")).run(cluster)) == {"a": 2, "b": 1}


def test_who_watches_goes_on_when_the_server_is_back(tmp_path: Path) -> None:
    with cortex.LocalCluster(nodes=1) as other, running(tmp_path, "status", "--watch", *of(other)) as lines:
        said(lines, "cluster k", "1 node, ")
        assert other.server is not None
        other.server.kill()
        other.server.wait()
        said(lines, f"{other.address}", "; trying again")
        shown = len(lines)
        other.start_server()
        wait_for(lambda: any(line.startswith("cluster k") for line in lines[shown:]))
        assert sum("trying again" in line for line in lines) == 1

"""No log grows without bound: those of server and node, and what jobs print."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cortex
from cortex.limits import LOG_FILES_KEPT, MIB, STDERR_FILE_BYTES_MAX
from cortex.wire.join import parse_endpoint
from tests.integration.test_cluster import Running, wait_for

_SMALL = """
import sys
from cortex.wire import transports
transports.LOG_FILE_BYTES = 2000
from cortex.cli.__main__ import main
sys.exit(main())
"""


class LoggingCluster(cortex.LocalCluster):
    """Its processes log to files of 2 KB."""

    def _command(self, name: str) -> list[str]:
        return [sys.executable, "-P", "-c", _SMALL]

    def _start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        log = str(self.folder / f"{name}-files" / "cortex.log")
        os.makedirs(os.path.dirname(log), exist_ok=True)
        return super()._start(name, *arguments, "--log-file", log, **environment)

    def logs(self, name: str) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.folder / f"{name}-files").iterdir()}


def test_logs_of_server_and_node_are_set_aside_and_the_oldest_removed() -> None:
    with LoggingCluster(nodes=1) as cluster:
        wait_for(lambda: "is connected to" in "".join(cluster.logs("node1").values()))
        assert " is here, with 1 slot" in "".join(cluster.logs("server").values())
        at = parse_endpoint(cluster.address)
        for _ in range(200):  # strangers that leave again: a line each
            with socket.create_connection((at.host, at.port), 10):
                pass
        deadline = time.monotonic() + 30
        while len(cluster.logs("server")) <= LOG_FILES_KEPT:
            assert time.monotonic() < deadline, cluster.logs("server")
            time.sleep(0.05)
        time.sleep(0.3)
        logs = cluster.logs("server")
        assert set(logs) == {"cortex.log", *(f"cortex.log.{i}" for i in range(1, LOG_FILES_KEPT + 1))}
        assert all(len(text) < 3000 for text in logs.values())
        assert (cluster.folder / "server-files" / "cortex.log").stat().st_mode & 0o777 == 0o600
        assert "Traceback" not in "".join(logs.values())
        assert (cluster.folder / "server.log").read_text() == ""  # standard error


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    options = ("--home", str(tmp_path / "home"), "--listen", "127.0.0.1:1")
    log = str(tmp_path / "nowhere" / "log")
    ran = subprocess.run(
        [sys.executable, "-m", "cortex", "server", *options, "--log-file", log],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "cannot write the log to" in ran.stderr
    assert "--log-file" in ran.stderr


class Chatty(cortex.MapReduceJob):
    """Prints 80 MB, at 20 MB/s at most."""

    combine = sum

    def map(self, line: str) -> Iterator[tuple[str, int]]:
        text = "x" * 1023
        for _ in range(80):
            for _ in range(MIB // 1024):
                print(text)
            time.sleep(0.05)
        yield line, 1


def test_a_job_that_prints_without_end_does_not_fill_the_disk(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    with cortex.LocalCluster(nodes=1) as cluster:
        running = Running(Chatty(input=str(tmp_path / "in.txt")), cluster)
        largest = 0
        while running.is_alive():
            sizes = [
                path.stat().st_size for path in cluster.folder.glob("node1/spill/cortex-*/executor-*.log")
            ]
            largest = max([largest, *sizes])
            time.sleep(0.02)
        assert dict(running.result()) == {"a": 1}
        assert STDERR_FILE_BYTES_MAX // 2 < largest < 80 * MIB

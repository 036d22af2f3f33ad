"""What holds for every test."""

from __future__ import annotations

import os
import signal
import tempfile

import pytest

from benchmarks.cgroup import unavailable
from cortex.storage.filesystem import is_memory_backed

# Where no bytecode may be written, every process that a test starts compiles all of cortex anew: half a
# second of processor time, a thousand times.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background (a CI job, say) with SIGINT ignored, and every child inherits
    # that: Ctrl-C, which tests send to the processes they start, would do nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if is_memory_backed(tempfile.gettempdir()):
    # Where /tmp lies in memory, jobs would refuse to spill below it.
    os.environ["TMPDIR"] = tempfile.tempdir = "/var/tmp"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tests under a hard memory cap run without one where there is none to have: that is said."""
    ran = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if "tests/memory/" in report.nodeid
    ]
    if ran and unavailable():
        terminalreporter.write_line(
            f"tests/memory: no hard memory cap here ({unavailable()}): memory was only watched", yellow=True
        )

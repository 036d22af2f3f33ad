"""What a client of a cluster does with the bytes of its result, when its disk takes only a part of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import resource, sys
from cortex.client.cluster_session import Follower
from cortex.errors import CortexError
from cortex.wire import messages as m

JOB = "j" + "1" * 12

class Connection:
    part = m.OutputPart("part-0", "staged", 1, 100_000, (), "n1")
    messages = [
        m.JobDone(JOB, m.JobReport(JOB, "a job", 1.0), (part,)),
        m.PartBytes(JOB, "staged", bytes(100_000), True),
    ]
    def send(self, message): ...
    def receive(self):
        return self.messages.pop(0)

resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # a disk that is full amid a write
try:
    Follower(sys.argv[1], None).run(Connection(), None)
except CortexError as error:
    print(error.code, error.message)
"""


def test_a_disk_that_is_full_amid_a_write_is_named(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith(f"output the result cannot be written to {tmp_path}: ")

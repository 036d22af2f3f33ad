"""What each process of a job imports, and the embedded process that starts before it is asked for.

A short job is little but start-up, so what is imported is counted, not timed: a time would depend on the
machine. Every process writes down its modules when it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cortex.process_memory import descendant_pids

ROOT = Path(__file__).parents[2]

# Python runs a sitecustomize at its start. The processes end by os._exit or a signal's handler; os._exit is
# where all of them come by in the end, or the interpreter's own end.
RECORDER = """
import atexit, os, sys
started = os.getpid()
def record():
    if os.getpid() != started:  # an executor, which the template forked
        return
    programs = {"embedded/__main__.py": "embedded", "template.py": "template"}
    name = next((n for end, n in programs.items() if sys.argv[0].endswith(end)), "client")
    with open(os.path.join(os.environ["MODULES"], name), "w") as file:
        file.write("\\n".join(sorted(name for name, module in sys.modules.items() if module is not None)))
def leave(status, leave=os._exit):
    record()
    leave(status)
atexit.register(record)
os._exit = leave
"""

JOB = """
name: words
input: {path: in.csv, format: csv, columns: {word: string, n: int64}}
reduce: {group_by: [word], aggregate: {total: sum(n)}}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("tmp", "modules", "python"):
        (tmp_path / name).mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(RECORDER)
    (tmp_path / "in.csv").write_text("word,n\na,1\nb,2\na,3\n")
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(home / "python"), str(ROOT)]),
        "MODULES": str(home / "modules"),
        "CORTEX_HOME": str(home / "cortex"),
        "TMPDIR": str(home / "tmp"),
        "XDG_RUNTIME_DIR": "",
    }


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=home, env=environment(home), capture_output=True, text=True, timeout=120
    )


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def modules(home: Path, process: str) -> set[str]:
    return set((home / "modules" / process).read_text().split())


def test_no_process_imports_what_it_does_not_need(home: Path) -> None:
    done = run(home, "-m", "cortex", "mapreduce", "job.yaml", "--output", "out", "--quiet")
    assert done.returncode == 0, done.stderr
    assert (home / "out" / "_SUCCESS").exists()
    client, embedded, template = (modules(home, name) for name in ("client", "embedded", "template"))
    # that the right processes were recorded
    assert "cortex.client.client" in client
    assert "twisted.internet.reactor" in embedded
    assert "pyarrow.compute" in template
    assert "cortex.tasks.runner" in template
    never = {"pandas", "cryptography", "OpenSSL", "ssl", "rich", "unittest", "importlib.metadata"}
    columns = {"pyarrow", "numpy", "cloudpickle"}
    assert not client & (never | columns | {"twisted", "asyncio", "logging", "email", "dotenv"})
    assert not embedded & (never | columns | {"click", "yaml", "cortex.tasks.executor"})
    assert not template & (never | {"twisted", "click", "yaml", "pyarrow.parquet", "pyarrow.fs"})


def test_version_imports_next_to_nothing(home: Path) -> None:
    done = run(home, "-m", "cortex", "--version")
    assert done.returncode == 0
    assert not modules(home, "client") & {
        "click",
        "msgspec",
        "subprocess",
        "yaml",
        "pyarrow",
        "cortex.errors",
    }


def test_wrong_usage_leaves_no_process(home: Path) -> None:
    command = [sys.executable, "-m", "cortex", "mapreduce", "job.yaml", "--sltos", "2"]
    client = subprocess.Popen(
        command, cwd=home, env=environment(home), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    _, errors = client.communicate(timeout=60)
    assert client.returncode == 2
    assert "--slots" in errors
    with pytest.raises(ProcessLookupError):  # it has waited for them: not even dead ones are left
        os.killpg(client.pid, 0)
    assert list((home / "tmp").iterdir()) == []


def test_what_the_jobs_file_sets_when_loaded_is_set_in_executors(home: Path) -> None:
    (home / "setting.py").write_text(
        "import os\n"
        "from cortex import MapReduceJob\n"
        "os.environ['SET_BY_JOB'] = 'yes'\n"
        "class Setting(MapReduceJob):\n"
        "    def map(self, record):\n"
        "        yield os.environ.get('SET_BY_JOB', 'no'), 1\n"
        "    combine = sum\n"
    )
    done = run(
        home, "-m", "cortex", "mapreduce", "setting.py:Setting", "--format", "text", "in.csv", "--quiet"
    )
    assert done.stdout == "key,value\nyes,4\n", done.stderr


@pytest.mark.parametrize("whole_group", [False, True], ids=["client", "group"])
@pytest.mark.parametrize("after_s", [0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65])
def test_sigterm_at_any_time_leaves_nothing(home: Path, after_s: float, whole_group: bool) -> None:
    (home / "slow.py").write_text(
        "import time\n"
        "from cortex import MapReduceJob\n"
        "class Slow(MapReduceJob):\n"
        "    def map(self, record):\n"
        "        time.sleep(0.2)\n"
        "        yield record, 1\n"
    )
    command = [sys.executable, "-m", "cortex", "mapreduce", "slow.py:Slow", "--format", "text", "in.csv"]
    client = subprocess.Popen(
        [*command, "--output", "out", "--quiet"],
        cwd=home,
        env=environment(home),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(after_s)
    pids = descendant_pids(client.pid)
    if whole_group:
        os.killpg(client.pid, signal.SIGTERM)
    else:
        client.send_signal(signal.SIGTERM)
    client.wait(10)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(map(alive, pids)):
        time.sleep(0.02)
    assert not any(map(alive, pids))
    spill = home / "cortex" / "spill"
    left = [*(home / "tmp").iterdir(), *(spill.iterdir() if spill.exists() else ())]
    assert left == []
    assert not [path for path in home.iterdir() if path.name.startswith(".") or path.name == "out"]

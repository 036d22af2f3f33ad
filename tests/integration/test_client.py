"""The client's session with the real child process, server, node, template and executors.

Only the tasks are stand-ins (`stand_in_tasks`). Every test that ends a process looks for what is left.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cortex.client.client import LocalSession
from cortex.errors import (
    CortexError,
    ExecutorDied,
    InputError,
    InternalError,
    MemoryTooSmall,
    ProtocolError,
    ServerDied,
    TaskTimeout,
    UserMemoryError,
)
from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import MIB, TASK_ATTEMPTS_MAX
from cortex.process_memory import descendant_pids
from cortex.wire.messages import JobDone, JobProgress

CONTEXT = "tests.integration.stand_in_tasks:Context"
ROOT = Path(__file__).parents[2]


def spec_of(*commands: str) -> JobSpec:
    return JobSpec("stand-in", InputSpec(commands))


def alive(pid: int) -> bool:
    """False for a zombie, too: it holds nothing but its number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


class Harness:
    """A session, its folders, and every process it was seen to have."""

    def __init__(self, session: LocalSession, staging: Path, spill: Path) -> None:
        self.session, self.staging, self.spill = session, staging, spill

    def run(
        self, *commands: str, code: bytes = b"", on_progress: Callable[[JobProgress], None] | None = None
    ) -> JobDone:
        return self.session.run(spec_of(*commands), code, (), str(self.staging), on_progress)

    def log(self) -> list[list[str]]:
        """attempt, command and pid of each map that began."""
        path = self.staging / "log"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def pids(self) -> list[int]:
        return descendant_pids(self.session.server_pid)


@pytest.fixture
def harness(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Harness]:
    options: dict[str, float] = getattr(request, "param", {})
    staging, spill = tmp_path / "staging", tmp_path / "spill"
    staging.mkdir()
    memory = int(options.get("memory_bytes", 512 * MIB))
    silence = options.get("task_silence_s_max", 60.0)
    slots = int(options.get("slots", 2))
    with LocalSession(memory, slots, str(spill), context=CONTEXT, task_silence_s_max=silence) as session:
        found = Harness(session, staging, spill)
        yield found
        pids = found.pids()
    assert wait_for(lambda: not any(alive(pid) for pid in pids if pid != session.server_pid), 2)
    assert list(spill.iterdir()) == [] if spill.exists() else True


def test_a_job_runs_and_its_files_are_removed_when_it_is_received(harness: Harness) -> None:
    progress: list[JobProgress] = []
    done = harness.run("ok", "ok", "sleep:0.7", on_progress=progress.append)
    assert [part.name for part in done.parts] == ["part-00000.csv", "part-00001.csv", "part-00002.csv"]
    assert done.report.rows_in == 3
    assert done.report.slots == 2
    assert 20 * MIB < done.report.memory_peak_bytes < done.report.memory_cap_bytes == 512 * MIB
    assert progress
    assert progress[-1].memory_bytes > 20 * MIB
    assert (progress[-1].spilled_bytes, done.report.spilled_bytes) == (2000, 3000)
    ready = harness.session.wait_ready()
    assert (os.stat(ready.work_dir).st_mode & 0o777, os.stat(ready.runtime_dir).st_mode & 0o777) == (
        0o700,
        0o700,
    )
    sockets = list(Path(ready.runtime_dir).glob("*.sock"))
    assert [stat.S_IMODE(each.stat().st_mode) for each in sockets] == [0o600, 0o600]
    work = Path(ready.work_dir) / done.job
    time.sleep(0.3)  # for as long as the client takes to commit
    assert len(list(work.iterdir())) == 3
    harness.session.received(done.job)
    assert wait_for(lambda: not work.exists(), 2)


def test_an_error_of_on_progress_is_its_own(harness: Harness) -> None:
    def show(progress: JobProgress) -> None:
        raise FileNotFoundError(2, "No such file or directory", "progress.log")

    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match="No such file"):
        harness.run("sleep:20", on_progress=show)
    assert time.monotonic() - began < 15
    assert harness.run("ok").report.rows_in == 1


def test_jobs_one_after_another_and_at_once(harness: Harness) -> None:
    harness.session.received(harness.run("ok").job)
    done: list[JobDone] = []
    threads = [
        threading.Thread(target=lambda: done.append(harness.run("ok", "sleep:0.1", "ok"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [len(each.parts) for each in done] == [3, 3, 3]
    assert len({each.job for each in done}) == 3
    assert len(harness.log()) == 10


def test_a_second_job_is_given_executors_of_the_first(harness: Harness) -> None:
    first, _ = in_thread(harness, *["sleep:0.1"] * 60)
    done = harness.run("ok", "ok")
    assert done.report.rows_in == 2
    assert first.is_alive()
    first.join(30)
    assert not first.is_alive()
    assert len(harness.log()) == 62


def test_an_executor_serves_one_job(harness: Harness) -> None:
    harness.session.received(harness.run("ok", "ok").job)
    first = {pid for _, _, pid in harness.log()}
    harness.session.received(harness.run("ok", "ok").job)
    assert not first & {pid for _, _, pid in harness.log()[2:]}


def test_a_killed_executors_task_is_run_again(harness: Harness) -> None:
    done = harness.run("ok", "killonce:SIGKILL", "ok")
    assert len(done.parts) == 3
    assert done.report.failed_attempts == 1
    assert sorted(attempt[-4:] for attempt, command, _ in harness.log() if "kill" in command) == [
        "01.0",
        "01.1",
    ]


def test_four_deaths_fail_the_job_and_say_why(harness: Harness) -> None:
    with pytest.raises(ExecutorDied) as caught:
        harness.run("ok", "kill:SIGKILL")
    error = caught.value
    text = str(error)
    assert "killed by SIGKILL" in text
    assert "out-of-memory" in text
    assert "map 1: split 1 of file 1, offset 0" in text
    assert "last words on stdout" in text
    assert "last words on stderr" in text
    assert "MB" in error.details["memory of the slot"]
    assert "peak resident memory, file pages included" in error.details
    assert "--memory" in error.cure
    assert len([1 for _, command, _ in harness.log() if command.startswith("kill")]) == TASK_ATTEMPTS_MAX
    assert error.job_report.failed_attempts == TASK_ATTEMPTS_MAX  # type: ignore[attr-defined]
    assert harness.run("ok").report.rows_in == 1  # the session goes on


def test_a_task_that_ends_its_process_has_four_attempts_whatever_the_status(harness: Harness) -> None:
    with pytest.raises(ExecutorDied, match="exit status 75"):
        harness.run("ok", "osexit:75")
    assert len([1 for _, command, _ in harness.log() if command == "osexit:75"]) == TASK_ATTEMPTS_MAX


@pytest.mark.parametrize("how", ["close", "none"])
def test_code_may_do_without_standard_output(harness: Harness, how: str) -> None:
    done = harness.run(*[f"stdout:{how}"] * 4)
    assert (len(done.parts), done.report.failed_attempts) == (4, 0)


def test_a_crash_in_native_code_shows_its_stack(harness: Harness) -> None:
    with pytest.raises(ExecutorDied, match="SIGSEGV") as caught:
        harness.run("kill:SIGSEGV")
    assert "Fatal Python error" in str(caught.value)  # faulthandler's
    assert "stand_in_tasks.py" in str(caught.value)


def test_too_much_memory_is_a_named_error(harness: Harness) -> None:
    with pytest.raises(UserMemoryError, match="more memory than its slot has") as caught:
        harness.run("memory:3000")
    assert "map 0: split 0 of file 0" in caught.value.details["task"]
    assert "stand_in_tasks.py" in caught.value.details["traceback"]
    assert "--memory" in caught.value.cure


@pytest.mark.parametrize("harness", [{"memory_bytes": 1024 * MIB, "slots": 1}], indirect=True)
def test_an_answer_without_a_frame_fails_the_job_at_once(harness: Harness) -> None:
    with pytest.raises(ProtocolError, match="TaskFinished message of 65 MB is larger than a frame") as caught:
        harness.run("answer:65")
    assert "map 0" in caught.value.details["task"]
    assert "counters" in caught.value.cure
    assert len(harness.log()) == 1
    assert harness.run("ok").report.rows_in == 1


@pytest.mark.parametrize("harness", [{"memory_bytes": 256 * MIB, "slots": 1}], indirect=True)
def test_a_child_process_of_the_task_counts_and_is_stopped(harness: Harness) -> None:
    with pytest.raises(UserMemoryError, match="and its child processes hold") as caught:
        harness.run("child:120")  # three of them: each is within the limit that it has inherited
    assert "256 MB" in caught.value.details["cap"]


@pytest.mark.parametrize("harness", [{"memory_bytes": 256 * MIB, "slots": 1}], indirect=True)
def test_an_executor_whose_memory_does_not_come_back_is_replaced(harness: Harness) -> None:
    done = harness.run(*["leak:30"] * 10)
    assert done.report.failed_attempts == 0
    assert len(done.parts) == 10
    assert 2 <= len({pid for _, _, pid in harness.log()}) <= 5


@pytest.mark.parametrize("harness", [{"task_silence_s_max": 0.6}], indirect=True)
def test_a_silent_task_is_killed_with_its_stack(harness: Harness) -> None:
    with pytest.raises(TaskTimeout, match="made no progress") as caught:
        harness.run("hang:30", "sleep:1.5")
    assert "stand_in_tasks.py" in caught.value.details["stack"]
    assert "_obey" in caught.value.details["stack"]


def test_errors_of_tasks_keep_their_type(harness: Harness) -> None:
    with pytest.raises(InputError, match="cannot be opened") as caught:
        harness.run("ok", code=b"broken")
    assert caught.value.details["file"] == "x.csv"
    with pytest.raises(InternalError, match="SystemExit"):  # the user's own is met where their code is called
        harness.run("exit:3")
    with pytest.raises(InternalError, match="ZeroDivisionError") as bug:
        harness.run("bug")
    assert "stand_in_tasks.py" in str(bug.value)


def test_a_cap_too_small_names_the_smallest_that_works(tmp_path: Path) -> None:
    with (
        LocalSession(64 * MIB, 1, str(tmp_path), context=CONTEXT) as session,
        pytest.raises(MemoryTooSmall, match="64 MB") as caught,
    ):
        session.wait_ready()
    smallest = int(caught.value.cure.rpartition(" ")[2].removesuffix("MB"))
    assert smallest <= 256
    with LocalSession(smallest * MIB, 2, str(tmp_path), context=CONTEXT) as session:
        assert session.wait_ready().slots == 1
        session.run(spec_of("ok"), b"", (), str(tmp_path))


def test_a_spill_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        LocalSession(0, 1, str(tmp_path / "file" / "spill"), context=CONTEXT) as session,
        pytest.raises(CortexError, match="file/spill"),
    ):
        session.wait_ready()


def in_thread(harness: Harness, *commands: str) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            harness.run(*commands)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert wait_for(lambda: bool(harness.log()), 20)
    return thread, raised


def test_the_childs_death_is_told_and_nothing_is_left(harness: Harness) -> None:
    thread, raised = in_thread(harness, "sleep:20")
    pids = harness.pids()
    ready = harness.session.wait_ready()
    os.kill(harness.session.server_pid, signal.SIGKILL)
    thread.join(10)
    assert isinstance(raised[0], ServerDied)
    assert "killed by SIGKILL" in str(raised[0])
    assert wait_for(lambda: not any(alive(pid) for pid in pids), 2)
    with pytest.raises(ServerDied):
        harness.run("ok")
    harness.session.close()
    assert not os.path.exists(ready.runtime_dir)
    assert not os.path.exists(ready.work_dir)


def test_the_templates_death_is_told(harness: Harness) -> None:
    thread, raised = in_thread(harness, "sleep:20")
    template = descendant_pids(harness.session.server_pid)[1]
    os.kill(template, signal.SIGKILL)
    thread.join(10)
    assert isinstance(raised[0], ServerDied)
    assert "template" in str(raised[0])
    assert "SIGKILL" in str(raised[0])


SCRIPT = """
import sys
from cortex.client.client import LocalSession
from cortex.job.spec import InputSpec, JobSpec
session = LocalSession(0, 2, sys.argv[1], context="tests.integration.stand_in_tasks:Context")
ready = session.wait_ready()
print(session.server_pid, ready.runtime_dir, flush=True)
try:
    session.run(JobSpec("t", InputSpec(("sleep:30", "sleep:30"))), b"", (), sys.argv[2])
except KeyboardInterrupt:
    sys.exit(130)  # without closing the session: the interpreter's end does
"""


ENDS = [(number, False) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]


@pytest.mark.parametrize(("number", "group"), [*ENDS, (signal.SIGTERM, True), (signal.SIGHUP, True)])
def test_the_end_of_the_client_ends_everything(tmp_path: Path, number: signal.Signals, group: bool) -> None:
    spill, staging = tmp_path / "spill", tmp_path / "staging"
    staging.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    client = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(spill), str(staging)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert client.stdout is not None
    server_pid, runtime_dir = client.stdout.readline().split()
    assert wait_for((staging / "log").exists, 20)
    pids = descendant_pids(client.pid)
    assert int(server_pid) in pids
    assert len(pids) >= 5  # client, server and node, template, two executors
    if group:  # in the order that is worst
        os.kill(int(server_pid), number)
        time.sleep(0.1)
    client.send_signal(number)
    began = time.monotonic()
    assert wait_for(lambda: not any(alive(pid) for pid in pids), 5)
    ended_s = time.monotonic() - began
    client.communicate(timeout=5)
    assert ended_s < 2.5
    assert client.returncode == (130 if number == signal.SIGINT else -number)
    assert list(spill.iterdir()) == []
    assert not os.path.exists(runtime_dir)
    # the client that was killed could not remove its staging folder
    assert staging.exists() == (number == signal.SIGINT)


def test_secrets_do_not_reach_the_executors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTEX_JOIN", "secret-token")
    monkeypatch.setenv("USERS_OWN", "kept")
    with LocalSession(0, 1, str(tmp_path), context=CONTEXT) as session:
        session.wait_ready()
        assert wait_for(lambda: len(descendant_pids(session.server_pid)) >= 3, 20)
        _, *below = descendant_pids(session.server_pid)
        for pid in below:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            assert b"CORTEX_JOIN=secret-token" not in words
            assert {b"USERS_OWN=kept", b"PYTHONHASHSEED=0"} <= set(words)

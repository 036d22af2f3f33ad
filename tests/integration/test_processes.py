"""Template and executors alone, spoken to as the node's pool does: forked, and spawned afresh."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex.job.plan import Split
from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import MIB
from cortex.tasks.template_start import start_template
from cortex.wire.framing import BlockingConnection
from cortex.wire.messages import (
    ExecutorExited,
    ExecutorForked,
    ExecutorHello,
    ForkExecutor,
    FromExecutor,
    FromTemplate,
    JobPlanned,
    MapTask,
    Message,
    OpenJob,
    PlanResult,
    PlanTask,
    RunTask,
    SignalExecutor,
    Stop,
    TaskFailed,
    TaskFinished,
    TaskProgress,
    TemplateReady,
)

CONTEXT = "tests.integration.stand_in_tasks:Context"
ROOT = str(Path(__file__).parents[2])


class Side:
    """A template and one executor of it, joined."""

    def __init__(self, folder: Path, spawn: bool, paths: tuple[str, ...]) -> None:
        self.folder = folder
        self.process, sock = start_template(CONTEXT, spawn)
        self.template = BlockingConnection[FromTemplate](sock, FromTemplate)
        path = str(folder / "s")
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(path)
            door.listen()
            door.settimeout(30)
            self.template.send(ForkExecutor(7, path, str(folder / "stderr")))
            ready = self.template.receive(30)
            assert isinstance(ready, TemplateReady)
            assert ready.single_threaded == (not spawn)
            forked = self.template.receive(30)
            assert isinstance(forked, ExecutorForked)
            self.pid = forked.pid
            peer, _ = door.accept()
        self.executor = BlockingConnection[FromExecutor](peer, FromExecutor)
        assert self.executor.receive(30) == ExecutorHello(7, forked.pid)
        self.job = OpenJob("j0", JobSpec("t", InputSpec(paths)), b"", (), str(folder), str(folder), 400 * MIB)
        self.executor.send(self.job)

    def ask(self, message: Message) -> FromExecutor | None:
        self.executor.send(message)
        while True:
            answer = self.executor.receive(30)
            if not isinstance(answer, TaskProgress):
                return answer

    def plan(self) -> None:
        planned = self.ask(RunTask("j0-plan.0", PlanTask()))
        assert isinstance(planned, TaskFinished)
        assert isinstance(planned.result, PlanResult)
        self.executor.send(JobPlanned("j0", planned.result.plan))

    def map(self, index: int) -> FromExecutor | None:
        return self.ask(RunTask(f"j0-m{index:06d}.0", MapTask(index, (Split(index, index, 0, 100),))))

    def end(self) -> ExecutorExited:
        exited = self.template.receive(10)
        assert isinstance(exited, ExecutorExited)
        assert (exited.executor, exited.pid) == (7, self.pid)
        return exited


@pytest.fixture(params=["fork", "spawn"])
def side(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    monkeypatch.setenv("PYTHONPATH", ROOT)
    found = Side(tmp_path, request.param == "spawn", ("ok", "kill:SIGABRT", "memory:3000", "ok"))
    yield found
    found.template.close()
    found.executor.close()
    assert found.process.wait(30) == 0  # it ends with its link


def test_descriptors_above_the_1024_of_select(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with many connections starts a template, whose link then has a large number."""
    monkeypatch.setenv("PYTHONPATH", ROOT)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1200 <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1200, hard))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while taken[-1] < 1030:
            taken.append(os.dup(taken[0]))
        found = Side(tmp_path, False, ("ok",))
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    found.plan()
    assert isinstance(found.map(0), TaskFinished)
    found.template.close()
    found.executor.close()
    assert found.process.wait(30) == 0


def test_tasks_run_and_stop_is_a_clean_end(side: Side) -> None:
    side.plan()
    done = side.map(0)
    assert isinstance(done, TaskFinished)
    assert done.peak_bytes > 5 * MIB
    side.executor.send(Stop())
    assert side.executor.receive(10) is None
    exited = side.end()
    assert (exited.signal, exited.status) == (0, 0)
    assert exited.max_rss_bytes > 5 * MIB


def test_a_task_after_a_memory_error_has_its_memory_again(side: Side) -> None:
    side.plan()
    failed = side.map(2)
    assert isinstance(failed, TaskFailed)
    assert failed.error.code == "user-memory"
    assert isinstance(side.map(3), TaskFinished)
    again = side.map(2)
    assert isinstance(again, TaskFailed)
    assert again.error.signature == failed.error.signature


def test_the_signal_that_killed_an_executor_is_told(side: Side) -> None:
    side.plan()
    assert side.map(1) is None
    assert side.end().signal == signal.SIGABRT
    assert "last words on stderr" in (side.folder / "stderr").read_text()


def test_executors_are_signalled_and_end_with_the_template(side: Side) -> None:
    side.template.send(SignalExecutor(7, signal.SIGUSR1))  # writes stacks, and goes on
    end = time.monotonic() + 5
    while "most recent call first" not in (side.folder / "stderr").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    side.plan()
    side.process.terminate()
    side.process.wait(30)
    assert side.executor.receive(5) is None
    end = time.monotonic() + 5  # its link is closed a moment before it is gone
    while Path(f"/proc/{side.pid}").exists() and "Z" not in Path(f"/proc/{side.pid}/stat").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_template_that_cannot_import_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ROOT)
    process, sock = start_template("tests.integration.no_such_module:Context")
    with BlockingConnection[FromTemplate](sock, FromTemplate) as link:
        assert link.receive(30) is None
    assert process.wait(30) == 1

"""A template and one executor of a compute job, spoken to as their node does."""

from __future__ import annotations

import hashlib
import pickle
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import MIB
from cortex.tasks import call_watch
from cortex.tasks.attached_files import map_attached
from cortex.tasks.cell_pickles import load_list
from cortex.tasks.contexts import open_context
from cortex.tasks.executor import Context
from cortex.tasks.template_start import start_template
from cortex.tasks.travelling_function import TravellingFunction
from cortex.user_code import dump_code
from cortex.wire.framing import BlockingConnection
from cortex.wire.messages import (
    CallForm,
    CellDone,
    CellsRun,
    ExecutorForked,
    ExecutorHello,
    ForkExecutor,
    FromExecutor,
    FromTemplate,
    FunctionCode,
    Message,
    OpenJob,
    RunCells,
    RunTask,
    ServeTask,
    TaskProgress,
    TemplateReady,
)
from cortex.wire.messages.compute import Cell

JOB = "j000000000001"
ATTEMPT = f"{JOB}-w000001.0"
M = TypeVar("M", bound=Message)


def function_code(function: Callable[..., Any], modules: dict[str, bytes] | None = None) -> FunctionCode:
    code = TravellingFunction(dump_code(function), modules or {}).encode()
    name = getattr(function, "__name__", "f")
    return FunctionCode(JOB, hashlib.sha256(code).hexdigest()[:32], name, code)


def patient_context(open_job: OpenJob, link: Any) -> Context:
    """Gives nothing back behind a call that takes long, as any call may on a machine that has much to do."""
    call_watch.CALL_STUCK_S = 600.0  # type: ignore[misc]
    return open_context(open_job, link)


class ComputeSide:
    """`memory_bytes` of the executor; 0: no limit. `patient`: see `patient_context`."""

    def __init__(
        self, folder: Path, memory_bytes: int = 400 * MIB, input_socket: str = "", *, patient: bool = True
    ) -> None:
        self.folder = folder
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
            self.process, sock = start_template(f"{__name__}:patient_context" if patient else "")
        self.template = BlockingConnection[FromTemplate](sock, FromTemplate)
        path = str(folder / "s")
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(path)
            door.listen()
            door.settimeout(30)
            self.template.send(ForkExecutor(1, path, str(folder / "stderr")))
            assert isinstance(self.template.receive(30), TemplateReady)
            assert isinstance(self.template.receive(30), ExecutorForked)
            peer, _ = door.accept()
        self.link = BlockingConnection[FromExecutor](peer, FromExecutor)
        assert isinstance(self.link.receive(30), ExecutorHello)
        spec = JobSpec("t", InputSpec(()), compute=True)
        here = str(folder)
        self.link.send(OpenJob(JOB, spec, b"", (), here, here, memory_bytes, input_socket=input_socket))
        self.numbers = 0
        self.begin()

    def begin(self) -> None:
        self.link.send(RunTask(ATTEMPT, ServeTask()))
        assert self.receive(CellsRun) == CellsRun(ATTEMPT, ())

    def function(self, function: Callable[..., Any], modules: dict[str, bytes] | None = None) -> str:
        code = function_code(function, modules)
        self.link.send(code)
        return code.function

    def cell(self, function: str, entries: list[Any], form: CallForm = CallForm.ONE, **more: Any) -> Cell:
        self.numbers += 1
        data = more.pop("data", None) or pickle.dumps(entries, 5)
        return Cell(self.numbers, function, len(entries), form, data, **more)

    def send(self, *cells: Cell) -> None:
        self.link.send(RunCells(ATTEMPT, cells))

    def any(self, timeout: float = 30.0) -> FromExecutor:
        while True:
            message = self.link.receive(timeout)
            assert message is not None, (self.folder / "stderr").read_text()
            if not isinstance(message, TaskProgress):
                return message

    def soon(self) -> FromExecutor | None:
        """What it has said by now."""
        try:
            return self.any(0.01)
        except TimeoutError:
            return None

    def receive(self, kind: type[M], timeout: float = 30.0) -> M:
        message = self.any(timeout)
        assert isinstance(message, kind), message
        return message

    def done(self) -> CellDone:
        """The one result of the next message."""
        (done,) = self.receive(CellsRun).results
        return done

    def values(self, done: CellDone) -> list[Any]:
        if done.attached is not None:
            parts = map_attached(str(self.folder / done.attached.name), done.attached.sizes, unlink=True)
            return load_list(parts[0], parts[1:])
        return load_list(done.data, done.buffers)

    def call(self, function: Callable[..., Any], entries: list[Any], **more: Any) -> CellDone:
        """One cell, from its function to its result."""
        self.send(self.cell(self.function(function), entries, **more))
        return self.done()

    def close(self) -> None:
        self.template.close()
        self.link.close()
        assert self.process.wait(30) == 0

    def until(self, what: Callable[[], bool], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end
            time.sleep(0.01)

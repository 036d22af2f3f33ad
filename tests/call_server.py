"""A server for a client's calls without nodes and executors: it speaks the messages over a socket of this
process, and runs cells in threads. What a test wants to go wrong is a hook."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import cloudpickle
import msgspec

from cortex.errors import ServerDied, UserCodeError
from cortex.tasks.attached_files import map_attached, write_attached
from cortex.tasks.cell_pickles import dump_list, load_list
from cortex.tasks.travelling_function import TravellingFunction
from cortex.wire.framing import BlockingConnection
from cortex.wire.messages import (
    Attached,
    CallFailed,
    CallForm,
    Cell,
    CellDone,
    CellsDone,
    DropCells,
    EndCalls,
    FromServer,
    FunctionCode,
    JobAccepted,
    JobDone,
    JobReport,
    Message,
    SendCells,
    ServerHello,
    SubmitJob,
    ToServer,
)


class Connection:
    """As a session's."""

    def __init__(self, sock: socket.socket, slots: int) -> None:
        self._link = BlockingConnection[Any](sock, FromServer)
        self.hello = ServerHello({}, slots, 0)

    def ask(self, question: Message, answer: Any) -> Any:
        self.send(question)
        said = self.receive()
        assert isinstance(said, answer)
        return said

    def send(self, message: Message) -> None:
        self._link.send(message)

    def receive(self, timeout_s: float | None = None) -> Any:
        said = self._link.receive(timeout_s)
        if said is None:
            raise ServerDied("the server ended")
        return said

    def close(self) -> None:
        self._link.close()


class CallServer:
    """A session, and the server behind it."""

    shares_files = True

    def __init__(self, slots: int = 2) -> None:
        self.slots = slots
        self.staging = tempfile.mkdtemp(prefix="cortex-test-")
        self.cells: list[Cell] = []
        """That came."""
        self.dropped: list[int] = []
        self.results: Callable[[CellDone], list[CellDone]] = lambda done: [done]
        """What is sent for a result."""
        self.coming: list[int] = []
        """As each message of cells said."""
        self.functions_by_name: dict[str, Callable[..., Any]] = {}
        """Called in place of those that came, so that they may have something in common with a test."""
        self._functions: dict[str, Callable[..., Any]] = {}
        self._work: queue.SimpleQueue[Cell | None] = queue.SimpleQueue()
        self._link: BlockingConnection[Any] | None = None
        self._job = ""
        self._open = 0
        self._ending = self._ended = False
        self._lock = threading.Lock()

    def connect(self) -> Connection:
        ours, theirs = socket.socketpair()
        self._link = BlockingConnection[Any](ours, ToServer)
        threading.Thread(target=self._serve, args=(self._link,), daemon=True).start()
        for _ in range(self.slots):
            threading.Thread(target=self._run_all, daemon=True).start()
        return Connection(theirs, self.slots)

    def close(self) -> None:
        for _ in range(self.slots):
            self._work.put(None)

    def end(self) -> None:
        """The server dies."""
        assert self._link is not None
        self._link.close()

    def _serve(self, link: BlockingConnection[Any]) -> None:
        with contextlib.suppress(OSError):
            while (message := link.receive()) is not None:
                if isinstance(message, SubmitJob):
                    self._job = message.job
                    link.send(JobAccepted(message.job))
                elif isinstance(message, FunctionCode):
                    code = msgspec.msgpack.decode(message.code, type=TravellingFunction)
                    own = self.functions_by_name.get(message.name.rpartition(".")[2])
                    self._functions[message.function] = own or cloudpickle.loads(code.function)
                elif isinstance(message, SendCells):
                    self.coming.append(message.coming)
                    for cell in message.cells:
                        assert cell.function in self._functions
                        self.cells.append(cell)
                        with self._lock:
                            self._open += 1
                        self._work.put(cell)
                elif isinstance(message, DropCells):
                    self.dropped += message.cells
                elif isinstance(message, EndCalls):
                    self._ending = True
                    self._maybe_done()

    def _maybe_done(self) -> None:
        with self._lock:
            done = self._ending and not self._open and not self._ended
            self._ended |= done
        if done and self._link is not None:
            self._link.send(JobDone(self._job, JobReport(self._job, "", 0.0), ()))

    def _run_all(self) -> None:
        while (cell := self._work.get()) is not None:
            if cell.cell in self.dropped:
                results = []
            else:
                try:
                    results = self.results(self._run(cell))
                except FileNotFoundError:  # it was dropped meanwhile, and its arguments with it
                    results = []
            with self._lock:
                self._open -= 1
            with contextlib.suppress(OSError):
                assert self._link is not None
                self._link.send(CellsDone(self._job, tuple(results), self.slots))
            self._maybe_done()

    def _run(self, cell: Cell) -> CellDone:
        function = self._functions[cell.function]
        data: Any = cell.data
        buffers: Any = cell.buffers
        if cell.attached is not None:
            data, *buffers = map_attached(os.path.join(self.staging, cell.attached.name), cell.attached.sizes)
        entries = load_list(data, buffers)
        values: list[Any] = []
        failed: list[CallFailed] = []
        began = time.perf_counter()
        for number in range(cell.start, cell.end):
            entry = entries[number]
            try:
                if cell.form == CallForm.ONE:
                    values.append(function(entry))
                elif cell.form == CallForm.STAR:
                    values.append(function(*entry))
                else:
                    values.append(function(*entry[0], **entry[1]))
            except Exception as error:
                report = UserCodeError(str(error), details={"traceback": traceback.format_exc()}).report()
                failed.append(CallFailed(number, cloudpickle.dumps(error), report))
        seconds = time.perf_counter() - began
        done = CellDone("", cell.cell, cell.start, cell.end, failed=tuple(failed), seconds=seconds)
        if cell.discard or not values:
            return done
        pickled = dump_list(values)
        if not pickled.is_large:
            data, buffers = pickled.inline()
            return msgspec.structs.replace(done, data=data, buffers=buffers)
        name = f"result-{cell.cell}-{cell.start}"
        write_attached(os.path.join(self.staging, name), pickled)
        return msgspec.structs.replace(done, attached=Attached(name, pickled.sizes))

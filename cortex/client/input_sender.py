"""A client's answers to reads of its input files: a thread that reads and sends, while the job is followed.

Reads come from the thread that receives, and wait in order: the server asks for a bounded number of bytes at
once. An error of a file goes to whoever asked; the job fails by it and the client hears of that as of any.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from cortex.errors import CortexError, InternalError, NotAllowed
from cortex.limits import CANCEL_S_MAX
from cortex.wire.messages import InputBytes, InputUnread, Message, ReadInput


class Reads(Protocol):
    """By one thread; closed by it. Raises CortexError for what cannot be read."""

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Of the file of this number; fewer bytes only where it ends."""

    def without(self, number: int, offset: int, length: int, byte: bytes) -> int:
        """How many of `length` bytes from `offset` on stand before the first `byte`."""

    def close(self) -> None: ...


class Files(Protocol):
    def open(self) -> Reads:
        """Called in the thread that reads."""


class InputSender:
    """For one job, or put, on one connection. `send` is called in the thread; it raises OSError or
    CortexError when the connection has ended, and then the thread ends.

    A context manager. At its end nothing more is read; a send under way ends at the latest with the
    connection.
    """

    def __init__(self, job: str, files: Files, send: Callable[[Message], None]) -> None:
        self._job = job
        self._files = files
        self._send = send
        self._asked: queue.SimpleQueue[ReadInput | None] = queue.SimpleQueue()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> InputSender:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._asked.put(None)
        if self._thread is not None:
            self._thread.join(CANCEL_S_MAX)

    def ask(self, read: ReadInput) -> None:
        """Answer it soon."""
        if self._thread is None:  # with the first: nodes that have the files as well never ask
            self._thread = threading.Thread(target=self._answer, name="input", daemon=True)
            self._thread.start()
        self._asked.put(read)

    def _answer(self) -> None:
        with contextlib.closing(self._files.open()) as files:
            while (read := self._asked.get()) is not None and not self._stopping:
                try:
                    self._send(self._answer_to(files, read))
                except (OSError, CortexError):
                    return  # the connection has ended, as its receiver finds and says

    def _answer_to(self, files: Reads, read: ReadInput) -> InputBytes | InputUnread:
        try:
            if read.job != self._job:
                raise NotAllowed(f"a file of job {read.job} was asked for on the connection of {self._job}")
            data = files.read(read.file, read.offset, read.length)
            clear = files.without(read.file, read.offset, read.find_bytes, read.find) if read.find else 0
            return InputBytes(read.read, data, clear)
        except CortexError as error:
            return InputUnread(read.read, error.report())
        except Exception as error:  # whoever asked would wait for ever
            return InputUnread(read.read, InternalError(f"the client could not read: {error!r}").report())

"""An executor's link to its node for bytes of files that are elsewhere: reads are asked for, answers awaited.

The node is dialed with the first read. What it sends is taken by a thread, so that the node need not hold
what the executor has asked for and not come to yet. A read has no time limit: while the client is away it
waits, and says so to who watches over the task.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Final

from cortex.errors import CortexError, InternalError, from_report
from cortex.limits import INPUT_WAIT_S, KIB
from cortex.wire.framing import BlockingConnection
from cortex.wire.messages import (
    FromInputDoor,
    InputBytes,
    InputHello,
    InputLocated,
    InputUnread,
    LocateInput,
    ReadInput,
)

_RECEIVER_STACK_BYTES: Final = 256 * KIB  # it calls little; the default of 8 MB counts against RLIMIT_DATA


class Answer:
    """What a read brought, once it is there."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        self.found: InputBytes | InputLocated | BaseException | None = None


class InputLink:
    """For one job. Its methods are called in one thread. `waiting()` is called every INPUT_WAIT_S of a read
    that waits. A link that has ended is dialed again with the next read."""

    def __init__(self, socket_path: str, job: str, waiting: Callable[[], None]) -> None:
        self._socket_path = socket_path
        self._job = job
        self._waiting = waiting
        self._numbers = itertools.count(1)
        self._connection: BlockingConnection[FromInputDoor] | None = None
        self._lock = threading.Condition()
        self._answers: dict[int, Answer] = {}
        self._ended = True

    def locate(self, file: int) -> InputLocated:
        """Where the node has the file of this id."""
        connection, answer, number = self._begin()
        self._send(connection, LocateInput(number, self._job, file))
        found = self._wait(answer)
        assert isinstance(found, InputLocated)
        return found

    def ask(self, file: int, offset: int, length: int, find: bytes = b"", find_bytes: int = 0) -> Answer:
        """Begin a read of the client's file of this id (see `ReadInput`)."""
        connection, answer, number = self._begin()
        self._send(connection, ReadInput(number, self._job, file, offset, length, find, find_bytes))
        return answer

    def wait(self, answer: Answer) -> InputBytes:
        """Raises the typed error of what kept whoever has the file from reading."""
        found = self._wait(answer)
        assert isinstance(found, InputBytes)
        return found

    def _begin(self) -> tuple[BlockingConnection[FromInputDoor], Answer, int]:
        connection, answer, number = self._connected(), Answer(), next(self._numbers)
        with self._lock:
            self._answers[number] = answer
        return connection, answer, number

    def _send(self, connection: BlockingConnection[FromInputDoor], message: ReadInput | LocateInput) -> None:
        try:
            connection.send(message)
        except OSError as error:
            raise _cut_off(error) from error

    def _wait(self, answer: Answer) -> InputBytes | InputLocated:
        with self._lock:
            while answer.found is None:
                if not self._lock.wait(INPUT_WAIT_S):
                    self._waiting()
        if isinstance(answer.found, BaseException):
            raise answer.found
        return answer.found

    def forget(self, answers: Iterable[Answer]) -> None:
        """Nobody will wait for these."""
        unwanted = set(answers)
        if unwanted:
            with self._lock:
                for number in [number for number, each in self._answers.items() if each in unwanted]:
                    del self._answers[number]

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _connected(self) -> BlockingConnection[FromInputDoor]:
        if self._connection is None or self._ended:
            self.close()
            self._connection = self._dial()
            self._ended = False
            threading.stack_size(_RECEIVER_STACK_BYTES)
            thread = threading.Thread(
                target=self._receive, args=(self._connection,), name="input", daemon=True
            )
            thread.start()
            threading.stack_size(0)
        return self._connection

    def _dial(self) -> BlockingConnection[FromInputDoor]:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection = BlockingConnection[FromInputDoor](sock, FromInputDoor)
        try:
            sock.connect(self._socket_path)
            connection.send(InputHello(self._job))
        except OSError as error:
            connection.close()
            raise _cut_off(error) from error
        return connection

    def _receive(self, connection: BlockingConnection[FromInputDoor]) -> None:
        """In a thread, until the link or the executor ends."""
        ended: BaseException = ConnectionResetError("the node closed the link")
        try:
            while (message := connection.receive()) is not None:
                found = from_report(message.error) if isinstance(message, InputUnread) else message
                self._answered(message.read, found)
        except BaseException as error:  # raised in the task's thread, where somebody waits
            ended = error
        with self._lock:
            self._ended = True
            for answer in self._answers.values():
                answer.found = ended if isinstance(ended, CortexError | MemoryError) else _cut_off(ended)
            self._answers.clear()
            self._lock.notify_all()

    def _answered(self, read: int, found: InputBytes | InputLocated | BaseException) -> None:
        with self._lock:
            answer = self._answers.pop(read, None)
            if answer is not None:  # else nobody waits for it any more
                answer.found = found
                self._lock.notify_all()


def _cut_off(error: BaseException) -> InternalError:
    return InternalError(
        f"the way to the client's files is cut off: {error}",
        cure="the node's log may say why",
        signature="client-input",
    )

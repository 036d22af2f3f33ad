"""Reads of input on their way from many askers to the one who has the bytes, or is nearer to who has.

Pure bookkeeping, the same in a node (executors ask, the server is nearer) and in the server (nodes ask, the
job's client has them). An asker's reads are passed on in its order, askers take turns; only so much is asked
for at once as whoever passes the answers back can hold: a read is its own credit. While the way is down reads
wait, and those without an answer are passed on again when it is up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from cortex.limits import INPUT_READS_MAX
from cortex.wire.messages import ReadInput

A = TypeVar("A", bound=Hashable)


@dataclass
class _Sent(Generic[A]):
    asker: A | None
    """None: it wants the answer no more."""
    read: ReadInput


class ReadQueue(Generic[A]):
    """`send(read)` passes one on, under a number out of `numbers`. At most `bytes_max` are asked for at once,
    or a single read, and no more than `reads_max` reads. `up`: the way is there."""

    def __init__(
        self,
        numbers: Iterator[int],
        send: Callable[[ReadInput], None],
        bytes_max: int,
        *,
        up: bool = True,
        reads_max: int = INPUT_READS_MAX,
    ) -> None:
        self._reads_max = reads_max
        self._numbers = numbers
        self._send = send
        self._bytes_max = bytes_max
        self._is_up = up
        self._waiting: dict[A, deque[ReadInput]] = {}
        self._turns: deque[A] = deque()
        self._sent: dict[int, _Sent[A]] = {}
        self.bytes_asked = 0
        """Of all reads that were passed on and are not answered."""

    def ask(self, asker: A, read: ReadInput) -> None:
        self._put(asker, read)
        self._go_on()

    def answered(self, number: int) -> tuple[A, ReadInput] | None:
        """Who asked, and what it asked for; None where nobody waits for it (any more)."""
        sent = self._sent.pop(number, None)
        if sent is None:
            return None
        self.bytes_asked -= sent.read.length
        self._go_on()
        return None if sent.asker is None else (sent.asker, sent.read)

    def drop(self, asker: A) -> None:
        """It wants nothing more. What was passed on counts until it is answered: the bytes are coming."""
        if self._waiting.pop(asker, None) is not None:
            self._turns.remove(asker)
        for sent in self._sent.values():
            if sent.asker == asker:
                sent.asker = None

    def close_job(self, job: str) -> None:
        """Nobody answers reads of this job any more: what was passed on of them counts no longer."""
        for number in [number for number, sent in self._sent.items() if sent.read.job == job]:
            self.bytes_asked -= self._sent.pop(number).read.length
        for asker in list(self._waiting):
            kept = deque(read for read in self._waiting[asker] if read.job != job)
            if kept:
                self._waiting[asker] = kept
            else:
                del self._waiting[asker]
                self._turns.remove(asker)
        self._go_on()

    @property
    def unanswered(self) -> int:
        """Reads that were passed on."""
        return len(self._sent)

    def drain(self) -> list[tuple[A, ReadInput]]:
        """Everything that is wanted and not answered, each asker's in its order: none of it is here any
        more."""
        self.down()
        drained = [(asker, read) for asker in self._turns for read in self._waiting[asker]]
        self._waiting.clear()
        self._turns.clear()
        return drained

    def down(self) -> None:
        """The way is gone, and every answer that was on it."""
        self._is_up = False
        lost, self._sent, self.bytes_asked = list(self._sent.values()), {}, 0
        for sent in reversed(lost):
            if sent.asker is not None:
                self._put(sent.asker, sent.read, first=True)

    def up(self) -> None:
        self._is_up = True
        self._go_on()

    def _put(self, asker: A, read: ReadInput, first: bool = False) -> None:
        waiting = self._waiting.get(asker)
        if waiting is None:
            waiting = self._waiting[asker] = deque()
            self._turns.append(asker)
        if first:
            waiting.appendleft(read)
        else:
            waiting.append(read)

    def _go_on(self) -> None:
        while self._is_up and self._turns and len(self._sent) < self._reads_max:
            asker = self._turns[0]
            waiting = self._waiting[asker]
            read = waiting[0]
            if self.bytes_asked and self.bytes_asked + read.length > self._bytes_max:
                return
            waiting.popleft()
            self._turns.popleft()
            if waiting:
                self._turns.append(asker)
            else:
                del self._waiting[asker]
            number = next(self._numbers)
            self._sent[number] = _Sent(asker, read)
            self.bytes_asked += read.length
            self._send(msgspec.structs.replace(read, read=number))

"""What calls print, told to the client as theirs, and written to the executor's log as ever.

`sys.stdout` and `sys.stderr` are wrapped while a worker serves. What subprocesses and C code write goes to
the log alone. Nothing is done for a call that prints nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from cortex.limits import PRINTED_BYTES_MAX, PRINTED_S
from cortex.wire.messages import CallPrinted

Whose = Callable[[], tuple[str, int, bool, str] | None]
"""Function, number, nesting and name of the call in hand; None: no call is."""


class PrintedCalls:
    """`say` sends; `whose` is asked in the thread that prints."""

    def __init__(self, job: str, whose: Whose, say: Callable[[CallPrinted], None]) -> None:
        self._job = job
        self._whose = whose
        self._say = say
        self._lock = threading.RLock()
        self._texts: list[str] = []
        self._of: tuple[str, int, bool, str] | None = None
        """Whose texts these are."""
        self._size = 0
        """Characters that this call has printed in all."""
        self._left_out = 0
        self._due = 0.0
        self._process = os.getpid()
        self._streams: tuple[TextIO, TextIO] | None = None

    def begin(self) -> None:
        self._streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (_Tee(each, self._printed) for each in self._streams)

    def end(self) -> None:
        self.tell()
        if self._streams is not None:
            sys.stdout, sys.stderr = self._streams

    def tell_due(self) -> None:
        """From time to time, from any thread: say what a call printed a while ago and still runs."""
        if self._texts and time.monotonic() >= self._due:
            self.tell(ended=False)

    def tell(self, *, ended: bool = True) -> None:
        """Say what was printed and not said yet. `ended`: the call's result is next."""
        with self._lock:
            if self._of is None or not (self._texts or (ended and self._left_out)):
                return
            function, call, nested, name = self._of
            text = "".join(self._texts).encode("utf-8", "backslashreplace").decode()  # as the log has it
            if ended and self._left_out:
                text += f"... ({self._left_out} more characters printed by this call)\n"
                self._left_out = 0
            self._texts.clear()
            self._say(CallPrinted(self._job, function, call, nested, text, name))

    def _printed(self, text: str) -> None:
        whose = self._whose()
        if whose is None or not text or os.getpid() != self._process:  # of a process that a call has forked
            return
        with self._lock:
            if whose != self._of:
                self.tell()
                self._of, self._size, self._left_out = whose, 0, 0
            room = PRINTED_BYTES_MAX - self._size
            self._size += len(text)
            self._left_out += len(text) - max(0, min(room, len(text)))
            if room > 0:
                if not self._texts:
                    self._due = time.monotonic() + PRINTED_S
                self._texts.append(text[:room])
                self.tell_due()


class _Tee:
    """A text stream that another one hears, too. What it does not know is the stream's."""

    def __init__(self, stream: TextIO, heard: Callable[[str], None]) -> None:
        self._stream = stream
        self._heard = heard

    def write(self, text: str) -> int:
        count = self._stream.write(text)
        self._heard(text)
        return count

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def close(self) -> None:
        """A call that closes it harms no other."""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

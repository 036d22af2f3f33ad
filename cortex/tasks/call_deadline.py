"""The limit of a call's time, for code that keeps the interpreter to itself, as a regular expression may. No
thread of Python's runs meanwhile, so one of C's ends the process (that of `faulthandler`), a little
later than `CallWatch` would; its node reads in what it has written that this is what happened.

Of one executor. The owner's lock is held in all of it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import threading

from cortex.limits import CALL_KEPT_S, MIB

_STDERR = 2  # the executor's file
_STACK_BYTES = MIB  # the default of 8 MB counts against RLIMIT_DATA


class CallDeadline:
    """`begin` and `end` are said by the thread that runs calls, around those that have a limit; `renew`, by
    another, shows that it is not kept from running."""

    def __init__(self) -> None:
        self._counts = False

    def begin(self, timeout_s: float) -> None:
        self._counts = True
        self.renew(timeout_s)

    def renew(self, left_s: float) -> None:
        """The call in hand has so much time left; 0 or less: it is about to be ended."""
        if not self._counts:
            return
        before = threading.stack_size(_STACK_BYTES)
        try:
            with contextlib.suppress(RuntimeError):  # no room for a thread: `CallWatch` is there all the same
                faulthandler.dump_traceback_later(max(0.0, left_s) + CALL_KEPT_S, exit=True, file=_STDERR)
        finally:
            threading.stack_size(before)

    def end(self) -> None:
        if self._counts:
            self._counts = False
            faulthandler.cancel_dump_traceback_later()

"""What holds for every test."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background (a CI job, say) with SIGINT ignored, and every child inherits
    # that: Ctrl-C, which tests send to the processes they start, would do nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)

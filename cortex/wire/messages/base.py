"""The base of all messages, and what several links say."""

from __future__ import annotations

import msgspec

from cortex.errors import ErrorReport


class Message(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Base: the class's name is the tag on the wire. Plain data, so the garbage collector need not look for
    cycles through it: a server holds tens of thousands, and would stand still for it."""


Counters = dict[str, dict[str, int]]
"""group -> name -> count."""


class Refused(Message, frozen=True):
    """The request cannot be served; the connection is closed after it."""

    error: ErrorReport

"""Client - the child process that holds server and node of one machine."""

from __future__ import annotations

from typing import Union

from cortex.wire.messages.base import Message, Refused


class EmbeddedSetup(Message, frozen=True):
    """What the session is to be: the first and only message on the child's standard input.

    The client names the two folders (which the child makes and removes), so that it can remove them
    wherever in its work the child was killed. 0 `memory_bytes` or `slots`: what the machine has.
    """

    memory_bytes: int
    slots: int
    runtime_dir: str
    work_dir: str
    task_silence_s_max: float


class EmbeddedReady(Message, frozen=True):
    """Server and node answer at `socket_path`."""

    socket_path: str
    runtime_dir: str
    work_dir: str
    slots: int
    memory_bytes: int


FromEmbedded = Union[EmbeddedReady, Refused]  # noqa: UP007

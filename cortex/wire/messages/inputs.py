"""Executor - node - server - client, and node - node: bytes of input that is not at hand."""

from __future__ import annotations

from typing import Annotated, Union

import msgspec

from cortex.errors import ErrorReport
from cortex.limits import INPUT_FIND_BYTES, INPUT_READ_BYTES
from cortex.wire.messages.base import Message


class ReadInput(Message, frozen=True):
    """`length` bytes of a file of the client's or of a node's data from `offset` on. Answered with
    `InputBytes` (fewer only where the file ends) or `InputUnread`. None: only see that it is still the file
    that the job began with, and, with `find`, how far from `offset` on that byte does not occur, within
    `find_bytes`.

    A read stands for itself: whoever passes it on numbers it anew, and asks again where the way was cut.
    """

    read: int
    """The asker's number, which the answer repeats."""
    job: str
    file: int
    """The id of a `ClientFile`: nobody is sent a path to open."""
    offset: Annotated[int, msgspec.Meta(ge=0)]
    length: Annotated[int, msgspec.Meta(ge=0, le=INPUT_READ_BYTES)]
    find: Annotated[bytes, msgspec.Meta(max_length=1)] = b""
    find_bytes: Annotated[int, msgspec.Meta(ge=0, le=INPUT_FIND_BYTES)] = 0


class InputBytes(Message, frozen=True):
    read: int
    data: bytes
    without: int = 0
    """Of a read that was to `find` a byte: there is none in so many."""
    from_node: bool = False
    """A node sent it, not the client: as an executor is told by its own node."""


class InputUnread(Message, frozen=True):
    """Asking again is of no use."""

    read: int
    error: ErrorReport


class LocateInput(Message, frozen=True):
    """Does this node have the file of this id? Answered with `InputLocated`."""

    read: int
    job: str
    file: int


class InputLocated(Message, frozen=True):
    """It lies at `path` on this machine, and is the job's while it has this time and inode; "": it does
    not."""

    read: int
    path: str = ""
    modified_ns: int = 0
    inode: int = 0


class InputHello(Message, frozen=True):
    """An executor's first message on the socket for input."""

    job: str


ToInputDoor = Union[InputHello, ReadInput, LocateInput]  # noqa: UP007
FromInputDoor = Union[InputBytes, InputUnread, InputLocated]  # noqa: UP007
FromInputServer = Union[InputBytes, InputUnread]  # noqa: UP007
"""A node's answers to another node, which reads what lies below its data roots: to `ReadInput`."""

"""``cortex put``: client - server, and server - node.

The client offers part after part, the server has a node keep each, and the node reads it from the client, as
it would the client's input (`ReadInput`: the put's id stands for a job's, the part's number for a file's).
Nothing has its name before all parts are kept and the client says so. A put is its connection's: it is given
up with it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from cortex.errors import ErrorReport
from cortex.ids import PUT_ID
from cortex.job.put_names import ENDING, PUT_NAME
from cortex.limits import PUT_COPIES_MAX, PUT_PARTS_MAX
from cortex.wire.messages.base import Message

PutId = Annotated[str, msgspec.Meta(pattern=PUT_ID)]
PutName = Annotated[str, msgspec.Meta(pattern=PUT_NAME)]
Ending = Annotated[str, msgspec.Meta(pattern=ENDING)]
PartNumber = Annotated[int, msgspec.Meta(ge=0, lt=PUT_PARTS_MAX)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Size = Annotated[int, msgspec.Meta(ge=0)]

# --- client - server ---


class BeginPut(Message, frozen=True):
    """I will offer the parts of a file, to be known as `name`. Answered with `PutBegun`, or refused."""

    name: PutName
    ending: Ending
    overwrite: bool = False
    copies: Annotated[int, msgspec.Meta(ge=1, le=PUT_COPIES_MAX)] = 1


class PutBegun(Message, frozen=True):
    put: str
    nodes: tuple[str, ...]
    """That may be given parts."""


class OfferPart(Message, frozen=True):
    """I answer reads of this part now, until `PartKept`. At most PUT_PARTS_AT_ONCE are offered at once."""

    part: PartNumber
    size_bytes: Size
    sha256: Sha256


class PartKept(Message, frozen=True):
    """As many nodes as asked have the part on their disks."""

    part: int
    nodes: tuple[str, ...]


class PartGone(Message, frozen=True):
    """A node that had the part is lost: offer it again."""

    part: int


class FinishPut(Message, frozen=True):
    """There are so many parts, and all are kept. Answered with `PutDone`; or some are lost meanwhile
    (`PartGone`), and this is to be said again."""

    parts: Annotated[int, msgspec.Meta(ge=1, le=PUT_PARTS_MAX)]


class PutDone(Message, frozen=True):
    """Every part has its name."""

    nodes: dict[str, tuple[int, ...]]
    """Node -> its parts."""


# --- server - node ---


class OpenPut(Message, frozen=True):
    """Parts of a put may come. Answered with `PutOpened`."""

    put: PutId
    name: PutName
    overwrite: bool


class PutOpened(Message, frozen=True):
    node: str
    put: str
    free_bytes: int = 0
    """That parts may take."""
    error: ErrorReport | None = None
    """Why this node can take none."""


class KeepPart(Message, frozen=True):
    """Read this part of the client, and have it on the disk, checked. Answered with `PartStored`."""

    put: PutId
    part: PartNumber
    size_bytes: Size
    sha256: Sha256


class PartStored(Message, frozen=True):
    node: str
    put: str
    part: int
    error: ErrorReport | None = None


class NameParts(Message, frozen=True):
    """All parts are kept, there are so many: give those here their names. Answered with `PartsNamed`; nodes
    without any only remove what the put replaces."""

    put: PutId
    parts: Annotated[int, msgspec.Meta(ge=1, le=PUT_PARTS_MAX)]
    ending: Ending


class PartsNamed(Message, frozen=True):
    node: str
    put: str
    error: ErrorReport | None = None


class EndPut(Message, frozen=True):
    """It is done; or, with `undo`, given up: remove all of it that is here."""

    put: PutId
    undo: bool

"""One ``cortex put``: which node keeps which part, and when parts get their names. Pure.

    OPENING --nodes have answered--> TAKING --client: that is all--> NAMING --nodes have named--> DONE
    each of the first three --error, or the client is gone--> FAILED

Parts are spread evenly by bytes over the nodes that have room. A node whose disk does not take a part, or
nothing of it for PUT_STALL_S, gets no more, and keeps what it has; parts of a lost node are asked of the
client again. Before DONE everything can be undone, and FAILED says that it is.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cortex.errors import (
    CortexError,
    InputChanged,
    InputError,
    InternalError,
    OutputExistsError,
    PartDamaged,
    ProtocolError,
    PutFailed,
    from_report,
)
from cortex.limits import PUT_OPEN_S_MAX, PUT_PART_TRIES_MAX, PUT_PARTS_AT_ONCE, PUT_STALL_S
from cortex.units import counted, format_bytes
from cortex.wire.messages import (
    BeginPut,
    EndPut,
    FinishPut,
    KeepPart,
    Message,
    NameParts,
    OfferPart,
    OpenPut,
    PartGone,
    PartKept,
    PartsNamed,
    PartStored,
    PutBegun,
    PutDone,
    PutOpened,
    Refused,
)

Say = tuple[str, Message]
"""To a node; "" is the client. `Refused` is the last that it hears."""
_OF_THE_CLIENT: Final = (InputError.code, InputChanged.code)  # what another node would not read better


class PutState(enum.Enum):
    OPENING = "opening"
    TAKING = "taking"
    NAMING = "naming"
    DONE = "done"
    FAILED = "failed"


class PutEvent(enum.Enum):
    ANSWERED = "have its nodes"
    ALL_OFFERED = "have all its parts"
    NAMED = "have its names"
    FAIL = "fail"


TRANSITIONS: Final[dict[tuple[PutState, PutEvent], PutState]] = {
    (PutState.OPENING, PutEvent.ANSWERED): PutState.TAKING,
    (PutState.TAKING, PutEvent.ALL_OFFERED): PutState.NAMING,
    (PutState.NAMING, PutEvent.NAMED): PutState.DONE,
    (PutState.OPENING, PutEvent.FAIL): PutState.FAILED,
    (PutState.TAKING, PutEvent.FAIL): PutState.FAILED,
    (PutState.NAMING, PutEvent.FAIL): PutState.FAILED,
}


@dataclass
class Room:
    """Of a node that takes parts."""

    free_bytes: int
    given_bytes: int = 0


def choose(rooms: Mapping[str, Room], size_bytes: int, without: Container[str]) -> str | None:
    """The node for one more part: of those with room, the one that was given least, then the one with most
    room. None: there is none."""
    able = [(name, room) for name, room in rooms.items() if name not in without]
    able = [(name, room) for name, room in able if room.free_bytes >= size_bytes]
    if not able:
        return None
    return min(able, key=lambda each: (each[1].given_bytes, -each[1].free_bytes, each[0]))[0]


@dataclass
class _Part:
    size_bytes: int
    sha256: str
    holders: set[str] = field(default_factory=set)
    reading: set[str] = field(default_factory=set)
    """Nodes that are reading it."""
    damaged_at: set[str] = field(default_factory=set)
    tries: int = 0


class PutRun:
    """`begin` first; each method gives what is to be said. ProtocolErrors are the client's fault."""

    def __init__(self, put: str, request: BeginPut, nodes: Iterable[str], now: float) -> None:
        self.put = put
        self.request = request
        self.state = PutState.OPENING
        self._waiting = set(nodes)
        """Nodes whose answer is missing, to `OpenPut` or `NameParts`."""
        self._answer_until = now + PUT_OPEN_S_MAX
        self._here: set[str] = set(self._waiting)
        """Nodes that were told of it and are not lost."""
        self._rooms: dict[str, Room] = {}
        self._out: dict[str, CortexError] = {}
        """Nodes that take no (more) parts."""
        self._parts: dict[int, _Part] = {}
        self._offered: set[int] = set()
        """Of these the client answers reads."""
        self._acts: Counter[str] = Counter()
        """Node -> how often it has shown that its disk takes something."""
        self._quiet: dict[str, tuple[int, float]] = {}
        """Node that is reading -> (what it had shown, since when it has shown no more)."""

    @property
    def ended(self) -> bool:
        return self.state in (PutState.DONE, PutState.FAILED)

    def begin(self) -> list[Say]:
        if not self._waiting:
            return self.fail(
                PutFailed(
                    "no node has a data root to keep parts in",
                    cure="start nodes with a folder for data: cortex node --data DIR",
                )
            )
        name, overwrite = self.request.name, self.request.overwrite
        return [(node, OpenPut(self.put, name, overwrite)) for node in sorted(self._here)]

    def tick(self, now: float, owed: Callable[[str], bool]) -> list[Say]:
        """Nodes that do not answer are done without, and so are those that have what they asked for and do
        nothing with it: `owed(node)` tells whether reads of its are unanswered."""
        if self.state is PutState.OPENING and now >= self._answer_until:
            for node in self._waiting:
                self._out[node] = PutFailed(f"it did not answer in {PUT_OPEN_S_MAX:g} s")
            self._waiting.clear()
            return self._all_answered()
        reading = {node for number in self._offered for node in self._parts[number].reading}
        at_work = self._waiting if self.state is PutState.NAMING else reading
        self._quiet = {node: quiet for node, quiet in self._quiet.items() if node in at_work}
        said: list[Say] = []
        for node in sorted(at_work):
            acts, since = self._quiet.setdefault(node, (self._acts[node], now))
            if acts != self._acts[node] or owed(node):
                self._quiet[node] = self._acts[node], now
            elif now - since >= PUT_STALL_S and not self.ended:
                said += self._stalled(node)
        return said

    # --- nodes ---

    def opened(self, answer: PutOpened) -> list[Say]:
        if self.state is not PutState.OPENING or answer.node not in self._waiting:
            return []
        self._waiting.discard(answer.node)
        if answer.error is None:
            self._rooms[answer.node] = Room(answer.free_bytes)
        else:
            error = _at(answer.node, from_report(answer.error))
            self._out[answer.node] = error
            if isinstance(error, OutputExistsError):
                return self.fail(error)
        return [] if self._waiting else self._all_answered()

    def stored(self, answer: PartStored) -> list[Say]:
        part = self._parts.get(answer.part)
        if self.state is not PutState.TAKING or part is None or answer.node not in part.reading:
            return []
        part.reading.discard(answer.node)
        self._acts[answer.node] += 1
        if answer.error is None:
            part.holders.add(answer.node)
            if len(part.holders) < self.request.copies:
                return []
            self._offered.discard(answer.part)
            return [("", PartKept(answer.part, tuple(sorted(part.holders))))]
        error = _at(answer.node, from_report(answer.error))
        self._take_back(answer.node, part)
        if error.code in _OF_THE_CLIENT:
            return self.fail(error)
        if isinstance(error, PartDamaged):
            part.damaged_at.add(answer.node)
            part.tries += 1
            if part.tries >= PUT_PART_TRIES_MAX:
                return self.fail(error)
        else:
            self._rooms.pop(answer.node, None)
            self._out[answer.node] = error
        return self._give(answer.part, part)

    def reads(self, node: str) -> None:
        """It asks for more of a part: what it asked for before is on its disk."""
        self._acts[node] += 1

    def named(self, answer: PartsNamed) -> list[Say]:
        if self.state is not PutState.NAMING or answer.node not in self._waiting:
            return []
        if answer.error is not None:
            return self.fail(_at(answer.node, from_report(answer.error)))
        self._waiting.discard(answer.node)
        return self._all_named()

    def node_lost(self, node: str) -> list[Say]:
        if self.ended or node not in self._here:
            return []
        self._here.discard(node)
        self._rooms.pop(node, None)
        self._out[node] = PutFailed(f"node {node} is lost")
        if self.state is PutState.OPENING:
            self._waiting.discard(node)
            return [] if self._waiting else self._all_answered()
        if self.state is PutState.NAMING:
            self._waiting.discard(node)
            if any(node in part.holders for part in self._parts.values()):
                cure = "run cortex put again, with --overwrite if the node has come back with its parts"
                return self.fail(PutFailed(f"node {node} was lost while parts got their names", cure=cure))
            return self._all_named()
        said: list[Say] = []
        for number, part in self._parts.items():
            if node in part.holders:
                part.holders.discard(node)
                if number not in self._offered and len(part.holders) + 1 == self.request.copies:
                    said.append(("", PartGone(number)))
            elif node not in part.reading:
                continue
            part.reading.discard(node)
            if number in self._offered and not self.ended:
                said += self._give(number, part)
        return said

    # --- the client ---

    def offered(self, offer: OfferPart) -> list[Say]:
        part = self._parts.get(offer.part)
        whole = part is not None and len(part.holders) >= self.request.copies
        again = offer.part in self._offered
        if self.state is not PutState.TAKING or whole or again or len(self._offered) >= PUT_PARTS_AT_ONCE:
            raise ProtocolError(f"part {offer.part} was offered out of turn, or with too many others")
        if part is not None and part.sha256 != offer.sha256:
            if part.holders:  # written anew, by another version of a library
                raise ProtocolError(f"part {offer.part} was offered again with other bytes")
            part = None
        if part is None:
            part = self._parts[offer.part] = _Part(offer.size_bytes, offer.sha256)
        self._offered.add(offer.part)
        return self._give(offer.part, part)

    def finish(self, message: FinishPut) -> list[Say]:
        if self.state is not PutState.TAKING or set(self._parts) != set(range(message.parts)):
            raise ProtocolError("a put was finished out of turn, or with parts that were not offered")
        if any(len(part.holders) < self.request.copies for part in self._parts.values()):
            return []  # the client hears of it, and says this again
        self._move(PutEvent.ALL_OFFERED)
        self._waiting = set(self._here)
        naming = NameParts(self.put, message.parts, self.request.ending)
        return [(node, naming) for node in sorted(self._here)]

    def fail(self, error: CortexError) -> list[Say]:
        """All of it is removed."""
        return [*self.give_up(), ("", Refused(error.report()))]

    def give_up(self) -> list[Say]:
        """The client is gone."""
        if self.ended:
            return []
        self._move(PutEvent.FAIL)
        return [(node, EndPut(self.put, undo=True)) for node in sorted(self._here)]

    # --- inside ---

    def _move(self, event: PutEvent) -> None:
        if (self.state, event) not in TRANSITIONS:
            raise InternalError(f"a put that is {self.state.value} cannot {event.value}")
        self.state = TRANSITIONS[self.state, event]

    def _all_answered(self) -> list[Say]:
        if len(self._rooms) < self.request.copies:
            return self.fail(self._no_room(f"{counted(self.request.copies, 'node')} with room needed"))
        self._move(PutEvent.ANSWERED)
        return [("", PutBegun(self.put, tuple(sorted(self._rooms))))]

    def _all_named(self) -> list[Say]:
        if self._waiting:
            return []
        self._move(PutEvent.NAMED)
        nodes: dict[str, list[int]] = {}
        for number, part in sorted(self._parts.items()):
            for node in part.holders:
                nodes.setdefault(node, []).append(number)
        done = PutDone({node: tuple(numbers) for node, numbers in sorted(nodes.items())})
        return [*((node, EndPut(self.put, undo=False)) for node in sorted(self._here)), ("", done)]

    def _give(self, number: int, part: _Part) -> list[Say]:
        """Have as many nodes read the part as are to have it."""
        said: list[Say] = []
        while len(part.holders) + len(part.reading) < self.request.copies:
            without = part.holders | part.reading
            node = choose(self._rooms, part.size_bytes, without | part.damaged_at)
            node = node or choose(self._rooms, part.size_bytes, without)
            if node is None:
                what = f"no node has room for part {number}, of {format_bytes(part.size_bytes)}"
                return said + self.fail(self._no_room(what))
            room = self._rooms[node]
            room.free_bytes -= part.size_bytes
            room.given_bytes += part.size_bytes
            part.reading.add(node)
            said.append((node, KeepPart(self.put, number, part.size_bytes, part.sha256)))
        return said

    def _stalled(self, node: str) -> list[Say]:
        error = PutFailed(f"its disk took nothing for {PUT_STALL_S:g} s", details={"node": node})
        if self.state is PutState.NAMING:
            return self.fail(error)
        self._rooms.pop(node, None)
        self._out[node] = error
        said: list[Say] = []
        for number in sorted(self._offered):
            part = self._parts[number]
            if node in part.reading and not self.ended:
                part.reading.discard(node)
                said += self._give(number, part)
        return said

    def _take_back(self, node: str, part: _Part) -> None:
        room = self._rooms.get(node)
        if room is not None:
            room.free_bytes += part.size_bytes
            room.given_bytes -= part.size_bytes

    def _no_room(self, what: str) -> PutFailed:
        details = {f"free at {node}": format_bytes(room.free_bytes) for node, room in self._rooms.items()}
        details |= {f"node {node}": error.message for node, error in self._out.items()}
        return PutFailed(
            what,
            details=details,
            cure="free space below the nodes' data roots, add nodes with --data, or ask for fewer --copies",
        )


def _at(node: str, error: CortexError) -> CortexError:
    error.details.setdefault("node", node)
    return error

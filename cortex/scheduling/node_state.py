"""A node's life as the scheduler sees it: two tables, and one function that applies both.

Is it here?   HERE --EXPIRE--> SILENT (its leases are over, its link is not) --HEAR--> HERE
              HERE --UNLINK--> AWAY (its link has ended, a moment ago) --RETURN--> HERE
Does it work? WORKING --DRAIN--> DRAINING (finishes what it has) --TIME_OVER--> LEAVING --EMPTY--> LEFT
              DRAINING --EMPTY--> LEFT        DRAINING, LEAVING --UNDO--> WORKING

Each event belongs to one of the two. A node that is lost has no state any more: it is forgotten.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from cortex.errors import InternalError


class Presence(enum.Enum):
    HERE = "here"
    SILENT = "silent"
    AWAY = "away"


class Duty(enum.Enum):
    WORKING = "working"
    DRAINING = "draining"
    LEAVING = "leaving"
    """Its time is over: it only keeps results that exist nowhere else, until their clients have them."""
    LEFT = "left"
    """It was told to end."""


class NodeEvent(enum.Enum):
    EXPIRE = "be silent for too long"
    HEAR = "be heard again"
    UNLINK = "lose its link"
    RETURN = "come back"
    DRAIN = "be drained"
    TIME_OVER = "have had its time"
    UNDO = "be kept after all"
    EMPTY = "have nothing left that is needed"


class NodeState(NamedTuple):
    presence: Presence
    duty: Duty

    @property
    def takes_work(self) -> bool:
        return self.presence is Presence.HERE and self.duty is Duty.WORKING

    @property
    def word(self) -> str:
        """For people: whether it can be reached comes first, then whether it works."""
        if self.presence is not Presence.HERE:
            return str(self.presence.value)
        return "up" if self.duty is Duty.WORKING else str(self.duty.value)


UP: Final = NodeState(Presence.HERE, Duty.WORKING)

PRESENCE_TRANSITIONS: Final[dict[tuple[Presence, NodeEvent], Presence]] = {
    (Presence.HERE, NodeEvent.EXPIRE): Presence.SILENT,
    (Presence.SILENT, NodeEvent.HEAR): Presence.HERE,
    (Presence.HERE, NodeEvent.UNLINK): Presence.AWAY,
    (Presence.AWAY, NodeEvent.RETURN): Presence.HERE,
    (Presence.HERE, NodeEvent.RETURN): Presence.HERE,  # the end of its old link has not reached us
    (Presence.SILENT, NodeEvent.RETURN): Presence.HERE,
}
DUTY_TRANSITIONS: Final[dict[tuple[Duty, NodeEvent], Duty]] = {
    (Duty.WORKING, NodeEvent.DRAIN): Duty.DRAINING,
    (Duty.DRAINING, NodeEvent.DRAIN): Duty.DRAINING,  # with another time
    (Duty.LEAVING, NodeEvent.DRAIN): Duty.DRAINING,
    (Duty.DRAINING, NodeEvent.TIME_OVER): Duty.LEAVING,
    (Duty.WORKING, NodeEvent.UNDO): Duty.WORKING,
    (Duty.DRAINING, NodeEvent.UNDO): Duty.WORKING,
    (Duty.LEAVING, NodeEvent.UNDO): Duty.WORKING,
    (Duty.DRAINING, NodeEvent.EMPTY): Duty.LEFT,
    (Duty.LEAVING, NodeEvent.EMPTY): Duty.LEFT,
}


def next_node_state(state: NodeState, event: NodeEvent) -> NodeState:
    """The tables, and nothing else. Raises InternalError for a transition that neither has."""
    presence = PRESENCE_TRANSITIONS.get((state.presence, event))
    duty = DUTY_TRANSITIONS.get((state.duty, event))
    if presence is None and duty is None:
        raise InternalError(
            f"a node cannot {event.value} when it is {state.presence.value}, {state.duty.value}"
        )
    return NodeState(presence or state.presence, duty or state.duty)

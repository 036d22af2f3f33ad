"""What is written down of a job under way, so that a later life of the server can go on with it.

Records are events as the job saw them, and only those that changed it for good: attempts that ended, nodes
that were given up, parts that could not be read. Told again in the same order to a new `JobRun` they make
the same one (`JobRun.replay`), but for what was leased. Any number of the last ones may be missing: their
attempts count as not ended.
"""

from __future__ import annotations

from cortex.wire.messages import Message, OutputNode, ScanTask, TaskFailed, TaskFinished


class AttemptEnded(Message, frozen=True):
    """An attempt of `node` whose end was accepted: the job counts it."""

    node: OutputNode
    end: TaskFinished | TaskFailed
    at_s: float
    """Seconds after the job was accepted."""
    scan: ScanTask | None = None
    """A scan is told from which state: which is not known from its number."""
    outputs_version: int = 0
    """A reduce: which state of the map outputs it was leased with."""


class NodeGone(Message, frozen=True):
    """What this node had of the job is lost."""

    node: str


class PartGone(Message, frozen=True):
    """This part of the output could not be read at its node."""

    staged_as: str


class MapsDropped(Message, frozen=True):
    """The job was done, and its map outputs are not kept any more."""


JobRecord = AttemptEnded | NodeGone | PartGone | MapsDropped

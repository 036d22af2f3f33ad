"""A job's life: one table of transitions and one function that applies it.

PLANNING --PLANNED--> MAPPING <--MAPPED / MAP_LOST--> REDUCING
MAPPING, REDUCING --OUTPUT_DONE--> DONE       any that has not ended --FAIL--> FAILED, --CANCEL--> CANCELLED
MAPPING, REDUCING --OUTPUT_STAGED--> COMMITTING --OUTPUT_DONE--> DONE: where a node commits the output
PLANNING --OUTPUT_DONE--> DONE                of a job that is its plan
DONE --PART_LOST--> REDUCING, --MAP_LOST--> MAPPING: a node is lost with output that the client lacks
COMPUTING --OUTPUT_DONE--> DONE               of a job that is calls of functions
DONE --FAIL--> FAILED: so it is, and there is nothing left to make it anew from
"""

from __future__ import annotations

import enum

from cortex.errors import InternalError


class JobState(enum.Enum):
    PLANNING = "planning"
    MAPPING = "mapping"
    REDUCING = "reducing"
    COMMITTING = "committing"
    COMPUTING = "computing"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobEvent(enum.Enum):
    PLANNED = "be planned"
    MAPPED = "have all maps done"
    MAP_LOST = "lose a map's output"
    PART_LOST = "lose a part of the output"
    OUTPUT_STAGED = "have all output, to be committed"
    OUTPUT_DONE = "have all output"
    FAIL = "fail"
    CANCEL = "be cancelled"


JOB_TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (JobState.PLANNING, JobEvent.PLANNED): JobState.MAPPING,
    (JobState.PLANNING, JobEvent.OUTPUT_DONE): JobState.DONE,  # its plan is all that was asked for
    (JobState.MAPPING, JobEvent.MAPPED): JobState.REDUCING,
    (JobState.MAPPING, JobEvent.MAP_LOST): JobState.MAPPING,
    (JobState.REDUCING, JobEvent.MAP_LOST): JobState.MAPPING,
    (JobState.MAPPING, JobEvent.OUTPUT_DONE): JobState.DONE,  # map-only, or the reduces had read a lost map
    (JobState.REDUCING, JobEvent.OUTPUT_DONE): JobState.DONE,
    (JobState.MAPPING, JobEvent.OUTPUT_STAGED): JobState.COMMITTING,
    (JobState.REDUCING, JobEvent.OUTPUT_STAGED): JobState.COMMITTING,
    (JobState.COMMITTING, JobEvent.OUTPUT_DONE): JobState.DONE,
    (JobState.MAPPING, JobEvent.PART_LOST): JobState.MAPPING,
    (JobState.REDUCING, JobEvent.PART_LOST): JobState.REDUCING,
    (JobState.DONE, JobEvent.PART_LOST): JobState.REDUCING,
    (JobState.DONE, JobEvent.MAP_LOST): JobState.MAPPING,  # its output, of a map-only job
    (JobState.COMPUTING, JobEvent.OUTPUT_DONE): JobState.DONE,
    (JobState.COMPUTING, JobEvent.FAIL): JobState.FAILED,
    (JobState.COMPUTING, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.DONE, JobEvent.FAIL): JobState.FAILED,
    (JobState.PLANNING, JobEvent.FAIL): JobState.FAILED,
    (JobState.MAPPING, JobEvent.FAIL): JobState.FAILED,
    (JobState.REDUCING, JobEvent.FAIL): JobState.FAILED,
    (JobState.COMMITTING, JobEvent.FAIL): JobState.FAILED,
    (JobState.PLANNING, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.MAPPING, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.REDUCING, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.COMMITTING, JobEvent.CANCEL): JobState.CANCELLED,
}
ENDED = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})


def next_job_state(state: JobState, event: JobEvent) -> JobState:
    """The table, and nothing else. Raises InternalError for a transition that it does not have."""
    try:
        return JOB_TRANSITIONS[state, event]
    except KeyError:
        raise InternalError(f"a job cannot {event.value} when it is {state.value}") from None

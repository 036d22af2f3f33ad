"""Which of a node's map outputs are combined before others fetch them, and whether to go on. Pure.

It is worth it where a job's reduction combines and other nodes fetch: nothing is done before the first of
them asks, so a cluster of one node does none of it. When there are COMBINE_MAPS_MIN outputs that were not
combined yet, they form a group, one at a time; what it saves is measured on the files themselves, and the
first group that saves too little is the last of its job here: its keys differ too much.
A group that could not be made costs nothing but its own work: its members are served one by one, as are all
that never come into a group.

Where values may be joined in map order only, a group is of maps next to each other. Which jobs these are,
only the executor can tell, from what the outputs hold: it says so once, and the node keeps to it.
"""

from __future__ import annotations

from itertools import pairwise

from cortex.ids import JobId, attempt_id, map_attempt, task_id
from cortex.job.spec import JobSpec
from cortex.limits import (
    COMBINE_MAPS_MAX,
    COMBINE_MAPS_MIN,
    COMBINE_NEIGHBOURS_MIN,
    COMBINE_SAVING_MIN,
)
from cortex.wire.messages import CombineResult, CombineTask, RunTask


def combines(spec: JobSpec) -> bool:
    """May map outputs of the job be merged before its reduces?"""
    return spec.reduce_form == "aggregate" or bool(spec.combine)


class Combining:
    """Of one job at one node. `going_on` turns False once and for all; a group in hand may still end."""

    def __init__(
        self,
        job: str,
        maps_min: int = COMBINE_MAPS_MIN,
        neighbours_min: int = COMBINE_NEIGHBOURS_MIN,
        maps_max: int = COMBINE_MAPS_MAX,
        saving_min: float = COMBINE_SAVING_MIN,
    ) -> None:
        self.going_on = True
        self._asked = False
        self._job = job
        self._maps_min = maps_min
        self._neighbours_min = neighbours_min
        self._maps_max = maps_max
        self._saving_min = saving_min
        self._outputs: dict[int, str] = {}
        """Map -> its output, in no group yet."""
        self._neighbours_only = False
        self._in_hand: RunTask | None = None
        self._groups = 0

    def finished(self, attempt: str) -> None:
        """A map's output is here."""
        found = map_attempt(attempt)
        if found is not None and self.going_on:
            self._outputs[found[1]] = attempt

    def asked(self) -> None:
        """Another node asks for map outputs of this one."""
        self._asked = True

    def next_group(self) -> RunTask | None:
        """What to run now, if anything; `made`, `failed` or `dropped` tells of its end."""
        if not (self.going_on and self._asked) or self._in_hand is not None:
            return None
        maps = sorted(self._outputs)
        if self._neighbours_only:
            maps = _longest_neighbours(maps)
        if len(maps) < (self._neighbours_min if self._neighbours_only else self._maps_min):
            return None
        chosen = tuple(self._outputs.pop(index) for index in maps[: self._maps_max])
        name = attempt_id(task_id(JobId(self._job), "c", self._groups), 0)
        self._groups += 1
        self._in_hand = RunTask(name, CombineTask(chosen, self._saving_min))
        return self._in_hand

    def made(self, result: CombineResult) -> tuple[str, ...]:
        """The group in hand has ended. Its members if its file is to be given in their place, else ()."""
        members = self._members()
        if result.neighbours_only:
            self._neighbours_only = True
            for member in members:
                self.finished(member)
            return ()
        if not result.kept:
            self.stop()
            return ()
        return members

    def failed(self) -> None:
        """The group in hand could not be made; nor, most likely, could another one."""
        self._members()
        self.stop()

    def dropped(self) -> None:
        """The group in hand was given up for something more urgent."""
        self._members()

    def stop(self) -> None:
        """No further group: the job's reduces have begun here, or it is not worth it."""
        self.going_on = False
        self._outputs.clear()

    def _members(self) -> tuple[str, ...]:
        assert self._in_hand is not None
        task, self._in_hand = self._in_hand.task, None
        assert isinstance(task, CombineTask)
        return task.members


def _longest_neighbours(maps: list[int]) -> list[int]:
    """Of ascending numbers, the first of the longest runs that have no gap."""
    best, current = list[int](), maps[:1]
    for earlier, later in pairwise(maps):
        if later != earlier + 1:
            best, current = max(best, current, key=len), []
        current.append(later)
    return max(best, current, key=len)

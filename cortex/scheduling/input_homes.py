"""From who has which file to who has what a task reads: the sets and segments of a `Placement`. Pure.

A map of several small files is at home where most of its bytes are. One whose file nobody has any more waits
for its node; what the client has, or a node found by itself, any node reads as well as another.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping

from cortex.job.plan import InputPlan
from cortex.scheduling.placement import ANY, LOST
from cortex.scheduling.scan_chain import Chain
from cortex.scheduling.survey import Survey

Segments = tuple["array[int]", "array[int]"]
"""(first tasks, sets)."""


class InputHomes:
    """Of a plan, as the survey knows it now. `sets` may grow with each call."""

    def __init__(self, plan: InputPlan, survey: Survey) -> None:
        self._plan = plan
        members, set_of_id = survey.sets()
        self.sets: list[tuple[str, ...]] = [(), (), *members[1:]]
        self._numbers = {nodes: number for number, nodes in enumerate(self.sets) if nodes}
        self._of_file = array("I")
        for file in plan.files:
            has = set_of_id[file.client_file] if 0 <= file.client_file < len(set_of_id) else 0
            if has:
                self._of_file.append(has + 1)
            else:
                is_data = file.client_file >= survey.client_files
                self._of_file.append(LOST if is_data else ANY)

    def maps(self) -> Segments:
        """Neighbouring maps of one set make one segment: looked at by file, not by map, where files are
        large."""
        splits, tasks = self._plan.splits, self._plan.tasks
        starts, sets = array("I"), array("I")
        index, count = 0, len(tasks)
        while index < count:
            group = tasks[index]
            after = index + 1
            if not group:
                number = ANY
            elif (end := splits.end_of_file(group.start)) >= group.stop:
                number = self._of_file[splits.file_of(group.start)]
                after = tasks.group_of(end - 1) + (tasks[tasks.group_of(end - 1)].stop == end)
                after = max(after, index + 1)
            else:
                number = self._of_group(group)
            if not sets or sets[-1] != number:
                starts.append(index)
                sets.append(number)
            index = after
        return starts, sets

    def scans(self, chains: Mapping[int, Chain]) -> Segments:
        """By the file's first split, as scan tasks are numbered. `chains`: by file."""
        starts = array("I", (chain.first for chain in chains.values()))
        return starts, array("I", (self._of_file[file] for file in chains))

    def _of_group(self, group: range) -> int:
        size: Counter[str] = Counter()
        known: set[int] = set()
        for split in self._plan.splits[group.start : group.stop]:
            number = self._of_file[split.file]
            known.add(number)
            for node in self.sets[number]:
                size[node] += split.length
        if LOST in known:
            return LOST
        if len(known) == 1:
            return known.pop()
        most = max(size.values(), default=0)
        nodes = tuple(sorted(node for node, count in size.items() if count == most))
        if not nodes:
            return ANY
        number = self._numbers.setdefault(nodes, len(self.sets))
        if number == len(self.sets):
            self.sets.append(nodes)
        return number

"""Who has a job's input, and which of its tasks are whose for it. Pure.

The `Survey` knows which node has which file; here that becomes the `Placement` of the tasks that read, what
nodes are told that read from afar, and the end of a job whose input only nodes have that do not come back.
Placements are made anew when it has become known, or has changed, who has what: none while that does not
matter.

The job says what has happened, asks for `place` where it is told to, and fails by what is raised.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence

from cortex.errors import InputLost
from cortex.job.plan import InputFile, InputPlan
from cortex.limits import HOLDER_RETURN_S, LOST_REDOS_MAX
from cortex.scheduling.input_homes import InputHomes
from cortex.scheduling.leases import MAP, PLAN, SCAN, Node
from cortex.scheduling.placement import ANY, Placement
from cortex.scheduling.scan_chain import Chain
from cortex.scheduling.survey import Survey
from cortex.scheduling.task_state import TaskTable
from cortex.wire.messages import InputFound, InputHolders, PlanMade


class JobInput:
    """`plans`: the table of the one task that makes the plan. `detached`: the client may be gone while the
    job works, so that what it has is not read once there is a plan."""

    def __init__(self, job: str, survey: Survey, plans: TaskTable, detached: bool) -> None:
        self._job = job
        self._survey = survey
        self._detached = detached
        self._tables = {PLAN: plans}
        self._plan: InputPlan | None = None
        self._chains: Mapping[int, Chain] = {}
        self._placements: dict[str, Placement] = {}
        """Of stages whose tasks read input that some nodes have at hand."""
        self._message: tuple[int, InputHolders] | None = None
        """As of which version, one object for all nodes."""
        self._waits_since: float | None = None
        """Since when a map waits for a node that is lost."""
        self._unread: dict[tuple[str, int], int] = {}
        """How often a task found nobody who had its input."""

    # --- what is known ---

    def planned(
        self, plan: InputPlan, maps: TaskTable, scans: TaskTable, chains: Mapping[int, Chain]
    ) -> dict[int, int]:
        """There is a plan. Gives what `place` does."""
        self._survey.planned(plan)
        self._plan, self._chains = plan, chains
        self._tables[MAP], self._tables[SCAN] = maps, scans
        sets = self.place()
        if self._detached:  # from now on files that the client has as well are had of nodes alone
            self._survey.version += 1
        return sets

    def let_go(self, plan: InputPlan) -> None:
        """No task reads any more: this is what is kept of the plan."""
        self._plan, self._chains = plan, {}

    def look_for_files(self, here: Iterable[str], absent: Sequence[Node]) -> bool:
        """True when it has become known which files there are, and there is more to ask. `here`: the nodes
        that were asked; `absent`: others that may have some. Raises InputLost, DataConflict, InputError."""
        if self._survey.data_files is not None:
            return False
        silent = [node.name for node in absent if node.silent]
        if silent:
            raise self._survey.not_listed(silent[0])
        return not absent and self._survey.settle(here)

    def found(self, answer: InputFound, under_way: bool) -> bool:
        """A node has said what it has: True if tasks are to be placed anew. `under_way`: some that read may
        be leased."""
        return self._survey.found(answer) and (under_way or self._survey.settled)  # else more are to come

    def look_for_answers(self, now: float) -> bool:
        """Nodes that are asked what they have, and do not say, are not waited for for ever. True when that
        changed something, and tasks are to be placed anew. Raises InputLost."""
        waited = not self._survey.settled
        self._survey.overdue(now)
        return waited and self._survey.settled

    def holder_lost(self, node: str) -> bool:
        """The node cannot be read from any more: True if tasks are to be placed anew. Raises InputLost."""
        had_some = self._survey.lost(node)
        return had_some or (self._plan is None and self._survey.settled)  # the last that was waited for

    # --- whose tasks are ---

    def place(self) -> dict[int, int]:
        """Say anew which tasks are whose, when that is known or has changed. Gives, of the files that are to
        be scanned, who has them: those with the same number are had by the same nodes."""
        sets_of_scans: dict[int, int] = {}
        if not self._survey.matters:
            return sets_of_scans
        if self._plan is None:
            nodes = self._survey.who_has_most()
            sets = [(), (), nodes]
            starts, set_of = array("I", [0]), array("I", [2 if nodes else ANY])
            self._placements[PLAN] = Placement(self._tables[PLAN], sets, starts, set_of)
            return sets_of_scans
        homes = InputHomes(self._plan, self._survey)
        self._placements[MAP] = Placement(self._tables[MAP], homes.sets, *homes.maps())
        if self._chains:
            starts, set_of = homes.scans(self._chains)
            self._placements[SCAN] = Placement(self._tables[SCAN], homes.sets, starts, set_of)
            sets_of_scans = dict(zip(self._chains, set_of))
        return sets_of_scans

    def placement(self, stage: str) -> Placement | None:
        """None: any node is as good as another."""
        return self._placements.get(stage)

    def waits_for_lost(self, stage: str) -> int:
        """Tasks of the stage that are ready, and wait for a node that is lost."""
        placement = self._placements.get(stage)
        return 0 if placement is None else placement.lost_count

    # --- what is told of it ---

    def holders(self, version: int, nodes: Mapping[str, Node]) -> InputHolders | None:
        """What a node is to be told that reads input from afar, and knows the state of this version."""
        survey = self._survey
        if version == survey.version:
            return None
        if self._message is not None and self._message[0] == survey.version:
            return self._message[1]
        members, set_of = survey.sets()
        numbers = {name: number for number, name in enumerate(sorted({n for each in members for n in each}))}
        holders = tuple(nodes[name].output_node for name in numbers if name in nodes)
        place = {each.node: number for number, each in enumerate(holders)}
        sets = tuple(tuple(place[name] for name in each if name in place) for each in members)
        packed = struct.pack(f"<{len(set_of)}I", *set_of)
        no_client = self._detached and self._plan is not None
        message = InputHolders(self._job, holders, sets, packed, 0 if no_client else survey.client_files)
        self._message = survey.version, message
        return message

    def plan_made(self) -> PlanMade:
        """The plan, for who asked for no more."""
        assert self._plan is not None
        members, set_of = self._survey.sets()
        ids = [file.client_file for file in self._plan.files]
        places = [set_of[number] if 0 <= number < len(set_of) else 0 for number in ids]
        client = "".join("1" if 0 <= number < self._survey.client_files else "0" for number in ids)
        return PlanMade(self._job, self._plan, tuple(members), tuple(places), client)

    # --- input that nobody has ---

    def look_for_holders(self, mapping: bool, now: float) -> None:
        """Raises InputLost if a map, or a scan before it, has waited too long for the only node with its
        input. `mapping`: there are some to be run."""
        files = self._files_lost() if mapping else []
        if not files:
            self._waits_since = None
            return
        if self._waits_since is None:
            self._waits_since = now
        if now - self._waits_since >= HOLDER_RETURN_S:
            raise self._lost(files)

    def _files_lost(self) -> list[InputFile]:
        """Those of a task that waits for a node that is lost, the node's among them; none if no task does."""
        assert self._plan is not None
        plan, maps, scans = self._plan, self._placements.get(MAP), self._placements.get(SCAN)
        if maps is not None and maps.lost is not None:
            splits = plan.tasks[maps.lost]
            return [plan.files[split.file] for split in plan.splits[splits.start : splits.stop]]
        if scans is not None and scans.lost is not None:
            return [plan.files[plan.splits.file_of(scans.lost)]]
        return []

    def _lost(self, files: list[InputFile]) -> InputLost:
        members, set_of = self._survey.sets()
        gone = next((f for f in files if f.client_file >= 0 and not members[set_of[f.client_file]]), files[0])
        node = self._survey.lost_with(gone.client_file)
        return InputLost(
            f"{gone.path} lies on node {node or 'none that is here'}, which is lost",
            details={"file": gone.path, "waited": f"{HOLDER_RETURN_S:g} s"},
            cure="start that node again with its data (cortex node --data DIR), or put a copy below the"
            " data root of another one; then run the job again",
        )

    def may_try_again(self, stage: str, index: int) -> bool:
        """A task found nobody who had its input: its holder is lost, as we may not know yet, or cut off from
        there. That costs no attempt, but it is not tried for ever."""
        key = stage, index
        self._unread[key] = self._unread.get(key, 0) + 1
        return self._unread[key] <= LOST_REDOS_MAX

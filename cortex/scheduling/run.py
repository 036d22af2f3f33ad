"""What all jobs have in common on their way, whatever they do: which nodes can run them, and how they end.

A kind of job (`cortex.scheduling.job_run` MapReduce, `cortex.scheduling.compute_run` calls of functions) says
which task is next and what a result means. Here are the Scheduler's questions to either, with the answers of
a job that has no input, no map outputs and no parts of a result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cortex.errors import ErrorReport, Fault, InternalError
from cortex.ids import AttemptId, JobId
from cortex.job.plan import InputPlan
from cortex.limits import ATTEMPTS_PER_LIFE, LEASE_S
from cortex.memory_plan import job_slots, too_large
from cortex.scheduling.job_state import ENDED, JobEvent, JobState, next_job_state
from cortex.scheduling.leases import Node, Running
from cortex.scheduling.progress import Progress
from cortex.scheduling.records import JobRecord
from cortex.scheduling.survey import Survey
from cortex.wire.messages import (
    DataListed,
    FetchAhead,
    FindInput,
    InputFound,
    InputHolders,
    JobPlanned,
    ListData,
    Locality,
    MapLocations,
    OutputNode,
    OutputPart,
    PlanMade,
    StartJob,
    SubmitJob,
    TaskFailed,
    TaskFinished,
    TaskProgress,
)

_UNFIT_SHOWN = 10  # nodes that a report or an error names one by one


class Run(ABC):
    """`state` tells how far it is; once FAILED or CANCELLED, `error` says why.

    `lives`: those of the server that have worked at the job before this one; `replay` what they wrote down.
    """

    serves = False
    """Its tasks are workers, which end when they are told to: none is leased to wait for another's slot."""
    map_only = True

    def __init__(self, job: JobId, request: SubmitJob, now: float, state: JobState, lives: int = 0) -> None:
        self.job = job
        self.request = request
        self.began_at = now
        self.state = state
        self.error: ErrorReport | None = None
        self.progress = Progress()
        self.memory_peak_bytes = 0
        self.maps_dropped = False
        """It is done, and only its result is kept: what is lost of that is lost for good."""
        self.was_done = False
        """Its client was told so once."""
        self.plan: InputPlan | None = None
        self.planned_message: JobPlanned | None = None
        """One object for all nodes, as `start_message` is: it may be large, and need be encoded only once."""
        self._start_message: StartJob | None = None
        self.commits = request.spec.output.at == "nodes" and bool(request.staging_dir)
        """A node commits the output, which lies where all nodes see it."""
        self.held_back = False
        """Nothing is leased: what nodes hold of it is not known yet."""
        self.running: dict[AttemptId, Running] = {}
        self.unfit: dict[str, ErrorReport] = {}
        """Nodes that cannot run this job at all, and why."""
        self._unfit_notes: dict[str, str] = {}
        """Of those nodes, and of those that were so in an earlier life."""
        self._unfit_since: float | None = None
        """Since when there is no node that can."""
        self._revoked: list[Running] = []
        self.survey = Survey(job, request.spec.input, request.client_files)
        self.locality = Locality()
        self._first_number = lives * ATTEMPTS_PER_LIFE

    def hold_back(self) -> None:
        """Lease nothing until it is known what nodes hold, which `place` says."""
        self.held_back = True

    @property
    def is_elsewhere(self) -> bool:
        """Its output is where no node's loss reaches it: nothing is needed any more once it is done."""
        return bool(self.request.staging_dir)

    # --- what a kind of job says ---

    @property
    @abstractmethod
    def openings(self) -> int:
        """Changes when there is something new to lease."""

    @abstractmethod
    def next_task(self, node: Node, slots: int, now: float) -> Running | None:
        """Lease the next task to `node`, if one can run now; `slots` is how many all nodes have."""

    @abstractmethod
    def resume(self, attempt: str, node: OutputNode, version: int | None, now: float) -> Running | None:
        """An earlier life of the server has leased this attempt to `node`: it is leased still. None if its
        task is not ready."""

    @abstractmethod
    def replay(self, record: JobRecord) -> None:
        """What an earlier life wrote down, in its order. Raises InternalError for what does not follow."""

    @abstractmethod
    def ready_tasks(self, slots: int) -> int:
        """How many could be leased now; more than `slots` need not be counted."""

    @abstractmethod
    def has_ready(self, slots: int) -> bool: ...

    @property
    @abstractmethod
    def tasks_waiting(self) -> int: ...

    @abstractmethod
    def finished(self, running: Running, done: TaskFinished, now: float) -> None: ...

    @abstractmethod
    def failed(self, running: Running, failed: TaskFailed, now: float) -> None:
        """An attempt has ended badly: what it was for is done again, or the job ends."""

    @abstractmethod
    def abandoned(self, running: Running) -> None:
        """The attempt is over through no fault of its own (its node is lost): it costs no attempt."""

    @abstractmethod
    def totals(self) -> tuple[list[int], list[int]]:
        """Sums (`progress.FIELDS`) of what took the input, and of what gave the output."""

    def heard(self, running: Running, progress: TaskProgress) -> None:
        """A heartbeat tells how far an attempt is."""

    # --- input ---

    def ask(self, node: str) -> ListData | FindInput | None:
        """What a node with data roots is to be asked now."""
        return None

    def listed(self, answer: DataListed) -> None:
        """A node has said what its data names stand for."""

    def look_for_data(self, here: Iterable[str], absent: Sequence[Node]) -> bool:
        """True when it has become known which files there are, and there is more to ask."""
        return False

    def found(self, answer: InputFound) -> None:
        """A node has said what it has."""

    def look_for_answers(self, now: float) -> bool:
        """True when something has changed because nodes do not answer."""
        return False

    def holder_lost(self, node: str) -> None:
        """The node cannot be read from any more."""

    def place(self) -> None:
        """Say anew which tasks are whose, when that is known or has changed."""

    def input_holders(self, version: int, nodes: Mapping[str, Node]) -> InputHolders | None:
        """What a node is to be told that reads input from afar, and knows the state of this version."""
        return None

    def plan_made(self) -> PlanMade:
        """The plan, for who asked for no more."""
        raise InternalError(f"job {self.job} has no plan")

    def may_read_from_afar(self, running: Running) -> bool:
        return False

    def look_for_holders(self, now: float) -> None:
        """Fail if a task has waited too long for the only node with its input."""

    # --- map outputs and parts ---

    def locations(self, version: int, nodes: int) -> MapLocations | None:
        """What a node has to be told before a reduce."""
        return None

    def locations_known(self) -> tuple[int, int]:
        return 0, 0

    def prefetch(self, nodes: Sequence[Node]) -> list[tuple[Node, FetchAhead, MapLocations]]:
        """What nodes are to fetch while maps run."""
        return []

    def node_lost(self, node: str) -> None:
        """What lies on `node` is gone."""
        self.unfit.pop(node, None)  # when it is back, it may be fit

    def needs_of(self, node: str) -> str:
        """What a node that is drained has to stay for, in words; "" for nothing."""
        return ""

    def leave_node(self, node: str) -> None:
        """A node is drained."""

    def part_lost(self, staged_as: str) -> None:
        """What lies on a node, which lives, cannot be read there."""

    def drop_maps(self) -> None:
        """Only the result is kept from now on."""

    def parts(self) -> tuple[OutputPart, ...]:
        """In output order."""
        return ()

    # --- nodes ---

    def start_message(self, progress_s: float) -> StartJob:
        """What a node is sent before anything else of the job."""
        message, request = self._start_message, self.request
        if message is None or message.progress_s != progress_s:
            message = self._start_message = StartJob(
                self.job,
                request.spec,
                request.code,
                request.sys_path,
                request.staging_dir,
                progress_s,
                request.bundle,
            )
        return message

    def cannot_run_on(self, node: str, error: ErrorReport) -> None:
        self.unfit[node] = error
        self._unfit_notes[node] = f"{error.message}: the job went on without it; {error.cure}"

    def look_for_fit_nodes(self, nodes: Iterable[str], now: float, *, wait: bool) -> None:
        """Fail if none of `nodes` can run the job; with `wait` only when that was so for LEASE_S: one that
        could may be back."""
        if self.ended or not self.unfit or any(node not in self.unfit for node in nodes):
            self._unfit_since = None
            return
        if self._unfit_since is None:
            self._unfit_since = now
        if wait and now - self._unfit_since < LEASE_S:
            return
        last = next(reversed(self.unfit.values()))
        others = list(self.unfit.items())[:-1]
        shown = {name: error.message for name, error in others[:_UNFIT_SHOWN]}
        if len(others) > _UNFIT_SHOWN:
            shown["and"] = f"{len(others) - _UNFIT_SHOWN} more nodes"
        self.fail(msgspec.structs.replace(last, details={**last.details, **shown}, fault=Fault.FATAL.value))

    def meet(self, node: Node) -> None:
        """A node is there that has less memory than the job says: it does not run there."""
        wanted, has = self.request.spec.resources.memory_bytes, node.hello.memory_bytes
        if node.hello.data_address and wanted > has:
            self.cannot_run_on(node.name, too_large(wanted, has, node.name).report())

    def slots_at(self, node: Node) -> int:
        """Slots that it may have there at once: its tasks share the memory that it says."""
        memory_bytes = self.request.spec.resources.memory_bytes
        if not memory_bytes or not node.hello.data_address:
            return node.hello.slots
        return job_slots(memory_bytes, node.hello.slots)

    def unfit_notes(self) -> tuple[str, ...]:
        notes = list(self._unfit_notes.values())
        more = len(notes) - _UNFIT_SHOWN
        return (*notes[:_UNFIT_SHOWN], *([f"the job went on without {more} more nodes"] if more > 0 else ()))

    # --- how it ends ---

    def fail(self, error: ErrorReport) -> None:
        self.error = error
        self._step(JobEvent.FAIL)

    def cancel(self, error: ErrorReport) -> None:
        self.error = error
        self._step(JobEvent.CANCEL)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def take_revoked(self) -> list[Running]:
        """Attempts to stop at their nodes."""
        revoked, self._revoked = self._revoked, []
        return revoked

    def _step(self, event: JobEvent) -> None:
        self.state = next_job_state(self.state, event)

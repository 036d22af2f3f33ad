"""The jobs at a node, from the server's StartJob until nothing of them is left: their folders and what opens
them.

A job gets its folder of run files at once; when what travels with it is here (see
`cortex.transfer.bundle_fetch`) executors may serve it, and its attempts, which wait until then, may run. A
job that cannot run here is told to `unfit`, and stays, so that what is leased of it is known to be in vain.
When it has ended its executors go first, then the transfers, and only then the folder, into which one that
is being killed may still write.

It has no attempts: whoever ends a job here drops those. On the reactor's thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cortex.errors import CortexError, SpillFull
from cortex.job.bundle import NO_BUNDLE, folders_of
from cortex.memory_plan import MemoryPlan, job_executor_bytes, job_slots
from cortex.node.combine_desk import CombineDesk
from cortex.node.combining import combines
from cortex.node.executor_pool import ExecutorPool
from cortex.node.input_door import InputDoor
from cortex.node.spill_folders import SpillFolders
from cortex.storage.shared_output import staging_of
from cortex.transfer.bundle_fetch import BundleFetch
from cortex.transfer.shuffle_agent import ShuffleAgent
from cortex.wire.map_locations import LocationTable
from cortex.wire.messages import JobPlanned, OpenJob, StartJob


@dataclass
class NodeJob:
    start: StartJob
    work_dir: str
    staging_dir: str
    outputs: LocationTable = field(default_factory=LocationTable)
    ahead: tuple[int, ...] = ()
    """Partitions whose segments are fetched while maps run."""
    unfit: CortexError | None = None
    """Why it cannot run here."""
    planned: bool = False
    ended: bool = False

    @property
    def bundle_dir(self) -> str:
        return os.path.join(self.work_dir, "bundle")


class NodeJobs:
    """`spill_account`: where executors count what they spill, "" if there is no quota. `unfit(job, error)`:
    it cannot run here. `room()`: executors may take attempts that they could not before. `bundles` calls
    `open` when a job is ready."""

    def __init__(
        self,
        name: str,
        plan: MemoryPlan,
        folders: SpillFolders,
        bundles: BundleFetch,
        combine: CombineDesk,
        shuffle: ShuffleAgent | None,
        *,
        spill_account: str,
        has_data: bool,
        unfit: Callable[[str, CortexError], None],
        room: Callable[[], None],
    ) -> None:
        self._name = name
        self._plan = plan
        self._folders = folders
        self._bundles = bundles
        self._combine = combine
        self._shuffle = shuffle
        self._spill_account = spill_account
        self._has_data = has_data
        self._unfit = unfit
        self._room = room
        self._pool: ExecutorPool
        self._input: InputDoor | None = None
        self._jobs: dict[str, NodeJob] = {}
        self._none_left: Callable[[], None] | None = None
        self._stopped = False
        self.staging_dirs: set[str] = set()
        """Of all jobs that were here: folders that their clients made."""

    def attend(self, pool: ExecutorPool, input_door: InputDoor | None) -> None:
        """There are executors now, and where they read what only the client has (None: nowhere)."""
        self._pool, self._input = pool, input_door

    def stop(self) -> None:
        """No job opens, and none is waited for; `discard_all` when nobody writes any more."""
        self._stopped = True

    def discard_all(self) -> None:
        folders = [job.work_dir for job in self._jobs.values()]
        self._jobs.clear()
        for folder in folders:
            self._folders.discard(folder)

    # --- to look at ---

    def __getitem__(self, job: str) -> NodeJob:
        return self._jobs[job]

    def get(self, job: str) -> NodeJob | None:
        return self._jobs.get(job)

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    def under_way(self) -> tuple[str, ...]:
        return tuple(sorted(name for name, job in self._jobs.items() if not job.ended))

    # --- life of a job ---

    def start(self, message: StartJob) -> None:
        """Raises SpillFull where this is the only node."""
        try:
            work_dir, staging_dir = self._folders.make(message.job, message.staging_dir)
        except SpillFull as error:
            if self._shuffle is None:
                raise
            error.details["node"] = self._name
            self._jobs[message.job] = NodeJob(message, "", "")
            self._unfit(message.job, error)
            return
        self._jobs[message.job] = NodeJob(message, work_dir, staging_dir)
        if message.staging_dir:
            self.staging_dirs.add(message.staging_dir)
        if self._shuffle is not None:
            may_combine = combines(message.spec)
            self._shuffle.open_job(
                message.job, work_dir, may_combine, lambda: self._combine.asked(message.job)
            )
            if may_combine:
                self._combine.open_job(message.job)
        if message.bundle == NO_BUNDLE:
            self.open(message.job)
        else:  # its attempts wait in the queue, and hold no slot
            bundle_dir = self._jobs[message.job].bundle_dir
            self._bundles.prepare(message.job, message.bundle, bundle_dir, message.sys_path)

    def open(self, name: str) -> None:
        """What travels with the job is here: its attempts may run."""
        job = self._jobs[name]
        if job.ended or self._stopped:
            return
        if self._input is not None:
            self._input.open_job(name)
        start, names = job.start, job.start.bundle.names("file")
        slots, executor_bytes = self._plan.slots, self._plan.executor_bytes
        memory_bytes = start.spec.resources.memory_bytes
        if memory_bytes and self._shuffle is not None:  # of one machine alone it is the cap of all
            slots = job_slots(memory_bytes, slots)
            executor_bytes = job_executor_bytes(self._plan, memory_bytes)
        self._pool.open_job(
            OpenJob(
                start.job,
                start.spec,
                start.code,
                start.sys_path,
                job.work_dir,
                job.staging_dir,
                executor_bytes,
                job.bundle_dir if start.bundle.files else "",
                (*names, *folders_of(names)),
                "" if self._input is None else self._input.socket_path,
                start.bundle.packages,
                self._spill_account,
                self._has_data,
            ),
            slots,
        )
        self._room()

    def planned(self, message: JobPlanned) -> None:
        job = self._jobs[message.job]
        if not job.planned:  # else it is told again after a lost link
            job.planned = True
            self._pool.planned(message)

    def forget_outputs(self) -> None:
        """Where map outputs lie is told anew; tasks that are here have what they need of it."""
        for job in self._jobs.values():
            job.outputs = LocationTable()

    def drop_map_outputs(self, name: str) -> None:
        """Only its parts of the result are kept."""
        job = self._jobs[name]

        def folder_unused() -> None:
            if not job.ended:
                self._folders.keep_output(job.work_dir)
            self._room()

        self._close(name, folder_unused)

    def end(self, name: str, drop_output: bool) -> None:
        """It has ended (`ended` is set): remove what it has here."""
        job = self._jobs[name]

        def folder_unused() -> None:
            if self._jobs.pop(name, None) is not None:
                self._folders.discard(job.work_dir)
                if drop_output:
                    self._folders.discard_shared(staging_of(job.start.staging_dir))
            self._room()
            self._look_if_none_left()

        self._close(name, folder_unused)

    def when_none_left(self, then: Callable[[], None]) -> None:
        """Once, unless the node is stopped before."""
        self._none_left = then
        self._look_if_none_left()

    # --- inside ---

    def _close(self, job: str, folder_unused: Callable[[], None]) -> None:
        """Nothing of the job runs here any more; then nobody writes into its folder: an executor being killed
        may do so until it is gone."""

        def executors_gone() -> None:
            if self._shuffle is None:
                segments_gone()
            else:
                self._shuffle.close_job(job, segments_gone)

        def segments_gone() -> None:
            self._bundles.forget(job, folder_unused)

        self._pool.close_job(job, executors_gone)

    def _look_if_none_left(self) -> None:
        if self._none_left is not None and not self._jobs and not self._stopped:
            then, self._none_left = self._none_left, None
            then()

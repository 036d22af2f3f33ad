"""The node: runs the attempts that the server leases to it, within the machine's memory cap.

It owns the executors (through `cortex.node.executor_pool`), each job's folder of run files, and the count
of memory. It decides nothing about jobs: what is leased waits in a queue until an executor takes it,
every attempt is answered once (unless revoked), and heartbeats keep the leases.

Memory has two guards. Each executor has its share of the cap as a limit of its own, in which it plans its
buffers and at which its allocations fail with a named error. And every MEMORY_SAMPLE_S the whole tree is
measured (`cortex.node.memory_guard`).

Of a cluster, it also has a part in the shuffle (`cortex.transfer.shuffle_agent`): a reduce joins the queue
when its inputs from other nodes are here. And it sends parts of the output, where the client cannot see
them (`cortex.transfer.part_streams`). When its link to the server ends it works on: the next hello says
what it holds, and ends of attempts that the server has not acknowledged are told again.

Of its own accord it combines map outputs before others fetch them (`cortex.node.combining`): a task that the
server does not know of, which goes before its job's next map, and gives way to a reduce.

Everything runs on the reactor's thread; reading parts and removing files do not (pools of their own).
"""

from __future__ import annotations

import os
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from cortex.errors import CortexError, Fault, InternalError, SpillFull
from cortex.formats.data_roots import DataRoots
from cortex.ids import new_job_id
from cortex.job.bundle import NO_BUNDLE, folders_of
from cortex.limits import (
    DATA_READERS,
    HEARTBEAT_S,
    JOB_LOG_BYTES,
    MEMORY_SAMPLE_S,
    PART_READERS,
    PROGRESS_S,
    SLOT_KEPT_S,
    TASK_SILENCE_S_MAX,
)
from cortex.memory_plan import MemoryPlan, job_executor_bytes, job_slots
from cortex.node.combining import Combining, combines
from cortex.node.executor_pool import ExecutorPool
from cortex.node.held_inputs import HeldInputs
from cortex.node.input_door import InputDoor
from cortex.node.kept_logs import KeptLogs, headed, joined
from cortex.node.memory_guard import MemoryGuard
from cortex.node.node_metrics import NodeFigures
from cortex.node.put_keeper import PutKeeper
from cortex.node.spill_folders import SpillFolders
from cortex.node.spill_meter import SpillMeter
from cortex.node.workers import Workers
from cortex.storage.shared_output import staging_of
from cortex.transfer.bundle_fetch import BundleFetch
from cortex.transfer.input_fetcher import InputFetcher
from cortex.transfer.part_streams import PartStreams
from cortex.transfer.shuffle_agent import ShuffleAgent
from cortex.transfer.work_thread import WorkThread
from cortex.wire.map_locations import LocationTable
from cortex.wire.messages import (
    AttemptFailed,
    AttemptFinished,
    BlobChunk,
    BlobLost,
    CannotServe,
    CellsTaken,
    ChildrenDone,
    CombineResult,
    Drain,
    DropCells,
    DropMapOutputs,
    DropPart,
    EndJob,
    EndPut,
    EndServing,
    FetchAhead,
    FindInput,
    FromNode,
    FromWorker,
    FunctionCode,
    GivenBack,
    Heartbeat,
    InputBytes,
    InputHolders,
    InputUnread,
    JobPlanned,
    KeepPart,
    Lease,
    ListData,
    MapLocations,
    MapResult,
    MapTask,
    NameParts,
    NodeHello,
    NodeLog,
    OpenJob,
    OpenPut,
    PartCredit,
    Recall,
    ReduceResult,
    ReduceTask,
    ReportsKept,
    Revoke,
    RunCells,
    RunTask,
    SendLogs,
    SendPart,
    ServeTask,
    ShutDown,
    StartJob,
    TaskFailed,
    TaskFinished,
    TaskProgress,
    TaskStats,
    ToNode,
    ToWorker,
)

_log = Logger()


@dataclass
class _Job:
    start: StartJob
    work_dir: str
    staging_dir: str
    outputs: LocationTable = field(default_factory=LocationTable)
    ahead: tuple[int, ...] = ()
    """Partitions whose segments are fetched while maps run."""
    combining: Combining | None = None
    """None: its map outputs are not combined here."""
    unfit: CortexError | None = None
    """Why it cannot run here."""
    planned: bool = False
    ended: bool = False

    @property
    def bundle_dir(self) -> str:
        return os.path.join(self.work_dir, "bundle")


class Node:
    """See the module. `send` takes messages to the server; `receive` is for those from it.

    `failed(error)` is called once when the node can run nothing any more, `shut_down()` when the server
    ends the cluster. `spill_dirs` are the node's own folders (mode 0700, made by the caller, who also
    removes them); a job's files go where there is most room when it starts. `shuffle(ready, failed)` makes
    the agent of a node that others fetch from; None: this node is the only one. `keep_reports`: until the
    server says ReportsKept, which one with a journal does. `meter` measures what is spilled, where a node has
    a quota of its own. `combine`: whether map outputs may be combined here, for other nodes.
    """

    def __init__(
        self,
        reactor: Any,
        clock: Callable[[], float],
        send: Callable[[FromNode], None],
        *,
        name: str,
        plan: MemoryPlan,
        spill_dirs: Sequence[str],
        versions: dict[str, str],
        failed: Callable[[CortexError], None],
        shut_down: Callable[[], None] = lambda: None,
        client_pid: int = 0,
        data_address: str = "",
        shuffle: Callable[[Callable[[str], None], Callable[[str, CortexError], None]], ShuffleAgent]
        | None = None,
        keep_reports: bool = False,
        combine: bool = True,
        data_roots: DataRoots | None = None,
        input_fetcher: Callable[[Any, Any], InputFetcher] | None = None,
        host: str = "",
        meter: SpillMeter | None = None,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._send = send
        self._name = name
        self._incarnation = new_job_id()
        self._plan = plan
        self._folders = SpillFolders(spill_dirs)
        self._data_address = data_address
        self._host = host
        self._meter = meter
        self._drain_until: float | None = None
        """It was told to drain, and until when it may work."""
        self._versions = versions
        self._failed = failed
        self._shut_down = shut_down
        self._jobs: dict[str, _Job] = {}
        self._queue: deque[tuple[str, RunTask]] = deque()
        self._job_of: dict[str, str] = {}
        """Attempts that were leased and have not ended -> their jobs."""
        self._versions_read: dict[str, int] = {}
        """Reduces among them -> their task's `version`."""
        self._keep_reports = keep_reports
        self._reports: dict[str, tuple[AttemptFinished | AttemptFailed, int]] = {}
        """Ends that were not acknowledged, in order, each with what was in `_versions_read`."""
        self._with_slot: set[str] = set()
        """Attempts that were leased for free slots: they go before what waits."""
        self._slots_kept = 0
        """Slots that jobs left, and that wait for the server's word who has them next."""
        self._progress: dict[str, TaskProgress] = {}
        self._pool: ExecutorPool | None = None
        self._input: InputDoor | None = None
        self._input_fetcher = input_fetcher
        self._finders = ThreadPool(0, DATA_READERS, name="find-input")
        self.held: HeldInputs | None = None
        """The input below its data roots; None: there are none."""
        if data_roots:
            in_thread, from_thread = self._finders.callInThread, reactor.callFromThread
            self.held = HeldInputs(name, data_roots, self._tell, in_thread, from_thread)
        self._puts: PutKeeper | None = None
        if data_roots:
            self._puts = PutKeeper(name, data_roots, self._tell, WorkThread(reactor, "puts"))
        self._stopping = False
        self._dispatching = False
        self._heartbeat_due = 0.0
        self._progress_s = PROGRESS_S
        self._reported_peak = 0
        self._timer: Any = None
        self.memory = MemoryGuard(plan, client_pid)
        self.staging_dirs: set[str] = set()
        self._readers = ThreadPool(0, PART_READERS, name="read-parts")
        self._parts = PartStreams(name, send, self._readers.callInThread, reactor.callFromThread)
        self._shuffle = None if shuffle is None else shuffle(self._inputs_here, self._inputs_lost)
        self._logs = KeptLogs()
        self._combine = combine
        self._combined_bytes = self._combined_into_bytes = 0
        self._combines: dict[str, str] = {}
        """Attempts of the node's own, waiting or running -> their jobs: map outputs being combined."""
        self._own: deque[tuple[str, RunTask]] = deque()
        """Those that wait."""
        self._workers = Workers(
            name, lambda: self._incarnation, send, self._tell_worker, self._drop_result, keep=keep_reports
        )
        self._bringing: dict[str, tuple[str, RunTask]] = {}
        """Reduces whose inputs are on their way."""
        self._all_ended: Callable[[], None] | None = None
        self._finished = self._failed_attempts = self._spilled_bytes = 0
        self._bundle_thread = WorkThread(reactor, "bundles")
        self._bundles = BundleFetch(name, send, self._bundle_thread, self._open_job, self._cannot_serve)

    def start(
        self,
        template: Any,
        *,
        socket_path: str,
        input_socket: str = "",
        task_silence_s_max: float = TASK_SILENCE_S_MAX,
    ) -> None:
        """Start the executors, and begin to beat. `template` is a connected socket. Then say `hello`.
        `input_socket`: where executors read files that only the client has ("": there are none)."""
        if input_socket:
            self._input = InputDoor(
                self._reactor,
                self._name,
                self._send,
                input_socket,
                clock=self._clock,
                held=self.held,
                fetcher=self._input_fetcher,
                learn=(lambda nodes: None) if self._shuffle is None else self._shuffle.learn,
            )
        if self._puts is not None:
            self._puts.reader = self._input
            self._puts.start()
        self._pool = ExecutorPool(
            self._reactor,
            self._clock,
            self,
            template,
            size=self._plan.slots,
            socket_path=socket_path,
            log_dir=self._folders.logs,
            task_silence_s_max=task_silence_s_max,
        )
        self._folders.start()
        self._readers.start()
        if self._meter is not None:
            self._meter.start()
        self._finders.start()
        self._tick()

    def figures(self) -> NodeFigures:
        """What it is doing, for its metrics."""
        shuffle = self._shuffle
        queued = len(self._queue) + len(self._bringing)
        running = len(self._job_of) - queued
        return NodeFigures(
            node=self._name,
            slots=self._plan.slots,
            running=max(0, running),
            queued=queued,
            jobs=len(self._jobs),
            memory_bytes=self.memory.now_bytes,
            memory_peak_bytes=self.memory.peak_bytes,
            memory_limit_bytes=self._plan.cap_bytes,
            memory_paused=self.memory.paused,
            spill_free_bytes=self._folders.free_bytes(),
            finished=self._finished,
            failed=self._failed_attempts,
            spilled_bytes=self._spilled_bytes,
            fetched_bytes=0 if shuffle is None else shuffle.fetched_bytes,
            fetched_segments=0 if shuffle is None else shuffle.fetched_segments,
            combined_bytes=self._combined_bytes,
            combined_into_bytes=self._combined_into_bytes,
        )

    def hello(self) -> None:
        """The way to the server is open (again): say who this is, what it holds, and what the server may
        not have heard. A heartbeat follows it."""
        self.server_lost()
        attempts = {attempt: version for attempt, (_, version) in self._reports.items()}
        attempts |= {attempt: self._versions_read.get(attempt, 0) for attempt in self._job_of}
        self._send(
            NodeHello(
                self._name,
                self._incarnation,
                self._plan.slots,
                self._plan.cap_bytes,
                dict(self._versions),
                self._data_address,
                tuple(sorted(job for job, each in self._jobs.items() if not each.ended)),
                attempts,
                -1.0 if self._drain_until is None else max(0.0, self._drain_until - self._clock()),
                self._host,
                0 if self.held is None else len(self.held.roots),
            )
        )
        self._workers.hello()  # results of workers, before their ends
        for report, _ in self._reports.values():
            self._send(report)
        if self._pool is not None:
            self._beat()
        self._bundles.server_back()
        if self._shuffle is not None:
            self._shuffle.server_back()
        if self._input is not None:
            self._input.server_back()

    def server_lost(self) -> None:
        """The link to the server has ended. What it asks for now is not known any more; all else goes on."""
        self._parts.drop_all()
        if self._puts is not None:
            self._puts.server_lost()
        if self._shuffle is not None:
            self._shuffle.server_gone()
        if self._input is not None:
            self._input.server_gone()
        for job in self._jobs.values():
            job.outputs = LocationTable()  # it is told anew; tasks that are here have what they need of it

    @property
    def incarnation(self) -> str:
        return self._incarnation

    def start_over(self, ready: Callable[[], None]) -> None:
        """The server counts this node as lost: drop every job. `ready()` when a `hello` may be said, of a
        new incarnation: nothing that the server may lease it again is in the way."""
        self._incarnation = new_job_id()
        self.server_lost()
        self._all_ended = ready
        for job in list(self._jobs):
            self._end_job(EndJob(job))
        self._check_ended()

    def _check_ended(self) -> None:
        if self._all_ended is not None and not self._jobs and not self._stopping:
            ready, self._all_ended = self._all_ended, None
            ready()

    def receive(self, message: ToNode) -> None:
        """A message of the server. One that cannot be taken ends the node, with the cause: its job could
        not go on, and nobody would know why."""
        if self._stopping or self._pool is None:
            return
        try:
            self._take(message)
        except CortexError as error:
            self._fail(error)
        except Exception as error:
            said = f"node {self._name} could not take {type(message).__name__}: {error}"
            self._fail(InternalError(said, details={"traceback": traceback.format_exc()}))

    def _take(self, message: ToNode) -> None:
        if isinstance(message, StartJob):
            self._start_job(message)
        elif isinstance(message, JobPlanned):
            self._planned(message)
        elif isinstance(message, MapLocations):
            self._jobs[message.job].outputs.update(message)
            self._fetch_ahead(message)
        elif isinstance(message, FetchAhead):
            self._jobs[message.job].ahead = message.partitions
        elif isinstance(message, Lease):
            self._lease(message)
        elif isinstance(message, Revoke):
            self._revoke(message)
        elif isinstance(message, Recall):
            self._give_back(message)
        elif isinstance(
            message, FunctionCode | RunCells | DropCells | ChildrenDone | CellsTaken | EndServing
        ):
            self._workers.receive(message)
        elif isinstance(message, ReportsKept):
            for attempt in message.attempts:
                self._reports.pop(attempt, None)
        elif isinstance(message, EndJob):
            self._end_job(message)
        elif isinstance(message, DropMapOutputs):
            self._drop_map_outputs(message.job)
        elif isinstance(message, Drain):
            self._drain(message)
        elif isinstance(message, SendLogs):
            self._send_logs(message)
        elif isinstance(message, SendPart):
            self._send_part(message)
        elif isinstance(message, PartCredit):
            self._parts.credit(message.stream, message.credit_bytes)
        elif isinstance(message, DropPart):
            self._parts.drop(message.stream)
        elif isinstance(message, BlobChunk):
            self._bundles.chunk(message)
        elif isinstance(message, BlobLost):
            self._bundles.lost(message)
        elif isinstance(message, InputBytes | InputUnread):
            if self._input is not None:
                self._input.answer(message)
        elif isinstance(message, InputHolders):
            if self._input is not None:
                self._input.holders(message)
        elif isinstance(message, ListData):
            assert self.held is not None
            self.held.list_data(message)
        elif isinstance(message, FindInput):
            assert self.held is not None
            self.held.find(message)
        elif isinstance(message, OpenPut | KeepPart | NameParts | EndPut):
            assert self._puts is not None
            self._puts.receive(message)
        else:
            assert isinstance(message, ShutDown)
            self._shut_down()

    def stop(self, gone: Callable[[], None]) -> None:
        """Kill the executors; `gone()` when none is left and all run files are removed."""
        self._stopping = True
        if self._meter is not None:
            self._meter.stop()
        if self._input is not None:
            self._input.stop()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._queue.clear()
        self._own.clear()
        self._bringing.clear()
        self._parts.drop_all()
        if self._puts is not None:
            self._puts.stop()
        self._bundle_thread.stop()

        def executors_gone() -> None:
            if self._shuffle is None:
                transfers_gone()
            else:
                self._shuffle.stop(transfers_gone)

        def transfers_gone() -> None:
            folders = [job.work_dir for job in self._jobs.values()]
            self._jobs.clear()
            for folder in folders:
                self._folders.discard(folder)
            # stop() waits for the threads: it must not run on the reactor's thread
            threading.Thread(target=self._stop_threads, args=(gone,), name="stop-threads").start()

        if self._pool is None:
            gone()
        else:
            self._pool.stop(executors_gone)

    def _stop_threads(self, gone: Callable[[], None]) -> None:
        self._readers.stop()
        self._finders.stop()
        self._folders.stop()
        if self._meter is not None:
            self._meter.join()
        self._reactor.callFromThread(gone)

    # --- messages ---

    def _start_job(self, message: StartJob) -> None:
        assert self._pool is not None
        if not self._jobs:
            self.memory.peak_bytes = 0  # the peak is that of the jobs that run together
        self.memory.sample(self._pool.executors())
        try:
            work_dir, staging_dir = self._folders.make(message.job, message.staging_dir)
        except SpillFull as error:
            if self._shuffle is None:
                raise
            error.details["node"] = self._name
            self._jobs[message.job] = _Job(message, "", "")
            self._cannot_serve(message.job, error)
            return
        self._jobs[message.job] = _Job(message, work_dir, staging_dir)
        self._progress_s = message.progress_s
        if message.staging_dir:
            self.staging_dirs.add(message.staging_dir)
        if self._shuffle is not None:
            may_combine = combines(message.spec)
            self._shuffle.open_job(
                message.job, work_dir, may_combine, lambda: self._outputs_asked_for(message.job)
            )
            if may_combine and self._combine:
                self._jobs[message.job].combining = Combining(message.job)
                self._shuffle.combining(message.job, True)
        if message.bundle == NO_BUNDLE:
            self._open_job(message.job)
        else:  # its attempts wait in the queue, and hold no slot
            bundle_dir = self._jobs[message.job].bundle_dir
            self._bundles.prepare(message.job, message.bundle, bundle_dir, message.sys_path)

    def _open_job(self, name: str) -> None:
        """What travels with the job is here: its attempts may run."""
        assert self._pool is not None
        job = self._jobs[name]
        if job.ended or self._stopping:
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
                "" if self._meter is None else self._meter.account_path,
                self.held is not None,
            ),
            slots,
        )
        self.room()

    def _cannot_serve(self, name: str, error: CortexError) -> None:
        """The job runs on other nodes: its attempts go back unused."""
        if self._jobs[name].ended or self._stopping:
            return
        self._jobs[name].unfit = error
        for _, run in [item for item in self._queue if item[0] == name]:
            self._forget(run.attempt)
        self._queue = deque(item for item in self._queue if item[0] != name)
        self._drop_combines(name)
        self._send(CannotServe(self._name, self._incarnation, name, error.report()))

    def _planned(self, message: JobPlanned) -> None:
        assert self._pool is not None
        if not self._jobs[message.job].planned:  # else it is told again after a lost link
            self._jobs[message.job].planned = True
            self._pool.planned(message)

    def _lease(self, message: Lease) -> None:
        with_slot = len(message.tasks) - message.successors
        self._slots_kept = max(0, self._slots_kept - with_slot)
        self._with_slot.update(run.attempt for run in message.tasks[:with_slot])
        for run in message.tasks:
            job = run.attempt.partition("-")[0]
            unfit = self._jobs[job].unfit
            if unfit is not None:  # leased before the server knew, or when it had lost sight of this node
                self._cannot_serve(job, unfit)
                continue
            self._job_of[run.attempt] = job
            if isinstance(run.task, ReduceTask):
                self._stop_combining(job)
                outputs = self._jobs[job].outputs
                self._versions_read[run.attempt] = run.task.version
                run = RunTask(run.attempt, outputs.fill(run.task))
                if self._shuffle is not None and not self._shuffle.bring(job, run, self._name, outputs.nodes):
                    self._bringing[run.attempt] = job, run
                    continue
            self._enqueue(job, run)
        self.room()

    def _enqueue(self, job: str, run: RunTask) -> None:
        """An attempt that has a slot goes behind the last of those, others go to the end."""
        place = len(self._queue)
        if run.attempt in self._with_slot:
            waiting = (n for n, (_, each) in enumerate(self._queue) if each.attempt not in self._with_slot)
            place = next(waiting, place)
        self._queue.insert(place, (job, run))

    def _fetch_ahead(self, message: MapLocations) -> None:
        job = self._jobs[message.job]
        if self._shuffle is not None and job.ahead:
            self._shuffle.fetch_ahead(message, job.ahead, self._name, job.outputs.nodes)

    def _revoke(self, message: Revoke) -> None:
        assert self._pool is not None
        revoked = set(message.attempts)
        self._queue = deque(item for item in self._queue if item[1].attempt not in revoked)
        for attempt in message.attempts:
            self._forget(attempt)
            self._reports.pop(attempt, None)
            self._pool.revoke(attempt)
        self.room()

    def _give_back(self, message: Recall) -> None:
        """What has not begun, the last leased first: that whose inputs are still on their way, too."""
        job = message.job
        waiting = {run.attempt for of, run in (*self._queue, *self._bringing.values()) if of == job}
        last_first = [attempt for attempt in reversed(self._job_of) if attempt in waiting]
        given_back = tuple(last_first[: message.attempts])
        for attempt in given_back:
            self._forget(attempt)
        self._queue = deque(item for item in self._queue if item[1].attempt in self._job_of)
        self._send(GivenBack(self._name, self._incarnation, given_back))

    def _drain(self, message: Drain) -> None:
        """What has not begun goes back; what runs goes on."""
        if message.seconds < 0:
            self._drain_until = None
            return
        self._drain_until = self._clock() + message.seconds
        waiting = [run.attempt for _, run in (*self._queue, *self._bringing.values())]
        self._queue.clear()
        for attempt in waiting:
            self._forget(attempt)
        if waiting:
            self._send(GivenBack(self._name, self._incarnation, tuple(waiting)))

    def _send_logs(self, message: SendLogs) -> None:
        assert self._pool is not None
        living = [headed(executor, text) for executor, text in self._pool.written(message.job)]
        text = joined([self._logs.of(message.job), *living])[-JOB_LOG_BYTES:]
        self._send(NodeLog(self._name, message.request, text))

    def _send_part(self, message: SendPart) -> None:
        job = self._jobs.get(message.job)
        self._parts.begin(message, None if job is None else job.staging_dir)

    def _end_job(self, message: EndJob) -> None:
        assert self._pool is not None
        job = self._jobs.get(message.job)
        if job is None or job.ended:
            return
        job.ended = True
        if self._input is not None:
            self._input.close_job(message.job)
        if self.held is not None:
            self.held.close_job(message.job)
        for _, run in [item for item in self._queue if item[0] == message.job]:
            self._forget(run.attempt)
        self._queue = deque(item for item in self._queue if item[0] != message.job)
        for attempt in [attempt for attempt, of in self._job_of.items() if of == message.job]:
            self._forget(attempt)
        for attempt in [each for each in self._reports if each.startswith(f"{message.job}-")]:
            del self._reports[attempt]
        self._drop_combines(message.job)
        self._workers.end_job(message.job)

        def folder_unused() -> None:
            if self._jobs.pop(message.job, None) is not None:
                self._folders.discard(job.work_dir)
                if message.drop_output:
                    self._folders.discard_shared(staging_of(job.start.staging_dir))
            self.room()
            self._check_ended()

        self._close(message.job, folder_unused)

    def _close(self, job: str, folder_unused: Callable[[], None]) -> None:
        """Nothing of the job runs here any more; then nobody writes into its folder: an executor being killed
        may do so until it is gone."""
        assert self._pool is not None

        def executors_gone() -> None:
            if self._shuffle is None:
                segments_gone()
            else:
                self._shuffle.close_job(job, segments_gone)

        def segments_gone() -> None:
            self._bundles.forget(job, folder_unused)

        self._pool.close_job(job, executors_gone)

    def _drop_map_outputs(self, name: str) -> None:
        """Only the job's parts of the result are kept."""
        job = self._jobs.get(name)
        if job is None or job.ended:
            return
        if self._input is not None:
            self._input.close_job(name)
        self._stop_combining(name)
        self._drop_combines(name)

        def folder_unused() -> None:
            if not job.ended:
                self._folders.keep_output(job.work_dir)
            self.room()

        self._close(name, folder_unused)

    def _tell(self, message: FromNode) -> None:
        """From a thread's end: unless there is nobody to tell any more."""
        if not self._stopping:
            self._send(message)

    # --- what the shuffle says ---

    def _inputs_here(self, attempt: str) -> None:
        waiting = self._bringing.pop(attempt, None)
        if waiting is not None:
            self._enqueue(*waiting)
            self.room()

    def _inputs_lost(self, attempt: str, error: CortexError) -> None:
        if self._bringing.pop(attempt, None) is not None:
            failed = TaskFailed(attempt, error.report(), 0.0, 0)
            self.attempt_ended(self._job_of[attempt], failed)

    # --- combining map outputs ---

    def _outputs_asked_for(self, name: str) -> None:
        combining = self._jobs[name].combining
        if combining is not None:
            combining.asked()
            self._combine_next(name)

    def _combine_next(self, name: str) -> None:
        """Queue the next group of the job's map outputs, if it is time."""
        job = self._jobs[name]
        run = None if job.combining is None or job.ended else job.combining.next_group()
        if run is not None:
            self._combines[run.attempt] = name
            self._own.append((name, run))
            self.room()

    def _combined(self, ended: TaskFinished | TaskFailed) -> None:
        """A group has been made, or could not be."""
        name = self._combines.pop(ended.attempt)
        combining = self._jobs[name].combining
        assert combining is not None
        assert self._shuffle is not None
        if isinstance(ended, TaskFailed):
            _log.warn(
                "job {job}: map outputs could not be combined here, and are sent as they are: {error}",
                job=name,
                error=ended.error.message,
            )
            combining.failed()
        else:
            assert isinstance(ended.result, CombineResult)
            members = combining.made(ended.result)
            if not (members or combining.going_on):
                _log.info(
                    "job {job}: combining map outputs here would save too little ({bytes_in} bytes to"
                    " {bytes_out}): they are sent as they are",
                    job=name,
                    bytes_in=ended.result.bytes_in,
                    bytes_out=ended.result.bytes_out,
                )
            if members:
                self._combined_bytes += ended.result.bytes_in
                self._combined_into_bytes += ended.result.bytes_out
                self._shuffle.combined(name, ended.attempt, members)
        if not combining.going_on:
            self._shuffle.combining(name, False)
        self._combine_next(name)

    def _stop_combining(self, name: str) -> None:
        """Reduces have begun: nobody is to wait for what is not combined yet."""
        combining = self._jobs[name].combining
        if combining is None or not combining.going_on or self._shuffle is None:
            return
        combining.stop()
        self._shuffle.combining(name, False)
        for _, run in [item for item in self._own if item[0] == name]:
            self._drop_combine(run.attempt)

    def _drop_combines(self, name: str) -> None:
        for attempt in [attempt for attempt, of in self._combines.items() if of == name]:
            self._drop_combine(attempt)

    def _own_in_turn(self) -> None:
        """Put what is the node's own into the queue: in the place of its job's next map, else at the end."""
        for job, run in self._own:
            maps = (
                n for n, (of, each) in enumerate(self._queue) if of == job and isinstance(each.task, MapTask)
            )
            self._queue.insert(next(maps, len(self._queue)), (job, run))
        self._own.clear()

    def _give_way(self, full: bool) -> None:
        """For each reduce that waits kill one that runs, of its job, or of any if the slots are `full`."""
        assert self._pool is not None
        waiting = [job for job, run in self._queue if isinstance(run.task, ReduceTask)]
        for executor in self._pool.running():
            attempt = "" if executor.run is None else executor.run.attempt
            name = self._combines.get(attempt, "")
            if name and waiting and (full or name in waiting):
                waiting.remove(name if name in waiting else waiting[0])
                self._drop_combine(attempt)

    def _drop_combine(self, attempt: str) -> None:
        """Whether it waits or runs."""
        assert self._pool is not None
        name = self._combines.pop(attempt)
        combining = self._jobs[name].combining
        assert combining is not None
        combining.dropped()
        self._own = deque(item for item in self._own if item[1].attempt != attempt)
        self._pool.revoke(attempt)

    # --- what the pool says ---

    def room(self) -> None:
        """Give out waiting attempts while executors take them. First to idle executors of their jobs: a slot
        stays with its job while something waits for it. Then the pool is to have executors of other jobs."""
        if self._pool is None or self._dispatching or self._stopping:
            return
        self._dispatching = True
        try:
            self._own_in_turn()
            waiting: deque[tuple[str, RunTask]] = deque()
            running = len(self._pool.running())
            for bound in (True, False):
                refused: set[str] = set()
                waiting.clear()
                slots = self._plan.slots - (0 if bound else self._slots_kept)
                while self._queue and running < slots and not (self.memory.paused and running):
                    job, run = self._queue.popleft()
                    if job not in refused and self._pool.run(job, run, bound):
                        running += 1
                        if isinstance(run.task, ServeTask):
                            self._workers.began(job, run.attempt)
                        if run.attempt not in self._combines:
                            self._progress[run.attempt] = TaskProgress(run.attempt, TaskStats())
                    else:
                        refused.add(job)
                        waiting.append((job, run))
                self._queue.extendleft(reversed(waiting))
            if self._queue and not (self.memory.paused and running):
                self._pool.make_room([job for job, _ in self._queue], slots - running)
            self._own.extend(item for item in self._queue if item[1].attempt in self._combines)
            self._queue = deque(item for item in self._queue if item[1].attempt not in self._combines)
            self._give_way(running >= self._plan.slots)
        finally:
            self._dispatching = False

    def attempt_progress(self, job: str, progress: TaskProgress) -> None:
        if progress.attempt in self._job_of:
            self._progress[progress.attempt] = progress

    def worker_said(self, job: str, attempt: str, said: FromWorker) -> None:
        if attempt in self._job_of:
            self._workers.said(attempt, said)

    def _tell_worker(self, attempt: str, message: ToWorker) -> bool:
        return self._pool is not None and self._pool.tell_worker(attempt, message)

    def _drop_result(self, job: str, name: str) -> None:
        found = self._jobs.get(job)
        if found is not None and found.staging_dir:
            self._folders.discard_file(os.path.join(found.staging_dir, os.path.basename(name)))

    def attempt_ended(self, job: str, ended: TaskFinished | TaskFailed) -> None:
        if ended.attempt in self._combines:
            self._combined(ended)
        if ended.attempt not in self._job_of:
            return
        version = self._versions_read.get(ended.attempt, 0)
        self._forget(ended.attempt)
        self._keep_slot(job)
        if self._shuffle is not None and isinstance(ended, TaskFinished):
            self._shuffle.used(job, ended.result)
        if self.memory.peak_bytes != self._reported_peak:
            self._beat()  # a short job's only one: the server's last word on memory
        report: AttemptFinished | AttemptFailed
        if isinstance(ended, TaskFinished):
            report = AttemptFinished(self._name, self._incarnation, ended)
            self._finished += 1
            if isinstance(ended.result, MapResult | ReduceResult):
                self._spilled_bytes += ended.result.stats.spilled_bytes
        else:
            self._failed_attempts += 1
            report = AttemptFailed(self._name, self._incarnation, self._elsewhere(ended))
        if self._keep_reports:
            self._reports[ended.attempt] = report, version
        self._send(report)
        found = self._jobs.get(job)
        if found is None or found.combining is None:
            return
        if isinstance(ended, TaskFinished) and isinstance(ended.result, MapResult):
            found.combining.finished(ended.attempt)
            self._combine_next(job)

    def _elsewhere(self, failed: TaskFailed) -> TaskFailed:
        """No room here ends the job where this is the only node for good; another may have some."""
        if self._meter is None or failed.error.code != SpillFull.code:
            return failed
        details = {"node": self._name, **failed.error.details}
        error = msgspec.structs.replace(failed.error, details=details, fault=Fault.TASK.value)
        return msgspec.structs.replace(failed, error=error)

    def attempt_returned(self, job: str, run: RunTask) -> None:
        if run.attempt in self._combines:
            self._own.appendleft((job, run))
        elif run.attempt in self._job_of:
            self._progress.pop(run.attempt, None)
            self._queue.appendleft((job, run))

    def executor_wrote(self, job: str, executor: int, text: str) -> None:
        self._logs.add(job, executor, text)

    def pool_lost(self, error: CortexError) -> None:
        self._fail(error)

    def _fail(self, error: CortexError) -> None:
        if not self._stopping:
            self._stopping = True
            self._failed(error)

    # --- time ---

    def _tick(self) -> None:
        """Every MEMORY_SAMPLE_S: measure, watch, and beat when it is time."""
        assert self._pool is not None
        self._timer = self._reactor.callLater(MEMORY_SAMPLE_S, self._tick)
        self._guard_memory()
        self._pool.check()
        if self._clock() >= self._heartbeat_due:
            self._beat()

    def _guard_memory(self) -> None:
        assert self._pool is not None
        executors, was_paused = self._pool.executors(), self.memory.paused
        self.memory.sample(executors)
        found = self.memory.decide(executors)
        if self.memory.paused and not was_paused:
            _log.warn(
                "memory is over the cap: {said}; no further task starts until it is below",
                said=self.memory.said(),
            )
        if was_paused and not self.memory.paused:
            self.room()
        if found is not None:
            self._pool.kill(*found)

    def _beat(self) -> None:
        self._heartbeat_due = self._clock() + (self._progress_s if self._progress else HEARTBEAT_S) - 0.01
        self._reported_peak = self.memory.peak_bytes
        running = tuple(self._progress.values())
        beat = Heartbeat(
            self._name,
            self._incarnation,
            running,
            self.memory.now_bytes,
            self.memory.peak_bytes,
            self._folders.free_bytes(),
            -1 if self._meter is None else self._meter.used_bytes,
            -1 if self._meter is None else self._meter.limit_bytes,
            self._idle_slots(),
        )
        self._send(beat)

    def _keep_slot(self, job: str) -> None:
        """A task of this job has ended. If only others wait here, its slot is not theirs yet."""
        if self._queue and not any(
            each == job or run.attempt in self._with_slot for each, run in self._queue
        ):
            self._slots_kept += 1
            self._reactor.callLater(SLOT_KEPT_S, self._keep_no_slot)

    def _keep_no_slot(self) -> None:
        self._slots_kept = 0
        self.room()

    def _idle_slots(self) -> int:
        if self._pool is None or not self._bringing:
            return 0
        return max(0, self._plan.slots - len(self._pool.running()) - len(self._queue))

    def _forget(self, attempt: str) -> None:
        self._job_of.pop(attempt, None)
        self._workers.ended(attempt)
        self._with_slot.discard(attempt)
        self._versions_read.pop(attempt, None)
        self._progress.pop(attempt, None)
        if self._bringing.pop(attempt, None) is not None and self._shuffle is not None:
            self._shuffle.forget(attempt)

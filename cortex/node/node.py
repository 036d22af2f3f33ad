"""The node: runs the attempts that the server leases to it, within the machine's memory cap.

It decides nothing about jobs: every attempt that is leased is answered once (unless revoked), and heartbeats
keep the leases. This module passes each message and each event on to the object whose matter it is, and says
hello. Of its parts

- `LeasedAttempts` has what waits, and gives it to executors when they take it (`ExecutorPool`);
- `NodeJobs` has each job's folder of run files, and opens and closes jobs;
- `EndReports` tells the server of ends until it has heard;
- `CombineDesk` combines map outputs before others fetch them, of the node's own accord;
- `Workers` has what executors that serve calls have in hand;
- `Heartbeats` keeps time, and looks after memory.

Memory has two guards. Each executor has its share of the cap as a limit of its own, in which it plans its
buffers and at which its allocations fail with a named error. And every MEMORY_SAMPLE_S the whole tree is
measured (`cortex.node.memory_guard`).

Of a cluster, it also has a part in the shuffle (`cortex.transfer.shuffle_agent`): a reduce joins the queue
when its inputs from other nodes are here. And it sends parts of the output, where the client cannot see
them (`cortex.transfer.part_streams`). When its link to the server ends it works on: the next hello says
what it holds.

Everything runs on the reactor's thread; reading parts and removing files do not (pools of their own).
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from twisted.python.threadpool import ThreadPool

from cortex.errors import CortexError, InternalError
from cortex.formats.data_roots import DataRoots
from cortex.ids import new_job_id
from cortex.limits import (
    DATA_READERS,
    JOB_LOG_BYTES,
    PART_READERS,
    TASK_SILENCE_S_MAX,
)
from cortex.memory_plan import MemoryPlan
from cortex.node.combine_desk import CombineDesk
from cortex.node.end_reports import EndReports
from cortex.node.executor_pool import ExecutorPool
from cortex.node.heartbeats import Heartbeats
from cortex.node.held_inputs import HeldInputs
from cortex.node.input_door import InputDoor
from cortex.node.kept_logs import KeptLogs, headed, joined
from cortex.node.leased_attempts import LeasedAttempts
from cortex.node.memory_guard import MemoryGuard
from cortex.node.node_jobs import NodeJobs
from cortex.node.node_metrics import NodeFigures
from cortex.node.put_keeper import PutKeeper
from cortex.node.spill_folders import SpillFolders
from cortex.node.spill_meter import SpillMeter
from cortex.node.workers import ForWorkers, Workers
from cortex.transfer.bundle_fetch import BundleFetch
from cortex.transfer.input_fetcher import InputFetcher
from cortex.transfer.part_streams import PartStreams
from cortex.transfer.shuffle_agent import ShuffleAgent
from cortex.transfer.work_thread import WorkThread
from cortex.wire.messages import (
    BlobChunk,
    BlobLost,
    CannotServe,
    Drain,
    DropMapOutputs,
    DropPart,
    EndJob,
    EndPut,
    FetchAhead,
    FindInput,
    FromNode,
    FromWorker,
    GivenBack,
    InputBytes,
    InputHolders,
    InputUnread,
    JobPlanned,
    KeepPart,
    Lease,
    ListData,
    MapLocations,
    NameParts,
    NodeHello,
    NodeLog,
    OpenPut,
    PartCredit,
    Recall,
    ReduceTask,
    ReportsKept,
    Revoke,
    RunTask,
    SendLogs,
    SendPart,
    ShutDown,
    StartJob,
    TaskFailed,
    TaskFinished,
    TaskProgress,
    ToNode,
    ToWorker,
)


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
        self.memory = MemoryGuard(plan, client_pid)
        self._readers = ThreadPool(0, PART_READERS, name="read-parts")
        self._parts = PartStreams(name, send, self._readers.callInThread, reactor.callFromThread)
        self._logs = KeptLogs()
        self._bundle_thread = WorkThread(reactor, "bundles")
        self._bundles = BundleFetch(
            name, send, self._bundle_thread, lambda job: self._jobs.open(job), self._cannot_serve
        )
        self._shuffle = None if shuffle is None else shuffle(self._inputs_here, self._inputs_lost)
        self._reports = EndReports(
            name, lambda: self._incarnation, send, keep=keep_reports, one_of_many=meter is not None
        )
        self._workers = Workers(
            name, lambda: self._incarnation, send, self._tell_worker, self._drop_result, keep=keep_reports
        )
        self._attempts = LeasedAttempts(
            reactor,
            plan.slots,
            self.memory,
            self._workers,
            self._shuffle,
            lambda waiting, running, full: self._combine.give_way(waiting, running, full),
        )
        self._beats = Heartbeats(
            reactor,
            clock,
            send,
            name,
            lambda: self._incarnation,
            self.memory,
            self._attempts,
            self._folders,
            meter,
        )
        self._combine = CombineDesk(self._attempts, self._shuffle, combine)
        self._jobs = NodeJobs(
            name,
            plan,
            self._folders,
            self._bundles,
            self._combine,
            self._shuffle,
            spill_account="" if meter is None else meter.account_path,
            has_data=self.held is not None,
            unfit=self._cannot_serve,
            room=self._attempts.room,
        )

    @property
    def incarnation(self) -> str:
        return self._incarnation

    @property
    def staging_dirs(self) -> set[str]:
        """Of all jobs that were here: folders that their clients made."""
        return self._jobs.staging_dirs

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
        self._jobs.attend(self._pool, self._input)
        self._attempts.start(self._pool)
        self._folders.start()
        self._readers.start()
        if self._meter is not None:
            self._meter.start()
        self._finders.start()
        self._beats.start(self._pool)

    def figures(self) -> NodeFigures:
        """What it is doing, for its metrics."""
        shuffle = self._shuffle
        return NodeFigures(
            node=self._name,
            slots=self._plan.slots,
            running=self._attempts.running,
            queued=self._attempts.queued,
            jobs=len(self._jobs),
            memory_bytes=self.memory.now_bytes,
            memory_peak_bytes=self.memory.peak_bytes,
            memory_limit_bytes=self._plan.cap_bytes,
            memory_paused=self.memory.paused,
            spill_free_bytes=self._folders.free_bytes(),
            finished=self._reports.finished,
            failed=self._reports.failed,
            spilled_bytes=self._reports.spilled_bytes,
            fetched_bytes=0 if shuffle is None else shuffle.fetched_bytes,
            fetched_segments=0 if shuffle is None else shuffle.fetched_segments,
            combined_bytes=self._combine.combined_bytes,
            combined_into_bytes=self._combine.combined_into_bytes,
        )

    def hello(self) -> None:
        """The way to the server is open (again): say who this is, what it holds, and what the server may
        not have heard. A heartbeat follows it."""
        self.server_lost()
        self._send(
            NodeHello(
                self._name,
                self._incarnation,
                self._plan.slots,
                self._plan.cap_bytes,
                dict(self._versions),
                self._data_address,
                self._jobs.under_way(),
                self._reports.versions() | self._attempts.versions(),
                -1.0 if self._drain_until is None else max(0.0, self._drain_until - self._clock()),
                self._host,
                0 if self.held is None else len(self.held.roots),
            )
        )
        self._workers.hello()  # results of workers, before their ends
        self._reports.tell_again()
        if self._pool is not None:
            self._beats.beat()
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
        self._jobs.forget_outputs()

    def start_over(self, ready: Callable[[], None]) -> None:
        """The server counts this node as lost: drop every job. `ready()` when a `hello` may be said, of a
        new incarnation: nothing that the server may lease it again is in the way."""
        self._incarnation = new_job_id()
        self.server_lost()
        for job in list(self._jobs):
            self._end_job(EndJob(job))
        self._jobs.when_none_left(ready)

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
            self._jobs.planned(message)
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
        elif isinstance(message, ForWorkers):
            self._workers.receive(message)
        elif isinstance(message, ReportsKept):
            self._reports.drop(message.attempts)
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
        self._attempts.stop()
        self._jobs.stop()
        if self._meter is not None:
            self._meter.stop()
        if self._input is not None:
            self._input.stop()
        self._beats.stop()
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
            self._jobs.discard_all()
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
        self._beats.measure(anew=not self._jobs)  # the peak is that of the jobs that run together
        self._jobs.start(message)
        if self._jobs[message.job].work_dir:
            self._beats.progress_s = message.progress_s

    def _cannot_serve(self, name: str, error: CortexError) -> None:
        """The job runs on other nodes: its attempts go back unused."""
        if self._jobs[name].ended or self._stopping:
            return
        self._jobs[name].unfit = error
        self._attempts.drop_waiting(name)
        self._combine.drop(name)
        self._send(CannotServe(self._name, self._incarnation, name, error.report()))

    def _lease(self, message: Lease) -> None:
        with_slot = len(message.tasks) - message.successors
        self._attempts.slots_given(with_slot)
        for number, run in enumerate(message.tasks):
            job = run.attempt.partition("-")[0]
            unfit = self._jobs[job].unfit
            if unfit is not None:  # leased before the server knew, or when it had lost sight of this node
                self._cannot_serve(job, unfit)
                continue
            version = run.task.version if isinstance(run.task, ReduceTask) else 0
            self._attempts.lease(job, run.attempt, version, number < with_slot)
            if isinstance(run.task, ReduceTask):
                self._combine.stop(job)
                outputs = self._jobs[job].outputs
                run = RunTask(run.attempt, outputs.fill(run.task))
                if self._shuffle is not None and not self._shuffle.bring(job, run, self._name, outputs.nodes):
                    self._attempts.bring(job, run)
                    continue
            self._attempts.wait(job, run)
        self._attempts.room()

    def _fetch_ahead(self, message: MapLocations) -> None:
        job = self._jobs[message.job]
        if self._shuffle is not None and job.ahead:
            self._shuffle.fetch_ahead(message, job.ahead, self._name, job.outputs.nodes)

    def _revoke(self, message: Revoke) -> None:
        self._attempts.revoke(message.attempts)
        self._reports.drop(message.attempts)
        self._attempts.room()

    def _give_back(self, message: Recall) -> None:
        given_back = self._attempts.give_back(message.job, message.attempts)
        self._send(GivenBack(self._name, self._incarnation, given_back))

    def _drain(self, message: Drain) -> None:
        """What has not begun goes back; what runs goes on."""
        if message.seconds < 0:
            self._drain_until = None
            return
        self._drain_until = self._clock() + message.seconds
        given_back = self._attempts.give_back_all()
        if given_back:
            self._send(GivenBack(self._name, self._incarnation, given_back))

    def _send_logs(self, message: SendLogs) -> None:
        assert self._pool is not None
        living = [headed(executor, text) for executor, text in self._pool.written(message.job)]
        text = joined([self._logs.of(message.job), *living])[-JOB_LOG_BYTES:]
        self._send(NodeLog(self._name, message.request, text))

    def _send_part(self, message: SendPart) -> None:
        job = self._jobs.get(message.job)
        self._parts.begin(message, None if job is None else job.staging_dir)

    def _end_job(self, message: EndJob) -> None:
        job = self._jobs.get(message.job)
        if job is None or job.ended:
            return
        job.ended = True
        if self._input is not None:
            self._input.close_job(message.job)
        if self.held is not None:
            self.held.close_job(message.job)
        self._attempts.drop_job(message.job)
        self._reports.drop_job(message.job)
        self._combine.end_job(message.job)
        self._workers.end_job(message.job)
        self._jobs.end(message.job, message.drop_output)

    def _drop_map_outputs(self, name: str) -> None:
        job = self._jobs.get(name)
        if job is None or job.ended:
            return
        if self._input is not None:
            self._input.close_job(name)
        self._combine.stop(name)
        self._combine.drop(name)
        self._jobs.drop_map_outputs(name)

    def _tell(self, message: FromNode) -> None:
        """From a thread's end: unless there is nobody to tell any more."""
        if not self._stopping:
            self._send(message)

    # --- what the shuffle says ---

    def _inputs_here(self, attempt: str) -> None:
        self._attempts.inputs_here(attempt)

    def _inputs_lost(self, attempt: str, error: CortexError) -> None:
        job = self._attempts.inputs_lost(attempt)
        if job:
            self.attempt_ended(job, TaskFailed(attempt, error.report(), 0.0, 0))

    # --- what the pool says ---

    def room(self) -> None:
        self._attempts.room()

    def attempt_progress(self, job: str, progress: TaskProgress) -> None:
        self._attempts.told(progress)

    def worker_said(self, job: str, attempt: str, said: FromWorker) -> None:
        if attempt in self._attempts:
            self._workers.said(attempt, said)

    def _tell_worker(self, attempt: str, message: ToWorker) -> bool:
        return self._pool is not None and self._pool.tell_worker(attempt, message)

    def _drop_result(self, job: str, name: str) -> None:
        found = self._jobs.get(job)
        if found is not None and found.staging_dir:
            self._folders.discard_file(os.path.join(found.staging_dir, os.path.basename(name)))

    def attempt_ended(self, job: str, ended: TaskFinished | TaskFailed) -> None:
        if ended.attempt in self._combine:
            self._combine.ended(ended)
        if ended.attempt not in self._attempts:
            return
        version = self._attempts.version(ended.attempt)
        self._attempts.ended(job, ended.attempt)
        if self._shuffle is not None and isinstance(ended, TaskFinished):
            self._shuffle.used(job, ended.result)
        self._beats.beat_peak()
        self._reports.tell(ended, version)
        self._combine.finished(job, ended)

    def attempt_returned(self, job: str, run: RunTask) -> None:
        if run.attempt in self._combine:
            self._combine.returned(job, run)
        else:
            self._attempts.returned(job, run)

    def executor_wrote(self, job: str, executor: int, text: str) -> None:
        self._logs.add(job, executor, text)

    def pool_lost(self, error: CortexError) -> None:
        self._fail(error)

    def _fail(self, error: CortexError) -> None:
        if not self._stopping:
            self._stopping = True
            self._attempts.stop()
            self._jobs.stop()
            self._failed(error)

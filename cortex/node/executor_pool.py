"""The node's executors: starts them through the template, gives them work, explains their deaths.

`ExecutorPool` holds at most `size` executors, each of which serves one job from its OpenJob to its
end. It decides nothing about tasks: its owner asks it to `run` one, and hears through `PoolOwner` of
progress, of the one end of each attempt, and of room for more work.

An executor is *starting* (forked, no hello yet), *ready* (no job), *bound* to a job (idle or running
one attempt), or *ending* (told to stop, or killed, or its link is gone). It leaves the table when
the template has reaped it *and* its link has closed: what it sent before it died still counts.

Everything here runs on the reactor's thread; nothing blocks but small reads of an executor's
stderr file when it has died.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from twisted.internet.protocol import Factory

from cortex.errors import CortexError, ServerDied, TaskTimeout
from cortex.limits import (
    EXECUTOR_EXIT_S_MAX,
    EXECUTOR_REFILL_S,
    EXECUTOR_START_DEATHS_MAX,
    EXECUTOR_START_S_MAX,
    JOB_LOG_BYTES,
    STACK_DUMP_S,
    STDERR_FILE_BYTES_MAX,
    TASK_SILENCE_S_MAX,
)
from cortex.node.executor_deaths import Executor, circumstances, died, exit_text, tail
from cortex.units import format_seconds
from cortex.wire.messages import (
    ExecutorForked,
    ExecutorHello,
    ForkExecutor,
    FromExecutor,
    FromTemplate,
    FromWorker,
    JobPlanned,
    Message,
    OpenJob,
    Retiring,
    RunTask,
    ServeTask,
    SignalExecutor,
    Stop,
    TaskFailed,
    TaskFinished,
    TaskProgress,
    TaskStats,
    TemplateReady,
    ToWorker,
)
from cortex.wire.transports import MessageProtocol, listen_unix


class PoolOwner(Protocol):
    """What the pool tells its owner (the node)."""

    def attempt_progress(self, job: str, progress: TaskProgress) -> None: ...
    def attempt_ended(self, job: str, ended: TaskFinished | TaskFailed) -> None: ...
    def worker_said(self, job: str, attempt: str, said: FromWorker) -> None:
        """What an executor says that serves calls (`cortex.wire.messages.compute`)."""

    def attempt_returned(self, job: str, run: RunTask) -> None:
        """It was sent to an executor that ended before it began: give it again."""

    def executor_wrote(self, job: str, executor: int, text: str) -> None:
        """An executor of the job is gone; `text` is the end of what it wrote."""

    def room(self) -> None:
        """An executor became ready, idle or gone: a `run` that was refused may be taken now."""

    def pool_lost(self, error: CortexError) -> None:
        """The template is gone: no executor can be started any more."""


class ExecutorPool:
    """See the module. `clock()` is monotonic seconds; `template` is the template's link, connected."""

    def __init__(
        self,
        reactor: Any,
        clock: Callable[[], float],
        owner: PoolOwner,
        template: socket.socket,
        *,
        size: int,
        socket_path: str,
        log_dir: str,
        task_silence_s_max: float = TASK_SILENCE_S_MAX,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._owner = owner
        self._size = size
        self._socket_path = socket_path
        self._log_dir = log_dir
        self._task_silence_s_max = task_silence_s_max
        self._executors: dict[int, Executor] = {}
        self._next_index = 0
        self._jobs: dict[str, OpenJob] = {}
        self._slots: dict[str, int] = {}
        """Of these jobs: executors of it that there may be at once."""
        self._plans: dict[str, JobPlanned] = {}
        self._waiting_for_exit: dict[str, list[Callable[[], None]]] = {}
        self._stopped: Callable[[], None] | None = None
        self._template_gone = False
        self._deaths_before_hello = 0
        self.template_pid = 0
        self._template: MessageProtocol[FromTemplate] = MessageProtocol(
            reactor, FromTemplate, self._template_said, self._template_lost, check_peer=False
        )
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda _address: self._template  # type: ignore[method-assign,assignment]
        # Twisted duplicates the descriptor; ours is closed, so that an end is seen at both ends.
        template.setblocking(False)
        reactor.adoptStreamConnection(template.fileno(), socket.AF_UNIX, factory)
        template.close()
        self._template.accept()
        doors = Factory()
        doors.buildProtocol = self._build_link  # type: ignore[method-assign,assignment]
        doors.noisy = False
        self._port = listen_unix(reactor, socket_path, doors)
        self._refill: Any = None
        self._fill()

    # --- jobs ---

    def open_job(self, job: OpenJob, slots: int | None = None) -> None:
        """From now on executors may serve it, `slots` at once (None: all); those without a job are bound to
        it at once."""
        self._jobs[job.job] = job
        self._slots[job.job] = self._size if slots is None else slots
        self._fill()
        for executor in self._executors.values():
            if not executor.job and not executor.ending and self._may_bind(job.job):
                self._bind(executor, job.job)

    def _may_bind(self, job: str) -> bool:
        """Not when it has all that it may have; one that is ending has not given its memory back yet."""
        return sum(executor.job == job for executor in self._executors.values()) < self._slots[job]

    def planned(self, planned: JobPlanned) -> None:
        self._plans[planned.job] = planned
        for executor in self._executors.values():
            if executor.job == planned.job and not executor.ending:
                self._send(executor, planned)

    def close_job(self, job: str, gone: Callable[[], None]) -> None:
        """End the job's executors and start others in their place; `gone()` when none is left."""
        self._jobs.pop(job, None)
        self._slots.pop(job, None)
        self._plans.pop(job, None)
        mine = [executor for executor in self._executors.values() if executor.job == job]
        if not mine:
            gone()
            return
        self._waiting_for_exit.setdefault(job, []).append(gone)
        for executor in mine:
            executor.revoked = True
            self._end(executor)

    # --- work ---

    def run(self, job: str, run: RunTask, bound: bool = False) -> bool:
        """Give an attempt to an idle executor of its job, or, unless it must be `bound` already, to one that
        has none. False: there is none now; `owner.room()` will come."""
        if job not in self._jobs:
            return False
        live = [executor for executor in self._executors.values() if not executor.ending]
        chosen = next((executor for executor in live if executor.idle and executor.job == job), None)
        if chosen is None and not bound and self._may_bind(job):
            chosen = next((executor for executor in live if executor.idle and not executor.job), None)
            if chosen is not None:
                self._bind(chosen, job)
        if chosen is None:
            return False
        now = self._clock()
        chosen.run, chosen.run_started_at, chosen.heard_at = run, now, now
        chosen.stats, chosen.peak_bytes, chosen.dumped_at = TaskStats(), 0, 0.0
        self._send(chosen, run)
        return True

    def make_room(self, jobs: Iterable[str], executors: int) -> None:
        """Attempts of these jobs wait, one for each time that a job is named, and no idle executor is theirs:
        have so many executors for them soon. Starts them, or ends idle ones, whose jobs have nothing for
        them, so that others are started in their place."""
        coming = [each for each in self._executors.values() if each.link is None or each.ending]
        idle = [each for each in self._executors.values() if each.idle]
        bound = Counter(executor.job for executor in self._executors.values())
        for job in jobs:
            if executors <= 0:
                return
            if job not in self._jobs or bound[job] >= self._slots[job]:
                continue  # it is not here yet; or its own are busy, and it may have no more
            executors -= 1
            bound[job] += 1
            starting = next((e for e in coming if e.ending or e.job in ("", job)), None)
            if starting is not None:
                coming.remove(starting)  # one is coming, or will in this one's place
            elif len(self._executors) < self._size:
                self._fork()
            elif idle:
                self._end(idle.pop())

    def tell_worker(self, attempt: str, message: ToWorker) -> bool:
        """Say it to the executor that runs this attempt; False if there is none."""
        for executor in self._executors.values():
            if executor.run is not None and executor.run.attempt == attempt and not executor.ending:
                self._send(executor, message)
                return True
        return False

    def revoke(self, attempt: str) -> None:
        """Kill what runs this attempt; nothing more is said of it."""
        for executor in self._executors.values():
            if executor.run is not None and executor.run.attempt == attempt:
                executor.revoked = True
                self._end(executor)

    def kill(self, executor: Executor, cause: CortexError) -> None:
        """Kill an executor; the attempt it runs fails with `cause`."""
        if executor.cause is None:
            executor.cause = cause
        self._end(executor)

    def running(self) -> list[Executor]:
        return [each for each in self._executors.values() if each.run is not None and not each.revoked]

    def executors(self) -> list[Executor]:
        """Every executor that has a process."""
        return [each for each in self._executors.values() if each.pid and each.exited is None]

    def check(self) -> None:
        """Look for silent tasks, executors that never came up, and overgrown stderr files."""
        now = self._clock()
        for executor in list(self._executors.values()):
            if executor.link is None and not executor.ending and self._late(executor, now):
                self._end(executor)
            if executor.run is not None and not executor.ending:
                self._check_silence(executor, executor.run, now)
            try:
                if os.stat(executor.stderr_path).st_size > STDERR_FILE_BYTES_MAX:
                    os.truncate(executor.stderr_path, 0)
            except OSError:  # it has not been started yet; or its disk fails, which is for its tasks to say
                continue

    def stop(self, gone: Callable[[], None]) -> None:
        """Kill every executor, close the door, end the template; `gone()` when no executor is left."""
        self._stopped = gone
        if self._refill is not None and self._refill.active():
            self._refill.cancel()
        self._port.stopListening()
        if self._template_gone:
            self._executors.clear()  # killed when it went, and no one is left to report their ends
        for executor in self._executors.values():
            executor.revoked = executor.ending = True
            self._signal(executor, signal.SIGKILL)
        self._finish_stop()

    # --- inside: executors ---

    def _late(self, executor: Executor, now: float) -> bool:
        return self.template_pid != 0 and now - executor.started_at > EXECUTOR_START_S_MAX

    def _fill(self) -> None:
        """Have executors ready for a job to come."""
        if self._refill is not None and self._refill.active():
            self._refill.cancel()
        self._refill = None
        while len(self._executors) < self._size and self._stopped is None and not self._template_gone:
            self._fork()

    def _fork(self) -> Executor:
        index, self._next_index = self._next_index, self._next_index + 1
        path = os.path.join(self._log_dir, f"executor-{index}.log")
        executor = self._executors[index] = Executor(index, path, self._clock())
        self._template.send(ForkExecutor(index, self._socket_path, path))
        return executor

    def _bind(self, executor: Executor, job: str) -> None:
        executor.job = job
        self._introduce(executor)

    def _introduce(self, executor: Executor) -> None:
        """Send the job to a bound executor, as soon as it is there."""
        if executor.link is None or not executor.job:
            return
        self._send(executor, self._jobs[executor.job])
        if executor.job in self._plans:
            self._send(executor, self._plans[executor.job])

    def _send(self, executor: Executor, message: Message) -> None:
        if executor.link is not None:
            executor.link.send(message)

    def _end(self, executor: Executor) -> None:
        """Stop an idle executor, kill a working one."""
        if executor.ending:
            return
        executor.ending = True
        if executor.link is not None and executor.run is None:
            self._send(executor, Stop())
            self._reactor.callLater(EXECUTOR_EXIT_S_MAX, self._signal, executor, signal.SIGKILL)
        else:
            self._signal(executor, signal.SIGKILL)

    def _signal(self, executor: Executor, number: int) -> None:
        if executor.exited is None and executor.index in self._executors:
            self._template.send(SignalExecutor(executor.index, number))

    def _check_silence(self, executor: Executor, run: RunTask, now: float) -> None:
        if isinstance(run.task, ServeTask):  # a call takes what it takes, or says its time
            return
        silent_s = now - executor.heard_at
        if silent_s < self._task_silence_s_max:
            executor.dumped_at = 0.0
        elif executor.dumped_at == 0.0:
            executor.dumped_at = now
            self._signal(executor, signal.SIGUSR1)  # faulthandler writes its stacks to the stderr file
        elif now - executor.dumped_at >= STACK_DUMP_S and executor.run is not None:
            details = circumstances(executor, run, self._jobs.get(executor.job))
            details["stack"] = details.pop("last output", "")
            where = next((line for line in details["stack"].splitlines() if line.startswith("  File")), "")
            cause = TaskTimeout(
                f"the task made no progress for {format_seconds(silent_s)}",
                cure="the job's code, or a disk under it, hangs: see the stack; a single record may take at"
                f" most {format_seconds(self._task_silence_s_max)}",
                signature=f"TaskTimeout {where.strip()}",
                details=details,
            )
            self.kill(executor, cause)

    # --- inside: links ---

    def _build_link(self, _address: Any) -> MessageProtocol[FromExecutor]:
        return MessageProtocol(self._reactor, FromExecutor, self._executor_said, self._link_lost)

    def _executor_said(self, link: MessageProtocol[FromExecutor], message: FromExecutor) -> None:
        if isinstance(message, ExecutorHello):
            executor = self._executors.get(message.executor)
            if executor is None or executor.link is not None or executor.ending:
                link.close()
                return
            link.accept()
            self._deaths_before_hello = 0
            executor.link, executor.pid = link, message.pid
            self._introduce(executor)
            self._owner.room()
            return
        executor = self._of_link(link)
        if isinstance(message, Retiring):
            if executor is not None:
                executor.retiring = executor.ending = True
                self._reactor.callLater(EXECUTOR_EXIT_S_MAX, self._signal, executor, signal.SIGKILL)
            return
        if executor is None or executor.run is None:
            return
        if not isinstance(message, TaskProgress | TaskFinished | TaskFailed):
            if not executor.revoked:
                executor.heard_at = self._clock()
                self._owner.worker_said(executor.job, executor.run.attempt, message)
            return
        if executor.run.attempt != message.attempt:
            return  # of an attempt that is no longer its own
        executor.heard_at = self._clock()
        if isinstance(message, TaskProgress):
            executor.stats = message.stats
            if not executor.revoked:
                self._owner.attempt_progress(executor.job, message)
            return
        executor.run = None
        if not executor.revoked:
            self._owner.attempt_ended(executor.job, message)
        if not executor.ending:
            self._owner.room()

    def _of_link(self, link: MessageProtocol[FromExecutor]) -> Executor | None:
        return next((each for each in self._executors.values() if each.link is link), None)

    def _link_lost(self, link: MessageProtocol[FromExecutor], error: CortexError | None) -> None:
        executor = self._of_link(link)
        if executor is None:
            return
        executor.link_closed = True
        if error is not None and executor.cause is None and not executor.ending and executor.exited is None:
            executor.cause = error if error.code != "protocol" else None
        if executor.exited is None:
            executor.ending = True
            self._reactor.callLater(EXECUTOR_EXIT_S_MAX, self._signal, executor, signal.SIGKILL)
        self._bury(executor)

    # --- inside: the template ---

    def _template_said(self, _link: MessageProtocol[FromTemplate], message: FromTemplate) -> None:
        if isinstance(message, TemplateReady):
            self.template_pid = message.pid
            now = self._clock()
            for executor in self._executors.values():
                executor.started_at = now  # their time counts from here, not from the imports
            return
        known = self._executors.get(message.executor)
        if known is None:
            return
        executor = known
        executor.pid = message.pid
        if isinstance(message, ExecutorForked):
            if executor.ending and executor.link is None:
                self._signal(executor, signal.SIGKILL)  # it was not there yet when it was to be killed
            return
        executor.exited = message
        executor.ending = True
        if executor.link is None:
            executor.link_closed = True
        else:
            # what it sent before it died is still to be read; its end follows
            self._reactor.callLater(EXECUTOR_EXIT_S_MAX, self._close_link, executor)
        self._bury(executor)

    def _close_link(self, executor: Executor) -> None:
        """A child of the executor may hold its socket open: do not wait for it."""
        if not executor.link_closed and executor.link is not None:
            executor.link.close()

    def _template_lost(self, _link: MessageProtocol[FromTemplate], error: CortexError | None) -> None:
        self._template_gone = True
        if self._stopped is not None:
            self._executors.clear()
            self._finish_stop()
            return
        for executor in self.executors():
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the kernel was quicker
                os.killpg(executor.pid, signal.SIGKILL)
        self._owner.pool_lost(
            error
            or ServerDied(
                "the template process, which starts executors, ended",
                cure="its last output says why; it may have been killed for lack of memory",
            )
        )

    def written(self, job: str) -> list[tuple[int, str]]:
        """(executor, end of what it wrote) of the job's executors that live. Reads small files."""
        own = [executor for executor in self._executors.values() if executor.job == job]
        return [(executor.index, tail(executor.stderr_path, JOB_LOG_BYTES)) for executor in own]

    # --- inside: deaths ---

    def _bury(self, executor: Executor) -> None:
        """Report and replace an executor whose process and link are both gone."""
        if executor.exited is None or not executor.link_closed:
            return
        if self._executors.pop(executor.index, None) is None:
            return
        run, job = executor.run, executor.job
        executor.run = None
        if run is not None and not executor.revoked:
            if executor.retiring:
                self._owner.attempt_returned(job, run)
            else:
                self._owner.attempt_ended(job, self._death(executor, run))
        elif executor.link is None and not executor.revoked and self._never_came_up(executor):
            return
        if job:
            self._owner.executor_wrote(job, executor.index, tail(executor.stderr_path, JOB_LOG_BYTES))
        self._remove_log(executor)
        if job in self._waiting_for_exit and not any(each.job == job for each in self._executors.values()):
            for gone in self._waiting_for_exit.pop(job):
                gone()
        if self._stopped is not None:
            self._finish_stop()
            return
        if job in self._jobs:
            if len(self._executors) < self._size:
                self._fork()  # without a job: it may be another one that it makes room for
        elif self._refill is None:
            self._refill = self._reactor.callLater(EXECUTOR_REFILL_S, self._fill)
        self._owner.room()

    def _never_came_up(self, executor: Executor) -> bool:
        """An executor died before its hello. True: as the last ones did, and the next ones would. Without
        executors there is no node."""
        self._deaths_before_hello += 1
        if self._deaths_before_hello < EXECUTOR_START_DEATHS_MAX:
            return False
        assert executor.exited is not None
        details = {"exit": exit_text(executor.exited), "last output": tail(executor.stderr_path)}
        said = f"{EXECUTOR_START_DEATHS_MAX} executors in a row ended before they could be used"
        self._owner.pool_lost(ServerDied(said, details=details))
        return True

    def _death(self, executor: Executor, run: RunTask) -> TaskFailed:
        assert executor.exited is not None
        seconds = self._clock() - executor.run_started_at
        if executor.cause is not None:
            report = executor.cause.report()
        else:
            report = died(executor, run, self._jobs.get(executor.job)).report()
        return TaskFailed(run.attempt, report, seconds, executor.peak_bytes)

    def _remove_log(self, executor: Executor) -> None:
        with contextlib.suppress(OSError):  # it never got so far as to make it; else it goes with the folder
            os.unlink(executor.stderr_path)

    def _finish_stop(self) -> None:
        if self._stopped is not None and not self._executors:
            gone, self._stopped = self._stopped, lambda: None
            self._template.close()
            gone()

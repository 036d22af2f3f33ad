"""`ClusterSession`: jobs on a cluster, with the calls of `cortex.client.client.LocalSession`.

Each `run` has a connection of its own. When it ends before the job does, be it by the server's death, `run`
dials again for SERVER_RETURN_S and attaches to its job; a job whose client does not come back is cancelled.
Nodes that have not the client's input files themselves read them from here, while the job is followed.

When a job is done its parts lie on the nodes that made them; they are streamed here, several at once, fsynced
in the staging folder, and only then does `run` give its JobDone. The caller commits them and calls
`received`.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import BinaryIO

from cortex.client.bundle_packing import NOTHING_PACKED, PackedBundle
from cortex.client.client_files import FoundFiles
from cortex.client.cluster_client import ClusterConnection
from cortex.client.input_sender import InputSender
from cortex.client.submission import submit
from cortex.errors import (
    CortexError,
    OutputFailed,
    ProtocolError,
    ResultsLost,
    Unreachable,
    UsageError,
    from_report,
)
from cortex.ids import new_job_id
from cortex.job.spec import JobSpec
from cortex.limits import (
    CANCEL_S_MAX,
    PART_CREDIT_BYTES,
    PARTS_FETCHED_AT_ONCE,
    RECEIVED_S_MAX,
    REDIAL_FIRST_S,
    REDIAL_S_MAX,
    SERVER_RETURN_S,
)
from cortex.storage.shared_output import attempts_folder
from cortex.units import format_seconds
from cortex.wire.messages import (
    AttachJob,
    CancelJob,
    FetchPart,
    JobAccepted,
    JobDone,
    JobFailed,
    JobForgotten,
    JobProgress,
    JobReceived,
    OutputPart,
    PartBytes,
    PartLost,
    PartTaken,
    PlanMade,
    ReadInput,
    SubmitJob,
)


class ClusterSession:
    """`home` holds the identity to show; `server` "" is where it was made. Nothing is dialed before `run`.
    `notice` is given a line for the user when the server is gone: standard error, if None."""

    shares_files = False

    def __init__(self, home: str, server: str = "", notice: Callable[[str], None] | None = None) -> None:
        self._home = home
        self._server = server
        self._notice = notice or (lambda line: print(line, file=sys.stderr, flush=True))
        self._open: dict[str, ClusterConnection] = {}

    def __enter__(self) -> ClusterSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_ready(self) -> None:
        """Raise now what would keep a job from being taken."""
        self.connect().close()

    def run(
        self,
        spec: JobSpec,
        code: bytes,
        sys_path: Sequence[str],
        staging_dir: str,
        on_progress: Callable[[JobProgress], None] | None = None,
        packed: PackedBundle = NOTHING_PACKED,
    ) -> JobDone:
        """Run one job to its end: every part of the result is then in `staging_dir`, or, where nodes write
        it to a path that they share, committed there.

        `packed` is what travels with it; `sys_path` has folders of this machine, and stays here. Raises the
        job's error (its `job_report` attribute tells what was done until then), Unreachable when the server
        does not come back, or KeyboardInterrupt when it was cancelled. After JobDone call `received`.
        """
        files = FoundFiles.find(spec.input.paths, spec.input.fingerprint == "full")
        job = new_job_id()
        request = SubmitJob(spec, code, (), written_to(spec, job), packed.bundle, files.listed, job)
        connection = self.connect()
        follower = Follower(staging_dir, on_progress)
        done: JobDone | None = None
        try:
            try:
                connection = submit(connection, request, packed, self.come_back)
                while done is None:
                    try:
                        with InputSender(job, files, connection.send) as sender:
                            done = follower.run(connection, sender)
                    except Unreachable as error:
                        if hasattr(error, "job_report"):  # the job's own
                            raise
                        connection.close()
                        connection = self.come_back(_attach_to(job), error)
            except KeyboardInterrupt:
                cancel(connection, job)
                raise
            self._open[job] = connection
            return done
        finally:
            if done is None:
                connection.close()
                follower.close()

    def connect(self) -> ClusterConnection:
        return ClusterConnection(self._home, self._server)

    def plan(self, spec: JobSpec) -> PlanMade:
        """How the cluster would split the job's input, and which nodes have it. Raises what the plan fails
        with."""
        files = FoundFiles.find(spec.input.paths, spec.input.fingerprint == "full")
        job = new_job_id()
        made: PlanMade | None = None
        with self.connect() as connection:
            request = SubmitJob(spec, b"", (), "", client_files=files.listed, job=job, plan_only=True)
            connection.ask(request, JobAccepted)
            with InputSender(job, files, connection.send) as sender:
                while not isinstance(message := connection.receive(), JobDone):
                    if isinstance(message, ReadInput):
                        sender.ask(message)
                    elif isinstance(message, PlanMade):
                        made = message
                    elif isinstance(message, JobFailed):
                        raise from_report(message.error)
            connection.ask(JobReceived(job), JobForgotten)
        if made is None:
            raise ProtocolError("the server said that the plan is made, and sent none", cure="ask again")
        return made

    def come_back(
        self,
        begin: Callable[[ClusterConnection], None],
        cause: CortexError,
        seconds: float = SERVER_RETURN_S,
    ) -> ClusterConnection:
        """Dial until the server answers and `begin` has said what the connection is for. Raises `cause` after
        so many seconds, and what the server refuses us with."""
        self._notice(f"cortex: {cause.message}; trying again for {format_seconds(seconds)}")
        deadline = time.monotonic() + seconds
        rest_s = REDIAL_FIRST_S
        while True:
            time.sleep(rest_s * (0.5 + random.random()))
            connection: ClusterConnection | None = None
            try:
                connection = self.connect()
                begin(connection)
                return connection
            except Unreachable:
                if connection is not None:
                    connection.close()
                if time.monotonic() >= deadline:
                    raise cause from None
            except BaseException:
                if connection is not None:
                    connection.close()
                raise
            rest_s = min(REDIAL_S_MAX, 2 * rest_s)

    def received(self, job: str) -> None:
        """The result is committed (or given up): the nodes forget the job. A server that does not hear of it
        does so by itself, but counts the job as cancelled."""
        connection = self._open.pop(job, None)
        if connection is None:
            return
        with contextlib.suppress(CortexError):
            try:
                connection.ask(JobReceived(job), JobForgotten)
            except Unreachable as error:
                connection.close()
                connection = self.come_back(_attach_to(job), error, RECEIVED_S_MAX)
                connection.send(JobReceived(job))
        connection.close()

    def finish(self) -> None:
        """No more jobs."""
        for connection in list(self._open.values()):
            connection.close()
        self._open.clear()

    close = finish


def written_to(spec: JobSpec, job: str) -> str:
    """Where nodes write the output; "" for where each has its own parts. Raises UsageError for no path."""
    if spec.output.at != "nodes":
        return ""
    if not spec.output.path:
        raise UsageError(
            "--output-on nodes needs a folder to write to",
            cure="name one that all nodes see, with --output",
        )
    return attempts_folder(spec.output.path, job)


def _attach_to(job: str) -> Callable[[ClusterConnection], None]:
    def attach(connection: ClusterConnection) -> None:
        connection.ask(AttachJob(job), JobAccepted)

    return attach


def cancel(connection: ClusterConnection, job: str) -> None:
    """Have the job stopped, and wait a moment for it; without us, it is cancelled later as well."""
    deadline = time.monotonic() + CANCEL_S_MAX
    with contextlib.suppress(CortexError, OSError):
        connection.send(CancelJob(job))
        while time.monotonic() < deadline:
            if isinstance(connection.receive(max(0.0, deadline - time.monotonic())), JobFailed | JobDone):
                return


class Follower:
    """One job from its acceptance to its output in `staging_dir`: follows it, and brings its parts from their
    nodes, under their staged names. A part that is lost with its node is made anew: the job says so when
    it is done again, and what is here already is kept. `staging_dir` "": nothing is brought, the job is only
    followed to its end. `close` it when it is not wanted any more."""

    def __init__(self, staging_dir: str, on_progress: Callable[[JobProgress], None] | None) -> None:
        self._connection: ClusterConnection
        self._sender: InputSender | None = None
        self._staging_dir = staging_dir
        self._on_progress = on_progress
        self._done: JobDone | None = None
        self._waiting: deque[OutputPart] = deque()
        self._coming: dict[str, tuple[OutputPart, BinaryIO]] = {}
        self._here: set[str] = set()
        self._lost = False
        """A part was, and no JobDone has come since."""

    def run(self, connection: ClusterConnection, sender: InputSender | None = None) -> JobDone:
        """Over this connection; when it ends (Unreachable), again over another one that is attached to the
        job. Raises the error that the job failed with, or OutputFailed. Without a `sender` nobody reads the
        client's files."""
        self._connection, self._sender = connection, sender
        try:
            for part, file in self._coming.values():
                self._fetch(part, file)
            while self._done is None or self._waiting or self._coming or self._lost:
                self._take(self._connection.receive())
            return self._done
        except OSError as error:
            raise OutputFailed(
                f"the result cannot be written to {self._staging_dir}: {error.strerror or error}",
                cure="check that the disk has room for it",
            ) from error

    def close(self) -> None:
        for _, file in self._coming.values():
            file.close()

    def _take(self, message: object) -> None:
        if isinstance(message, JobProgress):
            if self._on_progress is not None:
                self._on_progress(message)
        elif isinstance(message, ReadInput):
            if self._sender is not None:
                self._sender.ask(message)
        elif isinstance(message, JobDone):
            self._is_done(message)
        elif isinstance(message, JobFailed):
            error = from_report(message.error)
            error.job_report = message.report  # type: ignore[attr-defined]
            raise error
        elif isinstance(message, PartBytes):
            self._bytes(message)
        elif isinstance(message, PartLost):
            self._part_lost(message)
        elif isinstance(message, JobForgotten):
            raise ResultsLost(
                f"the result of {message.job} is not kept any longer: it was forgotten, or has expired",
                cure="run the job again",
            )

    def _is_done(self, done: JobDone) -> None:
        self._done = done
        self._lost = False
        wanted = {part.staged_as for part in done.parts}
        for name in self._coming.keys() - wanted:
            self._drop(name)
        known = self._here | self._coming.keys()
        if self._staging_dir:
            self._waiting = deque(part for part in done.parts if part.node and part.staged_as not in known)
            self._ask()

    def _ask(self) -> None:
        assert self._done is not None
        while self._waiting and len(self._coming) < PARTS_FETCHED_AT_ONCE:
            part = self._waiting.popleft()
            path = self._path(part.staged_as)
            file = open(path, "xb", buffering=0)  # noqa: SIM115 (closed when all is here, or in `close`)
            self._coming[part.staged_as] = part, file
            self._fetch(part, file)

    def _fetch(self, part: OutputPart, file: BinaryIO) -> None:
        assert self._done is not None
        request = FetchPart(self._done.job, part.staged_as, PART_CREDIT_BYTES, file.tell())
        self._connection.send(request)

    def _bytes(self, message: PartBytes) -> None:
        if message.staged_as not in self._coming:
            return  # dropped, and what was on its way still comes
        part, file = self._coming[message.staged_as]
        rest = memoryview(message.data)
        while rest:  # a disk that is getting full takes a part
            rest = rest[file.write(rest) :]
        if not message.last:
            self._connection.send(PartTaken(message.job, message.staged_as, len(message.data)))
            return
        if file.tell() != part.size_bytes:
            raise ProtocolError(f"{part.name} has {file.tell()} bytes, and its node said {part.size_bytes}")
        os.fsync(file.fileno())
        file.close()
        del self._coming[message.staged_as]
        self._here.add(message.staged_as)
        self._ask()

    def _part_lost(self, message: PartLost) -> None:
        if message.staged_as in self._coming:
            self._drop(message.staged_as)
            self._lost = True
            self._ask()

    def _drop(self, staged_as: str) -> None:
        _, file = self._coming.pop(staged_as)
        file.close()
        os.unlink(self._path(staged_as))

    def _path(self, staged_as: str) -> str:
        return os.path.join(self._staging_dir, os.path.basename(staged_as))

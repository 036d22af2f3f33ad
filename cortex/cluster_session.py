"""`ClusterSession`: jobs on a cluster, with the calls of `cortex.client.LocalSession`.

Each `run` has a connection of its own; the server cancels the jobs of a connection that ends. When a job
is done its parts lie on the nodes that made them; they are streamed here, several at once, fsynced in the
staging folder, and only then does `run` give its JobDone. The caller commits them and calls `received`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import BinaryIO

from cortex.cluster_client import ClusterConnection
from cortex.errors import CortexError, OutputFailed, ProtocolError, from_report
from cortex.job.spec import JobSpec
from cortex.limits import CANCEL_S_MAX, PART_CREDIT_BYTES, PARTS_FETCHED_AT_ONCE
from cortex.wire.messages import (
    CancelJob,
    FetchPart,
    JobAccepted,
    JobDone,
    JobFailed,
    JobProgress,
    JobReceived,
    OutputPart,
    PartBytes,
    PartLost,
    PartTaken,
    SubmitJob,
)


class ClusterSession:
    """`home` holds the identity to show; `server` "" is where it was made. Nothing is dialed before `run`."""

    def __init__(self, home: str, server: str = "") -> None:
        self._home = home
        self._server = server
        self._open: dict[str, ClusterConnection] = {}

    def __enter__(self) -> ClusterSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_ready(self) -> None:
        """Raise now what would keep a job from being taken."""
        ClusterConnection(self._home, self._server).close()

    def run(
        self,
        spec: JobSpec,
        code: bytes,
        sys_path: Sequence[str],
        staging_dir: str,
        on_progress: Callable[[JobProgress], None] | None = None,
    ) -> JobDone:
        """Run one job to its end: every part of the result is then in `staging_dir`.

        Raises the job's error (its `job_report` attribute tells what was done until then), Unreachable,
        ResultsLost, or KeyboardInterrupt when it was cancelled. After JobDone call `received`.
        """
        connection = ClusterConnection(self._home, self._server)
        done: JobDone | None = None
        try:
            accepted = connection.ask(SubmitJob(spec, code, tuple(sys_path), ""), JobAccepted)
            try:
                finished = _follow(connection, on_progress)
                _download(connection, finished, staging_dir)
                done = finished
            except KeyboardInterrupt:
                _cancel(connection, accepted.job)
                raise
            self._open[done.job] = connection
            return done
        finally:
            if done is None:
                connection.close()

    def received(self, job: str) -> None:
        """The result is committed (or given up): the nodes forget the job."""
        connection = self._open.pop(job, None)
        if connection is None:
            return
        with contextlib.suppress(CortexError):  # the server's end has the same effect
            connection.send(JobReceived(job))
        connection.close()

    def finish(self) -> None:
        """No more jobs."""
        for connection in list(self._open.values()):
            connection.close()
        self._open.clear()

    close = finish


def _follow(connection: ClusterConnection, on_progress: Callable[[JobProgress], None] | None) -> JobDone:
    while True:
        message = connection.receive()
        if isinstance(message, JobProgress):
            if on_progress is not None:
                on_progress(message)
        elif isinstance(message, JobDone):
            return message
        elif isinstance(message, JobFailed):
            error = from_report(message.error)
            error.job_report = message.report  # type: ignore[attr-defined]
            raise error


def _cancel(connection: ClusterConnection, job: str) -> None:
    """Have the job stopped, and wait a moment for it; the end of the connection cancels as well."""
    deadline = time.monotonic() + CANCEL_S_MAX
    with contextlib.suppress(CortexError, TimeoutError):
        connection.send(CancelJob(job))
        while time.monotonic() < deadline:
            if isinstance(connection.receive(max(0.0, deadline - time.monotonic())), JobFailed | JobDone):
                return


def _download(connection: ClusterConnection, done: JobDone, staging_dir: str) -> None:
    """Bring every part from its node into `staging_dir`, under its staged name."""
    waiting = deque(done.parts)
    coming: dict[str, tuple[OutputPart, BinaryIO]] = {}
    try:
        while waiting or coming:
            while waiting and len(coming) < PARTS_FETCHED_AT_ONCE:
                part = waiting.popleft()
                path = os.path.join(staging_dir, os.path.basename(part.staged_as))
                coming[part.staged_as] = part, open(path, "xb", buffering=0)  # noqa: SIM115 (closed below)
                connection.send(FetchPart(done.job, part.staged_as, PART_CREDIT_BYTES))
            message = connection.receive()
            if isinstance(message, PartLost):
                raise from_report(message.error)
            if not isinstance(message, PartBytes):
                continue  # the last progress of the job
            part, file = coming[message.staged_as]
            file.write(message.data)
            if not message.last:
                connection.send(PartTaken(done.job, message.staged_as, len(message.data)))
                continue
            if file.tell() != part.size_bytes:
                raise ProtocolError(
                    f"{part.name} has {file.tell()} bytes, and its node said {part.size_bytes}"
                )
            os.fsync(file.fileno())
            file.close()
            del coming[message.staged_as]
    except OSError as error:
        raise OutputFailed(
            f"the result cannot be written to {staging_dir}: {error.strerror or error}",
            cure="check that the disk has room for it",
        ) from error
    finally:
        for _, file in coming.values():
            file.close()

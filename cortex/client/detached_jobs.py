"""Jobs that go on without their client: submitting one, following it, and fetching what it has made.

Blocking, as `cortex.client.cluster_session`, whose way of dialing again is used here as well: a server that
is gone for a while costs whoever waits nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from cortex.client.bundle_packing import PackedBundle
from cortex.client.client_files import FoundFiles
from cortex.client.cluster_client import ClusterConnection
from cortex.client.cluster_session import ClusterSession, Follower, cancel, written_to
from cortex.client.submission import submit
from cortex.errors import Unreachable, UsageError, from_report
from cortex.ids import new_job_id
from cortex.job.spec import JobSpec
from cortex.limits import DETACH_PLAN_S
from cortex.wire.messages import (
    FollowJob,
    JobDone,
    JobFailed,
    JobFollowed,
    JobProgress,
    SubmitJob,
)


def submit_detached(
    session: ClusterSession, spec: JobSpec, code: bytes, packed: PackedBundle, keep_s: float
) -> str:
    """Submit a job that goes on without this process; gives its id. Its result is kept for `keep_s`.

    Waits for the plan of its input, DETACH_PLAN_S at most, and raises what fails until then: an input that
    the nodes do not see shows here. Raises KeyboardInterrupt, and then the job is cancelled.
    """
    files = FoundFiles.find(spec.input.paths, spec.input.fingerprint == "full")
    job = new_job_id()
    request = SubmitJob(spec, code, (), written_to(spec, job), packed.bundle, files.listed, job, keep_s)
    connection = session.connect()
    try:
        connection = submit(connection, request, packed, session.come_back)
        _wait_for_plan(connection)
    except KeyboardInterrupt:
        cancel(connection, job)
        raise
    finally:
        connection.close()
    return job


def _wait_for_plan(connection: ClusterConnection) -> None:
    deadline = time.monotonic() + DETACH_PLAN_S
    while True:
        try:
            message = connection.receive(max(0.0, deadline - time.monotonic()))
        except (TimeoutError, Unreachable):
            return  # it was accepted: it goes on
        if isinstance(message, JobFailed):
            raise from_report(message.error)
        if isinstance(message, JobDone) or (isinstance(message, JobProgress) and _is_planned(message)):
            return


def _is_planned(progress: JobProgress) -> bool:
    return any(stage.stage != "plan" for stage in progress.stages)


class FollowedJob:
    """A job that this process looks at, and may leave at any time: `detached` or not. A context manager.

    Raises NotAllowed for another user's job, ResultsLost for one that nothing is kept of.
    """

    def __init__(self, session: ClusterSession, job: str) -> None:
        self._session = session
        self.job = job
        self._connection = session.connect()
        try:
            followed = self._follow(self._connection)
        except BaseException:
            self._connection.close()
            raise
        self.detached = followed.detached
        self.spec = followed.spec
        """None: the job has failed."""

    def _follow(self, connection: ClusterConnection) -> JobFollowed:
        return connection.ask(FollowJob(self.job), JobFollowed)

    def wait(self, on_progress: Callable[[JobProgress], None] | None = None) -> JobDone:
        """Wait for its end. Raises the error that it failed with, or Unreachable."""
        return self._run(Follower("", on_progress))

    def fetch(self, staging_dir: str, on_progress: Callable[[JobProgress], None] | None = None) -> JobDone:
        """Wait for its end, and bring its parts into `staging_dir`, under their staged names.

        Raises as `wait` does, OutputFailed, UsageError for a job whose result goes to its client, and
        ResultsLost when it is forgotten meanwhile.
        """
        if not self.detached:
            raise UsageError(
                f"the result of {self.job} goes to the client that submitted it",
                cure="submit with --detach what is to be fetched later",
            )
        return self._run(Follower(staging_dir, on_progress))

    def _run(self, follower: Follower) -> JobDone:
        try:
            while True:
                try:
                    return follower.run(self._connection)
                except Unreachable as error:
                    if hasattr(error, "job_report"):  # the job's own
                        raise
                    self._connection.close()
                    self._connection = self._session.come_back(self._again, error)
        finally:
            follower.close()

    def _again(self, connection: ClusterConnection) -> None:
        self._follow(connection)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> FollowedJob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

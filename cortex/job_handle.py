"""`JobHandle`: a job of a cluster by its id, from any process of its user.

handle = WordCount(input="/shared/docs/*.txt").run(client, detach=True)
print(handle.id)                                   # note it down; this process may end
...
handle = client.job("j0123456789ab")               # later, elsewhere
counts = handle.fetch("counts/")                   # waits for its end if need be; may be done again
handle.forget()                                    # or let it expire
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from cortex.client.cluster_client import ClusterConnection
from cortex.client.cluster_session import ClusterSession
from cortex.client.detached_jobs import FollowedJob, submit_detached
from cortex.config import Config, load_config
from cortex.errors import InternalError, UsageError
from cortex.ids import is_job_id, new_job_id
from cortex.job.overrides import absolute_path, current_folder
from cortex.job.spec import JobSpec
from cortex.limits import RESULTS_S_MAX
from cortex.local_run import (
    OnProgress,
    PackedJob,
    commit_parts,
    pack_job,
    spill_folder,
    temporary_result,
)
from cortex.result import Result
from cortex.storage.filesystem import LocalFilesystem
from cortex.storage.output_committer import abort_output, stage_output
from cortex.units import format_seconds, parse_seconds
from cortex.wire.messages import (
    CancelJob,
    ClusterStatus,
    ForgetResult,
    GetStatus,
    JobDone,
    JobForgotten,
    JobReport,
    JobStatus,
)

if TYPE_CHECKING:
    from cortex.api import MapReduceJob


class JobHandle:
    """The job `id`, whoever holds this. Each call has a connection of its own; use from any thread.

    Its calls raise NotAllowed for another user's job, and Unreachable, NotTrusted or UsageError where there
    is no way to the cluster.
    """

    def __init__(self, job: str, config: Config) -> None:
        if not is_job_id(job):
            raise UsageError(f"{job!r} is no job's id", cure="list them: cortex jobs")
        self.id = job
        self._config = config

    def status(self) -> JobStatus:
        """How far it is. Raises UsageError when the cluster does not know it (any more)."""
        with self._connect() as connection:
            jobs = connection.ask(GetStatus(), ClusterStatus).jobs
        found = next((each for each in jobs if each.job == self.id), None)
        if found is None:
            raise UsageError(f"there is no job {self.id!r}", cure="list them: cortex jobs")
        return found

    def wait(self, on_progress: OnProgress | None = None) -> JobReport:
        """Wait for its end, and give what it did. Raises the job's error, or ResultsLost when nothing is kept
        of it any more."""
        with FollowedJob(self._session(), self.id) as followed:
            return followed.wait(on_progress).report

    def fetch(
        self,
        output: str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Wait for its end, bring its result here and commit it in one step, as `run` does.

        `output` is a folder; None is the one that the job names, else a temporary one. May be called again,
        and elsewhere: the result is kept until it expires or is forgotten. Raises as `wait`, and as `run`
        does for the output.
        """
        return fetch_result(self._config, self.id, output, overwrite, on_progress)[0]

    def cancel(self) -> None:
        """End it, if it is under way."""
        with self._connect() as connection:
            connection.ask(CancelJob(self.id), ClusterStatus)

    def forget(self) -> None:
        """Drop its result at the cluster. Raises UsageError while it is under way."""
        with self._connect() as connection:
            connection.ask(ForgetResult(self.id), JobForgotten)

    def _session(self) -> ClusterSession:
        return ClusterSession(self._config.home, self._config.server)

    def _connect(self) -> ClusterConnection:
        return ClusterConnection(self._config.home, self._config.server)

    def __repr__(self) -> str:
        return f"<cortex.JobHandle {self.id} at {self._config.server or 'the cluster'}>"


def detach_class_job(job: MapReduceJob, config: Config | None, keep_results: str | float) -> JobHandle:
    from cortex.class_spec import build_spec

    spec = build_spec(job)
    config = config or load_config()
    keep_s = keep_seconds(keep_results)
    with ClusterSession(config.home, config.server) as session:
        packed = pack_job(session, job, spec)
        return JobHandle(detach_job(session, spec, packed, keep_s), config)


def keep_seconds(keep_results: str | float) -> float:
    """``7d``, or seconds. Raises UsageError for what cannot be."""
    given = isinstance(keep_results, int | float) and not isinstance(keep_results, bool)
    seconds = float(keep_results) if given else parse_seconds(str(keep_results), "keep-results")
    if not 0 < seconds <= RESULTS_S_MAX:
        raise UsageError(
            f"keep-results: a result cannot be kept for {keep_results}",
            cure=f"{format_seconds(RESULTS_S_MAX)} at most: fetch it within that time, or write it to a path"
            " that all nodes share",
        )
    return seconds


def detach_job(session: ClusterSession, spec: JobSpec, packed: PackedJob, keep_s: float) -> str:
    """Submit; gives the job's id. See `submit_detached`."""
    if spec.output.at != "nodes":
        spec = msgspec.structs.replace(spec, output=msgspec.structs.replace(spec.output, at="kept"))
    return submit_detached(session, spec, packed.code, packed.bundle, keep_s)


def fetch_result(
    config: Config,
    job: str,
    output: str | os.PathLike[str] | None,
    overwrite: bool,
    on_progress: OnProgress | None,
) -> tuple[Result, float]:
    """See `JobHandle.fetch`. Gives also until when the result is kept, in seconds since 1970."""
    with FollowedJob(ClusterSession(config.home, config.server), job) as followed:
        spec = followed.spec
        if spec is None:
            followed.wait()
            raise InternalError(f"{job} is done, and has no spec")
        if spec.output.at == "nodes":
            raise UsageError(
                f"the output of {job} is not kept apart: its nodes write it to {spec.output.path}",
                cure=f"read it there, where that path is seen, after: cortex job {job} --wait",
            )
        path = spec.output.path if output is None else absolute_path(os.fspath(output), current_folder())
        if not path:
            expires: list[float] = []

            def fetch(folder: str) -> JobDone:
                done = followed.fetch(folder, on_progress)
                expires.append(done.expires_at)
                return done

            result = temporary_result(spec, spill_folder(config), fetch)
            return result, expires[0]
        overwrite = overwrite or (output is None and spec.output.overwrite)
        spec = msgspec.structs.replace(
            spec, output=msgspec.structs.replace(spec.output, path=path, overwrite=overwrite)
        )
        fs = LocalFilesystem()
        staged = stage_output(fs, path, new_job_id(), overwrite)
        try:
            done = followed.fetch(staged.path, on_progress)
            commit_parts(fs, staged, spec, done)
        except BaseException:
            abort_output(fs, staged)
            raise
        return Result(spec, done.report, done.parts, path), done.expires_at
